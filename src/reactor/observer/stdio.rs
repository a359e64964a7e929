//! Standard output, the log file and standard error, written without ever stopping the loop.
//!
//! What each of them is is asked once. A file is written to; a socket gets `send` with `MSG_DONTWAIT`; a pipe or a
//! terminal is opened anew, for a description of our own that may be non-blocking (O_NONBLOCK on the inherited one
//! would be shared with the shell); where that can't be had, the kernel is asked before each small write.

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::Duration;

/// What waits for a reader that does not read; beyond it, lines are dropped and counted.
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// At most so much in one write where a write might block: POSIX promises that a pipe that polls writable takes it.
const PIPE_BYTES: usize = 4096;

/// One of the outputs.
#[derive(Debug)]
pub(super) struct Output {
    way: Way,
    waiting: Vec<u8>,
    /// The last write found no room; an event will tell when there is some.
    is_full: bool,
    dropped_lines: u64,
    /// All that were ever dropped, for the metrics.
    all_dropped_lines: u64,
    /// The last byte written was none that ends a line.
    is_in_line: bool,
    health: Health,
}

/// Whether it can be written to.
#[derive(Debug)]
enum Health {
    Well,
    /// The last write failed with an error that may pass.
    Failing(io::Error),
    /// The same, and it has been told.
    KnownToFail,
}

/// What is to be told of an output.
#[derive(Debug)]
pub(super) enum News {
    Failing(io::Error),
    /// Its reader will never come back.
    Gone(io::Error),
    /// So many lines were dropped while it failed or nobody read it.
    Dropped(u64),
}

#[derive(Debug)]
enum Way {
    File(File),
    Socket(OwnedFd),
    /// A description of our own, non-blocking, watched by the reactor.
    Embedded(File),
    /// Shared with others, so asked before each write.
    Shared(OwnedFd),
    /// Its reader has gone: what is for it is dropped and counted.
    Gone,
    /// Was closed from the start: nobody wants to have anything.
    Closed,
}

impl Way {
    /// By what a file is that is open for this alone, and non-blocking.
    fn of_own(file: File) -> Self {
        let is_plain = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if is_plain { Way::File(file) } else { Way::Embedded(file) }
    }
}

impl Output {
    /// `fd` is 1 or 2, duplicated.
    pub(super) fn new(fd: OwnedFd, number: u8) -> Self {
        let file = File::from(fd);
        let kind = file.metadata().map(|metadata| metadata.file_type());
        let way = match kind {
            Ok(kind) if kind.is_socket() => Way::Socket(file.into()),
            Ok(kind) if kind.is_fifo() || kind.is_char_device() => {
                let own = OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
                    .open(format!("/proc/self/fd/{number}"));
                match own {
                    Ok(own) => Way::Embedded(own),
                    Err(_) => Way::Shared(file.into()),
                }
            }
            Ok(_) => Way::File(file),
            Err(_) => Way::Closed,
        };
        Output::through(way)
    }

    /// A file that was opened for this alone, without waiting.
    pub(super) fn to(file: File) -> Self {
        Output::through(Way::of_own(file))
    }

    /// Goes on in another file. A line that was begun in the old one has no rest in the new one.
    pub(super) fn go_on_in(&mut self, file: File) {
        if std::mem::take(&mut self.is_in_line) {
            let behind = memchr::memchr(b'\n', &self.waiting).map_or(self.waiting.len(), |end| end + 1);
            let lost: Vec<u8> = self.waiting.drain(..behind).collect();
            self.count_dropped(&lost);
        }
        self.way = Way::of_own(file);
        self.is_full = false;
        self.health = Health::Well;
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn closed() -> Self {
        Output::through(Way::Closed)
    }

    fn through(way: Way) -> Self {
        Output {
            way,
            waiting: Vec::new(),
            is_full: false,
            dropped_lines: 0,
            all_dropped_lines: 0,
            is_in_line: false,
            health: Health::Well,
        }
    }

    /// Watches it for room, where that can be watched; registered once, edge-triggered.
    pub(super) fn register(&self, registry: &Registry, token: Token) {
        let fd = match &self.way {
            Way::Embedded(file) => file.as_raw_fd(),
            Way::Socket(fd) => fd.as_raw_fd(),
            Way::File(_) | Way::Shared(_) | Way::Gone | Way::Closed => return,
        };
        // What epoll refuses (/dev/null) never lacks room.
        let _ = registry.register(&mut SourceFd(&fd), token, Interest::WRITABLE);
    }

    /// An event says that there is room.
    pub(super) fn has_room(&mut self) {
        self.is_full = false;
    }

    /// Whether a look by the clock is needed: something waits, and no event will tell of room.
    pub(super) fn needs_clock(&self) -> bool {
        !self.waiting.is_empty() && matches!(self.way, Way::Shared(_))
    }

    /// There is nothing to write, and nothing to tell of it.
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.dropped_lines == 0 && !matches!(self.health, Health::Failing(_))
    }

    pub(super) fn all_dropped_lines(&self) -> u64 {
        self.all_dropped_lines
    }

    /// Takes whole lines, or none of them where too much waits already.
    pub(super) fn push(&mut self, lines: &[u8]) {
        if matches!(self.way, Way::Closed) || lines.is_empty() {
            return;
        }
        let is_full = self.waiting.len() + lines.len() > MAX_WAITING_BYTES;
        if is_full || matches!(self.way, Way::Gone) {
            self.count_dropped(lines);
        } else {
            self.waiting.extend_from_slice(lines);
        }
    }

    fn count_dropped(&mut self, lines: &[u8]) {
        let count = memchr::memchr_iter(b'\n', lines).count() as u64;
        self.dropped_lines += count;
        self.all_dropped_lines += count;
    }

    /// What is new about it: that it fails, or how many lines were dropped, once it can be written to again.
    pub(super) fn news(&mut self) -> Option<News> {
        match std::mem::replace(&mut self.health, Health::KnownToFail) {
            Health::Failing(error) if matches!(self.way, Way::Gone) => Some(News::Gone(error)),
            Health::Failing(error) => Some(News::Failing(error)),
            Health::KnownToFail => None,
            Health::Well => {
                self.health = Health::Well;
                let is_due = self.dropped_lines > 0 && self.waiting.is_empty();
                is_due.then(|| News::Dropped(std::mem::take(&mut self.dropped_lines)))
            }
        }
    }

    /// What to ask for room: something waits for a reader, who may come to it. A file has room, or fails at once.
    fn full(&self) -> Option<BorrowedFd<'_>> {
        if self.waiting.is_empty() || !matches!(self.health, Health::Well) {
            return None;
        }
        match &self.way {
            Way::Embedded(file) => Some(file.as_fd()),
            Way::Socket(fd) | Way::Shared(fd) => Some(fd.as_fd()),
            Way::File(_) | Way::Gone | Way::Closed => None,
        }
    }

    /// Nothing is written any more: what waits is dropped. How many lines were, as far as nobody has been told.
    pub(super) fn give_up(&mut self) -> u64 {
        let lost = std::mem::take(&mut self.waiting);
        self.count_dropped(&lost);
        let dropped = std::mem::take(&mut self.dropped_lines);
        // That all of its lines are dropped was said when its reader went.
        if matches!(self.way, Way::Gone) { 0 } else { dropped }
    }

    /// A line was begun, and its rest may never come.
    pub(super) fn is_in_line(&self) -> bool {
        self.is_in_line
    }

    /// Writes what can be written without waiting.
    pub(super) fn flush(&mut self) {
        while !self.waiting.is_empty() && !self.is_full {
            let result = match &mut self.way {
                Way::File(file) | Way::Embedded(file) => file.write(&self.waiting),
                Way::Socket(fd) => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    send(fd.as_raw_fd(), &self.waiting, flags).map_err(io::Error::from)
                }
                Way::Shared(fd) => write_if_ready(fd, &self.waiting),
                Way::Gone | Way::Closed => {
                    return self.waiting.clear();
                }
            };
            match result {
                Ok(written) => {
                    let last = written.checked_sub(1).and_then(|last| self.waiting.get(last));
                    self.is_in_line = last.map_or(self.is_in_line, |byte| *byte != b'\n');
                    self.health = Health::Well;
                    self.waiting.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_full = !matches!(self.way, Way::Shared(_));
                    return;
                }
                Err(error) if self.may_recover(&error) => return self.lose(error),
                // `| head` has gone: that is no end.
                Err(error) => {
                    let lost = std::mem::take(&mut self.waiting);
                    self.count_dropped(&lost);
                    self.way = Way::Gone;
                    self.health = Health::Failing(error);
                    return;
                }
            }
        }
        if !self.waiting.is_empty() {
            return;
        }
        // A burst leaves no memory behind.
        const KEPT_BYTES: usize = 128 * 1024;
        if self.waiting.capacity() > KEPT_BYTES {
            self.waiting = Vec::new();
        }
    }

    /// A full disk is emptied, a broken one mounted anew; a reader that has gone never comes back.
    fn may_recover(&self, error: &io::Error) -> bool {
        let codes = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::ENOMEM, libc::ENOBUFS];
        matches!(self.way, Way::File(_)) || error.raw_os_error().is_some_and(|code| codes.contains(&code))
    }

    /// These lines are lost, later ones may not be. The rest of a line that was begun waits, so that the next one
    /// does not continue it.
    fn lose(&mut self, error: io::Error) {
        let remaining = if self.is_in_line {
            memchr::memchr(b'\n', &self.waiting).map_or(self.waiting.len(), |end| end + 1)
        } else {
            0
        };
        let lost = self.waiting.split_off(remaining);
        self.count_dropped(&lost);
        if matches!(self.health, Health::Well) {
            self.health = Health::Failing(error);
        }
    }
}

/// Waits until one of these outputs that want room has some, for so long at most. `false`: none of them wants any, or
/// nobody made room in that time.
pub(super) fn wait_for_room<'a>(outputs: impl Iterator<Item = &'a Output>, at_most: Duration) -> bool {
    let mut full: Vec<_> =
        outputs.filter_map(Output::full).map(|fd| PollFd::new(fd, PollFlags::POLLOUT)).collect();
    // Below a millisecond the kernel would not wait at all.
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::ZERO);
    // A signal is no room, but then it is asked again.
    !full.is_empty() && matches!(poll(&mut full, timeout), Ok(1..) | Err(Errno::EINTR))
}

fn write_if_ready(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut context = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut context, PollTimeout::ZERO)?;
    let answer = context[0].revents().unwrap_or(PollFlags::empty());
    if !answer.intersects(PollFlags::POLLOUT | PollFlags::POLLERR | PollFlags::POLLHUP) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(nix::unistd::write(fd, &bytes[..bytes.len().min(PIPE_BYTES)])?)
}

#[cfg(test)]
mod tests;
