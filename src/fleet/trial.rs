//! A roll's first successor on trial (`reload --canary`): it serves a share of the requests while its predecessor is kept
//! in reserve. If it does well the roll goes on; else it leaves, and its predecessor is back.
//!
//! ```text
//!  Replacing ─ joined ─▶ Judging ─ good ─▶ Replacing …
//!                           └── bad, or it ends ─▶ (the roll has ended)
//! ```

use super::canary::{Tally, Trial, TrialOutcome, Verdict};
use super::roll::{RollEnd, RollStage};
use super::slot::{Front, Member, Phase, RetireReason, Succession};
use super::{Action, Fleet, KILL_AFTER};
use crate::control::CanaryPlan;
use crate::keys::WorkerKey;
use std::time::Instant;

/// Why a release was not taken over after its trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrialFailure {
    /// It failed at more requests than the old release.
    Errors { own: Tally, others: Tally },
    /// Its worker has ended.
    Ended,
    /// Its worker said that it leaves.
    Left,
    /// Its worker got stuck.
    Stuck,
    /// Nobody of the old release was left when its worker joined.
    Alone,
}

/// With one worker it and its predecessor serve by turns.
const FEWEST_TURNS: usize = 2;

/// Getters.
impl Fleet {
    /// A first successor is on trial, and [`Fleet::note_outcome`] wants to know what becomes of requests.
    pub(crate) fn is_judging(&self) -> bool {
        self.trial_at().is_some()
    }

    /// Where it is, and who.
    pub(super) fn trial_at(&self) -> Option<(usize, WorkerKey)> {
        match self.roll.as_ref()?.stage {
            RollStage::Judging { index, worker } => Some((index, worker)),
            RollStage::Replacing { .. } | RollStage::Draining => None,
        }
    }

    pub(super) fn is_on_trial(&self, worker: WorkerKey) -> bool {
        self.trial_at().is_some_and(|(_, on_trial)| on_trial == worker)
    }

    pub(super) fn trial_deadline(&self, now: Instant) -> Option<Instant> {
        Some(self.roll.as_ref()?.trial.as_ref()?.deadline(now))
    }
}

impl Fleet {
    /// Whoever joins there is the first of a roll whose first worker is to be on trial: how long for.
    pub(super) fn take_canary(&mut self, index: usize) -> Option<CanaryPlan> {
        self.roll.as_mut().filter(|roll| roll.is_at(index))?.canary.take()
    }

    /// The roll's first worker has joined, and is on trial from now on, with its predecessor in reserve, if that one is
    /// there.
    pub(super) fn begin_trial(
        &mut self,
        index: usize,
        worker: WorkerKey,
        old: Option<Member>,
        plan: CanaryPlan,
        now: Instant,
    ) {
        let every = self.serving().max(FEWEST_TURNS);
        let is_alone = self.serving() == 1;
        let Some(roll) = &mut self.roll else { return };
        roll.stage = RollStage::Judging { index, worker };
        roll.trial = Some(Box::new(Trial::new(plan, now)));
        self.actions.push_back(Action::AdmitOnTrial { worker, every });
        if let Some(mut reserve) = old
            && let Phase::Serving { since, retire_at } = reserve.phase()
        {
            reserve.enter(Phase::Reserve { since, retire_at, is_serving: is_alone });
            self.slots[index].leaving.push(reserve);
            if !is_alone {
                self.actions.push_back(Action::Withdraw { worker: reserve.worker });
            }
        }
    }

    /// The roll's first worker has joined, and nobody serves beside it. Where the old release served when the turn came, it
    /// comes back, and meanwhile the new worker serves. Where it did not, there is nothing to go back to.
    pub(super) fn skip_trial(&mut self, index: usize, worker: WorkerKey, now: Instant) {
        let Some(roll) = &self.roll else { return };
        if !roll.had_others {
            return self.actions.push_back(Action::NoTrial);
        }
        self.slots[index].succeed(Succession::Wanted { why: RetireReason::Requested, not_before: now });
        self.end_roll(RollEnd::NotTaken { slot: index, worker, failure: TrialFailure::Alone });
    }

    /// What has become of a request that a worker had. `target`: a hash of what was asked for.
    pub(crate) fn note_outcome(
        &mut self,
        worker: WorkerKey,
        target: u64,
        outcome: TrialOutcome,
        now: Instant,
    ) {
        let is_own = self.is_on_trial(worker);
        if let Some(trial) = self.roll.as_mut().and_then(|roll| roll.trial.as_mut()) {
            trial.note(is_own, target, outcome, now);
        }
        if self.judge(now) {
            self.pump(now);
        }
    }

    /// Ends the trial if there is a verdict. `true`: it has ended.
    pub(super) fn judge(&mut self, now: Instant) -> bool {
        let Some(trial) = self.roll.as_ref().and_then(|roll| roll.trial.as_ref()) else { return false };
        let (verdict, own, others) = (trial.verdict(now), trial.own(), trial.others());
        match verdict {
            Verdict::Undecided => return false,
            Verdict::Good => self.pass_trial(now),
            Verdict::Bad => self.fail_trial(TrialFailure::Errors { own, others }, now),
        }
        true
    }

    fn take_reserve(&mut self, index: usize) -> Option<Member> {
        let leaving = &mut self.slots[index].leaving;
        let at = leaving.iter().position(|member| matches!(member.phase(), Phase::Reserve { .. }))?;
        Some(leaving.remove(at))
    }

    /// The new release is as good as the old one: the roll goes on.
    fn pass_trial(&mut self, now: Instant) {
        let Some((index, worker)) = self.trial_at() else { return };
        let reserve = self.take_reserve(index);
        self.actions.push_back(Action::EndTrial);
        if let Some(roll) = &mut self.roll {
            roll.trial = None;
            roll.stage = RollStage::Replacing { current: Some(index) };
            roll.note_joined(index, worker, reserve.map(|reserve| reserve.worker));
        }
        if let Some(reserve) = reserve {
            self.dismiss(index, reserve, RetireReason::Reload, now);
        }
        self.roll_replaced(index);
    }

    /// It is not, or its worker ends: the predecessor serves again.
    pub(super) fn fail_trial(&mut self, failure: TrialFailure, now: Instant) {
        let Some((index, worker)) = self.trial_at() else { return };
        let reserve = self.take_reserve(index);
        let slot = &mut self.slots[index];
        let canary = match slot.front() {
            Front::Held(member) if member.worker == worker => Some(member),
            Front::Held(_) | Front::Empty { .. } | Front::Spawning | Front::Closed => None,
        };
        self.actions.push_back(Action::EndTrial);
        if slot.succession() != Succession::None {
            slot.succeed(Succession::None);
        }
        match reserve {
            Some(mut old) => {
                if let Phase::Reserve { since, retire_at, is_serving } = old.phase() {
                    old.enter(Phase::Serving { since, retire_at });
                    if !is_serving {
                        self.actions.push_back(Action::Readmit { worker: old.worker });
                    }
                }
                slot.enter(Front::Held(old));
            }
            None => slot.enter(Front::Empty { retry_at: now }),
        }
        if let Some(canary) = canary.filter(|_| failure != TrialFailure::Ended) {
            self.leave(index, canary, now + self.plan.drain_timeout);
            if failure == TrialFailure::Stuck && canary.is_stuck_alone {
                self.terminate(index, worker, now + KILL_AFTER);
            }
        }
        self.end_roll(RollEnd::NotTaken { slot: index, worker, failure });
    }

    /// The server stops: nobody is judged any more.
    pub(super) fn drop_trial(&mut self, now: Instant) {
        if self.is_judging() {
            self.pass_trial(now);
        }
    }
}
