//! Where a client stands.

use crate::keys::UpstreamKey;
use crate::reactor::crossing::{Finished, Job, Then};
use crate::states::{Row, may_become};

#[derive(Debug)]
pub(crate) enum Phase {
    /// Between requests, or one is arriving.
    Reading,
    /// Its request is whole, and is given to a worker, to the queue, or an answer of the server's own, in this moment.
    Dispatching,
    /// Its request waits.
    Waiting { job: Job, wait: Wait },
    /// Its request is with a worker.
    Assigned { upstream: UpstreamKey },
    /// Its answer is whole, and not all of it is taken.
    Finishing { finished: Finished, then: Then },
    /// After a 101.
    Tunnel { upstream: UpstreamKey },
    /// It has had its last answer and the end of the connection, and may still be sending.
    Lingering,
    /// Out of the slab after this batch.
    Closed,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A worker.
    Queued,
    /// The next tick, when the hang-ups of this moment have been read: then it is tried a second time.
    SecondTry,
    /// It has waited for too long, and no worker will get it; its answer is about to be written.
    TimedOut,
}

/// A phase without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Reading,
    Dispatching,
    Queued,
    SecondTry,
    TimedOut,
    Assigned,
    Finishing,
    Tunnel,
    Lingering,
    Closed,
}

use State::*;

/// Each state of a client, with what may follow.
pub(crate) const CLIENT: &[Row<State>] = &[
    Row {
        state: Reading,
        next: &[Dispatching, Finishing, Lingering, Closed],
        deadline: "idle, or receive once a head has begun; grace at a stop",
    },
    Row {
        state: Dispatching,
        next: &[Reading, Queued, Assigned, Finishing, Lingering, Closed],
        deadline: "none: it lasts for one call",
    },
    Row {
        state: Queued,
        next: &[Dispatching, TimedOut, Closed],
        deadline: "the queue timeout, kept by the balancer",
    },
    Row { state: SecondTry, next: &[Dispatching, Closed], deadline: "none: the next tick ends it" },
    Row { state: TimedOut, next: &[Dispatching, Closed], deadline: "none: the next ticks write its answer" },
    Row {
        state: Assigned,
        next: &[Reading, Dispatching, SecondTry, Finishing, Tunnel, Lingering, Closed],
        deadline: "take, while bytes wait for it; its exchange has the others",
    },
    Row { state: Finishing, next: &[Reading, Lingering, Closed], deadline: "take" },
    Row {
        state: Tunnel,
        next: &[Finishing, Lingering, Closed],
        deadline: "take, while bytes wait for it; its exchange has the others",
    },
    Row { state: Lingering, next: &[Closed], deadline: "linger; grace at a stop" },
    Row { state: Closed, next: &[], deadline: "none: it leaves with the tick" },
];

impl Phase {
    pub(crate) fn state(&self) -> State {
        match self {
            Phase::Reading => Reading,
            Phase::Dispatching => Dispatching,
            Phase::Waiting { wait: Wait::Queued, .. } => Queued,
            Phase::Waiting { wait: Wait::SecondTry, .. } => SecondTry,
            Phase::Waiting { wait: Wait::TimedOut, .. } => TimedOut,
            Phase::Assigned { .. } => Assigned,
            Phase::Finishing { .. } => Finishing,
            Phase::Tunnel { .. } => Tunnel,
            Phase::Lingering => Lingering,
            Phase::Closed => Closed,
        }
    }

    /// The one door for transitions. Inlined, since a call would write a whole phase where most are a word.
    #[inline(always)]
    pub(crate) fn enter(&mut self, next: Phase) {
        self.check(&next);
        *self = next;
    }

    /// The same door, for whoever wants what is left behind.
    pub(crate) fn leave_for(&mut self, next: Phase) -> Phase {
        self.check(&next);
        std::mem::replace(self, next)
    }

    fn check(&self, next: &Phase) {
        let (from, to) = (self.state(), next.state());
        debug_assert!(may_become(CLIENT, &from, &to), "a client: no way from {from:?} to {to:?}");
    }

    /// The door for a request that waits for something else from now on.
    pub(crate) fn wait_for(&mut self, next: Wait) {
        let before = self.state();
        if let Phase::Waiting { wait, .. } = self {
            *wait = next;
        }
        debug_assert!(
            may_become(CLIENT, &before, &self.state()),
            "a client: no way from {before:?} to {next:?}"
        );
    }
}
