//! A request that has been read: its head as the worker gets it, and what is still to be known of it later.

use crate::http::forward::{self, Origin, Word, Written};
use crate::http::{Framing, RequestHead, Version, request::is_idempotent, response::Asked};
use std::ops::Range;
use std::time::Instant;

/// What the server answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// `/server`: the front end lives.
    Server,
    /// `/status`: the front end and its workers.
    Status,
}

/// One request, from its head to its log line. It moves with the work: from the client's connection to the queue,
/// to the worker, and back for the log.
#[derive(Debug)]
pub struct Request {
    /// The head for the worker, kept until the answer is there, since a second try sends it again. Of requests
    /// that reach no worker just the method and the path.
    pub head: Vec<u8>,
    method: Range<usize>,
    path: Range<usize>,
    id: Range<usize>,
    client: Range<usize>,
    pub asked: Asked,
    pub framing: Framing,
    pub is_idempotent: bool,
    pub local: Option<Local>,
    /// The first byte of its head came then.
    pub started: Instant,
}

impl Request {
    /// Serialises `head` into `buffer`, which it keeps. The length of the body is added by [`Request::seal`].
    pub fn new(
        head: &RequestHead<'_, '_>,
        mut buffer: Vec<u8>,
        origin: Origin<'_>,
        started: Instant,
    ) -> Self {
        let path = head.path();
        let local = match path {
            _ if head.framing != Framing::Empty || !matches!(head.method, "GET" | "HEAD") => None,
            "/server" => Some(Local::Server),
            "/status" => Some(Local::Status),
            _ => None,
        };
        buffer.clear();
        let Written { id, client } = match local {
            Some(_) => {
                buffer.extend_from_slice(head.method.as_bytes());
                buffer.push(b' ');
                buffer.extend_from_slice(head.target.as_bytes());
                let client = match origin.word {
                    Word::Ignored => 0..0,
                    Word::Believed(is_proxy) => {
                        buffer.push(b' ');
                        forward::push_client(&mut buffer, head.fields, is_proxy, origin.address)
                    }
                };
                Written { id: 0..0, client }
            }
            None => forward::write_request_head(&mut buffer, head, origin),
        };
        let method = 0..head.method.len();
        let path_from = method.end + 1;
        Request {
            head: buffer,
            path: path_from..path_from + head.target_lead.len() + path.len(),
            method,
            id,
            client,
            asked: Asked {
                is_head: head.method == "HEAD",
                wants_websocket: head.wants_websocket,
                version: head.version,
                keep_alive: head.keep_alive,
            },
            framing: head.framing,
            is_idempotent: is_idempotent(head.method),
            local,
            started,
        }
    }

    /// A request that was refused before it was understood: whatever its first line says, for the log.
    pub fn refused(first_line: &[u8], mut buffer: Vec<u8>, started: Instant) -> Self {
        /// More of a line that nobody understands only fills the log.
        const MOST_BYTES: usize = 256;
        buffer.clear();
        let mut parts = first_line.splitn(3, |&byte| byte == b' ');
        let method = parts.next().filter(|method| method.len() <= 32).unwrap_or(b"");
        let target = parts.next().unwrap_or(b"");
        let path = target.split(|&byte| byte == b'?').next().unwrap_or(b"");
        buffer.extend_from_slice(method);
        buffer.push(b' ');
        buffer.extend_from_slice(&path[..path.len().min(MOST_BYTES)]);
        Request {
            method: 0..method.len(),
            path: method.len() + 1..buffer.len(),
            id: 0..0,
            client: 0..0,
            head: buffer,
            asked: Asked {
                is_head: false,
                wants_websocket: false,
                version: Version::Http11,
                keep_alive: false,
            },
            framing: Framing::Empty,
            is_idempotent: false,
            local: None,
            started,
        }
    }

    /// The question whether a command answers by now. On a connection of its own, that it may close.
    pub fn probe(buffer: Vec<u8>, now: Instant) -> Self {
        const REST: &[u8] = b" HTTP/1.1\r\nHost: localhost\r\nRip-Probe: 1\r\nConnection: close\r\n\r\n";
        let mut request = Request::refused(b"GET /ready", buffer, now);
        request.head.extend_from_slice(REST);
        request
    }

    /// The same for the log, while this one still works: its head is in `buffer`.
    pub fn copy_into(&self, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&self.head);
        let (method, path, id) = (self.method.clone(), self.path.clone(), self.id.clone());
        Request { head: buffer, method, path, id, client: self.client.clone(), ..*self }
    }

    /// Ends the head, now that the body's length is known.
    pub fn seal(&mut self, body_bytes: u64) {
        if self.local.is_none() {
            forward::end_request_head(&mut self.head, self.framing, body_bytes);
        }
    }

    /// Whether the client asks for a page.
    pub fn takes_html(&self) -> bool {
        self.head.split(|&byte| byte == b'\n').skip(1).any(|line| {
            let mut parts = line.splitn(2, |&byte| byte == b':');
            let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let value = value.to_ascii_lowercase();
            name.eq_ignore_ascii_case(b"accept") && value.windows(9).any(|word| word == b"text/html")
        })
    }

    pub fn method(&self) -> &[u8] {
        &self.head[self.method.clone()]
    }

    /// The path without the query, since secrets travel there.
    pub fn path(&self) -> &[u8] {
        &self.head[self.path.clone()]
    }

    /// The request's id as the worker sees it; empty where none was given.
    pub fn id(&self) -> &[u8] {
        &self.head[self.id.clone()]
    }

    /// The client's address where the head tells it; else the client is who has connected.
    pub fn client(&self) -> Option<&str> {
        std::str::from_utf8(&self.head[self.client.clone()]).ok().filter(|client| !client.is_empty())
    }
}
