//! What the server asks its workers for itself: whether a command answers by now, whether the handler of a request that
//! nobody waits for has ended, and how a process has ended whose answer ended with it.

use super::connect::NoConnection;
use super::entry::{Delivery, Exchange, ExchangeState, Origin, WorkerDeadline};
use super::{AskDeadline, Reactor};
use crate::conn::Request;
use crate::conn::worker::{Answer, Outcome};
use crate::http::Reason;
use crate::keys::WorkerKey;
use crate::process::Exit;
use std::time::Instant;

/// Whether a worker's process lives, as far as can be known now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// On its way out; its exit status will come.
    IsEnding,
    /// Nothing tells.
    Unknown,
    Exited(Exit),
}

/// What a worker that cannot be asked does after its connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// It rests: if it is dying, that will be known in a moment.
    Rests,
    IsFree,
}

/// An earlier request, of which a worker's handler may still run.
#[derive(Debug)]
pub(super) struct Earlier {
    pub request: Request,
    pub assigned: Instant,
}

impl Reactor {
    pub(super) fn fate(&self, worker: WorkerKey) -> Fate {
        let Some(entry) = self.workers.get(worker.0) else { return Fate::Unknown };
        // Once reaped, its pid may be somebody else's.
        if let Some(exit) = entry.exit {
            return Fate::Exited(exit);
        }
        match self.is_ending(worker) {
            Some(false) => Fate::Lives,
            Some(true) => Fate::IsEnding,
            None => Fate::Unknown,
        }
    }

    /// A worker's connection has ended, and its answer with it, as far as its framing tells. That is the answer's end if
    /// the process lives or has exited 0 by itself; else the answer was cut, and must not look whole.
    pub(super) fn ended_with_connection(&mut self, worker: WorkerKey, suffix: &'static [u8]) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let is_outside = matches!(entry.origin, Origin::Outside { .. });
        let Some(exchange) = &mut entry.exchange else { return };
        if exchange.client.is_none() {
            return self.ended_for_nobody(worker);
        }
        match self.fate(worker) {
            Fate::Lives | Fate::Exited(Exit::Code(0)) => self.answer_is_whole(worker, suffix),
            // Nobody will tell how it ends.
            Fate::Unknown if is_outside => self.answer_is_whole(worker, suffix),
            Fate::IsEnding if is_outside => self.answer_was_cut(worker, Reason::WorkerDied),
            Fate::Exited(_) => self.answer_was_cut(worker, Reason::WorkerDied),
            Fate::IsEnding => self.await_exit(worker, suffix, WorkerDeadline::Exit),
            // If it is dying, that will be known in a moment.
            Fate::Unknown => self.await_exit(worker, suffix, WorkerDeadline::Cooldown),
        }
    }

    fn await_exit(&mut self, worker: WorkerKey, suffix: &'static [u8], deadline: WorkerDeadline) {
        if let Some(exchange) = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut()) {
            exchange.enter(ExchangeState::AwaitingExit { suffix });
            self.worker_deadlines.arm(worker.0, deadline, self.clock.now);
        }
    }

    /// The exit status that an answer's end hangs on has not come.
    pub(super) fn exit_did_not_come(&mut self, worker: WorkerKey, kind: WorkerDeadline) {
        let Some(suffix) = self.awaited_suffix(worker) else { return };
        match kind {
            WorkerDeadline::Cooldown => self.answer_is_whole(worker, suffix),
            _ => self.answer_was_cut(worker, Reason::WorkerDied),
        }
    }

    fn awaited_suffix(&self, worker: WorkerKey) -> Option<&'static [u8]> {
        match self.workers.get(worker.0)?.exchange.as_ref()?.state() {
            ExchangeState::AwaitingExit { suffix } => Some(suffix),
            ExchangeState::Serving
            | ExchangeState::Reconnecting
            | ExchangeState::Probing
            | ExchangeState::AskingIdle { .. } => None,
        }
    }

    fn answer_is_whole(&mut self, worker: WorkerKey, suffix: &'static [u8]) {
        let client = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref()?.client);
        let delivery = match client.and_then(|client| self.clients.get_mut(client.0)) {
            Some(waiting) => waiting.deliver([suffix, b"", b""]),
            None => Delivery::Sent,
        };
        self.answer_ended(worker, false, delivery);
    }

    fn answer_was_cut(&mut self, worker: WorkerKey, reason: Reason) {
        if let Some(exchange) = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.take()) {
            let earlier = self.earlier(&exchange);
            self.give_up(worker, exchange, reason);
            self.settle(worker, earlier, Otherwise::Rests);
        }
    }

    /// A worker's process has ended, and nobody will answer its exchange any more.
    pub(super) fn end_exchange_of_the_dead(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let exit = entry.exit;
        match entry.exchange.as_ref().map(Exchange::state) {
            None => {}
            Some(ExchangeState::AwaitingExit { suffix }) => match (*suffix, exit) {
                (suffix, Some(Exit::Code(0))) => self.answer_is_whole(worker, suffix),
                _ => self.answer_was_cut(worker, Reason::WorkerDied),
            },
            Some(ExchangeState::Probing | ExchangeState::AskingIdle { .. }) => self.drop_exchange(worker),
            // Somebody else still holds its connection, but nobody will answer on it.
            Some(ExchangeState::Serving | ExchangeState::Reconnecting) => {
                let end = entry.conn.end(true);
                self.close_connection(worker);
                self.ended_early(worker, end);
            }
        }
        self.worker_deadlines.disarm(worker.0);
    }

    pub(super) fn earlier(&mut self, exchange: &Exchange) -> Earlier {
        Earlier { request: exchange.subject().copy_into(self.buffers.take()), assigned: exchange.assigned }
    }

    /// The connection of an exchange that nobody waits for has ended.
    pub(super) fn ended_for_nobody(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        if let Some(exchange) = entry.exchange.take() {
            entry.requests += 1;
            let earlier = self.earlier(&exchange);
            self.buffers.give_back(exchange.job.request.head);
            self.settle(worker, earlier, Otherwise::Rests);
        }
    }

    /// A worker's connection has ended before its answer, so its handler may still run: it is not idle before it says
    /// so. One that is on its way out needs no question.
    pub(super) fn settle(&mut self, worker: WorkerKey, earlier: Earlier, otherwise: Otherwise) {
        let now = self.clock.now;
        let fate = self.fate(worker);
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        if entry.exchange.is_some() || entry.is_dead {
            // It has a second try in hand, or will be taken out in a moment.
            return self.buffers.give_back(earlier.request.head);
        }
        match (fate, otherwise) {
            (Fate::Lives | Fate::Unknown, _) if entry.can_be_asked => {
                let question = Request::ask_idle(self.buffers.take(), now);
                let Earlier { request, assigned } = earlier;
                entry.exchange = Some(Exchange::ask_idle(question, request, assigned, &self.spools));
                if self.worker_deadlines.armed(worker.0) != Some(WorkerDeadline::Stall) {
                    self.worker_deadlines.arm(worker.0, WorkerDeadline::Stall, now);
                }
                self.start_exchange(worker);
            }
            (Fate::Lives | Fate::Unknown, Otherwise::IsFree) => {
                self.buffers.give_back(earlier.request.head);
                self.worker_deadlines.disarm(worker.0);
                self.worker_is_free(worker);
            }
            (Fate::Lives | Fate::Unknown, Otherwise::Rests) | (Fate::IsEnding | Fate::Exited(_), _) => {
                self.buffers.give_back(earlier.request.head);
                self.worker_deadlines.arm(worker.0, WorkerDeadline::Cooldown, now);
            }
        }
    }

    /// A worker has answered a question. A command is there with its first answer, of any status; a worker is idle unless
    /// it says that it is busy, or fails.
    pub(super) fn question_answered(&mut self, worker: WorkerKey, answer: Option<Answer>, outcome: Outcome) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let is_idle_enough = answer.is_some_and(|answer| answer.status < 500);
        match (entry.exchange.as_ref().map(Exchange::state), outcome) {
            (
                _,
                Outcome::Busy { .. } | Outcome::Invalid(_) | Outcome::UnexpectedBytes | Outcome::Stray { .. },
            ) => self.ask_later(worker),
            (Some(ExchangeState::Probing), _) if answer.is_some() => {
                self.drop_exchange(worker);
                self.worker_deadlines.disarm(worker.0);
                self.probe_answered(worker);
            }
            (Some(ExchangeState::AskingIdle { .. }), _) if is_idle_enough => {
                entry.busy_streak = 0;
                entry.is_stuck = false;
                self.drop_exchange(worker);
                self.worker_deadlines.disarm(worker.0);
                self.worker_is_free(worker);
            }
            (_, _) if answer.is_some() => self.ask_later(worker),
            // Its answer has not come in full.
            (_, Outcome::Going | Outcome::Ended { .. } | Outcome::Upgraded) => {}
        }
    }

    /// A question has no answer yet: over a fresh connection, after a while.
    pub(super) fn ask_later(&mut self, worker: WorkerKey) {
        let now = self.clock.now;
        self.close_connection(worker);
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        match entry.exchange.as_ref().map(Exchange::state) {
            Some(ExchangeState::Probing) => {
                self.drop_exchange(worker);
                self.worker_deadlines.arm(worker.0, WorkerDeadline::Probe, now);
            }
            Some(ExchangeState::AskingIdle { .. }) => {
                self.ask_deadlines.arm(worker.0, AskDeadline::Repeat, now);
            }
            Some(
                ExchangeState::Serving | ExchangeState::Reconnecting | ExchangeState::AwaitingExit { .. },
            )
            | None => {}
        }
    }

    pub(super) fn ask_again(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        if let Some(exchange) = entry.exchange.as_mut().filter(|exchange| exchange.is_asking_idle()) {
            exchange.send_again();
            self.start_exchange(worker);
        }
    }

    /// No connection could be made for a question.
    pub(super) fn question_failed(&mut self, worker: WorkerKey, why: NoConnection) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        if why == NoConnection::Refused && exchange.is_some_and(Exchange::is_asking_idle) {
            self.drop_exchange(worker);
            self.connect_failed(worker, why);
        } else {
            self.ask_later(worker);
        }
    }

    /// An exchange ends without a word about it.
    pub(super) fn drop_exchange(&mut self, worker: WorkerKey) {
        self.close_connection(worker);
        self.ask_deadlines.disarm(worker.0);
        if let Some(exchange) = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.take()) {
            for request in exchange.into_requests() {
                self.buffers.give_back(request.head);
            }
        }
    }
}
