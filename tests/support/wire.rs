//! One connection, TCP or Unix, and whole HTTP messages read from it. Knows no client and no worker.

use super::message::{Head, Response};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// No single write may take longer; a hung peer must not hang the tests.
const WRITE_WITHIN: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why no (whole) message came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The other side has ended the connection.
    Closed,
    /// The connection was reset.
    Reset,
    TimedOut,
    /// The bytes are no HTTP.
    Malformed(String),
}

/// A response that did not come whole.
#[derive(Debug)]
pub struct Broken {
    pub trouble: Trouble,
    /// What of it came; status 0 without a whole head.
    pub response: Response,
}

/// A connection and what was read from it, but not yet taken.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
    /// How far the message that is being read goes; back to 0 when it did not come whole in time.
    taken: usize,
    /// Remembered, so that a connection that has ended stays so.
    ended: Option<Trouble>,
    read_bytes: usize,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Stream {
    fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        })
    }

    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        }
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        // Zero would mean: for ever.
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_write_timeout(Some(timeout)),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(bytes),
            Stream::Unix(stream) => stream.read(bytes),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }
}

impl Wire {
    pub fn tcp(address: SocketAddr) -> io::Result<Wire> {
        let stream = TcpStream::connect(address)?;
        // Each write is a segment of its own.
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_WITHIN))?;
        Ok(Wire::new(Stream::Tcp(stream)))
    }

    pub fn unix(path: &Path) -> io::Result<Wire> {
        UnixStream::connect(path).and_then(Wire::accepted)
    }

    pub fn accepted(stream: UnixStream) -> io::Result<Wire> {
        stream.set_write_timeout(Some(WRITE_WITHIN))?;
        Ok(Wire::new(Stream::Unix(stream)))
    }

    fn new(stream: Stream) -> Wire {
        Wire { stream, buffer: Vec::new(), taken: 0, ended: None, read_bytes: READ_BYTES }
    }

    /// From now on nothing is read that is not wanted at once: the rest stays with the kernel.
    pub fn read_byte_by_byte(&mut self) {
        self.read_bytes = 1;
    }

    /// Another handle to the same connection, to end it from outside.
    pub fn handle(&self) -> io::Result<Stream> {
        self.stream.try_clone()
    }

    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.stream {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }

    /// From now on a write fails that finds no room for so long.
    pub fn write_within(&self, time: Duration) {
        self.stream.set_write_timeout(time).expect("a timeout can be set");
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Whether the connection breaks within `time`: a reset, or both sides have ended it. What has come back meanwhile
    /// stays where it is.
    pub fn breaks_within(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that nothing is written before its time.
            let left_ms = left.as_nanos().div_ceil(1_000_000);
            let left_ms = PollTimeout::try_from(left_ms).expect("a wait of a test");
            // POLLHUP and POLLERR are told without being asked for.
            let mut context = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
            match poll(&mut context, left_ms) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return true,
                Err(error) => panic!("poll: {error}"),
            }
        }
    }

    pub fn half_close(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Ends the connection with a reset. A Unix socket resets by itself if it is closed with unread input.
    pub fn reset(self) {
        if let Stream::Tcp(stream) = &self.stream {
            let at_once = libc_linger();
            setsockopt(stream, sockopt::Linger, &at_once).expect("SO_LINGER can be set");
        }
    }

    /// Waits for more bytes.
    pub fn fill(&mut self, deadline: Instant) -> Result<(), Trouble> {
        if let Some(trouble) = &self.ended {
            return Err(trouble.clone());
        }
        let mut bytes = [0; READ_BYTES];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Trouble::TimedOut);
            }
            self.stream.set_read_timeout(left).expect("a timeout can be set");
            match self.stream.read(&mut bytes[..self.read_bytes]) {
                Ok(0) => return Err(self.ended.insert(Trouble::Closed).clone()),
                Ok(count) => {
                    self.buffer.extend_from_slice(&bytes[..count]);
                    return Ok(());
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(_) => return Err(self.ended.insert(Trouble::Reset).clone()),
            }
        }
    }

    /// What was read and belongs to no message yet.
    pub fn pending_bytes(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// Whether the other side has ended the connection, as far as has been seen.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Takes `count` bytes as they are.
    pub fn read_exactly(&mut self, count: usize, deadline: Instant) -> Result<Vec<u8>, Trouble> {
        let result = self.expect_bytes(count, deadline);
        self.settle(result)
    }

    /// A head up to its empty line.
    pub fn read_head(&mut self, deadline: Instant) -> Result<Head, Trouble> {
        let result = self.expect_head(deadline);
        self.settle(result)
    }

    /// All bytes up to the end of the connection; how it ended.
    pub fn read_to_end(&mut self, deadline: Instant) -> (Vec<u8>, Trouble) {
        loop {
            if let Err(trouble) = self.fill(deadline) {
                return (std::mem::take(&mut self.buffer), trouble);
            }
        }
    }

    /// A whole response with the interim ones before it. `is_bodiless` is asked for a final head that may announce
    /// a body and has none (the answer to a HEAD).
    ///
    /// # Errors
    /// What of it came, and why no more. After [`Trouble::TimedOut`] nothing is taken: to be read again.
    pub fn read_response(
        &mut self,
        deadline: Instant,
        is_bodiless: impl Fn(&Head) -> bool,
    ) -> Result<Response, Box<Broken>> {
        let mut response = Response::default();
        let result = self.expect_response(&mut response, deadline, is_bodiless);
        match self.settle(result) {
            Ok(()) => Ok(response),
            Err(trouble) => Err(Box::new(Broken { trouble, response })),
        }
    }

    fn expect_response(
        &mut self,
        response: &mut Response,
        deadline: Instant,
        is_bodiless: impl Fn(&Head) -> bool,
    ) -> Result<(), Trouble> {
        loop {
            let head = self.expect_head(deadline)?;
            let status = head.status()?;
            if status >= 200 || status == 101 {
                response.status = status;
                response.head = head;
                break;
            }
            response.interim.push(head);
        }
        let (status, head) = (response.status, &response.head);
        if status == 101 || status == 204 || status == 304 || is_bodiless(head) {
            return Ok(());
        }
        if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return self.expect_chunks(&mut response.body, deadline);
        }
        match head.header("content-length").map(str::parse::<usize>) {
            Some(Ok(bytes)) => self.expect_body(bytes, &mut response.body, deadline),
            Some(Err(_)) => Err(Trouble::Malformed("a Content-Length that is no number".into())),
            None => loop {
                let fresh = self.buffer.len() - self.taken;
                response.body.extend_from_slice(&self.buffer[self.taken..]);
                self.taken += fresh;
                match self.fill(deadline) {
                    Ok(()) => {}
                    Err(Trouble::Closed) => return Ok(()),
                    Err(trouble) => return Err(trouble),
                }
            },
        }
    }

    fn expect_head(&mut self, deadline: Instant) -> Result<Head, Trouble> {
        let mut scanned = self.taken;
        loop {
            let end = self.buffer[scanned..].windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(position) = end {
                let end = scanned + position + 4;
                let raw = self.buffer[self.taken..end].to_vec();
                self.taken = end;
                return Head::parse(raw);
            }
            scanned = self.buffer.len().saturating_sub(3).max(self.taken);
            self.fill(deadline)?;
        }
    }

    /// Moves a body of known length to `body`, as far as it comes.
    fn expect_body(&mut self, count: usize, body: &mut Vec<u8>, deadline: Instant) -> Result<(), Trouble> {
        let wanted = body.len() + count;
        loop {
            let fresh = (wanted - body.len()).min(self.buffer.len() - self.taken);
            body.extend_from_slice(&self.buffer[self.taken..self.taken + fresh]);
            self.taken += fresh;
            if body.len() == wanted {
                return Ok(());
            }
            self.fill(deadline)?;
        }
    }

    fn expect_chunks(&mut self, body: &mut Vec<u8>, deadline: Instant) -> Result<(), Trouble> {
        loop {
            let line = self.expect_line(deadline)?;
            let digits = line.split(';').next().unwrap_or_default().trim_end();
            let size = usize::from_str_radix(digits, 16)
                .map_err(|_| Trouble::Malformed(format!("the chunk-size line {line:?}")))?;
            if size == 0 {
                break;
            }
            self.expect_body(size, body, deadline)?;
            let end = self.expect_bytes(2, deadline)?;
            if end != b"\r\n" {
                return Err(Trouble::Malformed(format!("{end:?} behind a chunk")));
            }
        }
        // Trailers are read over.
        while !self.expect_line(deadline)?.is_empty() {}
        Ok(())
    }

    fn expect_line(&mut self, deadline: Instant) -> Result<String, Trouble> {
        loop {
            let end = self.pending_bytes().windows(2).position(|window| window == b"\r\n");
            if let Some(end) = end {
                let line = super::latin1(&self.pending_bytes()[..end]);
                self.taken += end + 2;
                return Ok(line);
            }
            self.fill(deadline)?;
        }
    }

    fn expect_bytes(&mut self, count: usize, deadline: Instant) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        self.expect_body(count, &mut bytes, deadline)?;
        Ok(bytes)
    }

    /// What was read of a message is taken, or (if its time ran out) left for another try.
    fn settle<T>(&mut self, result: Result<T, Trouble>) -> Result<T, Trouble> {
        if !matches!(result, Err(Trouble::TimedOut)) {
            self.buffer.drain(..self.taken);
        }
        self.taken = 0;
        result
    }
}

/// `SO_LINGER` with no time at all: close means reset.
fn libc_linger() -> nix::libc::linger {
    nix::libc::linger { l_onoff: 1, l_linger: 0 }
}
