//! What the server asks its workers for itself: whether a command answers by now, whether the handler of a request that
//! nobody waits for has ended, and how a process has ended whose answer ended with it.

use super::backend::exchange::{Exchange, Stage};
use super::backend::{NoConnection, PlaceState, UpstreamDeadline};
use super::crossing::Delivery;
use super::supervisor::worker::Fate;
use super::tick::Reactor;
use crate::conn::Request;
use crate::conn::worker::Outcome;
use crate::http::Reason;
use crate::keys::UpstreamKey;
use crate::process::Exit;
use std::time::Instant;

/// What a worker that cannot be asked does after its connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// It cools down: if it is dying, that will be known in a moment.
    CoolsDown,
    IsFree,
}

/// An earlier request, of which a worker's handler may still run.
#[derive(Debug)]
pub(super) struct Earlier {
    pub request: Request,
    pub assigned: Instant,
}

impl Reactor {
    pub(super) fn fate(&self, upstream: UpstreamKey) -> Fate {
        self.backend.worker_of(upstream).map_or(Fate::Unknown, |worker| self.supervisor.fate(worker))
    }

    /// A worker's connection has ended, and its answer with it, as far as its framing tells. That is the answer's end if
    /// the process lives or has exited 0 by itself; else the answer was cut, and must not look whole.
    pub(super) fn ended_with_connection(&mut self, upstream: UpstreamKey, suffix: &'static [u8]) {
        let Some(exchange) = self.backend.exchange(upstream) else { return };
        if exchange.client.is_none() {
            return self.ended_for_nobody(upstream);
        }
        let worker = self.backend.worker_of(upstream);
        let is_outside = worker.is_some_and(|worker| self.supervisor.is_external(worker));
        match self.fate(upstream) {
            Fate::Lives | Fate::Exited(Exit::Code(0)) => self.answer_is_whole(upstream, suffix),
            // Nobody will tell how it ends.
            Fate::Unknown if is_outside => self.answer_is_whole(upstream, suffix),
            Fate::IsEnding if is_outside => self.answer_was_cut(upstream, Reason::WorkerDied),
            Fate::Exited(_) => self.answer_was_cut(upstream, Reason::WorkerDied),
            Fate::IsEnding => {
                self.backend.await_exit(upstream, suffix, UpstreamDeadline::Exit, self.io.now());
            }
            // If it is dying, that will be known in a moment.
            Fate::Unknown => {
                self.backend.await_exit(upstream, suffix, UpstreamDeadline::Cooldown, self.io.now());
            }
        }
    }

    /// The exit status that an answer's end hangs on has not come.
    pub(super) fn exit_did_not_come(&mut self, upstream: UpstreamKey, kind: UpstreamDeadline) {
        let Some(suffix) = self.backend.awaited_suffix(upstream) else { return };
        match kind {
            UpstreamDeadline::Cooldown => self.answer_is_whole(upstream, suffix),
            _ => self.answer_was_cut(upstream, Reason::WorkerDied),
        }
    }

    fn answer_is_whole(&mut self, upstream: UpstreamKey, suffix: &'static [u8]) {
        let delivery = match self.backend.client_of(upstream) {
            Some(client) => self.frontend.deliver(client, [suffix, b"", b""]),
            None => Delivery::Sent,
        };
        self.answer_ended(upstream, false, delivery);
    }

    fn answer_was_cut(&mut self, upstream: UpstreamKey, reason: Reason) {
        self.suspect(upstream);
        if let Some(exchange) = self.backend.take_exchange(upstream) {
            let earlier = self.earlier(&exchange);
            self.give_up(upstream, exchange, reason);
            self.settle(upstream, earlier, Otherwise::CoolsDown);
        }
    }

    /// A worker's process has ended, and nobody will answer its exchange any more.
    pub(super) fn end_exchange_of_the_dead(&mut self, upstream: UpstreamKey, exit: Exit) {
        match self.backend.exchange(upstream).map(Exchange::stage) {
            None => {}
            Some(Stage::AwaitingExit { suffix }) => match (*suffix, exit) {
                (suffix, Exit::Code(0)) => self.answer_is_whole(upstream, suffix),
                _ => self.answer_was_cut(upstream, Reason::WorkerDied),
            },
            Some(Stage::Probing | Stage::AskingIdle { .. }) => {
                self.backend.drop_exchange(upstream, &mut self.io);
            }
            // Somebody else still holds its connection, but nobody will answer on it.
            Some(Stage::Serving | Stage::Reconnecting | Stage::Tunnel { .. }) => {
                let end = self.backend.end_connection(upstream, true);
                self.backend.close(upstream);
                if let Some(end) = end {
                    self.suspect(upstream);
                    self.ended_early(upstream, end);
                }
            }
        }
        self.backend.disarm(upstream);
    }

    pub(super) fn earlier(&mut self, exchange: &Exchange) -> Earlier {
        Earlier { request: exchange.subject().copy_into(self.io.take_buffer()), assigned: exchange.assigned }
    }

    /// The connection of an exchange that nobody waits for has ended.
    pub(super) fn ended_for_nobody(&mut self, upstream: UpstreamKey) {
        if let Some(exchange) = self.backend.take_exchange(upstream) {
            self.count_request(upstream);
            let earlier = self.earlier(&exchange);
            self.io.give_back(exchange.job.request.head);
            self.settle(upstream, earlier, Otherwise::CoolsDown);
        }
    }

    pub(super) fn count_request(&mut self, upstream: UpstreamKey) {
        if let Some(worker) = self.backend.worker_of(upstream) {
            self.supervisor.count_request(worker);
        }
    }

    /// A worker's connection has ended before its answer, so its handler may still run: it is not idle before it says
    /// so. One that is on its way out needs no question.
    pub(super) fn settle(&mut self, upstream: UpstreamKey, earlier: Earlier, otherwise: Otherwise) {
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        let fate = self.supervisor.fate(worker);
        if self.backend.exchange(upstream).is_some() || self.supervisor.is_dead(worker) {
            // It has a second try in hand, or will be taken out in a moment.
            self.io.give_back(earlier.request.head);
            if self.supervisor.is_dead(worker) && self.supervisor.is_external(worker) {
                // Of its end nobody will tell.
                self.forget_when_over(worker);
            }
            return;
        }
        if self.backend.place(upstream) == Some(PlaceState::Left) {
            // It held nobody, so nobody waits for the end of its handler.
            self.io.give_back(earlier.request.head);
            self.backend.disarm(upstream);
            return self.is_free(upstream);
        }
        match (fate, otherwise) {
            (Fate::Lives | Fate::Unknown, _) if self.supervisor.can_be_asked(worker) => {
                let Earlier { request, assigned } = earlier;
                let is_one_of_several = self.supervisor.capacity(worker).places > 1;
                self.backend.begin_asking_idle(upstream, request, assigned, is_one_of_several, &mut self.io);
                self.send_request(upstream);
            }
            (Fate::Lives | Fate::Unknown, Otherwise::IsFree) => {
                self.io.give_back(earlier.request.head);
                self.backend.disarm(upstream);
                self.is_free(upstream);
            }
            (Fate::Lives | Fate::Unknown, Otherwise::CoolsDown) | (Fate::IsEnding | Fate::Exited(_), _) => {
                self.io.give_back(earlier.request.head);
                self.backend.arm(upstream, UpstreamDeadline::Cooldown, self.io.now());
            }
        }
    }

    /// Asks a command whether it answers by now: any answer will do, a connection alone proves nothing.
    pub(super) fn probe(&mut self, upstream: UpstreamKey) {
        let worker = self.backend.worker_of(upstream);
        if worker.is_some_and(|worker| self.supervisor.is_booting(worker)) {
            self.backend.begin_probe(upstream, &mut self.io);
            self.send_request(upstream);
        }
    }

    /// A worker has answered a question. A command is there with its first answer, of any status; a worker is idle unless
    /// it says that it is busy, or fails.
    pub(super) fn question_answered(&mut self, upstream: UpstreamKey, status: Option<u16>, outcome: Outcome) {
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        let is_idle_enough = status.is_some_and(|status| status < 500);
        match (self.backend.exchange(upstream).map(Exchange::stage), outcome) {
            (
                _,
                Outcome::Busy { .. } | Outcome::Invalid(_) | Outcome::UnexpectedBytes | Outcome::Stray { .. },
            ) => self.ask_later(upstream),
            (Some(Stage::Probing), _) if status.is_some() => {
                self.backend.drop_exchange(upstream, &mut self.io);
                self.backend.disarm(upstream);
                self.supervisor.probe_answered(worker, self.io.now());
            }
            (Some(Stage::AskingIdle { .. }), _) if is_idle_enough => {
                self.backend.drop_exchange(upstream, &mut self.io);
                self.backend.disarm(upstream);
                // It may be stuck in another request of it still.
                self.look_at_stuck(worker);
                self.is_free(upstream);
            }
            (_, _) if status.is_some() => self.ask_later(upstream),
            // Its answer has not come in full.
            (_, Outcome::Going | Outcome::Ended { .. } | Outcome::Upgraded) => {}
        }
    }

    /// A question has no answer yet: over a fresh connection, after a while.
    pub(super) fn ask_later(&mut self, upstream: UpstreamKey) {
        self.backend.close(upstream);
        match self.backend.exchange(upstream).map(Exchange::stage) {
            Some(Stage::Probing) => {
                self.backend.drop_exchange(upstream, &mut self.io);
                self.backend.arm(upstream, UpstreamDeadline::Probe, self.io.now());
            }
            Some(Stage::AskingIdle { .. }) => self.backend.arm_question(upstream, self.io.now()),
            Some(
                Stage::Serving | Stage::Reconnecting | Stage::Tunnel { .. } | Stage::AwaitingExit { .. },
            )
            | None => {}
        }
    }

    pub(super) fn ask_again(&mut self, upstream: UpstreamKey) {
        if self.backend.ask_again(upstream) {
            self.send_request(upstream);
        }
    }

    /// No connection could be made for a question.
    pub(super) fn question_failed(&mut self, upstream: UpstreamKey, why: NoConnection) {
        let is_asking = self.backend.exchange(upstream).is_some_and(Exchange::is_asking_idle);
        if why == NoConnection::Refused && is_asking {
            self.backend.drop_exchange(upstream, &mut self.io);
            self.connect_failed(upstream, why);
        } else {
            self.ask_later(upstream);
        }
    }
}
