//! The start: what the server is called, where its app comes from, and everything that can refuse.

use super::again::Again;
use super::buffers::Buffers;
use super::clock::{self, Clock, Ids};
use super::listen::{self, Listener};
use super::ports::Ports;
use super::spool::Room;
use super::stopping::Stage;
use super::token::Target;
use super::{
    Balancer, CONNECT_AGAIN, GRACE, LINGER, PROBE_EVERY, READ_BYTES, REST, Reactor, control, logs, sizing,
};
use crate::app::{self, App, Wanted};
use crate::config::{Config, Listen};
use crate::deadlines::Deadlines;
use crate::fleet::Fleet;
use crate::names::Names;
use crate::observe::access::AccessLog;
use crate::observe::metrics::Metrics;
use crate::process::DescriptorLimit;
use crate::runtime;
use mio::unix::SourceFd;
use mio::{Interest, Poll, Registry};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the app comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A path, absolute and as typed; looked at anew at each spawn.
    Path { path: PathBuf, wanted: Wanted },
    /// This program is the app.
    Own { program: PathBuf },
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
            Source::Own { program } => program,
        }
    }

    /// # Errors
    /// Why there is no app, for people.
    pub(super) fn find(&self) -> Result<App, String> {
        match self {
            Source::Path { path, wanted } => App::find(path, wanted).map_err(|no_app| no_app.to_string()),
            Source::Own { program } => Ok(App {
                name: app::name(program),
                dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
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

impl Reactor {
    pub(super) fn start(
        config: Config,
        carried: Option<PathBuf>,
        limit: DescriptorLimit,
    ) -> Result<Self, StartError> {
        let trouble = |what: &str, error: io::Error| StartError::Trouble(format!("{what}: {error}"));
        let source = match (carried, &config.place.app) {
            (Some(program), _) => Source::Own { program },
            (None, Some(path)) => {
                let wanted = match (&config.command, &config.target) {
                    (Some(_), _) => Wanted::Command,
                    (None, Some(target)) => Wanted::Target(target.clone()),
                    (None, None) => Wanted::Entry,
                };
                Source::Path { path: app::absolute(path), wanted }
            }
            (None, None) => return Err(StartError::Usage("no app given".into())),
        };
        let app = source.find().map_err(StartError::Usage)?;
        let names = Names::new(&config.place, &app.name);
        prepare_dir(&names.dir)?;
        check_lengths(&names)?;
        if runtime::needs_harness(app.runtime) {
            runtime::write_harnesses(&names.harness_dir)
                .map_err(|error| trouble("the harness folder", error))?;
        }
        let identity = runtime::Identity::probe(&names.prefix, &names.harness_dir);
        runtime::launch(&app, &config, &identity).map_err(StartError::Usage)?;

        let poll = Poll::new().map_err(|error| trouble("epoll", error))?;
        let mut signal_set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
            signal_set.add(signal);
        }
        // A bound on file sizes is an error of the write that meets it, and no end.
        let mut blocked = signal_set;
        blocked.add(Signal::SIGXFSZ);
        let signals = blocked
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&signal_set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC))
            .map_err(|error| trouble("signals", error.into()))?;
        let signal_fd = signals.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&signal_fd), Target::Signals.token(), Interest::READABLE)
            .map_err(|error| trouble("signals", error))?;

        let control = control::ControlSocket::bind(&names, &source, poll.registry())?;
        sweep(&names);
        let listeners = listen_on("http", &config.listen, poll.registry(), Target::Listener)?;
        let metrics_listeners =
            listen_on("metrics", &config.metrics, poll.registry(), Target::MetricsListener)?;
        let access = config.access_log.then(|| AccessLog::new(config.json_logging, &names.app));
        let logs = logs::Logs::open(access, config.json_logging, poll.registry())
            .map_err(|error| trouble("standard output", error))?;
        Ok(Reactor::assemble(
            config,
            source,
            names,
            limit,
            Opened { poll, signals, control, listeners, metrics_listeners, logs },
        ))
    }

    /// A server at rest around what was opened for it.
    pub(super) fn assemble(
        config: Config,
        source: Source,
        names: Names,
        limit: DescriptorLimit,
        opened: Opened,
    ) -> Self {
        let clock = Clock::new();
        let now = clock.now;
        Reactor {
            poll: opened.poll,
            client_deadlines: Deadlines::new(&[
                config.idle_timeout,
                config.idle_timeout,
                config.client_timeout,
                LINGER,
                GRACE,
            ]),
            worker_deadlines: Deadlines::new(&[
                config.read_timeout,
                config.idle_timeout,
                config.drain_timeout,
                CONNECT_AGAIN,
                REST,
                PROBE_EVERY,
            ]),
            control_deadlines: Deadlines::new(&[
                config.idle_timeout,
                config.idle_timeout,
                config.client_timeout,
                LINGER,
            ]),
            balancer: Balancer::new(config.max_queue, config.queue_timeout),
            fleet: Fleet::new(config.plan(clock::seed()), now),
            stage: Stage::Running,
            depth: sizing::Depth::new(now),
            metrics: Metrics::default(),
            longest_wait: Duration::ZERO,
            watch: None,
            room: Room::new(config.spool_dir.clone()),
            config,
            source,
            names,
            limit,
            signals: opened.signals,
            started: now,
            instance: format!("{:016x}", clock::seed()),
            clock,
            listeners: opened.listeners,
            metrics_listeners: opened.metrics_listeners,
            accept_again: None,
            is_short_of_descriptors: false,
            clients: Slab::new(),
            workers: Slab::new(),
            control: opened.control,
            pipes: Slab::new(),
            dead_clients: Vec::new(),
            dead_workers: Vec::new(),
            again: Again::default(),
            timed_out: VecDeque::new(),
            scratch: vec![0; READ_BYTES],
            prefix: Vec::new(),
            buffers: Buffers::default(),
            ports: Ports::new(clock::seed()),
            ids: Ids::new(),
            logs: opened.logs,
            has_ended_children: false,
            exit: None,
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

/// The folder for the sockets: made if missing, ours alone, and no symlink that somebody planted.
fn prepare_dir(dir: &Path) -> Result<(), StartError> {
    let refuse = |what: String| {
        StartError::Trouble(format!(
            "the socket folder '{}' {what}; --socket-dir names another",
            dir.display()
        ))
    };
    if std::fs::symlink_metadata(dir).is_err() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| refuse(format!("cannot be made: {error}")))?;
    }
    let metadata =
        std::fs::symlink_metadata(dir).map_err(|error| refuse(format!("cannot be looked at: {error}")))?;
    if !metadata.is_dir() {
        return Err(refuse("is not a folder".into()));
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refuse(format!("belongs to user {}", metadata.uid())));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refuse(format!(
            "is open to others (mode {:o}, not 700)",
            metadata.permissions().mode() & 0o777
        )));
    }
    Ok(())
}

/// Removes the sockets that the workers of a server which was killed have left: nobody listens on them.
fn sweep(names: &Names) {
    let files = std::fs::read_dir(&names.dir).into_iter().flatten().flatten();
    for file in
        files.filter(|file| file.file_name().to_str().is_some_and(|name| names.is_worker_socket(name)))
    {
        let answer = mio::net::UnixStream::connect(file.path());
        if answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// A Unix socket's path has room for so many bytes.
const MOST_PATH_BYTES: usize = 107;

/// The longest of the server's own paths must fit.
fn check_lengths(names: &Names) -> Result<(), StartError> {
    let longest = names.worker_socket(crate::config::MAX_WORKERS, 1_000_000_000);
    let bytes = longest.as_os_str().len();
    if bytes > MOST_PATH_BYTES {
        return Err(StartError::Usage(format!(
            "'{}' is too long for a Unix socket ({bytes} bytes, {MOST_PATH_BYTES} fit); a shorter --socket-dir would do",
            longest.display()
        )));
    }
    Ok(())
}

fn cannot_listen(token: &str, at: &Listen, error: &io::Error) -> StartError {
    let port = match at {
        Listen::Tcp { port, .. } => Some(*port),
        Listen::Unix(_) => None,
    };
    let what_to_do = match (error.kind(), port) {
        _ if matches!(at, Listen::Unix(path) if path.as_os_str().len() > MOST_PATH_BYTES) => {
            format!("is too long for a Unix socket ({MOST_PATH_BYTES} bytes fit); a shorter path would do")
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
        (io::ErrorKind::AddrInUse, None) => "is in use; another path would do".to_owned(),
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
