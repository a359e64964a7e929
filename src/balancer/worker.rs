//! A worker as the balancer counts it.

use super::Wish;
use std::time::{Duration, Instant};

/// An app sends the head of a stream about that soon.
const OPENS_WITHIN: Duration = Duration::from_millis(100);

/// What a worker takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Requests.
    pub places: usize,
    /// Event streams and tunnels beside them; `None`: each holds a place.
    pub streams: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Worker {
    pub capacity: Capacity,
    pub at_work: usize,
    /// Of the requests at work, those that ask for a stream, and when the last one began.
    pub asking: usize,
    pub asked_at: Option<Instant>,
    pub streams: usize,
    pub state: WorkerState,
}

/// Whether it gets requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerState {
    /// `since`: it joined, or a place of it was freed.
    Admitted { since: Instant },
    /// It answered busy.
    CoolingDown { until: Instant },
    /// It gets no other request.
    Withdrawn,
}

impl Worker {
    pub(super) fn new(capacity: Capacity, now: Instant) -> Self {
        Worker {
            capacity,
            at_work: 0,
            asking: 0,
            asked_at: None,
            streams: 0,
            state: WorkerState::Admitted { since: now },
        }
    }

    /// It may be given a request, as far as its state goes.
    pub(super) fn may_serve(&self, now: Instant) -> bool {
        match self.state {
            WorkerState::Admitted { .. } => true,
            WorkerState::CoolingDown { until } => until <= now,
            WorkerState::Withdrawn => false,
        }
    }

    pub(super) fn has_nothing_to_do(&self) -> bool {
        self.at_work == 0 && self.streams == 0
    }

    /// With those that it is asked for right now.
    pub(super) fn streams_to_be(&self) -> usize {
        self.streams + self.asking
    }

    pub(super) fn has_room_for_stream(&self) -> bool {
        self.capacity.streams.is_none_or(|most| self.streams_to_be() < most)
    }

    /// Until when it counts as one that opens streams: most heads come at once, and who waits for a slow one waits no
    /// longer for it.
    pub(super) fn opens_until(&self) -> Option<Instant> {
        self.asked_at.filter(|_| self.asking > 0 && self.has_room_for_stream()).map(|at| at + OPENS_WITHIN)
    }

    pub(super) fn note_begun(&mut self, wish: Wish, now: Instant) {
        if wish == Wish::Stream {
            self.asking += 1;
            self.asked_at = Some(now);
        }
    }

    /// It is no request any more, be it that its stream has begun.
    pub(super) fn note_ended(&mut self, wish: Wish) {
        debug_assert!(wish == Wish::Answer || self.asking > 0, "a stream that was not asked for");
        self.asking = self.asking.saturating_sub(usize::from(wish == Wish::Stream));
    }

    pub(super) fn is_full_of_streams(&self) -> bool {
        self.capacity.streams.is_some_and(|most| self.streams >= most)
    }
}
