//! What holds at each moment of a fleet's history.

use super::*;
use crate::fleet::slot::{Notice, Succession};

impl World {
    pub(super) fn check(&self) {
        self.check_templates();
        self.check_getters();
        let mut known: Vec<usize> = self.fleet.members().map(|(_, member)| member.worker.0).collect();
        known.sort_unstable();
        assert_eq!(
            known,
            self.alive.keys().copied().collect::<Vec<_>>(),
            "everybody alive is a member, and once"
        );
        for (slot, member) in self.fleet.members() {
            let Process { life, drains, .. } = self.alive[&member.worker.0];
            let is_stuck = self.fleet.slots[slot].is_stuck();
            self.check_notice(member);
            let is_told = !matches!(member.phase(), Phase::Leaving { .. }) || member.notice != Notice::AtOnce;
            assert!(!drains || is_told || self.has_quit.contains(&member.worker.0), "told when withdrawn");
            match member.phase() {
                Phase::Booting { .. } => assert_eq!(life, Life::Booting),
                Phase::Serving { .. } if is_stuck => {
                    assert_eq!(life, Life::Withdrawn, "who is stuck gets no more requests");
                }
                Phase::Serving { .. } => assert_eq!(life, Life::Admitted, "who serves is on the stack"),
                Phase::Reserve { is_serving, .. } => {
                    let expected = if is_serving { Life::Admitted } else { Life::Reserve };
                    assert_eq!(life, expected, "in reserve");
                    assert!(self.fleet.is_judging(), "in reserve for nothing");
                }
                Phase::Leaving { .. } | Phase::Terminating { .. } | Phase::Killed => {}
            }
        }
        let succeeding = self.fleet.slots.iter().filter(|slot| {
            matches!(slot.succession(),
                Succession::Spawning { why } | Succession::Booting { why, .. } if why != RetireReason::Stuck)
        });
        assert!(succeeding.count() <= 1, "one slot at a time");
        let is_loading = self.fleet.waits_for_template();
        let is_short = self.fleet.serving() == 0 && self.fleet.empty_slots().next().is_some() && !is_loading;
        if is_short && matches!(self.fleet.stage, Stage::Running | Stage::Draining) {
            let within = self.now + Duration::from_secs(1);
            let is_soon = self.fleet.next_deadline().is_some_and(|deadline| deadline <= within);
            assert!(is_soon, "nobody serves, and no slot is tried within a second");
        }
        if self.fleet.stage == Stage::Running {
            self.check_used_up();
            if self.plan.max_age.is_some() {
                self.check_ages();
            }
        }
        if let Some(deadline) = self.fleet.next_deadline() {
            let is_over = self.has_given_up;
            assert!(is_over || deadline > self.now, "overdue after a tick: {:?}", self.now - deadline);
        }
    }

    /// Streams of a worker that was replaced go on while its roll replaces others, and are told within a second behind it.
    fn check_notice(&self, member: &Member) {
        let Phase::Leaving { until } = member.phase() else { return };
        let left = until.saturating_duration_since(self.now);
        match member.notice {
            Notice::AtOnce => {}
            Notice::AfterRoll => {
                assert!(self.plan.roll == RollMode::Side, "waits for nothing");
                let roll = self.fleet.roll.as_ref();
                assert!(roll.is_some_and(Roll::is_under_way), "its roll has ended");
                assert!(left <= self.plan.drain_timeout, "a roll that lasts longer is waited for");
            }
            Notice::Scheduled => assert!(left <= Duration::from_secs(1), "told in {left:?}"),
        }
    }

    /// Who has served its number of requests is being replaced, but with streams an hour later.
    fn check_used_up(&self) {
        for slot in &self.fleet.slots {
            let Front::Held(member) = slot.front() else { continue };
            let (Phase::Serving { .. }, Some(since)) = (member.phase(), member.used_up) else { continue };
            let most = if member.has_streams { STREAMS_DELAY } else { Duration::ZERO };
            let is_replaced = slot.succession() != Succession::None;
            assert!(is_replaced || self.now < since + most, "used up for {:?}, and stays", self.now - since);
        }
    }

    /// Who has served for its time is being replaced, but with streams an hour later; and nobody for that reason before
    /// nine tenths of it.
    fn check_ages(&self) {
        for slot in &self.fleet.slots {
            let Front::Held(member) = slot.front() else { continue };
            let Phase::Serving { since, .. } = member.phase() else { continue };
            let age = self.now - since;
            let is_for_age = matches!(slot.succession(), Succession::Wanted { why, .. }
                | Succession::Spawning { why } | Succession::Booting { why, .. } if why == RetireReason::Age);
            let most = if member.has_streams { MAX_AGE + STREAMS_DELAY } else { MAX_AGE };
            assert!(age < most || slot.succession() != Succession::None, "{age:?} old, and stays");
            assert!(age >= MAX_AGE * 9 / 10 || !is_for_age, "replaced for its age of {age:?}");
        }
    }
}
