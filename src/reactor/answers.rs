//! Answers on their way to the client: the server's own, and what follows when an answer is whole, taken, or lost.

use super::entry::{ClientDeadline, Delivery, Finished, Phase, Then, Times};
use super::spool::{Broken, Written};
use super::token::Target;
use super::{Reactor, TICK_BYTES};
use crate::conn::Request;
use crate::conn::request::Local;
use crate::conn::worker::Answer;
use crate::http::forward::{LocalResponse, refusal_body};
use crate::http::{Framing, Reason, Version};
use crate::keys::ClientKey;

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

    /// Refuses a request that is still arriving.
    pub(super) fn refuse_arriving(&mut self, client: ClientKey, reason: Reason) {
        let buffer = self.buffers.take();
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        if let Some(request) = entry.conn.abandon(buffer, self.clock.now) {
            self.refuse(client, request, reason, Times::default(), None);
        }
    }

    /// A whole answer of the server's own.
    fn answer(&mut self, client: ClientKey, request: Request, reply: LocalAnswer<'_>) {
        let LocalAnswer { status, content_type, body, reason, times, worker } = reply;
        let ends = reason.is_some_and(Reason::ends_connection);
        let keep_alive = request.context.keep_alive && !ends && !self.is_stopping();
        let local_response = LocalResponse {
            status,
            content_type,
            body,
            retry_soon: reason.is_some_and(Reason::passes_soon),
            is_head: request.context.is_head,
            version: request.context.version,
            keep_alive,
            date: &self.clock.date_line,
        };
        let mut bytes = std::mem::take(&mut self.prefix);
        bytes.clear();
        local_response.write(&mut bytes);
        let delivery = match self.clients.get_mut(client.0) {
            Some(entry) => {
                entry.body.clear();
                entry.deliver([&bytes, b"", b""])
            }
            None => Delivery::Gone,
        };
        self.prefix = bytes;
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
            Delivery::Sent => self.complete(client, finished, then),
            Delivery::Waits => {
                if let Some(entry) = self.clients.get_mut(client.0) {
                    entry.phase = Phase::Finishing { finished: Some(finished), then };
                    self.client_deadlines.arm(client.0, ClientDeadline::Take, self.clock.now);
                }
            }
            Delivery::Gone | Delivery::SpoolFull => {
                let reason = if delivery == Delivery::Gone { Reason::ClientGone } else { Reason::SpoolFull };
                if let Some(entry) = self.clients.get(client.0) {
                    // What it has is not all, and must not look so.
                    entry.stream.reset_on_close();
                }
                self.log_gone(client, finished, reason);
                self.kill_client(client);
            }
        }
    }

    /// The client has all of its answer.
    fn complete(&mut self, client: ClientKey, finished: Finished, then: Then) {
        self.log(client, &finished);
        self.buffers.give_back(finished.request.head);
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        match then {
            Then::Keep => {
                entry.phase = Phase::Reading;
                entry.conn.answered();
                let has_more =
                    !entry.conn.read_buffer.is_empty() || entry.is_readable || entry.conn.has_ended;
                self.mark_idle(client);
                if has_more {
                    self.ready_list.push(Target::Client(client));
                }
            }
            Then::Close => {
                let may_still_send =
                    !entry.conn.read_buffer.is_empty() || entry.is_readable || entry.conn.is_lingering();
                if may_still_send && !entry.conn.has_ended {
                    entry.stream.shutdown_write();
                    entry.conn.linger();
                    entry.phase = Phase::Lingering;
                    self.client_deadlines.arm(client.0, ClientDeadline::Linger, self.clock.now);
                    self.ready_list.push(Target::Client(client));
                } else {
                    self.kill_client(client);
                }
            }
            Then::Cut { reset } => {
                if reset {
                    entry.stream.reset_on_close();
                }
                self.kill_client(client);
            }
        }
    }

    /// Writes what waits for the client, now that there is room.
    pub(super) fn flush_client(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        let before = entry.out.unread_bytes();
        match entry.out.write_to(&mut entry.stream, TICK_BYTES) {
            Ok(Written::All) => {
                entry.out.clear();
                self.client_has_taken_all(client);
            }
            Ok(written) => {
                if entry.out.unread_bytes() < before {
                    self.client_deadlines.arm(client.0, ClientDeadline::Take, self.clock.now);
                    self.settle_answer(client);
                }
                if written == Written::BudgetSpent {
                    self.ready_list.push(Target::Client(client));
                }
            }
            Err(Broken::Peer) => self.client_gone(client),
            Err(Broken::Spool) => self.answer_is_lost(client),
        }
    }

    /// What waited for the client cannot be read back: it is cut, so that what it has does not look whole.
    fn answer_is_lost(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        match &mut entry.phase {
            Phase::Finishing { finished, .. } => {
                entry.stream.reset_on_close();
                if let Some(finished) = finished.take() {
                    self.log_gone(client, finished, Reason::SpoolFull);
                }
                self.kill_client(client);
            }
            Phase::Assigned { worker } => {
                let worker = *worker;
                self.delivery_failed(worker, Delivery::SpoolFull);
            }
            _ => self.client_gone(client),
        }
    }

    pub(super) fn client_has_taken_all(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        match &mut entry.phase {
            Phase::Finishing { finished, then } => {
                let (finished, then) = (finished.take(), *then);
                if let Some(finished) = finished {
                    self.complete(client, finished, then);
                }
            }
            Phase::Assigned { worker } | Phase::Tunnel { worker } => {
                let worker = *worker;
                self.client_deadlines.disarm(client.0);
                self.release_held_back(worker);
                self.pass_end_to_client(client, worker);
            }
            Phase::Reading
            | Phase::Queued(_)
            | Phase::Retrying(_)
            | Phase::TimedOut(_)
            | Phase::Lingering
            | Phase::Dead => {}
        }
    }

    /// Bytes of the server's own in the middle of things.
    pub(super) fn send(&mut self, client: ClientKey, bytes: &[u8]) {
        let delivery = self.clients.get_mut(client.0).map(|entry| entry.deliver([bytes, b"", b""]));
        if matches!(delivery, Some(Delivery::Gone | Delivery::SpoolFull)) {
            self.client_gone(client);
        }
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
        self.buffers.give_back(finished.request.head);
    }

    /// Whether a 1.0 client or an unframed body makes a plain close look like an end.
    pub(super) fn must_reset(answer: &Answer, version: Version) -> bool {
        version == Version::Http10 || answer.downstream == Framing::UntilClose
    }
}
