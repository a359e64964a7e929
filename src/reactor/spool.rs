//! Bytes that wait: a request's body for its worker, an answer's for its client. In memory while they are few, then
//! in a file without a name, so that nothing is left behind whatever happens.

use super::stream::{Io, attempt};
use crate::unnamed;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Write;
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

/// A file is given back in pieces of that size, one a turn: a whole gigabyte at once takes the kernel 120 ms, a piece
/// half a millisecond.
const LEAVING_PIECE_BYTES: u64 = if cfg!(test) { 10_000 } else { 4 * 1024 * 1024 };

/// Read from a file at once.
const COPIED_BYTES: usize = 64 * 1024;

/// What the spools share: the folder for files, and the bounds.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    memory_bytes: Cell<usize>,
    memfd_bytes: Cell<u64>,
    /// What is on its way from a file to a socket.
    piece: RefCell<Vec<u8>>,
    /// Files that nobody reads any more, with what is left of them.
    leaving: RefCell<Vec<(File, u64)>>,
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
            piece: RefCell::default(),
            leaving: RefCell::default(),
        })
    }

    /// Whether files are still to be given back.
    pub fn has_leaving_files(&self) -> bool {
        !self.leaving.borrow().is_empty()
    }

    /// Gives a piece of a file back.
    pub fn give_back_a_piece(&self) {
        let mut leaving = self.leaving.borrow_mut();
        let Some((file, bytes)) = leaving.last_mut() else { return };
        *bytes = bytes.saturating_sub(LEAVING_PIECE_BYTES);
        // A file that cannot be cut goes whole.
        if *bytes == 0 || file.set_len(*bytes).is_err() {
            leaving.pop();
        }
    }
}

/// A row of bytes with a reading position. What has been read can be read again after [`Spool::rewind`], until
/// [`Spool::clear`].
#[derive(Debug)]
pub struct Spool {
    room: Rc<Room>,
    memory: Vec<u8>,
    file: Option<Overflow>,
    read_bytes: u64,
}

#[derive(Debug)]
struct Overflow {
    file: File,
    bytes: u64,
    is_memfd: bool,
}

impl Spool {
    pub fn new(room: &Rc<Room>) -> Self {
        Spool { room: room.clone(), memory: Vec::new(), file: None, read_bytes: 0 }
    }

    /// All bytes, read or not.
    pub fn len(&self) -> u64 {
        self.memory.len() as u64 + self.file.as_ref().map_or(0, |file| file.bytes)
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
        self.file.as_ref().is_some_and(|file| file.bytes >= FILE_BYTES)
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
        if self.file.is_none() && fits {
            self.memory.extend_from_slice(bytes);
            self.room.memory_bytes.set(all + bytes.len());
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let (file, is_memfd) = unnamed::open(&self.room.folder).map_err(|_| Full)?;
                self.file.insert(Overflow { file, bytes: 0, is_memfd })
            }
        };
        if file.is_memfd {
            let all = self.room.memfd_bytes.get() + bytes.len() as u64;
            if all > ALL_MEMFD_BYTES {
                return Err(Full);
            }
            self.room.memfd_bytes.set(all);
        }
        let written = file.file.write_all_at(bytes, file.bytes);
        // Counted even after a failure, so that what was reserved is given back with the rest.
        file.bytes += if written.is_ok() || file.is_memfd { bytes.len() as u64 } else { 0 };
        written.map_err(|_| Full)
    }

    /// Reads again from the start.
    pub fn rewind(&mut self) {
        self.read_bytes = 0;
    }

    /// Forgets everything, and gives memory and file back.
    pub fn clear(&mut self) {
        self.room.memory_bytes.set(self.room.memory_bytes.get() - self.memory.len());
        self.memory = Vec::new();
        match self.file.take() {
            Some(Overflow { bytes, is_memfd: true, .. }) => {
                self.room.memfd_bytes.set(self.room.memfd_bytes.get() - bytes);
            }
            Some(Overflow { file, bytes, is_memfd: false }) if bytes > LEAVING_PIECE_BYTES => {
                self.room.leaving.borrow_mut().push((file, bytes));
            }
            Some(_) | None => {}
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
    pub fn write_to<S: Write>(&mut self, stream: &mut S, most_bytes: usize) -> Result<Written, Broken> {
        let bound = self.read_bytes.saturating_add(most_bytes as u64);
        while !self.is_read() {
            if self.read_bytes >= bound {
                return Ok(Written::TurnIsOver);
            }
            let memory = self.memory();
            let bytes = if memory.is_empty() {
                self.copy_piece(stream, bound - self.read_bytes)?
            } else {
                match attempt(|| stream.write(memory)) {
                    Io::Bytes(bytes) => bytes,
                    Io::Later => 0,
                    Io::End | Io::Gone => return Err(Broken::Peer),
                }
            };
            if bytes == 0 {
                return Ok(Written::PeerIsFull);
            }
            self.read_bytes += bytes as u64;
        }
        Ok(Written::All)
    }

    /// Passes a piece of the file on; its size, 0 where the peer takes no more now. By hand, not by `sendfile`: that
    /// lends the file's own pages to whoever reads, and what is cut off a file then reaches a slow reader as zeros.
    fn copy_piece<S: Write>(&mut self, stream: &mut S, most_bytes: u64) -> Result<usize, Broken> {
        let Some(file) = &self.file else { return Err(Broken::Spool) };
        let from = self.read_bytes - self.memory.len() as u64;
        let mut piece = self.room.piece.borrow_mut();
        piece.resize(COPIED_BYTES, 0);
        let bytes = (file.bytes - from).min(most_bytes).min(COPIED_BYTES as u64) as usize;
        let piece = &mut piece[..bytes];
        file.file.read_exact_at(piece, from).map_err(|_| Broken::Spool)?;
        match attempt(|| stream.write(piece)) {
            Io::Bytes(bytes) => Ok(bytes),
            Io::Later => Ok(0),
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
            let all: Vec<u8> = (0..300_000u32).map(|number| number as u8).collect();
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
    fn a_large_file_is_given_back_in_pieces() {
        let room = Room::new(std::env::temp_dir());
        let mut spool = Spool::new(&room);
        spool.push(&vec![b'x'; 2 * LEAVING_PIECE_BYTES as usize + 1]).expect("room");
        drop(spool);
        let mut pieces = 0;
        while room.has_leaving_files() {
            room.give_back_a_piece();
            pieces += 1;
        }
        assert_eq!(pieces, 3, "two whole ones and the rest");
    }

    #[test]
    fn what_a_reader_has_not_read_yet_stays_what_it_was() {
        let room = Room::new(std::env::temp_dir());
        let mut spool = Spool::new(&room);
        let all = vec![b'x'; 50_001];
        spool.push(&all).expect("room");
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        assert_eq!(spool.write_to(&mut ours, usize::MAX), Ok(Written::All));
        drop((spool, ours));
        while room.has_leaving_files() {
            room.give_back_a_piece();
        }
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).expect("read");
        assert!(read == all, "cut off the file, and off what was on its way");
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
