//! One connection to a worker, as the worker reads it.

use super::oracle::Oracle;
use super::reader;
use super::script::Answer;
use super::wire::Shared;
use crate::keys::UpstreamKey;
use crate::reactor::io::token::Target;
use std::time::Instant;

/// One connection to a worker.
pub(crate) struct Line {
    pub wire: Shared,
    /// So much was written, and so much of it done with.
    pub seen: usize,
    pub parsed: usize,
    pub hand: Option<Hand>,
    /// The last request that it had in hand, of whose answer bytes may be on their way.
    pub last: Option<usize>,
    /// The tick in which anything happened on it last.
    pub touched: Instant,
}

/// The request that a worker has in hand.
pub(crate) struct Hand {
    pub tag: usize,
    /// As the server has named it; empty where its head has not come in full.
    pub id: Vec<u8>,
    pub began: Instant,
    /// Another one was answered over this connection before.
    pub is_behind_another: bool,
    pub answer: Option<Answer>,
    pub said: usize,
    pub is_checked: bool,
}

impl Line {
    pub(crate) fn new(wire: Shared, now: Instant) -> Self {
        Line { wire, seen: 0, parsed: 0, hand: None, last: None, touched: now }
    }

    /// The server's key for it.
    pub(crate) fn upstream(&self) -> Option<UpstreamKey> {
        let wire = self.wire.borrow();
        match wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone) {
            Some(Target::Upstream(upstream)) => Some(upstream),
            _ => None,
        }
    }

    /// Reads what the server has written: the request that is in hand, and the one behind it. Requests that are new
    /// are handed back.
    pub(crate) fn read(
        &mut self,
        oracle: &Oracle,
        now: Instant,
        probe_answer: &impl Fn(Option<&[u8]>) -> &'static [u8],
    ) -> Vec<usize> {
        let mut fresh = Vec::new();
        let written = self.wire.borrow().written.len();
        if std::mem::replace(&mut self.seen, written) < written {
            self.touched = now;
        }
        if self.hand.is_none() && written > self.parsed {
            self.touched = now;
            self.answer_probe(probe_answer);
        }
        let wire = self.wire.borrow();
        loop {
            let remaining = &wire.written[self.parsed..];
            assert!(!remaining.starts_with(b"GET /s"), "a worker has what the server answers by itself");
            let Some(found) = reader::request(remaining) else { break };
            let Some(hand) = &mut self.hand else {
                fresh.push(found.tag);
                let is_behind_another = self.last.replace(found.tag).is_some();
                let (answer, said, is_checked) = (None, 0, false);
                let (tag, began, id) = (found.tag, now, reader::id(remaining).unwrap_or_default());
                self.hand = Some(Hand { tag, id, began, is_behind_another, answer, said, is_checked });
                continue;
            };
            let Some(length) = found.bytes.filter(|&length| remaining.len() >= length) else { break };
            if !hand.is_checked {
                hand.is_checked = true;
                let is_as_sent =
                    remaining[length - found.body_bytes..length] == oracle.tags[hand.tag].planned.body;
                assert!(is_as_sent, "request {}: its body is not as it was sent", hand.tag);
                let is_offered = reader::offers_websocket(remaining);
                let is_as_sent = is_offered == oracle.tags[hand.tag].planned.wants_websocket;
                assert!(is_as_sent, "request {}: its offer of a WebSocket is not as it was sent", hand.tag);
            }
            if hand.answer.as_ref().is_some_and(|answer| answer.is_tunnel) {
                let is_as_sent = oracle.tags[hand.tag].planned.behind.starts_with(&remaining[length..]);
                assert!(is_as_sent, "request {}: bytes in its tunnel that nobody sent", hand.tag);
                break;
            }
            if !hand.is_done() {
                let tag = hand.tag;
                assert!(
                    remaining.len() == length,
                    "request {tag}: another one before the last byte of its answer"
                );
                break;
            }
            let may_have_late_body = hand.answer.as_ref().is_some_and(|answer| answer.may_have_late_body);
            assert!(
                remaining.len() == length || !may_have_late_body,
                "behind request {}: another one, where a body may still come",
                hand.tag
            );
            self.parsed += length;
            self.hand = None;
        }
        fresh
    }

    fn answer_probe(&mut self, answer: &impl Fn(Option<&[u8]>) -> &'static [u8]) {
        let mut wire = self.wire.borrow_mut();
        if wire.written[self.parsed..].starts_with(b"GET /ready ") {
            let id = reader::id(&wire.written[self.parsed..]);
            self.parsed = wire.written.len();
            wire.take(usize::MAX);
            wire.send(answer(id.as_deref()));
            wire.close();
        }
    }
}

impl Hand {
    /// It has no answer yet.
    pub(crate) fn is_asked(&self) -> bool {
        self.answer.is_none()
    }

    pub(crate) fn is_speaking(&self) -> bool {
        self.answer.is_some() && !self.is_done()
    }

    /// A handler is at work on it.
    pub(crate) fn is_handled(&self) -> bool {
        !self.is_done() && self.answer.as_ref().is_none_or(|answer| !answer.is_busy)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| self.said == answer.bytes.len())
    }
}
