//! A look inside the reactor after each turn: its rooms must agree with each other, and with the street.

use super::life::Life;
use super::world::World;
use crate::http::Framing;
use crate::keys::{ClientKey, WorkerKey};
use crate::reactor::entry::{Phase, Sending, WorkerDeadline};
use crate::reactor::stopping::Stage;
use crate::reactor::token::Target;
use crate::reactor::{LINGER, READ_BYTES};
use std::collections::BTreeMap;

/// Who holds which key at the beginning of a turn.
pub struct Keys {
    clients: BTreeMap<usize, usize>,
    workers: BTreeMap<usize, i32>,
}

impl World {
    pub fn keys(&self) -> Keys {
        let clients = self.clients.iter().enumerate().filter_map(|(at, client)| {
            let wire = client.wire.borrow();
            wire.token.filter(|_| !wire.is_server_gone).map(|token| (token.0, at))
        });
        let workers = self.reactor.workers.iter().map(|(key, entry)| (key, entry.pid.as_raw()));
        Keys { clients: clients.collect(), workers: workers.collect() }
    }

    pub fn check_keys(&self, before: &Keys) {
        let after = self.keys();
        for (token, at) in &after.clients {
            let earlier = before.clients.get(token);
            assert!(
                earlier.is_none_or(|earlier| earlier == at),
                "a client's key was used again within a batch"
            );
        }
        for (key, pid) in &after.workers {
            let earlier = before.workers.get(key);
            assert!(
                earlier.is_none_or(|earlier| earlier == pid),
                "a worker's key was used again within a batch"
            );
        }
    }

    /// Who waits, who is idle and who is busy are those whose entries say so.
    pub fn check_balance(&self) {
        if self.reactor.exit.is_some() {
            return;
        }
        let reactor = &self.reactor;
        let mut waiting = 0;
        for (key, entry) in &reactor.clients {
            // Without any room, as much as one piece of an answer lies in memory, and one read of a body.
            let tails = (entry.out.tail_bytes(), entry.body.tail_bytes());
            assert!(
                tails.0 <= 4 * READ_BYTES && tails.1 <= READ_BYTES,
                "client {key}: {tails:?} bytes in memory"
            );
            match &entry.phase {
                Phase::Queued(_) => {
                    waiting += 1;
                    assert!(reactor.balancer.is_waiting(ClientKey(key)), "client {key}: waits for nothing");
                }
                Phase::Assigned { worker } | Phase::Tunnel { worker } => {
                    let exchange = reactor.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
                    let is_its = exchange.is_some_and(|exchange| exchange.client == Some(ClientKey(key)));
                    assert!(is_its, "client {key}: no worker works for it");
                }
                Phase::TimedOut(_)
                | Phase::Retrying(_)
                | Phase::Reading
                | Phase::Finishing { .. }
                | Phase::Lingering
                | Phase::Dead => {}
            }
        }
        assert_eq!(waiting, reactor.balancer.waiting(), "everybody in the queue waits");
        let mut at_work = 0;
        for (key, entry) in &reactor.workers {
            let worker = WorkerKey(key);
            let has_old_code = entry.is_withheld && reactor.waits_for_new_code();
            assert!(
                !has_old_code || !reactor.balancer.is_idle(worker),
                "worker {key}: old code may be asked"
            );
            if reactor.balancer.is_idle(worker) {
                assert!(
                    entry.exchange.is_none() && entry.has_joined,
                    "worker {key}: idle with a request in hand"
                );
            } else if reactor.balancer.is_at_work(worker) {
                at_work += 1;
                let rests = reactor.worker_deadlines.armed(key) == Some(WorkerDeadline::Cooldown);
                assert!(entry.exchange.is_some() || rests, "worker {key}: busy with nothing");
            }
        }
        assert_eq!(at_work, reactor.balancer.busy(), "everybody busy is there");
        let members = reactor.fleet.members().count();
        let alive = reactor.workers.iter().filter(|(_, entry)| entry.exit.is_none()).count();
        assert_eq!(members, alive, "idle, busy, booting and leaving are all workers");
    }

    /// Nothing that is due has been left for a later turn.
    pub fn check_deadlines(&self) {
        if self.reactor.exit.is_some() {
            return;
        }
        let (now, reactor) = (self.now, &self.reactor);
        reactor.balancer.check_deadlines(now);
        self.check_patience();
        for (whose, due) in [
            ("a client's", reactor.client_deadlines.next()),
            ("a worker's", reactor.worker_deadlines.next()),
            ("the fleet's", reactor.fleet.next_deadline()),
        ] {
            assert!(due.is_none_or(|due| due > now), "{whose} deadline is late");
        }
        for worker in self.workers.iter().filter(|worker| worker.life != Life::Ended) {
            let Some(line) = worker.lines.first() else { continue };
            let Some(hand) = line.hand.as_ref().filter(|hand| !hand.is_done()) else { continue };
            let entry = reactor.workers.iter().find(|(_, entry)| entry.pid.as_raw() == worker.pid);
            let waits = entry.is_some_and(|(_, entry)| {
                !entry.is_held_back()
                    && entry.exchange.as_ref().is_some_and(|exchange| exchange.client.is_some())
            });
            let may_idle = hand.answer.as_ref().is_some_and(|answer| answer.may_idle);
            let poll_timeout =
                if may_idle { reactor.config.idle_timeout } else { reactor.config.read_timeout };
            assert!(
                !waits || now < line.touched + poll_timeout,
                "request {}: its answer is late, and nobody minds",
                hand.tag
            );
        }
    }

    /// Whoever waits for somebody has a deadline, and that of its state.
    fn check_patience(&self) {
        let reactor = &self.reactor;
        let has_answer = |worker: WorkerKey| {
            let exchange = reactor.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
            exchange.is_some_and(|exchange| exchange.answer.is_some())
        };
        for client in &self.clients {
            let wire = client.wire.borrow();
            let Some(Target::Client(key)) = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone)
            else {
                continue;
            };
            let Some(entry) = reactor.clients.get(key.0) else { continue };
            let config = &reactor.config;
            let (state, poll_timeout) = match &entry.phase {
                Phase::Reading if entry.conn.is_receiving() => ("receiving", config.client_timeout),
                Phase::Reading => ("quiet", config.idle_timeout),
                Phase::Finishing { .. } => ("taking", config.idle_timeout),
                Phase::Assigned { worker } if !entry.out.is_read() && has_answer(*worker) => {
                    ("taking", config.idle_timeout)
                }
                Phase::Lingering => ("lingering", LINGER),
                Phase::Queued(_)
                | Phase::Retrying(_)
                | Phase::TimedOut(_)
                | Phase::Assigned { .. }
                | Phase::Tunnel { .. }
                | Phase::Dead => continue,
            };
            let due = reactor.client_deadlines.due(key.0);
            let is_bound = due.is_some_and(|due| due <= self.now + poll_timeout);
            assert!(is_bound, "client {}: {state}, without a deadline of that", key.0);
            // At a stop, quiet ones get a moment anew; and an answer may have come long after the last byte.
            let is_known = reactor.stage == Stage::Running && state != "taking";
            let is_late = is_known && self.now >= client.active_at + poll_timeout;
            assert!(!is_late, "client {}: {state}, and its time is over", key.0);
        }
        for (key, entry) in &reactor.workers {
            let has_deadline = reactor.worker_deadlines.armed(key).is_some();
            // A stuck one's successor is on its way, and the fleet has the deadlines.
            let is_minded = has_deadline || entry.is_stuck;
            assert!(entry.exchange.is_none() || is_minded, "worker {key}: a request without a deadline");
        }
    }

    /// At rest nothing lies about that somebody wants.
    pub fn check_rest(&self) {
        self.check_operators_rest();
        let reactor = &self.reactor;
        for (at, client) in self.clients.iter().enumerate() {
            let wire = client.wire.borrow();
            let Some(Target::Client(key)) = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone)
            else {
                continue;
            };
            let Some(entry) = reactor.clients.get(key.0) else { continue };
            let is_open = entry.wants_bytes() && !reactor.is_tunnel_full(key) && !entry.waits_for_file;
            assert!(!is_open || wire.to_server.is_empty(), "client {at}: its bytes lie unread");
            assert!(
                !is_open || !wire.peer_has_ended || entry.conn.has_ended,
                "client {at}: its end goes unseen"
            );
            if let Phase::Tunnel { worker } = entry.phase
                && entry.out.is_read()
            {
                let exchange = reactor.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
                let tunnel = exchange.and_then(|exchange| exchange.tunnel.as_ref());
                let has_ended = tunnel.is_some_and(|tunnel| tunnel.worker_has_ended);
                assert!(
                    !has_ended || wire.server_has_ended,
                    "client {at}: its tunnel's end is not passed on"
                );
            }
            if let Phase::Assigned { worker } | Phase::Tunnel { worker } = entry.phase {
                let exchange = reactor.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
                let is_told = exchange.is_none_or(|exchange| exchange.sending != Sending::Open);
                let is_tunnel = matches!(entry.phase, Phase::Tunnel { .. }) && !reactor.is_tunnel_full(key);
                assert!(
                    !is_tunnel || is_told || !wire.peer_has_ended,
                    "client {at}: has left its tunnel, and its worker is not told"
                );
            }
            assert!(
                entry.out.is_read() || wire.capacity() == 0,
                "client {at}: has room, and its answer waits"
            );
        }
        for (key, entry) in &reactor.workers {
            let Some(worker) = self.workers.iter().find(|worker| worker.pid == entry.pid.as_raw()) else {
                continue;
            };
            let (Some(line), Some(_)) = (worker.lines.first(), &entry.stream) else { continue };
            let wire = line.wire.borrow();
            let exchange = entry.exchange.as_ref();
            let tunnel = exchange.and_then(|exchange| exchange.tunnel.as_ref());
            let has_ended = tunnel.is_some_and(|tunnel| tunnel.worker_has_ended);
            let is_read = wire.to_server.is_empty() && !wire.peer_has_ended;
            assert!(entry.is_held_back() || has_ended || is_read, "worker {key}: its bytes lie unread");
            if let Some(exchange) = exchange {
                let is_ended = exchange.sending == Sending::Ended;
                let is_out = exchange.is_sent() || is_ended || exchange.is_reconnecting();
                assert!(is_out || wire.capacity() == 0, "worker {key}: has room, and its request waits");
                let is_lost = is_ended && exchange.client.is_some() && !wire.peer_has_ended;
                assert!(!is_lost || exchange.tunnel.is_some(), "worker {key}: its request can go nowhere");
                let ends_by_itself = exchange
                    .answer
                    .is_some_and(|answer| matches!(answer.downstream, Framing::Length(_) | Framing::Empty));
                let is_owed_the_end = exchange.client.is_none()
                    && exchange.is_sent()
                    && !exchange.is_question()
                    && !ends_by_itself
                    && entry.may_be_told(exchange.answer.is_some());
                assert!(
                    !is_owed_the_end || exchange.sending == Sending::Ended || wire.capacity() == 0,
                    "worker {key}: nobody waits for its answer, and it is not told"
                );
                let waits = exchange.client.and_then(|client| reactor.clients.get(client.0));
                let waits = waits.is_some_and(|waiting| waiting.out.is_at_bound());
                assert!(!entry.is_held_back() || waits, "worker {key}: held back for nobody");
            }
        }
    }
}
