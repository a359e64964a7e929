//! The one mechanism, *replace slot i*: who is started when, and what follows when a worker fails or is gone.

use super::backoff::{FIRST_WAIT, STABLE_AFTER};
use super::roll::{Roll, RollEnd};
use super::slot::{Ending, Front, Member, Notice, Phase, RetireReason, Slot, Succession};
use super::{Action, Fleet, KILL_AFTER, Release, RollMode, STREAMS_TOLD_WITHIN, Stage};
use crate::keys::WorkerKey;
use std::time::{Duration, Instant};

/// If at the start every slot has failed so often and nobody ever joined, the app is broken.
const HOPELESS_FAILURES: u32 = 3;
/// While nobody serves, one slot is tried so often, however long it would have to wait.
const RESCUE_EVERY: Duration = Duration::from_secs(1);

impl Fleet {
    /// Starts whatever may be started now, and notes when to look again.
    pub(super) fn pump(&mut self, now: Instant) {
        self.start_templates(now);
        self.start_empty_slots(now);
        self.close_replacement();
        if self.stage == Stage::Running {
            self.retire_due(now);
        }
        if self.stage == Stage::Running && self.replacing.is_none() {
            self.open_replacement(now);
        }
        self.finish_roll();
        self.tell_streams_of_roll(now);
        // The good release may be another one by now, or another roll has begun.
        self.start_templates(now);
        self.start_empty_slots(now);
        let may_start = self.may_start();
        let may_replace = self.stage == Stage::Running && self.may_open_replacement() && may_start;
        let deadlines = self.slots.iter().filter_map(|slot| {
            if self.stage == Stage::GivenUp {
                // Whoever still boots has its deadline; nobody else is tried.
                return slot.members().filter_map(|member| member.phase().deadline()).min();
            }
            // A replacement that is due and may not begin is looked at by whoever frees its way.
            let is_blocked = matches!(slot.succession(),
                Succession::Wanted { not_before, .. } if not_before <= now || !may_replace);
            let retire = slot.retire_deadline().filter(|_| self.stage == Stage::Running);
            slot.deadline(may_start, !is_blocked).into_iter().chain(retire.map(|(at, _)| at)).min()
        });
        let rescue = self.rescue().filter(|_| may_start);
        let trial = self.trial_deadline(now);
        let is_given_up = self.stage == Stage::GivenUp;
        let template = self.templates.next_deadline().filter(|_| !is_given_up);
        let others = trial.into_iter().chain(rescue.map(|(_, at)| at)).chain(template);
        self.next_deadline = deadlines.chain(others).min();
        self.check();
    }

    /// Workers that have served for their time, or their number of requests, are to be replaced.
    fn retire_due(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if let Some((_, why)) = slot.retire_deadline().filter(|(at, _)| *at <= now) {
                slot.succeed(Succession::Wanted { why, not_before: now });
            }
        }
    }

    /// Starts in empty slots are allowed, and wait for nothing.
    fn may_start(&self) -> bool {
        matches!(self.stage, Stage::Running | Stage::Draining) && !self.waits_for_template()
    }

    fn start_empty_slots(&mut self, now: Instant) {
        if !self.may_start() {
            return;
        }
        let is_due = |slot: &Slot| matches!(slot.front(), Front::Empty { retry_at } if retry_at <= now);
        let due: Vec<usize> = (0..self.slots.len()).filter(|&index| is_due(&self.slots[index])).collect();
        let rescue = self.rescue().filter(|(_, at)| due.is_empty() && *at <= now);
        for index in due.into_iter().chain(rescue.map(|(index, _)| index)) {
            self.slots[index].enter(Front::Spawning);
            self.spawn(index, None, Release::Good, now);
        }
    }

    /// While nobody serves: the slot that is tried next, and when at the latest.
    pub(super) fn rescue(&self) -> Option<(usize, Instant)> {
        if self.serving() > 0 {
            return None;
        }
        let empty = self.slots.iter().enumerate().filter_map(|(index, slot)| match slot.front() {
            Front::Empty { retry_at } => Some((index, retry_at)),
            Front::Spawning | Front::Held(_) | Front::Closed => None,
        });
        let (index, retry_at) = empty.min_by_key(|(_, retry_at)| *retry_at)?;
        Some((index, self.last_start.map_or(retry_at, |last| retry_at.min(last + RESCUE_EVERY))))
    }

    fn may_open_replacement(&self) -> bool {
        !self.is_judging() && self.replacing.is_none() && !self.has_many_leaving()
    }

    /// Those that were replaced drain side by side, up to a fleet of them; a further one waits for the oldest.
    fn has_many_leaving(&self) -> bool {
        let leaving: usize = self.slots.iter().map(|slot| slot.leaving.len()).sum();
        let most = match self.plan.roll {
            RollMode::Side => self.size().max(1),
            RollMode::Serial => 1,
        };
        leaving >= most
    }

    /// Old workers whose streams have waited for the end of the roll get their SIGTERM, when it has ended or waits for
    /// them.
    fn tell_streams_of_roll(&mut self, now: Instant) {
        let is_under_way = self.roll.as_ref().is_some_and(Roll::is_under_way);
        if is_under_way && !self.has_many_leaving() {
            return;
        }
        let waits = |(_, member): &(usize, &Member)| member.notice == Notice::AfterRoll;
        let waiting: Vec<(usize, WorkerKey)> =
            self.members().filter(waits).map(|(index, member)| (index, member.worker)).collect();
        let each = STREAMS_TOLD_WITHIN / u32::try_from(waiting.len().max(1)).unwrap_or(u32::MAX);
        for (at, (index, worker)) in (0..).zip(waiting) {
            if let Some(member) = self.slots[index].member_mut(worker) {
                member.notice = Notice::Scheduled;
                member.leave_by(now + each * at);
            }
            if at == 0 || self.stage != Stage::Running {
                self.terminate(index, worker, now + self.plan.drain_timeout);
            }
        }
    }

    /// The next slot to be replaced: a roll's before a cycle's.
    fn open_replacement(&mut self, now: Instant) {
        if self.is_judging() {
            return;
        }
        if let Some(canary) = self.roll.as_ref().filter(|roll| roll.starts_over).map(|roll| roll.next_canary)
        {
            self.start_roll(canary, now);
        }
        if !self.may_open_replacement() {
            return;
        }
        if self.roll.as_ref().is_some_and(|roll| roll.is_replacing()) {
            // Before it is there, no worker is touched.
            if self.roll_waits_for_template() {
                return;
            }
            return self.continue_roll(now);
        }
        if self.waits_for_template() {
            return;
        }
        let due = self.slots.iter().enumerate().filter_map(|(index, slot)| match slot.succession() {
            Succession::Wanted { why, not_before } if slot.is_serving() && not_before <= now => {
                Some((index, why, not_before))
            }
            _ => None,
        });
        // Who has waited longest: else the last slot would wait for all others, again and again.
        if let Some((index, why, _)) = due.min_by_key(|(_, _, not_before)| *not_before) {
            self.replacing = Some(index);
            self.start_successor(index, why, Release::Good, now);
        }
    }

    pub(super) fn start_successor(
        &mut self,
        index: usize,
        why: RetireReason,
        release: Release,
        now: Instant,
    ) {
        self.slots[index].succeed(Succession::Spawning { why });
        self.spawn(index, Some(why), release, now);
    }

    pub(super) fn spawn(&mut self, index: usize, why: Option<RetireReason>, release: Release, now: Instant) {
        self.last_start = Some(now);
        let slot = &mut self.slots[index];
        slot.version += 1;
        slot.started = Some(now);
        let version = slot.version;
        let template = self.fork_from(index, release, now);
        self.slots[index].from = template;
        self.actions.push_back(Action::Spawn { slot: index, version, why, release, template });
        if release == Release::Good {
            self.roll_missed(index);
        }
    }

    /// It gets no more requests: who drains on SIGTERM gets it at once, or when its streams are to be told; others when
    /// they are idle.
    pub(super) fn leave(&mut self, index: usize, mut member: Member, until: Instant) {
        let worker = member.worker;
        member.enter(Phase::Leaving { until });
        self.slots[index].leaving.push(member);
        self.actions.push_back(Action::Withdraw { worker });
        if member.drains && member.notice == Notice::AtOnce {
            self.terminate(index, worker, until);
        }
    }

    /// The successor serves: the old worker leaves; a stuck one has had its time, but for what else it has at work.
    pub(super) fn dismiss(&mut self, index: usize, mut old: Member, why: RetireReason, now: Instant) {
        if why == RetireReason::Reload && self.plan.roll == RollMode::Side && old.drains && old.has_streams {
            old.notice = Notice::AfterRoll;
        }
        self.actions.push_back(Action::Replaced { why });
        self.leave(index, old, now + self.plan.drain_timeout);
        if why == RetireReason::Stuck && old.is_stuck_alone {
            self.terminate(index, old.worker, now + KILL_AFTER);
        }
    }

    /// SIGTERM, or an earlier end for whoever has had it.
    pub(super) fn terminate(&mut self, index: usize, worker: WorkerKey, kill_at: Instant) {
        let Some(member) = self.slots[index].leaving.iter_mut().find(|member| member.worker == worker) else {
            return;
        };
        match member.phase() {
            Phase::Terminating { kill_at: earlier } => {
                member.enter(Phase::Terminating { kill_at: kill_at.min(earlier) });
            }
            Phase::Killed => {}
            Phase::Booting { .. } | Phase::Serving { .. } | Phase::Reserve { .. } | Phase::Leaving { .. } => {
                member.enter(Phase::Terminating { kill_at });
                self.actions.push_back(Action::Terminate { worker });
            }
        }
    }

    /// The drain's end of one that had no SIGTERM: it gets a moment to end by itself.
    pub(super) fn end_drain(&mut self, index: usize, worker: WorkerKey, now: Instant) {
        self.actions.push_back(Action::Cut { worker });
        self.terminate(index, worker, now + KILL_AFTER);
    }

    pub(super) fn kill(&mut self, index: usize, worker: WorkerKey) {
        if let Some(member) = self.slots[index].member_mut(worker) {
            member.enter(Phase::Killed);
            self.actions.push_back(Action::Cut { worker });
            self.actions.push_back(Action::Kill { worker });
        }
    }

    /// The worker at the front of a slot is gone, or goes by itself. Its successor takes the place, if one is on
    /// its way; else the slot is started again, as its ending deserves.
    pub(super) fn vacate(&mut self, index: usize, member: Member, ending: Ending, now: Instant) {
        let ending = match member.phase() {
            Phase::Serving { since, .. } if now.saturating_duration_since(since) >= STABLE_AFTER => {
                Ending::Served
            }
            _ => ending,
        };
        let slot = &mut self.slots[index];
        let succession = slot.succession();
        slot.succeed(Succession::None);
        match succession {
            Succession::Booting { successor, .. } => slot.enter(Front::Held(successor)),
            Succession::Spawning { .. } => slot.enter(Front::Spawning),
            Succession::None | Succession::Wanted { .. } => {
                self.front_ended(index, Some(member), ending, now);
            }
        }
    }

    /// Nobody is at the front of the slot, and nobody on the way there.
    pub(super) fn front_ended(&mut self, index: usize, who: Option<Member>, ending: Ending, now: Instant) {
        let had_joined = who.is_some_and(|member| matches!(member.phase(), Phase::Serving { .. }));
        let slot = &mut self.slots[index];
        let retry_at = match ending {
            Ending::Served => {
                slot.backoff.reset();
                now
            }
            Ending::Quit => slot.started.map_or(now, |started| now.max(started + FIRST_WAIT)),
            Ending::Failed => now + slot.backoff.fail(),
        };
        slot.enter(Front::Empty { retry_at });
        if ending == Ending::Failed {
            self.tell_wait(index, retry_at, now);
        }
        if self.replacing == Some(index) && !had_joined {
            self.replacing = None;
            // A roll may have begun since, whose turn has not come.
            if self.roll.as_ref().is_some_and(|roll| roll.is_at(index)) {
                self.end_roll(RollEnd::Failed { slot: index, worker: who.map(|member| member.worker) });
            }
        }
        let is_hopeless = |slot: &Slot| slot.backoff.failures() >= HOPELESS_FAILURES;
        let has_newer_code = self.roll.as_ref().is_some_and(|roll| roll.starts_over);
        let has_hope = self.ever_joined
            || self.plan.keep_trying
            || has_newer_code
            || !self.slots.iter().all(is_hopeless);
        if !has_hope && self.stage == Stage::Running {
            self.stage = Stage::GivenUp;
            self.actions.push_back(Action::GiveUp);
        }
    }

    fn tell_wait(&mut self, index: usize, retry_at: Instant, now: Instant) {
        let next = self.next_start(index).unwrap_or(retry_at);
        let wait = next.saturating_duration_since(now);
        let backoff = &mut self.slots[index].backoff;
        if backoff.is_news(retry_at - now) {
            let failures = backoff.failures();
            self.actions.push_back(Action::Wait { slot: index, failures, wait });
        }
    }

    /// A successor did not make it: the old worker goes on, unless it is stuck.
    pub(super) fn successor_failed(
        &mut self,
        index: usize,
        why: RetireReason,
        who: Option<Member>,
        now: Instant,
    ) {
        let slot = &mut self.slots[index];
        let retry_at = now + slot.backoff.fail();
        slot.succeed(match why {
            RetireReason::Reload | RetireReason::Stuck => Succession::None,
            RetireReason::Requests
            | RetireReason::Age
            | RetireReason::Memory
            | RetireReason::Requested
            | RetireReason::Unresponsive => Succession::Wanted { why, not_before: retry_at },
        });
        if self.replacing == Some(index) {
            self.replacing = None;
        }
        if self.roll.as_ref().is_some_and(|roll| roll.is_at(index)) {
            self.end_roll(RollEnd::Failed { slot: index, worker: who.map(|member| member.worker) });
        }
        if why == RetireReason::Stuck
            && let Front::Held(stuck) = self.slots[index].front()
        {
            self.slots[index].enter(Front::Empty { retry_at });
            self.dismiss(index, stuck, why, now);
        }
        if why != RetireReason::Reload {
            self.tell_wait(index, retry_at, now);
        }
    }

    /// A replacement is done when the new worker serves.
    fn close_replacement(&mut self) {
        let Some(index) = self.replacing else { return };
        let slot = &self.slots[index];
        let is_settled = matches!(slot.succession(), Succession::None | Succession::Wanted { .. });
        if is_settled && (slot.is_serving() || slot.front() == Front::Closed) {
            self.replacing = None;
            self.roll_replaced(index);
        }
    }

    fn check(&self) {
        for slot in &self.slots {
            debug_assert!(
                slot.leaving
                    .iter()
                    .all(|member| !matches!(member.phase(), Phase::Booting { .. } | Phase::Serving { .. })),
                "a leaving worker neither boots nor serves"
            );
            let is_coming =
                matches!(slot.succession(), Succession::Spawning { .. } | Succession::Booting { .. });
            debug_assert!(
                !is_coming || slot.is_serving() || slot.front() == Front::Closed,
                "a successor to nobody"
            );
        }
    }
}
