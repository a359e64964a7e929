//! Bytes that wait: a request's body for its worker, an answer's for its client. In memory while they are few, then
//! in a file without a name, so that nothing is left behind whatever happens.

use super::stream::{Io, attempt};
use crate::unnamed;
use nix::libc;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

/// What one spool holds in memory before it goes to a file: nearly all forms and answers fit.
const MEMORY_BYTES: usize = if cfg!(test) { 512 } else { 64 * 1024 };
/// What all spools together hold in memory, so that many middling ones cannot fill it.
const ALL_MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// What all spools together hold in memfds, where there is no folder for temporary files.
const ALL_MEMFD_BYTES: u64 = 64 * 1024 * 1024;
/// What one spool holds in its file: beyond it, whoever writes is held back.
const FILE_BYTES: u64 = if cfg!(test) { 512 } else { 1024 * 1024 * 1024 };

/// What overflows goes to one file after another of that size, and files that are done with are closed one a turn:
/// closing one of a gigabyte takes the kernel 120 ms, one of these 2. They are never cut, since `sendfile` lends their
/// own pages to whoever reads: a slow reader would find zeros in them.
const SEGMENT_BYTES: u64 = if cfg!(test) { 1024 * 1024 } else { 16 * 1024 * 1024 };
/// Files up to that size are closed at once.
const SMALL_BYTES: u64 = 4 * 1024 * 1024;

/// What the spools share: the folder for files, and the bounds.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    memory_bytes: Cell<usize>,
    memfd_bytes: Cell<u64>,
    /// Files that nobody reads any more.
    leaving: RefCell<Vec<File>>,
}

/// How far writing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    All,
    /// The peer takes no more now; an event will tell.
    PeerIsFull,
    /// As much as a turn may take; no event will tell.
    TurnIsOver,
}

/// There is no room for these bytes: the disk, or the memfds' bound, is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Why what waits does not get to where it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The peer's end of the connection.
    Peer,
    /// The file does not give back what was written to it.
    Spool,
}

impl Room {
    /// `folder`: where temporary files are made.
    pub fn new(folder: PathBuf) -> Rc<Self> {
        Rc::new(Room {
            folder,
            memory_bytes: Cell::new(0),
            memfd_bytes: Cell::new(0),
            leaving: RefCell::default(),
        })
    }

    /// Whether files are still to be closed.
    pub fn has_leaving_files(&self) -> bool {
        !self.leaving.borrow().is_empty()
    }

    pub fn close_a_file(&self) {
        self.leaving.borrow_mut().pop();
    }
}

/// A row of bytes with a reading position. What has been read can be read again after [`Spool::rewind`], until
/// [`Spool::clear`].
#[derive(Debug)]
pub struct Spool {
    room: Rc<Room>,
    memory: Vec<u8>,
    overflow: Overflow,
    read_bytes: u64,
}

/// What is not in memory: files of [`SEGMENT_BYTES`] each, but for the last.
#[derive(Debug, Default)]
struct Overflow {
    segments: Vec<File>,
    bytes: u64,
    /// Of these in memfds.
    memfd_bytes: u64,
    /// The last file is one.
    is_memfd: bool,
}

impl Overflow {
    /// The file in which the byte `at` stands, where in it, and how many bytes from there on fit into it.
    fn locate(&self, at: u64) -> (Option<&File>, u64, u64) {
        let index = usize::try_from(at / SEGMENT_BYTES).unwrap_or(usize::MAX);
        let offset = at % SEGMENT_BYTES;
        (self.segments.get(index), offset, SEGMENT_BYTES - offset)
    }
}

impl Spool {
    pub fn new(room: &Rc<Room>) -> Self {
        Spool { room: room.clone(), memory: Vec::new(), overflow: Overflow::default(), read_bytes: 0 }
    }

    /// All bytes, read or not.
    pub fn len(&self) -> u64 {
        self.memory.len() as u64 + self.overflow.bytes
    }

    /// Everything has been read.
    pub fn is_read(&self) -> bool {
        self.read_bytes == self.len()
    }

    pub fn unread_bytes(&self) -> u64 {
        self.len() - self.read_bytes
    }

    /// No more should be written before some has been read.
    pub fn is_at_bound(&self) -> bool {
        self.overflow.bytes >= FILE_BYTES
    }

    /// The unread part that stands in memory.
    pub fn memory(&self) -> &[u8] {
        let from = usize::try_from(self.read_bytes).unwrap_or(usize::MAX).min(self.memory.len());
        &self.memory[from..]
    }

    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.is_empty() {
            return Ok(());
        }
        let all = self.room.memory_bytes.get();
        let fits = self.memory.len() + bytes.len() <= MEMORY_BYTES && all + bytes.len() <= ALL_MEMORY_BYTES;
        if self.overflow.segments.is_empty() && fits {
            self.memory.extend_from_slice(bytes);
            self.room.memory_bytes.set(all + bytes.len());
            return Ok(());
        }
        let mut left = bytes;
        while !left.is_empty() {
            left = self.push_to_file(left)?;
        }
        Ok(())
    }

    /// Adds what fits into the last file, which is opened where it is not there yet; the rest is for another one.
    fn push_to_file<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Full> {
        if self.overflow.bytes == self.overflow.segments.len() as u64 * SEGMENT_BYTES {
            let (file, is_memfd) = unnamed::open(&self.room.folder).map_err(|_| Full)?;
            self.overflow.segments.push(file);
            self.overflow.is_memfd = is_memfd;
        }
        let (file, offset, fitting) = self.overflow.locate(self.overflow.bytes);
        let fitting = usize::try_from(fitting).map_or(bytes.len(), |fitting| fitting.min(bytes.len()));
        let (piece, rest) = bytes.split_at(fitting);
        let in_memfds = self.room.memfd_bytes.get() + piece.len() as u64;
        if self.overflow.is_memfd && in_memfds > ALL_MEMFD_BYTES {
            return Err(Full);
        }
        file.ok_or(Full)?.write_all_at(piece, offset).map_err(|_| Full)?;
        self.overflow.bytes += piece.len() as u64;
        if self.overflow.is_memfd {
            self.overflow.memfd_bytes += piece.len() as u64;
            self.room.memfd_bytes.set(in_memfds);
        }
        Ok(rest)
    }

    /// Reads again from the start.
    pub fn rewind(&mut self) {
        self.read_bytes = 0;
    }

    /// Forgets everything, and gives memory and file back.
    pub fn clear(&mut self) {
        self.room.memory_bytes.set(self.room.memory_bytes.get() - self.memory.len());
        self.memory = Vec::new();
        let Overflow { segments, bytes, memfd_bytes, .. } = std::mem::take(&mut self.overflow);
        self.room.memfd_bytes.set(self.room.memfd_bytes.get() - memfd_bytes);
        if bytes > SMALL_BYTES {
            self.room.leaving.borrow_mut().extend(segments);
        }
        self.read_bytes = 0;
    }

    /// Marks bytes of [`Spool::memory`] as read.
    pub fn consume(&mut self, bytes: usize) {
        self.read_bytes += bytes as u64;
        debug_assert!(self.read_bytes <= self.len());
    }

    /// Writes unread bytes until all are out, the peer takes no more, or a turn's `most_bytes` are out: a peer that
    /// takes them as fast as they come would keep everybody else waiting for as long as a gigabyte takes.
    ///
    /// # Errors
    /// Which side is broken.
    pub fn write_to<S: Write + AsFd>(
        &mut self,
        stream: &mut S,
        most_bytes: usize,
    ) -> Result<Written, Broken> {
        let bound = self.read_bytes.saturating_add(most_bytes as u64);
        while !self.is_read() {
            if self.read_bytes >= bound {
                return Ok(Written::TurnIsOver);
            }
            let memory = self.memory();
            let memory_is_read = memory.is_empty();
            let result = if memory_is_read {
                self.send_file(stream, bound - self.read_bytes)
            } else {
                stream.write_vectored(&[IoSlice::new(memory)]).map(|bytes| bytes as u64)
            };
            match result {
                Ok(bytes @ 1..) => self.read_bytes += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Written::PeerIsFull);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) if memory_is_read => {
                    if !self.copy_piece(stream)? {
                        return Ok(Written::PeerIsFull);
                    }
                }
                Ok(0) | Err(_) => return Err(Broken::Peer),
            }
        }
        Ok(Written::All)
    }

    /// The kernel moves the bytes from the page cache to the socket; they are not copied here.
    fn send_file<S: AsFd>(&mut self, stream: &S, most_bytes: u64) -> io::Result<u64> {
        let from = self.read_bytes - self.memory.len() as u64;
        let (Some(file), offset, fitting) = self.overflow.locate(from) else { return Ok(0) };
        let count = (self.overflow.bytes - from).min(fitting).min(most_bytes);
        let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let sent = nix::sys::sendfile::sendfile(stream, file, Some(&mut offset), count as usize)?;
        Ok(sent as u64)
    }

    /// After a `sendfile` that failed: the same by hand, for a file system that has no such call, and to learn whose
    /// fault it is. `false`: the peer takes no more now.
    fn copy_piece<S: Write>(&mut self, stream: &mut S) -> Result<bool, Broken> {
        const PIECE_BYTES: u64 = 16 * 1024;
        let from = self.read_bytes - self.memory.len() as u64;
        let (Some(file), offset, fitting) = self.overflow.locate(from) else { return Err(Broken::Spool) };
        let mut piece = vec![0; (self.overflow.bytes - from).min(fitting).min(PIECE_BYTES) as usize];
        file.read_exact_at(&mut piece, offset).map_err(|_| Broken::Spool)?;
        match attempt(|| stream.write(&piece)) {
            Io::Bytes(bytes) => {
                self.read_bytes += bytes as u64;
                Ok(true)
            }
            Io::Later => Ok(false),
            Io::End | Io::Gone => Err(Broken::Peer),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn read_back(spool: &mut Spool) -> Vec<u8> {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all)
        });
        while spool.write_to(&mut ours, 70_000).expect("written") != Written::All {}
        drop(ours);
        reader.join().expect("no panic").expect("read")
    }

    #[test]
    fn bytes_come_back_in_order_from_memory_file_and_memfd() {
        for folder in [std::env::temp_dir(), PathBuf::from("/nonexistent")] {
            let room = Room::new(folder);
            let mut spool = Spool::new(&room);
            let all: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
            for part in all.chunks(50_000) {
                spool.push(part).expect("room");
            }
            assert_eq!(read_back(&mut spool), all);
            spool.rewind();
            assert_eq!(read_back(&mut spool), all);
            drop(spool);
            assert_eq!((room.memory_bytes.get(), room.memfd_bytes.get()), (0, 0));
        }
    }

    #[test]
    fn a_turn_writes_no_more_than_its_share() {
        let room = Room::new(std::env::temp_dir());
        let mut spool = Spool::new(&room);
        spool.push(&[b'x'; 10_000]).expect("room");
        let mut out = File::create("/dev/null").expect("a sink");
        assert_eq!(spool.write_to(&mut out, 4096), Ok(Written::TurnIsOver));
        assert!(spool.unread_bytes() < 10_000 && !spool.is_read());
        while spool.write_to(&mut out, 4096) != Ok(Written::All) {}
    }

    #[test]
    fn files_of_a_large_spool_are_closed_one_by_one_and_a_reader_loses_nothing() {
        const BYTES: usize = 5 * 1024 * 1024 + 1;
        let room = Room::new(std::env::temp_dir());
        let mut spool = Spool::new(&room);
        spool.push(&vec![b'x'; BYTES]).expect("room");
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("an option");
        assert_eq!(spool.write_to(&mut ours, usize::MAX), Ok(Written::PeerIsFull));
        let sent_bytes = BYTES as u64 - spool.unread_bytes();
        drop((spool, ours));
        let mut files = 0;
        while room.has_leaving_files() {
            room.close_a_file();
            files += 1;
        }
        assert_eq!(files, 6, "five whole ones and the rest");
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).expect("read");
        assert_eq!(read.len() as u64, sent_bytes);
        assert!(read.iter().all(|byte| *byte == b'x'), "its pages are lent to whoever reads");
    }

    #[test]
    fn memfds_together_have_a_bound() {
        let room = Room::new(PathBuf::from("/nonexistent"));
        let mut spool = Spool::new(&room);
        let part = vec![0; 8 * 1024 * 1024];
        let pushed = (0..10).take_while(|_| spool.push(&part).is_ok()).count();
        assert_eq!(pushed, 8);
        assert!(Spool::new(&room).push(b"small ones fit into memory").is_ok());
    }
}
