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
    /// By a reset, which the kernel tells only once: a read behind it may look like an orderly end.
    Reset,
}

/// Reads or writes, again if a signal came between, and classifies the result.
pub(crate) fn attempt(mut call: impl FnMut() -> io::Result<usize>) -> Transfer {
    loop {
        return match call() {
            Ok(0) => Transfer::End,
            Ok(bytes) => Transfer::Bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Transfer::Later,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Transfer::Reset,
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

    /// Whether a reset takes away what the peer has sent before it.
    pub(crate) fn loses_by_a_reset(&self) -> bool {
        match self {
            Stream::Tcp(_) => true,
            #[cfg(not(any(test, fuzzing)))]
            Stream::Unix(_) => false,
            #[cfg(any(test, fuzzing))]
            Stream::Unix(stream) => !stream.tells_hang_up(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::simulation::wire::{Kind, Wire};
    use mio::{Events, Poll};
    use nix::sys::socket::getsockopt;
    use std::net::TcpListener;
    use std::time::Duration;

    /// A stream of this server's, and the plain one at its other end.
    fn pair() -> (Stream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near = Stream::connect(listener.local_addr().expect("its address")).expect("connected");
        (near, listener.accept().expect("somebody").0)
    }

    fn ask_until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(std::time::Instant::now() < deadline, "it does not come");
            std::thread::yield_now();
        }
    }

    fn received(stream: &mut Stream, bytes: &mut [u8]) -> Transfer {
        ask_until(|| Some(stream.receive(bytes)).filter(|transfer| *transfer != Transfer::Later))
    }

    #[test]
    fn results_of_calls_are_told_apart() {
        let mut results = vec![Ok(5), Err(io::ErrorKind::Interrupted.into())];
        assert_eq!(attempt(|| results.pop().expect("one more try")), Transfer::Bytes(5));
        assert_eq!(attempt(|| Ok(0)), Transfer::End);
        assert_eq!(attempt(|| Err(io::ErrorKind::WouldBlock.into())), Transfer::Later);
        assert_eq!(attempt(|| Err(io::ErrorKind::ConnectionReset.into())), Transfer::Reset);
        assert_eq!(attempt(|| Err(io::ErrorKind::BrokenPipe.into())), Transfer::Gone);
    }

    #[test]
    fn bytes_go_both_ways_over_tcp_and_parts_go_in_one_call() {
        let (mut near, mut far) = pair();
        assert!(matches!(near.is_connected(), Ok(true)));
        assert!(getsockopt(&near, sockopt::TcpNoDelay).expect("an option"));
        assert_eq!(near.receive(&mut [0; 9]), Transfer::Later);
        let parts = [IoSlice::new(b"one "), IoSlice::new(b"two")];
        assert_eq!(near.send(&parts), Transfer::Bytes(7));
        assert_eq!(near.send(&[IoSlice::new(b"!")]), Transfer::Bytes(1));
        assert_eq!(near.write(b"?").expect("written"), 1);
        let mut bytes = [0; 9];
        far.read_exact(&mut bytes).expect("all of it");
        assert_eq!(&bytes, b"one two!?");
        far.write_all(b"answer").expect("written");
        let mut bytes = [0; 9];
        assert_eq!(received(&mut near, &mut bytes), Transfer::Bytes(6));
        assert_eq!(&bytes[..6], b"answer");
        near.shutdown_write();
        assert_eq!(far.read(&mut [0; 9]).expect("an end"), 0);
        far.write_all(b"still").expect("it is a half-close");
        assert_eq!(received(&mut near, &mut [0; 9]), Transfer::Bytes(5));
        drop(far);
        assert_eq!(received(&mut near, &mut [0; 9]), Transfer::End);
    }

    #[test]
    fn parts_go_in_one_call_over_a_unix_socket() {
        let wire = Wire::new(Kind::Unix, 100);
        let mut stream = Stream::Unix(UnixStream::of(wire.clone()));
        assert_eq!(stream.send(&[IoSlice::new(b"one "), IoSlice::new(b"two")]), Transfer::Bytes(7));
        assert_eq!(wire.borrow().written, b"one two");
    }

    #[test]
    fn a_close_after_a_reset_was_asked_for_is_one() {
        let (near, mut far) = pair();
        near.reset_on_close();
        drop(near);
        assert_eq!(far.read(&mut [0; 9]).map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn only_a_unix_socket_tells_that_its_peer_has_closed() {
        assert!(!pair().0.tells_hang_up());
        let wire = |kind| Stream::Unix(UnixStream::of(Wire::new(kind, 1)));
        assert!(wire(Kind::Unix).tells_hang_up() && !wire(Kind::Tcp).tells_hang_up());
    }

    #[test]
    fn a_connection_that_is_refused_or_under_way_is_no_connection() {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port");
        let refused = Stream::connect(address).and_then(|stream| {
            let answer = ask_until(|| Some(stream.is_connected()).filter(|is| !matches!(is, Ok(false))));
            answer.map(drop)
        });
        assert_eq!(refused.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionRefused));
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_NONBLOCK,
            None,
        );
        let stream = Stream::Tcp(TcpStream::from_std(socket.expect("a socket").into()));
        assert!(matches!(stream.is_connected(), Ok(false)), "not yet");
    }

    #[test]
    fn events_come_for_what_is_watched_while_it_is() {
        let (mut near, mut far) = pair();
        let mut poll = Poll::new().expect("epoll");
        let registry = poll.registry().try_clone().expect("another handle");
        let mut events = Events::with_capacity(4);
        let mut told = |within_ms| {
            poll.poll(&mut events, Some(Duration::from_millis(within_ms))).expect("polled");
            events.iter().map(|event| (event.token(), event.is_readable())).collect::<Vec<_>>()
        };
        registry.register(&mut near, Token(5), Interest::WRITABLE).expect("registered");
        assert_eq!(told(10_000), [(Token(5), false)]);
        registry.reregister(&mut near, Token(6), Interest::READABLE).expect("registered");
        far.write_all(b"x").expect("written");
        assert_eq!(told(10_000), [(Token(6), true)]);
        registry.deregister(&mut near).expect("no more");
        far.write_all(b"x").expect("written");
        assert_eq!(told(0), []);
    }
}
