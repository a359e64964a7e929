//! Who an event is for, and what it tells. A token has the kind in the lowest bits, the key above them.

use crate::keys::{ClientKey, UpstreamKey};
use mio::Token;
use mio::event::Event;

/// What the kernel tells of one socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub is_readable: bool,
    pub is_writable: bool,
    /// The peer sends no more.
    pub is_read_closed: bool,
    /// The peer takes no more.
    pub is_write_closed: bool,
    pub is_error: bool,
}

impl Readiness {
    /// As if the kernel had told that bytes are there: to look once more.
    pub(crate) const READABLE: Readiness = Readiness {
        is_readable: true,
        is_writable: false,
        is_read_closed: false,
        is_write_closed: false,
        is_error: false,
    };
}

/// One event's target with what it tells; `None`: of nobody's token.
pub(crate) fn decode_event(event: &Event) -> Option<(Target, Readiness)> {
    let readiness = Readiness {
        is_readable: event.is_readable(),
        is_writable: event.is_writable(),
        is_read_closed: event.is_read_closed(),
        is_write_closed: event.is_write_closed(),
        is_error: event.is_error(),
    };
    Target::of(event.token()).map(|target| (target, readiness))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Listener(usize),
    Client(ClientKey),
    Upstream(UpstreamKey),
    ControlListener(usize),
    Control(usize),
    /// A worker's standard output or error.
    Pipe(usize),
    Signals,
    Stdout,
    Stderr,
    /// Changes in the app's sources.
    Watch,
    MetricsListener(usize),
    PageListener(usize),
    /// What became of the workers' starts.
    Spawner,
    /// The server that is to follow this one.
    Successor,
    /// The server that this one follows.
    Predecessor,
}

const KIND_BITS: u32 = 4;

impl Target {
    pub(crate) fn token(self) -> Token {
        let (kind, key) = match self {
            Target::Listener(index) => (0, index),
            Target::Client(ClientKey(key)) => (1, key),
            Target::Upstream(UpstreamKey(key)) => (2, key),
            Target::ControlListener(index) => (3, index),
            Target::Control(key) => (4, key),
            Target::Pipe(key) => (5, key),
            Target::Signals => (6, 0),
            Target::Stdout => (7, 0),
            Target::Stderr => (8, 0),
            Target::Watch => (9, 0),
            Target::MetricsListener(index) => (10, index),
            Target::Spawner => (11, 0),
            Target::Successor => (12, 0),
            Target::Predecessor => (13, 0),
            Target::PageListener(index) => (14, index),
        };
        Token((key << KIND_BITS) + kind)
    }

    pub(crate) fn of(token: Token) -> Option<Target> {
        let key = token.0 >> KIND_BITS;
        Some(match token.0 & ((1 << KIND_BITS) - 1) {
            0 => Target::Listener(key),
            1 => Target::Client(ClientKey(key)),
            2 => Target::Upstream(UpstreamKey(key)),
            3 => Target::ControlListener(key),
            4 => Target::Control(key),
            5 => Target::Pipe(key),
            6 => Target::Signals,
            7 => Target::Stdout,
            8 => Target::Stderr,
            9 => Target::Watch,
            10 => Target::MetricsListener(key),
            11 => Target::Spawner,
            12 => Target::Successor,
            13 => Target::Predecessor,
            14 => Target::PageListener(key),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Interest, Poll};
    use std::collections::HashSet;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn tokens_lead_back_to_their_targets_and_no_two_are_alike() {
        let mut tokens = HashSet::new();
        for key in [0, 1, 15, 16, 123_456] {
            let keyed = [
                Target::Listener(key),
                Target::Client(ClientKey(key)),
                Target::Upstream(UpstreamKey(key)),
                Target::ControlListener(key),
                Target::Control(key),
                Target::Pipe(key),
                Target::MetricsListener(key),
                Target::PageListener(key),
            ];
            for target in keyed {
                assert_eq!(Target::of(target.token()), Some(target));
                assert!(tokens.insert(target.token()), "{target:?}");
            }
        }
        for target in [
            Target::Signals,
            Target::Stdout,
            Target::Stderr,
            Target::Watch,
            Target::Spawner,
            Target::Successor,
            Target::Predecessor,
        ] {
            assert_eq!(Target::of(target.token()), Some(target));
            assert!(tokens.insert(target.token()), "{target:?}");
        }
        assert_eq!(Target::of(Token(15)), None);
    }

    #[test]
    fn an_event_tells_whose_it_is_and_what_has_happened() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("an option");
        let mut near = mio::net::UnixStream::from_std(near);
        let mut poll = Poll::new().expect("epoll");
        let interests = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut near, Target::Control(9).token(), interests).expect("registered");
        let mut events = Events::with_capacity(4);
        let mut told = || {
            poll.poll(&mut events, Some(Duration::from_secs(10))).expect("polled");
            events.iter().map(decode_event).collect::<Vec<_>>()
        };
        let writable = Readiness { is_writable: true, ..Readiness::default() };
        assert_eq!(told(), [Some((Target::Control(9), writable))]);
        far.write_all(b"x").expect("written");
        let both = Readiness { is_writable: true, ..Readiness::READABLE };
        assert_eq!(told(), [Some((Target::Control(9), both))]);
        drop(far);
        let closed = Readiness { is_read_closed: true, is_write_closed: true, ..both };
        assert_eq!(told(), [Some((Target::Control(9), closed))]);
    }
}
