//! Writes answers to the server's connection, and notices its end, which says that nobody waits any more.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

/// The server has shut its side down. (POLLRDHUP, which `nix` has no name for.)
pub(super) const NOBODY_WAITS: PollFlags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);

/// Tells all threads that this worker leaves. It is a pipe, so that `poll` can wait for it.
#[derive(Debug)]
pub(super) struct Leaving {
    reader: PipeReader,
    /// Dropped when the worker leaves.
    writer: Mutex<Option<PipeWriter>>,
}

impl Leaving {
    pub(super) fn new() -> io::Result<Leaving> {
        let (reader, writer) = io::pipe()?;
        Ok(Leaving { reader, writer: Mutex::new(Some(writer)) })
    }

    pub(super) fn say(&self) {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The end that hangs up when the worker leaves.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// A connection to answer on.
#[derive(Clone, Copy)]
pub(super) struct Outlet<'a> {
    pub(super) stream: &'a UnixStream,
    pub(super) leaving: &'a Leaving,
}

impl Outlet<'_> {
    /// # Errors
    /// Nobody waits any more; or, where the answer ends with its worker, that leaves.
    pub(super) fn check(&self, ends_with_worker: bool) -> io::Result<()> {
        let mut context = [
            PollFd::new(self.stream.as_fd(), NOBODY_WAITS),
            PollFd::new(self.leaving.fd(), PollFlags::empty()),
        ];
        match poll(&mut context, PollTimeout::ZERO) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
        // `nix` has no name for POLLRDHUP, and answers None where it is set.
        if context[0].any() != Some(false) {
            return Err(gone("nobody waits for the answer any more"));
        }
        if ends_with_worker && context[1].any() != Some(false) {
            return Err(gone("this worker leaves"));
        }
        Ok(())
    }
}

/// The error that ends an answer without a message on stderr.
pub(super) fn gone(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why.to_owned())
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl Write for Outlet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
