//! Tunnels: after a 101, both connections only pass bytes on, until one side ends. A tunnel holds its worker.

use super::Reactor;
use super::entry::{Delivery, Finished, Phase, Then, Tunnel, WorkerDeadline};
use super::spool::Spool;
use super::token::Target;
use crate::keys::{ClientKey, WorkerKey};

/// What a tunnel holds of what the worker has not taken; more is left with the client.
const MOST_WAITING_BYTES: u64 = 64 * 1024;

impl Reactor {
    /// The worker has answered 101. What both sides have sent already goes along.
    pub(super) fn upgrade(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let Some(exchange) = &mut entry.exchange else {
            return;
        };
        exchange.tunnel =
            Some(Tunnel { out: Spool::new(&self.spools), client_has_ended: false, worker_has_ended: false });
        self.worker_deadlines.arm(worker.0, WorkerDeadline::Idle, self.clock.now);
        match exchange.client.and_then(|client| self.clients.get_mut(client.0).map(|entry| (client, entry))) {
            Some((client, entry)) => {
                entry.conn.upgraded();
                entry.phase = Phase::Tunnel { worker };
                self.again.push(Target::Client(client));
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
            .is_some_and(|tunnel| tunnel.out.unread_bytes() >= MOST_WAITING_BYTES)
    }

    pub(super) fn tunnel_has_room(&mut self, worker: WorkerKey) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        if let Some(exchange) = exchange
            && let (Some(tunnel), Some(client)) = (&exchange.tunnel, exchange.client)
            && tunnel.out.unread_bytes() < MOST_WAITING_BYTES
        {
            self.again.push(Target::Client(client));
        }
    }

    /// The client has sent its last byte: the worker is told when it has all of them.
    pub(super) fn tunnel_client_ended(&mut self, client: ClientKey) {
        let Some(worker) = self.tunnel_of(client) else {
            return;
        };
        let Some(exchange) = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut()) else {
            return;
        };
        if let Some(tunnel) = &mut exchange.tunnel
            && !tunnel.client_has_ended
        {
            tunnel.client_has_ended = true;
            let is_over = tunnel.worker_has_ended;
            self.send_request(worker);
            if is_over {
                self.end_tunnel(worker, true);
            }
        }
    }

    /// The worker has sent its last byte: the client gets all that is left, then the end. What the client still says
    /// goes on, until it ends as well.
    pub(super) fn tunnel_worker_ended(&mut self, worker: WorkerKey) {
        let Some(exchange) = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut()) else {
            return;
        };
        let Some(tunnel) = &mut exchange.tunnel else { return };
        tunnel.worker_has_ended = true;
        match exchange.client {
            Some(client) if !tunnel.client_has_ended => self.pass_end_to_client(client, worker),
            _ => self.end_tunnel(worker, true),
        }
    }

    /// The worker has closed altogether, so nothing that the client still says can reach it.
    pub(super) fn tunnel_worker_hung_up(&mut self, worker: WorkerKey) {
        let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
        if exchange
            .and_then(|exchange| exchange.tunnel.as_ref())
            .is_some_and(|tunnel| tunnel.worker_has_ended)
        {
            self.end_tunnel(worker, true);
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

    /// The client's connection has broken.
    pub(super) fn tunnel_broke(&mut self, worker: WorkerKey, client: ClientKey) {
        let is_its =
            self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref()?.client) == Some(client);
        if is_its {
            self.end_tunnel(worker, false);
        }
    }

    /// Both sides end now: nothing passed for too long, or the server's time is up.
    pub(super) fn cut_tunnel(&mut self, worker: WorkerKey) {
        self.end_tunnel(worker, true);
    }

    fn end_tunnel(&mut self, worker: WorkerKey, is_client_there: bool) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let Some(exchange) = entry.exchange.take() else {
            return;
        };
        entry.requests += 1;
        let times = self.times(&exchange);
        self.close_connection(worker);
        self.worker_deadlines.disarm(worker.0);
        if let (Some(client), Some(answer)) = (exchange.client, exchange.answer) {
            let finished = Finished {
                request: exchange.job.request,
                answer,
                reason: None,
                body_bytes: exchange.body_bytes,
                times,
                worker: self.identity(worker),
            };
            if is_client_there {
                let waits = self.clients.get(client.0).is_some_and(|entry| !entry.out.is_read());
                let delivery = if waits { Delivery::Waits } else { Delivery::Sent };
                self.finish(client, finished, Then::Close, delivery);
            } else {
                self.log(client, &finished);
            }
        }
        self.worker_is_free(worker);
    }

    fn tunnel_of(&self, client: ClientKey) -> Option<WorkerKey> {
        match self.clients.get(client.0)?.phase {
            Phase::Tunnel { worker } => Some(worker),
            _ => None,
        }
    }
}
