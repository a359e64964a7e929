//! Tunnels: after a 101, both connections only pass bytes on, until one side ends. A tunnel holds its worker.

use super::crossing::{Finished, Then};
use super::io::token::Target;
use super::questions::Otherwise;
use super::tick::Reactor;
use crate::keys::{ClientKey, UpstreamKey};

impl Reactor {
    /// The worker has answered 101. What both sides have sent already goes along.
    pub(super) fn upgrade(&mut self, upstream: UpstreamKey) {
        self.backend.upgrade(upstream, &self.io);
        match self.backend.client_of(upstream) {
            Some(client) if self.frontend.upgrade(client, upstream) => {
                self.io.go_on_with(Target::Client(client));
            }
            Some(_) | None => self.cut_tunnel(upstream),
        }
    }

    pub(super) fn tunnel_to_worker(&mut self, client: ClientKey, bytes: &[u8]) {
        if let Some(upstream) = self.frontend.tunnel_of(client)
            && self.backend.push_to_tunnel(upstream, bytes, self.io.now())
        {
            self.send_request(upstream);
        }
    }

    /// The worker does not keep up, so the client is not read.
    pub(super) fn is_tunnel_full(&self, client: ClientKey) -> bool {
        self.frontend.tunnel_of(client).is_some_and(|upstream| self.backend.is_tunnel_full(upstream))
    }

    /// The client has sent its last byte, and that is a departure: the worker gets everything that came before it, then
    /// the end, and has the drain timeout to end as well. What it still says meanwhile is passed on.
    pub(super) fn tunnel_client_ended(&mut self, upstream: UpstreamKey) {
        self.tell_tunnels_worker(upstream);
    }

    /// The worker has sent its last byte: the client gets all that is left, then the end. What the client still says
    /// goes on, until it ends as well.
    pub(super) fn tunnel_worker_ended(&mut self, upstream: UpstreamKey) {
        if !self.backend.is_tunnel(upstream) {
            return;
        }
        self.backend.end_receiving(upstream);
        match self.backend.client_of(upstream) {
            Some(client) if self.backend.is_sending_open(upstream) => {
                self.pass_end_to_client(client, upstream);
            }
            Some(_) | None => self.end_tunnel_if_over(upstream),
        }
    }

    /// Tells the client of the worker's end as soon as it has everything before it.
    pub(super) fn pass_end_to_client(&mut self, client: ClientKey, upstream: UpstreamKey) {
        if self.backend.has_tunnel_ended(upstream) && !self.frontend.has_undelivered(client) {
            self.frontend.shut_down(client);
        }
    }

    /// The client's connection has broken, and that is a departure as well.
    pub(super) fn tunnel_lost_its_client(&mut self, upstream: UpstreamKey, client: ClientKey) {
        if self.backend.client_of(upstream) == Some(client) {
            self.let_tunnels_client_go(upstream, false);
            self.tell_tunnels_worker(upstream);
        }
    }

    /// Both sides end now: nothing passed for too long, or the server's time is up. The worker is not idle before its own
    /// side has ended.
    pub(super) fn cut_tunnel(&mut self, upstream: UpstreamKey) {
        self.let_tunnels_client_go(upstream, true);
        self.tell_tunnels_worker(upstream);
    }

    /// Nothing passes either way any more.
    pub(super) fn tunnel_broke(&mut self, upstream: UpstreamKey) {
        self.let_tunnels_client_go(upstream, true);
        self.backend.close(upstream);
        self.end_tunnel(upstream);
    }

    /// The worker gets the end behind the last byte, and its time to end runs.
    fn tell_tunnels_worker(&mut self, upstream: UpstreamKey) {
        if self.backend.is_tunnel(upstream) {
            self.backend.arm_stall(upstream, self.io.now());
            self.end_sending(upstream);
            self.end_tunnel_if_over(upstream);
        }
    }

    /// Its line, and if it is there the end behind what it has not taken.
    pub(super) fn let_tunnels_client_go(&mut self, upstream: UpstreamKey, is_client_there: bool) {
        let times = self.times_of(upstream);
        let Some(client) = self.backend.let_client_go(upstream, &mut self.io) else { return };
        let culprit = self.identity(upstream);
        let Some(request) = self.backend.copy_request(upstream, &mut self.io) else { return };
        let Some(exchange) = self.backend.exchange(upstream) else { return };
        let Some(answer) = exchange.answer else { return };
        let body_bytes = exchange.body_bytes;
        let finished = Finished { request, answer, reason: None, body_bytes, times, worker: culprit };
        if is_client_there {
            let delivery = self.frontend.undelivered(client);
            self.finish(client, finished, Then::Close, delivery);
        } else {
            self.log(client, &finished);
            self.io.give_back(finished.request.head);
        }
    }

    /// Looks whether both ways have ended, and all bytes are out.
    pub(super) fn end_tunnel_if_over(&mut self, upstream: UpstreamKey) {
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        if self.backend.is_tunnel_over(upstream, self.supervisor.can_be_asked(worker)) {
            self.let_tunnels_client_go(upstream, true);
            self.backend.close(upstream);
            self.end_tunnel(upstream);
        }
    }

    /// Its worker is free, once no handler is at work.
    fn end_tunnel(&mut self, upstream: UpstreamKey) {
        let Some(exchange) = self.backend.take_exchange(upstream) else { return };
        self.count_request(upstream);
        let earlier = self.earlier(&exchange);
        self.io.give_back(exchange.job.request.head);
        self.settle(upstream, earlier, Otherwise::IsFree);
    }
}
