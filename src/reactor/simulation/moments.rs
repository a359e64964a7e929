//! What several do in one moment.

use super::life::pick;
use super::line::Hand;
use super::peers::{Life, Worker};
use super::script::BUSY;
use super::world::World;
use crate::process::Exit;

/// So many ticks go by until the server hears of ends that it may have seen on the connections before.
const TICKS_TO_REAP: usize = 3;

impl World {
    /// All workers that have nothing in hand end, and a client sends what it has; the server hears of that first, and then
    /// of one connection after the other.
    pub(crate) fn end_idle(&mut self, client: usize, exit: Exit) {
        let is_idle = |worker: &Worker| {
            let is_at_work = worker.lines.iter().filter_map(|line| line.hand.as_ref()).any(Hand::is_handled);
            worker.life == Life::Joined && !is_at_work
        };
        for at in 0..self.workers.len() {
            if is_idle(&self.workers[at]) {
                self.end_process(at, exit);
            }
        }
        self.reaps_in = TICKS_TO_REAP;
        if let Some(client) = pick(client, self.clients.len(), |at| self.clients[at].can_send()) {
            self.send(client, usize::MAX);
        }
        self.hears_workers_later = true;
        self.tick(0);
        self.hears_workers_later = false;
    }

    /// A worker gives no answer to a request, and its client resets the connection when the server has heard of that.
    pub(crate) fn desert(&mut self, number: usize, is_busy: bool) {
        let Some(worker) = self.pick_worker(number, Worker::is_asked) else { return };
        self.workers[worker].look_at(number, Hand::is_asked);
        let Some(tag) = self.workers[worker].hand().map(|hand| hand.tag) else { return };
        if is_busy {
            self.answer(worker, BUSY, 0);
            self.say(worker, usize::MAX);
        } else {
            self.workers[worker].hang_up_here(&mut self.oracle);
        }
        self.tick(0);
        let wire = &self.clients[self.oracle.tags[tag].client].wire;
        if !wire.borrow().is_peer_gone && !wire.borrow().is_server_gone {
            wire.borrow_mut().reset();
        }
    }
}
