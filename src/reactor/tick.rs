//! The loop: what happens in one tick, and in which order.

use super::admin::Admin;
use super::backend::Backend;
use super::frontend::Frontend;
use super::host::Host;
use super::host::notifier::ServiceState;
use super::io::Io;
use super::io::token::{Readiness, Target, decode_event};
use super::limits::MAX_PER_TICK;
use super::observer::Observer;
#[cfg(any(test, fuzzing))]
pub(super) use super::simulation::order::Balancer;
use super::source::StartError;
use super::stage::Stage;
use super::supervisor::Supervisor;
#[cfg(not(any(test, fuzzing)))]
pub(super) use crate::balancer::Balancer;
use crate::config::Config;
use crate::deadlines::earliest;
use crate::quarantine::Quarantine;
use mio::Events;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Events fetched at once.
const EVENTS: usize = 1024;

pub(crate) struct Reactor {
    pub(super) config: Rc<Config>,
    pub(super) io: Io,
    pub(super) observer: Observer,
    pub(super) frontend: Frontend,
    pub(super) backend: Backend,
    pub(super) balancer: Balancer,
    pub(super) quarantine: Quarantine,
    pub(super) admin: Admin,
    pub(super) host: Host,
    pub(super) stage: Stage,
    pub(super) exit: Option<u8>,
    /// The last to go: it holds the server's name.
    pub(super) supervisor: Supervisor,
}

impl Reactor {
    /// Serves until the end of the server; the exit code.
    ///
    /// # Errors
    /// The kernel tells of no event any more.
    pub(crate) fn run(mut self) -> Result<u8, StartError> {
        let mut events = Events::with_capacity(EVENTS);
        let mut batch = Vec::with_capacity(EVENTS);
        loop {
            match self.io.wait(&mut events, self.poll_timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.observer.finish();
                    return Err(StartError::Trouble(format!("the poll loop failed: {error}")));
                }
            }
            let passed = self.io.read_clock();
            self.observer.busy_for(self.balancer.in_use(), passed);
            batch.clear();
            batch.extend(events.iter().filter_map(decode_event));
            self.tick(&batch);
            if let Some(code) = self.exit {
                self.observer.finish();
                return Ok(code);
            }
        }
    }

    /// One tick of the loop.
    pub(super) fn tick(&mut self, events: &[(Target, Readiness)]) {
        self.note_load();
        if self.supervisor.launcher().starts() > 0 {
            // Before anything else: a worker may have joined by now.
            self.on_spawner();
        }
        self.settle_spools();
        let second_tries = self.frontend.take_second_tries();
        if self.balancer.waiting() > 0 || !second_tries.is_empty() {
            // Who is known to be gone gets no worker that becomes free in this tick.
            for &(target, readiness) in events {
                if let Target::Client(client) = target {
                    self.forget_if_gone(client, readiness);
                }
            }
        }
        // Workers first: an answer that ends frees a worker before a new request looks for one, and anything odd on
        // an idle connection is noticed before a request is written to it.
        for &(target, readiness) in events {
            if let Target::Upstream(upstream) = target {
                self.on_upstream(upstream, readiness);
            }
        }
        self.place_second_tries(second_tries);
        for &(target, readiness) in events {
            match target {
                Target::Client(client) => self.on_client(client, Some(readiness)),
                Target::Upstream(_) => {}
                Target::Listener(index) => self.accept(index),
                Target::MetricsListener(index) => self.accept_scraper(index),
                Target::PageListener(index) => self.accept_viewer(index),
                Target::ControlListener(index) => self.accept_control(index),
                Target::Control(key) => self.admin.note(key, readiness),
                Target::Pipe(key) => self.supervisor.read_pipe(key, &mut self.io, &mut self.observer),
                Target::Signals => self.on_signals(),
                Target::Stdout | Target::Stderr => self.observer.on_output_writable(),
                Target::Watch => self.read_watch(),
                Target::Spawner => self.on_spawner(),
                Target::Successor => self.on_successor(),
                Target::Predecessor => self.on_predecessor(),
            }
        }
        self.go_on_with_ready();
        self.advance_operators();
        self.expire();
        if self.supervisor.has_ended_children() {
            self.reap();
        }
        self.resize();
        self.note_readiness();
        self.go_on_stopping();
        self.perform_fleet_actions();
        self.place_streams();
        self.answer_failed_start();
        self.remove_closed();
        self.notify();
        self.io.spools().end_tick(self.io.now());
        self.observer.flush(self.io.now());
    }

    /// Goes on with those who have more to do without a new event.
    fn go_on_with_ready(&mut self) {
        let ready = self.io.take_ready();
        for &target in &ready {
            match target {
                Target::Client(client) => self.on_client(client, None),
                Target::Upstream(upstream) => self.resume_upstream(upstream),
                Target::Pipe(key) => self.supervisor.read_pipe(key, &mut self.io, &mut self.observer),
                Target::Listener(index) => self.accept(index),
                Target::ControlListener(index) => self.accept_control(index),
                Target::MetricsListener(index) => self.accept_scraper(index),
                Target::PageListener(index) => self.accept_viewer(index),
                Target::Control(_)
                | Target::Signals
                | Target::Stdout
                | Target::Stderr
                | Target::Watch
                | Target::Spawner
                | Target::Successor
                | Target::Predecessor => {}
            }
        }
        self.io.give_ready_back(ready);
    }

    /// How long `poll` may sleep. Counted from the tick's one look at the clock: a deadline can be late by the time
    /// that one tick takes.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        let has_ready = self.supervisor.has_ended_children() || self.io.has_ready() || self.admin.has_ready();
        let has_files_to_close = self.io.spools().has_leaving_files();
        if has_ready || has_files_to_close || self.frontend.has_work() || self.has_to_tell_failure() {
            return Some(Duration::ZERO);
        }
        Some(self.next_deadline()?.saturating_duration_since(self.io.now()))
    }

    /// When something is to be done by the clock.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        earliest([
            self.frontend.next_deadline(),
            self.backend.next_deadline(),
            self.admin.next_deadline(),
            self.balancer.next_deadline(),
            self.balancer.stream_deadline(self.io.now()),
            self.supervisor.next_deadline(),
            self.observer.next_flush(self.io.now()),
            self.stage.deadline(),
            self.host.next_deadline(),
            self.next_shrink(),
        ])
    }

    /// All deadlines that are due, in one tick; where each costs a system call, as many as a tick may take.
    fn expire(&mut self) {
        let now = self.io.now();
        for _ in 0..MAX_PER_TICK {
            let Some((client, kind)) = self.frontend.expire(now) else { break };
            self.on_client_deadline(client, kind);
        }
        while let Some((upstream, kind)) = self.backend.expire(now) {
            self.on_upstream_deadline(upstream, kind);
        }
        while let Some((key, kind)) = self.admin.expire(now) {
            self.on_control_deadline(key, kind);
        }
        self.tell_viewers();
        self.backend.sweep(now);
        while let Some(upstream) = self.backend.expire_question(now) {
            self.ask_again(upstream);
        }
        while let Some(client) = self.balancer.expire(now) {
            self.frontend.has_waited_too_long(client);
        }
        self.answer_timed_out();
        self.supervisor.expire_groups(now);
        self.act_on_changes();
        if let Some(due) = self.supervisor.fleet().next_deadline().filter(|due| *due <= now)
            && !self.admin.puts_off(due)
        {
            self.supervisor.fleet_mut().tick(now);
        }
        if self.frontend.end_pause(now) {
            self.accept_after_pause();
        }
        self.go_on_closing();
        self.expire_upgrade();
    }

    fn accept_after_pause(&mut self) {
        for index in 0..self.frontend.listeners().len() {
            self.accept(index);
        }
        for index in 0..self.admin.control_listeners() {
            self.accept_control(index);
        }
        for index in 0..self.admin.metrics_listeners().len() {
            self.accept_scraper(index);
        }
        for index in 0..self.admin.page_listeners().len() {
            self.accept_viewer(index);
        }
    }

    /// Systemd hears how the server stands.
    fn notify(&mut self) {
        if !self.host.notifier.is_on() {
            return;
        }
        let has_begun_roll = self.supervisor.take_begun_roll();
        let fleet = self.supervisor.fleet();
        let are_external = self.config.workers.max == 0;
        let state = ServiceState {
            is_ready: self.supervisor.was_ever_healthy() || are_external,
            is_rolling: fleet.is_rolling(),
            is_stopping: self.is_stopping(),
            serving: if are_external { self.supervisor.serving() } else { fleet.serving() },
            of: fleet.size(),
        };
        if has_begun_roll && !state.is_rolling {
            // One that has failed within the tick: who asked for it waits to hear of its begin and its end.
            self.host.notifier.note(ServiceState { is_rolling: true, ..state }, self.io.now());
        }
        self.host.notifier.note(state, self.io.now());
    }

    /// Closed entries leave the slabs only now, so that no key is used again inside one batch of events.
    fn remove_closed(&mut self) {
        self.frontend.remove_closed();
        self.backend.remove_closed();
        for worker in self.supervisor.remove_closed() {
            self.backend.remove(worker);
        }
        self.admin.remove_closed(&mut self.io);
    }
}
