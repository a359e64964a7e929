//! What is done where spools find no room, or not in this tick: clients are not read, and wait for a file.

use super::Frontend;
use super::client::Client;
use super::phase::Phase;
use crate::keys::ClientKey;
use crate::reactor::io::Io;
use crate::reactor::io::spool::{Need, Settled, SpoolBudget};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Read of a client in one go while its body may not have a new file in this tick. A small request, which needs none, is
/// read nevertheless.
const CAREFUL_READ_BYTES: usize = 16 * 1024;
/// Between two looks for a descriptor for a spool file.
const FILES_PAUSE: Duration = Duration::from_millis(20);

/// Whose spool waits for a tick that may make files, in the order of their coming.
#[derive(Debug, Default)]
pub(super) struct FileQueue {
    waiting: VecDeque<ClientKey>,
    /// When they are looked at again, after there were no descriptors.
    again_at: Option<Instant>,
}

impl FileQueue {
    /// Puts a client at the end.
    pub(super) fn wait(&mut self, client: ClientKey, entry: &mut Client) {
        if !std::mem::replace(&mut entry.waits_for_file, true) {
            self.waiting.push_back(client);
        }
    }

    /// Somebody waits for a file, and it is worth while to look whether one can be made.
    pub(super) fn wants_files_now(&self) -> bool {
        !self.waiting.is_empty() && self.again_at.is_none()
    }

    pub(super) fn looked_at_again(&self) -> Option<Instant> {
        self.again_at
    }
}

/// How much may be read from a client now; 0: it has to wait until files may be made. Whoever waits already has had its
/// file at the beginning of the tick, so newcomers take nobody's.
pub(super) fn readable_bytes(entry: &Client, budget: &SpoolBudget) -> usize {
    match entry.phase {
        Phase::Reading if entry.body.has_tail() => 0,
        Phase::Reading if !budget.is_tick_over() => usize::MAX,
        Phase::Reading if entry.conn.is_in_body() => entry.body.room_without_new_file(),
        Phase::Reading => CAREFUL_READ_BYTES,
        _ => usize::MAX,
    }
}

/// Who may have a file now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileTurn {
    /// Its body goes on.
    Body(ClientKey),
    /// There is no room for its body.
    NoRoom(ClientKey),
    /// Its answer goes on.
    Answer(ClientKey),
}

impl Frontend {
    /// Whether files may be looked for by now.
    pub(crate) fn may_look_for_files(&mut self, now: Instant) -> bool {
        if self.files.again_at.is_some_and(|again_at| now < again_at) {
            return false;
        }
        self.files.again_at = None;
        true
    }

    /// The next one that waits for a file, first come, first served.
    pub(crate) fn next_for_file(&mut self, io: &Io) -> Option<FileTurn> {
        while !io.spools().is_tick_over() {
            let client = self.files.waiting.pop_front()?;
            let Some(entry) = self.clients.get_mut(client.0) else { continue };
            if !std::mem::replace(&mut entry.waits_for_file, false) {
                continue;
            }
            match entry.phase {
                Phase::Reading => {
                    let has_none = entry.body.settle(Need::May) == Settled::NoRoom && entry.body.has_tail();
                    return Some(if has_none { FileTurn::NoRoom(client) } else { FileTurn::Body(client) });
                }
                Phase::Assigned { .. } | Phase::Tunnel { .. } => return Some(FileTurn::Answer(client)),
                Phase::Dispatching
                | Phase::Waiting { .. }
                | Phase::Finishing { .. }
                | Phase::Lingering
                | Phase::Closed => {}
            }
        }
        None
    }

    /// Somebody waits still, for want of descriptors: they are looked for again after a while.
    pub(crate) fn lacks_files(&mut self, io: &Io) -> bool {
        let lacks = io.spools().lacks_descriptors() && !self.files.waiting.is_empty();
        if lacks {
            self.files.again_at = Some(io.now() + FILES_PAUSE);
        }
        lacks
    }

    /// What a client has taken of its answer is forgotten.
    pub(crate) fn forget_taken(&mut self, client: ClientKey) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.out.forget_read();
        }
    }

    /// Whether there is room for more of an answer now; else its client waits for a file, or is to take more first.
    pub(crate) fn has_room_for_answer(&mut self, client: ClientKey) -> bool {
        let Some(entry) = self.clients.get_mut(client.0) else { return false };
        match entry.out.settle(Need::Must) {
            Settled::HasRoom => true,
            Settled::TickIsOver => {
                self.files.wait(client, entry);
                false
            }
            // Looked at again when the client takes more.
            Settled::NoRoom => false,
        }
    }

    pub(crate) fn waits_for_file(&self, client: ClientKey) -> bool {
        self.clients.get(client.0).is_some_and(|entry| entry.waits_for_file)
    }
}
