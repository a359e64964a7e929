//! What the fleet tells of itself, compared with the record beside it.

use super::*;
use crate::fleet::slot::Succession;

impl World {
    pub(super) fn check_getters(&self) {
        let (fleet, plan) = (&self.fleet, &self.plan);
        assert_eq!((fleet.min_workers(), fleet.max_workers()), (plan.min_workers, plan.max_workers));
        assert_eq!(fleet.is_fixed(), plan.min_workers == plan.max_workers, "load changes nothing");
        assert_eq!(fleet.is_rolling(), self.rolls_asked, "a roll goes on until its end is told");
        assert!(
            !fleet.is_gone() || self.alive.is_empty() && fleet.size() == 0,
            "gone, and somebody is there"
        );
        if !self.is_stopping {
            assert_eq!(fleet.generation(), self.newest_version, "the newest worker's");
        }
        for (slot, member) in fleet.members() {
            let Process { slot: started_in, life, .. } = self.alive[&member.worker.0];
            assert_eq!(slot, started_in, "{:?} is where it was started", member.worker);
            let is_booting = matches!(member.phase(), Phase::Booting { .. });
            let may_join = is_booting.then_some(member.worker);
            assert_eq!(fleet.booting(slot, member.version), may_join, "only who boots may join");
            assert_eq!(fleet.booting(slot, self.newest_version + 1), None, "nobody is of that generation");
            let is_stuck = life == Life::Withdrawn && matches!(member.phase(), Phase::Serving { .. });
            assert_eq!(fleet.is_stuck(member.worker), is_stuck, "{:?}", member.worker);
        }
    }

    /// Load has not needed a worker for long: it leaves for good where nothing speaks against it.
    pub(super) fn shrink(&mut self, key: usize) {
        // What ended or joined before was told before, and may have ended that one.
        self.obey();
        tell!(self, "shrink {key}");
        let (worker, before) = (WorkerKey(key), self.fleet.size());
        let is_free = |slot: &Slot| {
            matches!(slot.front(), Front::Held(member) if member.worker == worker)
                && matches!(slot.succession(), Succession::None | Succession::Wanted { .. })
        };
        let is_quiet = self.fleet.stage == Stage::Running && self.fleet.roll.is_none();
        let gets_requests = |(key, process): &(&usize, &Process)| {
            process.life == Life::Admitted
                && self
                    .fleet
                    .find(WorkerKey(**key))
                    .is_some_and(|(slot, member)| self.fleet.slots[slot].front() == Front::Held(member))
        };
        let others = self.alive.iter().filter(gets_requests).filter(|(other, _)| **other != key).count();
        let may_leave = is_quiet && others >= self.plan.min_workers && self.fleet.slots.iter().any(is_free);
        assert_eq!(self.fleet.may_shrink(worker), may_leave, "worker {key}");
        assert_eq!(self.fleet.shrink(worker, self.now), may_leave, "worker {key}");
        assert_eq!(self.fleet.size(), before - usize::from(may_leave), "worker {key}");
    }

    /// Load has not needed all slots for long: one that nobody is in is given up, and no worker leaves.
    pub(super) fn give_up_spare_slot(&mut self) {
        tell!(self, "give up a spare slot");
        let (size, serving) = (self.fleet.size(), self.fleet.serving());
        let is_given_up = self.fleet.give_up_spare_slot(self.now).is_some();
        assert!(!is_given_up || size > self.plan.min_workers, "the fewest stay");
        assert_eq!((self.fleet.size(), self.fleet.serving()), (size - usize::from(is_given_up), serving));
    }
}
