//! Worker processes: which there should be, which there are, what they print, and what they run.

mod ending;
pub(super) mod groups;
mod launching;
mod output;
mod ports;
mod releases;
mod renewal;
#[cfg(any(test, fuzzing))]
mod seen;
pub(super) mod signals;
mod telling;
mod templates;
#[cfg(test)]
mod tests;
mod watch;
pub(super) mod worker;

pub(super) use launching::Launcher;
pub(super) use renewal::Renewed;

#[cfg(any(test, fuzzing))]
use super::simulation::process;
#[cfg(not(any(test, fuzzing)))]
use crate::process;

use super::backend::NoConnection;
use super::endpoint::Endpoint;
use super::observer::Observer;
use crate::balancer::Capacity;
use crate::config::Config;
use crate::control::{Join, Sender};
use crate::deadlines::earliest;
use crate::fleet::{Beginning, Ending, Fleet, RetireReason, TemplateId};
use crate::keys::WorkerKey;
use crate::process::{DescriptorLimit, Exit};
use groups::Groups;
use nix::unistd::Pid;
use output::Outputs;
use renewal::Renewal;
use slab::Slab;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use worker::{Fate, Origin, Presence, Worker};

/// A worker that answered busy so often in a row is replaced.
const MAX_BUSY_ANSWERS: u8 = 10;
/// Memory is looked at no more often than that, since each look opens a file.
const CHECK_RSS_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Supervisor {
    fleet: Fleet,
    workers: Slab<Worker>,
    closed: Vec<WorkerKey>,
    launcher: Launcher,
    renewal: Renewal,
    outputs: Outputs,
    groups: Groups,
    has_ended_children: bool,
    /// When any worker's answer has ended last.
    last_answer: Option<Instant>,
    /// A worker above it is replaced; 0: none is.
    max_memory_bytes: u64,
    history: History,
    config: Rc<Config>,
}

/// What is remembered of workers that are gone.
#[derive(Debug, Default)]
struct History {
    last_spawn_error: Option<String>,
    was_ever_healthy: bool,
    /// How the last worker of each slot ended.
    last_exits: HashMap<usize, Exit>,
    /// One that had loaded the app, and was ended because it did not answer.
    unresponsive_template: Option<TemplateId>,
}

impl Supervisor {
    pub(super) fn new(
        launcher: Launcher,
        config: Rc<Config>,
        seed: u64,
        beginning: Beginning,
        now: Instant,
    ) -> Self {
        Supervisor {
            fleet: Fleet::following(config.plan(seed), beginning, now),
            workers: Slab::new(),
            closed: Vec::new(),
            launcher,
            renewal: Renewal::default(),
            outputs: Outputs::default(),
            groups: Groups::new(process::adopt_orphans()),
            has_ended_children: false,
            last_answer: None,
            max_memory_bytes: config.max_memory_bytes,
            history: History::default(),
            config,
        }
    }

    fn get(&self, worker: WorkerKey) -> Option<&Worker> {
        self.workers.get(worker.0)
    }

    fn get_mut(&mut self, worker: WorkerKey) -> Option<&mut Worker> {
        self.workers.get_mut(worker.0)
    }
}

/// Getters.
impl Supervisor {
    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    pub(super) fn fleet_mut(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    pub(super) fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    pub(super) fn launcher_mut(&mut self) -> &mut Launcher {
        &mut self.launcher
    }

    /// The bound of descriptors that workers get.
    pub(super) fn limit(&self) -> DescriptorLimit {
        self.launcher.limit()
    }

    pub(super) fn endpoint(&self, worker: WorkerKey) -> Option<&Endpoint> {
        self.get(worker).map(|entry| &entry.endpoint)
    }

    pub(super) fn origin(&self, worker: WorkerKey) -> Option<Origin> {
        self.get(worker).map(|entry| entry.origin)
    }

    pub(super) fn is_external(&self, worker: WorkerKey) -> bool {
        self.origin(worker).is_some_and(|origin| !origin.is_own())
    }

    pub(super) fn is_command(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_some_and(|entry| entry.is_command)
    }

    pub(super) fn is_dead(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_none_or(Worker::is_dead)
    }

    /// An answer of it does not end.
    pub(super) fn is_stuck(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_some_and(|entry| entry.is_stuck)
    }

    /// It has not joined yet, and may.
    pub(super) fn is_booting(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_some_and(|entry| !entry.has_joined() && !entry.is_dead())
    }

    pub(super) fn can_be_asked(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_some_and(|entry| entry.talk.can_be_asked)
    }

    /// What it takes at once: as much as its join said, and not more than it was asked to. A command says nothing.
    pub(super) fn capacity(&self, worker: WorkerKey) -> Capacity {
        let Some(entry) = self.get(worker) else { return Capacity { places: 1, streams: None } };
        let abilities = entry.talk.abilities;
        let most = if entry.is_command { u64::MAX } else { abilities.concurrency };
        Capacity {
            places: usize::try_from(most)
                .map_or(self.config.concurrency, |most| most.min(self.config.concurrency)),
            streams: abilities.streams.then_some(self.config.max_streams),
        }
    }

    /// Whether it may be told, by a half-close, that nobody waits for its answer. A plain command may close for that
    /// while its handler runs on, and cannot be asked about it: only the end of its answer shows that it is idle. But one
    /// whose head is out may never end it otherwise.
    pub(super) fn may_be_told(&self, worker: WorkerKey, has_head: bool) -> bool {
        self.get(worker).is_some_and(|entry| !entry.is_command || has_head)
    }

    /// Whether a worker's process is on its way out, where that can be known.
    pub(super) fn is_ending(&self, worker: WorkerKey) -> Option<bool> {
        process::is_ending(self.get(worker)?.pid()?)
    }

    pub(super) fn fate(&self, worker: WorkerKey) -> Fate {
        let Some(entry) = self.get(worker) else { return Fate::Unknown };
        // Once reaped, its pid may be somebody else's.
        if let Some(exit) = entry.exit() {
            return Fate::Exited(exit);
        }
        match self.is_ending(worker) {
            Some(false) => Fate::Lives,
            Some(true) => Fate::IsEnding,
            None => Fate::Unknown,
        }
    }

    pub(super) fn is_dying(&self, worker: WorkerKey) -> bool {
        self.fate(worker) == Fate::IsEnding
    }

    /// `worker 3 (pid 42)`
    pub(super) fn label(&self, worker: WorkerKey) -> String {
        self.get(worker).map_or_else(|| "a worker".to_owned(), Worker::label)
    }

    /// A worker's number and process, for the log.
    pub(super) fn identity(&self, worker: WorkerKey) -> Option<(usize, i32)> {
        let entry = self.get(worker)?;
        Some((entry.origin.worker_id(), entry.process.pid.as_raw()))
    }

    /// As last sampled; of a process that lives it can still be asked.
    pub(super) fn resident_bytes(&self, worker: WorkerKey) -> Option<u64> {
        let entry = self.get(worker)?;
        entry.memory.resident_bytes.or_else(|| process::resident_bytes(entry.pid()?))
    }

    /// The joined worker of that number that speaks: of two generations the one whose process it is, else (a
    /// runtime may speak from a child) the older, since it is the old one that leaves.
    ///
    /// # Errors
    /// There is none, or it is another server's.
    pub(super) fn speaker(&self, sender: &Sender, peer_pid: i32) -> Result<WorkerKey, String> {
        let worker_id = sender.worker_id;
        if self.config.workers.max != 0 {
            self.launcher.check_instance(sender)?;
        }
        self.workers
            .iter()
            .filter(|(_, entry)| {
                entry.origin.worker_id() as u64 == worker_id && entry.has_joined() && !entry.is_dead()
            })
            .min_by_key(|(_, entry)| (entry.process.pid.as_raw() != peer_pid, entry.process.started))
            .map(|(key, _)| WorkerKey(key))
            .ok_or_else(|| format!("there is no worker {worker_id}"))
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        earliest([self.fleet.next_deadline(), self.groups.next_deadline(), self.renewal_deadline()])
    }
}

/// What the exchanges tell of workers.
impl Supervisor {
    /// It is about to get a request; where it listens.
    pub(super) fn begin_request(&mut self, worker: WorkerKey) -> Option<&Endpoint> {
        let entry = self.get_mut(worker)?;
        entry.counts.was_asked = true;
        Some(&entry.endpoint)
    }

    pub(super) fn count_request(&mut self, worker: WorkerKey) {
        if let Some(entry) = self.get_mut(worker) {
            entry.counts.requests += 1;
        }
    }

    /// It has given a whole answer.
    pub(super) fn has_answered(&mut self, worker: WorkerKey, now: Instant) {
        self.last_answer = Some(now);
        if let Some(entry) = self.get_mut(worker) {
            entry.counts.requests += 1;
            entry.counts.busy_streak = 0;
        }
    }

    /// `true`: it has done so too often in a row.
    pub(super) fn has_answered_busy(&mut self, worker: WorkerKey) -> bool {
        let Some(entry) = self.get_mut(worker) else { return false };
        entry.counts.busy_streak = entry.counts.busy_streak.saturating_add(1);
        entry.counts.busy_streak >= MAX_BUSY_ANSWERS
    }

    /// No answer of it is stuck.
    pub(super) fn note_recovery(&mut self, worker: WorkerKey) {
        if let Some(entry) = self.get_mut(worker) {
            entry.counts.busy_streak = 0;
            entry.is_stuck = false;
        }
    }

    /// Its answer has not ended in time.
    pub(super) fn note_stuck(&mut self, worker: WorkerKey) {
        if let Some(entry) = self.get_mut(worker) {
            entry.is_stuck = true;
        }
    }

    /// A connection to it failed. One that is looked for still may listen on the other address.
    pub(super) fn cannot_connect(&mut self, worker: WorkerKey, why: NoConnection) {
        if let Some(entry) = self.get_mut(worker).filter(|entry| !entry.has_joined())
            && why != NoConnection::Later
        {
            entry.endpoint.try_other_address();
        }
    }

    /// Nobody listens on its socket. `true`: that is news of one that had joined.
    pub(super) fn refuses_connections(&mut self, worker: WorkerKey) -> bool {
        let Some(entry) = self.get_mut(worker).filter(|entry| !entry.is_dead()) else { return false };
        entry.presence = Presence::Gone;
        entry.has_joined()
    }

    /// A worker's process ends, or has ended, and it gets nothing more.
    pub(super) fn note_gone(&mut self, worker: WorkerKey) {
        if let Some(entry) = self.get_mut(worker).filter(|entry| entry.exit().is_none()) {
            entry.presence = Presence::Gone;
        }
    }

    /// One that came by itself is gone. `false`: that was known.
    pub(super) fn forget(&mut self, worker: WorkerKey) -> bool {
        if self.get(worker).is_none() || self.closed.contains(&worker) {
            return false;
        }
        self.note_gone(worker);
        self.closed.push(worker);
        true
    }

    /// Has a worker replaced that has served its number of requests, or has grown too heavy. Looked at after an answer.
    pub(super) fn check_limits(&mut self, worker: WorkerKey, now: Instant) {
        let Some(entry) = self.workers.get_mut(worker.0) else { return };
        let is_reached = entry.counts.request_limit.is_some_and(|limit| entry.counts.requests >= limit);
        if is_reached && !std::mem::replace(&mut entry.counts.is_limit_reached, true) {
            self.fleet.note_used_up(worker, now);
        }
        if self.max_memory_bytes > 0 {
            self.check_rss(worker, now);
        }
    }

    fn check_rss(&mut self, worker: WorkerKey, now: Instant) {
        let Some(entry) = self.workers.get_mut(worker.0) else { return };
        let was_just_checked =
            entry.memory.checked.is_some_and(|at| now.duration_since(at) < CHECK_RSS_EVERY);
        if was_just_checked || !entry.origin.is_own() {
            return;
        }
        entry.memory.checked = Some(now);
        match process::resident_bytes(entry.process.pid) {
            Some(bytes) => {
                entry.memory.resident_bytes = Some(bytes);
                if bytes > self.max_memory_bytes {
                    // It serves until its successor has joined, and is looked at all the time.
                    if !std::mem::replace(&mut entry.memory.is_above_told, true) {
                        log::info!("{}: {} MiB resident, above --max-memory", entry.label(), bytes >> 20);
                    }
                    self.fleet.retire(worker, RetireReason::Memory, now);
                }
            }
            None if process::tells_memory() => {}
            None => {
                log::warn!("--max-memory is not in force: /proc does not tell the memory of a process here");
                self.max_memory_bytes = 0;
            }
        }
    }
}

/// Joins, and what follows from what workers say.
impl Supervisor {
    /// A join counts only from a slot that is booting.
    ///
    /// # Errors
    /// Why it does not count.
    pub(super) fn join(&mut self, worker_id: usize, join: &Join, now: Instant) -> Result<(), String> {
        self.launcher.check_instance(&join.sender)?;
        let version = join.version;
        let Some(worker) = self.fleet.booting(worker_id, version) else {
            return Err(format!("no worker {worker_id} of generation {version} is booting"));
        };
        let expected = self.get(worker).and_then(|entry| entry.endpoint.path());
        if expected != Some(Path::new(&join.socket)) {
            return Err(format!(
                "worker {worker_id} of generation {version} has another socket than '{}'",
                crate::paths::shown(&join.socket)
            ));
        }
        if let Some(entry) = self.get_mut(worker) {
            entry.learn(join);
        }
        self.fleet.joined(worker, join.abilities.drains, now);
        Ok(())
    }

    /// Those that have joined under that socket before.
    pub(super) fn externals_at(&self, socket: &Path) -> Vec<WorkerKey> {
        let is_it = |entry: &Worker| {
            !entry.origin.is_own() && !entry.is_dead() && entry.endpoint.path() == Some(socket)
        };
        self.workers.iter().filter(|(_, entry)| is_it(entry)).map(|(key, _)| WorkerKey(key)).collect()
    }

    /// A worker that came by itself (`w:0`).
    pub(super) fn add_external(
        &mut self,
        worker_id: usize,
        join: &Join,
        peer_pid: i32,
        now: Instant,
    ) -> WorkerKey {
        let pid = Pid::from_raw(join.pid);
        let process = (join.pid == peer_pid).then_some(pid);
        let origin = Origin::Outside { worker_id, process };
        let endpoint = Endpoint::Unix(PathBuf::from(&join.socket));
        let mut entry = Worker::new(origin, pid, endpoint, false, now);
        entry.learn(join);
        let label = entry.label();
        let worker = WorkerKey(self.workers.insert(entry));
        log::info!("{label}: joined from outside");
        worker
    }

    /// The workers that came by themselves, as they said so, and their processes.
    pub(super) fn external_joins(&self) -> Vec<(Join, Option<i32>)> {
        let external = self.workers.iter().filter(|(_, entry)| !entry.origin.is_own() && !entry.is_dead());
        external.filter_map(|(_, entry)| entry.external_join()).collect()
    }

    /// A worker gets requests from now on. `true`: it is connected to at once.
    pub(super) fn admit(&mut self, worker: WorkerKey, observer: &mut Observer, now: Instant) -> Option<bool> {
        let limit = self.fleet.draw_request_limit();
        let entry = self.workers.get_mut(worker.0)?;
        entry.joined = Some(now);
        entry.counts.request_limit = limit;
        if entry.origin.is_own() {
            let took = now.duration_since(entry.process.asked);
            log::info!("{}: joined after {} ms", entry.label(), took.as_millis());
            observer.worker_joined(entry.process.is_fork, took);
        }
        self.history.was_ever_healthy = true;
        Some(!entry.is_command)
    }

    pub(super) fn note_reload(&mut self, worker: WorkerKey) {
        if let Some(entry) = self.get_mut(worker) {
            entry.counts.reloads += 1;
        }
    }

    /// A command has answered.
    pub(super) fn probe_answered(&mut self, worker: WorkerKey, now: Instant) {
        if let Some(stranger) = self.stranger_on_port(worker) {
            // That port will not become the worker's; its successor gets another one.
            log::error!("{}: {stranger}, so the worker is ended", self.label(worker));
            if let Some(entry) = self.get_mut(worker) {
                entry.said.last_words.push_back(stranger);
                process::kill_group(entry.process.pid);
            }
            return;
        }
        self.fleet.joined(worker, false, now);
    }

    /// Who answers on the worker's port, if that is another user: anybody may listen on a port that is free.
    fn stranger_on_port(&self, worker: WorkerKey) -> Option<String> {
        let address = self.get(worker)?.endpoint.address()?;
        let uid = ports::listener_uid(address)?;
        let is_stranger = uid != nix::unistd::geteuid().as_raw();
        is_stranger.then(|| format!("user {uid} listens on its port {}", address.port()))
    }

    /// Whether a worker has shown that its start was good: it has served, or it died of what it was asked while
    /// others, of the same code, served.
    fn has_served(&self, worker: WorkerKey) -> bool {
        self.get(worker).is_some_and(|entry| {
            let others_serve = self.last_answer > entry.joined;
            entry.counts.requests > 0 || (entry.has_joined() && entry.counts.was_asked && others_serve)
        })
    }

    /// A worker says that it leaves by itself.
    pub(super) fn quit(&mut self, worker: WorkerKey, now: Instant) {
        let ending = if self.has_served(worker) { Ending::Served } else { Ending::Quit };
        self.fleet.quit(worker, ending, now);
    }

    /// A worker is of no use any more.
    pub(super) fn give_up_on(&mut self, worker: WorkerKey, now: Instant) {
        let ending = if self.has_served(worker) { Ending::Served } else { Ending::Failed };
        self.fleet.quit(worker, ending, now);
    }
}
