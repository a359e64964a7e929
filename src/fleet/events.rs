//! Events in. What follows is fetched with [`Fleet::next_action`].

use super::roll::RollEnd;
use super::slot::{Ending, Front, Member, Notice, Phase, RetireReason, Slot, Succession};
use super::trial::TrialFailure;
use super::{Action, Fleet, KILL_AFTER, Plan, Release, Resize, Stage};
use crate::control::CanaryPlan;
use crate::keys::WorkerKey;
use std::time::{Duration, Instant};

impl Fleet {
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A worker was started, as [`Action::Spawn`] asked.
    pub(crate) fn spawned(&mut self, slot: usize, worker: WorkerKey, now: Instant) {
        let until = now + self.plan.boot_timeout;
        self.fork_answered(slot);
        let (version, from) = (self.slots[slot].version, self.slots[slot].from);
        let member = Member::booting(worker, version, until, from);
        let place = &mut self.slots[slot];
        match place.succession() {
            Succession::Spawning { why } => place.succeed(Succession::Booting { why, successor: member }),
            _ if place.front() == Front::Spawning => place.enter(Front::Held(member)),
            // The slot was closed while the process was being started.
            _ => {
                place.leaving.push(member);
                self.terminate(slot, worker, now + KILL_AFTER);
            }
        }
        self.pump(now);
    }

    /// A worker could not be started.
    pub(crate) fn spawn_failed(&mut self, slot: usize, now: Instant) {
        self.fork_answered(slot);
        if let Succession::Spawning { why } = self.slots[slot].succession() {
            self.successor_failed(slot, why, None, now);
        } else if self.slots[slot].front() == Front::Spawning {
            self.front_ended(slot, None, Ending::Failed, now);
        }
        self.pump(now);
    }

    /// A booting worker says that its app is loaded, and whether SIGTERM lets what it has at work end.
    pub(crate) fn joined(&mut self, worker: WorkerKey, drains: bool, now: Instant) {
        let Some((index, mut member)) = self.find(worker) else {
            return;
        };
        if !matches!(member.phase(), Phase::Booting { .. }) {
            return;
        }
        self.ever_joined = true;
        self.fork_joined(member.from);
        if self.stage == Stage::GivenUp {
            self.stage = Stage::Running;
        }
        let retire_at = self.draw_age_limit().map(|age| now + age);
        member.enter(Phase::Serving { since: now, retire_at });
        member.drains = drains;
        let slot = &mut self.slots[index];
        let (old, why) = match slot.succession() {
            Succession::Booting { why, successor } if successor.worker == worker => {
                slot.succeed(Succession::None);
                match slot.front() {
                    Front::Held(old) => (Some(old), why),
                    Front::Empty { .. } | Front::Spawning | Front::Closed => (None, why),
                }
            }
            _ => (None, RetireReason::Requested),
        };
        slot.enter(Front::Held(member));
        let predecessor = old.map(|old| old.worker);
        let canary = self.take_canary(index);
        let reserve = old.filter(|_| why == RetireReason::Reload);
        if let Some(plan) = canary
            && (reserve.is_some() || self.serving() > 1)
        {
            self.begin_trial(index, worker, reserve, plan, now);
            // One that hangs does not come back.
            if let Some(stuck) = old.filter(|_| reserve.is_none()) {
                self.dismiss(index, stuck, why, now);
            }
            return self.pump(now);
        }
        if let Some(roll) = &mut self.roll {
            roll.note_joined(index, worker, predecessor);
        }
        // The successor first, so that capacity never dips.
        self.actions.push_back(Action::Admit { worker, predecessor });
        if let Some(old) = old {
            self.dismiss(index, old, why, now);
        }
        if canary.is_some() {
            self.skip_trial(index, worker, now);
        }
        self.pump(now);
    }

    /// A worker's process is gone. What was still to be done to it is void: its key and its pid may soon be others'.
    pub(crate) fn exited(&mut self, worker: WorkerKey, has_served: bool, now: Instant) {
        self.actions.retain(|action| action.worker() != Some(worker));
        let Some((index, member)) = self.find(worker) else {
            return;
        };
        if matches!(member.phase(), Phase::Booting { .. }) {
            self.fork_failed(member.from);
        }
        if self.is_on_trial(worker) {
            self.fail_trial(TrialFailure::Ended, now);
            return self.pump(now);
        }
        let was_unproven = self.roll.as_mut().is_some_and(|roll| roll.note_gone(worker));
        let slot = &mut self.slots[index];
        if let Some(at) = slot.leaving.iter().position(|leaving| leaving.worker == worker) {
            slot.leaving.remove(at);
        } else if let Succession::Booting { why, successor } = slot.succession()
            && successor.worker == worker
        {
            self.successor_failed(index, why, Some(member), now);
        } else {
            if was_unproven && !has_served {
                self.end_roll(RollEnd::Failed { slot: index, worker: Some(worker) });
            }
            let ending = if has_served { Ending::Served } else { Ending::Failed };
            self.vacate(index, member, ending, now);
        }
        self.pump(now);
    }

    /// A withdrawn worker has nothing left to do.
    pub(crate) fn idle(&mut self, worker: WorkerKey, now: Instant) {
        if let Some((slot, member)) = self.find(worker)
            && let Phase::Leaving { until } = member.phase()
        {
            let kill_at = match member.notice {
                Notice::AtOnce => until.max(now + KILL_AFTER),
                Notice::AfterRoll | Notice::Scheduled => now + self.plan.drain_timeout,
            };
            self.terminate(slot, worker, kill_at);
        }
        self.pump(now);
    }

    /// A worker has served its number of requests: it is replaced when its streams have ended, or after a while.
    pub(crate) fn note_used_up(&mut self, worker: WorkerKey, now: Instant) {
        let Some((index, _)) = self.find(worker) else {
            return;
        };
        if let Some(member) = self.slots[index].member_mut(worker) {
            member.used_up.get_or_insert(now);
        }
        self.pump(now);
    }

    /// A worker holds streams from now on, or none any more: its age and its number of requests wait for their end, for a
    /// while.
    pub(crate) fn note_streams(&mut self, worker: WorkerKey, has_streams: bool, now: Instant) {
        let Some((index, _)) = self.find(worker) else {
            return;
        };
        if let Some(member) = self.slots[index].member_mut(worker) {
            member.has_streams = has_streams;
        }
        self.pump(now);
    }

    /// A serving worker is to be replaced. Asking twice changes nothing.
    pub(crate) fn retire(&mut self, worker: WorkerKey, why: RetireReason, now: Instant) {
        let Some((index, _)) = self.find(worker).filter(|_| !self.is_on_trial(worker)) else {
            return;
        };
        let slot = &mut self.slots[index];
        let is_front = matches!(slot.front(), Front::Held(member) if member.worker == worker);
        if is_front && slot.is_serving() && slot.succession() == Succession::None {
            slot.succeed(Succession::Wanted { why, not_before: now });
        }
        self.pump(now);
    }

    /// A worker leaves by itself, or is of no use: no more requests for it, and somebody else into its place.
    pub(crate) fn quit(&mut self, worker: WorkerKey, ending: Ending, now: Instant) {
        let Some((index, mut member)) = self.find(worker) else {
            return;
        };
        if self.is_on_trial(worker) {
            // It is dismissed, which is what it wants.
            self.fail_trial(TrialFailure::Left, now);
            return self.pump(now);
        }
        let is_front = matches!(self.slots[index].front(), Front::Held(front) if front.worker == worker);
        if is_front && matches!(member.phase(), Phase::Serving { .. }) {
            self.vacate(index, member, ending, now);
            let until = now + self.plan.drain_timeout;
            member.enter(Phase::Leaving { until });
            self.slots[index].leaving.push(member);
            self.actions.push_back(Action::Withdraw { worker });
        }
        self.pump(now);
    }

    /// A worker's answer has not ended by the drain timeout after its read timeout: its successor is started, and
    /// whether that joins or not, the stuck one goes. It gets no more requests, even if its answer ends after all:
    /// they would be cut short. `has_others`: it has more at work, which gets the drain timeout; when nothing of that is
    /// left, this is called again.
    pub(crate) fn stuck(&mut self, worker: WorkerKey, has_others: bool, now: Instant) {
        let Some((index, member)) = self.find(worker) else {
            return;
        };
        if let Some(member) = self.slots[index].member_mut(worker) {
            member.is_stuck_alone = !has_others;
        }
        if self.is_on_trial(worker) {
            self.fail_trial(TrialFailure::Stuck, now);
            return self.pump(now);
        }
        if matches!(member.phase(), Phase::Serving { .. }) {
            self.actions.push_back(Action::Withdraw { worker });
        }
        let slot = &mut self.slots[index];
        match (member.phase(), slot.succession()) {
            (Phase::Reserve { .. }, _) if has_others => {
                self.actions.push_back(Action::Withdraw { worker });
                let until = now + self.plan.drain_timeout;
                if let Some(member) = self.slots[index].member_mut(worker) {
                    member.enter(Phase::Leaving { until });
                }
                if member.drains {
                    self.terminate(index, worker, until);
                }
            }
            (Phase::Reserve { .. }, _) => {
                self.actions.push_back(Action::Withdraw { worker });
                self.terminate(index, worker, now + KILL_AFTER);
            }
            (Phase::Leaving { .. } | Phase::Terminating { .. }, _) if has_others => {}
            (Phase::Leaving { .. } | Phase::Terminating { .. }, _) => {
                self.terminate(index, worker, now + KILL_AFTER);
            }
            (Phase::Serving { .. }, Succession::Spawning { .. } | Succession::Booting { .. }) => {
                slot.succession_is_for(RetireReason::Stuck);
            }
            (Phase::Serving { .. }, Succession::None | Succession::Wanted { .. }) => {
                self.start_successor(index, RetireReason::Stuck, Release::Good, now);
            }
            (Phase::Booting { .. } | Phase::Killed, _) => {}
        }
        self.pump(now);
    }

    /// A rolling restart. During another one: that starts over with the newest code, once.
    pub(crate) fn reload(&mut self, canary: Option<CanaryPlan>, now: Instant) {
        match (&mut self.roll, self.stage) {
            (_, Stage::Draining | Stage::Stopping) => {
                self.actions.push_back(Action::RollEnded(RollEnd::Stopping));
            }
            (Some(roll), Stage::Running | Stage::GivenUp) => {
                roll.starts_over = true;
                roll.next_canary = canary;
            }
            (None, Stage::Running) => self.start_roll(canary, now),
            // New code may well start.
            (None, Stage::GivenUp) => {
                self.stage = Stage::Running;
                self.start_roll(canary, now);
            }
        }
        self.pump(now);
    }

    /// Requests wait that need so many workers more. Forks are cheap: all of them at once. Other starts take long and
    /// load the app anew: one at a time, since the load may be over before the first has joined.
    pub(crate) fn grow(&mut self, needed: usize, now: Instant) {
        if self.stage != Stage::Running {
            return;
        }
        let at_once = if self.forks_at_once() { needed } else { needed.min(1) };
        let missing = at_once.saturating_sub(self.coming());
        let free = self.plan.max_workers.saturating_sub(self.size());
        for _ in 0..missing.min(free) {
            self.open_slot(now);
        }
        self.pump(now);
    }

    /// Slots whose worker is on its way, or is to be.
    fn coming(&self) -> usize {
        let is_coming = |slot: &&Slot| match slot.front() {
            Front::Spawning | Front::Empty { .. } => true,
            Front::Held(member) => matches!(member.phase(), Phase::Booting { .. }),
            Front::Closed => false,
        };
        self.slots.iter().filter(is_coming).count()
    }

    fn open_slot(&mut self, now: Instant) {
        match self.slots.iter_mut().find(|slot| slot.is_gone()) {
            Some(slot) => slot.enter(Front::Empty { retry_at: now }),
            None => self.slots.push(Slot::new(self.first_version, now)),
        }
    }

    /// An operator wants one worker more or fewer than there was to be: both bounds move. `false`: it cannot be.
    pub(crate) fn change_size(&mut self, change: Resize, now: Instant) -> bool {
        let Plan { min_workers, max_workers, .. } = &mut self.plan;
        match change {
            Resize::More if *max_workers == 0 => return false,
            Resize::Fewer if *min_workers <= 1 => return false,
            Resize::More | Resize::Fewer if self.stage != Stage::Running => return false,
            Resize::More => {
                *min_workers += 1;
                *max_workers += 1;
                if self.size() < self.plan.max_workers {
                    self.open_slot(now);
                }
            }
            Resize::Fewer => {
                *min_workers -= 1;
                *max_workers -= 1;
            }
        }
        self.pump(now);
        true
    }

    /// Where there are more slots than there are to be, one is given up: an empty one, else that of the worker that
    /// is idle, else any whose worker serves. Where the fewest would not be left to serve, who boots is waited for.
    pub(crate) fn trim(&mut self, idle: Option<WorkerKey>, now: Instant) {
        if self.size() <= self.plan.max_workers || self.stage != Stage::Running || self.roll.is_some() {
            return;
        }
        if self.give_up_spare_slot(now).is_some() {
            return;
        }
        let last = self.slots.iter().rev().find_map(|slot| match slot.front() {
            Front::Held(member) if slot.may_be_replaced() => Some(member.worker),
            Front::Held(_) | Front::Empty { .. } | Front::Spawning | Front::Closed => None,
        });
        if let Some(worker) = idle.filter(|worker| self.may_shrink(*worker)).or(last) {
            self.shrink(worker, now);
        }
    }

    /// A slot that nobody is in is given up, where there are more than the fewest. Which one.
    pub(crate) fn give_up_spare_slot(&mut self, now: Instant) -> Option<usize> {
        let index = self.spare_slot()?;
        self.slots[index].close();
        self.pump(now);
        Some(index)
    }

    /// A worker that load has not needed for long leaves, if it may. `true`: it does.
    pub(crate) fn shrink(&mut self, worker: WorkerKey, now: Instant) -> bool {
        let Some((index, member)) = self.find(worker).filter(|_| self.may_shrink(worker)) else {
            return false;
        };
        self.close_slot(index, member, now);
        self.pump(now);
        true
    }

    /// A serving worker leaves for good, since the server stops and nobody is to follow it.
    pub(crate) fn release(&mut self, worker: WorkerKey, now: Instant) {
        let Some((index, member)) = self.find(worker) else {
            return;
        };
        if self.stage == Stage::Draining
            && self.slots[index].front() == Front::Held(member)
            && self.slots[index].may_be_replaced()
        {
            self.close_slot(index, member, now);
        }
        self.pump(now);
    }

    fn close_slot(&mut self, index: usize, member: Member, now: Instant) {
        let slot = &mut self.slots[index];
        slot.close();
        self.leave(index, member, now + self.plan.drain_timeout);
    }

    /// The server drains: nobody is replaced any more, crashed workers still are started again.
    pub(crate) fn drain(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Running | Stage::GivenUp) {
            self.stage = Stage::Draining;
            self.drop_trial(now);
            self.end_roll(RollEnd::Stopping);
            self.pump(now);
        }
    }

    /// All workers leave, and have until `until` for what they have at work.
    pub(crate) fn stop(&mut self, until: Instant, now: Instant) {
        self.stage = Stage::Stopping;
        self.drop_trial(now);
        self.end_roll(RollEnd::Stopping);
        // Whoever was to be started would only have to end.
        self.actions.retain(|action| !matches!(action, Action::Spawn { .. } | Action::StartTemplate { .. }));
        self.end_templates();
        self.replacing = None;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            for member in &mut slot.leaving {
                member.leave_by(until);
            }
            let front = match slot.front() {
                Front::Held(member) => Some(member),
                Front::Empty { .. } | Front::Spawning | Front::Closed => None,
            };
            let successor = match slot.succession() {
                Succession::Booting { successor, .. } => Some(successor),
                Succession::None | Succession::Wanted { .. } | Succession::Spawning { .. } => None,
            };
            slot.close();
            for member in front.into_iter().chain(successor) {
                match member.phase() {
                    Phase::Serving { .. } | Phase::Reserve { .. } => self.leave(index, member, until),
                    // It has nothing at work.
                    Phase::Booting { .. }
                    | Phase::Leaving { .. }
                    | Phase::Terminating { .. }
                    | Phase::Killed => {
                        self.slots[index].leaving.push(member);
                        self.terminate(index, member.worker, until);
                    }
                }
            }
            let terminating = self.slots[index].leaving.iter().filter(|member| match member.phase() {
                Phase::Terminating { .. } => true,
                Phase::Leaving { .. } => member.notice != Notice::AtOnce,
                Phase::Booting { .. } | Phase::Serving { .. } | Phase::Reserve { .. } | Phase::Killed => {
                    false
                }
            });
            for worker in terminating.map(|member| member.worker).collect::<Vec<_>>() {
                self.terminate(index, worker, until);
            }
        }
        self.pump(now);
    }

    /// The clock has moved on.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.expire_templates(now);
        for index in 0..self.slots.len() {
            let due = |member: &&Member| member.phase().deadline().is_some_and(|deadline| deadline <= now);
            let due: Vec<Member> = self.slots[index].members().filter(due).copied().collect();
            for member in due {
                match member.phase() {
                    Phase::Leaving { .. } if member.notice != Notice::AtOnce => {
                        self.terminate(index, member.worker, now + self.plan.drain_timeout);
                    }
                    Phase::Leaving { .. } => self.end_drain(index, member.worker, now),
                    Phase::Booting { .. } => {
                        self.fork_failed(member.from);
                        self.kill(index, member.worker);
                    }
                    Phase::Terminating { .. } => self.kill(index, member.worker),
                    Phase::Serving { .. } | Phase::Reserve { .. } | Phase::Killed => {}
                }
            }
        }
        self.judge(now);
        self.pump(now);
    }

    /// How many requests a new worker is to serve before its successor is started: between 90 and 100 % of the
    /// bound, so that those started together do not all go together.
    pub(crate) fn draw_request_limit(&mut self) -> Option<u64> {
        match self.plan.max_requests {
            0 => None,
            most => Some(self.draw_below(most)),
        }
    }

    /// The same for how long it is to serve.
    fn draw_age_limit(&mut self) -> Option<Duration> {
        let most_ms = self.plan.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))?;
        Some(Duration::from_millis(self.draw_below(most_ms)))
    }

    /// Between 90 and 100 % of `most`.
    fn draw_below(&mut self, most: u64) -> u64 {
        // xorshift64: good enough to spread a few numbers, and reproducible in the simulation.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (most - self.random % (most / 10 + 1)).max(1)
    }
}
