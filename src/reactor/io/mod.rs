//! What every room uses: the poll, the clock, buffers, bounds on spooled bytes, and the list of those who have more to
//! do without a new event.

pub(super) mod buffers;
pub(super) mod clock;
pub(super) mod listen;
pub(super) mod ready_list;
pub(super) mod socket_access;
pub(super) mod spool;
pub(super) mod stream;
pub(super) mod token;
mod unix_socket;

use crate::process::DescriptorLimit;
use buffers::Buffers;
use clock::{Clock, Ids};
use mio::{Events, Poll, Registry};
use ready_list::ReadyList;
use spool::SpoolBudget;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use token::Target;

pub(super) struct Io {
    poll: Poll,
    clock: Clock,
    ids: Ids,
    buffers: Buffers,
    /// What was read last.
    scratch: Vec<u8>,
    /// What is written before an answer's bytes.
    prefix: Vec<u8>,
    spools: Rc<SpoolBudget>,
    ready: ReadyList,
    limit: DescriptorLimit,
    started: Instant,
}

/// What a new request's head is made with.
pub(super) struct Stamp<'a> {
    /// An id that no other request has.
    pub fresh_id: &'a [u8],
    /// µs since 1970 as digits.
    pub start_us: &'a [u8],
    pub buffers: &'a mut Buffers,
}

impl Io {
    pub(super) fn new(poll: Poll, limit: DescriptorLimit, spool_dir: PathBuf, max_spool_bytes: u64) -> Self {
        let clock = Clock::new();
        Io {
            poll,
            started: clock.now,
            clock,
            ids: Ids::new(),
            buffers: Buffers::default(),
            scratch: vec![0; super::limits::READ_BYTES],
            prefix: Vec::new(),
            spools: SpoolBudget::new(spool_dir, max_spool_bytes),
            ready: ReadyList::default(),
            limit,
        }
    }

    /// Sleeps until something happens.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        self.poll.poll(events, timeout)
    }

    pub(super) fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    pub(super) fn descriptors(&self) -> u64 {
        self.limit.raised()
    }
}

/// The time.
impl Io {
    /// The time of this tick.
    pub(super) fn now(&self) -> Instant {
        self.clock.now
    }

    /// The same, since 1970.
    pub(super) fn unix(&self) -> Duration {
        self.clock.unix
    }

    /// Since the start.
    pub(super) fn uptime(&self) -> Duration {
        self.clock.now.duration_since(self.started)
    }

    /// `Date: …\r\n`
    pub(super) fn date_line(&self) -> &[u8] {
        &self.clock.date_line
    }

    /// Reads the clock, once a tick; how much time has passed.
    pub(super) fn read_clock(&mut self) -> Duration {
        self.clock.read()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn move_clock_to(&mut self, now: Instant) {
        self.clock.move_to(now);
    }
}

/// Buffers.
impl Io {
    pub(super) fn stamp(&mut self) -> Stamp<'_> {
        Stamp { fresh_id: self.ids.next(), start_us: self.clock.unix_us(), buffers: &mut self.buffers }
    }

    /// A buffer for a head.
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        self.buffers.take()
    }

    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffers.give_back(buffer);
    }

    pub(super) fn take_scratch(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.scratch)
    }

    pub(super) fn give_scratch_back(&mut self, scratch: Vec<u8>) {
        self.scratch = scratch;
    }

    /// An empty buffer for what is written before an answer's bytes.
    pub(super) fn take_prefix(&mut self) -> Vec<u8> {
        let mut prefix = std::mem::take(&mut self.prefix);
        prefix.clear();
        prefix
    }

    pub(super) fn give_prefix_back(&mut self, prefix: Vec<u8>) {
        self.prefix = prefix;
    }

    pub(super) fn spools(&self) -> &Rc<SpoolBudget> {
        &self.spools
    }
}

/// Those who have more to do without a new event.
impl Io {
    pub(super) fn go_on_with(&mut self, target: Target) {
        self.ready.push(target);
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn take_ready(&mut self) -> Vec<Target> {
        self.ready.take()
    }

    pub(super) fn give_ready_back(&mut self, targets: Vec<Target>) {
        self.ready.give_back(targets);
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_ready(&self, target: &Target) -> bool {
        self.ready.contains(target)
    }
}
