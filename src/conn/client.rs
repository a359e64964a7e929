//! The client's side of a connection: from bytes to requests, one at a time.

use super::{ReadBuffer, Request};
use crate::http::chunked::Fault;
use crate::http::forward::Origin;
use crate::http::proxy_header::{self, Fault as HeaderFault, Scan, Source};
use crate::http::reason::Bad;
use crate::http::{Chunked, Framing, MAX_FIELDS, Reason, RequestHead, field, head, request};
use std::ops::Range;
use std::time::Instant;

/// A client's connection as far as its bytes go.
#[derive(Debug)]
pub struct Client {
    state: State,
    /// Bytes that follow the current request.
    pub read_buffer: ReadBuffer,
    /// The client has shut down its sending side.
    pub has_ended: bool,
}

#[derive(Debug)]
enum State {
    /// A proxy says first who has connected to it.
    ProxyHeader,
    /// Between two requests.
    Idle,
    /// A head began to arrive at `since`, and was searched as far as `scanned` says.
    Head { since: Instant, scanned: head::Scanned },
    /// The body is arriving.
    Body { request: Request, body: Body, taken_bytes: u64 },
    /// The request is with the balancer or with a worker. What follows it waits.
    Busy,
    /// After a 101: bytes are forwarded as they are.
    Tunnel,
    /// The last answer is out. What the client still sends is read and dropped: closing with unread input would make
    /// the kernel drop the answer too. The reactor bounds this by time, and by how much it reads at once.
    Lingering,
}

#[derive(Debug)]
enum Body {
    Length { left: u64 },
    Chunked(Chunked),
}

/// What the bytes mean.
#[derive(Debug)]
pub enum Event {
    /// More bytes are needed.
    More,
    /// A proxy has said who has connected to it.
    ProxyHeader(Source),
    /// It was to say so, and has not: nothing on this connection can be believed. `None`: it has ended in the middle.
    NoProxyHeader(Option<HeaderFault>),
    /// The client waits for a `100 Continue` before it sends its body.
    Continue,
    /// A range of the given bytes belongs to the body of the request that is arriving.
    Body(Range<usize>),
    /// A whole request. Its body came as [`Event::Body`] before.
    Request(Request),
    /// The request is to be refused with this reason. No further request is read.
    Refused(Reason, Request),
    /// Bytes for the other end of the tunnel.
    Tunnel(Range<usize>),
    /// The client has closed, and no answer is due.
    End,
}

/// One step of [`Client::advance`].
#[derive(Debug)]
pub struct Step {
    pub consumed: usize,
    pub event: Event,
}

impl Default for Client {
    fn default() -> Self {
        Client { state: State::Idle, read_buffer: ReadBuffer::default(), has_ended: false }
    }
}

/// Getters.
impl Client {
    /// A connection of a proxy that says first who has connected to it.
    pub fn with_proxy_header() -> Self {
        Client { state: State::ProxyHeader, ..Client::default() }
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle | State::ProxyHeader)
    }

    pub fn awaits_proxy_header(&self) -> bool {
        matches!(self.state, State::ProxyHeader)
    }

    /// Whether a head or a body is arriving, so that the client timeout runs.
    pub fn is_receiving(&self) -> bool {
        matches!(self.state, State::Head { .. } | State::Body { .. })
    }

    pub fn is_in_body(&self) -> bool {
        matches!(self.state, State::Body { .. })
    }

    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Busy)
    }

    pub fn is_lingering(&self) -> bool {
        matches!(self.state, State::Lingering)
    }
}

/// Events in.
impl Client {
    /// Parses the bytes up to the next event. To be called again with the rest until it returns [`Event::More`] or a
    /// request is dispatched. `buffer` returns an empty buffer for a request's head.
    pub fn advance(
        &mut self,
        bytes: &mut [u8],
        origin: Origin<'_>,
        max_body_bytes: u64,
        buffer: impl FnOnce() -> Vec<u8>,
        now: Instant,
    ) -> Step {
        match &mut self.state {
            State::ProxyHeader => self.read_proxy_header(bytes),
            State::Idle => {
                let blank = blank_lines(bytes);
                if bytes.len() <= blank || &bytes[blank..] == b"\r" {
                    let event = if self.has_ended { Event::End } else { Event::More };
                    return Step { consumed: blank, event };
                }
                self.enter(State::Head { since: now, scanned: head::Scanned::default() });
                let step = self.advance(&mut bytes[blank..], origin, max_body_bytes, buffer, now);
                // A head's event has no range of bytes, so only `consumed` changes.
                Step { consumed: blank + step.consumed, event: step.event }
            }
            State::Head { since, scanned } => {
                let since = *since;
                if !bytes.first().is_some_and(|&byte| field::is_token_byte(byte)) {
                    // For example a TLS hello, in which no line end would ever come.
                    return self.refuse(Reason::BadRequest(Bad::RequestLine), bytes, buffer(), since);
                }
                match head::look(bytes, scanned) {
                    Ok(head::HeadScan::Whole(length)) => {
                        self.read_head(&mut bytes[..length], origin, max_body_bytes, buffer(), since)
                    }
                    Ok(head::HeadScan::Partial) if self.has_ended => {
                        self.refuse(Reason::BadRequest(Bad::Incomplete), bytes, buffer(), since)
                    }
                    Ok(head::HeadScan::Partial) => Step { consumed: 0, event: Event::More },
                    Err(bad) => self.refuse(Reason::BadRequest(bad), bytes, buffer(), since),
                }
            }
            State::Body { .. } => self.read_body(bytes, max_body_bytes),
            State::Busy => Step { consumed: 0, event: Event::More },
            State::Tunnel if bytes.is_empty() => {
                let event = if self.has_ended { Event::End } else { Event::More };
                Step { consumed: 0, event }
            }
            State::Tunnel => Step { consumed: bytes.len(), event: Event::Tunnel(0..bytes.len()) },
            State::Lingering => {
                let event = if self.has_ended { Event::End } else { Event::More };
                Step { consumed: bytes.len(), event }
            }
        }
    }

    /// The answer to the current request is written in full, and the connection stays open.
    pub fn answered(&mut self) {
        debug_assert!(self.is_busy());
        self.enter(State::Idle);
    }

    /// The worker has answered 101.
    pub fn upgraded(&mut self) {
        debug_assert!(self.is_busy());
        self.enter(State::Tunnel);
    }

    /// The last answer of this connection is being written. No further request is read.
    pub fn linger(&mut self) {
        self.read_buffer.take();
        self.enter(State::Lingering);
    }

    /// Abandons a request that is still arriving, and returns it for the log.
    pub fn abandon(&mut self, buffer: Vec<u8>, now: Instant) -> Option<Request> {
        let kept = self.read_buffer.take();
        match self.leave_for(State::Lingering) {
            State::Head { since, .. } => Some(Request::refused(first_line(&kept), buffer, since)),
            State::Body { request, .. } => Some(request),
            State::Busy => Some(Request::refused(b"", buffer, now)),
            State::ProxyHeader | State::Idle | State::Tunnel | State::Lingering => None,
        }
    }

    /// The one door for transitions.
    fn enter(&mut self, next: State) {
        self.check(&next);
        self.state = next;
    }

    /// The same, and returns the state that was left.
    fn leave_for(&mut self, next: State) -> State {
        self.check(&next);
        std::mem::replace(&mut self.state, next)
    }

    fn check(&self, next: &State) {
        use State::*;
        debug_assert!(
            matches!(
                (&self.state, next),
                (ProxyHeader, Idle)
                    | (Idle, Head { .. })
                    | (Head { .. }, Body { .. } | Busy)
                    | (Body { .. }, Busy)
                    | (Busy, Idle | Tunnel)
                    | (_, Lingering)
            ),
            "no way from {:?} to {next:?}",
            self.state
        );
    }

    fn refuse(&mut self, reason: Reason, bytes: &[u8], buffer: Vec<u8>, since: Instant) -> Step {
        self.enter(State::Lingering);
        let request = Request::refused(first_line(bytes), buffer, since);
        Step { consumed: bytes.len(), event: Event::Refused(reason, request) }
    }

    fn read_head(
        &mut self,
        bytes: &mut [u8],
        origin: Origin<'_>,
        max_body_bytes: u64,
        buffer: Vec<u8>,
        since: Instant,
    ) -> Step {
        let mut header_buffer = request::header_buffer();
        let head = match RequestHead::parse(bytes, &mut header_buffer) {
            Ok(head) if head.fields.len() <= MAX_FIELDS => head,
            Ok(_) => {
                return self.refuse(Reason::BadRequest(Bad::TooManyFields), bytes, buffer, since);
            }
            Err(reason) => {
                if reason == Reason::BadRequest(Bad::Version) && request::lower_version(bytes) {
                    return self.read_head(bytes, origin, max_body_bytes, buffer, since);
                }
                return self.refuse(reason, bytes, buffer, since);
            }
        };
        let mut request = Request::new(&head, buffer, origin, since);
        let body = match head.framing {
            Framing::Length(length) if length > max_body_bytes => {
                self.enter(State::Lingering);
                return Step { consumed: bytes.len(), event: Event::Refused(Reason::BodyTooLarge, request) };
            }
            Framing::Length(left) if left > 0 => Body::Length { left },
            Framing::Chunked => Body::Chunked(Chunked::default()),
            Framing::Empty | Framing::Length(_) | Framing::UntilClose => {
                request.seal(0);
                self.enter(State::Busy);
                return Step { consumed: bytes.len(), event: Event::Request(request) };
            }
        };
        let event = if head.expects_continue { Event::Continue } else { Event::Body(0..0) };
        self.enter(State::Body { request, body, taken_bytes: 0 });
        Step { consumed: bytes.len(), event }
    }

    fn read_body(&mut self, bytes: &mut [u8], max_body_bytes: u64) -> Step {
        let State::Body { request, body, taken_bytes } = &mut self.state else {
            return Step { consumed: 0, event: Event::More };
        };
        let is_whole = matches!(body, Body::Length { left: 0 });
        if is_whole {
            request.seal(*taken_bytes);
            let event = self.leave_body(State::Busy).map_or(Event::More, Event::Request);
            return Step { consumed: 0, event };
        }
        if bytes.is_empty() {
            if self.has_ended {
                return self.refuse_body(Reason::BadRequest(Bad::Incomplete), 0);
            }
            return Step { consumed: 0, event: Event::More };
        }
        let refusal = match body {
            Body::Length { left } => {
                let take = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= take as u64;
                *taken_bytes += take as u64;
                return Step { consumed: take, event: Event::Body(0..take) };
            }
            Body::Chunked(decoder) => match decoder.decode(bytes, max_body_bytes - *taken_bytes) {
                Ok(decoded) => {
                    *taken_bytes += decoded.data.len() as u64;
                    if decoded.ended {
                        *body = Body::Length { left: 0 };
                    }
                    return Step { consumed: decoded.consumed, event: Event::Body(decoded.data) };
                }
                Err(Fault::TooLarge) => Reason::BodyTooLarge,
                Err(Fault::Bad(bad)) => Reason::BadRequest(bad),
            },
        };
        self.refuse_body(refusal, bytes.len())
    }

    fn refuse_body(&mut self, reason: Reason, consumed: usize) -> Step {
        let event = match self.leave_body(State::Lingering) {
            Some(request) => Event::Refused(reason, request),
            None => Event::More,
        };
        Step { consumed, event }
    }

    /// Leaves [`State::Body`], and returns the request whose body was arriving.
    fn leave_body(&mut self, next: State) -> Option<Request> {
        match self.leave_for(next) {
            State::Body { request, .. } => Some(request),
            State::ProxyHeader
            | State::Idle
            | State::Head { .. }
            | State::Busy
            | State::Tunnel
            | State::Lingering => None,
        }
    }

    fn read_proxy_header(&mut self, bytes: &[u8]) -> Step {
        match proxy_header::scan(bytes) {
            Ok(Scan::Whole { source, bytes }) => {
                self.enter(State::Idle);
                Step { consumed: bytes, event: Event::ProxyHeader(source) }
            }
            Ok(Scan::Partial) if !self.has_ended => Step { consumed: 0, event: Event::More },
            // A look whether somebody listens.
            Ok(Scan::Partial) if bytes.is_empty() => Step { consumed: 0, event: Event::End },
            Ok(Scan::Partial) => Step { consumed: 0, event: Event::NoProxyHeader(None) },
            Err(fault) => Step { consumed: 0, event: Event::NoProxyHeader(Some(fault)) },
        }
    }
}

/// Empty lines before a request are skipped (RFC 9112 §2.2); they take no memory, whatever their number.
fn blank_lines(bytes: &[u8]) -> usize {
    bytes.chunks_exact(2).take_while(|pair| pair == b"\r\n").count() * 2
}

fn first_line(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == b'\r' || byte == b'\n').next().unwrap_or(b"")
}

#[cfg(test)]
mod tests;
