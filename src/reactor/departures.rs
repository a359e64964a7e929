//! Exchanges that go on without their client: it has left, or the server has parted from it.

use super::backend::UpstreamDeadline;
use super::backend::exchange::Stage;
use super::crossing::Finished;
use super::tick::Reactor;
use crate::conn::worker::Answer;
use crate::http::{Framing, Reason};
use crate::keys::{ClientKey, UpstreamKey};

impl Reactor {
    /// The client of an exchange has gone: the rest of the answer is read and thrown away.
    pub(super) fn exchange_lost_its_client(&mut self, upstream: UpstreamKey, client: ClientKey) {
        let exchange = self.backend.exchange(upstream).filter(|exchange| exchange.client == Some(client));
        let Some(exchange) = exchange else { return };
        let is_unsent = exchange.is_unsent();
        let is_over = matches!(exchange.stage(), Stage::AwaitingExit { .. });
        self.backend.let_client_go(upstream, &mut self.io);
        self.log_lost(upstream, client, Reason::ClientGone);
        if is_over {
            self.ended_for_nobody(upstream);
        } else if is_unsent {
            self.call_off(upstream);
        } else {
            self.notice_departure(upstream);
        }
    }

    /// A request of which its worker has seen nothing is not sent any more.
    fn call_off(&mut self, upstream: UpstreamKey) {
        if self.backend.call_off(upstream, &mut self.io) {
            self.is_free(upstream);
        }
    }

    /// Where nothing says that the answer will end, the worker is told that nobody waits, behind what is still to be
    /// sent. Before a head it has the read timeout for it, and then, or once a head is out, the drain timeout.
    pub(super) fn notice_departure(&mut self, upstream: UpstreamKey) {
        match self.backend.answer_of(upstream) {
            None if self.may_be_told(upstream, false) => self.end_sending(upstream),
            None => {}
            Some(answer) if matches!(answer.downstream, Framing::Length(_) | Framing::Empty) => {}
            Some(_) => {
                self.end_sending(upstream);
                self.backend.arm(upstream, UpstreamDeadline::Stall, self.io.now());
            }
        }
    }

    /// Whether a worker may be told, by a half-close, that nobody waits for its answer.
    pub(super) fn may_be_told(&self, upstream: UpstreamKey, has_head: bool) -> bool {
        let worker = self.backend.worker_of(upstream);
        worker.is_some_and(|worker| self.supervisor.may_be_told(worker, has_head))
    }

    /// The server's time is up: the client of an exchange is told so.
    pub(super) fn cut_exchange(&mut self, upstream: UpstreamKey) {
        match self.backend.exchange(upstream) {
            Some(exchange) if exchange.is_tunnel() => self.cut_tunnel(upstream),
            Some(_) => {
                self.part_from_client(upstream, Reason::Stopping);
                self.backend.shut_down_sending(upstream);
            }
            None => {}
        }
    }

    /// The client gets `reason` as its answer, or a cut if a head is out; the worker goes on for nobody.
    pub(super) fn part_from_client(&mut self, upstream: UpstreamKey, reason: Reason) {
        // A request without a client has been answered, and its failure logged, before.
        if self.backend.client_of(upstream).is_some()
            && let Some(description) = self.describe_of(upstream)
        {
            log::warn!("{}: {description} failed: {reason}", self.label(upstream));
        }
        let times = self.times_of(upstream);
        let culprit = self.identity(upstream);
        let Some(client) = self.backend.let_client_go(upstream, &mut self.io) else { return };
        let Some(request) = self.backend.copy_request(upstream, &mut self.io) else { return };
        let Some(exchange) = self.backend.exchange(upstream) else { return };
        let (answer, body_bytes) = (exchange.answer, exchange.body_bytes);
        match answer {
            None => self.refuse(client, request, reason, times, culprit),
            Some(answer) => {
                let reason = Some(reason);
                self.cut(client, Finished { request, answer, reason, body_bytes, times, worker: culprit });
            }
        }
    }

    /// The line of a request whose exchange goes on without it.
    pub(super) fn log_lost(&mut self, upstream: UpstreamKey, client: ClientKey, reason: Reason) {
        let times = self.times_of(upstream);
        let culprit = self.identity(upstream);
        let exchange = self.backend.exchange(upstream);
        let (answer, body_bytes) =
            exchange.map_or((None, 0), |exchange| (exchange.answer, exchange.body_bytes));
        let Some(request) = self.backend.copy_request(upstream, &mut self.io) else { return };
        let answer = answer.unwrap_or(Answer::local(reason.status(), "", false));
        let finished = Finished { request, answer, reason: None, body_bytes, times, worker: culprit };
        self.log_gone(client, finished, reason);
    }
}
