//! Connections of the control socket, of the metrics listeners and of the page's. They have the bounds that clients have: so much is
//! read a tick, an answer is made only when the last one has been taken, each wait has a deadline, and there are only
//! so many of them.
//!
//! ```text
//! Reading ──request──▶ Answering ──all taken──▶ Reading, or (Lingering ─▶) Closed
//!    ├─reload, upgrade─▶ FollowsRoll, FollowsUpgrade ──its end──▶ Answering        └─stop─▶ AwaitsEnd
//!    ├─the page's events─▶ Watches
//!    └─status─▶ AwaitsAnswer ──memory is known──▶ Reading, and the request once more
//! ```

mod accepting;
mod answering;
mod viewers;

pub(crate) use viewers::STALLED_AFTER;
pub(super) use viewers::Viewers;

use super::Admin;
use crate::conn::client::Event;
use crate::conn::read_buffer::PendingBytes;
use crate::conn::{self, Request};
use crate::deadlines::deadline_kinds;
use crate::http::Reason;
use crate::http::forward::{ForwardedTrust, Origin};
use crate::reactor::io::Io;
use crate::reactor::io::stream::{Stream, Transfer, attempt};
use crate::reactor::io::token::{Readiness, Target};
use slab::Slab;
use std::collections::VecDeque;
use std::io::Write;
use std::time::Instant;

/// At most this many metrics connections; one more ends another, the one that has been idle for the longest time first.
/// Scrapers are few, and whoever opens more is a stranger.
const MAX_SCRAPERS: usize = 64;
/// At most this many connections to the page: a browser opens a few for each viewer. One more ends another, and never
/// one that gets events.
const MAX_PAGE_CONNECTIONS: usize = 32;
/// So much of its events the kernel keeps for a viewer, a second or two, and twice that with its own share.
const VIEWER_SEND_BUFFER_BYTES: usize = 16 * 1024;
/// At most this many control connections: one more ends an idle one, or waits in the backlog. A worker's connection
/// lasts for one message.
const MAX_CONTROL: usize = 256;
/// A message is a line of JSON; a larger body is not one.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// One read. Requests are short, and what lies behind the current one waits in the kernel.
const READ_BYTES: usize = if cfg!(any(test, fuzzing)) { 64 } else { 4096 };
/// At most this many connections are looked at in one tick, each for one read and one request: rendering the metrics
/// costs 0.1 ms.
const MAX_STEPS_PER_TICK: usize = if cfg!(any(test, fuzzing)) { 2 } else { 16 };
/// Progress of a rolling restart is left out for whoever has not taken that much of it. Its end is never left out.
const MAX_PROGRESS_BYTES: usize = if cfg!(any(test, fuzzing)) { 64 } else { 4096 };

deadline_kinds! {
    /// What a connection waits for.
    pub(crate) enum ControlDeadline {
        /// A next request.
        Idle,
        /// That the peer takes a byte of its answer.
        Take,
        /// The whole head, or the next byte of a body.
        Receive,
        /// The end of a peer that has had its last answer.
        Linger,
        /// That a viewer takes a byte of its event.
        View,
    }
}

/// Who is on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlPeer {
    /// A process of the same user, as the kernel says.
    Process { pid: i32 },
    /// Root, where the server is another user's: it may give orders, but is no worker.
    Root,
    /// Another user: there is nothing for it but whose server this is.
    Stranger,
    /// Anybody, by a metrics listener: there is nothing but metrics for it.
    Scraper,
    /// Anybody, by a listener of the page: there is nothing but the page for it.
    Viewer,
}

impl ControlPeer {
    /// Whether it has come by the control socket.
    fn is_control(self) -> bool {
        match self {
            ControlPeer::Process { .. } | ControlPeer::Root | ControlPeer::Stranger => true,
            ControlPeer::Scraper | ControlPeer::Viewer => false,
        }
    }

    pub(crate) fn may_ask_for_status(self) -> bool {
        match self {
            ControlPeer::Process { .. } | ControlPeer::Root => true,
            ControlPeer::Stranger | ControlPeer::Scraper | ControlPeer::Viewer => false,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    pub conn: conn::Client,
    body: Vec<u8>,
    /// What the peer has not taken of its answer.
    pub out: Vec<u8>,
    phase: Phase,
    peer: ControlPeer,
    /// It stands in the ready list.
    is_ready: bool,
    /// The kernel may hold more bytes.
    is_readable: bool,
    /// The peer sends no more.
    is_closing: bool,
    /// The peer has closed, so nobody takes an answer.
    has_hung_up: bool,
    /// Grows with each connection.
    number: u64,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests, or one is arriving.
    Reading,
    /// Its answer is whole, and not all of it is taken.
    Answering(Then),
    /// It is told of the rolling restart's progress.
    FollowsRoll,
    /// It is told of the upgrade's progress.
    FollowsUpgrade,
    /// It gets the page's events. `seen`: the seconds of the history before that one are there.
    Watches { seen: u64 },
    /// It stays open until the server ends, and tells that end by its own.
    AwaitsEnd,
    /// What it asks for has to be found out first.
    AwaitsAnswer,
    /// It has had its last answer, and may still be sending.
    Lingering,
    /// Out of the slab after this batch of events.
    Closed,
}

/// What follows when all of an answer is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Keep,
    Close,
}

/// All connections, and those that have something to do.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    slab: Slab<Connection>,
    /// First come, first served, so that nobody's many requests keep the others waiting.
    ready: VecDeque<usize>,
    closed: Vec<usize>,
    accepted: u64,
    /// Requests whose connections await an answer, with the connections' numbers.
    postponed: Vec<(Ask, u64)>,
    /// Somebody is left in the control socket's backlog.
    is_full: bool,
    /// Somebody has come to the control socket since a deadline of the fleet's was looked at, and may have a join to say.
    has_newcomers: bool,
    /// The deadline that was put off for that.
    put_off: Option<Instant>,
}

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.postponed.is_empty()
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Connection)> {
        self.slab.iter()
    }

    fn get_mut(&mut self, key: usize) -> Option<&mut Connection> {
        self.slab.get_mut(key).filter(|connection| connection.phase != Phase::Closed)
    }

    fn mark_ready(&mut self, key: usize) {
        if let Some(connection) = self.get_mut(key)
            && !std::mem::replace(&mut connection.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Whether another control connection is one too many.
    fn is_at_bound(&self, bound: usize) -> bool {
        let counts = |other: &Connection| other.peer.is_control() && other.phase != Phase::Closed;
        self.slab.len() >= bound && self.slab.iter().filter(|(_, other)| counts(other)).count() >= bound
    }

    /// The control connection that makes room for another one: the oldest of those that wait for a request.
    fn idle_control(&self) -> Option<usize> {
        let is_idle = |other: &Connection| {
            let is_one = other.peer.is_control() && other.phase == Phase::Reading;
            is_one && !other.is_ready && other.conn.is_idle()
        };
        let idle = self.slab.iter().filter(|(_, other)| is_idle(other));
        idle.min_by_key(|(_, other)| other.number).map(|(key, _)| key)
    }

    /// The connection of scrapers, or of viewers, that makes room for another one, if that is necessary.
    fn one_to_close(&self, peer: ControlPeer, bound: usize) -> Option<usize> {
        let all = || {
            let is_one = |other: &Connection| other.peer == peer && other.phase != Phase::Closed;
            self.slab.iter().filter(move |(_, other)| is_one(other))
        };
        if all().count() < bound {
            return None;
        }
        let rank = |other: &Connection| (other.is_watching(), !other.conn.is_idle(), other.number);
        all().min_by_key(|(_, other)| rank(other)).map(|(key, _)| key)
    }
}

impl Connection {
    /// Whether bytes that come now can be used.
    fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Reading | Phase::Lingering)
    }

    pub(crate) fn is_watching(&self) -> bool {
        matches!(self.phase, Phase::Watches { .. })
    }
}

#[cfg(any(test, fuzzing))]
impl Connection {
    /// Its peer is waited for, so it needs a deadline.
    pub(crate) fn waits_for_peer(&self) -> bool {
        let is_told_later = matches!(
            self.phase,
            Phase::FollowsRoll | Phase::FollowsUpgrade | Phase::AwaitsEnd | Phase::AwaitsAnswer
        ) || self.is_watching();
        self.phase != Phase::Closed && (!is_told_later || !self.out.is_empty())
    }

    pub(crate) fn follows_roll(&self) -> bool {
        self.phase == Phase::FollowsRoll
    }

    /// No more than one read lies behind a request, and what was left of the read before it.
    pub(crate) const MAX_INBOX_BYTES: usize = 2 * READ_BYTES;
    /// No more than this of a rolling restart's progress.
    pub(crate) const MAX_PROGRESS_BYTES: usize = 3 * MAX_PROGRESS_BYTES;
}

/// What somebody asks for.
#[derive(Debug)]
pub(crate) struct Ask {
    pub key: usize,
    pub peer: ControlPeer,
    pub request: Request,
    pub body: Vec<u8>,
    pub arrived: Instant,
}

/// Reading and writing.
impl Admin {
    pub(crate) fn note(&mut self, key: usize, event: Readiness) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.is_readable |= event.is_readable || event.is_read_closed;
        connection.is_closing |= event.is_read_closed;
        connection.has_hung_up |= event.is_write_closed || event.is_error;
        self.connections.mark_ready(key);
    }

    /// How many of the connections that have something to do are looked at in this tick.
    pub(crate) fn steps(&self) -> usize {
        self.connections.ready.len().min(MAX_STEPS_PER_TICK)
    }

    /// The next one that has something to do.
    pub(crate) fn next_ready(&mut self) -> Option<usize> {
        let key = self.connections.ready.pop_front()?;
        if let Some(connection) = self.connections.slab.get_mut(key) {
            connection.is_ready = false;
        }
        Some(key)
    }

    /// One step: what waits is written; then one read, and at most one request.
    pub(crate) fn advance(&mut self, key: usize, io: &Io) -> Option<Ask> {
        self.flush(key, io);
        // Requests that had to wait for the answer before them come first, so that no more than one read lies unread.
        if let Some(ask) = self.feed(key, &mut [], io) {
            self.connections.mark_ready(key);
            return Some(ask);
        }
        let mut scratch = [0; READ_BYTES];
        let connection = self.connections.get_mut(key)?;
        if !connection.is_reading() || !connection.is_readable {
            return None;
        }
        match connection.stream.receive(&mut scratch) {
            Transfer::Bytes(bytes) => {
                // A short read means drained; unless the peer has closed: then the end is still to be read.
                connection.is_readable = bytes == READ_BYTES || connection.is_closing;
                let has_more = connection.is_readable;
                let ask = self.feed(key, &mut scratch[..bytes], io);
                if has_more {
                    self.connections.mark_ready(key);
                }
                ask
            }
            Transfer::Later => {
                connection.is_readable = false;
                None
            }
            Transfer::End => {
                connection.is_readable = false;
                connection.conn.has_ended = true;
                self.feed(key, &mut [], io)
            }
            Transfer::Gone | Transfer::Reset => {
                self.close(key);
                None
            }
        }
    }

    /// Hands bytes to the connection's machine, up to the end of one request.
    fn feed(&mut self, key: usize, fresh: &mut [u8], io: &Io) -> Option<Ask> {
        let now = io.now();
        let connection = self.connections.get_mut(key)?;
        let mut ask = None;
        let mut pending_bytes = PendingBytes::join(connection.conn.read_buffer.take(), fresh);
        let origin = Origin { address: "", trust: ForwardedTrust::Ignored, fresh_id: b"", start_us: b"" };
        while ask.is_none()
            && let Some(connection) = self.connections.get_mut(key).filter(|other| other.is_reading())
        {
            let bound = MAX_BODY_BYTES as u64;
            let step = connection.conn.advance(pending_bytes.remaining(), origin, bound, Vec::new, now);
            match step.event {
                // Nobody announces a proxy here.
                Event::More | Event::Tunnel(_) | Event::ProxyHeader(_) | Event::NoProxyHeader(_) => {
                    pending_bytes.consume(step.consumed);
                    break;
                }
                Event::End => self.close(key),
                Event::Continue => connection.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
                Event::Body(range) => {
                    connection.body.extend_from_slice(&pending_bytes.remaining()[range]);
                }
                Event::Refused(reason, request) => {
                    connection.body = Vec::new();
                    self.refuse(key, &request, reason, io);
                }
                Event::Request(request) => {
                    let (peer, body) = (connection.peer, std::mem::take(&mut connection.body));
                    self.deadlines.disarm(key);
                    ask = Some(Ask { key, peer, request, body, arrived: now });
                }
            }
            pending_bytes.consume(step.consumed);
        }
        let Some(connection) = self.connections.get_mut(key) else { return ask };
        connection.conn.read_buffer.keep(pending_bytes);
        let is_timed = self.deadlines.armed(key) == Some(ControlDeadline::Receive);
        let has_begun = connection.conn.is_receiving() && !is_timed;
        if connection.phase == Phase::Reading && (has_begun || connection.conn.is_in_body()) {
            self.deadlines.arm(key, ControlDeadline::Receive, now);
        }
        if ask.is_none() {
            self.flush(key, io);
        }
        ask
    }

    /// Writes what the peer has not taken; what follows when that is all.
    pub(crate) fn flush(&mut self, key: usize, io: &Io) {
        let now = io.now();
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut taken_bytes = 0;
        while taken_bytes < connection.out.len() {
            match attempt(|| connection.stream.write(&connection.out[taken_bytes..])) {
                Transfer::Bytes(bytes) => taken_bytes += bytes,
                Transfer::Later => break,
                Transfer::End | Transfer::Gone | Transfer::Reset => return self.close(key),
            }
        }
        connection.out.drain(..taken_bytes);
        let has_taken_all = connection.out.is_empty();
        if has_taken_all {
            // A status of thousands of workers is large.
            connection.out = Vec::new();
        }
        match connection.phase {
            Phase::Reading | Phase::Lingering | Phase::Closed => {}
            Phase::FollowsRoll | Phase::FollowsUpgrade | Phase::AwaitsEnd | Phase::AwaitsAnswer
                if connection.has_hung_up =>
            {
                self.close(key)
            }
            // Nobody looks at a page behind a half-closed connection.
            Phase::Watches { .. } if connection.has_hung_up || connection.is_closing => self.close(key),
            Phase::FollowsRoll
            | Phase::FollowsUpgrade
            | Phase::AwaitsEnd
            | Phase::AwaitsAnswer
            | Phase::Watches { .. }
                if has_taken_all =>
            {
                self.deadlines.disarm(key)
            }
            Phase::Watches { .. } => {
                let is_timed = self.deadlines.armed(key) == Some(ControlDeadline::View);
                if taken_bytes > 0 || !is_timed {
                    self.deadlines.arm(key, ControlDeadline::View, now);
                }
            }
            Phase::Answering(then) if has_taken_all => self.answer_taken(key, then, io),
            Phase::Answering(_)
            | Phase::FollowsRoll
            | Phase::FollowsUpgrade
            | Phase::AwaitsEnd
            | Phase::AwaitsAnswer => {
                let is_timed = self.deadlines.armed(key) == Some(ControlDeadline::Take);
                if taken_bytes > 0 || !is_timed {
                    self.deadlines.arm(key, ControlDeadline::Take, now);
                }
            }
        }
    }

    /// Takes one connection whose deadline is due.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(usize, ControlDeadline)> {
        self.deadlines.expire(now)
    }

    /// An idle connection is about to be closed: a request that has arrived is answered.
    pub(crate) fn look_once_more(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.is_readable = true;
        }
    }

    pub(crate) fn close_if_idle(&mut self, key: usize) {
        let is_idle = |other: &mut Connection| other.phase == Phase::Reading && other.conn.is_idle();
        let is_timed = self.deadlines.armed(key).is_some();
        if !is_timed && self.connections.get_mut(key).is_some_and(is_idle) {
            self.close(key);
        }
    }

    /// Its request has not come in time.
    pub(crate) fn refuse_arriving(&mut self, key: usize, io: &Io) {
        let connection = self.connections.get_mut(key);
        match connection.and_then(|connection| connection.conn.abandon(Vec::new(), io.now())) {
            Some(request) => self.refuse(key, &request, Reason::ClientTimeout, io),
            None => self.close(key),
        }
    }

    /// Out of the slab after this batch of events.
    pub(crate) fn close(&mut self, key: usize) {
        self.deadlines.disarm(key);
        if let Some(connection) = self.connections.get_mut(key) {
            if connection.is_watching() {
                self.viewers.leave();
            }
            connection.phase = Phase::Closed;
            self.connections.closed.push(key);
        }
    }

    /// Drops the connections that were closed in this tick, so that no key is used again inside one batch of events.
    pub(crate) fn remove_closed(&mut self, io: &mut Io) {
        let connections = &mut self.connections;
        for key in connections.closed.drain(..) {
            connections.slab.try_remove(key);
            if std::mem::take(&mut connections.is_full) {
                (0..self.listeners.len()).for_each(|index| io.go_on_with(Target::ControlListener(index)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
