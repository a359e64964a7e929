//! Answers on their way to the client: the server's own, and what follows when an answer is whole, taken, or lost.

use super::crossing::{Delivery, Finished, Then, Times};
use super::frontend::FileTurn;
use super::frontend::phase::Phase;
use super::io::token::Readiness;
use super::tick::Reactor;
use crate::conn::Request;
use crate::conn::request::Local;
use crate::conn::worker::Answer;
use crate::http::downstream::{LocalResponse, refusal_body};
use crate::http::{Framing, Reason, Version};
use crate::keys::{ClientKey, UpstreamKey};

/// A whole answer of the server's own.
struct LocalAnswer<'a> {
    status: u16,
    content_type: &'static str,
    body: &'a [u8],
    /// Why it is not an app's.
    reason: Option<Reason>,
    times: Times,
    /// The slot and process that failed.
    worker: Option<(usize, i32)>,
}

impl Reactor {
    pub(super) fn answer_locally(&mut self, client: ClientKey, request: Request, local: Local) {
        let status_body;
        let (status, content_type, body) = match local {
            Local::Server => (200, "text/plain", &b"ok"[..]),
            Local::Status => {
                let (status, text) = self.status_summary();
                status_body = text;
                (status, "application/json", status_body.as_bytes())
            }
        };
        let reply =
            LocalAnswer { status, content_type, body, reason: None, times: Times::default(), worker: None };
        self.answer(client, request, reply);
    }

    /// Answers a request with a reason instead of an app's answer.
    pub(super) fn refuse(
        &mut self,
        client: ClientKey,
        request: Request,
        reason: Reason,
        times: Times,
        worker: Option<(usize, i32)>,
    ) {
        let body = refusal_body(reason);
        let (status, body) = (reason.status(), body.as_bytes());
        self.answer(
            client,
            request,
            LocalAnswer { status, content_type: "text/plain", body, reason: Some(reason), times, worker },
        );
    }

    /// Answers a request whose app does not start with what is known of that.
    pub(super) fn refuse_with(
        &mut self,
        client: ClientKey,
        request: Request,
        content_type: &'static str,
        body: &[u8],
        times: Times,
    ) {
        let reason = Reason::StartFailed;
        let status = reason.status();
        self.answer(
            client,
            request,
            LocalAnswer { status, content_type, body, reason: Some(reason), times, worker: None },
        );
    }

    /// A whole answer of the server's own.
    fn answer(&mut self, client: ClientKey, request: Request, reply: LocalAnswer<'_>) {
        let LocalAnswer { status, content_type, body, reason, times, worker } = reply;
        let ends = reason.is_some_and(Reason::ends_connection);
        let keep_alive = request.context.keep_alive && !ends && !self.is_stopping();
        let mut bytes = self.io.take_prefix();
        let local_response = LocalResponse {
            status,
            content_type,
            fields: b"",
            body,
            retry_soon: reason.is_some_and(Reason::passes_soon),
            is_head: request.context.is_head,
            version: request.context.version,
            keep_alive,
            date: self.io.date_line(),
        };
        local_response.write(&mut bytes);
        let delivery = self.frontend.answer(client, &bytes);
        self.io.give_prefix_back(bytes);
        let body_bytes = if request.context.is_head { 0 } else { body.len() as u64 };
        // The log has no room for a charset.
        let media_type = content_type.split(';').next().unwrap_or(content_type);
        let answer = Answer::local(status, media_type, keep_alive);
        let finished = Finished { request, answer, reason, body_bytes, times, worker };
        let then = if keep_alive { Then::Keep } else { Then::Close };
        self.finish(client, finished, then, delivery);
    }

    /// All of an answer is there. What follows waits until the client has taken it.
    pub(super) fn finish(&mut self, client: ClientKey, finished: Finished, then: Then, delivery: Delivery) {
        match delivery {
            Delivery::Sent => {
                self.frontend.answered(client, then, &mut self.io);
                self.complete(client, finished);
            }
            Delivery::Waits { .. } => self.frontend.await_taking(client, finished, then, &self.io),
            Delivery::Gone | Delivery::SpoolFull => {
                let reason = if delivery == Delivery::Gone { Reason::ClientGone } else { Reason::SpoolFull };
                // What it has is not all, and must not look so.
                self.frontend.reset_on_close(client);
                self.log_gone(client, finished, reason);
                self.frontend.close(client);
            }
        }
    }

    /// The client has all of its answer. Inlined, since a call would move the request once more.
    #[inline(always)]
    fn complete(&mut self, client: ClientKey, finished: Finished) {
        self.log(client, &finished);
        self.io.give_back(finished.request.head);
    }

    pub(super) fn client_has_taken_all(&mut self, client: ClientKey) {
        if let Some(upstream) = self.frontend.upstream_of(client) {
            self.frontend.disarm(client);
            self.release_held_back(upstream);
            self.pass_end_to_client(client, upstream);
        } else if let Some(finished) = self.frontend.taken(client, &mut self.io) {
            self.complete(client, finished);
        }
    }

    /// What waited for the client cannot be read back: it is cut, so that what it has does not look whole.
    pub(super) fn answer_is_lost(&mut self, client: ClientKey) {
        match self.frontend.phase(client) {
            Some(Phase::Finishing { .. }) => {
                self.frontend.reset_on_close(client);
                if let Some(Phase::Finishing { finished, .. }) = self.frontend.close(client) {
                    self.log_gone(client, finished, Reason::SpoolFull);
                }
            }
            Some(&Phase::Assigned { upstream }) => self.delivery_failed(upstream, Delivery::SpoolFull),
            Some(_) | None => self.client_gone(client),
        }
    }

    /// Bytes of the server's own in the middle of things.
    pub(super) fn send(&mut self, client: ClientKey, bytes: &[u8]) {
        if matches!(self.frontend.deliver(client, [bytes, b"", b""]), Delivery::Gone | Delivery::SpoolFull) {
            self.client_gone(client);
        }
    }

    /// A request's one line.
    pub(super) fn log(&mut self, client: ClientKey, finished: &Finished) {
        self.observer.log(finished, self.frontend.address(client), &self.io);
    }

    pub(super) fn log_gone_request(&mut self, client: ClientKey, request: Request, times: Times) {
        let answer = Answer::local(Reason::ClientGone.status(), "", false);
        let finished = Finished { request, answer, reason: None, body_bytes: 0, times, worker: None };
        self.log_gone(client, finished, Reason::ClientGone);
    }

    /// The one line of a request whose client has not got its whole answer.
    pub(super) fn log_gone(&mut self, client: ClientKey, mut finished: Finished, reason: Reason) {
        finished.reason = Some(reason);
        finished.answer.status = reason.status();
        self.log(client, &finished);
        self.io.give_back(finished.request.head);
    }

    /// A client has taken some of its answer, or files may be made again: its worker goes on if there is room.
    pub(super) fn settle_answer(&mut self, client: ClientKey) {
        self.frontend.forget_taken(client);
        let Some(upstream) = self.frontend.upstream_of(client) else { return };
        if self.backend.is_held_back(upstream) && self.frontend.has_room_for_answer(client) {
            self.release_held_back(upstream);
        }
    }

    /// There is room again for what a worker says.
    pub(super) fn release_held_back(&mut self, upstream: UpstreamKey) {
        self.backend.release_held_back(upstream, &mut self.io);
    }

    /// At the beginning of a tick: whoever waits for a file gets one, first come, first served.
    pub(super) fn settle_spools(&mut self) {
        if !self.frontend.may_look_for_files(self.io.now()) {
            return;
        }
        while let Some(next) = self.frontend.next_for_file(&self.io) {
            match next {
                FileTurn::Body(client) => self.on_client(client, Some(Readiness::READABLE)),
                FileTurn::NoRoom(client) => self.refuse_arriving(client, Reason::SpoolFull),
                FileTurn::Answer(client) => self.settle_answer(client),
            }
        }
        if self.frontend.lacks_files(&self.io) {
            self.close_for_room();
        }
    }
}

/// Whether a 1.0 client or an unframed body makes a plain close look like an end.
pub(super) fn must_reset(answer: &Answer, version: Version) -> bool {
    version == Version::Http10 || answer.downstream == Framing::UntilClose
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_needs_a_reset_where_a_close_would_be_its_end() {
        let of = |downstream| {
            let mut answer = Answer::local(200, "text/plain", true);
            answer.downstream = downstream;
            answer
        };
        for (downstream, version, expected) in [
            (Framing::UntilClose, Version::Http11, true),
            (Framing::UntilClose, Version::Http10, true),
            (Framing::Length(5), Version::Http10, true),
            (Framing::Length(5), Version::Http11, false),
            (Framing::Chunked, Version::Http11, false),
        ] {
            assert_eq!(must_reset(&of(downstream), version), expected, "{downstream:?} {version:?}");
        }
    }
}
