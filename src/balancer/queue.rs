//! The requests that wait for a worker: bounded, each with a deadline. Second tries are served first; of the others the
//! oldest, or, as [`Order`] says, the newest.

use super::order::{Order, QueueRule, Serving};
use crate::deadlines::earliest;
use crate::keys::ClientKey;
use crate::list::KeyList;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Queue {
    /// Sorted by deadline.
    arrivals: KeyList,
    /// The same of those that a worker has had once.
    second_tries: KeyList,
    /// The deadline of each client in either list; of any other, an old one.
    deadlines: Vec<Instant>,
    order: Order,
    max_waiting: usize,
    timeout: Duration,
    /// The most that have waited at once.
    longest: usize,
}

/// Getters.
impl Queue {
    pub(super) fn new(max_waiting: usize, timeout: Duration, rule: QueueRule) -> Self {
        Queue {
            arrivals: KeyList::default(),
            second_tries: KeyList::default(),
            deadlines: Vec::new(),
            order: Order::new(rule),
            max_waiting,
            timeout,
            longest: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.arrivals.len() + self.second_tries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.arrivals.is_empty() && self.second_tries.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.max_waiting
    }

    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    pub(super) fn order(&self) -> &Order {
        &self.order
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn contains(&self, client: ClientKey) -> bool {
        self.arrivals.contains(client.0) || self.second_tries.contains(client.0)
    }

    /// The deadline of a request that comes now.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        now + self.timeout
    }

    /// When the next waiting request gives up: both lists are sorted by deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let first = |list: &KeyList| list.front().map(|client| self.deadlines[client]);
        earliest([first(&self.arrivals), first(&self.second_tries)])
    }
}

/// Events in.
impl Queue {
    /// A request waits, behind all whose deadline is not later. Nearly all go to the back in one step; only the few whose
    /// deadline is an earlier one look for their place.
    pub(super) fn add(&mut self, client: ClientKey, deadline: Instant) {
        self.note_deadline(client, deadline);
        insert(&mut self.arrivals, &self.deadlines, client);
        self.longest = self.longest.max(self.len());
    }

    /// The same of a second try, under its first deadline.
    pub(super) fn add_second_try(&mut self, client: ClientKey, deadline: Instant) {
        self.note_deadline(client, deadline);
        insert(&mut self.second_tries, &self.deadlines, client);
        self.longest = self.longest.max(self.len());
    }

    fn note_deadline(&mut self, client: ClientKey, deadline: Instant) {
        if self.deadlines.len() <= client.0 {
            self.deadlines.resize(client.0 + 1, deadline);
        }
        self.deadlines[client.0] = deadline;
    }

    /// A worker is free: takes the request out that it serves.
    pub(super) fn pop(&mut self, now: Instant) -> Option<ClientKey> {
        if self.is_empty() {
            self.order.on_idle(now);
            return None;
        }
        let serving = self.order.on_dispatch(now);
        let next = match self.second_tries.pop_front() {
            Some(client) => Some(client),
            None => match serving {
                Serving::OldestFirst => self.arrivals.pop_front(),
                Serving::NewestFirst => self.arrivals.pop_back(),
            },
        };
        next.map(ClientKey)
    }

    /// A client gets an answer without a worker. `true`: it had waited.
    pub(super) fn forget(&mut self, client: ClientKey) -> bool {
        self.arrivals.remove(client.0) || self.second_tries.remove(client.0)
    }

    /// A client has left. `true`: it had waited.
    pub(super) fn depart(&mut self, client: ClientKey, now: Instant) -> bool {
        let had_waited = self.forget(client);
        if had_waited {
            self.order.on_loss(now);
        }
        had_waited
    }

    /// Takes one request out whose time is up.
    pub(super) fn expire(&mut self, now: Instant) -> Option<ClientKey> {
        let is_due = |list: &KeyList| list.front().is_some_and(|client| self.deadlines[client] <= now);
        let expired = if is_due(&self.arrivals) {
            self.arrivals.pop_front()
        } else if is_due(&self.second_tries) {
            self.second_tries.pop_front()
        } else {
            return None;
        };
        self.order.on_loss(now);
        expired.map(ClientKey)
    }
}

fn insert(list: &mut KeyList, deadlines: &[Instant], client: ClientKey) {
    let deadline = deadlines[client.0];
    if list.back().is_none_or(|back| deadlines[back] <= deadline) {
        return list.push_back(client.0);
    }
    let later = list.iter().find(|&other| deadlines[other] > deadline);
    match later {
        Some(at) => list.insert_before(client.0, at),
        None => list.push_back(client.0),
    }
}
