//! Exchanges: a worker gets a request, its answer is passed on as it comes, and with its last byte the worker is free.

use super::backend::exchange::{Exchange, Stage};
use super::backend::{NoConnection, Piece, Sent, UpstreamDeadline};
use super::crossing::{Delivery, Finished, Job, Received, Then, Times};
use super::io::token::Readiness;
use super::limits::{COOLDOWN, LAST_BYTES, TICK_BYTES};
use super::tick::Reactor;
use crate::balancer::{Failure, Wish};
use crate::conn::worker::{End, Outcome};
use crate::fleet::{RetireReason, TrialOutcome};
use crate::http::Reason;
use crate::keys::{ClientKey, UpstreamKey, WorkerKey};

/// A piece of an answer of up to so many bytes is copied behind its head: a copy of a page costs less than handing
/// the kernel a vector.
const JOINED_BYTES: usize = if cfg!(any(test, fuzzing)) { 48 } else { 4096 };

/// Sending.
impl Reactor {
    /// Gives a request to a worker.
    // Inlined, since a job is large, and each call would copy it.
    #[inline(always)]
    pub(super) fn assign(&mut self, worker: WorkerKey, client: ClientKey, mut job: Job, wish: Wish) {
        let Some(upstream) = self.backend.take_upstream(worker, wish) else { return };
        if self.is_stopping() {
            job.request.context.keep_alive = false;
        }
        let Some(endpoint) = self.supervisor.begin_request(worker) else { return };
        self.frontend.assign(client, upstream);
        self.backend.begin(upstream, client, job, self.io.now());
        let sent = self.backend.send(upstream, endpoint, &mut self.io);
        self.on_sent(upstream, sent);
    }

    /// Sends what is still to be sent of an exchange, over a new connection where it has none.
    pub(super) fn send_request(&mut self, upstream: UpstreamKey) {
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        let Some(endpoint) = self.supervisor.endpoint(worker) else { return };
        let sent = self.backend.send(upstream, endpoint, &mut self.io);
        self.on_sent(upstream, sent);
    }

    fn on_sent(&mut self, upstream: UpstreamKey, sent: Sent) {
        match sent {
            Sent::Fine => {}
            Sent::Waits => {
                if let Some(client) = self.backend.client_of(upstream) {
                    self.ask_client(client);
                }
            }
            Sent::NotConnected(why) => {
                if let Some(worker) = self.backend.worker_of(upstream) {
                    self.supervisor.cannot_connect(worker, why);
                }
                self.connect_failed(upstream, why);
            }
            Sent::Trouble(reason) => self.cannot_send(upstream, reason),
            Sent::TunnelShut => self.end_tunnel_if_over(upstream),
        }
    }

    /// Shuts the way to a worker behind the last byte that is still to be sent.
    pub(super) fn end_sending(&mut self, upstream: UpstreamKey) {
        if self.backend.end_sending(upstream) {
            self.send_request(upstream);
        }
    }
}

/// Receiving.
impl Reactor {
    pub(super) fn on_upstream(&mut self, upstream: UpstreamKey, event: Readiness) {
        if !self.backend.note(upstream, event) {
            return;
        }
        if event.is_writable && self.backend.is_watched_for_room(upstream) {
            self.send_request(upstream);
            self.backend.note_progress(upstream, self.io.now());
            self.backend.resume_tunnels_client(upstream, &mut self.io);
        }
        if event.is_readable || event.is_read_closed {
            self.read_upstream(upstream);
        }
        if event.is_write_closed && self.backend.has_tunnel_ended(upstream) {
            // The worker has closed altogether, so nothing that the client still says can reach it.
            self.tunnel_broke(upstream);
        }
    }

    /// Goes on with a connection that has more to do without a new event.
    pub(super) fn resume_upstream(&mut self, upstream: UpstreamKey) {
        if self.backend.has_more_to_send(upstream) {
            self.send_request(upstream);
            self.backend.resume_tunnels_client(upstream, &mut self.io);
        }
        self.read_upstream(upstream);
    }

    pub(super) fn read_upstream(&mut self, upstream: UpstreamKey) {
        self.read_at_most(TICK_BYTES, upstream);
    }

    /// A worker's process has ended: all that it has written is read at once, since nobody looks at its connections
    /// any more.
    pub(super) fn read_rest(&mut self, upstream: UpstreamKey) {
        self.backend.worker_has_ended(upstream);
        self.read_at_most(LAST_BYTES, upstream);
    }

    fn read_at_most(&mut self, mut budget: usize, upstream: UpstreamKey) {
        let mut scratch = self.io.take_scratch();
        while let Some((received, is_drained)) =
            self.backend.receive(upstream, &mut scratch, &mut budget, &mut self.io)
        {
            match received {
                Received::Bytes(bytes) => self.take_answer(upstream, &mut scratch[..bytes]),
                Received::End => self.connection_ended(upstream, false),
                Received::Gone => self.connection_ended(upstream, true),
            }
            if is_drained {
                break;
            }
        }
        self.io.give_scratch_back(scratch);
    }

    /// Passes a piece of an answer on to its client, and does what follows from it.
    fn take_answer(&mut self, upstream: UpstreamKey, fresh: &mut [u8]) {
        let Some(mut bytes) = self.backend.pending(upstream, fresh) else { return };
        let mut prefix = self.io.take_prefix();
        let Some(piece) = self.backend.advance(upstream, &mut bytes, &mut prefix, &self.io) else { return };
        let delivery = self.pass_on(upstream, &piece, bytes.remaining(), &mut prefix);
        bytes.consume(piece.consumed);
        self.backend.keep(upstream, bytes);
        self.io.give_prefix_back(prefix);
        if piece.is_of_question {
            return self.question_answered(upstream, piece.status, piece.outcome);
        }
        let lost_client = matches!(delivery, Delivery::Gone | Delivery::SpoolFull);
        match piece.outcome {
            Outcome::Ended { reusable } => self.answer_ended(upstream, reusable, delivery),
            Outcome::Going => {
                self.backend.answer_goes_on(upstream, self.io.now());
                if lost_client {
                    self.delivery_failed(upstream, delivery);
                } else if piece.status.is_some() && piece.client.is_none() {
                    self.notice_departure(upstream);
                } else if piece.status.is_some() {
                    self.begin_stream_if_one(upstream);
                }
            }
            Outcome::Busy { reusable } => self.answered_busy(upstream, reusable),
            Outcome::Invalid(invalid) => self.answered_badly(upstream, invalid),
            Outcome::Stray { behind_an_answer } => self.began_with_stray_bytes(upstream, behind_an_answer),
            Outcome::Upgraded => {
                self.upgrade(upstream);
                if lost_client {
                    self.delivery_failed(upstream, delivery);
                } else {
                    self.begin_stream_if_one(upstream);
                }
            }
            Outcome::UnexpectedBytes => {
                log::warn!(
                    "{}: bytes came without a request; the connection is closed",
                    self.label(upstream)
                );
                self.backend.close(upstream);
            }
        }
    }

    /// Gives a piece of an answer to its client.
    fn pass_on(
        &mut self,
        upstream: UpstreamKey,
        piece: &Piece,
        bytes: &[u8],
        prefix: &mut Vec<u8>,
    ) -> Delivery {
        let Some(client) = piece.client else { return Delivery::Sent };
        if matches!(piece.outcome, Outcome::Busy { .. } | Outcome::Invalid(_) | Outcome::Stray { .. }) {
            return Delivery::Sent;
        }
        let data = &bytes[piece.data.clone()];
        let is_last = matches!(piece.outcome, Outcome::Ended { .. });
        let delivery = if data.len() <= JOINED_BYTES {
            prefix.extend_from_slice(data);
            prefix.extend_from_slice(piece.suffix);
            self.frontend.pass_on(client, [prefix, b"", b""], is_last, &self.io)
        } else {
            self.frontend.pass_on(client, [prefix, data, piece.suffix], is_last, &self.io)
        };
        if let Delivery::Waits { is_full } = delivery {
            self.backend.hold_back(upstream, is_full);
            let spools = self.io.spools();
            if is_full && (!spools.is_tick_over() || spools.lacks_descriptors()) {
                self.observer.held_back();
            }
        }
        delivery
    }

    /// The last byte of an answer is in: the worker is free, however fast its client reads.
    pub(super) fn answer_ended(&mut self, upstream: UpstreamKey, reusable: bool, delivery: Delivery) {
        let now = self.io.now();
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        let ended = self.backend.end_exchange(upstream, reusable);
        let Some(Exchange { client, job, assigned, answer, body_bytes, streaming_since, .. }) = ended else {
            return;
        };
        self.supervisor.has_answered(worker, now);
        self.backend.disarm(upstream);
        self.quarantine.note_answer(now);
        if self.supervisor.fleet().is_judging()
            // Of one whose client has left nothing is known.
            && let (Some(_), Some(answer)) = (client, answer)
        {
            let outcome = if answer.status >= 500 { TrialOutcome::Failed } else { TrialOutcome::Fine };
            self.note_outcome(worker, &job, outcome);
        }
        if !self.quarantine.is_empty() {
            self.has_passed_trial(&job);
        }
        if self.supervisor.is_stuck(worker) {
            self.look_at_stuck(worker);
        }
        match (client, answer) {
            (Some(client), Some(answer)) => {
                let finished = Finished {
                    worker: self.supervisor.identity(worker),
                    times: Times::of_stream(&job, assigned, streaming_since, now),
                    request: job.request,
                    answer,
                    reason: None,
                    body_bytes,
                };
                let then = if answer.keep_alive { Then::Keep } else { Then::Close };
                self.finish(client, finished, then, delivery);
            }
            (_, _) => self.io.give_back(job.request.head),
        }
        self.is_free(upstream);
    }

    fn answered_busy(&mut self, upstream: UpstreamKey, reusable: bool) {
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        let is_unresponsive = self.supervisor.has_answered_busy(worker);
        let Some(exchange) = self.backend.end_exchange(upstream, reusable) else { return };
        log::warn!("{}: answered busy", self.label(upstream));
        // It counts as busy for a while, so that nobody meets it again at once.
        self.backend.arm(upstream, UpstreamDeadline::Cooldown, self.io.now());
        self.balancer.cool_down(worker, self.io.now() + COOLDOWN);
        if is_unresponsive {
            self.supervisor.fleet_mut().retire(worker, RetireReason::Unresponsive, self.io.now());
        }
        self.try_again(upstream, exchange, Failure::Busy, Reason::WorkerBusy);
    }

    /// The connection to a worker has ended, by its doing.
    fn connection_ended(&mut self, upstream: UpstreamKey, is_reset: bool) {
        let loses = is_reset && self.backend.loses_by_a_reset(upstream);
        let Some(end) = self.backend.end_connection(upstream, loses) else { return };
        if end == End::Tunnel && !is_reset {
            return self.tunnel_worker_ended(upstream);
        }
        self.backend.close(upstream);
        match end {
            End::Idle => {
                debug_assert!(self.backend.exchange(upstream).is_none());
                if let Some(worker) = self.backend.worker_of(upstream)
                    && self.supervisor.is_ending(worker) == Some(true)
                {
                    self.take_out(worker);
                }
            }
            End::NoResponse | End::InHead | End::InBody => {
                // A reset says that the worker has not read its request: that was not what it died of.
                if end != End::NoResponse || !is_reset {
                    self.suspect(upstream);
                    self.note_failure(upstream);
                }
                self.ended_early(upstream, end);
            }
            End::Whole(suffix) => self.ended_with_connection(upstream, suffix),
            End::Tunnel => self.tunnel_broke(upstream),
        }
    }

    pub(super) fn on_upstream_deadline(&mut self, upstream: UpstreamKey, kind: UpstreamDeadline) {
        match kind {
            // Held back by us, not late.
            UpstreamDeadline::Read | UpstreamDeadline::Idle if self.backend.is_held_back(upstream) => {
                self.backend.arm(upstream, kind, self.io.now());
            }
            UpstreamDeadline::Read | UpstreamDeadline::Idle if self.has_taken_more(upstream) => {
                if self.backend.client_of(upstream).is_some() {
                    self.backend.arm(upstream, kind, self.io.now());
                }
            }
            UpstreamDeadline::Read | UpstreamDeadline::Idle => self.answer_is_late(upstream),
            UpstreamDeadline::Stall => self.answer_does_not_end(upstream),
            UpstreamDeadline::Connect => self.send_request(upstream),
            UpstreamDeadline::Cooldown | UpstreamDeadline::Exit => {
                match self.backend.exchange(upstream).map(|exchange| exchange.stage()) {
                    None => self.is_free(upstream),
                    Some(Stage::AwaitingExit { .. }) => self.exit_did_not_come(upstream, kind),
                    // A request that waits for the worker's cooldown goes on.
                    Some(
                        Stage::Serving
                        | Stage::Reconnecting
                        | Stage::Tunnel { .. }
                        | Stage::Probing
                        | Stage::AskingIdle { .. },
                    ) => self.send_request(upstream),
                }
            }
            UpstreamDeadline::Probe => self.probe(upstream),
        }
    }

    /// Sends more of an exchange, if there is more. The kernel tells of room only when a part of its buffer is free;
    /// whether the worker has taken something before that.
    fn has_taken_more(&mut self, upstream: UpstreamKey) -> bool {
        let unsent_bytes = self.backend.unsent_bytes(upstream);
        if unsent_bytes > 0 {
            self.send_request(upstream);
        }
        self.backend.unsent_bytes(upstream) < unsent_bytes
    }

    /// `worker 3 (pid 42)`
    pub(super) fn label(&self, upstream: UpstreamKey) -> String {
        match self.backend.worker_of(upstream) {
            Some(worker) => self.supervisor.label(worker),
            None => "a worker".to_owned(),
        }
    }

    /// No connection could be made for an exchange.
    pub(super) fn connect_failed(&mut self, upstream: UpstreamKey, why: NoConnection) {
        if self.backend.is_question(upstream) {
            return self.question_failed(upstream, why);
        }
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        let exchange = self.backend.take_exchange(upstream);
        // Nobody starts one from outside anew: where it listens cannot get better.
        let is_lost = match why {
            NoConnection::Refused => true,
            NoConnection::Failed => self.supervisor.is_external(worker),
            NoConnection::Later => false,
        };
        if is_lost {
            self.discard(worker);
        }
        if let Some(exchange) = exchange {
            if let (true, Some(client)) = (exchange.is_reconnecting(), exchange.client) {
                // It was not even asked this time, so that was no try.
                self.frontend.try_next_tick(client, exchange.job);
            } else {
                self.try_again(upstream, exchange, Failure::Connect, Reason::ConnectFailed);
            }
        }
        self.is_free(upstream);
    }
}
