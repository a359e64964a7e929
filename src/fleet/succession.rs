//! The one mechanism, *replace slot i*: who is started when, and what follows when a worker fails or is gone.

use super::backoff::SOUND_LIFE;
use super::roll::RollEnd;
use super::slot::{Front, Member, Phase, Slot, Succession, Why};
use super::{Action, Fleet, KILL_AFTER, Stage};
use crate::keys::WorkerKey;
use std::time::Instant;

/// If at the start every slot has failed so often and nobody ever joined, the app is broken.
const HOPELESS_FAILURES: u32 = 3;

impl Fleet {
    /// Starts whatever may be started now, and notes when to look again.
    pub(super) fn pump(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Running | Stage::Draining) {
            for index in 0..self.slots.len() {
                if matches!(self.slots[index].front, Front::Empty { retry_at } if retry_at <= now) {
                    self.slots[index].front = Front::Spawning;
                    self.spawn(index, None);
                }
            }
        }
        self.close_lane();
        if self.stage == Stage::Running && self.lane.is_none() {
            self.open_lane(now);
        }
        let deadlines = self.slots.iter().filter_map(|slot| match slot.deadline() {
            // Due, but the lane is not free: whoever frees it looks again.
            Some(deadline) if deadline <= now && matches!(slot.succession, Succession::Wanted { .. }) => {
                slot.members().filter_map(|member| member.phase.deadline()).min()
            }
            deadline => deadline,
        });
        self.next_deadline = deadlines.min();
        self.check();
    }

    /// The next slot to be replaced: a roll's before a cycle's.
    pub(super) fn open_lane(&mut self, now: Instant) {
        if self.roll.is_some() {
            return self.continue_roll(now);
        }
        let is_due = |slot: &Slot| {
            slot.is_serving()
                && matches!(slot.succession, Succession::Wanted { not_before, .. } if not_before <= now)
        };
        let Some(index) = self.slots.iter().position(is_due) else {
            return;
        };
        if let Succession::Wanted { why, .. } = self.slots[index].succession {
            self.lane = Some(index);
            self.start_successor(index, why);
        }
    }

    pub(super) fn start_successor(&mut self, index: usize, why: Why) {
        self.slots[index].succession = Succession::Spawning { why };
        self.spawn(index, Some(why));
    }

    pub(super) fn spawn(&mut self, index: usize, why: Option<Why>) {
        self.slots[index].version += 1;
        let version = self.slots[index].version;
        self.actions.push_back(Action::Spawn { slot: index, version, why });
    }

    /// The successor serves: the old worker leaves as soon as it is idle, a stuck one at once.
    pub(super) fn dismiss(&mut self, index: usize, old: Member, why: Why, now: Instant) {
        self.note_life(index, old, now);
        let until = now + self.plan.drain_timeout;
        let worker = old.worker;
        self.slots[index].leaving.push(Member { phase: Phase::Leaving { until }, ..old });
        self.actions.push_back(Action::Withdraw { worker });
        if why == Why::Stuck {
            self.terminate(index, worker, now + KILL_AFTER);
        }
    }

    /// Failures are counted in a row: a sound life ends the row, however it ends itself.
    pub(super) fn note_life(&mut self, index: usize, member: Member, now: Instant) {
        if let Phase::Serving { since } = member.phase
            && now.saturating_duration_since(since) >= SOUND_LIFE
        {
            self.slots[index].backoff.reset();
        }
    }

    pub(super) fn terminate(&mut self, index: usize, worker: WorkerKey, kill_at: Instant) {
        let Some(member) = self.slots[index].leaving.iter_mut().find(|member| member.worker == worker) else {
            return;
        };
        match &mut member.phase {
            Phase::Terminating { kill_at: earlier } => *earlier = kill_at.min(*earlier),
            Phase::Killed => {}
            Phase::Booting { .. } | Phase::Serving { .. } | Phase::Leaving { .. } => {
                member.phase = Phase::Terminating { kill_at };
                self.actions.push_back(Action::Terminate { worker });
            }
        }
    }

    pub(super) fn kill(&mut self, index: usize, worker: WorkerKey) {
        let slot = &mut self.slots[index];
        let front = match &mut slot.front {
            Front::Held(member) => Some(member),
            Front::Empty { .. } | Front::Spawning | Front::Closed => None,
        };
        let successor = match &mut slot.succession {
            Succession::Booting { successor, .. } => Some(successor),
            _ => None,
        };
        let mut members = front.into_iter().chain(successor).chain(&mut slot.leaving);
        if let Some(member) = members.find(|member| member.worker == worker) {
            member.phase = Phase::Killed;
            self.actions.push_back(Action::Kill { worker });
        }
    }

    /// The worker at the front of a slot is gone, or goes by itself. Its successor takes the place, if one is on
    /// its way; else the slot is tried again, after a wait if the life was short.
    pub(super) fn vacate(&mut self, index: usize, member: Member, now: Instant) {
        self.note_life(index, member, now);
        let was_serving = matches!(member.phase, Phase::Serving { .. });
        let slot = &mut self.slots[index];
        match std::mem::replace(&mut slot.succession, Succession::None) {
            Succession::Booting { successor, .. } => slot.front = Front::Held(successor),
            Succession::Spawning { .. } => slot.front = Front::Spawning,
            Succession::Handing => {
                slot.succession = Succession::Handing;
                self.front_failed(index, Some((member, was_serving)), now);
            }
            Succession::None | Succession::Wanted { .. } => {
                self.front_failed(index, Some((member, was_serving)), now);
            }
        }
    }

    /// Nobody is at the front of the slot: tried again with backoff.
    pub(super) fn front_failed(&mut self, index: usize, who: Option<(Member, bool)>, now: Instant) {
        let was_serving = who.is_some_and(|(_, was_serving)| was_serving);
        let slot = &mut self.slots[index];
        let is_sound = was_serving
            && matches!(who, Some((Member { phase: Phase::Serving { since }, .. }, _))
                if now.saturating_duration_since(since) >= SOUND_LIFE);
        let retry_at = if is_sound { now } else { slot.backoff.fail(now) };
        slot.front = Front::Empty { retry_at };
        if self.lane == Some(index) && !was_serving {
            self.lane = None;
            self.end_roll(RollEnd::Failed { slot: index, worker: who.map(|(member, _)| member.worker) });
        }
        let is_hopeless = |slot: &Slot| slot.backoff.failures() >= HOPELESS_FAILURES;
        let has_hope = self.ever_joined || self.plan.keep_trying || !self.slots.iter().all(is_hopeless);
        if !has_hope && self.stage == Stage::Running {
            self.stage = Stage::GivenUp;
            self.actions.push_back(Action::GiveUp);
        }
    }

    /// A successor did not make it: the old worker goes on, unless it is stuck.
    pub(super) fn successor_failed(&mut self, index: usize, why: Why, who: Option<Member>, now: Instant) {
        let slot = &mut self.slots[index];
        let retry_at = slot.backoff.fail(now);
        slot.succession = match why {
            Why::Reload | Why::Stuck => Succession::None,
            Why::Requests | Why::Memory | Why::Asked | Why::Deaf => {
                Succession::Wanted { why, not_before: retry_at }
            }
        };
        if self.lane == Some(index) {
            self.lane = None;
            if self.roll.as_ref().is_some_and(|roll| roll.current == Some(index)) {
                self.end_roll(RollEnd::Failed { slot: index, worker: who.map(|member| member.worker) });
            }
        }
        if why == Why::Stuck
            && let Front::Held(stuck) = self.slots[index].front
        {
            self.slots[index].front = Front::Empty { retry_at };
            self.dismiss(index, stuck, why, now);
        }
    }

    /// The slot at hand is done when its new worker serves and nobody else is left in it.
    pub(super) fn close_lane(&mut self) {
        let Some(index) = self.lane else { return };
        let slot = &self.slots[index];
        let is_settled = matches!(slot.succession, Succession::None | Succession::Wanted { .. });
        if is_settled && slot.leaving.is_empty() && (slot.is_serving() || slot.front == Front::Closed) {
            self.lane = None;
            self.roll_replaced(index);
        }
    }

    pub(super) fn check(&self) {
        for slot in &self.slots {
            debug_assert!(
                slot.leaving
                    .iter()
                    .all(|member| !matches!(member.phase, Phase::Booting { .. } | Phase::Serving { .. })),
                "a leaving worker neither boots nor serves"
            );
            let is_coming =
                matches!(slot.succession, Succession::Spawning { .. } | Succession::Booting { .. });
            debug_assert!(
                !is_coming || slot.is_serving() || slot.front == Front::Closed,
                "a successor to nobody"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::*;
    use std::time::Duration;

    /// How long the fleet's only slot waits after its `serving` worker has crashed early.
    fn wait_after_crash(fleet: &mut Fleet, worker: WorkerKey, now: Instant) -> Duration {
        fleet.exited(worker, now);
        let retry_at = fleet.empty_slots().next().and_then(|(_, retry_at)| retry_at);
        retry_at.expect("the slot is empty") - now
    }

    fn start(fleet: &mut Fleet, worker: WorkerKey, now: Instant) {
        fleet.tick(now);
        while fleet.next_action().is_some() {}
        fleet.spawned(0, worker, now);
        fleet.joined(worker, now);
    }

    #[test]
    fn a_sound_life_that_ends_in_a_replacement_ends_the_row_of_failures() {
        let mut now = Instant::now();
        let (boot_timeout, drain_timeout) = (Duration::from_secs(30), Duration::from_secs(30));
        let plan = Plan {
            min_workers: 1,
            max_workers: 1,
            max_requests: 0,
            boot_timeout,
            drain_timeout,
            keep_trying: false,
            seed: 1,
        };
        let mut fleet = Fleet::new(plan, now);
        for (key, wait_ms) in [(0, 100), (1, 200), (2, 400)] {
            start(&mut fleet, WorkerKey(key), now);
            let wait = wait_after_crash(&mut fleet, WorkerKey(key), now);
            assert_eq!(wait, Duration::from_millis(wait_ms));
            now += wait;
        }
        let (old, new) = (WorkerKey(3), WorkerKey(4));
        start(&mut fleet, old, now);
        now += SOUND_LIFE;
        fleet.retire(old, Why::Requests, now);
        start(&mut fleet, new, now);
        fleet.idle(old, now);
        fleet.exited(old, now);
        assert_eq!(wait_after_crash(&mut fleet, new, now), Duration::from_millis(100));
    }
}
