//! A client that says on the wire exactly what a test wants said.

use super::TEST_TIMEOUT;
use super::message::Response;
use super::wire::{Broken, Trouble, Wire};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Client {
    pub wire: Wire,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let wire = Wire::tcp(address).unwrap_or_else(|error| panic!("no connection to {address}: {error}"));
        Client { wire }
    }

    pub fn connect_unix(path: &Path) -> Client {
        let wire =
            Wire::unix(path).unwrap_or_else(|error| panic!("no connection to {}: {error}", path.display()));
        Client { wire }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the server takes bytes");
    }

    /// The same, where the server may have closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.write(bytes.as_ref())
    }

    /// `headers`: whole lines, each with its CRLF.
    pub fn send_request(&mut self, method: &str, target: &str, headers: &str, body: &[u8]) {
        let length = match body.len() {
            0 => String::new(),
            bytes => format!("Content-Length: {bytes}\r\n"),
        };
        let mut bytes =
            format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{headers}{length}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.send(bytes);
    }

    /// One exchange.
    pub fn get(&mut self, target: &str) -> Response {
        self.send_request("GET", target, "", b"");
        self.read_response()
    }

    /// One exchange.
    pub fn post(&mut self, target: &str, body: &[u8]) -> Response {
        self.send_request("POST", target, "", body);
        self.read_response()
    }

    /// A whole response, as it is due.
    pub fn read_response(&mut self) -> Response {
        self.read_response_within(TEST_TIMEOUT).unwrap_or_else(|broken| {
            let Broken { trouble, response } = *broken;
            panic!("no whole response ({trouble:?}): {} {}", response.status, response.text())
        })
    }

    /// The answer to a HEAD: no body, whatever the head says.
    pub fn read_response_to_head(&mut self) -> Response {
        self.wire
            .read_response(Instant::now() + TEST_TIMEOUT, |_| true)
            .unwrap_or_else(|broken| panic!("no response to the HEAD: {:?}", broken.trouble))
    }

    /// # Errors
    /// What of it came, and why no more. After [`Trouble::TimedOut`] it can be read again, from its start.
    pub fn read_response_within(&mut self, time: Duration) -> Result<Response, Box<Broken>> {
        self.wire.read_response(Instant::now() + time, |_| false)
    }

    /// Only a response's head, its body left unread. Bodies are then to be had as raw bytes.
    pub fn read_head(&mut self) -> super::Head {
        self.wire
            .read_head(Instant::now() + TEST_TIMEOUT)
            .unwrap_or_else(|trouble| panic!("no head: {trouble:?}"))
    }

    /// Raw bytes.
    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        self.wire
            .read_exactly(count, Instant::now() + TEST_TIMEOUT)
            .unwrap_or_else(|trouble| panic!("not {count} bytes: {trouble:?}"))
    }

    /// All raw bytes up to the end of the connection, and how it ended.
    pub fn read_until_close(&mut self) -> (Vec<u8>, Trouble) {
        let (bytes, trouble) = self.wire.read_to_end(Instant::now() + TEST_TIMEOUT);
        assert_ne!(trouble, Trouble::TimedOut, "the connection was not closed; {} bytes came", bytes.len());
        (bytes, trouble)
    }

    /// Whether the server ends the connection within `time`; bytes that come are kept.
    pub fn is_closed_within(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            match self.wire.fill(deadline) {
                Ok(()) => {}
                Err(Trouble::TimedOut) => return false,
                Err(_) => return true,
            }
        }
    }

    /// No more will be sent; the answer can still be read.
    pub fn half_close(&mut self) {
        // The server may have closed already.
        let _ = self.wire.half_close();
    }

    /// Leaves with a reset.
    pub fn reset(self) {
        self.wire.reset();
    }

    /// This client's address, as access logs name it.
    pub fn local_address(&self) -> SocketAddr {
        self.wire.local_address().expect("a TCP connection")
    }
}
