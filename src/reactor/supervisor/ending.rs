//! Processes that end: signals for them, and what becomes of them.

use super::worker::{Origin, Presence, Worker};
use super::{Supervisor, process};
use crate::fleet::Phase;
use crate::keys::WorkerKey;
use crate::observe::failures::Cause;
use crate::process::Exit;
use crate::reactor::endpoint::Endpoint;
use crate::reactor::io::Io;
use crate::reactor::observer::Observer;
use nix::sys::signal::Signal;
use std::time::Instant;

/// Signals.
impl Supervisor {
    pub(crate) fn terminate(&self, worker: WorkerKey) {
        if let Some(entry) = self.get(worker) {
            process::terminate(entry.process.pid);
        }
    }

    /// SIGKILL, with its process group.
    pub(crate) fn kill(&self, worker: WorkerKey, is_stopping: bool) {
        let Some(entry) = self.get(worker) else { return };
        log::warn!("{}: SIGKILL: {}", entry.label(), self.reason_to_kill(entry, is_stopping));
        process::kill_group(entry.process.pid);
    }

    /// It has had a SIGTERM or SIGKILL of the server's.
    pub(crate) fn was_told_to_end(&self, worker: WorkerKey) -> bool {
        matches!(self.phase_of(worker), Some(Phase::Terminating { .. } | Phase::Killed) | None)
    }

    /// In words for the log.
    fn reason_to_kill(&self, entry: &Worker, is_stopping: bool) -> String {
        if entry.has_joined() || is_stopping {
            return "SIGTERM has not ended it in time".to_owned();
        }
        let what = match entry.endpoint {
            Endpoint::Unix(_) if entry.is_command => "answer on {socket}".to_owned(),
            Endpoint::Unix(_) => "join".to_owned(),
            Endpoint::Loopback { port, .. } => format!("answer on {{port}} ({port})"),
        };
        format!("it did not {what} within --boot-timeout-ms={}", self.config.boot_timeout.as_millis())
    }

    /// No worker outlives the server.
    pub(crate) fn kill_all(&mut self) {
        for (_, entry) in &self.workers {
            if entry.is_own_child() {
                process::kill_group(entry.process.pid);
                if !entry.origin.is_template() {
                    entry.endpoint.remove_file();
                }
            }
        }
        self.groups.kill_all();
    }

    /// SIGKILL for what workers have left, and whose time is up.
    pub(crate) fn expire_groups(&mut self, now: Instant) {
        self.groups.expire(now);
        // The outputs of those that were given up are closed with the next look at the children.
        self.has_ended_children |= self.groups.has_let_go();
    }

    /// Nobody is left, and nobody will come.
    pub(crate) fn is_gone(&self) -> bool {
        let lives = |entry: &Worker| entry.origin.is_template() && entry.exit().is_none();
        let has_template =
            self.launcher.templates() > 0 || self.workers.iter().any(|(_, entry)| lives(entry));
        self.fleet.is_gone() && self.launcher.starts() == 0 && self.groups.is_empty() && !has_template
    }
}

/// Reaping.
impl Supervisor {
    pub(crate) fn note_ended_children(&mut self) {
        self.has_ended_children = true;
    }

    pub(crate) fn has_ended_children(&self) -> bool {
        self.has_ended_children
    }

    /// All workers that have ended. Each is asked for by itself, since one that is not reaped would stand before all
    /// others.
    pub(crate) fn ended_workers(&mut self) -> Vec<(WorkerKey, Exit)> {
        self.has_ended_children = false;
        let ended = self.workers.iter().filter(|(_, entry)| entry.is_own_child());
        let exit_of = |entry: &Worker| process::exit_of(entry.process.pid);
        ended.filter_map(|(key, entry)| exit_of(entry).map(|exit| (WorkerKey(key), exit))).collect()
    }

    /// A worker's process has ended; what it has written before is still to be read.
    pub(crate) fn note_exit(&mut self, worker: WorkerKey, exit: Exit) {
        if let Some(entry) = self.get_mut(worker) {
            entry.presence = Presence::Exited(exit);
        }
    }

    /// What a worker has left of its process group ends with it.
    pub(crate) fn end_group(&mut self, worker: WorkerKey, now: Instant) {
        let Some(entry) = self.workers.get(worker.0) else { return };
        if self.groups.end(entry.process.pid, now) {
            log::info!("{}: processes that it has started still run, and get SIGTERM", entry.label());
        }
    }

    /// Takes in everybody else who has ended.
    pub(crate) fn reap_others(&mut self, io: &mut Io, observer: &mut Observer) {
        self.groups.look();
        for leader in self.groups.take_let_go() {
            self.finish_group_output(leader, io, observer);
        }
        // One that nobody knows may be a worker whose start has not been told.
        while let Some((pid, exit)) = process::any_exit().filter(|_| self.launcher.starts() == 0) {
            let is_worker = |(_, entry): (usize, &Worker)| entry.process.pid == pid && entry.is_own_child();
            if self.workers.iter().any(is_worker) {
                // It has ended a moment ago.
                self.has_ended_children = true;
                return;
            }
            if self.groups.holds(pid) {
                // It stands before the others for a second at most.
                return;
            }
            // Adopted, or a child of PID 1.
            log::debug!("reaped the orphan {pid}: {exit}");
            process::release(pid);
        }
    }

    /// Everything that a worker has said before its end is read: its end is told, and the fleet hears of it.
    pub(crate) fn worker_is_gone(&mut self, worker: WorkerKey, exit: Exit, io: &Io, observer: &mut Observer) {
        let now = io.now();
        let Some(entry) = self.workers.get(worker.0) else { return };
        if let Origin::Template { id } = entry.origin {
            return self.template_is_gone(id, worker, exit, io, observer);
        }
        entry.endpoint.remove_file();
        let lived_ms = now.duration_since(entry.process.started).as_millis();
        let (label, has_joined) = (entry.label(), entry.has_joined());
        let phase = self.phase_of(worker);
        let was_told_to = matches!(phase, Some(Phase::Terminating { .. }));
        let after = match has_joined {
            true => match entry.counts.requests {
                1 => format!("after 1 request and {lived_ms} ms"),
                requests => format!("after {requests} requests and {lived_ms} ms"),
            },
            false => format!("after {lived_ms} ms, before it had joined"),
        };
        match exit {
            Exit::Code(0) if has_joined || was_told_to => log::info!("{label}: ended {after}"),
            // Who has no handler for it ends by the signal itself.
            Exit::Signal(Signal::SIGTERM) if was_told_to => {
                log::info!("{label}: ended by SIGTERM {after}");
            }
            _ => match &entry.process.exec_failure {
                Some(error) => {
                    let program = &entry.process.program;
                    log::error!("{label}: cannot be started: '{program}': {error}");
                    observer.start_failed();
                }
                None => {
                    let folded = match entry.said.boot_output.folded {
                        0 => String::new(),
                        1 => "; it said 1 line of an earlier failure again".to_owned(),
                        lines => format!("; it said {lines} lines of an earlier failure again"),
                    };
                    log::warn!("{label}: {exit} {after}{folded}");
                }
            },
        }
        if let Origin::Slot { slot, .. } = entry.origin {
            self.history.last_exits.insert(slot, exit);
        }
        let cause = match phase {
            Some(Phase::Serving { .. } | Phase::Reserve { .. }) => Some(Cause::Crash),
            Some(Phase::Booting { .. }) => Some(Cause::BootFailure),
            Some(Phase::Killed) if !has_joined => Some(Cause::BootFailure),
            Some(Phase::Leaving { .. } | Phase::Terminating { .. } | Phase::Killed) | None => None,
        };
        // Who leaves by itself, and in order, is no failure.
        let cause = cause.filter(|_| exit != Exit::Code(0) || !has_joined);
        match cause {
            Some(Cause::Crash) => observer.worker_crashed(),
            Some(Cause::BootFailure) => observer.boot_failed(),
            Some(Cause::Stuck) | None => {}
        }
        let how = match &entry.process.exec_failure {
            Some(error) => format!("cannot be started: {error}"),
            None => exit.to_string(),
        };
        let identity = (entry.origin.worker_id(), entry.process.pid.as_raw());
        observer.failures_mut().ended(identity, cause, how, io.unix());
        if !has_joined && !was_told_to {
            self.note_failed_start(worker, format!("{label}: {exit} {after}"));
        }
        let has_served = self.has_served(worker);
        if !has_served && let Some(entry) = self.workers.get_mut(worker.0) {
            self.outputs.folds.failed(&mut entry.said.boot_output, now);
        }
        self.fleet.exited(worker, has_served, now);
        self.closed.push(worker);
    }

    /// Closed workers leave the slab only now, so that no key is used again inside one batch of events.
    pub(crate) fn remove_closed(&mut self) -> impl Iterator<Item = WorkerKey> {
        let workers = &mut self.workers;
        self.closed.drain(..).inspect(|worker| {
            workers.try_remove(worker.0);
        })
    }

    /// Where the fleet has it.
    pub(super) fn phase_of(&self, worker: WorkerKey) -> Option<Phase> {
        self.fleet.members().find(|(_, member)| member.worker == worker).map(|(_, member)| member.phase())
    }
}
