//! What several do in one moment.

use super::life::pick;
use super::line::Hand;
use super::peers::{Life, Worker};
use super::script::{BUSY, UNTIL_CLOSE};
use super::world::World;
use crate::process::Exit;
use crate::reactor::limits::TICK_BYTES;

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

    /// A worker says so much of an answer that only the connection's end ends, and dies: its end may be told before the
    /// server has read all of that.
    pub(crate) fn overrun(&mut self, number: usize, bytes: usize, exit: Exit) {
        if let Some(worker) = self.one_asked(number) {
            self.answer(worker, UNTIL_CLOSE, 4 * TICK_BYTES);
            self.say(worker, bytes);
            self.end_process(worker, exit);
            self.reaps_soon();
        }
    }

    /// A worker that looks at a request without an answer; where there is none, a client sends one first.
    fn one_asked(&mut self, number: usize) -> Option<usize> {
        let can_send = |at: usize| self.clients[at].can_send();
        if !self.workers.iter().any(Worker::is_asked)
            && let Some(client) = pick(number, self.clients.len(), can_send)
        {
            self.send(client, usize::MAX);
            self.tick(0);
        }
        let worker = self.pick_worker(number, Worker::is_asked)?;
        self.workers[worker].look_at(number, Hand::is_asked);
        Some(worker)
    }

    /// A worker gives no answer to a request, and its client resets the connection when the server has heard of that.
    pub(crate) fn desert(&mut self, number: usize, is_busy: bool) {
        let Some(worker) = self.one_asked(number) else { return };
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
