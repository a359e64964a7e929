//! Which worker processes should exist. Pure: events come in with the time, [`Action`]s go out; the reactor spawns,
//! signals and reaps, and tells what came of it.
//!
//! There is one mechanism, *replace slot i*: a successor of the next generation is started beside the worker that
//! serves; when it has joined it takes the old one's place in the stack, and the old one leaves: it gets no more
//! requests and finishes what it has. Cycles, rolling restarts and stuck workers differ only in why. One slot is
//! replaced at a time; those that were replaced drain side by side.
//!
//! ```text
//!  Empty ─▶ Spawning ─▶ Booting ─▶ Serving ─────────────▶ Leaving ─▶ Terminating ─▶ (gone)
//!    ▲                     │          │  its successor joined                │
//!    └─ backoff, or at once┴──────────┘                                      └▶ Killed
//! ```
//!
//! Who has served is started again at once, whatever ended it; backoff is for workers that failed before they did.

mod backoff;
mod canary;
mod events;
mod roll;
#[cfg(any(test, fuzzing))]
mod simulation;
mod slot;
mod succession;
mod template;
mod trial;

#[cfg(test)]
pub(crate) use canary::Tally;
pub(crate) use canary::TrialOutcome;
pub(crate) use roll::RollEnd;
pub(crate) use slot::{Ending, Member, Phase, RetireReason};
#[cfg(any(test, fuzzing))]
pub(crate) use slot::{SLOT, SUCCESSION, WORKER};
#[cfg(any(test, fuzzing))]
pub(crate) use template::TEMPLATE;
pub(crate) use template::{TemplateEnd, TemplateId};
pub(crate) use trial::TrialFailure;

use crate::keys::WorkerKey;
use roll::Roll;
use slot::{Front, Slot};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use template::Templates;

/// A worker is replaced for its number of requests or its age, or leaves as unneeded, when its streams have ended, and so
/// much later at the latest.
pub(crate) const STREAMS_DELAY: Duration = Duration::from_secs(3600);
/// Behind a roll, streams are told over this time, one old worker after the other: all at once would fill the queue.
const STREAMS_TOLD_WITHIN: Duration = Duration::from_secs(1);
/// Between the SIGTERM and the SIGKILL of a worker that has had its time.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// What the reactor is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a worker; answered by [`Fleet::spawned`] or [`Fleet::spawn_failed`].
    Spawn {
        slot: usize,
        version: u64,
        why: Option<RetireReason>,
        release: Release,
        /// To be forked from that template, else a process of its own.
        template: Option<TemplateId>,
    },
    /// Start a template of that release; answered by [`Fleet::template_ready`], [`Fleet::template_refused`] or
    /// [`Fleet::template_ended`].
    StartTemplate {
        template: TemplateId,
        release: Release,
    },
    /// SIGKILL to a template: it has nothing to finish, and its app's hooks are its workers' business. What it was
    /// asked for and has not named has failed.
    EndTemplate {
        template: TemplateId,
        why: TemplateEnd,
    },
    /// It has joined: into its predecessor's place in the stack, else to the bottom.
    Admit {
        worker: WorkerKey,
        predecessor: Option<WorkerKey>,
    },
    /// The first successor of a roll has joined: it gets every so many requests, and no other.
    AdmitOnTrial {
        worker: WorkerKey,
        every: usize,
    },
    /// A worker has left its place for that reason.
    Replaced {
        why: RetireReason,
    },
    /// Nobody of the old release serves: what a roll brings is taken without its trial.
    NoTrial,
    /// Whoever is on trial is one like the others from now on.
    EndTrial,
    /// It gets requests again.
    Readmit {
        worker: WorkerKey,
    },
    /// It gets no more requests; answered by [`Fleet::idle`] when it has none left.
    Withdraw {
        worker: WorkerKey,
    },
    /// SIGTERM.
    Terminate {
        worker: WorkerKey,
    },
    /// The drain's end: its connections are closed, and whoever waits for it is told.
    Cut {
        worker: WorkerKey,
    },
    /// SIGKILL, with its process group.
    Kill {
        worker: WorkerKey,
    },
    /// A slot has failed so often in a row, and is tried again after that time.
    Wait {
        slot: usize,
        failures: u32,
        wait: Duration,
    },
    /// A rolling restart begins: what [`Release::Next`] is, is fixed now.
    RollBegins,
    /// All slots of the roll have the next release: it is the good one from now on.
    Adopt,
    /// A rolling restart has come so far.
    RollProgress {
        replaced: usize,
        of: usize,
    },
    RollEnded(RollEnd),
    /// No worker ever joined, and all have failed again and again.
    GiveUp,
}

impl Action {
    /// The worker that it is done to.
    fn worker(&self) -> Option<WorkerKey> {
        match self {
            Action::Admit { worker, .. }
            | Action::AdmitOnTrial { worker, .. }
            | Action::Readmit { worker }
            | Action::Withdraw { worker }
            | Action::Terminate { worker }
            | Action::Cut { worker }
            | Action::Kill { worker } => Some(*worker),
            Action::Spawn { .. }
            | Action::StartTemplate { .. }
            | Action::EndTemplate { .. }
            | Action::Wait { .. }
            | Action::Replaced { .. }
            | Action::NoTrial
            | Action::EndTrial
            | Action::RollBegins
            | Action::Adopt
            | Action::RollProgress { .. }
            | Action::RollEnded(_)
            | Action::GiveUp => None,
        }
    }
}

/// What a start runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// What the last roll that succeeded has brought; at first, what was there at the start.
    Good,
    /// What the roll that goes on brings.
    New,
}

/// How a roll replaces its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RollMode {
    /// A next slot when this one's successor has joined; the old workers drain side by side.
    Side,
    /// A next slot when this one's old worker is gone.
    Serial,
}

/// How an operator changes the fleet's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    More,
    Fewer,
}

/// The fleet's settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub min_workers: usize,
    pub max_workers: usize,
    /// At most about so many requests a worker; 0 = no bound.
    pub max_requests: u64,
    /// It serves for about that time at most.
    pub max_age: Option<Duration>,
    pub boot_timeout: Duration,
    pub drain_timeout: Duration,
    pub roll: RollMode,
    /// Workers are forked from templates, where the app lets them.
    pub forks: bool,
    /// Go on even if nothing ever boots.
    pub keep_trying: bool,
    /// For the draw of each worker's share of `max_requests` and `max_age`.
    pub seed: u64,
}

#[derive(Debug)]
pub(crate) struct Fleet {
    plan: Plan,
    slots: Vec<Slot>,
    actions: VecDeque<Action>,
    roll: Option<Roll>,
    /// The slot whose successor boots: one at a time.
    replacing: Option<usize>,
    templates: Templates,
    /// When any worker was started last.
    last_start: Option<Instant>,
    ever_joined: bool,
    stage: Stage,
    random: u64,
    next_deadline: Option<Instant>,
    /// Generations begin behind this one.
    first_version: u64,
}

/// What a fleet begins with when it follows another server's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beginning {
    /// Workers at once, within the plan's bounds.
    pub workers: usize,
    /// The newest generation of the other fleet, so that no worker of this one is called like one of its.
    pub generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    /// Requests are being finished: crashed workers are started again, nobody is replaced.
    Draining,
    /// All workers leave.
    Stopping,
    /// Nothing ever booted: nobody is started until a reload.
    GivenUp,
}

/// Getters.
impl Fleet {
    #[cfg(any(test, fuzzing))]
    pub(crate) fn new(plan: Plan, now: Instant) -> Self {
        Fleet::following(plan, Beginning::default(), now)
    }

    pub(crate) fn following(plan: Plan, beginning: Beginning, now: Instant) -> Self {
        let workers = beginning.workers.clamp(plan.min_workers, plan.max_workers);
        let first_version = beginning.generation;
        let mut fleet = Fleet {
            slots: (0..workers).map(|_| Slot::new(first_version, now)).collect(),
            first_version,
            plan,
            actions: VecDeque::new(),
            roll: None,
            replacing: None,
            templates: Templates::new(plan.forks && plan.max_workers > 0, now),
            last_start: None,
            ever_joined: false,
            stage: Stage::Running,
            random: plan.seed | 1,
            next_deadline: None,
        };
        fleet.pump(now);
        fleet
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// No member is left, and none will come.
    pub(crate) fn is_gone(&self) -> bool {
        self.slots.iter().all(Slot::is_gone)
    }

    /// Slots that are to hold a worker.
    pub(crate) fn size(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.is_closed()).count()
    }

    pub(crate) fn min_workers(&self) -> usize {
        self.plan.min_workers
    }

    pub(crate) fn max_workers(&self) -> usize {
        self.plan.max_workers
    }

    /// Load changes nothing about its size.
    pub(crate) fn is_fixed(&self) -> bool {
        self.plan.min_workers == self.plan.max_workers
    }

    /// Workers that get requests.
    pub(crate) fn serving(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_serving() && !slot.is_stuck()).count()
    }

    /// The newest generation.
    pub(crate) fn generation(&self) -> u64 {
        self.slots.iter().map(|slot| slot.version).max().unwrap_or(self.first_version)
    }

    /// All members with their slots, for status.
    pub(crate) fn members(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.slots
            .iter()
            .enumerate()
            .flat_map(|(index, slot)| slot.members().map(move |member| (index, member)))
    }

    /// Slots without a worker, how often they have failed in a row, and when they are tried again. None while starts wait
    /// for the template: it is that one that is waited for, and nobody knows until when.
    pub(crate) fn empty_slots(&self) -> impl Iterator<Item = (usize, u32, Instant)> {
        let is_waiting = self.waits_for_template();
        let empty = |(index, slot): (usize, &Slot)| {
            self.next_start(index).map(|at| (index, slot.backoff.failures(), at))
        };
        self.slots.iter().enumerate().filter_map(empty).filter(move |_| !is_waiting)
    }

    /// When an empty slot is tried next.
    fn next_start(&self, index: usize) -> Option<Instant> {
        match (self.slots.get(index)?.front(), self.rescue()) {
            (Front::Empty { .. }, Some((first, at))) if first == index => Some(at),
            (Front::Empty { retry_at }, _) => Some(retry_at),
            (Front::Spawning | Front::Held(_) | Front::Closed, _) => None,
        }
    }

    /// The booting worker of that slot and generation: only that one may join.
    pub(crate) fn booting(&self, slot: usize, version: u64) -> Option<WorkerKey> {
        self.slots
            .get(slot)?
            .members()
            .find(|member| member.version == version && matches!(member.phase(), Phase::Booting { .. }))
            .map(|member| member.worker)
    }

    /// A worker is replaced because its answer does not end, whether it ends after all or not.
    pub(crate) fn is_stuck(&self, worker: WorkerKey) -> bool {
        self.find(worker).is_some_and(|(index, member)| {
            let slot = &self.slots[index];
            slot.is_stuck() && slot.front() == Front::Held(member)
        })
    }

    pub(crate) fn is_rolling(&self) -> bool {
        self.roll.is_some()
    }

    /// Whether a worker may leave for good: the fewest serve beside it, and nobody is replaced in its slot. Slots whose
    /// worker boots, or waits for its next start, serve nobody.
    pub(crate) fn may_shrink(&self, worker: WorkerKey) -> bool {
        if self.serving() <= self.plan.min_workers || !self.may_give_up_a_slot() {
            return false;
        }
        self.find(worker).is_some_and(|(index, member)| {
            let slot = &self.slots[index];
            slot.front() == Front::Held(member) && slot.may_be_replaced()
        })
    }

    /// A slot that nobody is in, where there are more slots than the fewest: it is given up before any worker leaves.
    pub(crate) fn spare_slot(&self) -> Option<usize> {
        let is_empty = |slot: &Slot| matches!(slot.front(), Front::Empty { .. });
        self.slots.iter().rposition(is_empty).filter(|_| self.may_give_up_a_slot())
    }

    fn may_give_up_a_slot(&self) -> bool {
        self.size() > self.plan.min_workers && self.stage == Stage::Running && self.roll.is_none()
    }

    fn find(&self, worker: WorkerKey) -> Option<(usize, Member)> {
        self.members().find(|(_, member)| member.worker == worker).map(|(slot, &member)| (slot, member))
    }
}
