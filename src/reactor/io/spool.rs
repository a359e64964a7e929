//! Bytes that wait: a request's body for its worker, an answer's for its client. In memory while they are few, then
//! in a file without a name, so that nothing is left behind whatever happens.

mod budget;

use super::stream::{Transfer, attempt};
pub(crate) use budget::SpoolBudget;
#[cfg(any(test, fuzzing))]
use budget::Spooled;
use budget::{NoRoom, Segment};
use nix::libc;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// What one spool holds in memory before it goes to a file: nearly all forms and answers fit.
const MEMORY_BYTES: usize = if cfg!(any(test, fuzzing)) { 512 } else { 64 * 1024 };
/// What one spool holds in its files: beyond it, whoever writes is held back.
const FILE_BYTES: u64 = if cfg!(any(test, fuzzing)) { 512 } else { 1024 * 1024 * 1024 };

/// What overflows goes to one file after another of that size, and files that are done with are closed one a tick:
/// closing one of a gigabyte takes the kernel 120 ms, one of these 2. They are never cut, since `sendfile` lends their
/// own pages to whoever reads: a slow reader would find zeros in them.
const SEGMENT_BYTES: u64 = if cfg!(any(test, fuzzing)) { 1024 * 1024 } else { 16 * 1024 * 1024 };

/// How far writing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    All,
    /// The peer takes no more now; an event will tell.
    PeerIsFull,
    /// As much as a tick may take; no event will tell.
    BudgetSpent,
}

/// There is no room for these bytes: the disk, `--max-spool` or the memfds' bound is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Why what waits does not get to where it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The peer's end of the connection.
    Peer,
    /// The same, by a reset.
    Reset,
    /// The file does not give back what was written to it.
    Spool,
}

/// Whether bytes can be refused where the folder has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A body: its client gets 503.
    May,
    /// An answer, whose head may be out: memory stands in, as far as it goes.
    Must,
}

/// Whether a spool takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// All of it lies where it should, and there is room for more.
    HasRoom,
    /// So many files have been made in this tick: there may be room in the next.
    TickIsOver,
    /// There is no room, or the spool is at its own bound.
    NoRoom,
}

/// A row of bytes with a reading position. What has been read can be read again after [`Spool::rewind`], until
/// [`Spool::clear`] or [`Spool::forget_read`].
#[derive(Debug)]
pub(crate) struct Spool {
    budget: Rc<SpoolBudget>,
    memory: Vec<u8>,
    overflow: Overflow,
    /// Stands behind the files, and found no room in them. Whoever writes is held back while there is any.
    tail: Vec<u8>,
    read_bytes: u64,
}

/// What is not in memory: files of at most [`SEGMENT_BYTES`] each.
#[derive(Debug, Default)]
struct Overflow {
    segments: VecDeque<Segment>,
    /// All that was ever written to them.
    bytes: u64,
    /// Of these in files that are given back already.
    forgotten_bytes: u64,
}

impl Overflow {
    /// The file in which the byte `at` stands, where in it, and how many bytes stand there from that one on.
    fn locate(&self, at: u64) -> (Option<&File>, u64, u64) {
        match self.segments.iter().rev().find(|segment| segment.start <= at) {
            Some(segment) => {
                let offset = at - segment.start;
                (Some(&segment.file), offset, segment.bytes.saturating_sub(offset))
            }
            None => (None, 0, 0),
        }
    }
}

impl Spool {
    pub(crate) fn new(budget: &Rc<SpoolBudget>) -> Self {
        Spool {
            budget: budget.clone(),
            memory: Vec::new(),
            overflow: Overflow::default(),
            tail: Vec::new(),
            read_bytes: 0,
        }
    }

    /// All bytes, read or not.
    pub(crate) fn len(&self) -> u64 {
        self.before_tail() + self.tail.len() as u64
    }

    fn before_tail(&self) -> u64 {
        self.memory.len() as u64 + self.overflow.bytes
    }

    /// Everything has been read.
    pub(crate) fn is_read(&self) -> bool {
        self.read_bytes == self.len()
    }

    pub(crate) fn unread_bytes(&self) -> u64 {
        self.len() - self.read_bytes
    }

    /// No more should be written before some has been read, or has found room.
    pub(crate) fn is_at_bound(&self) -> bool {
        !self.tail.is_empty() || self.overflow.bytes - self.overflow.forgotten_bytes >= FILE_BYTES
    }

    /// How many bytes surely need no file that is not there yet.
    pub(crate) fn room_without_new_file(&self) -> usize {
        if !self.tail.is_empty() {
            return 0;
        }
        match self.overflow.segments.back() {
            Some(last) => usize::try_from(SEGMENT_BYTES - last.bytes).unwrap_or(usize::MAX),
            None => MEMORY_BYTES.saturating_sub(self.memory.len()).min(self.budget.memory_left()),
        }
    }

    /// Something waits in memory for a file.
    pub(crate) fn has_tail(&self) -> bool {
        !self.tail.is_empty()
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail.len()
    }

    /// The first bytes, read or not: as many as there are, `most` at most. Fewer where the file does not give them back.
    pub(crate) fn start(&self, most: usize) -> Vec<u8> {
        let mut start = Vec::with_capacity(most.min(usize::try_from(self.len()).unwrap_or(most)));
        start.extend_from_slice(&self.memory[..self.memory.len().min(most)]);
        for segment in &self.overflow.segments {
            let bytes = usize::try_from(segment.bytes).unwrap_or(most).min(most - start.len());
            let from = start.len();
            start.resize(from + bytes, 0);
            if segment.file.read_exact_at(&mut start[from..], 0).is_err() {
                start.truncate(from);
                return start;
            }
        }
        let bytes = self.tail.len().min(most - start.len());
        start.extend_from_slice(&self.tail[..bytes]);
        start
    }

    /// The unread part that stands in memory.
    pub(crate) fn memory(&self) -> &[u8] {
        let from = usize::try_from(self.read_bytes).unwrap_or(usize::MAX).min(self.memory.len());
        &self.memory[from..]
    }

    /// Adds bytes. Where only the tick's files are used up, they wait in memory until [`Spool::settle`].
    ///
    /// # Errors
    /// There is no room for them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Full> {
        match self.push_where_room_is(bytes, Need::May) {
            (_, Some(NoRoom::Full)) => Err(Full),
            (remaining, Some(NoRoom::TickIsOver) | None) => {
                self.keep_in_tail(remaining);
                Ok(())
            }
        }
    }

    /// Adds bytes, all of them. What finds no room waits in memory, so whoever writes must then be held back.
    pub(crate) fn push_all(&mut self, bytes: &[u8]) {
        let (remaining, _) = self.push_where_room_is(bytes, Need::Must);
        self.keep_in_tail(remaining);
    }

    /// Looks again for room for what waits in memory for want of it.
    pub(crate) fn settle(&mut self, need: Need) -> Settled {
        let is_unread = self.read_bytes <= self.before_tail();
        if !self.tail.is_empty() && is_unread {
            let tail = std::mem::take(&mut self.tail);
            self.budget.give_memory_back(tail.len());
            let (remaining, why) = self.push_where_room_is(&tail, need);
            self.keep_in_tail(remaining);
            if why == Some(NoRoom::TickIsOver) {
                return Settled::TickIsOver;
            }
        }
        if self.is_at_bound() { Settled::NoRoom } else { Settled::HasRoom }
    }

    fn keep_in_tail(&mut self, bytes: &[u8]) {
        self.budget.take_memory(bytes.len());
        self.tail.extend_from_slice(bytes);
    }

    /// Adds what finds room; the rest, and why it found none.
    fn push_where_room_is<'a>(&mut self, bytes: &'a [u8], need: Need) -> (&'a [u8], Option<NoRoom>) {
        if bytes.is_empty() || !self.tail.is_empty() {
            return (bytes, None);
        }
        let fits =
            self.memory.len() + bytes.len() <= MEMORY_BYTES && bytes.len() <= self.budget.memory_left();
        if self.overflow.bytes == 0 && fits {
            self.memory.extend_from_slice(bytes);
            self.budget.take_memory(bytes.len());
            return (&[], None);
        }
        let mut left = bytes;
        while !left.is_empty() {
            match self.push_to_file(left, need) {
                Ok(remaining) => left = remaining,
                Err(why) => return (left, Some(why)),
            }
        }
        (&[], None)
    }

    /// Adds what fits into the last file, which is opened where it is not there yet; the rest is for another one.
    fn push_to_file<'a>(&mut self, bytes: &'a [u8], need: Need) -> Result<&'a [u8], NoRoom> {
        let start = self.overflow.bytes;
        if self.overflow.segments.back().is_none_or(|last| last.bytes >= SEGMENT_BYTES) {
            let segment = match (self.budget.open(start), need) {
                (Err(NoRoom::Full), Need::Must) => self.budget.open_in_memory(start)?,
                (opened, _) => opened?,
            };
            self.overflow.segments.push_back(segment);
        }
        let Some(last) = self.overflow.segments.back_mut() else { return Err(NoRoom::Full) };
        let fitting = usize::try_from(SEGMENT_BYTES - last.bytes).unwrap_or(usize::MAX).min(bytes.len());
        let (piece, remaining) = bytes.split_at(fitting);
        match (self.budget.append(last, piece), need) {
            (Err(NoRoom::Full), Need::Must) => {
                // Memory stands in for the folder, and the folder for memory when it has room again.
                let was_memfd = last.is_memfd;
                let mut segment =
                    if was_memfd { self.budget.open(start)? } else { self.budget.open_in_memory(start)? };
                let appended = match segment.is_memfd && was_memfd {
                    true => Err(NoRoom::Full),
                    false => self.budget.append(&mut segment, piece),
                };
                if let Err(why) = appended {
                    self.budget.give_file_back(segment);
                    return Err(why);
                }
                self.overflow.segments.push_back(segment);
            }
            (appended, _) => appended?,
        }
        self.overflow.bytes += piece.len() as u64;
        Ok(remaining)
    }

    /// Reads again from the start.
    pub(crate) fn rewind(&mut self) {
        debug_assert_eq!(self.overflow.forgotten_bytes, 0, "forgotten bytes cannot be read again");
        self.read_bytes = 0;
    }

    /// Forgets everything, and gives memory and files back.
    pub(crate) fn clear(&mut self) {
        self.budget.give_memory_back(self.memory.len() + self.tail.len());
        self.memory = Vec::new();
        self.tail = Vec::new();
        for segment in std::mem::take(&mut self.overflow).segments {
            self.budget.give_file_back(segment);
        }
        self.read_bytes = 0;
    }

    /// Gives back the files that have been read to their end. They cannot be read again.
    pub(crate) fn forget_read(&mut self) {
        let Some(read_bytes) = self.read_bytes.checked_sub(self.memory.len() as u64) else { return };
        // The last one may still be written to.
        while self.overflow.segments.get(1).is_some_and(|next| next.start <= read_bytes)
            && let Some(segment) = self.overflow.segments.pop_front()
        {
            self.overflow.forgotten_bytes = segment.start + segment.bytes;
            self.budget.give_file_back(segment);
        }
    }

    /// Marks bytes of [`Spool::memory`] as read.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.read_bytes += bytes as u64;
        debug_assert!(self.read_bytes <= self.len());
    }

    /// The next unread bytes, where they stand in memory: before the files or behind them.
    fn unread_in_memory(&self) -> &[u8] {
        match self.read_bytes.checked_sub(self.before_tail()) {
            Some(from) => &self.tail[usize::try_from(from).unwrap_or(usize::MAX).min(self.tail.len())..],
            None => self.memory(),
        }
    }

    /// Writes unread bytes until all are out, the peer takes no more, or a tick's `most_bytes` are out: a peer that
    /// takes them as fast as they come would keep everybody else waiting for as long as a gigabyte takes.
    ///
    /// # Errors
    /// Which side is broken.
    pub(crate) fn write_to<S: Write + AsFd>(
        &mut self,
        stream: &mut S,
        most_bytes: usize,
    ) -> Result<Written, Broken> {
        let bound = self.read_bytes.saturating_add(most_bytes as u64);
        while !self.is_read() {
            if self.read_bytes >= bound {
                return Ok(Written::BudgetSpent);
            }
            let memory = self.unread_in_memory();
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
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Broken::Reset),
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
    fn send_file<S: Write + AsFd>(&mut self, stream: &mut S, most_bytes: u64) -> io::Result<u64> {
        let from = self.read_bytes - self.memory.len() as u64;
        let (Some(file), offset, fitting) = self.overflow.locate(from) else { return Ok(0) };
        let count = (self.overflow.bytes - from).min(fitting).min(most_bytes);
        let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        #[cfg(any(test, fuzzing))]
        if crate::reactor::simulation::wire::is_scripted(stream.as_fd()) {
            return crate::reactor::simulation::wire::sendfile(stream, file, offset as u64, count);
        }
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
            Transfer::Bytes(bytes) => {
                self.read_bytes += bytes as u64;
                Ok(true)
            }
            Transfer::Later => Ok(false),
            Transfer::End | Transfer::Gone => Err(Broken::Peer),
            Transfer::Reset => Err(Broken::Reset),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests;
