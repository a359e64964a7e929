//! The connections to workers: a worker has one for each request or stream on it, and a few that wait for the next.

use super::exchange::Exchange;
use super::link::Link;
use crate::balancer::Wish;
use crate::conn;
use crate::keys::{UpstreamKey, WorkerKey};
use slab::Slab;
use std::time::{Duration, Instant};

/// A connection beside others that has not been needed for so long is closed. The last one of a worker stays.
const UNNEEDED_AFTER: Duration = Duration::from_secs(60);

/// A connection to a worker, or the place for one.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(super) worker: WorkerKey,
    pub(super) place: PlaceState,
    pub(super) link: Link,
    pub(super) conn: conn::Worker,
    pub(super) exchange: Option<Exchange>,
}

/// What a connection's work counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlaceState {
    /// There is none, but for the first question to a command.
    Unused { since: Option<Instant> },
    /// A request holds one of the worker's places, and was assigned with that wish; so does one whose answer was odd, until
    /// its cooldown has ended.
    Held { wish: Wish },
    /// A stream that has left its place.
    Left,
    /// It goes with the tick.
    Closed,
}

#[derive(Debug, Default)]
pub(super) struct Upstreams {
    slab: Slab<Upstream>,
    /// By the worker's key, those that wait for a request: the one used last is at the end.
    unused: Vec<Vec<UpstreamKey>>,
    closed: Vec<UpstreamKey>,
    /// When to look for connections that are not needed any more, where a worker has several unused.
    next_sweep: Option<Instant>,
}

impl Upstream {
    fn new(worker: WorkerKey, place: PlaceState) -> Self {
        Upstream { worker, place, link: Link::Closed, conn: conn::Worker::default(), exchange: None }
    }

    pub(super) fn is_watched_for_room(&self) -> bool {
        self.link.open().is_some_and(|socket| socket.is_watched_for_room)
    }

    pub(super) fn close(&mut self) {
        self.link.enter(Link::Closed);
        self.conn = conn::Worker::default();
    }
}

impl Upstreams {
    pub(super) fn get(&self, upstream: UpstreamKey) -> Option<&Upstream> {
        self.slab.get(upstream.0)
    }

    pub(super) fn get_mut(&mut self, upstream: UpstreamKey) -> Option<&mut Upstream> {
        self.slab.get_mut(upstream.0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (UpstreamKey, &Upstream)> {
        self.slab.iter().map(|(key, entry)| (UpstreamKey(key), entry))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Upstream> {
        self.slab.iter_mut().map(|(_, entry)| entry)
    }

    /// The unused one that is taken next.
    pub(super) fn next_of(&self, worker: WorkerKey) -> Option<UpstreamKey> {
        self.unused.get(worker.0)?.last().copied()
    }

    pub(super) fn next_sweep(&self) -> Option<Instant> {
        self.next_sweep
    }

    pub(super) fn add_worker(&mut self, worker: WorkerKey) {
        let first = self.slab.insert(Upstream::new(worker, PlaceState::Unused { since: None }));
        if self.unused.len() <= worker.0 {
            self.unused.resize(worker.0 + 1, Vec::new());
        }
        self.unused[worker.0] = vec![UpstreamKey(first)];
    }

    pub(super) fn remove_worker(&mut self, worker: WorkerKey) -> Vec<UpstreamKey> {
        self.unused.get_mut(worker.0).map(std::mem::take);
        let all: Vec<UpstreamKey> =
            self.iter().filter(|(_, entry)| entry.worker == worker).map(|(key, _)| key).collect();
        for upstream in &all {
            self.slab.try_remove(upstream.0);
        }
        if self.unused.iter().all(|unused| unused.len() <= 1) {
            self.next_sweep = None;
        }
        all
    }

    pub(super) fn remove_closed(&mut self) -> impl Iterator<Item = UpstreamKey> {
        let slab = &mut self.slab;
        self.closed.drain(..).inspect(|upstream| {
            slab.try_remove(upstream.0);
        })
    }

    pub(super) fn take(&mut self, worker: WorkerKey, wish: Wish) -> Option<UpstreamKey> {
        match self.unused.get_mut(worker.0)?.pop() {
            Some(upstream) => {
                self.slab.get_mut(upstream.0)?.place = PlaceState::Held { wish };
                Some(upstream)
            }
            None => Some(UpstreamKey(self.slab.insert(Upstream::new(worker, PlaceState::Held { wish })))),
        }
    }

    /// It waits for the next request; one that is not connected any more goes, unless it is the only one.
    pub(super) fn release(&mut self, upstream: UpstreamKey, now: Instant) -> Option<PlaceState> {
        let entry = self.slab.get_mut(upstream.0)?;
        let unused = self.unused.get_mut(entry.worker.0)?;
        let place = entry.place;
        match place {
            PlaceState::Held { .. } | PlaceState::Left => {}
            PlaceState::Unused { .. } | PlaceState::Closed => return Some(place),
        }
        if entry.link.open().is_none() && !unused.is_empty() {
            entry.place = PlaceState::Closed;
            self.closed.push(upstream);
            return Some(place);
        }
        entry.place = PlaceState::Unused { since: Some(now) };
        unused.push(upstream);
        if unused.len() > 1 {
            self.next_sweep.get_or_insert(now + UNNEEDED_AFTER);
        }
        Some(place)
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        if self.next_sweep.is_none_or(|at| at > now) {
            return;
        }
        self.next_sweep = None;
        for unused in &mut self.unused {
            let slab = &mut self.slab;
            // From the end that was used first.
            let unneeded = unused.iter().take(unused.len().saturating_sub(1)).take_while(|upstream| {
                let place = slab.get(upstream.0).map(|entry| entry.place);
                matches!(place, Some(PlaceState::Unused { since: Some(since) }) if since + UNNEEDED_AFTER <= now)
            });
            let unneeded = unneeded.count();
            for upstream in unused.drain(..unneeded) {
                if let Some(entry) = slab.get_mut(upstream.0) {
                    entry.close();
                    entry.place = PlaceState::Closed;
                    self.closed.push(upstream);
                }
            }
            if unused.len() > 1 {
                self.next_sweep = Some(now + UNNEEDED_AFTER);
            }
        }
    }
}
