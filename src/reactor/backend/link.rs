//! The socket of a connection to a worker: made when one is needed.

use crate::reactor::io::stream::Stream;
use crate::reactor::io::token::Readiness;
use crate::states::{Row, may_become};
use std::time::Instant;

/// Whether there is a socket.
#[derive(Debug)]
pub(crate) enum Link {
    /// There is none.
    Closed,
    /// One is wanted since then. Over TCP it may be under way; else it is tried again after a moment.
    Connecting { since: Instant, stream: Option<Stream> },
    /// Bytes pass.
    Open(Socket),
}

/// A socket that is connected.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(super) stream: Stream,
    /// The kernel is watched for room to write, after a short write.
    pub(super) is_watched_for_room: bool,
    /// The worker sends no more, which is still to be read.
    pub(super) is_closing: bool,
    /// How its end was told.
    pub(super) ending: Ending,
}

/// How the end of a connection was told. Over TCP the kernel tells a reset only once, and perhaps to a `sendfile` that
/// says nothing of it; what is read behind it looks like an orderly end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Untold,
    /// By a FIN alone.
    Orderly,
    Reset,
}

/// A link without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Closed,
    Connecting,
    Open,
}

/// Each state of a link, with what may follow.
pub(crate) const LINK: &[Row<State>] = &[
    Row { state: State::Closed, next: &[State::Closed, State::Connecting, State::Open], deadline: "none" },
    Row {
        state: State::Connecting,
        next: &[State::Connecting, State::Open, State::Closed],
        deadline: "the connect timeout; connect, between two tries",
    },
    Row {
        state: State::Open,
        next: &[State::Closed],
        deadline: "its exchange's; a minute when it is not needed",
    },
];

impl Link {
    fn state(&self) -> State {
        match self {
            Link::Closed => State::Closed,
            Link::Connecting { .. } => State::Connecting,
            Link::Open(_) => State::Open,
        }
    }

    /// The one door for transitions.
    pub(super) fn enter(&mut self, next: Link) {
        let (from, to) = (self.state(), next.state());
        debug_assert!(may_become(LINK, &from, &to), "a link: no way from {from:?} to {to:?}");
        *self = next;
    }

    pub(super) fn open(&self) -> Option<&Socket> {
        match self {
            Link::Open(socket) => Some(socket),
            Link::Closed | Link::Connecting { .. } => None,
        }
    }

    pub(super) fn open_mut(&mut self) -> Option<&mut Socket> {
        match self {
            Link::Open(socket) => Some(socket),
            Link::Closed | Link::Connecting { .. } => None,
        }
    }
}

impl Socket {
    /// Not watched for writing: a Unix socket that is watched for room reports each time that its peer reads.
    pub(super) fn new(stream: Stream) -> Self {
        Socket { stream, is_watched_for_room: false, is_closing: false, ending: Ending::Untold }
    }

    /// The kernel tells of its end. `may_write`: this side has not shut its way, so that a closed one is a reset's doing.
    pub(super) fn note_end(&mut self, event: Readiness, may_write: bool) {
        self.is_closing |= event.is_read_closed;
        if self.ending == Ending::Untold && self.stream.loses_by_a_reset() {
            if event.is_error || event.is_write_closed && may_write {
                self.ending = Ending::Reset;
            } else if event.is_read_closed {
                self.ending = Ending::Orderly;
            }
        }
    }

    /// A write has failed. `is_reset`: the kernel says so.
    pub(super) fn note_failed_write(&mut self, is_reset: bool) {
        if is_reset || self.ending == Ending::Untold && self.stream.loses_by_a_reset() {
            self.ending = Ending::Reset;
        }
    }
}
