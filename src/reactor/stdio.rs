//! Standard output and error, written without ever stopping the loop.
//!
//! What each of them is is asked once. A file is written to; a socket gets `send` with `MSG_DONTWAIT`; a pipe or a
//! terminal is opened anew, for a description of our own that may be non-blocking (O_NONBLOCK on the inherited one
//! would be shared with the shell); where that can't be had, the kernel is asked before each small write.

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

/// What waits for a reader that does not read; beyond it, lines are dropped and counted.
const MOST_WAITING_BYTES: usize = 1024 * 1024;
/// At most so much in one write where a write might block: POSIX promises that a pipe that polls writable takes it.
const PIPE_BYTES: usize = 4096;

/// One of the two outputs.
#[derive(Debug)]
pub struct Output {
    way: Way,
    waiting: Vec<u8>,
    /// The last write found no room; an event will tell when there is some.
    is_full: bool,
    dropped_lines: u64,
    /// All that were ever dropped, for the metrics.
    all_dropped_lines: u64,
}

#[derive(Debug)]
enum Way {
    File(File),
    Socket(OwnedFd),
    /// A description of our own, non-blocking, watched by the reactor.
    Own(File),
    /// Shared with others, so asked before each write.
    Shared(OwnedFd),
    /// Nobody reads any more.
    Closed,
}

impl Output {
    /// `fd` is 1 or 2, duplicated.
    pub fn new(fd: OwnedFd, number: u8) -> Self {
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
                    Ok(own) => Way::Own(own),
                    Err(_) => Way::Shared(file.into()),
                }
            }
            Ok(_) => Way::File(file),
            Err(_) => Way::Closed,
        };
        Output { way, waiting: Vec::new(), is_full: false, dropped_lines: 0, all_dropped_lines: 0 }
    }

    #[cfg(test)]
    pub fn closed() -> Self {
        Output {
            way: Way::Closed,
            waiting: Vec::new(),
            is_full: false,
            dropped_lines: 0,
            all_dropped_lines: 0,
        }
    }

    /// Watches it for room, where that can be watched; registered once, edge-triggered.
    pub fn register(&self, registry: &Registry, token: Token) {
        let fd = match &self.way {
            Way::Own(file) => file.as_raw_fd(),
            Way::Socket(fd) => fd.as_raw_fd(),
            Way::File(_) | Way::Shared(_) | Way::Closed => return,
        };
        // What epoll refuses (/dev/null) never lacks room.
        let _ = registry.register(&mut SourceFd(&fd), token, Interest::WRITABLE);
    }

    /// An event says that there is room.
    pub fn has_room(&mut self) {
        self.is_full = false;
    }

    /// Whether a look by the clock is needed: something waits, and no event will tell of room.
    pub fn needs_clock(&self) -> bool {
        !self.waiting.is_empty() && matches!(self.way, Way::Shared(_))
    }

    pub fn all_dropped_lines(&self) -> u64 {
        self.all_dropped_lines
    }

    /// Takes whole lines, or none of them where too much waits already.
    pub fn push(&mut self, lines: &[u8]) {
        if matches!(self.way, Way::Closed) || lines.is_empty() {
            return;
        }
        if self.waiting.len() + lines.len() > MOST_WAITING_BYTES {
            let count = memchr::memchr_iter(b'\n', lines).count() as u64;
            self.dropped_lines += count;
            self.all_dropped_lines += count;
        } else {
            self.waiting.extend_from_slice(lines);
        }
    }

    /// Writes what can be written without waiting. Returns how many lines were dropped, once there is room again.
    pub fn flush(&mut self) -> Option<u64> {
        while !self.waiting.is_empty() && !self.is_full {
            let result = match &mut self.way {
                Way::File(file) | Way::Own(file) => file.write(&self.waiting),
                Way::Socket(fd) => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    send(fd.as_raw_fd(), &self.waiting, flags).map_err(io::Error::from)
                }
                Way::Shared(fd) => write_if_ready(fd, &self.waiting),
                Way::Closed => {
                    self.waiting.clear();
                    return None;
                }
            };
            match result {
                Ok(written) => {
                    self.waiting.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_full = !matches!(self.way, Way::Shared(_));
                    return None;
                }
                // A full disk: these lines are lost, later ones may not be.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    let count = memchr::memchr_iter(b'\n', &self.waiting).count() as u64;
                    self.dropped_lines += count;
                    self.all_dropped_lines += count;
                    self.waiting.clear();
                    return None;
                }
                // `| head` has gone: that is no end.
                Err(_) => {
                    self.way = Way::Closed;
                    self.waiting.clear();
                    return None;
                }
            }
        }
        if !self.waiting.is_empty() {
            return None;
        }
        // A burst leaves no memory behind.
        const KEPT_BYTES: usize = 128 * 1024;
        if self.waiting.capacity() > KEPT_BYTES {
            self.waiting = Vec::new();
        }
        (self.dropped_lines > 0).then(|| std::mem::take(&mut self.dropped_lines))
    }
}

fn write_if_ready(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO)?;
    let answer = asked[0].revents().unwrap_or(PollFlags::empty());
    if !answer.intersects(PollFlags::POLLOUT | PollFlags::POLLERR | PollFlags::POLLHUP) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(nix::unistd::write(fd, &bytes[..bytes.len().min(PIPE_BYTES)])?)
}
