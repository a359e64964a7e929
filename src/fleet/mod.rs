//! Which worker processes should exist. Pure: events come in with the time, [`Action`]s go out; the reactor spawns,
//! signals and reaps, and tells what came of it.
//!
//! There is one mechanism, *replace slot i*: a successor of the next generation is started beside the worker that
//! serves; when it has joined it goes on top of the stack, and the old worker leaves as soon as it is idle. Cycles,
//! rolling restarts and stuck workers differ only in why.
//!
//! ```text
//!  Empty ─▶ Spawning ─▶ Booting ─▶ Serving ─────────────▶ Leaving ─▶ Terminating ─▶ (gone)
//!    ▲                     │          │  its successor joined                │
//!    └──── backoff ────────┴──────────┘                                      └▶ Killed
//! ```

mod backoff;
mod roll;
#[cfg(test)]
mod simulation;
mod slot;
mod succession;

pub use roll::RollEnd;
pub use slot::{Member, Phase, Why};

use crate::keys::WorkerKey;
use roll::Roll;
use slot::{Front, Slot, Succession};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between the SIGTERM and the SIGKILL of a worker that has had its time.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// What the reactor is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker; answered by [`Fleet::spawned`] or [`Fleet::spawn_failed`].
    Spawn {
        slot: usize,
        version: u64,
        why: Option<Why>,
    },
    /// It has joined: onto the top of the stack.
    Admit {
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
    /// SIGKILL, with its process group.
    Kill {
        worker: WorkerKey,
    },
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
            Action::Admit { worker }
            | Action::Withdraw { worker }
            | Action::Terminate { worker }
            | Action::Kill { worker } => Some(*worker),
            Action::Spawn { .. } | Action::RollProgress { .. } | Action::RollEnded(_) | Action::GiveUp => {
                None
            }
        }
    }
}

/// The fleet's settings.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub min_workers: usize,
    pub max_workers: usize,
    /// At most about so many requests a worker; 0 = no bound.
    pub max_requests: u64,
    pub boot_timeout: Duration,
    pub drain_timeout: Duration,
    /// Go on even if nothing ever boots.
    pub keep_trying: bool,
    /// For the draw of each worker's share of `max_requests`.
    pub seed: u64,
}

#[derive(Debug)]
pub struct Fleet {
    plan: Plan,
    slots: Vec<Slot>,
    actions: VecDeque<Action>,
    roll: Option<Roll>,
    /// The slot that is being replaced: one at a time.
    lane: Option<usize>,
    ever_joined: bool,
    stage: Stage,
    random: u64,
    next_deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    /// Requests are being finished: crashed workers are started again, nobody is replaced.
    Draining,
    /// All workers leave.
    Stopping,
    /// Nothing ever booted.
    GivenUp,
}

/// Getters.
impl Fleet {
    pub fn new(plan: Plan, now: Instant) -> Self {
        let mut fleet = Fleet {
            slots: (0..plan.min_workers).map(|_| Slot::new(now)).collect(),
            plan,
            actions: VecDeque::new(),
            roll: None,
            lane: None,
            ever_joined: false,
            stage: Stage::Running,
            random: plan.seed | 1,
            next_deadline: None,
        };
        fleet.pump(now);
        fleet
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// No member is left, and none will come.
    pub fn is_gone(&self) -> bool {
        self.slots.iter().all(Slot::is_gone)
    }

    /// Slots that are to hold a worker.
    pub fn size(&self) -> usize {
        self.slots.iter().filter(|slot| slot.front != Front::Closed).count()
    }

    pub fn serving(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_serving()).count()
    }

    /// All members with their slots, for status.
    pub fn members(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.slots
            .iter()
            .enumerate()
            .flat_map(|(index, slot)| slot.members().map(move |member| (index, member)))
    }

    /// Slots without a process, and when they are tried again.
    pub fn empty_slots(&self) -> impl Iterator<Item = (usize, Option<Instant>)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| match slot.front {
            Front::Empty { retry_at } => Some((index, Some(retry_at))),
            Front::Spawning => Some((index, None)),
            Front::Held(_) | Front::Closed => None,
        })
    }

    /// The booting worker of that slot and generation: only that one may join.
    pub fn booting(&self, slot: usize, version: u64) -> Option<WorkerKey> {
        self.slots
            .get(slot)?
            .members()
            .find(|member| member.version == version && matches!(member.phase, Phase::Booting { .. }))
            .map(|member| member.worker)
    }

    pub fn is_rolling(&self) -> bool {
        self.roll.is_some()
    }

    /// Whether a worker may leave for good: there are more than the fewest, and nobody is replaced in its slot.
    pub fn may_shrink(&self, worker: WorkerKey) -> bool {
        if self.size() <= self.plan.min_workers || self.stage != Stage::Running || self.roll.is_some() {
            return false;
        }
        self.find(worker).is_some_and(|(index, member)| {
            let slot = &self.slots[index];
            slot.front == Front::Held(member) && slot.may_be_replaced()
        })
    }

    fn find(&self, worker: WorkerKey) -> Option<(usize, Member)> {
        self.members().find(|(_, member)| member.worker == worker).map(|(slot, &member)| (slot, member))
    }
}

/// Events in. What follows is fetched with [`Fleet::next_action`].
impl Fleet {
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A worker was started, as [`Action::Spawn`] asked.
    pub fn spawned(&mut self, slot: usize, worker: WorkerKey, now: Instant) {
        let until = now + self.plan.boot_timeout;
        let version = self.slots[slot].version;
        let member = Member { worker, version, phase: Phase::Booting { until } };
        let place = &mut self.slots[slot];
        match place.succession {
            Succession::Spawning { why } => place.succession = Succession::Booting { why, successor: member },
            _ if place.front == Front::Spawning => place.front = Front::Held(member),
            // The slot was closed while the process was being started.
            _ => {
                place.leaving.push(member);
                self.terminate(slot, worker, now + KILL_AFTER);
            }
        }
        self.pump(now);
    }

    /// A worker could not be started.
    pub fn spawn_failed(&mut self, slot: usize, now: Instant) {
        if let Succession::Spawning { why } = self.slots[slot].succession {
            self.successor_failed(slot, why, None, now);
        } else if self.slots[slot].front == Front::Spawning {
            self.front_failed(slot, None, now);
        }
        self.pump(now);
    }

    /// A booting worker says that its app is loaded.
    pub fn joined(&mut self, worker: WorkerKey, now: Instant) {
        let Some((index, member)) = self.find(worker) else {
            return;
        };
        if !matches!(member.phase, Phase::Booting { .. }) {
            return;
        }
        self.ever_joined = true;
        let member = Member { phase: Phase::Serving { since: now }, ..member };
        let slot = &mut self.slots[index];
        match slot.succession {
            Succession::Booting { why, successor } if successor.worker == worker => {
                let old = std::mem::replace(&mut slot.front, Front::Held(member));
                slot.succession = Succession::Handing;
                // The successor first, so that capacity never dips.
                self.actions.push_back(Action::Admit { worker });
                if let Front::Held(old) = old {
                    self.dismiss(index, old, why, now);
                }
            }
            _ => {
                slot.front = Front::Held(member);
                self.actions.push_back(Action::Admit { worker });
            }
        }
        self.pump(now);
    }

    /// A worker's process is gone. What was still to be done to it is void: its key and its pid may soon be others'.
    pub fn exited(&mut self, worker: WorkerKey, now: Instant) {
        self.actions.retain(|action| action.worker() != Some(worker));
        let Some((index, member)) = self.find(worker) else {
            return;
        };
        let slot = &mut self.slots[index];
        if let Some(at) = slot.leaving.iter().position(|leaving| leaving.worker == worker) {
            slot.leaving.remove(at);
            if slot.leaving.is_empty() && slot.succession == Succession::Handing {
                slot.succession = Succession::None;
            }
        } else if let Succession::Booting { why, successor } = slot.succession
            && successor.worker == worker
        {
            self.successor_failed(index, why, Some(member), now);
        } else {
            self.vacate(index, member, now);
        }
        self.pump(now);
    }

    /// A withdrawn worker has nothing left to do.
    pub fn idle(&mut self, worker: WorkerKey, now: Instant) {
        if let Some((slot, Member { phase: Phase::Leaving { .. }, .. })) = self.find(worker) {
            self.terminate(slot, worker, now + self.plan.drain_timeout);
        }
        self.pump(now);
    }

    /// A serving worker is to be replaced. Asking twice changes nothing.
    pub fn retire(&mut self, worker: WorkerKey, why: Why, now: Instant) {
        let Some((index, _)) = self.find(worker) else {
            return;
        };
        let slot = &mut self.slots[index];
        let is_front = matches!(slot.front, Front::Held(member) if member.worker == worker);
        if is_front && slot.is_serving() && slot.succession == Succession::None {
            slot.succession = Succession::Wanted { why, not_before: now };
        }
        self.pump(now);
    }

    /// A worker leaves by itself: no more requests for it, and somebody else into its place.
    pub fn quit(&mut self, worker: WorkerKey, now: Instant) {
        let Some((index, member)) = self.find(worker) else {
            return;
        };
        let is_front = matches!(self.slots[index].front, Front::Held(front) if front.worker == worker);
        if is_front && matches!(member.phase, Phase::Serving { .. }) {
            self.vacate(index, member, now);
            let until = now + self.plan.drain_timeout;
            self.slots[index].leaving.push(Member { phase: Phase::Leaving { until }, ..member });
            self.actions.push_back(Action::Withdraw { worker });
        }
        self.pump(now);
    }

    /// A worker's answer has not ended by the drain timeout after its read timeout: its successor is started, and
    /// whether that joins or not, the stuck one goes. It gets no more requests, even if its answer ends after all:
    /// they would be cut short.
    pub fn stuck(&mut self, worker: WorkerKey, now: Instant) {
        let Some((index, member)) = self.find(worker) else {
            return;
        };
        if matches!(member.phase, Phase::Serving { .. }) {
            self.actions.push_back(Action::Withdraw { worker });
        }
        let slot = &mut self.slots[index];
        match (member.phase, &mut slot.succession) {
            (Phase::Leaving { .. }, _) => self.terminate(index, worker, now + KILL_AFTER),
            (Phase::Serving { .. }, Succession::Spawning { why } | Succession::Booting { why, .. }) => {
                *why = Why::Stuck;
            }
            (Phase::Serving { .. }, Succession::None | Succession::Wanted { .. } | Succession::Handing) => {
                self.start_successor(index, Why::Stuck);
            }
            (Phase::Booting { .. } | Phase::Terminating { .. } | Phase::Killed, _) => {}
        }
        self.pump(now);
    }

    /// A rolling restart. During another one: that starts over with the newest code, once.
    pub fn reload(&mut self, now: Instant) {
        match (&mut self.roll, self.stage) {
            (_, Stage::Draining | Stage::Stopping | Stage::GivenUp) => {
                self.actions.push_back(Action::RollEnded(RollEnd::Stopping));
            }
            (Some(roll), Stage::Running) => roll.again = true,
            (None, Stage::Running) => self.start_roll(now),
        }
        self.pump(now);
    }

    /// Requests wait: one more worker, unless one is on its way already or there are enough.
    pub fn grow(&mut self, now: Instant) {
        let is_coming = self.slots.iter().any(|slot| match slot.front {
            Front::Spawning | Front::Empty { .. } => true,
            Front::Held(member) => matches!(member.phase, Phase::Booting { .. }),
            Front::Closed => false,
        });
        if is_coming || self.stage != Stage::Running || self.size() >= self.plan.max_workers {
            return;
        }
        match self.slots.iter_mut().find(|slot| slot.is_gone()) {
            Some(slot) => slot.front = Front::Empty { retry_at: now },
            None => self.slots.push(Slot::new(now)),
        }
        self.pump(now);
    }

    /// A worker that load has not needed for long leaves, if it may. `true`: it does.
    pub fn shrink(&mut self, worker: WorkerKey, now: Instant) -> bool {
        let Some((index, member)) = self.find(worker).filter(|_| self.may_shrink(worker)) else {
            return false;
        };
        self.note_life(index, member, now);
        let slot = &mut self.slots[index];
        slot.front = Front::Closed;
        slot.succession = Succession::None;
        let until = now + self.plan.drain_timeout;
        slot.leaving.push(Member { phase: Phase::Leaving { until }, ..member });
        self.actions.push_back(Action::Withdraw { worker });
        self.pump(now);
        true
    }

    /// The server drains: nobody is replaced any more, crashed workers still are started again.
    pub fn drain(&mut self, now: Instant) {
        if self.stage == Stage::Running {
            self.stage = Stage::Draining;
            self.end_roll(RollEnd::Stopping);
            self.pump(now);
        }
    }

    /// All workers end now: SIGTERM, and SIGKILL at `kill_at`.
    pub fn stop(&mut self, kill_at: Instant, now: Instant) {
        if self.stage != Stage::GivenUp {
            self.stage = Stage::Stopping;
        }
        self.end_roll(RollEnd::Stopping);
        // Whoever was to be started would only have to end.
        self.actions.retain(|action| !matches!(action, Action::Spawn { .. }));
        self.lane = None;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if let Front::Held(member) = std::mem::replace(&mut slot.front, Front::Closed) {
                slot.leaving.push(member);
            }
            if let Succession::Booting { successor, .. } =
                std::mem::replace(&mut slot.succession, Succession::None)
            {
                slot.leaving.push(successor);
            }
            for worker in slot.leaving.iter().map(|member| member.worker).collect::<Vec<_>>() {
                self.terminate(index, worker, kill_at);
            }
        }
        self.pump(now);
    }

    /// The clock has moved on.
    pub fn tick(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let due = |member: &&Member| member.phase.deadline().is_some_and(|deadline| deadline <= now);
            let due: Vec<Member> = self.slots[index].members().filter(due).copied().collect();
            for member in due {
                match member.phase {
                    Phase::Leaving { .. } => self.terminate(index, member.worker, now + KILL_AFTER),
                    Phase::Booting { .. } | Phase::Terminating { .. } => self.kill(index, member.worker),
                    Phase::Serving { .. } | Phase::Killed => {}
                }
            }
        }
        self.pump(now);
    }

    /// How many requests a new worker is to serve before its successor is started: between 90 and 100 % of the
    /// bound, so that those started together do not all go together.
    pub fn draw_request_limit(&mut self) -> Option<u64> {
        let most = self.plan.max_requests;
        // xorshift64: good enough to spread a few numbers, and reproducible in the simulation.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (most > 0).then(|| (most - self.random % (most / 10 + 1)).max(1))
    }
}
