//! Starting processes: what they run, under which names, and what became of it.

use super::ports::Ports;
use super::releases::{Found, Releases};
use super::templates::Templates;
use super::worker::{Origin, Worker};
use super::{Supervisor, process};
use crate::app::Runtime;
use crate::config::Config;
use crate::control::Sender;
use crate::fleet::{Release, RetireReason, TemplateId};
use crate::keys::WorkerKey;
use crate::names::Names;
use crate::paths::shown;
use crate::process::{Answer, Begun, DescriptorLimit, Launch};
use crate::reactor::endpoint::Endpoint;
use crate::reactor::io::Io;
use crate::reactor::io::clock;
use crate::reactor::io::token::Target;
use crate::reactor::observer::Observer;
use crate::reactor::socket_dir::{self, NameLock};
use crate::reactor::source::Source;
use crate::runtime::{self, Harnesses, Identity};
use mio::Interest;
use mio::unix::SourceFd;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a start needs.
pub(crate) struct Launcher {
    source: Source,
    /// Of variables for workers.
    env_file: Option<PathBuf>,
    pub(super) releases: Releases,
    pub(super) names: Names,
    ports: Ports,
    pub(super) harnesses: Harnesses,
    /// Names this run of the server; its workers say it when they join.
    pub(super) instance: String,
    spawner: process::Spawner,
    /// Processes that were asked for, and are not there yet: one for each slot at most.
    starts: Vec<Start>,
    limit: DescriptorLimit,
    pub(super) templates: Templates,
    /// The last to go: until then the name is this server's. None where the reactor is simulated.
    name: Option<NameLock>,
}

/// A process that was asked for.
#[derive(Debug)]
pub(super) struct Start {
    pub slot: usize,
    version: u64,
    why: Option<RetireReason>,
    endpoint: Endpoint,
    is_command: bool,
    /// For complaints.
    program: String,
    /// A template makes it, not the spawner.
    is_fork: bool,
    asked: Instant,
    pub begun: Begun,
}

impl Launcher {
    pub(crate) fn new(
        source: Source,
        env_file: Option<PathBuf>,
        names: Names,
        harnesses: Harnesses,
        instance: String,
        limit: DescriptorLimit,
        name: Option<NameLock>,
    ) -> Self {
        Launcher {
            releases: Releases::new(Found::look(&source, env_file.as_deref())),
            source,
            env_file,
            names,
            ports: Ports::new(clock::seed()),
            harnesses,
            instance,
            spawner: process::Spawner::new(limit),
            starts: Vec::new(),
            limit,
            name,
            templates: Templates::default(),
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    pub(crate) fn limit(&self) -> DescriptorLimit {
        self.limit
    }

    /// The name's lock, for the next server.
    pub(crate) fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.name.as_ref().and_then(NameLock::descriptor)
    }

    /// The name is the next server's.
    pub(crate) fn hand_over_name(&mut self) {
        if let Some(name) = &mut self.name {
            name.hand_over();
        }
    }

    /// The name was the server's before this one.
    pub(crate) fn take_over_name(&mut self) {
        if let Some(name) = &mut self.name {
            name.take_over();
        }
    }

    pub(super) fn releases(&self) -> &Releases {
        &self.releases
    }

    /// Processes that were asked for, and are not there yet.
    pub(crate) fn starts(&self) -> usize {
        self.starts.len() + self.templates.starts()
    }

    /// Templates that are there, or are not gone.
    pub(crate) fn templates(&self) -> usize {
        self.templates.there.len()
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// A roll begins.
    pub(super) fn begin_release(&mut self) {
        self.releases.begin(Found::look(&self.source, self.env_file.as_deref()));
    }

    /// All slots have what the roll brought.
    pub(super) fn adopt_release(&mut self) {
        self.releases.adopt();
    }

    /// The roll has ended, adopted or not.
    pub(super) fn end_release(&mut self) {
        self.releases.end();
    }

    /// A worker that another run of the server has started has nothing to say here. The protocol's first version names
    /// no instance.
    pub(super) fn check_instance(&self, sender: &Sender) -> Result<(), String> {
        match &sender.instance {
            Some(instance) if *instance != self.instance => Err(format!(
                "worker {} belongs to the instance '{}', and this one is '{}'",
                sender.worker_id,
                instance.escape_default(),
                self.instance
            )),
            _ => Ok(()),
        }
    }

    /// The folder is looked at first each time: of one that a cleaner has removed another user may have made his own.
    pub(super) fn provide_harnesses(&mut self, runtime: Runtime) -> Result<(), String> {
        if self.harnesses.are_for(runtime) {
            socket_dir::prepare(&self.names.dir).map_err(|error| error.to_string())?;
            self.harnesses.provide(runtime).map_err(|error| format!("the harness folder: {error}"))?;
        }
        Ok(())
    }

    fn begin(
        &mut self,
        slot: usize,
        version: u64,
        why: Option<RetireReason>,
        (release, template): (Release, Option<TemplateId>),
        config: &Config,
        io: &Io,
    ) -> Result<(), String> {
        let Found { app, variables, .. } = self.releases.found(release)?;
        self.provide_harnesses(app.runtime)?;
        let socket = self.names.worker_socket(&self.instance, slot, version);
        // Nobody listens there: this generation has never been.
        let _ = std::fs::remove_file(&socket);
        let control_socket = self.names.own_control(&self.instance);
        let endpoint = if config.command_takes_port() {
            Endpoint::Loopback { port: self.ports.take()?, is_ipv6: false }
        } else {
            Endpoint::Unix(socket.clone())
        };
        let identity = Identity {
            slot,
            version,
            port: endpoint.address().map(|address| address.port()),
            socket: &socket,
            ..self.identity(&control_socket)
        };
        if let Some(id) = template {
            let environment = runtime::fork_environment(&identity);
            let template = self.templates.get_mut(id).ok_or("its template has ended")?;
            let begun = template.line.fork(&environment).map_err(|error| error.to_string())?;
            let program = template.program.clone();
            let (is_command, is_fork) = (false, true);
            let asked = io.now();
            template.forks.push(Start {
                slot,
                version,
                why,
                endpoint,
                is_command,
                program,
                is_fork,
                asked,
                begun,
            });
            return Ok(());
        }
        let launch = runtime::launch(&app, config, &identity, &variables)?;
        let program = shown(&launch.program).to_string();
        let begun = self.begin_process(&launch, None, io).map_err(|error| format!("'{program}': {error}"))?;
        let (is_command, is_fork) = (app.runtime == Runtime::Command, false);
        let asked = io.now();
        self.starts.push(Start { slot, version, why, endpoint, is_command, program, is_fork, asked, begun });
        Ok(())
    }

    /// What all processes are told.
    pub(super) fn identity<'a>(&'a self, control_socket: &'a Path) -> Identity<'a> {
        Identity {
            control_socket,
            instance: &self.instance,
            ..Identity::probe(&self.names.prefix, self.harnesses.dir())
        }
    }

    /// Has a process started by the spawner.
    pub(super) fn begin_process(
        &mut self,
        launch: &Launch,
        input: Option<OwnedFd>,
        io: &Io,
    ) -> io::Result<Begun> {
        if let Some(fd) = self.spawner.ensure()? {
            let token = Target::Spawner.token();
            io.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        self.spawner.start(launch, input)
    }

    /// Not known any more: it was answered twice.
    fn take_start(&mut self, id: u64) -> Option<Start> {
        let at = self.starts.iter().position(|start| start.begun.id == id)?;
        Some(self.starts.swap_remove(at))
    }
}

impl Supervisor {
    /// Asks for a process; the answer comes with [`Supervisor::next_started`].
    pub(crate) fn spawn(
        &mut self,
        slot: usize,
        version: u64,
        why: Option<RetireReason>,
        from: (Release, Option<TemplateId>),
        io: &Io,
        observer: &mut Observer,
    ) {
        if let Err(complaint) = self.launcher.begin(slot, version, why, from, &self.config, io) {
            self.start_failed(slot, complaint, io, observer);
        }
    }

    pub(super) fn start_failed(&mut self, slot: usize, complaint: String, io: &Io, observer: &mut Observer) {
        log::error!("worker {slot}: cannot be started: {complaint}");
        observer.start_failed();
        self.renewal.note_failure(format!("worker {slot}: cannot be started: {complaint}"));
        self.history.last_spawn_error = Some(complaint);
        self.fleet.spawn_failed(slot, io.now());
    }

    /// What became of the starts: the next worker that is there.
    pub(crate) fn next_started(&mut self, io: &Io, observer: &mut Observer) -> Option<WorkerKey> {
        while let Some(answer) = self.launcher.spawner.answer() {
            match answer {
                Answer::Started { id, pid } => {
                    if let Some(start) = self.launcher.take_start(id) {
                        return Some(self.worker_started(start, pid, io, observer));
                    }
                    self.template_started(id, pid, io);
                }
                Answer::Failed { id, error } => {
                    if let Some(start) = self.launcher.take_start(id) {
                        let complaint = format!("'{}': {}", start.program, error.desc());
                        self.start_failed(start.slot, complaint, io, observer);
                    } else {
                        self.template_not_started(id, error.desc(), io, observer);
                    }
                }
                Answer::NotRun { id, error } => {
                    let is_it = |entry: &Worker| entry.process.start_id == Some(id);
                    if let Some((_, entry)) = self.workers.iter_mut().find(|(_, entry)| is_it(entry)) {
                        entry.process.exec_failure = Some(error.desc().to_owned());
                    }
                }
                Answer::SpawnerDied => {
                    for start in std::mem::take(&mut self.launcher.starts) {
                        let complaint = "the process that starts workers has died".to_owned();
                        self.start_failed(start.slot, complaint, io, observer);
                    }
                    self.launcher.templates.doomed.clear();
                    for id in self.launcher.templates.unstarted() {
                        self.template_not_started(
                            id,
                            "the process that starts workers has died",
                            io,
                            observer,
                        );
                    }
                }
            }
        }
        self.next_forked(io, observer)
    }

    pub(super) fn worker_started(
        &mut self,
        start: Start,
        pid: Pid,
        io: &Io,
        observer: &mut Observer,
    ) -> WorkerKey {
        let Start { slot, version, why, endpoint, is_command, program, is_fork, asked, begun } = start;
        let mut entry = Worker::new(Origin::Slot { slot, version }, pid, endpoint, is_command, io.now());
        // A template numbers its forks itself.
        entry.process.start_id = Some(begun.id).filter(|_| !is_fork);
        entry.process.program = program;
        (entry.process.is_fork, entry.process.asked) = (is_fork, asked);
        let label = entry.label();
        let worker = WorkerKey(self.workers.insert(entry));
        self.add_outputs(worker, [begun.stdout, begun.stderr], io);
        let how = if is_fork { "forked" } else { "started" };
        let after = why.map(|why| format!(", successor after {}", why.code())).unwrap_or_default();
        log::info!("{label}: {how}, generation {version}{after}");
        observer.worker_started();
        self.fleet.spawned(slot, worker, io.now());
        // Its end may have been told before its start was.
        self.has_ended_children = true;
        worker
    }
}
