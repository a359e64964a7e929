//! What is done when a worker fails, or when the client that it works for has gone: one more try where that can do
//! no harm, else an answer that names the culprit, or a cut that shows.

use super::asking::{Fate, Otherwise};
use super::connect::NoConnection;
use super::entry::{
    Delivery, Exchange, ExchangeState, Finished, Job, Origin, Phase, Then, Times, WorkerDeadline,
};
use super::{Reactor, process};
use crate::balancer::{Decision, Failure, may_retry};
use crate::conn::worker::End;
use crate::http::response::Invalid;
use crate::http::{Framing, Reason};
use crate::keys::{ClientKey, WorkerKey};
use crate::process::Exit;
use std::time::Duration;

impl Reactor {
    /// No connection could be made for a worker's exchange.
    pub(super) fn connect_failed(&mut self, worker: WorkerKey, why: NoConnection) {
        let is_refused = why == NoConnection::Refused;
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        if entry.exchange.as_ref().is_some_and(Exchange::is_question) {
            return self.question_failed(worker, why);
        }
        let exchange = entry.exchange.take();
        if is_refused {
            self.discard(worker);
        }
        if let Some(exchange) = exchange {
            if let (true, Some(client)) = (exchange.is_reconnecting(), exchange.client) {
                // It was not even asked this time, so that was no try.
                self.place_later(client, exchange.job);
            } else {
                self.try_again(worker, exchange, Failure::Connect, Reason::ConnectFailed);
            }
        }
        if !is_refused {
            self.worker_is_free(worker);
        }
    }

    /// Nobody listens on a worker's socket: it gets no more requests, and another takes its place.
    fn discard(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let was_known = std::mem::replace(&mut entry.is_dead, true);
        let (origin, has_joined) = (entry.origin, entry.has_joined);
        self.close_connection(worker);
        self.balancer.remove(worker);
        // It is not to come back to the stack after a rest.
        self.worker_deadlines.disarm(worker.0);
        if was_known || !has_joined {
            return;
        }
        log::warn!("{}: refuses connections; it is replaced", self.label(worker));
        match origin {
            Origin::Slot { .. } => self.give_up_on(worker),
            Origin::Outside { .. } => self.forget_worker(worker),
        }
    }

    /// A worker's process is on its way out: nobody is to meet it any more, not even after a rest.
    pub(super) fn take_out(&mut self, worker: WorkerKey) {
        match self.workers.get(worker.0).map(|entry| entry.origin) {
            // Its end will be reaped in a moment.
            Some(Origin::Slot { .. }) => {
                self.balancer.remove(worker);
                self.worker_deadlines.disarm(worker.0);
            }
            // Of its end nobody will tell.
            Some(Origin::Outside { .. }) => self.forget_worker(worker),
            None => {}
        }
    }

    /// A worker's connection has ended before its answer.
    pub(super) fn ended_early(&mut self, worker: WorkerKey, end: End) {
        let fate = self.fate(worker);
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        match &entry.exchange {
            None => return,
            Some(exchange) if exchange.is_question() => return self.ask_later(worker),
            Some(exchange) if exchange.client.is_none() => return self.ended_for_nobody(worker),
            // It had sent its last byte, so a clean exit takes nothing away.
            Some(exchange)
                if exchange.tunnel.as_ref().is_some_and(|tunnel| tunnel.worker_has_ended)
                    && fate == Fate::Exited(Exit::Code(0)) =>
            {
                return self.tunnel_broke(worker);
            }
            Some(_) => {}
        }
        let Some(exchange) = entry.exchange.take() else {
            return;
        };
        if let (End::Idle, true, Some(client)) = (end, exchange.is_reconnecting(), exchange.client) {
            return self.place_later(client, exchange.job);
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
            (End::Idle, _) if exchange.tunnel.is_none() => Reason::ConnectFailed,
            (_, Fate::Lives) => Reason::AnswerCut,
            (_, Fate::IsEnding | Fate::Unknown | Fate::Exited(_)) => Reason::WorkerDied,
        };
        let earlier = self.earlier(&exchange);
        self.worker_deadlines.disarm(worker.0);
        self.try_again(worker, exchange, failure, reason);
        self.settle(worker, earlier, Otherwise::Rests);
    }

    /// The rest of a request cannot be given to its worker, which is not to blame.
    pub(super) fn cannot_send(&mut self, worker: WorkerKey, reason: Reason) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        if entry.exchange.as_ref().is_some_and(|exchange| exchange.tunnel.is_some()) {
            return self.cut_tunnel(worker);
        }
        if entry.exchange.as_ref().is_some_and(Exchange::is_question) {
            return self.ask_later(worker);
        }
        let Some(exchange) = entry.exchange.take() else {
            return;
        };
        // It sees an end where a body should be. What it does about that takes a moment.
        self.close_connection(worker);
        self.worker_deadlines.disarm(worker.0);
        let earlier = self.earlier(&exchange);
        self.give_up(worker, exchange, reason);
        self.settle(worker, earlier, Otherwise::Rests);
    }

    /// The worker's bytes are no answer, or not the continuation of one.
    pub(super) fn answered_badly(&mut self, worker: WorkerKey, invalid: Invalid) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let exchange = entry.exchange.take();
        self.close_connection(worker);
        self.worker_deadlines.disarm(worker.0);
        log::warn!("{}: its answer has {}", self.label(worker), invalid.0);
        if let Some(exchange) = exchange {
            let earlier = self.earlier(&exchange);
            self.give_up(worker, exchange, Reason::BadResponse);
            self.settle(worker, earlier, Otherwise::IsFree);
        }
    }

    /// What came is not the beginning of an answer. Behind an earlier one it may be what that had too much, which is
    /// nothing that this request has done.
    pub(super) fn began_with_stray_bytes(&mut self, worker: WorkerKey, behind_an_answer: bool) {
        let entry = self.workers.get_mut(worker.0);
        let exchange = entry.and_then(|entry| entry.exchange.take_if(|_| behind_an_answer));
        let Some(exchange) = exchange else {
            return self.answered_badly(worker, Invalid("no status line"));
        };
        log::warn!(
            "{}: bytes of no answer stand before its answer; the connection is closed",
            self.label(worker)
        );
        self.close_connection(worker);
        // It may be at work on what came over that connection; what it does about the end takes a moment.
        self.worker_deadlines.disarm(worker.0);
        let earlier = self.earlier(&exchange);
        self.try_again(worker, exchange, Failure::StrayBytes, Reason::BadResponse);
        self.settle(worker, earlier, Otherwise::Rests);
    }

    /// One more try under the rule, or an answer with `reason`. The worker is not asked again unless it is the only
    /// one, and only over a fresh connection.
    pub(super) fn try_again(
        &mut self,
        worker: WorkerKey,
        mut exchange: Exchange,
        failure: Failure,
        reason: Reason,
    ) {
        let Some(client) = exchange.client else {
            self.buffers.give_back(exchange.job.request.head);
            return;
        };
        let is_idempotent = exchange.job.request.is_idempotent;
        if exchange.answer.is_some()
            || self.has_dismissed_workers()
            || !may_retry(failure, exchange.job.tries, is_idempotent)
        {
            return self.give_up(worker, exchange, reason);
        }
        log::warn!("{}: {} once more after {reason}", self.label(worker), self.describe(worker, &exchange));
        self.metrics.retries += 1;
        exchange.job.tries += 1;
        exchange.job.body.rewind();
        if matches!(failure, Failure::ClosedWithoutResponse { .. }) && self.balancer.idle() == 0 {
            let is_there = self.workers.get(worker.0).is_some_and(|entry| !entry.is_dead);
            // One that can be asked whether it is idle takes the request from the front of the queue when it is.
            let is_asked_first = self.workers.get(worker.0).is_some_and(|entry| entry.can_be_asked)
                && exchange.job.deadline > self.clock.now;
            match (is_there && !is_asked_first).then(|| self.is_ending(worker)) {
                Some(Some(false)) => return self.try_same_process(worker, exchange, Duration::ZERO),
                // Nothing tells: its end, if that is what it is, will be known in a moment.
                Some(None) => return self.try_same_process(worker, exchange, super::COOLDOWN),
                Some(Some(true)) | None => {}
            }
        }
        match failure {
            Failure::Busy => self.place(client, exchange.job),
            // Others may have died in the same moment.
            Failure::Connect
            | Failure::ClosedWithoutResponse { .. }
            | Failure::StrayBytes
            | Failure::Other => {
                self.place_later(client, exchange.job);
            }
        }
    }

    /// Over a fresh connection to the process that has just closed one.
    fn try_same_process(&mut self, worker: WorkerKey, mut exchange: Exchange, wait: Duration) {
        exchange.is_connection_new = true;
        exchange.enter(ExchangeState::Reconnecting);
        exchange.send_again();
        let Some(entry) = self.workers.get_mut(worker.0) else { return };
        entry.exchange = Some(exchange);
        if wait.is_zero() {
            self.start_exchange(worker);
        } else {
            self.worker_deadlines.arm(worker.0, WorkerDeadline::Cooldown, self.clock.now);
        }
    }

    /// In the next turn, when the hang-ups of this moment have been read.
    fn place_later(&mut self, client: ClientKey, job: Job) {
        if let Some(waiting) = self.clients.get_mut(client.0) {
            waiting.phase = Phase::Retrying(job);
            self.second_tries.push(client);
        }
    }

    pub(super) fn place_second_tries(&mut self, mut clients: Vec<ClientKey>) {
        for client in clients.drain(..) {
            // Some have left meanwhile.
            let waits =
                self.clients.get(client.0).is_some_and(|entry| matches!(entry.phase, Phase::Retrying(_)));
            if waits && let Some(job) = self.take_job(client) {
                self.place(client, job);
            }
        }
    }

    /// With an idle worker that lives, else at the front of the queue under its first deadline.
    fn place(&mut self, client: ClientKey, job: Job) {
        if self.has_dismissed_workers() {
            let times = Times { queue: self.clock.now - job.submitted, ..Times::default() };
            return self.refuse(client, job.request, Reason::Stopping, times, None);
        }
        while let Some(worker) = self.balancer.top()
            && self.fate(worker) == Fate::IsEnding
        {
            self.take_out(worker);
        }
        match self.balancer.resubmit(client, job.deadline) {
            Decision::Assign { worker } => self.assign(worker, client, job),
            Decision::Enqueue | Decision::Reject => {
                if let Some(waiting) = self.clients.get_mut(client.0) {
                    waiting.phase = Phase::Queued(job);
                    self.ask_client(client);
                }
            }
        }
    }

    /// The client gets `reason` as its answer, or a cut connection if a head is out.
    pub(super) fn give_up(&mut self, worker: WorkerKey, exchange: Exchange, reason: Reason) {
        log::warn!("{}: {} failed: {reason}", self.label(worker), self.describe(worker, &exchange));
        let Some(client) = exchange.client else {
            return self.buffers.give_back(exchange.job.request.head);
        };
        let times = self.times(&exchange);
        let culprit = self.identity(worker);
        match exchange.answer {
            None => self.refuse(client, exchange.job.request, reason, times, culprit),
            Some(answer) => {
                let (request, body_bytes) = (exchange.job.request, exchange.body_bytes);
                let reason = Some(reason);
                self.cut(client, Finished { request, answer, reason, body_bytes, times, worker: culprit });
            }
        }
    }

    /// No next byte within the read timeout: the client is told, and the worker is not idle before its answer has
    /// ended.
    pub(super) fn answer_is_late(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let Some(exchange) = &mut entry.exchange else {
            return;
        };
        if exchange.is_question() {
            return self.ask_later(worker);
        }
        if exchange.tunnel.is_some() {
            return self.cut_tunnel(worker);
        }
        let has_head = exchange.answer.is_some();
        let may_tell = entry.may_be_told(has_head);
        self.part_from_client(worker, Reason::ReadTimeout);
        self.worker_deadlines.arm(worker.0, WorkerDeadline::Stall, self.clock.now);
        if may_tell {
            self.shut_down_for_sending(worker);
        }
    }

    /// The server's time is up: the client of an exchange is told so.
    pub(super) fn cut_exchange(&mut self, worker: WorkerKey) {
        match self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref()) {
            Some(exchange) if exchange.tunnel.is_some() => self.cut_tunnel(worker),
            Some(_) => {
                self.part_from_client(worker, Reason::Stopping);
                self.shut_down_for_sending(worker);
            }
            None => {}
        }
    }

    /// The client gets `reason` as its answer, or a cut if a head is out; the worker goes on for nobody.
    fn part_from_client(&mut self, worker: WorkerKey, reason: Reason) {
        if let Some(description) = self.describe_of(worker) {
            log::warn!("{}: {description} failed: {reason}", self.label(worker));
        }
        let times = self.times_of(worker);
        let culprit = self.identity(worker);
        let Some(client) = self.let_client_go(worker) else {
            return;
        };
        let Some(exchange) = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref()) else {
            return;
        };
        let (request, answer, body_bytes) =
            (exchange.job.request.copy_into(self.buffers.take()), exchange.answer, exchange.body_bytes);
        match answer {
            None => self.refuse(client, request, reason, times, culprit),
            Some(answer) => {
                let reason = Some(reason);
                self.cut(client, Finished { request, answer, reason, body_bytes, times, worker: culprit });
            }
        }
    }

    /// An exchange goes on for nobody: whatever its worker still says is read and thrown away.
    pub(super) fn let_client_go(&mut self, worker: WorkerKey) -> Option<ClientKey> {
        let client = self.workers.get_mut(worker.0)?.exchange.as_mut()?.client.take();
        self.release_held_back(worker);
        client
    }

    /// Ends a client's connection so that its answer cannot look whole, behind what it is still to get.
    fn cut(&mut self, client: ClientKey, finished: Finished) {
        let reset = Self::must_reset(&finished.answer, finished.request.context.version);
        let waits = self.clients.get(client.0).is_some_and(|waiting| !waiting.out.is_read());
        let delivery = if waits { Delivery::Waits } else { Delivery::Sent };
        self.finish(client, finished, Then::Cut { reset }, delivery);
    }

    /// An answer that nobody waits for has not ended in time: the worker is stuck.
    pub(super) fn answer_does_not_end(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        entry.is_stuck = true;
        let origin = entry.origin;
        self.let_tunnels_client_go(worker, true);
        let description = self.describe_of(worker).unwrap_or_default();
        log::error!("{}: stuck in {description}; it is replaced", self.label(worker));
        match origin {
            Origin::Slot { .. } => self.fleet.stuck(worker, self.clock.now),
            Origin::Outside { .. } => self.forget_worker(worker),
        }
    }

    /// The client of an exchange has gone: the rest of the answer is read and thrown away.
    pub(super) fn exchange_lost_its_client(&mut self, worker: WorkerKey, client: ClientKey) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        let Some(exchange) = exchange.filter(|exchange| exchange.client == Some(client)) else {
            return;
        };
        let is_unsent = exchange.is_unsent();
        let is_over = matches!(exchange.state(), ExchangeState::AwaitingExit { .. });
        self.let_client_go(worker);
        self.log_lost(worker, client, Reason::ClientGone);
        if is_over {
            self.ended_for_nobody(worker);
        } else if is_unsent {
            self.call_off(worker);
        } else {
            self.notice_departure(worker);
        }
    }

    /// A request of which its worker has seen nothing is not sent any more.
    fn call_off(&mut self, worker: WorkerKey) {
        self.close_connection(worker);
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        entry.connecting_since = None;
        if let Some(exchange) = entry.exchange.take() {
            self.buffers.give_back(exchange.job.request.head);
        }
        // One that rests goes on resting.
        if self.worker_deadlines.armed(worker.0) != Some(WorkerDeadline::Cooldown) {
            self.worker_deadlines.disarm(worker.0);
            self.worker_is_free(worker);
        }
    }

    /// Where nothing says that the answer will end, the worker is told that nobody waits, behind what is still to be
    /// sent. Before a head it has the read timeout for it, and then, or once a head is out, the drain timeout.
    pub(super) fn notice_departure(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get(worker.0) else {
            return;
        };
        let answer = entry.exchange.as_ref().and_then(|exchange| exchange.answer);
        match answer {
            None if entry.may_be_told(false) => self.end_sending(worker),
            None => {}
            Some(answer) if matches!(answer.downstream, Framing::Length(_) | Framing::Empty) => {}
            Some(_) => {
                self.end_sending(worker);
                self.worker_deadlines.arm(worker.0, WorkerDeadline::Stall, self.clock.now);
            }
        }
    }

    /// A piece of an answer could not be given to its client.
    pub(super) fn delivery_failed(&mut self, worker: WorkerKey, delivery: Delivery) {
        let Some(client) = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref()?.client)
        else {
            return;
        };
        if delivery == Delivery::SpoolFull {
            self.let_client_go(worker);
            self.log_lost(worker, client, Reason::SpoolFull);
            self.notice_departure(worker);
            if let Some(waiting) = self.clients.get(client.0) {
                waiting.stream.reset_on_close();
            }
            self.kill_client(client);
        } else {
            self.client_gone(client);
        }
    }

    /// The line of a request whose exchange goes on without it.
    fn log_lost(&mut self, worker: WorkerKey, client: ClientKey, reason: Reason) {
        let times = self.times_of(worker);
        let culprit = self.identity(worker);
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        let (answer, body_bytes) =
            exchange.map_or((None, 0), |exchange| (exchange.answer, exchange.body_bytes));
        let Some(request) = self.copy_request(worker) else {
            return;
        };
        let answer = answer.unwrap_or(crate::conn::worker::Answer::local(reason.status(), "", false));
        let finished = Finished { request, answer, reason: None, body_bytes, times, worker: culprit };
        self.log_gone(client, finished, reason);
    }

    /// For the log: the exchange keeps its own, since its worker may still be at it.
    pub(super) fn copy_request(&mut self, worker: WorkerKey) -> Option<crate::conn::Request> {
        let exchange = self.workers.get(worker.0)?.exchange.as_ref()?;
        Some(exchange.job.request.copy_into(self.buffers.take()))
    }

    pub(super) fn times(&self, exchange: &Exchange) -> Times {
        Times {
            queue: exchange.assigned - exchange.job.submitted,
            worker: self.clock.now.saturating_duration_since(exchange.assigned),
        }
    }

    pub(super) fn times_of(&self, worker: WorkerKey) -> Times {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        exchange
            .map_or(Times { queue: Duration::ZERO, worker: Duration::ZERO }, |exchange| self.times(exchange))
    }

    /// `GET /path (id abc, waited 3 ms, worked 12 ms, 45 MiB)`
    pub(super) fn describe(&self, worker: WorkerKey, exchange: &Exchange) -> String {
        let request = exchange.subject();
        let times = self.times(exchange);
        let entry = self.workers.get(worker.0);
        // As last sampled; of a process that lives it can still be asked.
        let resident_bytes = entry
            .and_then(|entry| entry.resident_bytes.or_else(|| process::resident_bytes(entry.process()?)));
        let weight = resident_bytes.map(|bytes| format!(", {} MiB", bytes >> 20)).unwrap_or_default();
        format!(
            "{} {} (id {}, waited {} ms, worked {} ms{weight})",
            request.method().escape_ascii(),
            request.path().escape_ascii(),
            request.id().escape_ascii(),
            times.queue.as_millis(),
            times.worker.as_millis()
        )
    }

    pub(super) fn describe_of(&self, worker: WorkerKey) -> Option<String> {
        let exchange = self.workers.get(worker.0)?.exchange.as_ref()?;
        Some(self.describe(worker, exchange))
    }

    /// Takes a worker that came from outside out of everything.
    pub(super) fn forget_worker(&mut self, worker: WorkerKey) {
        self.balancer.remove(worker);
        self.worker_deadlines.disarm(worker.0);
        self.close_connection(worker);
        log::info!("{}: gone", self.label(worker));
        if let Some(entry) = self.workers.get_mut(worker.0) {
            entry.is_dead = true;
            let exchange = entry.exchange.take().filter(|exchange| !exchange.is_question());
            if let Some(exchange) = exchange {
                self.give_up(worker, exchange, Reason::WorkerDied);
            }
            self.dead_workers.push(worker);
        }
    }
}
