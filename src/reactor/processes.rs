//! Worker processes: what the fleet says is done here, and what became of it is told back.

use super::entry::{Endpoint, Exchange, Origin, WorkerDeadline, WorkerEntry};
use super::logs::Pipe;
use super::ports;
use super::token::Target;
use super::{Reactor, process};
use crate::app::Runtime;
use crate::balancer::NextStep;
use crate::conn::{self, Request};
use crate::control::{Abilities, Join};
use crate::fleet::{Action, Ending, Phase, Release, RetireReason, RollEnd};
use crate::keys::WorkerKey;
use crate::observe::folds::BootOutput;
use crate::paths::shown;
use crate::process::{Answer, Begun, Exit};
use crate::runtime::{self, Identity};
use mio::Interest;
use mio::unix::SourceFd;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::path::PathBuf;

/// A process that was asked for.
#[derive(Debug)]
pub(super) struct Start {
    slot: usize,
    version: u64,
    why: Option<RetireReason>,
    endpoint: Endpoint,
    is_command: bool,
    /// For complaints.
    program: String,
    begun: Begun,
}

impl Reactor {
    /// Does what the fleet wants, until it wants nothing more.
    pub(super) fn perform_fleet_actions(&mut self) {
        while let Some(action) = self.fleet.next_action() {
            match action {
                Action::Spawn { slot, version, why, release } => self.spawn(slot, version, why, release),
                Action::Admit { worker, predecessor } => self.admit_worker(worker, predecessor),
                Action::Withdraw { worker } => {
                    if self.balancer.withdraw(worker) {
                        self.fleet.idle(worker, self.clock.now);
                    }
                }
                Action::Terminate { worker } => self.terminate(worker),
                Action::Cut { worker } => self.cut_worker(worker),
                Action::Kill { worker } => {
                    log::warn!("{}: SIGKILL: {}", self.label(worker), self.reason_to_kill(worker));
                    if let Some(entry) = self.workers.get(worker.0) {
                        process::kill_group(entry.pid);
                    }
                }
                Action::Wait { slot, failures, wait } => {
                    let times = if failures == 1 { "once" } else { "again and again" };
                    log::warn!(
                        "worker {slot}: failed {times} before it had served ({failures} in a row); the next start is in {wait:?}"
                    );
                }
                Action::RollBegins => {
                    self.releases.begin(self.source.find());
                    self.folds.forget();
                }
                Action::Adopt => {
                    self.releases.adopt();
                    self.start_watch();
                    self.renewal_ended(true);
                }
                Action::RollProgress { replaced, of } => self.tell_roll_progress(replaced, of),
                Action::RollEnded(end) => self.tell_roll_end(end),
                Action::GiveUp if self.waits_for_edits() => {
                    log::error!(
                        "no worker ever joined, and each has failed three times; waiting for the next edit"
                    );
                }
                Action::GiveUp => {
                    log::error!(
                        "no worker ever joined, and each has failed three times; RIP_KEEP_TRYING=1 goes on trying"
                    );
                    self.end_now(1);
                }
            }
        }
    }

    /// In words for the log.
    fn reason_to_kill(&self, worker: WorkerKey) -> String {
        match self.workers.get(worker.0) {
            Some(entry) if !entry.has_joined && !self.is_stopping() => {
                let what = match entry.endpoint {
                    Endpoint::Unix(_) if entry.is_command => "answer on {socket}".to_owned(),
                    Endpoint::Unix(_) => "join".to_owned(),
                    Endpoint::Loopback { port, .. } => format!("answer on {{port}} ({port})"),
                };
                format!("it did not {what} within --boot-timeout-ms={}", self.config.boot_timeout.as_millis())
            }
            _ => "SIGTERM has not ended it in time".to_owned(),
        }
    }

    /// Asks for a process; the answer comes with [`Reactor::take_started`].
    fn spawn(&mut self, slot: usize, version: u64, why: Option<RetireReason>, release: Release) {
        match self.begin_start(slot, version, why, release) {
            Ok(start) => self.starts.push(start),
            Err(complaint) => self.start_failed(slot, complaint),
        }
    }

    fn start_failed(&mut self, slot: usize, complaint: String) {
        log::error!("worker {slot}: cannot be started: {complaint}");
        self.metrics.worker_start_failures += 1;
        self.renewal.failure = Some(format!("worker {slot}: cannot be started: {complaint}"));
        self.control.last_spawn_error = Some(complaint);
        self.fleet.spawn_failed(slot, self.clock.now);
    }

    fn begin_start(
        &mut self,
        slot: usize,
        version: u64,
        why: Option<RetireReason>,
        release: Release,
    ) -> Result<Start, String> {
        let app = self.releases.app(release)?;
        self.harnesses.provide(app.runtime).map_err(|error| format!("the harness folder: {error}"))?;
        let socket = self.names.worker_socket(slot, version);
        // Nobody listens there: this generation has never been.
        let _ = std::fs::remove_file(&socket);
        let endpoint = if self.config.command_takes_port() {
            Endpoint::Loopback { port: self.ports.take()?, is_ipv6: false }
        } else {
            Endpoint::Unix(socket.clone())
        };
        let identity = Identity {
            slot,
            version,
            port: endpoint.address().map(|address| address.port()),
            socket: &socket,
            control_socket: &self.names.control,
            prefix: &self.names.prefix,
            instance: &self.instance,
            harness_dir: self.harnesses.dir(),
        };
        let launch = runtime::launch(&app, &self.config, &identity)?;
        let program = shown(&launch.program).to_string();
        let begun = self.spawner.ensure().and_then(|fresh| {
            if let Some(fd) = fresh {
                let token = Target::Spawner.token();
                self.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
            }
            self.spawner.start(&launch)
        });
        let begun = begun.map_err(|error| format!("'{program}': {error}"))?;
        let is_command = app.runtime == Runtime::Command;
        Ok(Start { slot, version, why, endpoint, is_command, program, begun })
    }

    /// Takes in what became of the starts. Before anything else of a tick: a worker may have joined by now.
    pub(super) fn take_started(&mut self) {
        if !self.starts.is_empty() {
            self.hear_spawner();
        }
    }

    pub(super) fn hear_spawner(&mut self) {
        while let Some(answer) = self.spawner.answer() {
            match answer {
                Answer::Started { id, pid } => {
                    if let Some(start) = self.take_start(id) {
                        self.worker_started(start, pid);
                    }
                }
                Answer::Failed { id, error } => {
                    if let Some(start) = self.take_start(id) {
                        self.start_failed(start.slot, format!("'{}': {}", start.program, error.desc()));
                    }
                }
                Answer::NotRun { id, error } => {
                    let is_it = |entry: &WorkerEntry| entry.start_id == Some(id);
                    if let Some((_, entry)) = self.workers.iter_mut().find(|(_, entry)| is_it(entry)) {
                        entry.exec_failure = Some(error.desc().to_owned());
                    }
                }
                Answer::SpawnerDied => {
                    for start in std::mem::take(&mut self.starts) {
                        self.start_failed(start.slot, "the process that starts workers has died".to_owned());
                    }
                }
            }
        }
    }

    /// Not known any more: it was answered twice.
    fn take_start(&mut self, id: u64) -> Option<Start> {
        let at = self.starts.iter().position(|start| start.begun.id == id)?;
        Some(self.starts.swap_remove(at))
    }

    fn worker_started(&mut self, start: Start, pid: Pid) {
        let Start { slot, version, why, endpoint, is_command, program, begun } = start;
        let mut entry = self.new_worker(Origin::Slot { slot, version }, pid, endpoint, is_command);
        entry.start_id = Some(begun.id);
        entry.program = program;
        let label = Self::output_label(entry.origin);
        let worker = WorkerKey(self.workers.insert(entry));
        for (fd, is_stderr) in [(begun.stdout, false), (begun.stderr, true)] {
            let pipe = Pipe::new(fd, worker, label.clone(), is_stderr);
            let key = self.pipes.insert(pipe);
            if let Err(error) = self.pipes[key].register(self.poll.registry(), Target::Pipe(key).token()) {
                log::warn!("{label}: its output cannot be watched: {error}");
                self.pipes.remove(key);
            }
        }
        let after = why.map(|why| format!(", successor after {}", why.code())).unwrap_or_default();
        log::info!("{}: started, generation {version}{after}", self.label(worker));
        self.metrics.worker_starts += 1;
        if let Some(why) = why {
            self.metrics.replaced(why);
        }
        self.fleet.spawned(slot, worker, self.clock.now);
        if is_command {
            self.worker_deadlines.arm(worker.0, WorkerDeadline::Probe, self.clock.now);
        }
        // Its end may have been told before its start was.
        self.has_ended_children = true;
    }

    fn new_worker(&self, origin: Origin, pid: Pid, endpoint: Endpoint, is_command: bool) -> WorkerEntry {
        WorkerEntry {
            origin,
            pid,
            endpoint,
            stream: None,
            conn: conn::Worker::default(),
            exchange: None,
            is_watched_for_room: false,
            is_closing: false,
            connecting_since: None,
            is_command,
            has_joined: false,
            joined: None,
            was_asked: false,
            is_dead: false,
            requests: 0,
            request_limit: None,
            busy_streak: 0,
            started: self.clock.now,
            last_words: VecDeque::new(),
            boot_output: BootOutput::default(),
            start_id: None,
            program: String::new(),
            exec_failure: None,
            abilities: Abilities::default(),
            can_be_asked: false,
            is_stuck: false,
            is_withheld: false,
            exit: None,
            reloads: 0,
            rss_checked: None,
            resident_bytes: None,
        }
    }

    /// A worker that came by itself (`w:0`). Whoever has joined under the same socket before is replaced: what it has
    /// at work may end, and nothing more comes to it.
    pub(super) fn add_external(&mut self, worker_id: usize, join: &Join, peer_pid: i32) {
        let socket = PathBuf::from(&join.socket);
        let is_it = |entry: &WorkerEntry| {
            let is_external = matches!(entry.origin, Origin::Outside { .. });
            is_external && !entry.is_dead && entry.endpoint.path() == Some(&socket)
        };
        let earlier: Vec<usize> =
            self.workers.iter().filter(|(_, entry)| is_it(entry)).map(|(key, _)| key).collect();
        for earlier in earlier.into_iter().map(WorkerKey) {
            log::info!("{}: another one joins under its socket", self.label(earlier));
            self.part_from_external(earlier);
        }
        let pid = Pid::from_raw(join.pid);
        let process = (join.pid == peer_pid).then_some(pid);
        let origin = Origin::Outside { worker_id, process };
        let mut entry = self.new_worker(origin, pid, Endpoint::Unix(socket), false);
        entry.abilities = join.abilities;
        entry.can_be_asked = join.speaks_second_version();
        let worker = WorkerKey(self.workers.insert(entry));
        log::info!("{}: joined from outside", self.label(worker));
        self.admit_worker(worker, None);
    }

    /// A worker from outside gets nothing more, and is forgotten when it has nothing at work.
    pub(super) fn part_from_external(&mut self, worker: WorkerKey) {
        if self.balancer.withdraw(worker) {
            self.forget_worker(worker);
        }
    }

    /// Whether a worker's process is on its way out, where that can be known.
    pub(super) fn is_ending(&self, worker: WorkerKey) -> Option<bool> {
        process::is_ending(self.workers.get(worker.0)?.process()?)
    }

    /// A worker has joined: it gets requests from now on.
    fn admit_worker(&mut self, worker: WorkerKey, predecessor: Option<WorkerKey>) {
        let limit = self.fleet.draw_request_limit();
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        entry.has_joined = true;
        entry.joined = Some(self.clock.now);
        entry.request_limit = limit;
        let boot_ms = self.clock.now.duration_since(entry.started).as_millis();
        let (origin, is_command) = (entry.origin, entry.is_command);
        if let Origin::Slot { .. } = origin {
            log::info!("{}: joined after {boot_ms} ms", self.label(worker));
        }
        self.control.was_ever_healthy = true;
        if !is_command {
            // If that fails, it is tried again with the first request.
            let _ = self.connect(worker);
        }
        if self.is_withheld_at_once(worker) {
            return;
        }
        if let NextStep::Dispatch { client } = self.balancer.join(worker, predecessor, self.clock.now)
            && let Some(job) = self.take_job(client)
        {
            self.assign(worker, client, job);
        }
    }

    fn terminate(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get(worker.0) else {
            return;
        };
        let is_quiet = entry.exchange.is_none();
        process::terminate(entry.pid);
        if is_quiet {
            self.close_connection(worker);
        }
    }

    /// The end of a worker's drain: whoever waits for it is told, and its connection is closed before it is killed.
    fn cut_worker(&mut self, worker: WorkerKey) {
        let Some(entry) = self.workers.get(worker.0) else {
            return;
        };
        if !entry.exchange.as_ref().is_some_and(Exchange::is_question) {
            self.cut_exchange(worker);
        }
        self.close_connection(worker);
        self.worker_deadlines.disarm(worker.0);
        self.balancer.remove(worker);
        self.drop_exchange(worker);
    }

    /// Whether a worker has shown that its start was good: it has served, or it died of what it was asked while
    /// others, of the same code, served.
    fn has_served(&self, worker: WorkerKey) -> bool {
        self.workers.get(worker.0).is_some_and(|entry| {
            let others_serve = self.last_answer > entry.joined;
            entry.requests > 0 || (entry.joined.is_some() && entry.was_asked && others_serve)
        })
    }

    /// A worker says that it leaves by itself.
    pub(super) fn quit_slot(&mut self, worker: WorkerKey) {
        let ending = if self.has_served(worker) { Ending::Served } else { Ending::Quit };
        self.fleet.quit(worker, ending, self.clock.now);
    }

    /// A worker is of no use any more.
    pub(super) fn give_up_on(&mut self, worker: WorkerKey) {
        let ending = if self.has_served(worker) { Ending::Served } else { Ending::Failed };
        self.fleet.quit(worker, ending, self.clock.now);
    }

    /// Asks a command whether it answers by now: any answer will do, a connection alone proves nothing.
    pub(super) fn probe(&mut self, worker: WorkerKey) {
        let now = self.clock.now;
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        if entry.has_joined || entry.is_dead {
            return;
        }
        let question = Request::probe(self.buffers.take(), now);
        entry.exchange = Some(Exchange::probe(question, &self.spools, now));
        self.start_exchange(worker);
    }

    pub(super) fn probe_answered(&mut self, worker: WorkerKey) {
        self.close_connection(worker);
        if let Some(stranger) = self.stranger_on_port(worker) {
            // That port will not become the worker's; its successor gets another one.
            log::error!("{}: {stranger}, so the worker is ended", self.label(worker));
            if let Some(entry) = self.workers.get_mut(worker.0) {
                entry.last_words.push_back(stranger);
                process::kill_group(entry.pid);
            }
            return;
        }
        self.fleet.joined(worker, false, self.clock.now);
    }

    /// Who answers on the worker's port, if that is another user: anybody may listen on a port that is free.
    fn stranger_on_port(&self, worker: WorkerKey) -> Option<String> {
        let address = self.workers.get(worker.0)?.endpoint.address()?;
        let uid = ports::listener_uid(address)?;
        let is_stranger = uid != nix::unistd::geteuid().as_raw();
        is_stranger.then(|| format!("user {uid} listens on its port {}", address.port()))
    }

    /// Takes in all children that have ended. Each worker is asked for by itself, since one that is not reaped would
    /// stand before all others.
    pub(super) fn reap(&mut self) {
        self.has_ended_children = false;
        let is_ours =
            |entry: &WorkerEntry| entry.exit.is_none() && matches!(entry.origin, Origin::Slot { .. });
        let ended = self.workers.iter().filter(|(_, entry)| is_ours(entry));
        let ended: Vec<(usize, Exit)> =
            ended.filter_map(|(key, entry)| process::exit_of(entry.pid).map(|exit| (key, exit))).collect();
        for (key, exit) in ended {
            let worker = WorkerKey(key);
            self.worker_exited(worker, exit);
            self.end_group(worker);
        }
        self.groups.look();
        self.reap_orphans();
    }

    /// What a worker has left of its process group ends with it.
    fn end_group(&mut self, worker: WorkerKey) {
        let Some(pid) = self.workers.get(worker.0).map(|entry| entry.pid) else {
            return;
        };
        if self.groups.end(pid, self.clock.now) {
            log::info!("{}: what it has started lives on, and gets SIGTERM", self.label(worker));
        }
    }

    /// Who is nobody's worker: adopted, or a child of PID 1.
    fn reap_orphans(&mut self) {
        // One that nobody knows may be a worker whose start has not been told.
        while let Some((pid, exit)) = process::any_exit().filter(|_| self.starts.is_empty()) {
            let is_worker = |(_, entry): (usize, &WorkerEntry)| {
                entry.pid == pid && entry.exit.is_none() && matches!(entry.origin, Origin::Slot { .. })
            };
            if self.workers.iter().any(is_worker) {
                // It has ended a moment ago.
                self.has_ended_children = true;
                return;
            }
            if self.groups.holds(pid) {
                // It stands before the others for a second at most.
                return;
            }
            log::debug!("reaped the orphan {pid}: {exit}");
            process::release(pid);
        }
    }

    fn worker_exited(&mut self, worker: WorkerKey, exit: Exit) {
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        entry.is_dead = true;
        entry.exit = Some(exit);
        entry.is_closing = true;
        // What it had written before its end is still to be read: an answer may be whole.
        self.balancer_keeps_away(worker);
        self.read_worker(worker);
        let pipes: Vec<usize> =
            self.pipes.iter().filter(|(_, pipe)| pipe.worker() == worker).map(|(key, _)| key).collect();
        for key in pipes {
            self.read_pipe(key);
            self.close_pipe(key);
        }
        self.worker_deadlines.disarm(worker.0);
        self.end_exchange_of_the_dead(worker);
        self.balancer.remove(worker);
        let Some(entry) = self.workers.get(worker.0) else {
            return;
        };
        entry.endpoint.remove_file();
        let lived_ms = self.clock.now.duration_since(entry.started).as_millis();
        let (requests, has_joined) = (entry.requests, entry.has_joined);
        let folded = match entry.boot_output.folded {
            0 => String::new(),
            lines => format!("; it said {lines} lines of an earlier failure again"),
        };
        let phase =
            self.fleet.members().find(|(_, member)| member.worker == worker).map(|(_, member)| member.phase);
        let was_told_to = matches!(phase, Some(Phase::Terminating { .. }));
        let after = match has_joined {
            true => format!("after {requests} requests and {lived_ms} ms"),
            false => format!("after {lived_ms} ms, before it had joined"),
        };
        match exit {
            Exit::Code(0) if has_joined || was_told_to => {
                log::info!("{}: ended {after}", self.label(worker));
            }
            // Who has no handler for it ends by the signal itself.
            Exit::Signal(Signal::SIGTERM) if was_told_to => {
                log::info!("{}: ended by SIGTERM {after}", self.label(worker));
            }
            _ => match &entry.exec_failure {
                Some(error) => {
                    let complaint = format!("'{}': {error}", entry.program);
                    log::error!("{}: cannot be started: {complaint}", self.label(worker));
                    self.metrics.worker_start_failures += 1;
                }
                None => log::warn!("{}: {exit} {after}{folded}", self.label(worker)),
            },
        }
        if let Origin::Slot { slot, .. } = entry.origin {
            self.control.note_exit(slot, exit);
        }
        match phase {
            Some(Phase::Serving { .. }) => self.metrics.worker_crashes += 1,
            Some(Phase::Booting { .. }) => self.metrics.worker_boot_failures += 1,
            Some(Phase::Killed) if !has_joined => self.metrics.worker_boot_failures += 1,
            Some(Phase::Leaving { .. } | Phase::Terminating { .. } | Phase::Killed) | None => {}
        }
        if !has_joined && !was_told_to {
            let how = format!("{}: {exit} {after}", self.label(worker));
            self.note_failed_start(worker, how);
        }
        let has_served = self.has_served(worker);
        if !has_served && let Some(entry) = self.workers.get_mut(worker.0) {
            self.folds.failed(&mut entry.boot_output, self.clock.now);
        }
        self.fleet.exited(worker, has_served, self.clock.now);
        self.dead_workers.push(worker);
    }

    /// A worker that is gone must not be met again while its last bytes are read.
    fn balancer_keeps_away(&mut self, worker: WorkerKey) {
        if self.balancer.is_idle(worker) {
            self.balancer.remove(worker);
        }
    }

    /// Why a successor failed, for whoever asked for the reload.
    pub(super) fn roll_failure(&self, slot: usize, worker: Option<WorkerKey>) -> String {
        let Some(entry) = worker.and_then(|worker| self.workers.get(worker.0)) else {
            let why = self.control.last_spawn_error.as_deref().unwrap_or("the reason is in the log");
            return format!("the successor of worker {slot} could not be started: {why}");
        };
        if let Some(error) = &entry.exec_failure {
            let program = &entry.program;
            return format!("the successor of worker {slot} could not be started: '{program}': {error}");
        }
        let how = match entry.exit {
            Some(exit) if entry.has_joined => format!("ended before it had served: {exit}"),
            Some(Exit::Signal(Signal::SIGKILL)) => {
                format!("did not join within {} ms", self.config.boot_timeout.as_millis())
            }
            Some(exit) => format!("ended before it had joined: {exit}"),
            None => "failed".to_owned(),
        };
        let words: Vec<&str> = entry.last_words.iter().map(String::as_str).collect();
        let words = if words.is_empty() { String::new() } else { format!("\n  {}", words.join("\n  ")) };
        format!("the successor of worker {slot} (pid {}) {how}; the old workers go on{words}", entry.pid)
    }

    fn tell_roll_end(&mut self, end: RollEnd) {
        self.releases.end();
        let result = match end {
            RollEnd::Done { replaced } => {
                log::info!("reload: {replaced} workers replaced");
                Ok(replaced)
            }
            RollEnd::Failed { slot, worker } => {
                let why = self.roll_failure(slot, worker);
                log::error!("reload stopped: {why}");
                Err(why)
            }
            RollEnd::Unstable { slot } => {
                let why =
                    format!("the new workers of slot {slot} ended again and again; the old workers go on");
                log::error!("reload stopped: {why}");
                Err(why)
            }
            RollEnd::Stopping => Err("the server is stopping".to_owned()),
        };
        self.renewal_ended(result.is_ok());
        self.answer_roll_followers(&result);
    }
}
