//! Whoever asks for metrics, for status or for a reload, or looks at the page, and reads slowly or not at all.

use super::reader;
use super::wire::{Kind, Shared, UnixStream, Wire};
use super::world::World;
use crate::control::Message;
use crate::control::{CanaryPlan, TrialLength};
use crate::reactor::admin::connections::{Connection, ControlPeer, STALLED_AFTER};
use crate::reactor::io::stream::Stream;
use crate::reactor::io::token::Target;
use crate::reactor::stage::Stage;
use std::time::Duration;
use std::time::Instant;

/// More of them only make a history slow.
const MAX_OPERATORS: usize = 6;

pub(crate) struct Operator {
    pub wire: Shared,
    asks_for: AsksFor,
    /// When it came, sent or took something last.
    active_at: Instant,
    is_closed: bool,
    /// It was closed since it took nothing for the idle timeout.
    was_slow: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AsksFor {
    /// So many requests, one behind the other.
    Pages {
        count: usize,
        is_scraper: bool,
    },
    Reload,
    /// The page's events, for as long as it looks.
    Events,
}

impl World {
    /// Somebody pipelines so many requests at once; `room` is how much it takes unread.
    pub(crate) fn ask_for_pages(&mut self, is_scraper: bool, count: usize, capacity: usize) {
        if self.operators.len() >= MAX_OPERATORS {
            return;
        }
        let (kind, peer) = match is_scraper {
            true => (Kind::Tcp, ControlPeer::Scraper),
            false => (Kind::Unix, ControlPeer::Process { pid: 0 }),
        };
        let mut text = Vec::new();
        for index in 0..count {
            // Some have a body, and some of the answers are long.
            let request = match index % 4 {
                0 => "GET /no/such/page HTTP/1.1\r\nHost: h\r\n\r\n",
                1 => "POST /neither/here HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
                2 => "GET /status HTTP/1.1\r\nHost: h\r\n\r\n",
                _ => "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n",
            };
            text.extend_from_slice(request.as_bytes());
        }
        self.operate(kind, peer, &text, AsksFor::Pages { count, is_scraper }, capacity);
    }

    pub(crate) fn ask_for_reload(&mut self, capacity: usize) {
        let length = TrialLength::Time(Duration::from_millis(500));
        let canary = self.manners.chance(2).then_some(CanaryPlan { length, max_errors_percent: 5 });
        let body = Message::Reload(canary).to_json();
        let length = body.len();
        let text = format!("POST /control HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}");
        self.operate(Kind::Unix, ControlPeer::Process { pid: 0 }, text.as_bytes(), AsksFor::Reload, capacity);
    }

    pub(crate) fn look_at_page(&mut self, capacity: usize) {
        if self.operators.len() < MAX_OPERATORS {
            let text = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
            self.operate(Kind::Tcp, ControlPeer::Viewer, text, AsksFor::Events, capacity);
        }
    }

    pub(crate) fn watch_operator(&mut self, wire: Shared, peer: ControlPeer) {
        let stream = Stream::Unix(UnixStream::of(wire));
        self.reactor.admin.watch(stream, peer, &self.reactor.io, &mut self.reactor.observer);
    }

    fn operate(&mut self, kind: Kind, peer: ControlPeer, text: &[u8], asks_for: AsksFor, capacity: usize) {
        let wire = Wire::new(kind, capacity);
        self.watch_operator(wire.clone(), peer);
        wire.borrow_mut().send(text);
        self.operators.push(Operator {
            wire,
            asks_for,
            active_at: self.now,
            is_closed: false,
            was_slow: false,
        });
    }

    pub(crate) fn operator_takes(&mut self, at: usize, bytes: usize) {
        let now = self.now;
        if let Some(operator) = self.operators.get_mut(at)
            && !operator.wire.borrow_mut().take(bytes).is_empty()
        {
            operator.active_at = now;
        }
    }

    pub(crate) fn operator_leaves(&mut self, at: usize) {
        if let Some(operator) = self.operators.get(at) {
            operator.wire.borrow_mut().close();
        }
    }

    /// Takes all that there is, from now on.
    pub(crate) fn operators_are_kind(&mut self) {
        for at in 0..self.operators.len() {
            self.operators[at].wire.borrow_mut().set_capacity(1 << 20);
            self.operator_takes(at, usize::MAX);
        }
    }

    /// What lies about for operators is little, whatever they ask for, and each that is waited for has a deadline.
    pub(crate) fn check_operators(&mut self) {
        for (key, connection) in self.reactor.admin.all() {
            // Of a head or body that is arriving there may be more.
            let inbox_bytes = connection.conn.read_buffer.len();
            let is_bounded = connection.conn.is_receiving() || inbox_bytes <= Connection::MAX_INBOX_BYTES;
            assert!(is_bounded, "operator {key}: {inbox_bytes} bytes unread");
            let answers = connection.out.windows(9).filter(|window| window == b"HTTP/1.1 ").count();
            assert!(answers <= 1, "operator {key}: {answers} answers wait for one that does not take them");
            let is_bounded = connection.out.len() <= Connection::MAX_PROGRESS_BYTES;
            assert!(!connection.follows_roll() || is_bounded, "operator {key}: progress that nobody takes");
            let events = connection.out.windows(7).filter(|window| window == b"\ndata: ").count();
            assert!(events <= 1, "operator {key}: {events} events wait for one that does not take them");
            let is_timed = self.reactor.admin.is_timed(key);
            assert!(
                !connection.waits_for_peer() || is_timed,
                "operator {key}: waited for without a deadline"
            );
        }
        let viewers = self.reactor.admin.all().filter(|(_, other)| other.is_watching()).count();
        assert_eq!(self.reactor.admin.viewers(), viewers, "who looks is counted");
        let next = self.reactor.admin.next_deadline().filter(|_| viewers > 0);
        let is_soon = next.is_some_and(|at| at <= self.now + Duration::from_secs(1));
        assert!(viewers == 0 || is_soon || self.reactor.exit.is_some(), "no event is due");
        for at in 0..self.operators.len() {
            let is_closed = self.operators[at].wire.borrow().is_server_gone;
            if is_closed && !std::mem::replace(&mut self.operators[at].is_closed, true) {
                let operator = &mut self.operators[at];
                let stalled_after = match operator.asks_for {
                    AsksFor::Pages { .. } | AsksFor::Reload => self.reactor.config.idle_timeout,
                    AsksFor::Events => STALLED_AFTER,
                };
                operator.was_slow = self.now >= operator.active_at + stalled_after;
                self.check_operators_close(at);
            }
        }
    }

    /// The server has closed an operator's connection: it must have had a cause.
    fn check_operators_close(&self, at: usize) {
        let operator = &self.operators[at];
        let wire = operator.wire.borrow();
        let is_over = self.reactor.exit.is_some() || self.reactor.stage != Stage::Running;
        let has_left = wire.is_peer_gone || wire.peer_has_ended && operator.asks_for == AsksFor::Events;
        let has_cause = has_left || operator.was_slow || is_over || self.has_all(at);
        assert!(has_cause, "operator {at}: closed without a cause");
    }

    /// At rest, whoever has room has its answers.
    pub(crate) fn check_operators_rest(&self) {
        for (at, operator) in self.operators.iter().enumerate() {
            let wire = operator.wire.borrow();
            let has_room = wire.capacity() > 0 && !wire.is_peer_gone && !wire.is_server_gone;
            let is_owed = matches!(operator.asks_for, AsksFor::Pages { .. }) && !self.has_all(at);
            assert!(!has_room || !is_owed, "operator {at}: has room, and its answers wait");
        }
    }

    /// Whether an operator has all that it has asked for.
    fn has_all(&self, at: usize) -> bool {
        let operator = &self.operators[at];
        let wire = operator.wire.borrow();
        match operator.asks_for {
            AsksFor::Pages { count, is_scraper } => {
                let heard = reader::answers(&wire.written, |_| false, false);
                let expected = |(index, heard): (usize, &reader::Heard)| {
                    let is_there = index % 4 == 3 || (index % 4 == 2 && !is_scraper);
                    heard.status == if is_there { 200 } else { 404 }
                };
                assert!(heard.iter().enumerate().all(expected), "operator {at}: answers in another order");
                heard.len() == count && heard.last().is_none_or(|last| last.is_whole)
            }
            AsksFor::Events => {
                check_events(&wire.written);
                false
            }
            AsksFor::Reload => wire.written.windows(5).any(|window| window == b"\"ok\":"),
        }
    }

    /// After the server's end: whoever follows a reload has heard of its end, unless it did not read.
    pub(crate) fn check_operators_end(&self) {
        for (at, operator) in self.operators.iter().enumerate() {
            let wire = operator.wire.borrow();
            let has_begun = wire.written.windows(6).any(|window| window == b"ndjson");
            let key = wire.token.and_then(Target::of).filter(|_| !wire.is_server_gone);
            let waits = self
                .reactor
                .admin
                .all()
                .any(|(at, other)| key == Some(Target::Control(at)) && !other.out.is_empty());
            let is_excused = waits || wire.is_peer_gone || operator.was_slow || !has_begun;
            let follows = operator.asks_for == AsksFor::Reload;
            if operator.asks_for == AsksFor::Events {
                check_events(&wire.written);
            }
            assert!(
                !follows || is_excused || self.has_all(at),
                "operator {at}: hears nothing of its reload's end"
            );
        }
    }
}

/// What a viewer has been sent: each second once, in order.
fn check_events(written: &[u8]) {
    let text = String::from_utf8_lossy(written);
    let mut next = None;
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        // The last one may be cut.
        let Ok(event) = serde_json::from_str::<serde_json::Value>(data) else { continue };
        for run in event["history"]["runs"].as_array().into_iter().flatten() {
            let second = run["second"].as_u64();
            assert!(next.is_none() || next == second, "a viewer is told a second twice, or not at all");
            next = second.zip(run["seconds"].as_u64()).map(|(second, seconds)| second + seconds);
        }
        let second = event["history"]["second"].as_u64();
        assert!(next.is_none() || next == second, "a viewer lacks seconds");
    }
}
