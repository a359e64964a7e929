//! Edits of the app: whoever asks behind one gets the new code, and the newest code is what serves in the end.

use super::peers::Life;
use super::process;
use super::world::World;
use crate::reactor::source::Source;
use crate::reactor::stage::Stage;
use std::time::{Duration, Instant};

/// A source of the app has changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edit {
    at: Instant,
    /// The last process that was there: it has the old code, and so have all before it.
    last_pid: i32,
    /// The roll that it began has ended.
    is_over: bool,
}

impl World {
    pub(crate) fn edit(&mut self) {
        // Nothing else happens in the same moment.
        self.now += Duration::from_micros(1);
        self.reactor.io.move_clock_to(self.now);
        let last_pid = process::table(|table| table.last_pid());
        self.edit = Some(Edit { at: self.now, last_pid, is_over: false });
        self.reactor.renew(false);
        self.tick(0);
    }

    /// At the end of a tick.
    pub(super) fn note_rolls(&mut self) {
        let is_rolling = self.reactor.supervisor.fleet().is_rolling();
        if let Some(edit) = &mut self.edit {
            edit.is_over |= !is_rolling;
        }
    }

    /// A request that was sent behind an edit goes to nobody who was there before, until the new code has come or has
    /// failed.
    pub(super) fn check_code(&self, tag: usize, pid: i32) {
        let Some(edit) = self.edit else { return };
        let is_late = self.now >= edit.at + self.reactor.config.boot_timeout;
        let is_running = self.reactor.stage == Stage::Running;
        let holds = !edit.is_over && !is_late && is_running && self.reactor.supervisor.fleet().is_rolling();
        let is_behind = self.oracle.tags[tag].first_sent.is_some_and(|first_sent| first_sent >= edit.at);
        assert!(
            !holds || !is_behind || pid > edit.last_pid,
            "request {tag}: sent behind an edit, and worker {pid} has the code from before"
        );
    }

    /// At rest: who serves has the newest code, unless that does not start.
    pub(super) fn check_newest_code(&self) {
        let Some(edit) = self.edit.filter(|_| !self.is_stop_told && self.reactor.exit.is_none()) else {
            return;
        };
        // What a template has loaded is nothing that a process tells.
        let is_forked = matches!(self.reactor.supervisor.launcher().source(), Source::Path { .. })
            && self.reactor.config.command.is_none();
        let has_failed =
            self.workers.iter().any(|worker| worker.life == Life::Ended && worker.pid > edit.last_pid);
        if is_forked || has_failed || self.has_failing_spawns {
            return;
        }
        let old =
            self.workers.iter().find(|worker| worker.life == Life::Joined && worker.pid <= edit.last_pid);
        let rolls = &self.reactor.status_details()["rolls"];
        assert!(
            old.is_none(),
            "worker {:?} serves the code from before the last edit: {rolls}",
            old.map(|old| old.pid)
        );
    }
}
