//! The workers' side: sending a request, and passing its answer on as it comes.

use super::connect::NoConnection;
use super::entry::{
    ClientDeadline, Delivery, Exchange, ExchangeState, Finished, Job, Origin, Phase, Sending, Then, Times,
    WorkerDeadline,
};
use super::spool::{Broken, Written};
use super::stream::{Io, attempt};
use super::token::{Readiness, Target};
use super::{Reactor, TICK_BYTES, spool_budget};
use crate::balancer::NextStep;
use crate::conn::read_buffer::PendingBytes;
use crate::conn::worker::{End, Outcome};
use crate::fleet::RetireReason;
use crate::http::Reason;
use crate::keys::{ClientKey, WorkerKey};
use mio::Interest;
use std::io::{IoSlice, Read, Write};

/// A worker that answered busy so often in a row is replaced.
const MAX_BUSY_ANSWERS: u8 = 10;

/// A piece of an answer of up to so many bytes is copied behind its head: a copy of a page costs less than handing
/// the kernel a vector.
const JOINED_BYTES: usize = if cfg!(test) { 48 } else { 4096 };

impl Reactor {
    /// Gives a request to a worker.
    pub(super) fn assign(&mut self, worker: WorkerKey, client: ClientKey, mut job: Job) {
        let now = self.clock.now;
        if self.is_stopping() {
            job.request.context.keep_alive = false;
        }
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        debug_assert!(entry.exchange.is_none(), "one request at a time");
        entry.was_asked = true;
        if let Some(waiting) = self.clients.get_mut(client.0) {
            waiting.phase = Phase::Assigned { worker };
        }
        let is_connection_new = entry.stream.is_none();
        entry.exchange = Some(Exchange::of_client(client, job, now, is_connection_new));
        self.start_exchange(worker);
    }

    /// Sends the request of a worker's exchange, over a new connection where there is none.
    pub(super) fn start_exchange(&mut self, worker: WorkerKey) {
        let now = self.clock.now;
        match self.connect(worker) {
            Ok(()) => {}
            Err(NoConnection::Later) => {
                let Some(entry) = self.workers.get_mut(worker.0) else {
                    return;
                };
                let since = *entry.connecting_since.get_or_insert(now);
                let client = entry.exchange.as_ref().and_then(|exchange| exchange.client);
                // Who is asked whether it is idle is asked again by a clock of its own.
                let is_asking = entry.exchange.as_ref().is_some_and(Exchange::is_asking_idle);
                if !is_asking && now.duration_since(since) < self.config.connect_timeout {
                    self.worker_deadlines.arm(worker.0, WorkerDeadline::Connect, now);
                    if let Some(client) = client {
                        self.ask_client(client);
                    }
                    return;
                }
                entry.connecting_since = None;
                entry.stream = None;
                return self.connect_failed(worker, NoConnection::Later);
            }
            Err(why) => return self.connect_failed(worker, why),
        }
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        entry.connecting_since = None;
        let Some(exchange) = &mut entry.exchange else { return };
        if exchange.is_reconnecting() {
            exchange.enter(ExchangeState::Serving);
        }
        entry.conn.ask(exchange.job.request.context);
        // Of a worker that is asked whether it is idle the stall's clock runs.
        if !exchange.is_asking_idle() {
            self.worker_deadlines.arm(worker.0, WorkerDeadline::Read, now);
        }
        self.send_request(worker);
    }

    /// Writes as much of the request as the worker takes.
    pub(super) fn send_request(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let (Some(stream), Some(exchange)) = (&mut entry.stream, &mut entry.exchange) else {
            return;
        };
        let mut is_full = false;
        let mut trouble = None;
        while !exchange.is_sent() && exchange.sending != Sending::Ended && !is_full {
            let head = &exchange.job.request.head[exchange.head_sent_bytes..];
            let body = exchange.job.body.memory();
            if head.is_empty() && body.is_empty() {
                match exchange.job.body.write_to(stream, TICK_BYTES) {
                    Ok(Written::All) => {}
                    Ok(Written::PeerIsFull) => is_full = true,
                    Ok(Written::BudgetSpent) => {
                        self.ready_list.push(Target::Worker(worker));
                        break;
                    }
                    Err(Broken::Peer) => exchange.sending = Sending::Ended,
                    Err(Broken::Spool) => {
                        exchange.sending = Sending::Ended;
                        trouble = Some(Reason::SpoolFull);
                    }
                }
                continue;
            }
            let sent = attempt(|| match (head, body) {
                (head, []) => stream.write(head),
                (head, body) => stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]),
            });
            match sent {
                Io::Bytes(bytes) => {
                    let of_head = bytes.min(head.len());
                    exchange.head_sent_bytes += of_head;
                    exchange.job.body.consume(bytes - of_head);
                }
                Io::Later => is_full = true,
                // Whatever it has answered is still to be read: a refusal may stand there.
                Io::End | Io::Gone => exchange.sending = Sending::Ended,
            }
        }
        if let Some(tunnel) = &mut exchange.tunnel
            && !is_full
            && exchange.sending != Sending::Ended
        {
            match tunnel.out.write_to(stream, TICK_BYTES) {
                Ok(Written::All) => tunnel.out.clear(),
                Ok(Written::PeerIsFull) => is_full = true,
                Ok(Written::BudgetSpent) => self.ready_list.push(Target::Worker(worker)),
                Err(Broken::Peer | Broken::Spool) => exchange.sending = Sending::Ended,
            }
        }
        if exchange.sending == Sending::Ending
            && exchange.is_sent()
            && exchange.tunnel.as_ref().is_none_or(|tunnel| tunnel.out.is_read())
        {
            stream.shutdown_write();
            exchange.sending = Sending::Ended;
        }
        let is_tunnel_told = exchange.sending == Sending::Ended && exchange.tunnel.is_some();
        if is_full != entry.is_watched_for_room {
            entry.is_watched_for_room = is_full;
            let interests =
                if is_full { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let token = Target::Worker(worker).token();
            if self.poll.registry().reregister(stream, token, interests).is_err() {
                trouble = trouble.or(Some(Reason::ConnectFailed));
            }
        }
        if let Some(reason) = trouble {
            self.cannot_send(worker, reason);
        } else if is_tunnel_told {
            self.end_tunnel_if_over(worker);
        }
    }

    pub(super) fn worker_event(&mut self, worker: WorkerKey, event: Readiness) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        entry.is_closing |= event.is_read_closed;
        if event.is_writable && entry.is_watched_for_room {
            self.send_request(worker);
            // It takes the request, so it lives.
            if self.worker_deadlines.armed(worker.0) == Some(WorkerDeadline::Read) {
                self.worker_deadlines.arm(worker.0, WorkerDeadline::Read, self.clock.now);
            }
            self.tunnel_has_room(worker);
        }
        if event.is_readable || event.is_read_closed {
            self.read_worker(worker);
        }
        if event.is_write_closed {
            self.tunnel_worker_hung_up(worker);
        }
    }

    /// Goes on with a connection that has more to do without a new event.
    pub(super) fn resume_worker(&mut self, worker: WorkerKey) {
        let entry = self.workers.get(worker.0).filter(|entry| !entry.is_watched_for_room);
        if entry.and_then(|entry| entry.exchange.as_ref()).is_some_and(Exchange::is_half_sent) {
            self.send_request(worker);
            self.tunnel_has_room(worker);
        }
        self.read_worker(worker);
    }

    pub(super) fn read_worker(&mut self, worker: WorkerKey) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut budget = TICK_BYTES;
        while let Some(entry) = self.workers.get_mut(worker.0) {
            // Held back, or a tunnel whose worker has sent its last byte.
            let tunnel = entry.exchange.as_ref().and_then(|exchange| exchange.tunnel.as_ref());
            if entry.is_held_back() || tunnel.is_some_and(|tunnel| tunnel.worker_has_ended) {
                break;
            }
            let Some(stream) = &mut entry.stream else { break };
            if budget == 0 {
                self.ready_list.push(Target::Worker(worker));
                break;
            }
            match attempt(|| stream.read(&mut scratch)) {
                Io::Bytes(bytes) => {
                    budget = budget.saturating_sub(bytes);
                    let is_drained = bytes < scratch.len() && !entry.is_closing;
                    self.take_answer(worker, &mut scratch[..bytes]);
                    if is_drained {
                        break;
                    }
                }
                Io::Later => break,
                Io::End => {
                    self.connection_ended(worker, false);
                    break;
                }
                Io::Gone => {
                    self.connection_ended(worker, true);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// Passes a piece of an answer on to its client.
    fn take_answer(&mut self, worker: WorkerKey, fresh: &mut [u8]) {
        let now = self.clock.now;
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let mut prefix = std::mem::take(&mut self.prefix);
        prefix.clear();
        let mut pending_bytes = PendingBytes::join(entry.conn.read_buffer.take(), fresh);
        let step = entry.conn.receive(pending_bytes.remaining(), &self.clock.date_line, &mut prefix);
        let mut delivery = Delivery::Sent;
        let mut client = None;
        if let Some(exchange) = &mut entry.exchange {
            if step.answer.is_some() && !matches!(step.outcome, Outcome::Busy { .. }) {
                exchange.answer = step.answer;
            }
            exchange.body_bytes += step.data.len() as u64;
            client = exchange.client;
        }
        if let Some(client) = client
            && let Some(waiting) = self.clients.get_mut(client.0)
            && !matches!(step.outcome, Outcome::Busy { .. } | Outcome::Invalid(_) | Outcome::Stray { .. })
        {
            let data = &pending_bytes.remaining()[step.data.clone()];
            delivery = if data.len() <= JOINED_BYTES {
                prefix.extend_from_slice(data);
                prefix.extend_from_slice(step.suffix);
                waiting.deliver([&prefix, b"", b""])
            } else {
                waiting.deliver([&prefix, data, step.suffix])
            };
            if delivery == Delivery::Waits
                && let Some(exchange) = &mut entry.exchange
            {
                exchange.is_held_back = waiting.out.is_at_bound();
                let is_tick_over = self.spools.is_tick_over();
                if exchange.is_held_back && is_tick_over {
                    spool_budget::wait_for_file(&mut self.waiting_for_files, client, waiting);
                }
                if exchange.is_held_back && (!is_tick_over || self.spools.lacks_descriptors()) {
                    self.metrics.hold_backs += 1;
                }
                if !matches!(step.outcome, Outcome::Ended { .. }) {
                    self.client_deadlines.arm(client.0, ClientDeadline::Take, now);
                }
            }
        }
        pending_bytes.consume(step.consumed);
        entry.conn.read_buffer.keep(pending_bytes);
        self.prefix = prefix;
        if entry.exchange.as_ref().is_some_and(Exchange::is_question) {
            return self.question_answered(worker, step.answer, step.outcome);
        }

        let lost_client = matches!(delivery, Delivery::Gone | Delivery::SpoolFull);
        match step.outcome {
            Outcome::Ended { reusable } => self.answer_ended(worker, reusable, delivery),
            Outcome::Going => {
                let may_idle =
                    entry.exchange.as_ref().and_then(|exchange| exchange.answer).is_some_and(|a| a.may_idle);
                // Once nobody waits, the stall's clock runs and is not set back by more bytes.
                if self.worker_deadlines.armed(worker.0) != Some(WorkerDeadline::Stall) {
                    let kind = if may_idle { WorkerDeadline::Idle } else { WorkerDeadline::Read };
                    self.worker_deadlines.arm(worker.0, kind, now);
                }
                if lost_client {
                    self.delivery_failed(worker, delivery);
                } else if step.answer.is_some() && client.is_none() {
                    self.notice_departure(worker);
                }
            }
            Outcome::Busy { reusable } => self.answered_busy(worker, reusable),
            Outcome::Invalid(invalid) => self.answered_badly(worker, invalid),
            Outcome::Stray { behind_an_answer } => self.began_with_stray_bytes(worker, behind_an_answer),
            Outcome::Upgraded => {
                self.upgrade(worker);
                if lost_client {
                    self.delivery_failed(worker, delivery);
                }
            }
            Outcome::UnexpectedBytes => {
                log::warn!("{}: bytes that nobody asked for; the connection is closed", self.label(worker));
                self.close_connection(worker);
            }
        }
    }

    /// The last byte of an answer is in: the worker is free, however fast its client reads.
    pub(super) fn answer_ended(&mut self, worker: WorkerKey, reusable: bool, delivery: Delivery) {
        let now = self.clock.now;
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let Some(exchange) = entry.exchange.take() else {
            return;
        };
        entry.requests += 1;
        self.last_answer = Some(now);
        entry.busy_streak = 0;
        entry.is_stuck = false;
        if !reusable || !exchange.has_left_the_way_open() {
            self.close_connection(worker);
        }
        self.worker_deadlines.disarm(worker.0);
        if let (Some(client), Some(answer)) = (exchange.client, exchange.answer) {
            let finished = Finished {
                worker: self.identity(worker),
                times: Times {
                    queue: exchange.assigned - exchange.job.submitted,
                    worker: now - exchange.assigned,
                },
                request: exchange.job.request,
                answer,
                reason: None,
                body_bytes: exchange.body_bytes,
            };
            let then = if answer.keep_alive { Then::Keep } else { Then::Close };
            self.finish(client, finished, then, delivery);
        } else {
            self.buffers.give_back(exchange.job.request.head);
        }
        self.worker_is_free(worker);
    }

    /// Has the worker rest, serve the next waiting request, or leave.
    pub(super) fn worker_is_free(&mut self, worker: WorkerKey) {
        let now = self.clock.now;
        let Some(entry) = self.workers.get(worker.0) else {
            return;
        };
        if entry.is_dead {
            // Nobody else is to meet it.
            return self.balancer.remove(worker);
        }
        if entry.request_limit.is_some_and(|limit| entry.requests >= limit) {
            self.fleet.retire(worker, RetireReason::Requests, now);
        }
        self.check_rss(worker);
        match self.balancer.release(worker, now) {
            NextStep::Dispatch { client } => {
                if let Some(job) = self.take_job(client) {
                    self.assign(worker, client, job);
                }
            }
            NextStep::Idle => {}
            NextStep::Retired => match self.workers.get(worker.0).map(|entry| entry.origin) {
                Some(Origin::Outside { .. }) => self.forget_worker(worker),
                Some(Origin::Slot { .. }) | None => {
                    // One that was told to end waits for this.
                    self.close_connection(worker);
                    self.fleet.idle(worker, now);
                }
            },
        }
    }

    fn answered_busy(&mut self, worker: WorkerKey, reusable: bool) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        entry.busy_streak = entry.busy_streak.saturating_add(1);
        let is_unresponsive = entry.busy_streak >= MAX_BUSY_ANSWERS;
        let Some(exchange) = entry.exchange.take() else {
            return;
        };
        if !reusable || !exchange.has_left_the_way_open() {
            self.close_connection(worker);
        }
        log::warn!("{}: answered busy", self.label(worker));
        // It counts as busy for a while, so that nobody meets it again at once.
        self.worker_deadlines.arm(worker.0, WorkerDeadline::Cooldown, self.clock.now);
        if is_unresponsive {
            self.fleet.retire(worker, RetireReason::Unresponsive, self.clock.now);
        }
        self.try_again(worker, exchange, crate::balancer::Failure::Busy, Reason::WorkerBusy);
    }

    /// The connection to a worker has ended, by its doing.
    fn connection_ended(&mut self, worker: WorkerKey, is_reset: bool) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let end = entry.conn.end(is_reset);
        if end == End::Tunnel && !is_reset {
            return self.tunnel_worker_ended(worker);
        }
        self.close_connection(worker);
        match end {
            End::Idle => {
                debug_assert!(self.workers.get(worker.0).is_none_or(|entry| entry.exchange.is_none()));
                if self.is_ending(worker) == Some(true) {
                    self.take_out(worker);
                }
            }
            End::NoResponse | End::InHead | End::InBody => self.ended_early(worker, end),
            End::Whole(suffix) => self.ended_with_connection(worker, suffix),
            End::Tunnel => self.tunnel_broke(worker),
        }
    }

    pub(super) fn worker_is_due(&mut self, worker: WorkerKey, kind: WorkerDeadline) {
        let now = self.clock.now;
        let Some(entry) = self.workers.get(worker.0) else {
            return;
        };
        match kind {
            // Held back by us, not late.
            WorkerDeadline::Read | WorkerDeadline::Idle if entry.is_held_back() => {
                self.worker_deadlines.arm(worker.0, kind, now);
            }
            WorkerDeadline::Read | WorkerDeadline::Idle => self.answer_is_late(worker),
            WorkerDeadline::Stall => self.answer_does_not_end(worker),
            WorkerDeadline::Connect => self.start_exchange(worker),
            WorkerDeadline::Cooldown | WorkerDeadline::Exit => match &entry.exchange {
                None => self.worker_is_free(worker),
                Some(exchange) => match exchange.state() {
                    ExchangeState::AwaitingExit { .. } => self.exit_did_not_come(worker, kind),
                    // A request that waits for the worker to have rested goes on.
                    ExchangeState::Serving
                    | ExchangeState::Reconnecting
                    | ExchangeState::Probing
                    | ExchangeState::AskingIdle { .. } => self.start_exchange(worker),
                },
            },
            WorkerDeadline::Probe => self.probe(worker),
        }
    }
}
