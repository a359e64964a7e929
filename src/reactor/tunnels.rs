//! Tunnels: after a 101, both connections only pass bytes on, until one side ends. A tunnel holds its worker.

use super::Reactor;
use super::asking::Otherwise;
use super::entry::{Delivery, Finished, Phase, Sending, Then, Tunnel, WorkerDeadline};
use super::spool::Spool;
use super::token::Target;
use crate::keys::{ClientKey, WorkerKey};

/// What a tunnel holds of what the worker has not taken; more is left with the client.
const MAX_WAITING_BYTES: u64 = 64 * 1024;

impl Reactor {
    /// The worker has answered 101. What both sides have sent already goes along.
    pub(super) fn upgrade(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let Some(exchange) = &mut entry.exchange else {
            return;
        };
        exchange.tunnel = Some(Tunnel { out: Spool::new(&self.spools), worker_has_ended: false });
        self.worker_deadlines.arm(worker.0, WorkerDeadline::Idle, self.clock.now);
        match exchange.client.and_then(|client| self.clients.get_mut(client.0).map(|entry| (client, entry))) {
            Some((client, entry)) => {
                entry.conn.upgraded();
                entry.phase = Phase::Tunnel { worker };
                self.ready_list.push(Target::Client(client));
            }
            None => self.cut_tunnel(worker),
        }
    }

    pub(super) fn tunnel_to_worker(&mut self, client: ClientKey, bytes: &[u8]) {
        let Some(worker) = self.tunnel_of(client) else {
            return;
        };
        let Some(exchange) = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut()) else {
            return;
        };
        let Some(tunnel) = &mut exchange.tunnel else {
            return;
        };
        // The client is not read while much of this waits, so what finds no room on disk is little.
        tunnel.out.push_all(bytes);
        self.worker_deadlines.arm(worker.0, WorkerDeadline::Idle, self.clock.now);
        self.send_request(worker);
    }

    /// The worker does not keep up, so the client is not read.
    pub(super) fn is_tunnel_full(&self, client: ClientKey) -> bool {
        let Some(worker) = self.tunnel_of(client) else {
            return false;
        };
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        exchange
            .and_then(|exchange| exchange.tunnel.as_ref())
            .is_some_and(|tunnel| tunnel.out.unread_bytes() >= MAX_WAITING_BYTES)
    }

    pub(super) fn tunnel_has_room(&mut self, worker: WorkerKey) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        if let Some(exchange) = exchange
            && let (Some(tunnel), Some(client)) = (&exchange.tunnel, exchange.client)
            && tunnel.out.unread_bytes() < MAX_WAITING_BYTES
        {
            self.ready_list.push(Target::Client(client));
        }
    }

    /// The client has sent its last byte, and that is a departure: the worker gets everything that came before it, then
    /// the end, and has the drain timeout to end as well. What it still says meanwhile is passed on.
    pub(super) fn tunnel_client_ended(&mut self, client: ClientKey) {
        if let Some(worker) = self.tunnel_of(client) {
            self.tell_tunnels_worker(worker);
        }
    }

    /// The worker has sent its last byte: the client gets all that is left, then the end. What the client still says
    /// goes on, until it ends as well.
    pub(super) fn tunnel_worker_ended(&mut self, worker: WorkerKey) {
        let Some(exchange) = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut()) else {
            return;
        };
        let is_open = exchange.sending == Sending::Open;
        let client = exchange.client;
        let Some(tunnel) = &mut exchange.tunnel else { return };
        tunnel.worker_has_ended = true;
        match client {
            Some(client) if is_open => self.pass_end_to_client(client, worker),
            Some(_) | None => self.end_tunnel_if_over(worker),
        }
    }

    /// The worker has closed altogether, so nothing that the client still says can reach it.
    pub(super) fn tunnel_worker_hung_up(&mut self, worker: WorkerKey) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        if exchange
            .and_then(|exchange| exchange.tunnel.as_ref())
            .is_some_and(|tunnel| tunnel.worker_has_ended)
        {
            self.tunnel_broke(worker);
        }
    }

    /// Tells the client of the worker's end as soon as it has everything before it.
    pub(super) fn pass_end_to_client(&mut self, client: ClientKey, worker: WorkerKey) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        let has_ended = exchange
            .and_then(|exchange| exchange.tunnel.as_ref())
            .is_some_and(|tunnel| tunnel.worker_has_ended);
        if let Some(entry) = self.clients.get(client.0)
            && has_ended
            && entry.out.is_read()
        {
            entry.stream.shutdown_write();
        }
    }

    /// The client's connection has broken, and that is a departure as well.
    pub(super) fn tunnel_lost_its_client(&mut self, worker: WorkerKey, client: ClientKey) {
        let is_its =
            self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref()?.client) == Some(client);
        if is_its {
            self.let_tunnels_client_go(worker, false);
            self.tell_tunnels_worker(worker);
        }
    }

    /// Both sides end now: nothing passed for too long, or the server's time is up. The worker is not idle before its own
    /// side has ended.
    pub(super) fn cut_tunnel(&mut self, worker: WorkerKey) {
        self.let_tunnels_client_go(worker, true);
        self.tell_tunnels_worker(worker);
    }

    /// Nothing passes either way any more.
    pub(super) fn tunnel_broke(&mut self, worker: WorkerKey) {
        self.let_tunnels_client_go(worker, true);
        self.close_connection(worker);
        self.end_tunnel(worker);
    }

    /// The worker gets the end behind the last byte, and its time to end runs.
    fn tell_tunnels_worker(&mut self, worker: WorkerKey) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        if exchange.is_some_and(|exchange| exchange.tunnel.is_some()) {
            if self.worker_deadlines.armed(worker.0) != Some(WorkerDeadline::Stall) {
                self.worker_deadlines.arm(worker.0, WorkerDeadline::Stall, self.clock.now);
            }
            self.end_sending(worker);
            self.end_tunnel_if_over(worker);
        }
    }

    /// Its line, and if it is there the end behind what it has not taken.
    pub(super) fn let_tunnels_client_go(&mut self, worker: WorkerKey, is_client_there: bool) {
        let times = self.times_of(worker);
        let Some(client) = self.let_client_go(worker) else {
            return;
        };
        let culprit = self.identity(worker);
        let Some(request) = self.copy_request(worker) else {
            return;
        };
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        let Some((answer, body_bytes)) =
            exchange.and_then(|exchange| Some((exchange.answer?, exchange.body_bytes)))
        else {
            return;
        };
        let finished = Finished { request, answer, reason: None, body_bytes, times, worker: culprit };
        if is_client_there {
            let waits = self.clients.get(client.0).is_some_and(|entry| !entry.out.is_read());
            let delivery = if waits { Delivery::Waits } else { Delivery::Sent };
            self.finish(client, finished, Then::Close, delivery);
        } else {
            self.log(client, &finished);
            self.buffers.give_back(finished.request.head);
        }
    }

    /// Looks whether both ways have ended, and all bytes are out. Without a client, a worker that cannot be asked is not
    /// waited for: it answers busy if its handler still runs.
    pub(super) fn end_tunnel_if_over(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get(worker.0) else {
            return;
        };
        let is_over = entry.exchange.as_ref().is_some_and(|exchange| {
            let is_awaited = exchange.client.is_some() || entry.can_be_asked;
            exchange.sending == Sending::Ended
                && exchange.tunnel.as_ref().is_some_and(|tunnel| tunnel.worker_has_ended || !is_awaited)
        });
        if is_over {
            self.let_tunnels_client_go(worker, true);
            self.close_connection(worker);
            self.end_tunnel(worker);
        }
    }

    /// Its worker is free, once no handler is at work.
    fn end_tunnel(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let Some(exchange) = entry.exchange.take() else {
            return;
        };
        entry.requests += 1;
        let earlier = self.earlier(&exchange);
        self.buffers.give_back(exchange.job.request.head);
        self.settle(worker, earlier, Otherwise::IsFree);
    }

    fn tunnel_of(&self, client: ClientKey) -> Option<WorkerKey> {
        match self.clients.get(client.0)?.phase {
            Phase::Tunnel { worker } => Some(worker),
            _ => None,
        }
    }
}
