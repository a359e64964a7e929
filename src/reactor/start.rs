//! The start: everything that can refuse, and then the server at rest.

use super::admin::{Admin, socket};
use super::backend::Backend;
use super::descriptors;
use super::frontend::Frontend;
use super::host::handed::{self, Handed};
use super::host::notifier::Notifier;
use super::host::{Host, Predecessor};
use super::inherited::{Inherited, Service};
use super::io::listen::Listener;
use super::io::socket_access::SocketAccess;
use super::io::token::Target;
use super::io::{Io, clock};
use super::listening::listen_on;
use super::observer::{Logs, Observer};
use super::socket_dir::{self, INSTANCE_DIGITS, NameLock};
use super::source::{Source, StartError};
use super::stage::Stage;
use super::supervisor::{Launcher, Supervisor, signals};
use super::tick::{Balancer, Reactor};
use crate::app::Runtime;
use crate::config::{Config, env_file};
use crate::fleet::Beginning;
use crate::handover::{Incoming, Message};
use crate::names::Names;
use crate::observe::access::AccessLog;
#[cfg(not(any(test, fuzzing)))]
use crate::process;
use crate::process::DescriptorLimit;
use crate::quarantine::Quarantine;
#[cfg(any(test, fuzzing))]
use crate::reactor::simulation::process;
use crate::runtime::{self, Harnesses};
use mio::unix::SourceFd;
use mio::{Interest, Poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

/// What a server holds open from its start on.
pub(super) struct Opened {
    pub poll: Poll,
    /// Control sockets.
    pub control: Vec<Listener>,
    pub listeners: Vec<Listener>,
    pub metrics_listeners: Vec<Listener>,
    pub page_listeners: Vec<Listener>,
    pub logs: Logs,
    pub host: Host,
}

/// One run of a server, and what is its own alone.
pub(super) struct Run {
    /// Names the run.
    pub instance: String,
    pub harnesses: Harnesses,
    pub name: Option<NameLock>,
    /// For what the fleet draws.
    pub seed: u64,
    pub beginning: Beginning,
}

/// What a server has that it did not make.
pub(super) struct Inheritance {
    sockets: Inherited,
    /// From the server before this one.
    handed: Option<Handed>,
}

/// A server that listens, and whose workers are being started.
///
/// # Errors
/// [`StartError`] if it could not start; then nothing runs and nothing is left behind.
pub(crate) fn start(config: Config, embedded: Option<PathBuf>) -> Result<Reactor, StartError> {
    // Before anything is opened.
    let inheritance = match handed::line() {
        None => Inheritance { sockets: Inherited::take(&config)?, handed: None },
        Some(line) => {
            let mut handed = Handed::receive(line).map_err(StartError::Trouble)?;
            let sockets = Inherited::handed_over(std::mem::take(&mut handed.sockets));
            Inheritance { sockets, handed: Some(handed) }
        }
    };
    let limit = process::raise_descriptor_limit();
    let line = inheritance.handed.as_ref().and_then(|handed| handed.line.try_clone().ok());
    let started = Reactor::open(config, embedded, inheritance, limit);
    let mut reactor = started.inspect_err(|error| {
        if let Some(line) = line {
            // If that fails, the server before this one sees its end.
            let _ = line.say(&Message::Failed { reason: error.to_string() }, None);
        }
    })?;
    crate::process::ask_for_shorter_turns();
    reactor.begin();
    Ok(reactor)
}

impl Reactor {
    fn open(
        mut config: Config,
        embedded: Option<PathBuf>,
        inheritance: Inheritance,
        limit: DescriptorLimit,
    ) -> Result<Self, StartError> {
        let trouble = |what: &str, error: io::Error| StartError::Trouble(format!("{what}: {error}"));
        let source = Source::of(&config, embedded)?;
        let app = source.find().map_err(StartError::Usage)?;
        descriptors::check(&config, limit)?;
        let access = SocketAccess::find(&config).map_err(StartError::Usage)?;
        let limit = match app.runtime {
            // They hold no streams beside their requests.
            Runtime::Command | Runtime::Cgi => limit,
            Runtime::Executable | Runtime::JavaScript | Runtime::Python | Runtime::Ruby => {
                fit_streams(&mut config, limit)
            }
        };
        let names = Names::new(&config.place, &app.name);
        socket_dir::prepare(&names.dir)?;
        socket_dir::check_lengths(&names)?;
        let Inheritance { sockets: mut inherited, handed } = inheritance;
        let instance = format!("{:0INSTANCE_DIGITS$x}", clock::seed() & u64::from(u32::MAX));
        if let Some(handed) = &handed {
            // Before there is any file of this run's, so that the server before it can remove what it leaves.
            let named = handed.line.say(&Message::Named { instance: instance.clone() }, None);
            named.map_err(|error| trouble("the server before this one", error))?;
        }
        let mut harnesses = Harnesses::at(names.harness_dir(&instance), config.harnesses);
        let identity = runtime::Identity::probe(&names.prefix, harnesses.dir());
        let variables = config.env_file.as_deref().map_or(Ok(Vec::new()), env_file::read);
        let variables = variables.map_err(StartError::Usage)?;
        runtime::launch(&app, &config, &identity, &variables).map_err(StartError::Usage)?;

        let poll = Poll::new().map_err(|error| trouble("epoll", error))?;
        let signals = signals::open().map_err(|error| trouble("signals", error.into()))?;
        let signal_fd = signals.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&signal_fd), Target::Signals.token(), Interest::READABLE)
            .map_err(|error| trouble("signals", error))?;

        // Nothing of a server that has the name already is touched before the name is ours.
        let (name, predecessor, workers) = match handed {
            None => (socket::take_name(&names, &source)?, None, Vec::new()),
            Some(Handed { line, lock, workers, begin, .. }) => {
                let name = NameLock::handed_over(&names, lock);
                let name = name.map_err(|error| trouble("the name's lock", error.into()))?;
                let wanted =
                    begin.serving.clamp(1, begin.size.clamp(config.workers.min, config.workers.max).max(1));
                let wanted = if config.workers.max == 0 { 0 } else { wanted };
                let machine = Incoming::new(wanted);
                (name, Some(Predecessor { line, machine, begin, clients: 0, workers: 0 }), workers)
            }
        };
        let mut shared_control = None;
        if predecessor.is_none() {
            shared_control = Some(socket::bind(&names, &source, poll.registry())?);
            socket_dir::sweep(&names);
        }
        let mut control = vec![socket::bind_own(&names, &instance, poll.registry())?];
        control.extend(shared_control);
        let listeners = listen_on(Service::Http, &config, access, &mut inherited)?;
        let metrics_listeners = listen_on(Service::Metrics, &config, access, &mut inherited)?;
        let page_listeners = listen_on(Service::Page, &config, access, &mut inherited)?;
        if let Some(predecessor) = &predecessor {
            let fd = predecessor.line.as_fd().as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&fd), Target::Predecessor.token(), Interest::READABLE)
                .map_err(|error| trouble("the server before this one", error))?;
        }
        let access_log = config.access_log.then(|| AccessLog::new(config.json_logging, &names.app));
        let logs = Logs::open(access_log, config.json_logging, config.log_file.as_deref(), poll.registry())
            .map_err(StartError::Trouble)?;
        harnesses.provide(app.runtime).map_err(|error| trouble("the harness folder", error))?;
        let begin = predecessor.as_ref().map(|predecessor| predecessor.begin).unwrap_or_default();
        let beginning = Beginning { workers: begin.size, generation: begin.generation };
        let run = Run { instance, harnesses, name: Some(name), seed: clock::seed(), beginning };
        let environment = |name: &str| std::env::var(name).ok();
        let notifier = Notifier::from_environment(&environment, predecessor.is_some(), Instant::now());
        let mut host = Host::new(signals, notifier, predecessor);
        if !host.is_waiting() {
            host.write_pid_file(config.pid_file.as_deref()).map_err(StartError::Trouble)?;
        }
        let mut reactor = Reactor::assemble(
            config,
            source,
            names,
            limit,
            run,
            Opened { poll, control, listeners, metrics_listeners, page_listeners, logs, host },
        );
        if !reactor.host.is_waiting() {
            let registry = reactor.io.registry();
            reactor
                .frontend
                .begin_listening(registry)
                .map_err(|error| trouble("the listening socket", error))?;
            reactor
                .admin
                .begin_listening(registry)
                .map_err(|error| trouble("the operators' sockets", error))?;
        }
        for (join, process) in workers {
            let worker_id = usize::try_from(join.sender.worker_id).unwrap_or_default();
            reactor.add_external(worker_id, &join, process.unwrap_or_default());
        }
        Ok(reactor)
    }

    /// A server at rest around what was opened for it.
    pub(super) fn assemble(
        config: Config,
        source: Source,
        names: Names,
        limit: DescriptorLimit,
        run: Run,
        opened: Opened,
    ) -> Self {
        let config = Rc::new(config);
        let io = Io::new(opened.poll, limit, config.spool_dir.clone(), config.max_spool_bytes);
        let now = io.now();
        let kept_descriptors = descriptors::kept(&config, config.workers.max, limit.raised());
        let Run { instance, harnesses, name, seed, beginning } = run;
        // Of several requests in one worker none can be told to be the cause of its end.
        let deaths = if config.concurrency > 1 { 0 } else { config.quarantine };
        let env_file = config.env_file.clone();
        let launcher = Launcher::new(source, env_file, names, harnesses, instance, limit, name);
        Reactor {
            io,
            observer: Observer::new(opened.logs, !config.page.is_empty(), now),
            frontend: Frontend::new(opened.listeners, kept_descriptors, config.clone()),
            backend: Backend::new(config.clone()),
            balancer: Balancer::new(config.max_queue, config.queue_timeout, config.queue_rule),
            quarantine: Quarantine::new(deaths),
            admin: Admin::new(
                opened.control,
                opened.metrics_listeners,
                opened.page_listeners,
                config.clone(),
            ),
            host: opened.host,
            stage: Stage::Running,
            exit: None,
            supervisor: Supervisor::new(launcher, config.clone(), seed, beginning, now),
            config,
        }
    }

    /// The workers are started. A server that follows another one says nothing of itself yet.
    fn begin(&mut self) {
        if !self.host.is_waiting() {
            // Said before the workers are started: from here on requests are taken, and wait.
            self.say_addresses();
        }
        self.supervisor.start_watch(&self.io);
        self.perform_fleet_actions();
        self.note_readiness();
        self.observer.flush(self.io.now());
    }

    /// The one line at the start.
    pub(super) fn say_addresses(&mut self) {
        let listeners = self.frontend.listeners().iter();
        let addresses: Vec<String> =
            listeners.map(|listener| format!("http={}", listener.address())).collect();
        let metrics = self.admin.metrics_listeners().iter();
        let metrics = metrics.map(|listener| format!("metrics={}", listener.address()));
        let mut page: Vec<&Listener> = self.admin.page_listeners().iter().collect();
        // Of localhost one of its two addresses will do for a person.
        page.dedup_by(|other, first| first.port().is_some() && first.port() == other.port());
        let page = page.into_iter().map(|listener| match listener.port() {
            Some(_) => format!("page=http://{}/", listener.address()),
            None => format!("page={}", listener.address()),
        });
        let addresses: Vec<String> = addresses.into_iter().chain(metrics).chain(page).collect();
        let (app, workers) = (&self.supervisor.launcher().names().app, self.config.workers.min);
        let line = format!("rip-server: app={app} {} workers={workers}\n", addresses.join(" "));
        self.observer.announce(line.as_bytes());
        self.observer.flush(self.io.now());
    }
}

/// The limit of descriptors for workers. Streams that do not fit lower their bound.
pub(super) fn fit_streams(config: &mut Config, limit: DescriptorLimit) -> DescriptorLimit {
    let (limit, fitting) = descriptors::for_streams(config.max_streams, config.concurrency, limit);
    if fitting < config.max_streams {
        log::warn!(
            "--max-streams={} is lowered to {fitting}: a worker may have {} descriptors; a higher hard limit (ulimit -Hn, LimitNOFILE=) would do",
            config.max_streams,
            limit.hard
        );
        config.max_streams = fitting;
    }
    limit
}
