//! What is done when a worker fails: one more try where that can do no harm, else an answer that names the culprit, or a
//! cut that shows.

use super::backend::UpstreamDeadline;
use super::backend::exchange::Exchange;
use super::crossing::{Delivery, Finished, Then, Times};
use super::questions::Otherwise;
use super::supervisor::worker::{Fate, Origin};
use super::tick::Reactor;
use crate::balancer::{Failure, may_retry};
use crate::conn::worker::End;
use crate::http::Reason;
use crate::http::method::is_registered;
use crate::http::response::Invalid;
use crate::keys::{ClientKey, UpstreamKey, WorkerKey};
use crate::observe::failures::{Cause, Subject};
use crate::process::Exit;

/// Workers that are gone, or of no use.
impl Reactor {
    /// Nobody listens on a worker's socket: it gets no more requests, and another takes its place.
    pub(super) fn discard(&mut self, worker: WorkerKey) {
        let is_news = self.supervisor.refuses_connections(worker);
        self.backend.close_unused(worker);
        self.backend.end_cooldowns(worker);
        self.balancer.remove(worker);
        if !is_news {
            return;
        }
        let label = self.supervisor.label(worker);
        if self.supervisor.is_external(worker) {
            log::warn!(
                "{label}: no connection to its socket; it gets no more requests unless it joins again"
            );
        } else {
            log::warn!("{label}: refuses connections; it is replaced");
        }
        match self.supervisor.origin(worker) {
            Some(Origin::Slot { .. }) => self.supervisor.give_up_on(worker, self.io.now()),
            Some(Origin::Outside { .. }) => self.forget_when_over(worker),
            Some(Origin::Template { .. }) | None => {}
        }
    }

    /// A worker's process is on its way out: nobody is to meet it any more, not even after a cooldown.
    pub(super) fn take_out(&mut self, worker: WorkerKey) {
        match self.supervisor.origin(worker) {
            // Its end will be reaped in a moment.
            Some(Origin::Slot { .. }) => {
                self.balancer.withdraw(worker);
            }
            // Of its end nobody will tell.
            Some(Origin::Outside { .. }) => self.part_from_lost(worker),
            Some(Origin::Template { .. }) | None => {}
        }
    }

    /// A worker from outside that has ended, or is stuck, gets nothing more.
    fn part_from_lost(&mut self, worker: WorkerKey) {
        self.supervisor.note_gone(worker);
        self.balancer.remove(worker);
        self.forget_when_over(worker);
    }

    /// A worker from outside that gets nothing more is forgotten with the last answer that may still end: its other
    /// connections may go on, or hold whole answers.
    pub(super) fn forget_when_over(&mut self, worker: WorkerKey) {
        if !self.backend.has_others_at_work(worker) {
            self.forget_worker(worker);
        }
    }

    /// Takes a worker that came from outside out of everything.
    pub(super) fn forget_worker(&mut self, worker: WorkerKey) {
        if !self.supervisor.forget(worker) {
            return;
        }
        self.balancer.remove(worker);
        for upstream in self.backend.upstreams_of(worker) {
            self.backend.close(upstream);
            self.backend.disarm(upstream);
        }
        log::info!("{}: gone", self.supervisor.label(worker));
        for upstream in self.backend.upstreams_of(worker) {
            let exchange = self.backend.take_exchange(upstream).filter(|exchange| !exchange.is_question());
            if let Some(exchange) = exchange {
                self.give_up(upstream, exchange, Reason::WorkerDied);
            }
        }
    }
}

/// Answers that fail.
impl Reactor {
    /// A worker's connection has ended before its answer.
    pub(super) fn ended_early(&mut self, upstream: UpstreamKey, end: End) {
        let fate = self.fate(upstream);
        match self.backend.exchange(upstream) {
            None => return,
            Some(exchange) if exchange.is_question() => return self.ask_later(upstream),
            Some(exchange) if exchange.client.is_none() => return self.ended_for_nobody(upstream),
            // It had sent its last byte, so a clean exit takes nothing away.
            Some(exchange) if exchange.has_tunnel_ended() && fate == Fate::Exited(Exit::Code(0)) => {
                return self.tunnel_broke(upstream);
            }
            Some(_) => {}
        }
        if let Some(worker) = self.backend.worker_of(upstream)
            && matches!(fate, Fate::IsEnding | Fate::Exited(_))
        {
            self.backend.note_crash(worker, self.io.now());
            self.blame_for_death(worker, upstream);
        }
        let Some(exchange) = self.backend.take_exchange(upstream) else { return };
        if let (End::Idle, true, Some(client)) = (end, exchange.is_reconnecting(), exchange.client) {
            return self.frontend.try_next_tick(client, exchange.job);
        }
        let is_dying = matches!(fate, Fate::IsEnding | Fate::Exited(_));
        let failure = match end {
            // A dying process still lets the kernel accept; what it closes then was an open connection as well.
            End::NoResponse if !exchange.is_connection_new || is_dying => {
                Failure::ClosedWithoutResponse { nothing_sent: exchange.is_unsent() }
            }
            // It never had a connection to be asked on.
            End::Idle => Failure::Connect,
            End::NoResponse | End::InHead | End::InBody | End::Whole(_) | End::Tunnel => Failure::Other,
        };
        let reason = match (end, fate) {
            (End::Idle, _) if !exchange.is_tunnel() => Reason::ConnectFailed,
            (End::NoResponse, Fate::Lives) if !is_registered(exchange.subject().method()) => {
                Reason::MethodNotTaken
            }
            (_, Fate::Lives) => Reason::AnswerCut,
            (_, Fate::IsEnding | Fate::Unknown | Fate::Exited(_)) => Reason::WorkerDied,
        };
        let earlier = self.earlier(&exchange);
        self.backend.disarm(upstream);
        self.try_again(upstream, exchange, failure, reason);
        self.settle(upstream, earlier, Otherwise::CoolsDown);
    }

    /// The rest of a request cannot be given to its worker, which is not to blame.
    pub(super) fn cannot_send(&mut self, upstream: UpstreamKey, reason: Reason) {
        if self.backend.is_tunnel(upstream) {
            return self.cut_tunnel(upstream);
        }
        if self.backend.is_question(upstream) {
            return self.ask_later(upstream);
        }
        let Some(exchange) = self.backend.take_exchange(upstream) else { return };
        // It sees an end where a body should be. What it does about that takes a moment.
        self.backend.close(upstream);
        self.backend.disarm(upstream);
        let earlier = self.earlier(&exchange);
        self.give_up(upstream, exchange, reason);
        self.settle(upstream, earlier, Otherwise::CoolsDown);
    }

    /// The worker's bytes are no answer, or not the continuation of one.
    pub(super) fn answered_badly(&mut self, upstream: UpstreamKey, invalid: Invalid) {
        let exchange = self.backend.take_exchange(upstream);
        self.backend.close(upstream);
        self.backend.disarm(upstream);
        log::warn!("{}: its answer has {}", self.label(upstream), invalid.0);
        if let Some(exchange) = exchange {
            let earlier = self.earlier(&exchange);
            self.give_up(upstream, exchange, Reason::BadResponse);
            self.settle(upstream, earlier, Otherwise::IsFree);
        }
    }

    /// What came is not the beginning of an answer. Behind an earlier one it may be what that had too much, which is
    /// nothing that this request has done.
    pub(super) fn began_with_stray_bytes(&mut self, upstream: UpstreamKey, behind_an_answer: bool) {
        if !behind_an_answer {
            return self.answered_badly(upstream, Invalid("no status line"));
        }
        let Some(exchange) = self.backend.take_exchange(upstream) else {
            return self.answered_badly(upstream, Invalid("no status line"));
        };
        log::warn!(
            "{}: unexpected bytes came before its answer; the connection is closed",
            self.label(upstream)
        );
        self.backend.close(upstream);
        // It may be at work on what came over that connection; what it does about the end takes a moment.
        self.backend.disarm(upstream);
        let earlier = self.earlier(&exchange);
        self.try_again(upstream, exchange, Failure::StrayBytes, Reason::BadResponse);
        self.settle(upstream, earlier, Otherwise::CoolsDown);
    }

    /// No next byte within the read timeout: the client is told, and the worker is not idle before its answer has
    /// ended.
    pub(super) fn answer_is_late(&mut self, upstream: UpstreamKey) {
        let Some(exchange) = self.backend.exchange(upstream) else { return };
        if exchange.is_question() {
            return self.ask_later(upstream);
        }
        if exchange.is_tunnel() {
            return self.cut_tunnel(upstream);
        }
        let has_head = exchange.answer.is_some();
        let may_tell = self.may_be_told(upstream, has_head);
        self.note_failure(upstream);
        self.part_from_client(upstream, Reason::ReadTimeout);
        self.backend.arm(upstream, UpstreamDeadline::Stall, self.io.now());
        if may_tell {
            self.backend.shut_down_sending(upstream);
        }
    }

    /// An answer that nobody waits for has not ended in time: the worker is stuck.
    pub(super) fn answer_does_not_end(&mut self, upstream: UpstreamKey) {
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        self.blame_for_hang(upstream);
        if let (Some(identity), Some(subject)) = (self.identity(upstream), self.subject_of(upstream)) {
            self.observer.failures_mut().blame(identity, Cause::Stuck, subject, self.io.unix());
        }
        self.supervisor.note_stuck(worker);
        self.let_tunnels_client_go(upstream, true);
        let description = self.describe_of(upstream).unwrap_or_default();
        log::error!("{}: stuck in {description}; it is replaced", self.label(upstream));
        match self.supervisor.origin(worker) {
            Some(Origin::Slot { .. }) => self.tell_fleet_of_stuck(worker),
            Some(Origin::Outside { .. }) => self.part_from_lost(worker),
            Some(Origin::Template { .. }) | None => {}
        }
    }

    fn tell_fleet_of_stuck(&mut self, worker: WorkerKey) {
        let has_others = self.backend.has_others_at_work(worker);
        self.supervisor.fleet_mut().stuck(worker, has_others, self.io.now());
    }

    /// Something in a worker has ended that is stuck in something: in something else, or in this.
    pub(super) fn look_at_stuck(&mut self, worker: WorkerKey) {
        if !self.backend.is_any_stuck(worker) {
            self.supervisor.note_recovery(worker);
        } else if self.supervisor.origin(worker).is_some_and(Origin::is_own) {
            self.tell_fleet_of_stuck(worker);
        }
    }
}

/// One more try, or the reason as the answer.
impl Reactor {
    /// One more try under the rule, or an answer with `reason`. The worker is not asked again unless it is the only
    /// one, and only over a fresh connection.
    pub(super) fn try_again(
        &mut self,
        upstream: UpstreamKey,
        mut exchange: Exchange,
        failure: Failure,
        reason: Reason,
    ) {
        let Some(client) = exchange.client else {
            return self.io.give_back(exchange.job.request.head);
        };
        let is_idempotent = exchange.job.request.is_idempotent;
        if exchange.answer.is_some()
            || self.has_dismissed_workers()
            || !may_retry(failure, exchange.job.tries, is_idempotent)
        {
            return self.give_up(upstream, exchange, reason);
        }
        log::warn!(
            "{}: {} failed: {reason}; trying it once more",
            self.label(upstream),
            self.describe(upstream, &exchange)
        );
        self.observer.retried();
        exchange.job.tries += 1;
        exchange.job.body.rewind();
        if matches!(failure, Failure::ClosedWithoutResponse { .. }) && !self.balancer.has_free_place() {
            let worker = self.backend.worker_of(upstream).filter(|worker| !self.supervisor.is_dead(*worker));
            // One that can be asked whether it is idle takes the request from the front of the queue when it is.
            let is_asked_first = worker.is_some_and(|worker| self.supervisor.can_be_asked(worker))
                && exchange.job.deadline > self.io.now();
            let worker = worker.filter(|_| !is_asked_first);
            match worker.map(|worker| self.supervisor.is_ending(worker)) {
                Some(Some(false)) => {
                    self.backend.begin_again(upstream, exchange);
                    return self.send_request(upstream);
                }
                // Nothing tells: its end, if that is what it is, will be known in a moment.
                Some(None) => {
                    self.backend.begin_again(upstream, exchange);
                    return self.backend.arm(upstream, UpstreamDeadline::Cooldown, self.io.now());
                }
                Some(Some(true)) | None => {}
            }
        }
        match failure {
            Failure::Busy => {
                self.frontend.take_back(client);
                self.place(client, exchange.job);
            }
            // Others may have died in the same moment.
            Failure::Connect
            | Failure::ClosedWithoutResponse { .. }
            | Failure::StrayBytes
            | Failure::Other => self.frontend.try_next_tick(client, exchange.job),
        }
    }

    /// The client gets `reason` as its answer, or a cut connection if a head is out.
    pub(super) fn give_up(&mut self, upstream: UpstreamKey, exchange: Exchange, reason: Reason) {
        log::warn!("{}: {} failed: {reason}", self.label(upstream), self.describe(upstream, &exchange));
        let Some(client) = exchange.client else {
            return self.io.give_back(exchange.job.request.head);
        };
        let times = exchange.times(self.io.now());
        let culprit = self.identity(upstream);
        match exchange.answer {
            None => self.refuse(client, exchange.job.request, reason, times, culprit),
            Some(answer) => {
                let (request, body_bytes) = (exchange.job.request, exchange.body_bytes);
                let reason = Some(reason);
                self.cut(client, Finished { request, answer, reason, body_bytes, times, worker: culprit });
            }
        }
    }

    /// Ends a client's connection so that its answer cannot look whole, behind what it is still to get.
    pub(super) fn cut(&mut self, client: ClientKey, finished: Finished) {
        let reset = super::answers::must_reset(&finished.answer, finished.request.context.version);
        let delivery = self.frontend.undelivered(client);
        self.finish(client, finished, Then::Cut { reset }, delivery);
    }

    /// A piece of an answer could not be given to its client.
    pub(super) fn delivery_failed(&mut self, upstream: UpstreamKey, delivery: Delivery) {
        let Some(client) = self.backend.client_of(upstream) else { return };
        if delivery == Delivery::SpoolFull {
            self.backend.let_client_go(upstream, &mut self.io);
            self.log_lost(upstream, client, Reason::SpoolFull);
            self.notice_departure(upstream);
            self.frontend.reset_on_close(client);
            self.frontend.close(client);
        } else {
            self.client_takes_no_more(client);
        }
    }
}

/// For the log.
impl Reactor {
    /// A worker's number and process.
    pub(super) fn identity(&self, upstream: UpstreamKey) -> Option<(usize, i32)> {
        self.supervisor.identity(self.backend.worker_of(upstream)?)
    }

    pub(super) fn times_of(&self, upstream: UpstreamKey) -> Times {
        let exchange = self.backend.exchange(upstream);
        exchange.map_or_else(Times::default, |exchange| exchange.times(self.io.now()))
    }

    /// `GET /path (id abc, waited 3 ms, worked 12 ms, 45 MiB, one among 3)`
    fn describe(&self, upstream: UpstreamKey, exchange: &Exchange) -> String {
        let request = exchange.subject();
        let times = exchange.times(self.io.now());
        let worker = self.backend.worker_of(upstream);
        let resident_bytes = worker.and_then(|worker| self.supervisor.resident_bytes(worker));
        let weight = resident_bytes.map(|bytes| format!(", {} MiB", bytes >> 20)).unwrap_or_default();
        let company = match worker.map_or(1, |worker| self.backend.crashed_with(worker, self.io.now())) {
            0 | 1 => String::new(),
            count => format!(", one among {count}"),
        };
        format!(
            "{} {} (id {}, waited {} ms, worked {} ms{weight}{company})",
            request.method().escape_ascii(),
            request.path().escape_ascii(),
            request.id().escape_ascii(),
            times.queue.as_millis(),
            times.worker.as_millis()
        )
    }

    /// A worker is ending, or has ended, with this at work: that is told to operators, unless the server has told it to.
    pub(super) fn blame_for_death(&mut self, worker: WorkerKey, upstream: UpstreamKey) {
        if let (Some(identity), Some(subject)) = (self.identity(upstream), self.subject_of(upstream))
            && !self.supervisor.was_told_to_end(worker)
        {
            self.observer.failures_mut().blame(identity, Cause::Crash, subject, self.io.unix());
        }
    }

    /// The request that is at work there; a question of the server's own is none.
    fn subject_of(&self, upstream: UpstreamKey) -> Option<Subject> {
        let exchange = self.backend.exchange(upstream).filter(|exchange| !exchange.is_question())?;
        let request = exchange.subject();
        Some(Subject::new(request.method(), request.path(), request.id()))
    }

    pub(super) fn describe_of(&self, upstream: UpstreamKey) -> Option<String> {
        Some(self.describe(upstream, self.backend.exchange(upstream)?))
    }
}
