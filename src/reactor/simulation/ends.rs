//! How each history ends: everything works from some moment on, and must come to rest, whole; then the server is
//! stopped, and nothing may be left.

use super::line::Line;
use super::peers::{Client, Life, Worker};
use super::wire;
use super::world::World;
use super::{disk, process};
use crate::control::Message;
use crate::process::Exit;

/// Long enough for every deadline and each backoff of the histories.
const MAX_ROUNDS: usize = 400;

impl World {
    /// Clients send and take, workers join and answer, those that are told to end do so.
    pub(crate) fn settle(&mut self) {
        disk::set(disk::Disk::Works);
        process::table(|table| table.failing_spawns = 0);
        for _ in 0..MAX_ROUNDS {
            if self.reactor.exit.is_some() || self.is_quiet() {
                return self.check_newest_code();
            }
            self.be_kind();
            self.remaining();
            // Before the clock moves on: with an age, there is always a next deadline.
            if self.is_quiet() {
                return self.check_newest_code();
            }
            if let Some(due) = self.next_moment().filter(|_| !self.has_kindness_left()) {
                self.now = self.now.max(due);
                self.tick(0);
            }
        }
        panic!("does not come to rest");
    }

    fn be_kind(&mut self) {
        self.operators_are_kind();
        self.templates_are_kind();
        for at in 0..self.clients.len() {
            if self.clients[at].can_send() {
                self.send(at, usize::MAX);
            }
            let client = &mut self.clients[at];
            let mut wire = client.wire.borrow_mut();
            wire.set_capacity(1 << 20);
            if !wire.take(usize::MAX).is_empty() {
                client.took_at = self.now;
            }
        }
        for at in 0..self.workers.len() {
            match self.workers[at].life {
                Life::Ended => continue,
                Life::Booting => self.join(at),
                Life::Joined | Life::Leaving => {}
            }
            wire::set_backlog(&self.workers[at].socket, false);
            self.workers[at].listen(usize::MAX);
            for number in 0..self.workers[at].lines.len() {
                self.workers[at].look_at(3 * number, |hand| !hand.is_done());
                self.answer(at, 0, 20);
                self.say(at, usize::MAX);
            }
            self.workers[at].running.clear();
            let is_done = !self.workers[at].is_asked() && !self.workers[at].is_speaking();
            if self.workers[at].life == Life::Leaving && is_done {
                self.end_process(at, Exit::Code(0));
                self.reaps_soon();
            }
        }
    }

    fn has_kindness_left(&self) -> bool {
        let context = |worker: &Worker| {
            let in_hand = |line: &Line| line.hand.as_ref().is_some_and(|hand| !hand.is_done());
            matches!(worker.life, Life::Booting | Life::Leaving)
                || !worker.running.is_empty()
                || worker.lines.iter().any(in_hand)
        };
        let can_send = self.clients.iter().any(Client::can_send);
        can_send
            || self.has_template_work()
            || self.workers.iter().filter(|worker| worker.life != Life::Ended).any(context)
    }

    /// Nobody waits for anything, and the fleet is whole.
    fn is_quiet(&self) -> bool {
        let reactor = &self.reactor;
        let fleet = reactor.supervisor.fleet();
        let is_whole =
            fleet.serving() == fleet.size() && fleet.members().count() == fleet.size() && !fleet.is_rolling();
        let waits_for_code = reactor.supervisor.waits_for_new_code();
        let is_idle = reactor.frontend.clients().iter().all(|(_, entry)| entry.conn().is_idle());
        let is_free = reactor.balancer.busy() == 0 && reactor.balancer.waiting() == 0;
        self.is_at_rest()
            && self.door.borrow().on_the_way.is_empty()
            && !reactor.supervisor.has_groups()
            && is_idle
            && is_free
            && (is_whole || self.is_stop_told)
            && !waits_for_code
            && !self.has_kindness_left()
    }

    /// The server is told to stop, and must leave nothing behind.
    pub(crate) fn stop(&mut self) {
        if self.reactor.exit.is_none() && !std::mem::replace(&mut self.is_stop_told, true) {
            self.tell(&Message::Stop, 0);
        }
        for _ in 0..MAX_ROUNDS {
            if self.reactor.exit.is_some() {
                break;
            }
            self.be_kind();
            self.remaining();
            if let Some(due) = self.next_moment().filter(|_| !self.has_kindness_left()) {
                self.now = self.now.max(due);
                self.tick(0);
            }
        }
        let reactor = &self.reactor;
        match reactor.exit {
            // No worker ever joined.
            Some(1) => {
                assert!(
                    !reactor.supervisor.was_ever_healthy(),
                    "the server gives up on an app that has served"
                );
                return;
            }
            code => assert_eq!(code, Some(0), "the server ends"),
        }
        let (clients, workers) = (reactor.frontend.clients(), reactor.supervisor.workers());
        assert!(clients.is_empty(), "clients are left: {clients:?}");
        assert!(workers.is_empty(), "workers are left: {workers:?}");
        assert_eq!(reactor.backend.upstreams().count(), 0, "connections to workers are left");
        assert_eq!((reactor.balancer.waiting(), reactor.balancer.busy(), reactor.balancer.idle()), (0, 0, 0));
        assert_eq!((reactor.frontend.next_deadline(), reactor.backend.next_deadline()), (None, None));
        assert!(reactor.supervisor.is_gone());
        let alive = process::table(|table| table.alive.len());
        assert_eq!(alive, 0, "no worker outlives the server");
        let left = process::table(|table| (table.children.clone(), table.ended.clone()));
        assert!(left.0.is_empty() && left.1.is_empty(), "nothing of what workers started is left: {left:?}");
        self.check_operators_end();
    }
}
