//! Trials of a reload's first worker in the fleet's histories.

use super::*;

impl World {
    /// What a roll has brought is another one's affair no more.
    pub(super) fn forget_new(&mut self) {
        self.alive.values_mut().for_each(|process| process.is_new = false);
    }

    pub(super) fn is_reserve(&self, worker: WorkerKey) -> bool {
        let of_worker = |(_, member): &(usize, &Member)| member.worker == worker;
        self.fleet.members().find(of_worker).is_some_and(|(slot, member)| match member.phase() {
            Phase::Reserve { .. } => true,
            // It was, and is back already.
            Phase::Serving { .. } => !self.fleet.slots[slot].is_stuck(),
            Phase::Booting { .. } | Phase::Leaving { .. } | Phase::Terminating { .. } | Phase::Killed => {
                false
            }
        })
    }

    /// Requests are answered while somebody is on trial; the new release may be worse.
    pub(super) fn answer_some(&mut self) {
        tell!(self, "answers");
        let is_worse = !self.is_kind && self.chance(2);
        for target in 0..120 {
            // What follows from a verdict is to be done first.
            if !self.fleet.is_judging() {
                return;
            }
            let Some(key) = self.pick(|life| life == Life::Admitted) else { return };
            let fails = is_worse && self.on_trial == Some(key) && self.chance(3);
            let outcome = if fails { TrialOutcome::Failed } else { TrialOutcome::Fine };
            self.fleet.note_outcome(WorkerKey(key), target, outcome, self.now);
        }
    }
}
