//! Who gets the page's events: once a second, while anybody does.

use super::Phase;
use crate::reactor::admin::Admin;
use crate::reactor::io::Io;
use std::time::{Duration, Instant};

/// At most so many get events at once: the operators of one server are few, and each costs an event a second.
pub(crate) const MAX_VIEWERS: usize = 8;
/// A viewer that takes no byte of its event for so long is dropped. A browser comes back by itself.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

#[derive(Debug, Default)]
pub(crate) struct Viewers {
    count: usize,
    /// When the next event is due, if anybody is there.
    next_event: Option<Instant>,
}

impl Viewers {
    pub(crate) fn next_event(&self) -> Option<Instant> {
        self.next_event.filter(|_| self.count > 0)
    }

    pub(super) fn leave(&mut self) {
        self.count -= 1;
    }
}

impl Admin {
    pub(crate) fn viewers(&self) -> usize {
        self.viewers.count
    }

    /// Whether another one is one too many.
    pub(crate) fn is_full_of_viewers(&self, io: &Io) -> bool {
        self.viewers.count >= self.max_viewers(io)
    }

    /// The connection gets events from now on, behind that head.
    pub(crate) fn begin_watching(&mut self, key: usize, head: &str) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.out.extend_from_slice(head.as_bytes());
            connection.phase = Phase::Watches { seen: 0 };
            self.viewers.count += 1;
        }
    }

    /// Whether an event is due.
    pub(crate) fn is_event_due(&self, now: Instant) -> bool {
        self.viewers.next_event().is_some_and(|at| at <= now)
    }

    pub(crate) fn set_next_event(&mut self, at: Instant) {
        self.viewers.next_event = Some(at);
    }

    /// Those who have taken the event before, each with the second that it has not seen. Who has not gets the next one
    /// later, so that no more than one waits for anybody.
    pub(crate) fn ready_viewers(&self) -> Vec<(usize, u64)> {
        let ready = self.connections.slab.iter().filter(|(_, other)| other.out.is_empty());
        let ready = ready.filter_map(|(key, other)| match other.phase {
            Phase::Watches { seen } => Some((key, seen)),
            _ => None,
        });
        ready.collect()
    }

    pub(crate) fn send_event(&mut self, key: usize, text: &str, second: u64, io: &Io) {
        if let Some(connection) = self.connections.get_mut(key)
            && connection.is_watching()
        {
            connection.out.extend_from_slice(text.as_bytes());
            connection.phase = Phase::Watches { seen: second };
            self.flush(key, io);
        }
    }

    pub(crate) fn close_viewers(&mut self) {
        let watching = self.connections.slab.iter().filter(|(_, other)| other.is_watching());
        let watching: Vec<usize> = watching.map(|(key, _)| key).collect();
        watching.into_iter().for_each(|key| self.close(key));
    }
}
