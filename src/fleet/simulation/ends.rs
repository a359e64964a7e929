//! How each history ends: everything works from some moment on, and the fleet comes to rest; then it is stopped.

use super::*;

impl World {
    /// From here on everything works: the fleet must come to rest, whole.
    pub(super) fn settle(&mut self) {
        self.is_kind = true;
        for _ in 0..3000 {
            let leaving: Vec<usize> = self
                .alive
                .iter()
                .filter(|(_, process)| process.life == Life::Withdrawn)
                .map(|(&key, _)| key)
                .collect();
            for key in leaving {
                self.exit(key);
                self.obey();
            }
            while let Some(key) = self.pick(|life| life == Life::Booting) {
                let before = self.alive.len();
                self.join(key);
                self.obey();
                if self.alive.get(&key).is_some_and(|process| process.life == Life::Booting) {
                    // Already on its way out.
                    self.exit(key);
                    self.obey();
                }
                assert!(self.alive.len() <= before + self.plan.max_workers);
            }
            if self.has_given_up {
                return;
            }
            if self.fleet.is_judging() {
                self.answer_some();
                self.obey();
            }
            self.templates_are_kind();
            self.fleet.trim(None, self.now);
            self.obey();
            let has_size = self.fleet.size() <= self.plan.max_workers;
            let is_whole = has_size
                && self.fleet.serving() == self.fleet.size()
                && self.alive.len() == self.fleet.size();
            let retires = self.fleet.slots.iter().filter_map(Slot::retire_deadline);
            let next_retire = retires.map(|(at, _)| at).min();
            if is_whole && !self.fleet.is_rolling() && self.fleet.next_deadline() == next_retire {
                return;
            }
            if let Some(deadline) = self.fleet.next_deadline() {
                self.now = deadline;
                self.fleet.tick(self.now);
            }
            self.obey();
            // Terminated and killed processes end.
            let doomed: Vec<usize> = self
                .fleet
                .members()
                .filter(|(_, member)| matches!(member.phase(), Phase::Terminating { .. } | Phase::Killed))
                .map(|(_, member)| member.worker.0)
                .collect();
            for key in doomed {
                self.exit(key);
                self.obey();
            }
        }
        panic!("does not come to rest: {:?}", self.fleet);
    }

    pub(super) fn stop(&mut self) {
        self.obey();
        self.is_stopping = true;
        self.fleet.stop(self.now + Duration::from_millis(100), self.now);
        self.obey();
        for key in self.alive.keys().copied().collect::<Vec<_>>() {
            self.exit(key);
            self.obey();
        }
        assert!(self.fleet.is_gone(), "nobody is left after a stop");
        assert!(self.templates.is_empty() && self.asked.is_empty(), "no template is left after a stop");
        assert!(!self.rolls_asked, "whoever waited for a roll has heard of its end");
    }
}
