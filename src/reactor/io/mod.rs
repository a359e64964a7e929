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

#[cfg(test)]
mod tests {
    use super::*;

    fn io() -> Io {
        let limit = DescriptorLimit { soft: 256, hard: 4096 };
        Io::new(Poll::new().expect("epoll"), limit, std::env::temp_dir(), 12_345)
    }

    #[test]
    fn all_rooms_see_one_time() {
        let mut io = io();
        let start = io.started();
        assert_eq!((io.now(), io.uptime(), io.descriptors()), (start, Duration::ZERO, 4096));
        let now = start + Duration::from_millis(1500);
        io.move_clock_to(now);
        assert_eq!((io.now(), io.uptime(), io.started()), (now, Duration::from_millis(1500), start));
        let date = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(io.unix().as_secs()));
        assert_eq!(io.date_line(), format!("Date: {date}\r\n").as_bytes());
        let us = io.unix().as_micros().to_string();
        let first = io.stamp();
        assert_eq!((first.fresh_id.len(), first.start_us), (16, us.as_bytes()));
        let first_id = first.fresh_id.to_vec();
        assert_ne!(io.stamp().fresh_id, first_id);

        let (mut io, earlier) = (self::io(), Instant::now());
        let before = io.now();
        let passed = io.read_clock();
        assert!(io.now() >= earlier && io.now() == before + passed);
    }

    #[test]
    fn buffers_are_lent_and_come_back() {
        let mut io = io();
        let scratch = io.take_scratch();
        assert_eq!(scratch.len(), crate::reactor::limits::READ_BYTES);
        io.give_scratch_back(scratch);
        assert_eq!(io.take_scratch().len(), crate::reactor::limits::READ_BYTES);

        let mut prefix = io.take_prefix();
        prefix.extend_from_slice(b"HTTP/1.1 200 OK");
        let room_bytes = prefix.capacity();
        io.give_prefix_back(prefix);
        let prefix = io.take_prefix();
        assert!(prefix.is_empty() && prefix.capacity() == room_bytes, "used again, and empty");

        let mut head = io.take_buffer();
        assert!(head.is_empty() && head.capacity() > 0);
        head.reserve_exact(3000);
        io.give_back(head);
        assert!(io.take_buffer().capacity() >= 3000);
        assert_eq!(io.spools().spooled().max_disk_bytes, 12_345);
    }

    #[test]
    fn whoever_has_more_to_do_is_told_once() {
        let mut io = io();
        assert!(!io.has_ready());
        io.go_on_with(Target::Signals);
        assert!(io.has_ready() && io.is_ready(&Target::Signals) && !io.is_ready(&Target::Stdout));
        let ready = io.take_ready();
        assert_eq!((ready.as_slice(), io.has_ready()), ([Target::Signals].as_slice(), false));
        io.give_ready_back(ready);
        io.go_on_with(Target::Stdout);
        assert_eq!(io.take_ready(), [Target::Stdout]);
        assert!(io.take_ready().capacity() > 0);
    }

    #[test]
    fn the_poll_tells_of_what_is_registered() {
        let mut io = io();
        let (mut near, mut far) = mio::net::UnixStream::pair().expect("a pair");
        let token = Target::Stderr.token();
        io.registry().register(&mut near, token, mio::Interest::READABLE).expect("registered");
        std::io::Write::write_all(&mut far, b"x").expect("written");
        let mut events = Events::with_capacity(4);
        io.wait(&mut events, Some(Duration::from_secs(10))).expect("polled");
        assert_eq!(events.iter().map(|event| event.token()).collect::<Vec<_>>(), [token]);
    }
}
