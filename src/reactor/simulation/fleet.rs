//! What the server makes of its workers: who is started when, who is asked, and what is told of them.

use super::peers::Life;
use super::process;
use super::world::World;

impl World {
    /// Who has served is followed at once, a command that is not there is asked again, and nobody is stuck in a question.
    pub(super) fn check_starts(&self) {
        let supervisor = &self.reactor.supervisor;
        if self.reactor.exit.is_some() {
            return;
        }
        for (slot, _, at) in supervisor.fleet().empty_slots() {
            let last = self.workers.iter().rev().find(|worker| worker.slot == slot);
            let has_served = last.is_some_and(|worker| worker.has_served);
            let is_unclear = self.has_failing_spawns || supervisor.launcher().templates() > 0;
            assert!(
                !has_served || is_unclear || at <= self.now,
                "slot {slot}: it had served, and waits for a start"
            );
        }
        for (key, entry) in supervisor.workers() {
            assert!(!entry.is_stuck() || entry.joins(), "worker {key}: stuck, and it has not joined");
        }
    }

    /// What status tells is what is there.
    pub(super) fn check_status(&self) {
        if self.reactor.exit.is_some() {
            return;
        }
        let status = self.reactor.status_details();
        let number = |value: &serde_json::Value| value.as_u64().expect("a number") as usize;
        let (needed, of) = (number(&status["needed"]["workers"]), number(&status["needed"]["of"]));
        // Workers that take different numbers at once have no common measure.
        let is_even = self.reactor.config.concurrency == 1;
        assert!(!is_even || needed <= of, "status: needed {needed} of {of}");
        let serving = number(&status["workers"]);
        let may_serve = self.workers.iter().filter(|worker| worker.life == Life::Joined).count();
        let knows_all = self.reaps_in == 0;
        assert!(!knows_all || serving <= may_serve, "status: {serving} workers, and {may_serve} are there");
        let listed = status["workerList"].as_array().expect("a list");
        let alive = process::table(|table| table.alive.len() - table.templates.len());
        assert!(!knows_all || listed.len() <= alive, "status: a list of {}, and {alive} live", listed.len());
        let waiting = number(&status["queue"]["now"]);
        assert!(waiting <= self.clients.len(), "status: {waiting} wait");
    }
}
