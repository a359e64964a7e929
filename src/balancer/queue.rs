//! The requests that wait for a worker: bounded, each with a deadline. Second tries are served first; of the others the
//! oldest, or, as [`Order`] says, the newest. Those that ask for a stream have a list of their own, since a worker
//! without room for one more serves the others.

use super::Wish;
use super::order::{Order, QueueRule, Serving};
use crate::deadlines::earliest;
use crate::keys::ClientKey;
use crate::list::KeyList;
use std::time::{Duration, Instant};

/// In this order they are served: by deadline, and among equals as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    deadline: Instant,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Queue {
    /// Sorted by deadline.
    arrivals: KeyList,
    /// The same of those that ask for a stream.
    streams: KeyList,
    /// The same of those that a worker has had once.
    second_tries: KeyList,
    /// The rank of each client in one of the lists; of any other, an old one.
    ranks: Vec<Rank>,
    next_number: u64,
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
            streams: KeyList::default(),
            second_tries: KeyList::default(),
            ranks: Vec::new(),
            next_number: 0,
            order: Order::new(rule),
            max_waiting,
            timeout,
            longest: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.arrivals.len() + self.streams.len() + self.second_tries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One that any worker with a free place may serve.
    pub(super) fn has_answer(&self) -> bool {
        !self.arrivals.is_empty() || !self.second_tries.is_empty()
    }

    /// One that asks for a stream.
    pub(super) fn has_stream(&self) -> bool {
        !self.streams.is_empty()
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
        self.arrivals.contains(client.0)
            || self.streams.contains(client.0)
            || self.second_tries.contains(client.0)
    }

    /// The deadline of a request that comes now.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        now + self.timeout
    }

    /// When the next waiting request gives up: the lists are sorted by deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let first = |list: &KeyList| list.front().map(|client| self.ranks[client].deadline);
        earliest([first(&self.arrivals), first(&self.streams), first(&self.second_tries)])
    }
}

/// Events in.
impl Queue {
    /// A request waits, behind all whose deadline is not later. Nearly all go to the back in one step; only the few whose
    /// deadline is an earlier one look for their place.
    pub(super) fn add(&mut self, client: ClientKey, wish: Wish, deadline: Instant) {
        self.note_turn(client, deadline);
        let list = match wish {
            Wish::Answer => &mut self.arrivals,
            Wish::Stream => &mut self.streams,
        };
        insert(list, &self.ranks, client);
        self.longest = self.longest.max(self.len());
    }

    /// The same of a second try, under its first deadline.
    pub(super) fn add_second_try(&mut self, client: ClientKey, deadline: Instant) {
        self.note_turn(client, deadline);
        insert(&mut self.second_tries, &self.ranks, client);
        self.longest = self.longest.max(self.len());
    }

    fn note_turn(&mut self, client: ClientKey, deadline: Instant) {
        let rank = Rank { deadline, number: self.next_number };
        self.next_number += 1;
        if self.ranks.len() <= client.0 {
            self.ranks.resize(client.0 + 1, rank);
        }
        self.ranks[client.0] = rank;
    }

    /// A worker is free: takes the request out that it serves. `has_room_for_stream`: one that asks for a stream may be it.
    pub(super) fn pop(&mut self, has_room_for_stream: bool, now: Instant) -> Option<(ClientKey, Wish)> {
        if self.is_empty() {
            self.order.on_idle(now);
            return None;
        }
        if !self.has_answer() && !has_room_for_stream {
            return None;
        }
        let serving = self.order.on_dispatch(now);
        if let Some(client) = self.second_tries.pop_front() {
            return Some((ClientKey(client), Wish::Answer));
        }
        let is_stream = has_room_for_stream && self.is_next_a_stream(serving);
        let (list, wish) =
            if is_stream { (&mut self.streams, Wish::Stream) } else { (&mut self.arrivals, Wish::Answer) };
        let next = match serving {
            Serving::OldestFirst => list.pop_front(),
            Serving::NewestFirst => list.pop_back(),
        };
        next.map(|client| (ClientKey(client), wish))
    }

    /// A worker is free for a stream: takes the request for one out that it serves.
    pub(super) fn pop_stream(&mut self, now: Instant) -> Option<ClientKey> {
        let client = match self.order.on_dispatch(now) {
            Serving::OldestFirst => self.streams.pop_front(),
            Serving::NewestFirst => self.streams.pop_back(),
        };
        client.map(ClientKey)
    }

    /// Whether the one whose turn it is asks for a stream.
    fn is_next_a_stream(&self, serving: Serving) -> bool {
        let rank = |client: Option<usize>| client.map(|client| self.ranks[client]);
        match serving {
            Serving::OldestFirst => {
                let (stream, answer) = (rank(self.streams.front()), rank(self.arrivals.front()));
                stream == [stream, answer].into_iter().flatten().min()
            }
            Serving::NewestFirst => {
                let (stream, answer) = (rank(self.streams.back()), rank(self.arrivals.back()));
                stream == stream.max(answer)
            }
        }
    }

    /// Takes one out that asks for a stream in vain.
    pub(super) fn refuse_stream(&mut self, now: Instant) -> Option<ClientKey> {
        let client = self.streams.pop_front()?;
        self.order.on_loss(now);
        Some(ClientKey(client))
    }

    /// A client gets an answer without a worker. `true`: it had waited.
    pub(super) fn forget(&mut self, client: ClientKey) -> bool {
        self.arrivals.remove(client.0) || self.streams.remove(client.0) || self.second_tries.remove(client.0)
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
        let is_due = |list: &KeyList| list.front().is_some_and(|client| self.ranks[client].deadline <= now);
        let expired = if is_due(&self.arrivals) {
            self.arrivals.pop_front()
        } else if is_due(&self.streams) {
            self.streams.pop_front()
        } else if is_due(&self.second_tries) {
            self.second_tries.pop_front()
        } else {
            return None;
        };
        self.order.on_loss(now);
        expired.map(ClientKey)
    }
}

fn insert(list: &mut KeyList, ranks: &[Rank], client: ClientKey) {
    let rank = ranks[client.0];
    if list.back().is_none_or(|back| ranks[back] <= rank) {
        return list.push_back(client.0);
    }
    let later = list.iter().find(|&other| ranks[other] > rank);
    match later {
        Some(at) => list.insert_before(client.0, at),
        None => list.push_back(client.0),
    }
}
