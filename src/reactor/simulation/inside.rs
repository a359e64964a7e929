//! Checks the reactor after each tick: its parts must agree with each other, and with the world around it.

use super::disk;
use super::peers::Life;
use super::world::World;
use crate::http::Framing;
use crate::keys::{ClientKey, UpstreamKey, WorkerKey};
use crate::reactor::backend::exchange::{Exchange, Sending};
use crate::reactor::backend::{PlaceState, UpstreamDeadline};
use crate::reactor::frontend::phase::{Phase, Wait};
use crate::reactor::io::token::Target;
use crate::reactor::limits::{LAST_BYTES, LINGER, READ_BYTES};
use crate::reactor::stage::Stage;
use std::collections::BTreeMap;

/// Who holds which key at the beginning of a tick.
pub(crate) struct Keys {
    clients: BTreeMap<usize, usize>,
    workers: BTreeMap<usize, i32>,
}

impl World {
    pub(crate) fn keys(&self) -> Keys {
        let clients = self.clients.iter().enumerate().filter_map(|(at, client)| {
            let wire = client.wire.borrow();
            wire.token.filter(|_| !wire.is_server_gone).map(|token| (token.0, at))
        });
        let workers = self.reactor.supervisor.workers().iter().map(|(key, entry)| (key, entry.pid_number()));
        Keys { clients: clients.collect(), workers: workers.collect() }
    }

    pub(crate) fn check_keys(&self, before: &Keys) {
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
    pub(crate) fn check_balance(&self) {
        if self.reactor.exit.is_some() {
            return;
        }
        let reactor = &self.reactor;
        let mut waiting = 0;
        for (key, entry) in reactor.frontend.clients() {
            // Without any room, as much as one piece of an answer lies in memory, and one read of a body; of a dead
            // worker's answer all that it has left behind.
            let is_any_left = self.oracle.tags.iter().any(|tag| tag.was_died_on);
            let most = if is_any_left { LAST_BYTES } else { 4 * READ_BYTES };
            let tails = (entry.out().tail_bytes(), entry.body().tail_bytes());
            assert!(tails.0 <= most && tails.1 <= READ_BYTES, "client {key}: {tails:?} bytes in memory");
            match entry.phase() {
                Phase::Waiting { wait: Wait::Queued, .. } => {
                    waiting += 1;
                    assert!(reactor.balancer.is_waiting(ClientKey(key)), "client {key}: waits for nothing");
                }
                Phase::Assigned { upstream } | Phase::Tunnel { upstream } => {
                    let is_its = reactor.backend.client_of(*upstream) == Some(ClientKey(key));
                    assert!(is_its, "client {key}: no worker works for it");
                }
                Phase::Dispatching => panic!("client {key}: its request lies about"),
                Phase::Waiting { wait: Wait::SecondTry | Wait::TimedOut, .. }
                | Phase::Reading
                | Phase::Finishing { .. }
                | Phase::Lingering
                | Phase::Closed => {}
            }
        }
        assert_eq!(waiting, reactor.balancer.waiting(), "everybody in the queue waits");
        let opened = disk::take_opened();
        assert!(opened <= 1, "{opened} files were made in one tick");
        let mut busy = 0;
        let workers = reactor.supervisor.workers().iter();
        for (key, entry) in workers.filter(|(_, entry)| !entry.is_template()) {
            let worker = WorkerKey(key);
            let has_old_code = entry.is_withheld() && reactor.supervisor.waits_for_new_code();
            assert!(
                !has_old_code || !reactor.balancer.is_idle(worker),
                "worker {key}: old code may be asked"
            );
            let of_it = || reactor.backend.upstreams().filter(|(_, entry)| entry.worker() == worker);
            let is_known = reactor.balancer.is_known(worker);
            let held = of_it().filter(|(_, entry)| matches!(entry.place(), PlaceState::Held { .. })).count();
            let left = of_it().filter(|(_, entry)| entry.place() == PlaceState::Left).count();
            let counts = (reactor.balancer.at_work(worker), reactor.balancer.streams_of(worker));
            assert!(
                !is_known || counts == (held, left),
                "worker {key}: {counts:?} places at work and streams, and the connections are {:?}",
                of_it().map(|(_, entry)| entry.place()).collect::<Vec<_>>()
            );
            assert!(!is_known || entry.joins(), "worker {key}: gets requests before it has joined");
            busy += usize::from(reactor.balancer.at_work(worker) > 0);
            for (upstream, entry) in of_it() {
                let rests = reactor.backend.armed(upstream) == Some(UpstreamDeadline::Cooldown);
                let is_stream = entry.exchange().is_some_and(Exchange::is_stream);
                match entry.place() {
                    PlaceState::Held { .. } => {
                        let is_at_work = entry.exchange().is_some() || rests || !is_known;
                        assert!(is_at_work, "{upstream:?}: busy with nothing");
                    }
                    PlaceState::Left => {
                        assert!(is_stream || !is_known, "{upstream:?}: left by something that is no stream")
                    }
                    PlaceState::Unused { .. } => {
                        let is_asked = entry.exchange().is_none_or(Exchange::is_question);
                        assert!(is_asked, "{upstream:?}: unused, with a request");
                    }
                    PlaceState::Closed => panic!("{upstream:?}: closed, and there behind the tick"),
                }
            }
        }
        assert_eq!(busy, reactor.balancer.busy(), "everybody busy is there");
        let members = reactor.supervisor.fleet().members().count();
        let workers = reactor.supervisor.workers();
        let alive = workers.iter().filter(|(_, entry)| !entry.has_ended() && !entry.is_template()).count();
        assert_eq!(members, alive, "idle, busy, booting and leaving are all workers");
    }

    /// Nothing that is due has been left for a later tick.
    pub(crate) fn check_deadlines(&self) {
        if self.reactor.exit.is_some() {
            return;
        }
        let (now, reactor) = (self.now, &self.reactor);
        reactor.balancer.check_deadlines(now);
        self.check_patience();
        for (whose, due) in [
            ("a client's", reactor.frontend.deadlines().next()),
            ("a worker's", reactor.backend.deadlines().next()),
            ("the fleet's", reactor.supervisor.fleet().next_deadline()),
        ] {
            assert!(due.is_none_or(|due| due > now), "{whose} deadline is late");
        }
        for worker in self.workers.iter().filter(|worker| worker.life != Life::Ended) {
            for line in &worker.lines {
                let Some(hand) = line.hand.as_ref().filter(|hand| !hand.is_done()) else { continue };
                let waits = line
                    .upstream()
                    .and_then(|upstream| reactor.backend.exchange(upstream))
                    .is_some_and(|exchange| !exchange.is_held_back() && exchange.client.is_some());
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
    }

    /// Whoever waits for somebody has a deadline, and that of its state.
    fn check_patience(&self) {
        let reactor = &self.reactor;
        let has_answer = |upstream: UpstreamKey| reactor.backend.answer_of(upstream).is_some();
        for client in &self.clients {
            let wire = client.wire.borrow();
            let Some(Target::Client(key)) = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone)
            else {
                continue;
            };
            let Some(entry) = reactor.frontend.clients().get(key.0) else { continue };
            let config = &reactor.config;
            let (state, poll_timeout) = match entry.phase() {
                Phase::Reading if entry.conn().is_receiving() => ("receiving", config.client_timeout),
                Phase::Reading => ("quiet", config.idle_timeout),
                Phase::Finishing { .. } => ("taking", config.idle_timeout),
                Phase::Assigned { upstream } if !entry.out().is_read() && has_answer(*upstream) => {
                    ("taking", config.idle_timeout)
                }
                Phase::Lingering => ("lingering", LINGER),
                Phase::Dispatching
                | Phase::Waiting { .. }
                | Phase::Assigned { .. }
                | Phase::Tunnel { .. }
                | Phase::Closed => continue,
            };
            let due = reactor.frontend.deadlines().due(key.0);
            let is_bound = due.is_some_and(|due| due <= self.now + poll_timeout);
            assert!(is_bound, "client {}: {state}, without a deadline of that", key.0);
            // At a stop, quiet ones get a moment anew; and an answer may have come long after the last byte.
            let is_known = reactor.stage == Stage::Running && !matches!(state, "taking" | "lingering");
            let is_late = is_known && self.now >= client.active_at + poll_timeout;
            assert!(!is_late, "client {}: {state}, and its time is over", key.0);
        }
        for (worker, entry) in reactor.supervisor.workers() {
            let of_it = || reactor.backend.upstreams().filter(|(_, entry)| entry.worker().0 == worker);
            let is_asked = || of_it().any(|(key, _)| reactor.backend.armed(key).is_some());
            let is_waited_for = entry.is_command() && reactor.supervisor.waits_for_join(WorkerKey(worker));
            assert!(!is_waited_for || is_asked(), "worker {worker}: it is not there, and is not asked again");
        }
        for (upstream, entry) in reactor.backend.upstreams() {
            let has_deadline = reactor.backend.armed(upstream).is_some();
            // A stuck one's successor is on its way, and the fleet has the deadlines.
            let worker = reactor.supervisor.workers().get(entry.worker().0);
            let is_minded = has_deadline || worker.is_some_and(|worker| worker.is_stuck());
            assert!(entry.exchange().is_none() || is_minded, "{upstream:?}: a request without a deadline");
        }
    }

    /// At rest nothing lies about that somebody wants.
    pub(crate) fn check_rest(&self) {
        self.check_status();
        self.check_operators_rest();
        self.check_told();
        let reactor = &self.reactor;
        reactor.balancer.check_rest(reactor.io.now());
        for (at, client) in self.clients.iter().enumerate() {
            let wire = client.wire.borrow();
            let Some(Target::Client(key)) = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone)
            else {
                continue;
            };
            let Some(entry) = reactor.frontend.clients().get(key.0) else { continue };
            let is_open = entry.is_listened_to() && !reactor.is_tunnel_full(key);
            assert!(!is_open || wire.to_server.is_empty(), "client {at}: its bytes lie unread");
            assert!(
                !is_open || !wire.peer_has_ended || entry.conn().has_ended,
                "client {at}: its end goes unseen"
            );
            if let Phase::Tunnel { upstream } = *entry.phase()
                && entry.out().is_read()
            {
                let has_ended = reactor.backend.has_tunnel_ended(upstream);
                assert!(
                    !has_ended || wire.server_has_ended,
                    "client {at}: its tunnel's end is not passed on"
                );
            }
            if let Phase::Assigned { upstream } | Phase::Tunnel { upstream } = *entry.phase() {
                let exchange = reactor.backend.exchange(upstream);
                let is_told = exchange.is_none_or(|exchange| exchange.sending() != Sending::Open);
                let is_tunnel = matches!(entry.phase(), Phase::Tunnel { .. }) && !reactor.is_tunnel_full(key);
                assert!(
                    !is_tunnel || is_told || !wire.peer_has_ended,
                    "client {at}: has left its tunnel, and its worker is not told"
                );
            }
            assert!(
                entry.out().is_read() || wire.capacity() == 0,
                "client {at}: has room, and its answer waits"
            );
        }
        for (upstream, entry) in reactor.backend.upstreams() {
            let key = entry.worker();
            let pid = reactor.supervisor.pid(key);
            let Some(worker) = self.workers.iter().find(|worker| pid == Some(worker.pid)) else {
                continue;
            };
            let mut lines = worker.lines.iter().filter(|_| entry.is_connected());
            let Some(line) = lines.find(|line| line.upstream() == Some(upstream)) else { continue };
            let wire = line.wire.borrow();
            let exchange = entry.exchange();
            let has_ended = exchange.is_some_and(Exchange::has_tunnel_ended);
            let is_held_back = exchange.is_some_and(Exchange::is_held_back);
            let is_read = wire.to_server.is_empty() && !wire.peer_has_ended;
            assert!(is_held_back || has_ended || is_read, "{key:?}: its bytes lie unread");
            if let Some(exchange) = exchange {
                let is_ended = exchange.sending() == Sending::Ended;
                let is_out = exchange.is_sent() || is_ended || exchange.is_reconnecting();
                assert!(is_out || wire.capacity() == 0, "{key:?}: has room, and its request waits");
                let is_lost = is_ended && exchange.client.is_some() && !wire.peer_has_ended;
                assert!(!is_lost || exchange.is_tunnel(), "{key:?}: its request can go nowhere");
                let ends_by_itself = exchange
                    .answer
                    .is_some_and(|answer| matches!(answer.downstream, Framing::Length(_) | Framing::Empty));
                let is_owed_the_end = exchange.client.is_none()
                    && exchange.is_sent()
                    && !exchange.is_question()
                    && !ends_by_itself
                    && reactor.supervisor.may_be_told(key, exchange.answer.is_some());
                assert!(
                    !is_owed_the_end || is_ended || wire.capacity() == 0,
                    "{key:?}: nobody waits for its answer, and it is not told"
                );
                let waits = exchange.client.and_then(|client| reactor.frontend.clients().get(client.0));
                let waits = waits.is_some_and(|waiting| waiting.out().is_at_bound());
                assert!(!is_held_back || waits, "{key:?}: held back for nobody");
            }
        }
    }
}
