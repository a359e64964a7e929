//! One place for a worker: who serves in it, who is to follow, who is on the way out.

use super::STREAMS_DELAY;
use super::backoff::Backoff;
use super::template::TemplateId;
use crate::keys::WorkerKey;
use crate::states::{Row, may_become};
use std::time::Instant;

/// The reasons with their words, so that none is missing in the metrics.
macro_rules! retire_reasons {
    ($($(#[$about:meta])* $name:ident => $code:literal,)*) => {
        /// Why a worker is replaced. The log's and the metrics' word.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum RetireReason {
            $($(#[$about])* $name,)*
        }

        impl RetireReason {
            pub(crate) const ALL: &[RetireReason] = &[$(RetireReason::$name,)*];

            pub(crate) const fn code(self) -> &'static str {
                match self {
                    $(RetireReason::$name => $code,)*
                }
            }
        }
    };
}

retire_reasons! {
    /// It has served its number of requests.
    Requests => "requests",
    /// It has served for its time.
    Age => "age",
    /// Its memory has grown beyond the bound.
    Memory => "memory",
    /// It asked for it, after its last reload say.
    Requested => "asked",
    /// A rolling restart.
    Reload => "reload",
    /// Its answer does not end.
    Stuck => "stuck",
    /// It answered busy, or refused connections, again and again.
    Unresponsive => "unresponsive",
}

/// How a worker's time at the front of its slot ended, which decides when the slot is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It had served: whatever ended it, its start was good. Started again at once.
    Served,
    /// It quit before it had served. No failure, but no loop either.
    Quit,
    /// It failed before its join, or ended without having served. Started again with backoff.
    Failed,
}

/// A worker process as the fleet sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub worker: WorkerKey,
    pub version: u64,
    phase: Phase,
    /// SIGTERM lets what it has at work end, as its join said.
    pub drains: bool,
    /// Its answer does not end, and it has nothing else at work that may.
    pub is_stuck_alone: bool,
    /// It holds event streams or tunnels beside its requests.
    pub has_streams: bool,
    /// When it had served its number of requests.
    pub used_up: Option<Instant>,
    pub notice: Notice,
    /// It was forked from that one.
    pub from: Option<TemplateId>,
}

/// When the streams of a worker that leaves are told, by its SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// As soon as it leaves.
    AtOnce,
    /// When all successors of the roll have joined: whoever reconnects finds them all, and is told once.
    AfterRoll,
    /// At the end of its time as [`Phase::Leaving`].
    Scheduled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Spawned, and not joined by now.
    Booting { until: Instant },
    /// Joined: it gets requests. `retire_at`: then it has served for its time.
    Serving { since: Instant, retire_at: Option<Instant> },
    /// Its successor is on trial. It may serve again, and then as one that has done so `since`. `is_serving`: it is the
    /// only one of its release, and gets requests all the time.
    Reserve { since: Instant, retire_at: Option<Instant>, is_serving: bool },
    /// Withdrawn: it gets no more requests, and finishes what it has. SIGTERM comes when it is idle.
    Leaving { until: Instant },
    /// SIGTERM is out.
    Terminating { kill_at: Instant },
    /// SIGKILL is out.
    Killed,
}

impl Phase {
    pub(crate) fn state(self) -> WorkerState {
        match self {
            Phase::Booting { .. } => WorkerState::Booting,
            Phase::Serving { .. } => WorkerState::Serving,
            Phase::Reserve { .. } => WorkerState::Reserve,
            Phase::Leaving { .. } => WorkerState::Leaving,
            Phase::Terminating { .. } => WorkerState::Terminating,
            Phase::Killed => WorkerState::Killed,
        }
    }

    /// When this phase runs out by itself.
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Phase::Booting { until } | Phase::Leaving { until } => Some(until),
            Phase::Terminating { kill_at } => Some(kill_at),
            Phase::Serving { .. } | Phase::Reserve { .. } | Phase::Killed => None,
        }
    }
}

/// What is to happen at the front of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Nobody, and to be tried at that time.
    Empty { retry_at: Instant },
    /// Asked for; the answer to [`super::Action::Spawn`] is on its way.
    Spawning,
    /// The worker that boots or serves here.
    Held(Member),
    /// The slot is given up as soon as its last member is gone.
    Closed,
}

/// Whether and how the front of a slot is being replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Succession {
    None,
    /// It is to be, when its turn comes and not before that time.
    Wanted {
        why: RetireReason,
        not_before: Instant,
    },
    /// The successor is being spawned, or boots.
    Spawning {
        why: RetireReason,
    },
    Booting {
        why: RetireReason,
        successor: Member,
    },
}

/// A worker's phase without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    Booting,
    Serving,
    Reserve,
    Leaving,
    Terminating,
    Killed,
}

/// Each state of a worker, with what may follow. Its process may end in any of them.
pub(crate) const WORKER: &[Row<WorkerState>] = &[
    Row {
        state: WorkerState::Booting,
        next: &[WorkerState::Serving, WorkerState::Terminating, WorkerState::Killed],
        deadline: "the boot timeout",
    },
    Row {
        state: WorkerState::Serving,
        next: &[WorkerState::Reserve, WorkerState::Leaving],
        deadline: "none; its age, where `r:` has one",
    },
    Row {
        state: WorkerState::Reserve,
        next: &[WorkerState::Serving, WorkerState::Leaving, WorkerState::Terminating],
        deadline: "none: its successor's trial",
    },
    Row { state: WorkerState::Leaving, next: &[WorkerState::Terminating], deadline: "the drain timeout" },
    Row {
        state: WorkerState::Terminating,
        next: &[WorkerState::Terminating, WorkerState::Killed],
        deadline: "what is left of the drain timeout, at least a second",
    },
    Row { state: WorkerState::Killed, next: &[], deadline: "none: its end is waited for" },
];

/// What is at the front of a slot, or who is to follow there, without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    Empty,
    Spawning,
    Held,
    Closed,
}

/// Each state of a slot's front, with what may follow.
pub(crate) const SLOT: &[Row<SlotState>] = &[
    Row {
        state: SlotState::Empty,
        next: &[SlotState::Spawning, SlotState::Closed],
        deadline: "backoff, or none after one that had served",
    },
    Row {
        state: SlotState::Spawning,
        next: &[SlotState::Empty, SlotState::Held, SlotState::Closed],
        deadline: "none: the answer of whoever starts processes",
    },
    Row {
        state: SlotState::Held,
        next: &[SlotState::Empty, SlotState::Spawning, SlotState::Held, SlotState::Closed],
        deadline: "its worker's",
    },
    Row { state: SlotState::Closed, next: &[SlotState::Empty, SlotState::Closed], deadline: "none" },
];

/// How far a succession is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SuccessionState {
    None,
    Wanted,
    Spawning,
    Booting,
}

/// Each state of a succession, with what may follow.
pub(crate) const SUCCESSION: &[Row<SuccessionState>] = &[
    Row {
        state: SuccessionState::None,
        next: &[SuccessionState::None, SuccessionState::Wanted, SuccessionState::Spawning],
        deadline: "none",
    },
    Row {
        state: SuccessionState::Wanted,
        next: &[SuccessionState::None, SuccessionState::Spawning],
        deadline: "backoff, after one that failed; then its turn",
    },
    Row {
        state: SuccessionState::Spawning,
        next: &[SuccessionState::None, SuccessionState::Wanted, SuccessionState::Booting],
        deadline: "none: the answer of whoever starts processes",
    },
    Row {
        state: SuccessionState::Booting,
        next: &[SuccessionState::None, SuccessionState::Wanted],
        deadline: "the successor's boot timeout",
    },
];

impl Member {
    pub(crate) fn booting(worker: WorkerKey, version: u64, until: Instant, from: Option<TemplateId>) -> Self {
        Member {
            worker,
            version,
            phase: Phase::Booting { until },
            drains: false,
            is_stuck_alone: false,
            has_streams: false,
            used_up: None,
            notice: Notice::AtOnce,
            from,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// The one door for transitions.
    pub(crate) fn enter(&mut self, next: Phase) {
        let (from, to) = (self.phase.state(), next.state());
        debug_assert!(may_become(WORKER, &from, &to), "a worker: no way from {from:?} to {to:?}");
        self.phase = next;
    }

    /// Has less time for what it has at work.
    pub(crate) fn leave_by(&mut self, until: Instant) {
        if let Phase::Leaving { until: own } = &mut self.phase {
            *own = until.min(*own);
        }
    }
}

impl Front {
    fn state(self) -> SlotState {
        match self {
            Front::Empty { .. } => SlotState::Empty,
            Front::Spawning => SlotState::Spawning,
            Front::Held(_) => SlotState::Held,
            Front::Closed => SlotState::Closed,
        }
    }
}

impl Succession {
    fn state(self) -> SuccessionState {
        match self {
            Succession::None => SuccessionState::None,
            Succession::Wanted { .. } => SuccessionState::Wanted,
            Succession::Spawning { .. } => SuccessionState::Spawning,
            Succession::Booting { .. } => SuccessionState::Booting,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Slot {
    front: Front,
    succession: Succession,
    /// Those that were replaced and are not gone yet.
    pub leaving: Vec<Member>,
    pub backoff: Backoff,
    /// The generation of the newest worker of this slot; grows with each spawn.
    pub version: u64,
    /// When the newest one was asked for.
    pub started: Option<Instant>,
    /// What the newest one is forked from.
    pub from: Option<TemplateId>,
}

impl Slot {
    pub(crate) fn new(version: u64, now: Instant) -> Self {
        Slot {
            front: Front::Empty { retry_at: now },
            succession: Succession::None,
            leaving: Vec::new(),
            backoff: Backoff::default(),
            version,
            started: None,
            from: None,
        }
    }

    pub(crate) fn front(&self) -> Front {
        self.front
    }

    pub(crate) fn succession(&self) -> Succession {
        self.succession
    }

    /// The one door for what is at the front.
    pub(crate) fn enter(&mut self, next: Front) {
        let (from, to) = (self.front.state(), next.state());
        debug_assert!(may_become(SLOT, &from, &to), "a slot: no way from {from:?} to {to:?}");
        self.front = next;
    }

    /// The one door for the succession.
    pub(crate) fn succeed(&mut self, next: Succession) {
        let (from, to) = (self.succession.state(), next.state());
        debug_assert!(may_become(SUCCESSION, &from, &to), "a succession: no way from {from:?} to {to:?}");
        self.succession = next;
    }

    /// A succession that is on its way has another reason from now on.
    pub(crate) fn succession_is_for(&mut self, reason: RetireReason) {
        if let Succession::Spawning { why } | Succession::Booting { why, .. } = &mut self.succession {
            *why = reason;
        }
    }

    /// Nobody is to be here any more.
    pub(crate) fn close(&mut self) {
        self.enter(Front::Closed);
        self.succeed(Succession::None);
    }

    /// Everybody who has a process here.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        let front = match &self.front {
            Front::Held(member) => Some(member),
            Front::Empty { .. } | Front::Spawning | Front::Closed => None,
        };
        let successor = match &self.succession {
            Succession::Booting { successor, .. } => Some(successor),
            Succession::None | Succession::Wanted { .. } | Succession::Spawning { .. } => None,
        };
        front.into_iter().chain(successor).chain(&self.leaving)
    }

    pub(crate) fn member_mut(&mut self, worker: WorkerKey) -> Option<&mut Member> {
        let front = match &mut self.front {
            Front::Held(member) => Some(member),
            Front::Empty { .. } | Front::Spawning | Front::Closed => None,
        };
        let successor = match &mut self.succession {
            Succession::Booting { successor, .. } => Some(successor),
            Succession::None | Succession::Wanted { .. } | Succession::Spawning { .. } => None,
        };
        let mut members = front.into_iter().chain(successor).chain(&mut self.leaving);
        members.find(|member| member.worker == worker)
    }

    /// Nobody is to be here any more.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.front, Front::Closed)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.is_closed() && self.members().next().is_none()
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.front, Front::Held(Member { phase: Phase::Serving { .. }, .. }))
    }

    /// A worker serves, and no successor is on its way.
    pub(crate) fn may_be_replaced(&self) -> bool {
        self.is_serving() && matches!(self.succession, Succession::None | Succession::Wanted { .. })
    }

    /// Its worker is replaced because its answer does not end.
    pub(crate) fn is_stuck(&self) -> bool {
        matches!(
            self.succession,
            Succession::Spawning { why: RetireReason::Stuck }
                | Succession::Booting { why: RetireReason::Stuck, .. }
        )
    }

    /// When the worker that serves here has done so for its time or its number of requests, and its streams have ended or
    /// had theirs. `None` also while it is being replaced.
    pub(crate) fn retire_deadline(&self) -> Option<(Instant, RetireReason)> {
        let (
            Front::Held(Member { phase: Phase::Serving { retire_at, .. }, has_streams, used_up, .. }),
            Succession::None,
        ) = (self.front, self.succession)
        else {
            return None;
        };
        let age = retire_at.map(|at| (at, RetireReason::Age));
        let requests = used_up.map(|at| (at, RetireReason::Requests));
        let (at, why) = age.into_iter().chain(requests).min_by_key(|(at, _)| *at)?;
        Some((if has_streams { at + STREAMS_DELAY } else { at }, why))
    }

    /// When something here is to be done by the clock, with `start_too` also a start in an empty slot, with
    /// `succession_too` also a wanted succession.
    pub(crate) fn deadline(&self, start_too: bool, succession_too: bool) -> Option<Instant> {
        let retry = match self.front {
            Front::Empty { retry_at } => Some(retry_at).filter(|_| start_too),
            Front::Spawning | Front::Held(_) | Front::Closed => None,
        };
        let succession = match self.succession {
            Succession::Wanted { not_before, .. } => Some(not_before),
            Succession::None | Succession::Spawning { .. } | Succession::Booting { .. } => None,
        };
        let succession = succession.filter(|_| succession_too);
        self.members().filter_map(|member| member.phase.deadline()).chain(retry).chain(succession).min()
    }
}
