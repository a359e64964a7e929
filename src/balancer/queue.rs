//! The requests that wait for a worker: first in, first out, bounded, each with a deadline.

use crate::keys::ClientKey;
use crate::list::KeyList;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Queue {
    /// The head of the queue is the list's front. It is sorted by deadline.
    order: KeyList,
    /// The deadline of each client in `order`; of any other, an old one.
    deadlines: Vec<Instant>,
    max_waiting: usize,
    timeout: Duration,
    /// The most that have waited at once.
    longest: usize,
}

/// Getters.
impl Queue {
    pub(super) fn new(max_waiting: usize, timeout: Duration) -> Self {
        Queue { order: KeyList::default(), deadlines: Vec::new(), max_waiting, timeout, longest: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.order.len() >= self.max_waiting
    }

    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    #[cfg(test)]
    pub(super) fn contains(&self, client: ClientKey) -> bool {
        self.order.contains(client.0)
    }

    /// The deadline of a request that comes now.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        now + self.timeout
    }

    /// When the next waiting request gives up: its head's, since the queue is sorted by deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.order.front().map(|client| self.deadlines[client])
    }
}

/// Events in.
impl Queue {
    /// A request waits, behind all whose deadline is not later. New requests go to the back in one step; only the few
    /// that are tried again look for their place, from the front.
    pub(super) fn add(&mut self, client: ClientKey, deadline: Instant) {
        if self.deadlines.len() <= client.0 {
            self.deadlines.resize(client.0 + 1, deadline);
        }
        self.deadlines[client.0] = deadline;
        let is_last = self.order.back().is_none_or(|back| self.deadlines[back] <= deadline);
        if is_last {
            self.order.push_back(client.0);
        } else {
            let later = self.order.iter().find(|&other| self.deadlines[other] > deadline);
            match later {
                Some(at) => self.order.insert_before(client.0, at),
                None => self.order.push_back(client.0),
            }
        }
        self.longest = self.longest.max(self.order.len());
    }

    /// Takes the request out that is served next.
    pub(super) fn pop(&mut self) -> Option<ClientKey> {
        self.order.pop_front().map(ClientKey)
    }

    /// A client is gone, or gets an answer without a worker. `true`: it had waited.
    pub(super) fn forget(&mut self, client: ClientKey) -> bool {
        self.order.remove(client.0)
    }

    /// Takes one request out whose time is up.
    pub(super) fn expire(&mut self, now: Instant) -> Option<ClientKey> {
        if self.next_deadline()? > now {
            return None;
        }
        self.pop()
    }
}
