//! The supervisor alone, over the simulator's processes: workers start, join, serve and end as each test says.

mod ending;
mod groups;
mod knowing;
mod launching;
mod output;
mod renewal;
mod telling;
mod templates;

use super::*;
use crate::control::Abilities;
use crate::fleet::{Action, RollEnd, TrialFailure};
use crate::reactor::io::Io;
use crate::reactor::observer::Logs;
use crate::reactor::simulation::rooms::{config, io, keep_log, logged, ms, pass};
use crate::reactor::source::Source;
use crate::runtime::Harnesses;
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// A supervisor of a Python app in a folder of its own.
struct Room {
    supervisor: Supervisor,
    io: Io,
    observer: Observer,
    dir: TempDir,
    /// How rolls have ended.
    rolls: Vec<Result<usize, String>>,
}

impl Room {
    fn new(words: &str) -> Self {
        let mode = if words.contains("--hot-reload") { "" } else { "--hot-reload=none" };
        process::table(|table| *table = process::Table::default());
        keep_log();
        let dir = tempfile::tempdir().expect("a folder");
        let app = dir.path().join("app");
        let interpreter = app.join(".venv/bin/python3");
        std::fs::create_dir_all(app.join(".venv/bin")).expect("folders");
        std::fs::write(app.join("app.py"), "app = None\n").expect("an app");
        std::fs::write(&interpreter, "").expect("an interpreter");
        let may_run = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&interpreter, may_run).expect("it may be run");
        let config = config(&format!("--socket-dir={} {mode} {words}", dir.path().display()));
        let wanted =
            if config.command.is_some() { crate::app::Wanted::Command } else { crate::app::Wanted::Entry };
        let source = Source::Path { path: app, wanted };
        let names = crate::names::Names::new(&config.place, "app");
        let harnesses = Harnesses::at(dir.path().join("harness"), &[]);
        let limit = DescriptorLimit { soft: 1024, hard: 4096 };
        let launcher = Launcher::new(source, None, names, harnesses, "here".into(), limit, None);
        let io = io();
        let supervisor = Supervisor::new(launcher, config, 1, Beginning::default(), io.now());
        let observer = Observer::new(Logs::kept(), false, io.now());
        let mut room = Room { supervisor, io, observer, dir, rolls: Vec::new() };
        room.perform();
        room
    }

    /// Two workers that have joined.
    fn serving(words: &str) -> (Self, WorkerKey, WorkerKey) {
        let mut room = Room::new(&format!("w:2 --fork=never {words}"));
        let workers = room.started();
        for worker in &workers {
            room.join(*worker);
        }
        assert_eq!(workers.len(), 2);
        (room, workers[0], workers[1])
    }

    /// Does what the fleet wants; what is none of the supervisor's business is given back.
    fn perform(&mut self) -> Vec<Action> {
        let mut others = Vec::new();
        while let Some(action) = self.supervisor.fleet_mut().next_action() {
            let (io, observer) = (&self.io, &mut self.observer);
            match action {
                Action::Spawn { slot, version, why, release, template } => {
                    self.supervisor.spawn(slot, version, why, (release, template), io, observer);
                }
                Action::StartTemplate { template, release } => {
                    self.supervisor.start_template(template, release, io, observer);
                }
                Action::EndTemplate { template, why } => {
                    self.supervisor.end_template(template, why, io, observer);
                }
                Action::Admit { worker, .. } => {
                    self.supervisor.admit(worker, observer, io.now());
                }
                Action::Terminate { worker } => self.supervisor.terminate(worker),
                Action::Kill { worker } => self.supervisor.kill(worker, false),
                Action::RollBegins => self.supervisor.begin_roll(),
                Action::Adopt => self.supervisor.adopt(io),
                Action::RollEnded(end) => self.rolls.push(self.supervisor.end_roll(end)),
                other => others.push(other),
            }
        }
        others
    }

    /// Takes in what became of starts; the workers that are there.
    fn started(&mut self) -> Vec<WorkerKey> {
        let mut workers = Vec::new();
        while let Some(worker) = self.supervisor.next_started(&self.io, &mut self.observer) {
            workers.push(worker);
        }
        self.perform();
        workers
    }

    fn entry(&self, worker: WorkerKey) -> &Worker {
        self.supervisor.get(worker).expect("it is there")
    }

    fn pid(&self, worker: WorkerKey) -> i32 {
        self.supervisor.pid(worker).expect("it is there")
    }

    /// What a worker would say to join.
    fn join_of(&self, worker: WorkerKey) -> Join {
        let entry = self.entry(worker);
        let Origin::Slot { slot, version } = entry.origin else { panic!("not of the fleet's") };
        Join {
            sender: Sender { instance: Some("here".into()), worker_id: slot as u64 },
            pid: self.pid(worker),
            socket: entry.endpoint.path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            version,
            abilities: Abilities { drains: false, streams: true, concurrency: 3 },
        }
    }

    fn join(&mut self, worker: WorkerKey) -> Vec<Action> {
        let join = self.join_of(worker);
        let (id, now) = (join.sender.worker_id as usize, self.io.now());
        self.supervisor.join(id, &join, now).expect("it may join");
        self.perform()
    }

    /// A worker from outside, whose process is known or not.
    fn come(&mut self, worker_id: usize, socket: &str, is_known: bool) -> WorkerKey {
        let join = Join {
            sender: Sender { instance: None, worker_id: worker_id as u64 },
            pid: 77,
            socket: socket.into(),
            version: 0,
            abilities: Abilities::default(),
        };
        let now = self.io.now();
        let worker = self.supervisor.add_external(worker_id, &join, if is_known { 77 } else { 5 }, now);
        self.supervisor.admit(worker, &mut self.observer, now);
        worker
    }

    /// Its process ends, and the server hears of it.
    fn end(&mut self, worker: WorkerKey, exit: Exit) {
        let pid = self.pid(worker);
        process::table(|table| table.end(pid, exit));
        self.supervisor.note_ended_children();
        self.reap();
    }

    fn reap(&mut self) {
        let now = self.io.now();
        for (worker, exit) in self.supervisor.ended_workers() {
            self.supervisor.note_exit(worker, exit);
            self.supervisor.finish_output(worker, &mut self.io, &mut self.observer);
            self.supervisor.worker_is_gone(worker, exit, &self.io, &mut self.observer);
            self.supervisor.end_group(worker, now);
        }
        self.reap_others();
        self.perform();
    }

    fn reap_others(&mut self) {
        self.supervisor.reap_others(&mut self.io, &mut self.observer);
    }

    fn remove_closed(&mut self) -> Vec<WorkerKey> {
        self.supervisor.remove_closed().collect()
    }

    /// Time passes for the fleet as well.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let now = pass(&mut self.io, time);
        self.supervisor.fleet_mut().tick(now);
        self.perform()
    }

    fn reload(&mut self) {
        self.supervisor.fleet_mut().reload(None, self.io.now());
        self.perform();
    }

    /// SIGTERM and (`true`) SIGKILL since this was asked last.
    fn signals(&self) -> Vec<(i32, bool)> {
        process::table(|table| std::mem::take(&mut table.signals))
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> u64 {
        let metrics = self.observer.metrics();
        match name {
            "starts" => metrics.worker_starts,
            "start failures" => metrics.worker_start_failures,
            "crashes" => metrics.worker_crashes,
            "boot failures" => metrics.worker_boot_failures,
            other => panic!("{other}"),
        }
    }
}
