//! A rolling restart: every slot replaced, a next one when this one's successor has joined, and stopped by the first
//! successor that fails.
//!
//! ```text
//!  Replacing ─▶ Draining ─▶ Done
//!      └──────▶ Failed
//! ```
//!
//! When the last successor has joined, the next release is adopted: each start uses it from then on. The roll itself
//! lasts until the last predecessor is gone.

use super::canary::Trial;
use super::slot::{Front, RetireReason, Slot};
use super::trial::TrialFailure;
use super::{Action, Fleet, Release, TemplateId};
use crate::control::CanaryPlan;
use crate::keys::WorkerKey;
use std::collections::VecDeque;
use std::time::Instant;

/// A slot whose new worker crashes in the middle of a roll gets the last good release back, and its turn once more.
/// So many turns there are for each slot, on average; then the next release is not worth having.
const MAX_TURNS: usize = 3;

/// How a rolling restart ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RollEnd {
    Done {
        replaced: usize,
    },
    /// The successor in that slot died or did not join in time (`None`: could not even be started). The old
    /// workers go on.
    Failed {
        slot: usize,
        worker: Option<WorkerKey>,
    },
    /// The new workers of that slot ended again and again, while others served.
    Unstable {
        slot: usize,
    },
    /// The first worker of the next release was on trial, and has not done well. The old ones go on.
    NotTaken {
        slot: usize,
        worker: WorkerKey,
        failure: TrialFailure,
    },
    /// The template of the new release failed before any worker of it had joined.
    TemplateFailed {
        template: TemplateId,
    },
    /// The server is stopping.
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RollStage {
    /// Slots get the next release; this one's successor boots.
    Replacing { current: Option<usize> },
    /// The first successor is on trial.
    Judging { index: usize, worker: WorkerKey },
    /// All have it, and predecessors are not gone yet.
    Draining,
}

#[derive(Debug)]
pub(super) struct Roll {
    pending: VecDeque<usize>,
    replaced: usize,
    of: usize,
    /// As many turns as there may be.
    max_turns: usize,
    pub(super) stage: RollStage,
    /// The first successor is to be on trial.
    pub(super) canary: Option<CanaryPlan>,
    pub(super) trial: Option<Box<Trial>>,
    /// Somebody served when the slot at hand had its turn.
    pub(super) had_others: bool,
    /// Successors that have joined: if one of them ends without having served, the roll has failed.
    joined: Vec<WorkerKey>,
    /// Predecessors that are not gone yet.
    leaving: Vec<WorkerKey>,
    /// Another reload came: start over when the slot at hand is done, or has failed.
    pub(super) starts_over: bool,
    /// And so that one's first successor.
    pub(super) next_canary: Option<CanaryPlan>,
}

impl Roll {
    /// Slots are to get the next release still.
    pub(super) fn is_under_way(&self) -> bool {
        match self.stage {
            RollStage::Replacing { .. } | RollStage::Judging { .. } => true,
            RollStage::Draining => false,
        }
    }

    pub(super) fn is_replacing(&self) -> bool {
        matches!(self.stage, RollStage::Replacing { .. })
    }

    pub(super) fn is_at(&self, index: usize) -> bool {
        self.stage == RollStage::Replacing { current: Some(index) }
    }

    /// The slot's new worker serves, and the old one leaves.
    pub(super) fn note_joined(&mut self, index: usize, worker: WorkerKey, old: Option<WorkerKey>) {
        if self.is_at(index) {
            self.joined.push(worker);
            self.leaving.extend(old);
        }
    }

    /// A worker is gone. `true`: it was one of the roll's successors, which are not proven yet.
    pub(super) fn note_gone(&mut self, worker: WorkerKey) -> bool {
        self.leaving.retain(|leaving| *leaving != worker);
        let at = self.joined.iter().position(|joined| *joined == worker);
        at.map(|at| self.joined.swap_remove(at)).is_some() && self.is_replacing()
    }
}

impl Fleet {
    pub(super) fn start_roll(&mut self, canary: Option<CanaryPlan>, now: Instant) {
        let open = |(index, slot): (usize, &mut Slot)| {
            if let Front::Empty { .. } = slot.front() {
                // New code may well mend what made the old one fail. Its turn comes whatever its wait.
                slot.backoff.reset();
            }
            (slot.front() != Front::Closed).then_some(index)
        };
        let pending: VecDeque<usize> = self.slots.iter_mut().enumerate().filter_map(open).collect();
        // Those of the roll that this one takes over are waited for as well.
        let leaving = self.roll.take().map(|roll| roll.leaving).unwrap_or_default();
        self.roll = Some(Roll {
            replaced: 0,
            of: pending.len(),
            max_turns: pending.len().max(self.plan.max_workers) * MAX_TURNS,
            pending,
            stage: RollStage::Replacing { current: None },
            canary,
            trial: None,
            had_others: false,
            joined: Vec::new(),
            leaving,
            starts_over: false,
            next_canary: None,
        });
        self.actions.push_back(Action::RollBegins);
        self.begin_roll_template(now);
    }

    /// Takes up the next slot of the roll.
    pub(super) fn continue_roll(&mut self, now: Instant) {
        let had_others = self.serving() > 0;
        let is_vacant = |slot: &Slot| matches!(slot.front(), Front::Empty { .. } | Front::Closed);
        let is_vacant = self.slots.iter().all(is_vacant);
        let Some(roll) = &mut self.roll else { return };
        roll.had_others = had_others;
        // A trial needs the old release beside it: it is for that one to fill empty slots, unless it fills none.
        let leaves_empty = roll.canary.is_some() && !is_vacant;
        // A slot whose worker boots right now, or is being replaced for another reason, has the old code: others
        // first.
        for _ in 0..roll.pending.len() {
            let Some(index) = roll.pending.pop_front() else {
                break;
            };
            match self.slots[index].front() {
                Front::Closed => roll.of -= 1,
                _ if self.slots[index].may_be_replaced() => {
                    roll.stage = RollStage::Replacing { current: Some(index) };
                    self.replacing = Some(index);
                    return self.start_successor(index, RetireReason::Reload, Release::New, now);
                }
                Front::Empty { .. } if leaves_empty => roll.pending.push_back(index),
                Front::Empty { .. } => {
                    roll.stage = RollStage::Replacing { current: Some(index) };
                    self.replacing = Some(index);
                    self.slots[index].enter(Front::Spawning);
                    return self.spawn(index, Some(RetireReason::Reload), Release::New, now);
                }
                Front::Spawning | Front::Held(_) => roll.pending.push_back(index),
            }
        }
    }

    /// Adopts the next release when all slots have it; ends the roll when all predecessors are gone.
    pub(super) fn finish_roll(&mut self) {
        let Some(roll) = &mut self.roll else { return };
        if roll.stage == (RollStage::Replacing { current: None })
            && roll.pending.is_empty()
            && !roll.starts_over
        {
            roll.stage = RollStage::Draining;
            self.actions.push_back(Action::Adopt);
            self.adopt_template();
        }
        let Some(roll) = &self.roll else { return };
        if roll.stage == RollStage::Draining && roll.leaving.is_empty() && !roll.starts_over {
            let replaced = roll.replaced;
            self.end_roll(RollEnd::Done { replaced });
        }
    }

    pub(super) fn roll_replaced(&mut self, index: usize) {
        if let Some(roll) = &mut self.roll
            && roll.is_at(index)
        {
            roll.stage = RollStage::Replacing { current: None };
            roll.replaced += 1;
            self.actions.push_back(Action::RollProgress { replaced: roll.replaced, of: roll.of });
        }
    }

    /// A slot gets the last good release while the roll goes on: it is replaced in its turn.
    pub(super) fn roll_missed(&mut self, index: usize) {
        // Slots may have been added since the roll began.
        let max_turns = self.plan.max_workers * MAX_TURNS;
        let Some(roll) = &mut self.roll else { return };
        if !roll.is_under_way() || roll.is_at(index) || roll.pending.contains(&index) {
            return;
        }
        roll.pending.push_back(index);
        roll.of += 1;
        if roll.of > roll.max_turns.max(max_turns) && roll.is_replacing() {
            self.end_roll(RollEnd::Unstable { slot: index });
        }
    }

    /// Ends the roll. One that another reload has overtaken starts over instead: that one's code is not tried yet.
    pub(super) fn end_roll(&mut self, end: RollEnd) {
        if let Some(roll) = self.roll.as_mut().filter(|roll| roll.starts_over && end != RollEnd::Stopping) {
            if let RollStage::Judging { .. } = roll.stage {
                roll.stage = RollStage::Replacing { current: None };
                roll.trial = None;
            }
        } else if self.roll.take().is_some() {
            self.end_roll_template();
            self.actions.push_back(Action::RollEnded(end));
        }
    }
}
