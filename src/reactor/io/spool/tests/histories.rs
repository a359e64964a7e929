//! Spools in random histories, each beside the plain row of bytes that it stands for.

use super::*;
use crate::reactor::simulation::Random;
use crate::reactor::simulation::disk::{self, Disk};
use std::sync::LazyLock;

const SEEDS: u64 = 40;
const STEPS: usize = 60;

/// Bytes that show where they stand: each is followed by the next one, modulo 251.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..251).collect::<Vec<u8>>().repeat(6000));

/// A spool, and what it is to hold.
struct Pair {
    spool: Spool,
    bytes: Vec<u8>,
    read: usize,
    /// Files have been given back, so that it cannot be read again.
    has_forgotten: bool,
}

/// What bytes can be written to: a socket, and a file that the kernel sends nothing to, so that bytes are copied.
struct Sinks {
    near: UnixStream,
    far: UnixStream,
    file: File,
    file_bytes: u64,
}

impl Sinks {
    fn new(dir: &std::path::Path) -> Self {
        let (near, far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("an option");
        far.set_nonblocking(true).expect("an option");
        let file = File::options().create(true).read(true).append(true).open(dir.join("sink"));
        Sinks { near, far, file: file.expect("a file"), file_bytes: 0 }
    }

    /// Writes to one of them; what came out, and how far it came.
    fn write(&mut self, spool: &mut Spool, to_file: bool, most: usize) -> (Vec<u8>, Written) {
        let mut out = Vec::new();
        let written = if to_file {
            let written = spool.write_to(&mut self.file, most);
            let end = self.file.metadata().expect("its size").len();
            out.resize((end - self.file_bytes) as usize, 0);
            self.file.read_exact_at(&mut out, self.file_bytes).expect("it is there");
            self.file_bytes = end;
            written
        } else {
            let written = spool.write_to(&mut self.near, most);
            let mut piece = [0; 65536];
            while let Ok(bytes @ 1..) = self.far.read(&mut piece) {
                out.extend_from_slice(&piece[..bytes]);
            }
            written
        };
        (out, written.expect("both take bytes"))
    }
}

impl Pair {
    fn new(budget: &Rc<SpoolBudget>) -> Self {
        Pair { spool: Spool::new(budget), bytes: Vec::new(), read: 0, has_forgotten: false }
    }

    /// In all its files that are not given back.
    fn file_bytes(&self) -> u64 {
        self.spool.overflow.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// All that can be asked of it says the same as the row of bytes.
    fn check(&self) {
        let (spool, memory) = (&self.spool, self.spool.memory.len());
        assert_eq!(spool.len(), self.bytes.len() as u64);
        assert_eq!(spool.unread_bytes(), (self.bytes.len() - self.read) as u64);
        assert_eq!(spool.is_read(), self.read == self.bytes.len());
        assert_eq!(spool.memory(), &self.bytes[self.read.min(memory)..memory]);
        assert!(memory <= MEMORY_BYTES);
        let tail = self.bytes.len() - memory - spool.overflow.bytes as usize;
        assert_eq!((spool.tail_bytes(), spool.has_tail()), (tail, tail > 0));
        assert_eq!(spool.is_at_bound(), tail > 0 || self.file_bytes() >= FILE_BYTES);
        assert_eq!(spool.overflow.bytes, spool.overflow.forgotten_bytes + self.file_bytes());
        let mut start = spool.overflow.segments.front().map_or(0, |first| first.start);
        for segment in &spool.overflow.segments {
            assert!(segment.start == start && segment.bytes <= SEGMENT_BYTES);
            start += segment.bytes;
        }
    }

    /// What waits in memory behind `bytes` more where the folder takes everything: one file a tick is made at most.
    fn expected_tail(&self, bytes: usize, is_tick_over: bool) -> usize {
        let (room, tail) = (self.spool.room_without_new_file(), self.spool.tail_bytes());
        let new_file = if is_tick_over { 0 } else { SEGMENT_BYTES as usize };
        match self.spool.overflow.segments.is_empty() {
            _ if tail > 0 => tail + bytes,
            true if bytes <= room => 0,
            true => bytes.saturating_sub(new_file),
            false => bytes.saturating_sub(room + new_file),
        }
    }

    fn push(&mut self, count: usize, is_needed: bool, budget: &SpoolBudget, has_room: bool) {
        let (from, memory) = (self.bytes.len(), self.spool.memory.len());
        let bytes = &PATTERN[from % 251..][..count];
        let tail = self.expected_tail(count, budget.is_tick_over());
        let fits = self.spool.overflow.segments.is_empty() && count <= self.spool.room_without_new_file();
        let result = if is_needed {
            self.spool.push_all(bytes);
            Ok(())
        } else {
            self.spool.push(bytes)
        };
        if has_room {
            assert_eq!((result, self.spool.tail_bytes()), (Ok(()), tail));
        }
        assert!(!fits || self.spool.memory.len() == memory + count, "what fits into memory stays there");
        self.bytes.extend_from_slice(bytes);
        if result.is_err() {
            // The first of them may have found room.
            assert!((from as u64..self.bytes.len() as u64).contains(&self.spool.len()));
            self.bytes.truncate(self.spool.len() as usize);
        }
    }

    fn settle(&mut self, need: Need, budget: &SpoolBudget, has_room: bool) {
        let tail = self.spool.tail_bytes();
        let is_unread = self.read + tail <= self.bytes.len();
        let last = self.spool.overflow.segments.back();
        let room = last.map_or(0, |last| (SEGMENT_BYTES - last.bytes) as usize);
        let new_file = if budget.is_tick_over() { 0 } else { SEGMENT_BYTES as usize };
        let settled = self.spool.settle(need);
        let still = self.spool.tail_bytes();
        if has_room && is_unread && tail > MEMORY_BYTES {
            assert_eq!(still, tail.saturating_sub(room + new_file));
        }
        assert!(is_unread || still == tail, "what is being read stays where it is");
        match settled {
            Settled::HasRoom => assert!(!self.spool.is_at_bound()),
            Settled::TickIsOver => assert!(budget.is_tick_over() && still > 0),
            Settled::NoRoom => assert!(self.spool.is_at_bound()),
        }
    }

    fn write(&mut self, sinks: &mut Sinks, to_file: bool, most: usize) {
        let tail = self.spool.tail_bytes();
        let (out, written) = sinks.write(&mut self.spool, to_file, most);
        assert!(out == self.bytes[self.read..self.read + out.len()], "in order, and as they were pushed");
        self.read += out.len();
        // A file is sent up to the bound; what stands in memory goes as one.
        let unit = MEMORY_BYTES + tail + if to_file { 16 * 1024 } else { 0 };
        assert!(out.len() <= most.saturating_add(unit));
        match written {
            Written::All => assert_eq!(self.read, self.bytes.len()),
            Written::BudgetSpent => assert!(out.len() >= most && self.read < self.bytes.len()),
            Written::PeerIsFull => assert!(!to_file && !out.is_empty()),
        }
    }

    fn forget_read(&mut self) {
        self.spool.forget_read();
        self.has_forgotten = self.spool.overflow.forgotten_bytes > 0;
        if let Some(second) = self.spool.overflow.segments.get(1) {
            assert!(
                second.start as usize + self.spool.memory.len() > self.read,
                "the first one is being read"
            );
        }
    }

    fn step(&mut self, random: &mut Random, budget: &SpoolBudget, sinks: &mut Sinks, has_room: bool) {
        match random.below(12) {
            0..4 => {
                let room = self.spool.room_without_new_file();
                let count = match random.below(10) {
                    0 => 0,
                    1 => room.min(1_200_000),
                    2 => (room + 1).min(1_200_000),
                    3 => random.below(1_300_000),
                    4..7 => random.below(40),
                    _ => random.below(2 * MEMORY_BYTES),
                };
                self.push(count, random.chance(2), budget, has_room);
            }
            4 => {
                let need = if random.chance(2) { Need::May } else { Need::Must };
                self.settle(need, budget, has_room);
            }
            5..8 => {
                let most = if random.chance(2) { random.below(1000) } else { random.below(1_000_000) };
                self.write(sinks, random.chance(2), most);
            }
            8 => {
                let bytes = random.below(self.spool.memory().len() + 1);
                self.spool.consume(bytes);
                self.read += bytes;
            }
            9 if !self.has_forgotten => {
                let most = random.below(self.bytes.len() + 20);
                assert!(self.spool.start(most) == self.bytes[..most.min(self.bytes.len())]);
                self.spool.rewind();
                self.read = 0;
            }
            10 => self.forget_read(),
            11 if random.chance(4) => {
                self.spool.clear();
                (self.bytes, self.read, self.has_forgotten) = (Vec::new(), 0, false);
            }
            _ => {}
        }
    }
}

/// What all spools hold together is what the budget says.
fn check_budget(budget: &SpoolBudget, pairs: &[Pair], others_memory: usize) {
    let memory: usize = pairs.iter().map(|pair| pair.spool.memory.len() + pair.spool.tail_bytes()).sum();
    let spooled = budget.spooled();
    assert_eq!(spooled.memory_bytes, (memory + others_memory) as u64);
    if !budget.has_leaving_files() {
        let in_files: u64 = pairs.iter().map(Pair::file_bytes).sum();
        let files: usize = pairs.iter().map(|pair| pair.spool.overflow.segments.len()).sum();
        assert_eq!((spooled.disk_bytes + spooled.memfd_bytes, budget.files()), (in_files, files));
    }
    assert!(spooled.disk_bytes <= spooled.max_disk_bytes && spooled.memfd_bytes <= budget::MAX_MEMFD_BYTES);
}

#[test]
fn spools_hold_what_was_pushed_whatever_becomes_of_the_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    for seed in 0..SEEDS {
        disk::begin();
        let mut random = Random::new(seed);
        // In every other history the folder takes everything.
        let has_room = seed % 2 == 0;
        let max_disk_bytes = if has_room { DISK } else { random.below(3_000_000) as u64 };
        let budget = SpoolBudget::new(std::env::temp_dir(), max_disk_bytes);
        let others_memory = if random.chance(3) { budget.memory_left() - 300 } else { 0 };
        budget.take_memory(others_memory);
        let mut pairs = [Pair::new(&budget), Pair::new(&budget)];
        let mut sinks = Sinks::new(dir.path());
        sinks.file_bytes = sinks.file.metadata().expect("its size").len();
        for _ in 0..STEPS {
            let pair = &mut pairs[random.below(2)];
            pair.step(&mut random, &budget, &mut sinks, has_room);
            pair.check();
            check_budget(&budget, &pairs, others_memory);
            if random.chance(3) {
                budget.end_tick(Instant::now());
                assert!(!budget.is_tick_over());
            }
            if !has_room && random.chance(6) {
                let kinds =
                    [Disk::Full, Disk::NearlyFull(2), Disk::FullFolder, Disk::Missing, Disk::NoDescriptors];
                disk::set(if random.chance(2) { Disk::Works } else { kinds[random.below(5)] });
            }
        }
        for pair in &mut pairs {
            while pair.read < pair.bytes.len() {
                pair.write(&mut sinks, false, usize::MAX);
            }
        }
        drop(pairs);
        end_ticks(&budget);
        budget.give_memory_back(others_memory);
        assert_eq!(budget.spooled(), Spooled { max_disk_bytes, ..Spooled::default() });
        assert_eq!(budget.files(), 0);
    }
    disk::begin();
}

/// Fails so often, each time otherwise, before it takes bytes.
struct Fickle {
    errors: Vec<io::ErrorKind>,
    sink: File,
}

impl Write for Fickle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.errors.pop() {
            Some(error) => Err(error.into()),
            None => self.sink.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Fickle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.sink.as_fd()
    }
}

#[test]
fn a_signal_between_is_no_failure_and_a_broken_peer_is_told_from_a_broken_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let budget = SpoolBudget::new(dir.path().to_owned(), DISK);
    // Appending, so that the kernel sends nothing from a file to it.
    let sink = || File::options().create(true).append(true).open(dir.path().join("sink")).expect("a file");
    let with = |error| Fickle { errors: vec![error], sink: sink() };
    for bytes in [100, 3000] {
        let mut spool = Spool::new(&budget);
        budget.end_tick(Instant::now());
        spool.push(&vec![b'x'; bytes]).expect("room");
        assert_eq!(spool.write_to(&mut with(io::ErrorKind::WouldBlock), 9999), Ok(Written::PeerIsFull));
        assert_eq!(spool.write_to(&mut with(io::ErrorKind::BrokenPipe), 9999), Err(Broken::Peer));
        assert_eq!(spool.unread_bytes(), bytes as u64);
        assert_eq!(spool.write_to(&mut with(io::ErrorKind::Interrupted), 9999), Ok(Written::All));
    }
    let mut spool = Spool::new(&budget);
    budget.end_tick(Instant::now());
    spool.push(&[b'x'; 3000]).expect("room");
    spool.overflow.segments[0].file.set_len(1000).expect("cut");
    assert_eq!(spool.write_to(&mut sink(), 9999), Err(Broken::Spool));
    assert!(spool.start(3000).is_empty(), "nothing that was not pushed");
}

#[test]
fn a_copied_piece_is_small_so_that_a_turn_keeps_its_share() {
    let dir = tempfile::tempdir().expect("a folder");
    let budget = SpoolBudget::new(dir.path().to_owned(), DISK);
    let mut sink = File::options().create(true).append(true).open(dir.path().join("sink")).expect("a file");
    let mut spool = Spool::new(&budget);
    spool.push(&[b'x'; 40_000]).expect("room");
    for left in [40_000 - 16_384, 40_000 - 2 * 16_384] {
        assert_eq!(spool.write_to(&mut sink, 1), Ok(Written::BudgetSpent));
        assert_eq!(spool.unread_bytes(), left);
    }
}
