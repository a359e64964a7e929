//! The start: what the server is called, where its app comes from, and everything that can refuse.

use super::buffers::Buffers;
use super::clock::{self, Clock, Ids};
use super::control::connections::ControlDeadline;
use super::entry::{AskDeadline, ClientDeadline, WorkerDeadline};
use super::groups::Groups;
use super::listen::{self, Listener, MAX_PATH_BYTES};
use super::ports::Ports;
use super::ready_list::ReadyList;
use super::releases::Releases;
use super::renewal::Renewal;
use super::socket_dir::{self, NameLock};
use super::spool::SpoolBudget;
use super::stopping::Stage;
use super::token::Target;
use super::{
    ASK_EVERY, Balancer, CONNECT_AGAIN, COOLDOWN, EXIT_WAIT, GRACE, LINGER, PROBE_EVERY, READ_BYTES, Reactor,
    control, descriptors, logs, signals, sizing,
};
use crate::app::{self, App, Wanted};
use crate::config::{Config, Listen};
use crate::deadlines::Deadlines;
use crate::fleet::Fleet;
use crate::names::Names;
use crate::observe::access::AccessLog;
use crate::observe::folds::Folds;
use crate::observe::metrics::Metrics;
use crate::paths;
#[cfg(not(test))]
use crate::process;
use crate::process::DescriptorLimit;
#[cfg(test)]
use crate::reactor::simulation::process;
use crate::runtime::{self, Harnesses};
use mio::unix::SourceFd;
use mio::{Interest, Poll, Registry};
use nix::sys::signalfd::SignalFd;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the app comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A path, absolute and as typed; looked at anew by each reload.
    Path { path: PathBuf, wanted: Wanted },
    /// This program is the app. It runs in the folder that it was started in, whatever a symlink on the way leads to
    /// by then.
    Embedded { program: PathBuf, dir: PathBuf },
}

/// Why the server could not start.
#[derive(Debug)]
pub enum StartError {
    /// Wrong words: exit 2.
    Usage(String),
    /// The machine's trouble: exit 1.
    Trouble(String),
}

impl Source {
    /// As typed, absolute.
    pub(super) fn path(&self) -> &Path {
        match self {
            Source::Path { path, .. } => path,
            Source::Embedded { program, .. } => program,
        }
    }

    /// # Errors
    /// Why there is no app, for people.
    pub(super) fn find(&self) -> Result<App, String> {
        match self {
            Source::Path { path, wanted } => App::find(path, wanted).map_err(|no_app| no_app.to_string()),
            Source::Embedded { program, dir } => Ok(App {
                name: app::name(program),
                dir: dir.clone(),
                entry: program.clone(),
                runtime: app::Runtime::Executable,
                target: None,
            }),
        }
    }
}

/// What a server holds open from its start on.
pub(super) struct Opened {
    pub poll: Poll,
    pub signals: SignalFd,
    pub control: control::ControlSocket,
    pub listeners: Vec<Listener>,
    pub metrics_listeners: Vec<Listener>,
    pub logs: logs::Logs,
}

/// One run of a server, and what is its own alone.
pub(super) struct Run {
    /// Names the run.
    pub instance: String,
    pub harnesses: Harnesses,
    pub name: Option<NameLock>,
}

impl Reactor {
    pub(super) fn start(
        config: Config,
        embedded: Option<PathBuf>,
        limit: DescriptorLimit,
    ) -> Result<Self, StartError> {
        let trouble = |what: &str, error: io::Error| StartError::Trouble(format!("{what}: {error}"));
        let source = match (embedded, &config.place.app) {
            (Some(program), _) => {
                let dir = paths::current_dir().unwrap_or_else(|| PathBuf::from("/"));
                Source::Embedded { program, dir }
            }
            (None, Some(path)) => {
                let wanted = match (&config.command, &config.target) {
                    (Some(_), _) => Wanted::Command,
                    (None, Some(target)) => Wanted::Target(target.clone()),
                    (None, None) => Wanted::Entry,
                };
                Source::Path { path: paths::absolute(path), wanted }
            }
            (None, None) => return Err(StartError::Usage("no app given".into())),
        };
        let app = source.find().map_err(StartError::Usage)?;
        descriptors::check(&config, limit)?;
        let names = Names::new(&config.place, &app.name);
        socket_dir::prepare(&names.dir)?;
        socket_dir::check_lengths(&names)?;
        let instance = format!("{:016x}", clock::seed());
        let mut harnesses = Harnesses::at(names.harness_dir(&instance), config.harnesses);
        let identity = runtime::Identity::probe(&names.prefix, harnesses.dir());
        runtime::launch(&app, &config, &identity).map_err(StartError::Usage)?;

        let poll = Poll::new().map_err(|error| trouble("epoll", error))?;
        let signals = signals::open().map_err(|error| trouble("signals", error.into()))?;
        let signal_fd = signals.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&signal_fd), Target::Signals.token(), Interest::READABLE)
            .map_err(|error| trouble("signals", error))?;

        // Nothing of a server that has the name already is touched before the name is ours.
        let name = control::take_name(&names, &source)?;
        let control = control::ControlSocket::bind(&names, &source, poll.registry())?;
        socket_dir::sweep(&names);
        let listeners = listen_on("http", &config.listen, poll.registry(), Target::Listener)?;
        let metrics_listeners =
            listen_on("metrics", &config.metrics, poll.registry(), Target::MetricsListener)?;
        let access = config.access_log.then(|| AccessLog::new(config.json_logging, &names.app));
        let logs = logs::Logs::open(access, config.json_logging, poll.registry())
            .map_err(|error| trouble("standard output", error))?;
        harnesses.provide(app.runtime).map_err(|error| trouble("the harness folder", error))?;
        let run = Run { instance, harnesses, name: Some(name) };
        Ok(Reactor::assemble(
            config,
            source,
            names,
            limit,
            run,
            Opened { poll, signals, control, listeners, metrics_listeners, logs },
        ))
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
        let clock = Clock::new();
        let now = clock.now;
        let kept_descriptors = descriptors::kept(&config, limit);
        Reactor {
            poll: opened.poll,
            client_deadlines: Deadlines::new(|kind| match kind {
                ClientDeadline::Idle | ClientDeadline::Take => config.idle_timeout,
                ClientDeadline::Receive => config.client_timeout,
                ClientDeadline::Linger => LINGER,
                ClientDeadline::Grace => GRACE,
            }),
            worker_deadlines: Deadlines::new(|kind| match kind {
                WorkerDeadline::Read => config.read_timeout,
                WorkerDeadline::Idle => config.idle_timeout,
                WorkerDeadline::Stall => config.drain_timeout,
                WorkerDeadline::Connect => CONNECT_AGAIN,
                WorkerDeadline::Cooldown => COOLDOWN,
                WorkerDeadline::Probe => PROBE_EVERY,
                WorkerDeadline::Exit => EXIT_WAIT,
            }),
            ask_deadlines: Deadlines::new(|kind| match kind {
                AskDeadline::Repeat => ASK_EVERY,
            }),
            control_deadlines: Deadlines::new(|kind| match kind {
                ControlDeadline::Idle | ControlDeadline::Take => config.idle_timeout,
                ControlDeadline::Receive => config.client_timeout,
                ControlDeadline::Linger => LINGER,
            }),
            balancer: Balancer::new(config.max_queue, config.queue_timeout),
            fleet: Fleet::new(config.plan(clock::seed()), now),
            stage: Stage::Running,
            depth: sizing::Depth::new(now),
            metrics: Metrics::default(),
            second_tries: Vec::new(),
            longest_wait: Duration::ZERO,
            last_answer: None,
            watch: None,
            renewal: Renewal::default(),
            spools: SpoolBudget::new(config.spool_dir.clone(), config.max_spool_bytes),
            waiting_for_files: VecDeque::new(),
            files_again: None,
            config,
            releases: Releases::new(source.find()),
            source,
            names,
            limit,
            signals: opened.signals,
            started: now,
            instance: run.instance,
            clock,
            listeners: opened.listeners,
            metrics_listeners: opened.metrics_listeners,
            accept_again: None,
            is_short_of_descriptors: false,
            kept_descriptors,
            clients: Slab::new(),
            workers: Slab::new(),
            control: opened.control,
            pipes: Slab::new(),
            dead_clients: Vec::new(),
            dead_workers: Vec::new(),
            ready_list: ReadyList::default(),
            timed_out: VecDeque::new(),
            scratch: vec![0; READ_BYTES],
            prefix: Vec::new(),
            buffers: Buffers::default(),
            ports: Ports::new(clock::seed()),
            ids: Ids::new(),
            logs: opened.logs,
            has_ended_children: false,
            spawner: process::Spawner::new(limit),
            starts: Vec::new(),
            groups: Groups::new(process::adopt_orphans()),
            folds: Folds::default(),
            exit: None,
            harnesses: run.harnesses,
            _name: run.name,
        }
    }
}

fn listen_on(
    token: &str,
    places: &[Listen],
    registry: &Registry,
    target: impl Fn(usize) -> Target,
) -> Result<Vec<Listener>, StartError> {
    let mut listeners = Vec::new();
    for (index, at) in places.iter().enumerate() {
        let mut listener = Listener::bind(at).map_err(|error| cannot_listen(token, at, &error))?;
        registry
            .register(&mut listener, target(index).token(), Interest::READABLE)
            .map_err(|error| StartError::Trouble(format!("the listening socket: {error}")))?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn cannot_listen(token: &str, at: &Listen, error: &io::Error) -> StartError {
    let port = match at {
        Listen::Tcp { port, .. } => Some(*port),
        Listen::Unix(_) => None,
    };
    let what_to_do = match (error.kind(), port) {
        _ if matches!(at, Listen::Unix(path) if path.as_os_str().len() > MAX_PATH_BYTES) => {
            format!("is too long for a Unix socket ({MAX_PATH_BYTES} bytes fit); a shorter path would do")
        }
        (io::ErrorKind::AddrInUse, Some(port)) => {
            let owner = match listen::owner_of_port(port) {
                Some(pid) => format!(" by pid {pid}"),
                None => String::new(),
            };
            let address = match at {
                Listen::Tcp { address: Some(IpAddr::V6(address)), .. } => format!("[{address}]:"),
                Listen::Tcp { address: Some(IpAddr::V4(address)), .. } => format!("{address}:"),
                _ => String::new(),
            };
            format!("is in use{owner}; {token}:{address}0 would do, and takes one that is free")
        }
        (io::ErrorKind::AddrInUse, None) => format!("{error}; another path would do"),
        (io::ErrorKind::PermissionDenied, Some(port)) if port < 1024 => {
            format!(
                "needs a right that this user lacks (below 1024); {token}:{} would do",
                8000 + port % 1000
            )
        }
        _ => format!("cannot be listened on: {error}"),
    };
    StartError::Trouble(format!("{at} {what_to_do}"))
}
