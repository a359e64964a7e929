//! The poll loop: the one place with sockets, the clock and processes. It reads and writes for the machines in
//! `conn`, asks `balancer` who meets whom and `fleet` who should exist, and does what they say.
//!
//! A request's way through the files of this room: `clients` reads it and submits it, `workers` sends it and passes
//! the answer on, `failures` has what is done when a worker fails, `processes` starts and reaps workers, `stopping`
//! is the end. The state that they share is in this file; what the slabs hold is in `entry`.

mod clients;
mod clock;
mod control;
mod entry;
mod failures;
mod listen;
mod logs;
mod processes;
mod sizing;
mod spool;
mod status;
mod stdio;
mod stopping;
mod stream;
mod token;
mod tunnels;
mod watch;
mod workers;

use crate::app::{self, App};
use crate::balancer::Balancer;
use crate::config::{Config, Listen};
use crate::deadlines::Deadlines;
use crate::fleet::Fleet;
use crate::keys::{ClientKey, WorkerKey};
use crate::observe::access::AccessLog;
use crate::observe::metrics::Metrics;
use crate::process::{self, DescriptorLimit};
use crate::runtime;
use clock::{Clock, Ids};
use entry::{ClientDeadline, ClientEntry, WorkerDeadline, WorkerEntry};
use listen::Listener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use slab::Slab;
use spool::Room;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use stopping::Stage;
use token::Target;

/// How much is read from one connection in one turn, so that a fast sender keeps nobody waiting.
const TURN_BYTES: usize = 256 * 1024;
/// One read; a pipe's or a Unix socket's buffer is not much larger.
const READ_BYTES: usize = 64 * 1024;
/// Events fetched at once.
const EVENTS: usize = 1024;
/// Buffers for heads that are kept for reuse, each of at most [`KEPT_BUFFER_BYTES`].
const KEPT_BUFFERS: usize = 512;
const KEPT_BUFFER_BYTES: usize = 4096;
/// How long a refused client may go on sending before it is closed.
const LINGER: Duration = Duration::from_secs(2);
/// At a stop, a quiet connection gets so long: a request may be on its way.
const GRACE: Duration = Duration::from_secs(1);
/// Between two tries to connect to a full backlog.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);
/// A worker that answered busy counts as busy for so long.
const REST: Duration = Duration::from_millis(100);
/// Between two looks whether a command answers.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Access lines wait for so long, to be written together.
const LOG_DELAY: Duration = Duration::from_millis(50);
/// Or until there are so many bytes of them.
const LOG_BYTES: usize = 64 * 1024;
/// Accepting pauses for so long when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors that are kept free for spool files, workers and the control socket.
const SPARE_DESCRIPTORS: u64 = 64;

/// Where the app comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A path, absolute and as typed; looked at anew at each spawn.
    Path { path: PathBuf, is_command: bool },
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

pub struct Reactor {
    poll: Poll,
    clock: Clock,
    config: Config,
    source: Source,
    names: Names,
    limit: DescriptorLimit,
    signals: SignalFd,
    started: Instant,

    listeners: Vec<Listener>,
    metrics_listeners: Vec<Listener>,
    accept_again: Option<Instant>,
    clients: Slab<ClientEntry>,
    workers: Slab<WorkerEntry>,
    control: control::ControlSocket,
    pipes: Slab<logs::Pipe>,
    dead_clients: Vec<ClientKey>,
    dead_workers: Vec<WorkerKey>,
    /// Whoever used up the turn's budget, or has more to do without a new event.
    again: Vec<Target>,

    client_deadlines: Deadlines<ClientDeadline>,
    worker_deadlines: Deadlines<WorkerDeadline>,
    balancer: Balancer,
    fleet: Fleet,
    stage: Stage,
    depth: sizing::Depth,
    metrics: Metrics,
    longest_wait: Duration,
    watch: Option<watch::Watch>,

    room: Rc<Room>,
    scratch: Vec<u8>,
    prefix: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    ids: Ids,
    logs: logs::Logs,
    has_ended_children: bool,
    exit: Option<u8>,
}

/// The server's names on disk.
#[derive(Debug, Clone)]
pub struct Names {
    pub app: String,
    pub prefix: String,
    pub dir: PathBuf,
    pub control: PathBuf,
    pub harness_dir: PathBuf,
}

impl Names {
    pub fn new(place: &crate::config::Place, app: &str) -> Self {
        let prefix = place.socket_prefix.clone().unwrap_or_else(|| format!("rip_{}_{app}", place.variant));
        let dir = app::absolute(&place.socket_dir);
        Names {
            app: app.to_owned(),
            control: dir.join(format!("{prefix}.ctl.sock")),
            harness_dir: dir.join(format!("{prefix}.harness")),
            prefix,
            dir,
        }
    }

    pub fn worker_socket(&self, slot: usize, version: u64) -> PathBuf {
        self.dir.join(format!("{}.{slot}.{version}.sock", self.prefix))
    }
}

impl Source {
    /// As typed, absolute.
    fn path(&self) -> &Path {
        match self {
            Source::Path { path, .. } => path,
            Source::Own { program } => program,
        }
    }

    /// # Errors
    /// Why there is no app, for people.
    fn find(&self) -> Result<App, String> {
        match self {
            Source::Path { path, is_command } => {
                App::find(path, *is_command).map_err(|no_app| no_app.to_string())
            }
            Source::Own { program } => Ok(App {
                name: app::name(program),
                dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
                entry: program.clone(),
                runtime: app::Runtime::Executable,
            }),
        }
    }
}

/// Starts and runs the server; the exit code.
///
/// # Errors
/// [`StartError`] if it could not start; then nothing runs and nothing is left behind.
pub fn serve(config: Config, carried: Option<PathBuf>) -> Result<u8, StartError> {
    let limit = process::raise_descriptor_limit();
    let mut reactor = Reactor::start(config, carried, limit)?;
    reactor.announce();
    let result = reactor.run();
    reactor.farewell();
    result.map_err(|error| StartError::Trouble(format!("the poll loop failed: {error}")))
}

impl Reactor {
    fn start(config: Config, carried: Option<PathBuf>, limit: DescriptorLimit) -> Result<Self, StartError> {
        let trouble = |what: &str, error: io::Error| StartError::Trouble(format!("{what}: {error}"));
        let source = match (carried, &config.place.app) {
            (Some(program), _) => Source::Own { program },
            (None, Some(path)) => {
                Source::Path { path: app::absolute(path), is_command: config.command.is_some() }
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
        let signals = signal_set
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&signal_set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC))
            .map_err(|error| trouble("signals", error.into()))?;
        let signal_fd = signals.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&signal_fd), Target::Signals.token(), Interest::READABLE)
            .map_err(|error| trouble("signals", error))?;

        let control = control::ControlSocket::bind(&names, &source, poll.registry())?;
        let listeners = listen_on(&config.listen, poll.registry(), Target::Listener)?;
        let metrics_listeners = listen_on(&config.metrics, poll.registry(), Target::MetricsListener)?;
        let clock = Clock::new();
        let now = clock.now;
        let access = config.access_log.then(|| AccessLog::new(config.json_logging, &names.app));
        let logs = logs::Logs::open(access, config.json_logging, poll.registry())
            .map_err(|error| trouble("standard output", error))?;
        Ok(Reactor {
            poll,
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
            signals,
            started: now,
            clock,
            listeners,
            metrics_listeners,
            accept_again: None,
            clients: Slab::new(),
            workers: Slab::new(),
            control,
            pipes: Slab::new(),
            dead_clients: Vec::new(),
            dead_workers: Vec::new(),
            again: Vec::new(),
            scratch: vec![0; READ_BYTES],
            prefix: Vec::new(),
            buffers: Vec::new(),
            ids: Ids::new(),
            logs,
            has_ended_children: false,
            exit: None,
        })
    }

    /// The one line at the start.
    fn announce(&mut self) {
        let addresses: Vec<String> =
            self.listeners.iter().map(|listener| format!("http={}", listener.address())).collect();
        let metrics = self.metrics_listeners.iter().map(|listener| format!("metrics={}", listener.address()));
        let addresses: Vec<String> = addresses.into_iter().chain(metrics).collect();
        let workers = self.config.workers.min;
        let line = format!("rip-server: app={} {} workers={workers}\n", self.names.app, addresses.join(" "));
        self.logs.announce(line.as_bytes());
        self.start_watch();
        self.perform_fleet_actions();
        self.logs.flush(self.clock.now);
    }

    fn run(&mut self) -> io::Result<u8> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match self.poll.poll(&mut events, self.patience()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let before = self.clock.now;
            self.clock.read();
            self.metrics.busy_for(self.balancer.busy(), self.clock.now - before);
            self.turn(&events);
            if let Some(code) = self.exit {
                return Ok(code);
            }
        }
    }

    /// One turn of the loop.
    fn turn(&mut self, events: &Events) {
        // Workers first: an answer that ends frees a worker before a new request looks for one, and anything odd on
        // an idle connection is noticed before a request is written to it.
        for event in events {
            if let Some(Target::Worker(worker)) = Target::of(event.token()) {
                self.worker_event(worker, event);
            }
        }
        for event in events {
            match Target::of(event.token()) {
                Some(Target::Client(client)) => self.client_event(client, event),
                Some(Target::Worker(_)) | None => {}
                Some(Target::Listener(index)) => self.accept(index),
                Some(Target::MetricsListener(index)) => self.accept_scraper(index),
                Some(Target::ControlListener) => self.accept_control(),
                Some(Target::Control(key)) => self.control_event(key, event),
                Some(Target::Pipe(key)) => self.read_pipe(key),
                Some(Target::Signals) => self.take_signals(),
                Some(Target::Stdout | Target::Stderr) => self.logs.has_room(),
                Some(Target::Watch) => self.read_watch(),
            }
        }
        for target in std::mem::take(&mut self.again) {
            match target {
                Target::Client(client) => self.resume_client(client),
                Target::Worker(worker) => self.read_worker(worker),
                Target::Pipe(key) => self.read_pipe(key),
                _ => {}
            }
        }
        self.expire();
        if self.has_ended_children {
            self.reap();
        }
        self.resize();
        self.go_on_stopping();
        self.perform_fleet_actions();
        self.bury();
        self.logs.flush(self.clock.now);
    }

    /// How long `poll` may sleep.
    fn patience(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [
            self.client_deadlines.next(),
            self.worker_deadlines.next(),
            self.balancer.next_deadline(),
            self.fleet.next_deadline(),
            self.accept_again,
            self.logs.next_flush(),
            self.stage.deadline(),
            self.next_shrink(),
        ];
        let next = next.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// All deadlines that are due, in one turn.
    fn expire(&mut self) {
        let now = self.clock.now;
        while let Some((key, kind)) = self.client_deadlines.expire(now) {
            self.client_is_due(ClientKey(key), kind);
        }
        while let Some((key, kind)) = self.worker_deadlines.expire(now) {
            self.worker_is_due(WorkerKey(key), kind);
        }
        while let Some(client) = self.balancer.expire(now) {
            self.queue_timed_out(client);
        }
        if self.fleet.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.fleet.tick(now);
        }
        if self.accept_again.is_some_and(|again| again <= now) {
            self.accept_again = None;
            for index in 0..self.listeners.len() {
                self.accept(index);
            }
        }
    }

    /// Closed entries leave the slabs only now, so that no key is used again inside one batch of events.
    fn bury(&mut self) {
        for client in self.dead_clients.drain(..) {
            self.client_deadlines.disarm(client.0);
            self.clients.try_remove(client.0);
        }
        for worker in self.dead_workers.drain(..) {
            self.worker_deadlines.disarm(worker.0);
            self.workers.try_remove(worker.0);
        }
    }

    /// A buffer for a request's head, reused where there is one.
    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < KEPT_BUFFERS && buffer.capacity() <= KEPT_BUFFER_BYTES {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    fn farewell(&mut self) {
        self.logs.finish();
        let _ = std::fs::remove_dir_all(&self.names.harness_dir);
    }
}

fn listen_on(
    places: &[Listen],
    registry: &Registry,
    target: impl Fn(usize) -> Target,
) -> Result<Vec<Listener>, StartError> {
    let mut listeners = Vec::new();
    for (index, at) in places.iter().enumerate() {
        let mut listener = Listener::bind(at).map_err(|error| cannot_listen(at, &error))?;
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

/// A Unix socket's path has room for 107 bytes.
fn check_lengths(names: &Names) -> Result<(), StartError> {
    const MOST_BYTES: usize = 107;
    let longest = names.worker_socket(crate::config::MAX_WORKERS, 1_000_000_000);
    let bytes = longest.as_os_str().len();
    if bytes > MOST_BYTES {
        return Err(StartError::Usage(format!(
            "'{}' is too long for a Unix socket ({bytes} bytes, {MOST_BYTES} fit); a shorter --socket-dir would do",
            longest.display()
        )));
    }
    Ok(())
}

fn cannot_listen(at: &Listen, error: &io::Error) -> StartError {
    let (place, port) = match at {
        Listen::Tcp { address: None, port } => (format!("port {port}"), Some(*port)),
        Listen::Tcp { address: Some(address), port } => (format!("{address} port {port}"), Some(*port)),
        Listen::Unix(path) => (format!("'{}'", path.display()), None),
    };
    let what_to_do = match (error.kind(), port) {
        (io::ErrorKind::AddrInUse, Some(port)) => {
            let owner = match listen::owner_of_port(port) {
                Some(pid) => format!(" by pid {pid}"),
                None => String::new(),
            };
            format!("is in use{owner}; http:{} or http:0 would do", port.wrapping_add(1).max(1024))
        }
        (io::ErrorKind::AddrInUse, None) => "is in use; another path would do".to_owned(),
        (io::ErrorKind::PermissionDenied, Some(port)) if port < 1024 => {
            format!("needs a right that this user lacks (below 1024); http:{} would do", 8000 + port % 1000)
        }
        _ => format!("cannot be listened on: {error}"),
    };
    StartError::Trouble(format!("{place} {what_to_do}"))
}
