//! The world around one reactor: scripted clients and workers, and time. Actions happen here, and the ticks of the
//! loop; [`super::shadow`] watches.

use super::actions::Random;
use super::edits::Edit;
use super::notes::Notes;
use super::operators::Operator;
use super::oracle::Oracle;
use super::peers::{Client, Worker};
use super::wire::{self, Door, Shared, UnixListener};
use super::{disk, process, templates};
use crate::config::{self, Command, Config};
use crate::fleet::Beginning;
use crate::names::Names;
use crate::reactor::host::Host;
use crate::reactor::host::notifier::Notifier;
use crate::reactor::io::listen::{Holders, Listener};
use crate::reactor::io::token::{Readiness, Target};
use crate::reactor::observer::Logs;
use crate::reactor::source::Source;
use crate::reactor::start::{Opened, Run};
use crate::reactor::tick::Reactor;
use mio::Poll;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A tick that leaves more to do is followed by another; so many in a row are a loop without an end.
const MAX_TICKS_AT_ONCE: usize = 300;
/// A command that does not answer is asked twenty times a second.
const MAX_DEADLINES_AT_ONCE: usize = 3000;
/// How often the watchdog wants to hear of the loop.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(3);

pub(crate) struct World {
    pub reactor: Reactor,
    pub now: Instant,
    pub clients: Vec<Client>,
    pub workers: Vec<Worker>,
    pub controls: Vec<Shared>,
    pub operators: Vec<Operator>,
    pub oracle: Oracle,
    pub is_stop_told: bool,
    /// Where clients connect.
    pub door: Rc<RefCell<Door>>,
    pub has_knocked: bool,
    /// What systemd has been told.
    pub notes: Notes,
    /// How many connections had been accepted when the stop began.
    pub accepted_at_stop: Option<usize>,
    /// What clients do is told in a later tick.
    pub hears_clients_later: bool,
    /// What workers do is told in a later tick.
    pub hears_workers_later: bool,
    /// The last one.
    pub edit: Option<Edit>,
    /// Draws what new workers are like.
    pub manners: Random,
    /// Some starts have failed.
    pub has_failing_spawns: bool,
    /// In so many ticks the server hears of children that have ended.
    pub reaps_in: usize,
    /// How often it came to rest.
    pub rests: usize,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        wire::forget_all();
        disk::begin();
        let mut random = Random::new(seed ^ 0xffff);
        process::table(|table| {
            *table = process::Table::default();
            table.tells_little = random.chance(8);
        });
        let config = random_config(&mut random);
        World::of(config, seed, random)
    }

    /// One with the settings that these words name, for a single scene.
    #[cfg(test)]
    pub(crate) fn with(words: &str, seed: u64) -> Self {
        wire::forget_all();
        disk::begin();
        process::table(|table| *table = process::Table::default());
        let config = Rc::into_inner(super::rooms::config(words)).expect("nobody else has it");
        World::of(config, seed, Random::new(seed))
    }

    /// One with these settings.
    fn of(config: Config, seed: u64, mut random: Random) -> Self {
        let names = Names::new(&config.place, "app");
        let is_shared = Random::new(seed ^ 0xd0_0d).chance(4);
        let door = Rc::new(RefCell::new(Door { is_shared, ..Door::default() }));
        let holders = if is_shared { Holders::Shared } else { Holders::Own };
        let signals = SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_NONBLOCK).expect("a signalfd");
        let mut listener = Listener::scripted(UnixListener::at(&door), holders);
        listener.expect_proxy_header(config.proxied.contains(&true));
        let opened = Opened {
            poll: Poll::new().expect("epoll"),
            control: vec![Listener::scripted(UnixListener::default(), Holders::Own)],
            listeners: vec![listener],
            metrics_listeners: Vec::new(),
            page_listeners: Vec::new(),
            logs: Logs::kept(),
            host: Host::new(signals, Notifier::kept(WATCHDOG, Instant::now()), None),
        };
        let harness = templates::app().join(format!("harness-{seed}"));
        let harnesses = crate::runtime::Harnesses::at(harness, &[]);
        let run = Run {
            instance: "simulated".into(),
            harnesses,
            name: None,
            seed,
            beginning: Beginning::default(),
        };
        let is_command = config.command.is_some();
        let forks = !is_command && random.chance(3);
        let source = match is_command {
            true => Source::Path { path: "/".into(), wanted: crate::app::Wanted::Command },
            false if forks => {
                Source::Path { path: templates::app().into(), wanted: crate::app::Wanted::Entry }
            }
            false => Source::Embedded { program: "/nonexistent/app".into(), dir: "/".into() },
        };
        let mut reactor =
            Reactor::assemble(config, source, names, process::raise_descriptor_limit(), run, opened);
        let now = reactor.io.now();
        reactor.perform_fleet_actions();
        let mut world = World {
            reactor,
            now,
            clients: Vec::new(),
            workers: Vec::new(),
            controls: Vec::new(),
            operators: Vec::new(),
            oracle: Oracle::default(),
            is_stop_told: false,
            door,
            has_knocked: false,
            notes: Notes::default(),
            accepted_at_stop: None,
            hears_clients_later: false,
            hears_workers_later: false,
            edit: None,
            manners: random,
            has_failing_spawns: false,
            reaps_in: 0,
            rests: 0,
        };
        world.meet_new_workers();
        // Most histories begin with an app that is there.
        if !world.manners.chance(8) {
            world.templates_are_kind();
            world.remaining();
            world.templates_are_kind();
            world.remaining();
            for worker in 0..world.workers.len() {
                world.join(worker);
            }
            world.remaining();
        }
        world
    }

    /// One tick of the loop, with all that is to be told.
    pub(crate) fn tick(&mut self, rotation: usize) {
        if self.reactor.exit.is_some() {
            return;
        }
        self.note_departures();
        self.note_activity();
        let mut events: Vec<(u64, Target, Readiness)> = Vec::new();
        let heard = self.workers.iter().filter(|_| !self.hears_workers_later);
        let lines = heard.flat_map(|worker| &worker.lines).map(|line| &line.wire);
        let heard = self.clients.iter().filter(|_| !self.hears_clients_later);
        let clients = heard.map(|client| &client.wire);
        let operators = self.operators.iter().map(|operator| &operator.wire);
        for wire in clients.chain(lines).chain(&self.controls).chain(operators) {
            if let Some((edge, token, readiness)) = wire.borrow_mut().tell()
                && let Some(target) = Target::of(token)
            {
                events.push((edge, target, readiness));
            }
        }
        events.sort_unstable_by_key(|(edge, _, _)| *edge);
        if self.has_answers() {
            process::table(|table| table.has_said = false);
            events.push((0, Target::Spawner, Readiness { is_readable: true, ..Readiness::default() }));
        }
        if std::mem::take(&mut self.has_knocked) {
            events.push((0, Target::Listener(0), Readiness { is_readable: true, ..Readiness::default() }));
        }
        // Told in the next tick: meanwhile they wait in the backlog, unheard.
        self.has_knocked |= self.door.borrow_mut().complete_handshakes(self.now);
        if !events.is_empty() {
            let middle = rotation % events.len();
            events.rotate_left(middle);
        }
        if self.reaps_in > 0 {
            self.reaps_in -= 1;
            if self.reaps_in == 0 {
                self.reactor.supervisor.note_ended_children();
            }
        }
        let before = self.keys();
        self.reactor.io.move_clock_to(self.now);
        let events: Vec<_> = events.iter().map(|&(_, target, readiness)| (target, readiness)).collect();
        self.reactor.tick(&events);
        self.meet_new_workers();
        self.observe(&before);
        self.take_signals();
        self.controls.retain(|wire| !wire.borrow().is_server_gone || !wire.borrow().peer_has_ended);
    }

    /// For the story.
    pub(crate) fn clock(&self) -> String {
        format!("{} ms", (self.now - self.reactor.io.started()).as_millis())
    }

    /// What became of starts is to be told. Answers that nobody waits for are left.
    fn has_answers(&self) -> bool {
        let has_starts = self.reactor.supervisor.launcher().starts() > 0;
        process::table(|table| table.has_said || has_starts && !table.answers.is_empty())
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        let lines = self.workers.iter().flat_map(|worker| &worker.lines).map(|line| &line.wire);
        let clients = self.clients.iter().map(|client| &client.wire);
        let operators = self.operators.iter().map(|operator| &operator.wire);
        let mut all = clients.chain(lines).chain(&self.controls).chain(operators);
        let has_edge = all.any(|wire| wire.borrow().has_edge());
        let has_ready = self.reactor.io.has_ready() || self.reactor.admin.has_ready();
        let has_more = has_ready || self.reactor.frontend.has_work();
        !has_edge && !has_more && !self.has_answers() && !self.has_knocked && self.reaps_in == 0
    }

    /// Turns until nothing is left to do at this moment.
    pub(crate) fn remaining(&mut self) {
        for _ in 0..MAX_TICKS_AT_ONCE {
            if self.reactor.exit.is_some() {
                return;
            }
            if self.is_at_rest() {
                self.rests += 1;
                return self.check_rest();
            }
            self.tick(0);
        }
        panic!("the loop does not come to rest");
    }

    /// When something happens by the clock: a deadline of the server's, else the end of a handshake. One that ends
    /// before a deadline is heard of only behind it, as if the server had been busy.
    pub(crate) fn next_moment(&self) -> Option<Instant> {
        let door = self.door.borrow();
        let handshake = door.on_the_way.iter().map(|(at, _)| *at).filter(|_| !door.is_closed).min();
        self.reactor.next_deadline().or(handshake)
    }

    /// The server sleeps, but for its deadlines.
    pub(crate) fn sleep_until(&mut self, until: Instant) {
        for _ in 0..MAX_DEADLINES_AT_ONCE {
            self.remaining();
            match self.next_moment() {
                Some(due) if due <= until && self.reactor.exit.is_none() => {
                    self.now = self.now.max(due);
                    self.tick(0);
                }
                _ => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("the server spins: what is due is never done");
    }
}

/// A server's settings: short timeouts that differ, small bounds.
fn random_config(random: &mut Random) -> Config {
    let min = 1 + random.below(3);
    let max = min + random.below(2);
    let queue = [0, 1, 2, 4, 8][random.below(5)];
    let queue_timeout = [0, 300, 300, 300][random.below(4)];
    let drain = [1700, 1700, 400][random.below(3)];
    let requests = [0, 0, 3, 8][random.below(4)];
    let age = ["", "", ",30s"][random.below(3)];
    let concurrency = [1, 1, 1, 2, 3, 4][random.below(6)];
    let streams = [1000, 1000, 2, 1, 0][random.below(5)];
    let proxy = if random.chance(3) { ",proxy --trust-proxy=loopback" } else { "" };
    // A command's workers cannot join: they are asked until they answer.
    let is_command = random.chance(6);
    let quarantine = ["1", "1", "2", "off"][random.below(4)];
    let command = if is_command { " / -- /bin/sh {socket}" } else { "" };
    let line = format!(
        "w:{min}..{max} c:{concurrency} --max-streams={streams} r:{requests}{age} http:0{proxy} page:0 --max-queue={queue} --queue-timeout-ms={queue_timeout} \
         --connect-timeout-ms=40 --read-timeout-ms=500 --client-timeout-ms=900 --idle-timeout-ms=3000 \
         --boot-timeout-ms=2000 --drain-timeout-ms={drain} --socket-dir=/nonexistent --json-logging \
         --hot-reload=none --quarantine={quarantine}{command}"
    );
    let keeps_trying = random.chance(2);
    let environment = |name: &str| match name {
        "RIP_KEEP_TRYING" if keeps_trying => Some("1".to_owned()),
        "RIP_SHRINK_AFTER_MS" => Some("700".to_owned()),
        _ => None,
    };
    match config::read(line.split_whitespace().map(Into::into).collect(), &environment, !is_command) {
        Ok(Command::Serve(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}
