//! What is done where spools find no room, or not in this tick: workers are held back, clients are not read.

use super::entry::{ClientEntry, Phase, WorkerDeadline};
use super::spool::{Need, Settled, SpoolBudget};
use super::token::Target;
use super::{FILES_PAUSE, Reactor};
use crate::http::Reason;
use crate::keys::{ClientKey, WorkerKey};
use std::collections::VecDeque;

/// Read of a client in one go while its body may not have a new file in this tick. A small request, which needs none, is
/// read nevertheless.
const CAREFUL_READ_BYTES: usize = 16 * 1024;

/// How much may be read from a client now; 0: it has to wait until files may be made. Whoever waits already has had its
/// file at the beginning of the tick, so newcomers take nobody's.
pub(super) fn readable_bytes(entry: &ClientEntry, budget: &SpoolBudget) -> usize {
    match entry.phase {
        Phase::Reading if entry.body.has_tail() => 0,
        Phase::Reading if !budget.is_tick_over() => usize::MAX,
        Phase::Reading if entry.conn.is_in_body() => entry.body.room_without_new_file(),
        Phase::Reading => CAREFUL_READ_BYTES,
        _ => usize::MAX,
    }
}

/// Puts a client at the end of those whose spool waits for a tick that may make files.
pub(super) fn wait_for_file(waiting: &mut VecDeque<ClientKey>, client: ClientKey, entry: &mut ClientEntry) {
    if !std::mem::replace(&mut entry.waits_for_file, true) {
        waiting.push_back(client);
    }
}

impl Reactor {
    /// Somebody waits for a file, and it is worth while to look whether one can be made.
    pub(super) fn wants_files_now(&self) -> bool {
        !self.waiting_for_files.is_empty() && self.files_again.is_none()
    }

    /// At the beginning of a tick: whoever waits for a file gets one, first come, first served.
    pub(super) fn settle_spools(&mut self) {
        let now = self.clock.now;
        if self.files_again.is_some_and(|retry_at| now < retry_at) {
            return;
        }
        self.files_again = None;
        while !self.spools.is_tick_over()
            && let Some(client) = self.waiting_for_files.pop_front()
        {
            let Some(entry) = self.clients.get_mut(client.0) else { continue };
            if !std::mem::replace(&mut entry.waits_for_file, false) {
                continue;
            }
            match entry.phase {
                Phase::Reading => {
                    if entry.body.settle(Need::May) == Settled::NoRoom && entry.body.has_tail() {
                        self.refuse_arriving(client, Reason::SpoolFull);
                    } else {
                        self.read_client(client);
                    }
                }
                Phase::Assigned { .. } | Phase::Tunnel { .. } => self.settle_answer(client),
                Phase::Queued(_)
                | Phase::Retrying(_)
                | Phase::TimedOut(_)
                | Phase::Finishing { .. }
                | Phase::Lingering
                | Phase::Dead => {}
            }
        }
        if self.spools.lacks_descriptors() && !self.waiting_for_files.is_empty() {
            self.files_again = Some(now + FILES_PAUSE);
            self.close_for_room();
        }
    }

    /// A client has taken some of its answer, or files may be made again: its worker goes on if there is room.
    pub(super) fn settle_answer(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get_mut(client.0) else { return };
        entry.out.forget_read();
        let (Phase::Assigned { worker } | Phase::Tunnel { worker }) = entry.phase else { return };
        if !self.workers.get(worker.0).is_some_and(|entry| entry.is_held_back()) {
            return;
        }
        match entry.out.settle(Need::Must) {
            Settled::HasRoom => self.release_held_back(worker),
            Settled::TickIsOver => wait_for_file(&mut self.waiting_for_files, client, entry),
            // Looked at again when the client takes more.
            Settled::NoRoom => {}
        }
    }

    /// There is room again for what a worker says. Its time starts anew: it could not write.
    pub(super) fn release_held_back(&mut self, worker: WorkerKey) {
        let exchange = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut());
        if exchange.is_some_and(|exchange| std::mem::replace(&mut exchange.is_held_back, false)) {
            self.ready_list.push(Target::Worker(worker));
            if let Some(kind @ (WorkerDeadline::Read | WorkerDeadline::Idle)) =
                self.worker_deadlines.armed(worker.0)
            {
                self.worker_deadlines.arm(worker.0, kind, self.clock.now);
            }
        }
    }
}
