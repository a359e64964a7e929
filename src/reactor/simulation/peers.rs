//! Both ends that the simulated server talks to: a client, and a worker's process.

use super::line::{Hand, Line};
use super::oracle::Oracle;
use super::script::{Header, Planned};
use super::wire::{self, Shared};
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

pub(crate) struct Client {
    pub wire: Shared,
    pub script: Vec<u8>,
    pub sent: usize,
    pub requests: Vec<Planned>,
    /// What its proxy says of it in front.
    pub header: Option<Header>,
    /// When it last sent something, or came.
    pub sent_at: Instant,
    /// When it last took something, or came.
    pub took_at: Instant,
    /// The tick in which anything passed on its connection last.
    pub active_at: Instant,
    pub written_bytes: usize,
    pub is_closed: bool,
    /// When the server ended its side.
    pub parted_at: Option<Instant>,
    /// Its FIN came before its close: nothing tells of that one.
    pub ended_early: bool,
    /// It waits in the queue, and this tick tells that it has closed its side.
    pub leaves_queue: bool,
}

/// A worker process as it sees itself.
pub(crate) struct Worker {
    pub pid: i32,
    pub slot: usize,
    pub version: u64,
    pub socket: PathBuf,
    pub life: Life,
    /// SIGTERM lets what it has at work end, and its join says so.
    pub drains: bool,
    pub lines: Vec<Line>,
    /// The request that it goes on with.
    pub looks_at: Option<usize>,
    /// Its join speaks the protocol's second version.
    pub speaks_second: bool,
    /// Its join says that event streams and tunnels go on beside requests.
    pub takes_streams: bool,
    /// As its join says.
    pub concurrency: u64,
    /// Its runtime closes a connection that the server has shut, while the handler runs on.
    pub closes_when_told: bool,
    /// Requests whose handlers run, and whose connections are closed.
    pub running: Vec<Running>,
    /// How often it was asked by the server itself.
    pub probes: Rc<Cell<usize>>,
    /// An answer of it stands in the log, from the time before it left.
    pub has_served: bool,
    pub has_quit: bool,
}

/// A request whose handler runs on without its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Running {
    pub tag: usize,
    /// As the server has named it.
    pub id: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Booting,
    Joined,
    /// It has been told to end.
    Leaving,
    Ended,
}

impl Client {
    /// Notes whether anything passes or has passed in this tick.
    pub(crate) fn note_activity(&mut self, now: Instant) {
        let wire = self.wire.borrow();
        let is_accepted = wire.token.is_some();
        if !is_accepted
            || !wire.to_server.is_empty()
            || wire.has_edge()
            || wire.written.len() > self.written_bytes
        {
            self.active_at = now;
            self.written_bytes = wire.written.len();
        }
    }

    /// The address that its requests come from; `None`: nobody may know.
    pub(crate) fn address(&self) -> Option<&str> {
        self.header.as_ref().map_or(Some("127.0.0.1"), |header| header.client.as_deref())
    }

    /// Its proxy has said something else than a header, or has said too little for too long.
    pub(crate) fn has_no_header(&self, waits_until: Instant, now: Instant) -> bool {
        self.header.as_ref().is_some_and(|header| {
            let is_arriving = header.client.is_none() || self.sent < header.bytes.len();
            let is_late = is_arriving && now >= waits_until;
            (header.client.is_none() && self.sent > 0) || is_late
        })
    }

    /// Whether that one of its requests is a HEAD.
    pub(crate) fn is_head(&self, index: usize) -> bool {
        self.requests.get(index).is_some_and(|request| request.method == "HEAD")
    }

    /// It has not sent all of its script.
    pub(crate) fn can_send_more(&self) -> bool {
        self.sent < self.script.len()
    }

    pub(crate) fn can_send(&self) -> bool {
        let wire = self.wire.borrow();
        self.can_send_more() && !wire.peer_has_ended && !wire.is_server_gone && !wire.is_reset
    }
}

impl Worker {
    /// Goes on with one of the requests that fit.
    pub(crate) fn look_at(&mut self, number: usize, fits: impl Fn(&Hand) -> bool) {
        let hands = self.lines.iter().filter_map(|line| line.hand.as_ref());
        let fit: Vec<usize> = hands.filter(|hand| fits(hand)).map(|hand| hand.tag).collect();
        self.looks_at = (!fit.is_empty()).then(|| fit[number / 3 % fit.len()]);
    }

    /// The connection of the request that it goes on with, else the newest one that has any.
    pub(crate) fn line_looked_at(&self) -> Option<usize> {
        let tag = |line: &Line| line.hand.as_ref().map(|hand| hand.tag);
        let found = self.lines.iter().rposition(|line| tag(line).is_some() && tag(line) == self.looks_at);
        found.or_else(|| self.lines.iter().rposition(|line| line.hand.is_some()))
    }

    /// That request.
    pub(crate) fn hand(&mut self) -> Option<&mut Hand> {
        let line = self.line_looked_at()?;
        self.lines[line].hand.as_mut()
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.lines.iter().any(|line| line.hand.as_ref().is_some_and(Hand::is_asked))
    }

    pub(crate) fn is_speaking(&self) -> bool {
        self.lines.iter().any(|line| line.hand.as_ref().is_some_and(Hand::is_speaking))
    }

    /// Told to end, with nothing in hand.
    pub(crate) fn may_go(&self) -> bool {
        self.life == Life::Leaving && !self.is_asked() && !self.is_speaking()
    }

    /// What it says when it is probed. A command is there with any answer, but it may say first that it is busy; a
    /// worker is idle if no handler runs, or none of the request that it is asked about.
    pub(crate) fn probe_answer(&self, is_command: bool) -> impl Fn(Option<&[u8]>) -> &'static [u8] + use<> {
        let (running, probes, is_odd) = (self.running.clone(), self.probes.clone(), self.closes_when_told);
        move |id| {
            let is_first = probes.replace(probes.get() + 1) == 0;
            let is_busy = match is_command {
                true => is_first && is_odd,
                false => running.iter().any(|running| id.is_none_or(|id| running.id == id)),
            };
            match is_busy {
                true => {
                    b"HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                }
                false if is_command => b"HTTP/1.1 404 Not Found\r\n\r\nand so on",
                false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
            }
        }
    }

    /// A runtime that cannot keep a connection which the server has shut; its handler runs on.
    pub(crate) fn close_what_is_shut(&mut self, oracle: &mut Oracle) {
        if !self.closes_when_told {
            return;
        }
        for line in &mut self.lines {
            let Some(hand) = line.hand.as_ref().filter(|hand| hand.is_handled()) else { continue };
            let mut wire = line.wire.borrow_mut();
            if wire.server_has_ended && !wire.peer_has_ended {
                self.running.push(Running { tag: hand.tag, id: hand.id.clone() });
                wire.close();
                oracle.tags[hand.tag].was_closed_on = true;
                if let Some(answer) = &hand.answer {
                    oracle.answers[answer.number].is_hung_up |= !wire.is_reset;
                }
            }
        }
    }

    /// What it was at work on over a connection that the server has closed goes on. It learns of that when it writes.
    pub(crate) fn go_on_without(&mut self) {
        for line in &self.lines {
            let wire = line.wire.borrow();
            let Some(hand) = line.hand.as_ref().filter(|hand| hand.is_handled() && hand.is_checked) else {
                continue;
            };
            if self.life != Life::Ended && wire.is_server_gone && !wire.peer_has_ended {
                self.running.push(Running { tag: hand.tag, id: hand.id.clone() });
            }
        }
    }

    /// Closes its connections; an end in good order, if it has read all that it was sent. Its handlers may run on.
    pub(crate) fn hang_up(&mut self, oracle: &mut Oracle) {
        (0..self.lines.len()).for_each(|line| self.hang_up_line(line, oracle));
    }

    /// The same with the one of the request that it goes on with.
    pub(crate) fn hang_up_here(&mut self, oracle: &mut Oracle) {
        if let Some(line) = self.line_looked_at() {
            self.hang_up_line(line, oracle);
        }
    }

    fn hang_up_line(&mut self, line: usize, oracle: &mut Oracle) {
        if let Some(line) = self.lines.get_mut(line) {
            let mut wire = line.wire.borrow_mut();
            oracle.has_closed_idle |= self.life != Life::Ended && line.hand.is_none();
            if self.life != Life::Ended
                && let Some(hand) = &line.hand
            {
                oracle.tags[hand.tag].was_closed_on = true;
                // Of an answer that ends with its connection that is the end, for all that anybody can tell.
                let ends_answer = hand
                    .answer
                    .as_ref()
                    .is_some_and(|answer| answer.ends_with_connection && hand.said >= answer.head_bytes);
                let runs_on = hand.is_handled() && !ends_answer && self.closes_when_told;
                if !wire.peer_has_ended && runs_on {
                    self.running.push(Running { tag: hand.tag, id: hand.id.clone() });
                }
            }
            wire.close();
            if let Some(answer) = line.hand.as_ref().and_then(|hand| hand.answer.as_ref()) {
                oracle.answers[answer.number].is_hung_up |= !wire.is_reset;
            }
        }
    }

    pub(crate) fn listen(&mut self, capacity: usize) {
        wire::set_capacity(&self.socket, capacity);
        for line in &mut self.lines {
            let mut wire = line.wire.borrow_mut();
            wire.take(capacity);
            wire.set_capacity(capacity);
        }
    }
}
