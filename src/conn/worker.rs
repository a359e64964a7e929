//! The worker's side of a connection: from the bytes of an answer to what the client gets.

use super::ReadBuffer;
use crate::http::digits;
use crate::http::downstream::{self, Downstream};
use crate::http::reason::Bad;
use crate::http::response::{Invalid, RequestContext};
use crate::http::{Chunked, Framing, ResponseHead, Version, head, request};
use std::ops::Range;

/// The most 1xx answers before a final one, so that an answer cannot be endless.
const MAX_INTERIMS: u8 = 32;
/// The longest media type that is kept for the log; registered ones are at most half as long.
const MAX_MEDIA_TYPE_BYTES: usize = 80;

/// What every answer begins with.
const STATUS_LINE: &[u8] = b"HTTP/1.";

/// A worker's connection as far as its bytes go.
#[derive(Debug, Default)]
pub struct Worker {
    state: State,
    pub read_buffer: ReadBuffer,
    /// An earlier answer came over this connection.
    is_used: bool,
}

#[derive(Debug, Default)]
enum State {
    /// There is no request, so any byte is unexpected.
    #[default]
    Idle,
    /// A request was sent, and the head of its answer has not come in full.
    Head { context: RequestContext, scanned: head::Scanned, interims: u8, was_heard: bool },
    /// The answer's body is arriving.
    Body { source: Source, downstream: Framing, keep_alive: bool },
    /// After a 101.
    Tunnel,
    /// The connection cannot be used any more: nobody can tell where the next answer would begin.
    Spent,
}

#[derive(Debug)]
enum Source {
    Length { left: u64 },
    Chunked(Chunked),
    UntilClose,
}

/// What the log and the timeouts need to know of an answer's head.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub status: u16,
    /// It may be silent for long: server-sent events, or a tunnel.
    pub may_idle: bool,
    /// The client's connection stays open after it.
    pub keep_alive: bool,
    /// How it is framed for the client.
    pub downstream: Framing,
    media_type: [u8; MAX_MEDIA_TYPE_BYTES],
    media_type_bytes: usize,
}

impl Answer {
    fn new(head: &ResponseHead<'_, '_>, downstream: Downstream) -> Self {
        let mut answer = Answer {
            status: head.status,
            may_idle: head.is_event_stream(),
            keep_alive: downstream.keep_alive,
            downstream: downstream.framing,
            media_type: [0; MAX_MEDIA_TYPE_BYTES],
            media_type_bytes: 0,
        };
        answer.set_media_type(head.media_type);
        answer
    }

    /// An answer of the server's own.
    pub fn local(status: u16, media_type: &str, keep_alive: bool) -> Self {
        let mut answer = Answer {
            status,
            may_idle: false,
            keep_alive,
            downstream: Framing::Empty,
            media_type: [0; MAX_MEDIA_TYPE_BYTES],
            media_type_bytes: 0,
        };
        answer.set_media_type(media_type.as_bytes());
        answer
    }

    fn set_media_type(&mut self, value: &[u8]) {
        let bytes = value.len().min(MAX_MEDIA_TYPE_BYTES);
        self.media_type[..bytes].copy_from_slice(&value[..bytes]);
        self.media_type_bytes = bytes;
    }

    /// `text/plain`, without parameters; empty where the answer names none.
    pub fn media_type(&self) -> &[u8] {
        &self.media_type[..self.media_type_bytes]
    }
}

/// The result of parsing a worker's bytes. The client gets what was written to `prefix`, then `data`, then `suffix`.
#[derive(Debug)]
pub struct Step {
    pub consumed: usize,
    pub data: Range<usize>,
    pub suffix: &'static [u8],
    /// The final head, in the step in which it was complete.
    pub answer: Option<Answer>,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer goes on.
    Going,
    /// The answer is complete. `reusable`: the connection may take the next request.
    Ended { reusable: bool },
    /// The worker says that it is busy, and has not begun with the request.
    Busy { reusable: bool },
    /// The bytes are not a valid answer, or not a valid continuation of it.
    Invalid(Invalid),
    /// The bytes are not the beginning of an answer. `behind_an_answer`: they may be surplus bytes of the one before.
    Stray { behind_an_answer: bool },
    /// Both connections are a tunnel from here on.
    Upgraded,
    /// Bytes without a request.
    UnexpectedBytes,
}

/// What state a worker's connection was in when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There was no request.
    Idle,
    /// Not one byte of the answer had come.
    NoResponse,
    /// The head had not come in full.
    InHead,
    /// The answer ends with its connection. The suffix is what the client still needs to see that it is complete.
    Whole(&'static [u8]),
    /// The body is incomplete.
    InBody,
    Tunnel,
}

impl Step {
    fn new(consumed: usize, outcome: Outcome) -> Self {
        Step { consumed, data: 0..0, suffix: b"", answer: None, outcome }
    }
}

/// Events in.
impl Worker {
    /// A request goes out on this connection.
    pub fn ask(&mut self, context: RequestContext) {
        self.enter(State::Head { context, scanned: head::Scanned::default(), interims: 0, was_heard: false });
    }

    /// Closes the client's connection after this answer, unless its head has been sent already.
    pub fn close_client(&mut self) {
        if let State::Head { context, .. } = &mut self.state {
            context.keep_alive = false;
        }
    }

    /// Parses all bytes. `prefix` gets what goes to the client before the data; `date` is a whole line.
    pub fn receive(&mut self, bytes: &mut [u8], date: &[u8], prefix: &mut Vec<u8>) -> Step {
        match self.state {
            State::Idle | State::Spent if bytes.is_empty() => Step::new(0, Outcome::Going),
            State::Idle | State::Spent => {
                self.enter(State::Spent);
                Step::new(bytes.len(), Outcome::UnexpectedBytes)
            }
            State::Head { .. } => self.receive_head(bytes, date, prefix),
            State::Body { .. } => self.receive_body(bytes, prefix),
            State::Tunnel => Step { data: 0..bytes.len(), ..Step::new(bytes.len(), Outcome::Going) },
        }
    }

    /// The connection has ended. `loses`: in a way that may have lost bytes.
    pub fn end(&mut self, loses: bool) -> End {
        let end = match &self.state {
            State::Idle | State::Spent => End::Idle,
            State::Head { was_heard: false, .. } => End::NoResponse,
            State::Head { .. } => End::InHead,
            State::Body { source: Source::UntilClose, downstream, .. } if !loses => {
                End::Whole(if *downstream == Framing::Chunked { b"0\r\n\r\n" } else { b"" })
            }
            State::Body { .. } => End::InBody,
            State::Tunnel => End::Tunnel,
        };
        self.enter(State::Spent);
        end
    }

    /// The one door for transitions.
    fn enter(&mut self, next: State) {
        use State::*;
        debug_assert!(
            matches!(
                (&self.state, &next),
                (Idle, Head { .. })
                    | (Head { .. }, Body { .. } | Tunnel | Idle)
                    | (Body { .. }, Idle)
                    | (_, Spent)
            ),
            "no way from {:?} to {next:?}",
            self.state
        );
        self.state = next;
    }

    fn receive_head(&mut self, bytes: &mut [u8], date: &[u8], prefix: &mut Vec<u8>) -> Step {
        let State::Head { context, scanned, interims, was_heard } = &mut self.state else {
            return Step::new(0, Outcome::Going);
        };
        let context = *context;
        *was_heard |= !bytes.is_empty();
        if *interims == 0 && !bytes.starts_with(STATUS_LINE) && !STATUS_LINE.starts_with(bytes) {
            self.enter(State::Spent);
            return Step::new(bytes.len(), Outcome::Stray { behind_an_answer: self.is_used });
        }
        let mut at = 0;
        loop {
            let length = match head::look(&bytes[at..], scanned) {
                Ok(head::HeadScan::Whole(length)) => length,
                Ok(head::HeadScan::Partial) => return Step::new(at, Outcome::Going),
                Err(Bad::LineEnd) => return self.invalid(Invalid("a line that does not end with CR LF")),
                Err(_) => return self.invalid(Invalid("a head or a first line beyond its bound")),
            };
            *scanned = head::Scanned::default();
            let mut header_buffer = request::header_buffer();
            let head = match ResponseHead::parse(&bytes[at..at + length], &mut header_buffer, context) {
                Ok(head) => head,
                Err(invalid) => return self.invalid(invalid),
            };
            at += length;
            let downstream = Downstream::of(&head, context);
            if head.status == 101 {
                downstream::write_response_head(prefix, &head, context, downstream, date);
                let answer = Answer { may_idle: true, keep_alive: false, ..Answer::new(&head, downstream) };
                self.enter(State::Tunnel);
                let step = Step::new(bytes.len(), Outcome::Upgraded);
                return Step { data: at..bytes.len(), answer: Some(answer), ..step };
            }
            if head.status < 200 {
                *interims += 1;
                if *interims > MAX_INTERIMS {
                    return self.invalid(Invalid("more than 32 interim answers"));
                }
                // The server has sent the 100 itself, and HTTP/1.0 has no 1xx.
                if head.status != 100 && context.version == Version::Http11 {
                    downstream::write_response_head(prefix, &head, context, downstream, date);
                }
                continue;
            }
            let source = match head.framing {
                Framing::Empty => Source::Length { left: 0 },
                Framing::Length(left) => Source::Length { left },
                Framing::Chunked => Source::Chunked(Chunked::default()),
                Framing::UntilClose => Source::UntilClose,
            };
            let answer = Answer::new(&head, downstream);
            let (is_busy, keep_alive) = (head.is_busy, head.keep_alive);
            if !is_busy {
                downstream::write_response_head(prefix, &head, context, downstream, date);
            }
            self.enter(State::Body { source, downstream: downstream.framing, keep_alive });
            let step = self.receive_body(&mut bytes[at..], prefix);
            if matches!(step.outcome, Outcome::Invalid(_)) && !is_busy {
                // Nothing of this answer has been sent, so the client can still get a 502.
                return step;
            }
            let outcome = match step.outcome {
                // A busy answer is short. If it is not complete, the connection is not kept for the rest of it.
                Outcome::Ended { reusable } if is_busy => Outcome::Busy { reusable },
                _ if is_busy => {
                    self.enter(State::Spent);
                    Outcome::Busy { reusable: false }
                }
                other => other,
            };
            return Step {
                consumed: step.consumed + at,
                data: step.data.start + at..step.data.end + at,
                suffix: step.suffix,
                answer: Some(answer),
                outcome,
            };
        }
    }

    fn receive_body(&mut self, bytes: &mut [u8], prefix: &mut Vec<u8>) -> Step {
        let State::Body { source, downstream, keep_alive } = &mut self.state else {
            return Step::new(0, Outcome::Going);
        };
        let (downstream, keep_alive) = (*downstream, *keep_alive);
        let (consumed, data, ended) = match source {
            Source::Length { left } => {
                let take = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= take as u64;
                (take, 0..take, *left == 0)
            }
            Source::Chunked(decoder) => match decoder.decode(bytes, u64::MAX) {
                Ok(decoded) => (decoded.consumed, decoded.data, decoded.ended),
                Err(_) => return self.invalid(Invalid("a chunk that is not valid")),
            },
            Source::UntilClose => (bytes.len(), 0..bytes.len(), false),
        };
        let suffix: &'static [u8] = match (downstream, data.is_empty(), ended) {
            (Framing::Chunked, true, true) => b"0\r\n\r\n",
            (Framing::Chunked, false, true) => b"\r\n0\r\n\r\n",
            (Framing::Chunked, false, false) => b"\r\n",
            _ => b"",
        };
        if downstream == Framing::Chunked && !data.is_empty() {
            digits::write_chunk_size(prefix, data.len());
        }
        let mut step = Step { data, suffix, ..Step::new(consumed, Outcome::Going) };
        if ended {
            let reusable = keep_alive && consumed == bytes.len();
            self.is_used = true;
            self.enter(if reusable { State::Idle } else { State::Spent });
            step.outcome = Outcome::Ended { reusable };
        }
        step
    }

    fn invalid(&mut self, invalid: Invalid) -> Step {
        self.enter(State::Spent);
        Step::new(0, Outcome::Invalid(invalid))
    }
}

#[cfg(test)]
mod tests;
