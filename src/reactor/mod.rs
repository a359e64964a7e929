//! The poll loop: the one place with sockets, the clock and processes. It reads and writes for the machines in
//! `conn`, asks `balancer` who meets whom and `fleet` who should exist, and does what they say.
//!
//! A request's way through the files of this room: `clients` reads it and submits it, `workers` sends it and passes
//! the answer on, `answers` sees to its end, `failures` has what is done when a worker fails, `asking` finds out whether its handler has
//! ended, `processes` starts and reaps workers, `stopping`
//! is the end. The state that they share is in this file; what the slabs hold is in `entry`.

mod answers;
mod asking;
mod buffers;
mod clients;
mod clock;
mod connect;
mod control;
mod descriptors;
mod entry;
mod failures;
mod groups;
mod listen;
mod logs;
mod ports;
mod processes;
mod ready_list;
mod releases;
mod renewal;
mod signals;
#[cfg(test)]
mod simulation;
mod sizing;
mod socket_dir;
mod spool;
mod spool_budget;
mod start;
mod status;
mod stdio;
mod stopping;
mod stream;
mod token;
mod tunnels;
mod watch;
mod workers;

#[cfg(not(test))]
use crate::balancer::Balancer;
use crate::config::Config;
use crate::deadlines::Deadlines;
use crate::fleet::Fleet;
use crate::keys::{ClientKey, WorkerKey};
use crate::names::Names;
use crate::observe::folds::Folds;
use crate::observe::metrics::Metrics;
#[cfg(not(test))]
use crate::process;
use crate::process::DescriptorLimit;
use crate::runtime::Harnesses;
use clock::{Clock, Ids};
use control::connections::ControlDeadline;
use entry::{AskDeadline, ClientDeadline, ClientEntry, WorkerDeadline, WorkerEntry};
use listen::Listener;
use mio::{Events, Poll};
use nix::sys::signalfd::SignalFd;
#[cfg(test)]
use simulation::{order::Balancer, process};
use slab::Slab;
use spool::SpoolBudget;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use stopping::Stage;
use token::{Readiness, Target, decode_event};

/// How much is read from one connection in one turn, so that a fast sender keeps nobody waiting. Small where the
/// reactor is simulated, so that short messages meet the bounds.
const TICK_BYTES: usize = if cfg!(test) { 256 } else { 256 * 1024 };
/// One read; a pipe's or a Unix socket's buffer is not much larger.
const READ_BYTES: usize = if cfg!(test) { 64 } else { 64 * 1024 };
/// So many connections are accepted, and clients' deadlines seen to, in one turn: 1 to 2 ms of work. When thousands
/// come or are due at once, whoever else has a request waits no longer.
const MAX_PER_TICK: usize = 128;
/// So many answers are written, of those who waited for too long.
const MAX_REFUSALS_PER_TICK: usize = if cfg!(test) { 1 } else { 128 };
/// Events fetched at once.
const EVENTS: usize = 1024;
/// How long a refused client may go on sending before it is closed.
const LINGER: Duration = Duration::from_secs(2);
/// At a stop, a quiet connection gets so long: a request may be on its way.
const GRACE: Duration = Duration::from_secs(1);
/// Between two tries to connect to a full backlog.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);
/// A worker that answered busy counts as busy for so long.
const COOLDOWN: Duration = Duration::from_millis(100);
/// Between two looks whether a command answers.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Between two questions whether a worker is idle.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long the exit status of a process that is ending is waited for: one that frees gigabytes or writes a core file
/// takes a while.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// Access lines wait for so long, to be written together.
const LOG_DELAY: Duration = Duration::from_millis(50);
/// Or until there are so many bytes of them.
const LOG_BYTES: usize = 64 * 1024;
/// Accepting pauses for so long when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks for a descriptor for a spool file.
const FILES_PAUSE: Duration = Duration::from_millis(20);

pub use start::{Source, StartError};

pub struct Reactor {
    poll: Poll,
    clock: Clock,
    config: Config,
    source: Source,
    releases: releases::Releases,
    names: Names,
    limit: DescriptorLimit,
    signals: SignalFd,
    started: Instant,
    /// Names this run of the server; its workers say it when they join.
    instance: String,

    listeners: Vec<Listener>,
    metrics_listeners: Vec<Listener>,
    accept_again: Option<Instant>,
    is_short_of_descriptors: bool,
    /// So many are kept free of clients.
    kept_descriptors: u64,
    clients: Slab<ClientEntry>,
    workers: Slab<WorkerEntry>,
    control: control::ControlSocket,
    pipes: Slab<logs::Pipe>,
    dead_clients: Vec<ClientKey>,
    dead_workers: Vec<WorkerKey>,
    ready_list: ready_list::ReadyList,
    /// Who has waited for too long, and gets its answer when its turn comes.
    timed_out: VecDeque<ClientKey>,
    /// Whose second try is placed in the next turn. At most one of each client.
    second_tries: Vec<ClientKey>,

    client_deadlines: Deadlines<ClientDeadline>,
    worker_deadlines: Deadlines<WorkerDeadline>,
    control_deadlines: Deadlines<ControlDeadline>,
    ask_deadlines: Deadlines<AskDeadline>,
    balancer: Balancer,
    fleet: Fleet,
    stage: Stage,
    depth: sizing::Depth,
    metrics: Metrics,
    longest_wait: Duration,
    /// When any worker's answer has ended last.
    last_answer: Option<Instant>,
    watch: Option<watch::Watch>,
    renewal: renewal::Renewal,

    spools: Rc<SpoolBudget>,
    /// Whose spool waits for a tick that may make files, in the order of their coming.
    waiting_for_files: VecDeque<ClientKey>,
    /// When they are looked at again, after there were no descriptors.
    files_again: Option<Instant>,
    scratch: Vec<u8>,
    prefix: Vec<u8>,
    buffers: buffers::Buffers,
    ports: ports::Ports,
    ids: Ids,
    logs: logs::Logs,
    has_ended_children: bool,
    spawner: process::Spawner,
    /// Processes that were asked for, and are not there yet: one for each slot at most.
    starts: Vec<processes::Start>,
    groups: groups::Groups,
    folds: Folds,
    exit: Option<u8>,

    harnesses: Harnesses,
    /// The last to go: until then the name is this server's. None where the reactor is simulated.
    _name: Option<socket_dir::NameLock>,
}

/// Starts and runs the server; the exit code.
///
/// # Errors
/// [`StartError`] if it could not start; then nothing runs and nothing is left behind.
pub fn serve(config: Config, embedded: Option<PathBuf>) -> Result<u8, StartError> {
    let limit = process::raise_descriptor_limit();
    let mut reactor = Reactor::start(config, embedded, limit)?;
    crate::process::ask_for_shorter_turns();
    reactor.announce();
    let result = reactor.run();
    reactor.cleanup();
    result.map_err(|error| StartError::Trouble(format!("the poll loop failed: {error}")))
}

impl Reactor {
    /// The one line at the start.
    fn announce(&mut self) {
        let addresses: Vec<String> =
            self.listeners.iter().map(|listener| format!("http={}", listener.address())).collect();
        let metrics = self.metrics_listeners.iter().map(|listener| format!("metrics={}", listener.address()));
        let addresses: Vec<String> = addresses.into_iter().chain(metrics).collect();
        let workers = self.config.workers.min;
        let line = format!("rip-server: app={} {} workers={workers}\n", self.names.app, addresses.join(" "));
        self.logs.announce(line.as_bytes());
        // Said before the workers are started: from here on requests are taken, and wait.
        self.logs.flush(self.clock.now);
        self.start_watch();
        self.perform_fleet_actions();
        self.logs.flush(self.clock.now);
    }

    fn run(&mut self) -> io::Result<u8> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match self.poll.poll(&mut events, self.poll_timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let before = self.clock.now;
            self.clock.read();
            self.metrics.busy_for(self.balancer.in_use(), self.clock.now - before);
            self.tick(events.iter().filter_map(decode_event));
            if let Some(code) = self.exit {
                return Ok(code);
            }
        }
    }

    /// One turn of the loop.
    fn tick(&mut self, events: impl Iterator<Item = (Target, Readiness)> + Clone) {
        self.take_started();
        self.settle_spools();
        let second_tries = std::mem::take(&mut self.second_tries);
        if self.balancer.waiting() > 0 || !second_tries.is_empty() {
            // Who is known to be gone gets no worker that becomes free in this turn.
            for (target, readiness) in events.clone() {
                if let Target::Client(client) = target {
                    self.forget_if_gone(client, readiness);
                }
            }
        }
        // Workers first: an answer that ends frees a worker before a new request looks for one, and anything odd on
        // an idle connection is noticed before a request is written to it.
        for (target, readiness) in events.clone() {
            if let Target::Worker(worker) = target {
                self.worker_event(worker, readiness);
            }
        }
        self.place_second_tries(second_tries);
        for (target, readiness) in events {
            match target {
                Target::Client(client) => self.client_event(client, readiness),
                Target::Worker(_) => {}
                Target::Listener(index) => self.accept(index),
                Target::MetricsListener(index) => self.accept_scraper(index),
                Target::ControlListener => self.accept_control(),
                Target::Control(key) => self.control_event(key, readiness),
                Target::Pipe(key) => self.read_pipe(key),
                Target::Signals => self.take_signals(),
                Target::Stdout | Target::Stderr => self.logs.has_room(),
                Target::Watch => self.read_watch(),
                Target::Spawner => self.hear_spawner(),
            }
        }
        let ready_list = self.ready_list.take();
        for &target in &ready_list {
            match target {
                Target::Client(client) => self.resume_client(client),
                Target::Worker(worker) => self.resume_worker(worker),
                Target::Pipe(key) => self.read_pipe(key),
                Target::Listener(index) => self.accept(index),
                Target::ControlListener => self.accept_control(),
                Target::MetricsListener(index) => self.accept_scraper(index),
                Target::Control(_)
                | Target::Signals
                | Target::Stdout
                | Target::Stderr
                | Target::Watch
                | Target::Spawner => {}
            }
        }
        self.ready_list.give_back(ready_list);
        self.advance_control();
        self.expire();
        if self.has_ended_children {
            self.reap();
        }
        self.resize();
        self.go_on_stopping();
        self.perform_fleet_actions();
        self.answer_failed_start();
        self.remove_closed();
        self.spools.end_tick(self.clock.now);
        self.logs.flush(self.clock.now);
    }

    /// How long `poll` may sleep. Counted from the turn's one look at the clock: a deadline can be late by the time
    /// that one turn takes.
    fn poll_timeout(&self) -> Option<Duration> {
        let has_ready =
            self.has_ended_children || !self.ready_list.is_empty() || self.control.connections.has_ready();
        let has_spools_to_do = self.wants_files_now() || self.spools.has_leaving_files();
        let has_answers_due = !self.timed_out.is_empty() || !self.second_tries.is_empty();
        if has_ready || has_spools_to_do || has_answers_due || self.has_to_tell_failure() {
            return Some(Duration::ZERO);
        }
        Some(self.next_deadline()?.saturating_duration_since(self.clock.now))
    }

    /// When something is to be done by the clock.
    fn next_deadline(&self) -> Option<Instant> {
        let all = [
            self.client_deadlines.next(),
            self.worker_deadlines.next(),
            self.control_deadlines.next(),
            self.files_again,
            self.ask_deadlines.next(),
            self.balancer.next_deadline(),
            self.fleet.next_deadline(),
            self.groups.next_deadline(),
            self.accept_again,
            self.logs.next_flush(self.clock.now),
            self.stage.deadline(),
            self.next_shrink(),
            self.renewal_deadline(),
        ];
        all.into_iter().flatten().min()
    }

    /// All deadlines that are due, in one turn; where each costs a system call, as many as a turn may take.
    fn expire(&mut self) {
        let now = self.clock.now;
        for _ in 0..MAX_PER_TICK {
            let Some((key, kind)) = self.client_deadlines.expire(now) else { break };
            self.client_is_due(ClientKey(key), kind);
        }
        while let Some((key, kind)) = self.worker_deadlines.expire(now) {
            self.worker_is_due(WorkerKey(key), kind);
        }
        while let Some((key, kind)) = self.control_deadlines.expire(now) {
            self.control_is_due(key, kind);
        }
        while let Some((key, AskDeadline::Repeat)) = self.ask_deadlines.expire(now) {
            self.ask_again(WorkerKey(key));
        }
        while let Some(client) = self.balancer.expire(now) {
            self.has_waited_too_long(client);
        }
        self.answer_timed_out();
        self.groups.expire(now);
        self.act_on_changes();
        if self.fleet.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.fleet.tick(now);
        }
        if self.accept_again.is_some_and(|retry_at| retry_at <= now) {
            self.accept_again = None;
            if self.is_stopping() {
                self.stop_listening();
            } else {
                for index in 0..self.listeners.len() {
                    self.accept(index);
                }
            }
            self.accept_control();
            for index in 0..self.metrics_listeners.len() {
                self.accept_scraper(index);
            }
        }
    }

    /// Closed entries leave the slabs only now, so that no key is used again inside one batch of events.
    fn remove_closed(&mut self) {
        for client in self.dead_clients.drain(..) {
            self.client_deadlines.disarm(client.0);
            self.clients.try_remove(client.0);
        }
        for worker in self.dead_workers.drain(..) {
            self.worker_deadlines.disarm(worker.0);
            self.ask_deadlines.disarm(worker.0);
            self.workers.try_remove(worker.0);
        }
        self.remove_closed_control();
    }

    fn cleanup(&mut self) {
        self.logs.finish();
    }
}
