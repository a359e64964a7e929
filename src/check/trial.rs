//! A server of its own for one worker: nobody finds it, and nothing of it is left.

use crate::client::{self, Get, Got, Progress};
use crate::config::{Config, HotReload, Listen, ServerId, Workers, activation};
use crate::handover;
use crate::process::{self, Exit};
use crate::reactor::{self, Reactor, StartError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The names of its files begin with it, whatever the app is called.
const PREFIX: &str = "check";
/// How often it is looked whether there is something new.
const EVERY_MS: u16 = 30;
/// The server gives up by itself after the boot timeout; one that hangs is given up so much later.
const SPARE: Duration = Duration::from_secs(5);
/// Of what the server and the app say so much is kept: the end tells what went wrong.
const MAX_SAID_BYTES: usize = 64 * 1024;
/// Lines of the worker that are shown.
const MAX_WORDS: usize = 20;

pub(super) struct Trial {
    dir: PathBuf,
    /// `None`: it has ended.
    server: Option<Pid>,
    output: io::PipeReader,
    said: Vec<u8>,
    signals: SignalFd,
    began: Instant,
    boot_timeout: Duration,
    drain_timeout: Duration,
}

/// What has become of the worker.
pub(super) enum Found {
    Worker { after: Duration, is_forked: bool },
    Failure(String),
}

impl Trial {
    /// # Errors
    /// The machine's trouble, in one line.
    pub(super) fn start(config: Config, embedded: Option<PathBuf>) -> Result<Trial, String> {
        let signals = catch_signals().map_err(|error| format!("signals: {error}"))?;
        let dir = make_dir(&config.spool_dir)?;
        let (boot_timeout, drain_timeout) = (config.boot_timeout, config.drain_timeout);
        let config = for_one_worker(config, &dir);
        let removed = activation::VARIABLES.into_iter().chain(["NOTIFY_SOCKET", handover::VARIABLE]);
        let removed: Vec<&str> = removed.collect();
        let started = io::pipe().and_then(|(output, input)| {
            set_nonblocking(&output)?;
            let server = process::fork_work(input.into(), &removed, || serve(config, embedded))?;
            Ok((output, server))
        });
        let (output, server) = started.map_err(|error| {
            let _ = std::fs::remove_dir_all(&dir);
            format!("the server of the check cannot be started: {error}")
        })?;
        let began = Instant::now();
        Ok(Trial {
            dir,
            server: Some(server),
            output,
            said: Vec::new(),
            signals,
            began,
            boot_timeout,
            drain_timeout,
        })
    }

    /// Where the private server listens.
    pub(super) fn http(&self) -> PathBuf {
        http(&self.dir)
    }

    /// The worker's own socket; a command may have a port instead.
    pub(super) fn worker_socket(&self) -> Option<PathBuf> {
        let files = std::fs::read_dir(&self.dir).ok()?.flatten().map(|file| file.path());
        let control = self.control();
        let is_it =
            |path: &PathBuf| path.extension().is_some_and(|ending| ending == "sock") && *path != control;
        let mut files = files;
        files.find(is_it)
    }

    fn control(&self) -> PathBuf {
        self.dir.join(format!("{PREFIX}.ctl.sock"))
    }

    fn status(&self) -> Option<Value> {
        let answer = client::ask(&self.control(), "GET", "/status", "").ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    pub(super) fn wait_for_worker(&mut self, progress: &mut Progress) -> Found {
        let until = self.began + self.boot_timeout + SPARE;
        loop {
            if let Some(signal) = self.sleep(EVERY_MS) {
                return Found::Failure(format!("was not checked to the end: {signal}"));
            }
            progress.tick();
            if let Some(exit) = self.exit() {
                return Found::Failure(format!("does not start: {}", self.last_complaint(exit)));
            }
            if let Some(why) = self.first_failure() {
                return Found::Failure(format!("does not start: {why}"));
            }
            let status = self.status().unwrap_or_default();
            if status["workers"].as_u64() > Some(0) {
                let is_forked = status["workerList"][0]["forked"] == true;
                return Found::Worker { after: self.began.elapsed(), is_forked };
            }
            if Instant::now() > until {
                return Found::Failure("does not start, and its server does not say why".into());
            }
        }
    }

    /// Asks for a page, and waits for its head.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn get(
        &mut self,
        socket: &Path,
        target: &str,
        fields: &str,
        within: Duration,
    ) -> Result<Got, String> {
        let complaint = |error: io::Error| format!("does not answer GET {target}: {error}");
        let mut progress = Progress::new(&format!("check: GET {target}"));
        let get = Get::send(socket, target, fields).map_err(complaint)?;
        loop {
            let mut events = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(get.stream().as_fd(), PollFlags::POLLIN),
            ];
            let _ = poll(&mut events, PollTimeout::from(EVERY_MS));
            if events[1].any() == Some(true) {
                return get.answer().map_err(complaint);
            }
            if let Some(signal) = self.sleep(0) {
                return Err(format!("was not checked to the end: {signal}"));
            }
            if get.elapsed() > within {
                return Err(format!("does not answer GET {target} within {} s", within.as_secs()));
            }
            progress.tick();
        }
    }

    /// For a moment, or until a signal that ends the check.
    fn sleep(&mut self, time_ms: u16) -> Option<Signal> {
        let mut events = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut events, PollTimeout::from(time_ms));
        self.listen();
        let signal = self.signals.read_signal().ok()??;
        Signal::try_from(i32::try_from(signal.ssi_signo).ok()?).ok()
    }

    /// Takes in what has been said.
    fn listen(&mut self) {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = self.output.read(&mut buffer) {
            self.said.extend_from_slice(&buffer[..count]);
            let surplus = self.said.len().saturating_sub(MAX_SAID_BYTES);
            self.said.drain(..surplus);
        }
    }

    fn exit(&mut self) -> Option<Exit> {
        let server = self.server?;
        let exit = process::exit_of(server)?;
        process::release(server);
        self.server = None;
        self.listen();
        Some(exit)
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.said).lines().map(str::to_owned).collect()
    }

    /// How the first worker has failed, as the server tells it; a log that is turned down tells nothing.
    fn first_failure(&self) -> Option<String> {
        let lines = self.lines();
        lines.iter().find(|line| line.contains(": failed once before it had served"))?;
        let is_it = |line: &&String| {
            line.contains(", before it had joined") || line.contains(": cannot be started: ")
        };
        lines.iter().find(is_it).map(|line| without_level(line))
    }

    /// What the worker has said last; of a template that it was to be forked from, where it has said nothing.
    pub(super) fn words(&mut self) -> Vec<String> {
        self.listen();
        let lines = self.lines();
        let of = |who: &str| -> Vec<String> {
            let is_it = |line: &String| {
                let (label, text) = line.strip_prefix('[')?.split_once("] ")?;
                label.starts_with(who).then(|| text.to_owned())
            };
            lines.iter().filter_map(is_it).collect()
        };
        let mut words = of("worker");
        if words.is_empty() {
            words = of("template");
        }
        words.drain(..words.len().saturating_sub(MAX_WORDS));
        words
    }

    /// The server's own words about its end.
    fn last_complaint(&self, exit: Exit) -> String {
        let lines = self.lines();
        let own = lines.iter().rev().find(|line| line.starts_with("rip-server: "));
        let own = own.map(|line| without_level(line));
        own.unwrap_or_else(|| format!("its server ended with {exit}"))
    }

    /// Ends the server in an orderly way; one that takes too long is killed.
    ///
    /// # Errors
    /// It did not end as it should.
    pub(super) fn end(&mut self) -> Result<(), String> {
        let Some(server) = self.server else { return Ok(()) };
        process::terminate(server);
        let mut progress = Progress::new("check: the worker ends");
        let until = Instant::now() + self.drain_timeout + SPARE;
        while Instant::now() < until {
            if let Some(exit) = self.exit() {
                return match exit {
                    Exit::Code(0) => Ok(()),
                    exit => Err(format!("does not end in an orderly way: its server ended with {exit}")),
                };
            }
            self.sleep(EVERY_MS);
            progress.tick();
        }
        Err("does not end: its server was killed".into())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            // Its workers end with it.
            process::kill_one(server);
            process::wait_for(server);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// In the child.
fn serve(config: Config, embedded: Option<PathBuf>) -> u8 {
    let complain = |complaint: &str, code: u8| {
        let _ = writeln!(io::stderr(), "rip-server: {complaint}");
        code
    };
    match reactor::start(config, embedded).and_then(Reactor::run) {
        Ok(code) => code,
        Err(StartError::Usage(complaint)) => complain(&complaint, 2),
        Err(StartError::Trouble(complaint)) => complain(&complaint, 1),
    }
}

/// A line of the server's log, and not what it advises to servers that go on.
fn without_level(line: &str) -> String {
    let line = line.strip_prefix("rip-server: ").unwrap_or(line);
    let line = line.strip_prefix("error: ").or(line.strip_prefix("warn: ")).unwrap_or(line);
    line.split("; RIP_KEEP_TRYING").next().unwrap_or_default().to_owned()
}

fn http(dir: &Path) -> PathBuf {
    dir.join("http")
}

/// The same settings for one worker, and for nobody else's eyes.
fn for_one_worker(config: Config, dir: &Path) -> Config {
    let place = ServerId {
        socket_dir: dir.to_path_buf(),
        socket_prefix: Some(PREFIX.to_owned()),
        given: Vec::new(),
        ..config.place
    };
    Config {
        place,
        workers: Workers { min: 1, max: 1 },
        listen: vec![Listen::Unix(http(dir))],
        proxied: vec![false],
        metrics: Vec::new(),
        page: Vec::new(),
        socket_mode: None,
        socket_group: None,
        hot_reload: HotReload::None,
        json_logging: false,
        access_log: false,
        log_file: None,
        pid_file: None,
        keep_trying: false,
        ..config
    }
}

/// A folder for its sockets, which only this user may enter.
fn make_dir(parent: &Path) -> Result<PathBuf, String> {
    let dir = parent.join(format!("rip-check-{}", std::process::id()));
    // Of a check that was killed.
    let _ = std::fs::remove_dir_all(&dir);
    match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => Ok(dir),
        Err(error) => Err(format!(
            "'{}' cannot be made: {error}; TMPDIR=<a folder> in the environment would do",
            crate::paths::shown(&dir)
        )),
    }
}

/// What would end the check ends the server first.
fn catch_signals() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn set_nonblocking(output: &io::PipeReader) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}
