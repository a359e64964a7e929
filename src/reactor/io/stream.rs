//! One face for the two kinds of stream sockets, and the one place where their errors are told apart.

#[cfg(any(test, fuzzing))]
pub(crate) use crate::reactor::simulation::wire::UnixStream;
use mio::event::Source;
use mio::net::TcpStream;
#[cfg(not(any(test, fuzzing)))]
pub(crate) use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What a read or a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    Bytes(usize),
    /// Nothing now; an event will tell.
    Later,
    /// The peer will send no more.
    End,
    /// The connection is broken.
    Gone,
}

/// Reads or writes, again if a signal came between, and classifies the result.
pub(crate) fn attempt(mut call: impl FnMut() -> io::Result<usize>) -> Transfer {
    loop {
        return match call() {
            Ok(0) => Transfer::End,
            Ok(bytes) => Transfer::Bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Transfer::Later,
            Err(_) => Transfer::Gone,
        };
    }
}

impl Stream {
    /// Connects over TCP, on this machine. Such a connection may still be under way.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Stream> {
        let stream = TcpStream::connect(address)?;
        setsockopt(&stream, sockopt::TcpNoDelay, &true)?;
        Ok(Stream::Tcp(stream))
    }

    /// Whether a connection has come about.
    ///
    /// # Errors
    /// It never will.
    pub(crate) fn is_connected(&self) -> io::Result<bool> {
        match self {
            Stream::Unix(_) => Ok(true),
            Stream::Tcp(stream) => match (stream.take_error()?, stream.peer_addr()) {
                (Some(error), _) => Err(error),
                (None, Ok(_)) => Ok(true),
                (None, Err(error)) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
                (None, Err(error)) => Err(error),
            },
        }
    }

    pub(crate) fn receive(&mut self, bytes: &mut [u8]) -> Transfer {
        attempt(|| self.read(bytes))
    }

    /// Writes all parts in one call.
    pub(crate) fn send(&mut self, parts: &[IoSlice<'_>]) -> Transfer {
        match attempt(|| self.write_vectored(parts)) {
            Transfer::End => Transfer::Later,
            result => result,
        }
    }

    pub(crate) fn shutdown_write(&self) {
        // A peer that is gone already needs no telling.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Whether the kernel tells when the peer has closed altogether. A TCP peer's FIN may be a half-close.
    pub(crate) fn tells_hang_up(&self) -> bool {
        match self {
            Stream::Tcp(_) => false,
            #[cfg(not(any(test, fuzzing)))]
            Stream::Unix(_) => true,
            #[cfg(any(test, fuzzing))]
            Stream::Unix(stream) => stream.tells_hang_up(),
        }
    }

    /// Makes closing a reset, which no reader takes for an orderly end.
    pub(crate) fn reset_on_close(&self) {
        #[cfg(any(test, fuzzing))]
        if let Stream::Unix(stream) = self {
            return stream.reset_on_close();
        }
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        let _ = setsockopt(self, sockopt::Linger, &linger);
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(bytes),
            Stream::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            // One part needs no vector, and the plain call is the cheaper one.
            Stream::Tcp(stream) if parts.len() == 1 => stream.write(&parts[0]),
            Stream::Unix(stream) if parts.len() == 1 => stream.write(&parts[0]),
            Stream::Tcp(stream) => stream.write_vectored(parts),
            Stream::Unix(stream) => stream.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.register(registry, token, interests),
            Stream::Unix(stream) => stream.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.reregister(registry, token, interests),
            Stream::Unix(stream) => stream.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.deregister(registry),
            Stream::Unix(stream) => stream.deregister(registry),
        }
    }
}
