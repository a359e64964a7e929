//! The real server as a child process, with folders of its own.

use super::client::Client;
use super::message::Response;
use super::{Signal, TEST_TIMEOUT};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tempfile::TempDir;

/// A reload waits for every worker's successor.
const VERB_WITHIN: Duration = Duration::from_secs(120);

/// No timeout ends anything on a machine that may be slow, unless the test sets it: a flag beats these.
const PATIENT: [&str; 6] = [
    "RIP_QUEUE_TIMEOUT_MS",
    "RIP_READ_TIMEOUT_MS",
    "RIP_CLIENT_TIMEOUT_MS",
    "RIP_CONNECT_TIMEOUT_MS",
    "RIP_BOOT_TIMEOUT_MS",
    "RIP_DRAIN_TIMEOUT_MS",
];

/// What a server is started with.
#[derive(Debug)]
pub struct ServerBuilder {
    program: PathBuf,
    app: Option<PathBuf>,
    http: Vec<String>,
    arguments: Vec<OsString>,
    environment: Vec<(String, Option<OsString>)>,
    /// A listening socket that it is given, as by systemd.
    given: Option<OwnedFd>,
    /// Its variables have nothing of [`PATIENT`].
    has_own_timeouts: bool,
}

/// A running server; ended with SIGKILL when it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    exit: Option<ExitStatus>,
    dir: TempDir,
    program: PathBuf,
    app_path: Option<PathBuf>,
    stdout: Lines,
    stderr: Lines,
    /// As the first line says.
    app: String,
    listeners: Vec<String>,
    workers: usize,
    /// The plan of the whole run, if there is one.
    faults: Option<super::Faults>,
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl ServerBuilder {
    /// Without this one, `http:127.0.0.1:0`. May be given more than once: `unix:/path`, `[::1]:0`.
    pub fn http(mut self, at: &str) -> Self {
        self.http.push(at.to_owned());
        self
    }

    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub fn args<T: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// For the server and its workers.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), Some(value.into())));
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.environment.push((name.to_owned(), None));
        self
    }

    /// With its default timeouts, where a test looks at all of its variables.
    pub fn with_own_timeouts(mut self) -> Self {
        self.has_own_timeouts = true;
        self
    }

    /// Starts it as systemd does, with a listening socket as its descriptor 3 and no word about where to listen.
    pub fn given(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.given = Some(socket.into());
        self
    }

    /// Starts the server and waits until it listens. With `RIP_TEST_FAULTS` set, to words of `tests/faults/inject.rs`,
    /// it runs under that plan, so that any test can be tried under faults that nobody may see.
    pub fn start(self) -> Server {
        match std::env::var("RIP_TEST_FAULTS") {
            Ok(plan) if self.program == super::server_program() && !self.has("RIP_FAULTS") => {
                let faults = super::Faults::new(&plan);
                let mut server = self.faults(&faults).start_here();
                assert!(faults.are_at_work(), "the injector was not loaded");
                server.faults = Some(faults);
                server
            }
            _ => self.start_here(),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.environment.iter().any(|(other, _)| other == name)
    }

    fn start_here(self) -> Server {
        let dir = temporary_dir();
        let mut command = match &self.given {
            None => command(&self.program, dir.path()),
            Some(_) => {
                let mut command = command(Path::new("/bin/sh"), dir.path());
                let activated = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
                command.args(["-c", activated]).arg(&self.program);
                command
            }
        };
        command.args(&self.app).arg("--socket-dir").arg(dir.path().join("s"));
        match &self.http[..] {
            [] if self.given.is_some() => {}
            [] => drop(command.arg("http:127.0.0.1:0")),
            places => drop(command.args(places.iter().map(|at| format!("http:{at}")))),
        }
        // Last, since everything behind `--` is the app's command.
        command.args(&self.arguments);
        for name in PATIENT.into_iter().filter(|_| !self.has_own_timeouts) {
            command.env(name, TEST_TIMEOUT.as_millis().to_string());
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let stdin = self.given.map_or_else(Stdio::null, Stdio::from);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server can be started");
        let stdout = Lines::collect(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::collect(child.stderr.take().expect("stderr is piped"));
        let mut server = Server {
            child,
            exit: None,
            dir,
            program: self.program,
            app_path: self.app,
            stdout,
            stderr,
            app: String::new(),
            listeners: Vec::new(),
            workers: 0,
            faults: None,
        };
        server.wait_for_announcement();
        server
    }
}

impl ServerBuilder {
    /// Runs it to its end, for one that does not start.
    pub fn run(self) -> Output {
        let dir = temporary_dir();
        let mut command = command(&self.program, dir.path());
        command.args(&self.app).arg("--socket-dir").arg(dir.path().join("s")).args(&self.arguments);
        command
            .arg("http:127.0.0.1:0")
            .envs(self.environment.into_iter().filter_map(|(name, value)| Some((name, value?))));
        output(command)
    }
}

impl Server {
    /// A server for the app at that path.
    pub fn builder(app: impl Into<PathBuf>) -> ServerBuilder {
        ServerBuilder {
            program: super::server_program(),
            app: Some(app.into()),
            http: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            given: None,
            has_own_timeouts: false,
        }
    }

    /// A server for the test worker.
    pub fn with_test_worker(arguments: &[&str]) -> Server {
        Server::builder(super::test_worker()).args(arguments).start()
    }

    /// A program that carries the server: its own app, so it takes no app path.
    pub fn carried_by(program: impl Into<PathBuf>) -> ServerBuilder {
        ServerBuilder { program: program.into(), app: None, ..Server::builder("") }
    }

    /// A server that starts no workers: [`super::RawWorker`]s join it.
    pub fn without_workers(arguments: &[&str]) -> Server {
        // Never run, but an app has to be there.
        Server::builder("/bin/true").arg("w:0").args(arguments).start()
    }

    fn wait_for_announcement(&mut self) {
        let mut line = None;
        let is_it = |line: &String| line.starts_with("rip-server: app=");
        self.wait_until("the line at the start", |server| {
            // With --json-logging it goes to stderr.
            let lines = server.stdout.all().into_iter().chain(server.stderr.all());
            line = lines.into_iter().find(is_it);
            assert!(line.is_some() || !server.has_exited(), "the server ended:\n{}", server.stderr_text());
            line.is_some()
        });
        for phrase in line.unwrap_or_default().split(' ') {
            match phrase.split_once('=') {
                Some(("app", name)) => self.app = name.to_owned(),
                Some(("http", at)) => self.listeners.push(at.to_owned()),
                Some(("workers", count)) => self.workers = count.parse().expect("a number of workers"),
                _ => {}
            }
        }
    }

    /// Waits until `condition` holds; what the server said on stderr is printed if it does not.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut Server) -> bool) {
        let holds = super::comes_true(TEST_TIMEOUT, || condition(self));
        let end = if self.has_exited() { format!(" (its server: {:?})", self.exit) } else { String::new() };
        assert!(
            holds,
            "waited {} s in vain: {what}{end}\nstderr:\n{}",
            TEST_TIMEOUT.as_secs(),
            self.stderr_text()
        );
    }

    /// The name of the app.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// How many workers the first line names.
    pub fn announced_workers(&self) -> usize {
        self.workers
    }

    /// Where it listens, as the first line says: `127.0.0.1:4711`, `unix:/path`.
    pub fn listeners(&self) -> &[String] {
        &self.listeners
    }

    /// The first TCP listener.
    pub fn address(&self) -> SocketAddr {
        let mut address = self.listeners.iter().find_map(|at| at.parse::<SocketAddr>().ok());
        if let Some(address) = &mut address
            && address.ip().is_unspecified()
        {
            address.set_ip([127, 0, 0, 1].into());
        }
        address.expect("a TCP listener")
    }

    /// A new connection to it.
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// One exchange on a new connection.
    pub fn get(&self, target: &str) -> Response {
        self.client().get(target)
    }

    /// Its folder: `s` has the sockets, `t` is its TMPDIR; the rest is free for tests.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket_dir(&self) -> PathBuf {
        self.dir().join("s")
    }

    /// Its TMPDIR.
    pub fn spool_dir(&self) -> PathBuf {
        self.dir().join("t")
    }

    pub fn control_socket(&self) -> PathBuf {
        let sockets = std::fs::read_dir(self.socket_dir()).expect("the socket folder");
        let is_it = |path: &PathBuf| path.to_string_lossy().ends_with(".ctl.sock");
        sockets.filter_map(|entry| Some(entry.ok()?.path())).find(is_it).expect("a control socket")
    }

    /// Asks on the control socket; `body` is a message in JSON.
    pub fn control(&self, method: &str, path: &str, body: &str) -> Response {
        let mut client = Client::connect_unix(&self.control_socket());
        client.send_request(method, path, "Connection: close\r\n", body.as_bytes());
        client.read_response()
    }

    /// What the control socket tells: the summary and every worker (`workerList`).
    pub fn details(&self) -> serde_json::Value {
        self.control("GET", "/status", "").json()
    }

    /// The pids of all its workers, in whatever state.
    pub fn worker_pids(&self) -> Vec<i32> {
        let details = self.details();
        let workers = details["workerList"].as_array().expect("a list of workers");
        workers.iter().filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok()).collect()
    }

    /// Waits until so many workers have joined.
    pub fn wait_for_workers(&mut self, count: u64) {
        self.wait_until(&format!("{count} workers"), |server| {
            server.get("/status").json()["workers"] == count
        });
    }

    /// Waits until as many workers serve as before, so many of which have taken the place of others. A count alone may be
    /// that of a moment before the deaths were known.
    pub fn wait_for_successors(&mut self, before: &[i32], deaths: usize) {
        self.wait_until(&format!("{deaths} successors among {} workers", before.len()), |server| {
            let details = server.details();
            let workers = details["workerList"].as_array().expect("a list of workers");
            let serve = workers.iter().all(|worker| worker["state"] == "idle" || worker["state"] == "busy");
            let is_new = |worker: &&serde_json::Value| !before.iter().any(|pid| worker["pid"] == *pid);
            serve && workers.len() == before.len() && workers.iter().filter(is_new).count() == deaths
        });
    }

    pub fn stdout_lines(&self) -> Vec<String> {
        self.stdout.all()
    }

    pub fn stderr_lines(&self) -> Vec<String> {
        self.stderr.all()
    }

    pub fn stderr_text(&self) -> String {
        self.stderr.all().join("\n")
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub fn rss_kib(&self) -> u64 {
        super::rss_kib(self.pid())
    }

    pub fn signal(&self, signal: Signal) {
        assert!(self.exit.is_none(), "the server has ended");
        kill(Pid::from_raw(self.pid()), signal).expect("a signal can be sent");
    }

    pub fn has_exited(&mut self) -> bool {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("a child can be waited for");
        }
        self.exit.is_some()
    }

    /// Waits for its end. The exit code, or the negative number of the signal that ended it.
    pub fn wait_exit(&mut self) -> i32 {
        self.wait_until("the server's end", Server::has_exited);
        self.exit.map_or(0, exit_code)
    }

    /// Runs `rip-server <verb> <app-path> …` against this server.
    pub fn verb<T: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = T>) -> Output {
        self.verb_within(VERB_WITHIN, words)
    }

    /// The same, for as long as the test says.
    pub fn verb_within<T: AsRef<OsStr>>(&self, time: Duration, words: impl IntoIterator<Item = T>) -> Output {
        let mut words = words.into_iter();
        let mut command = command(&self.program, self.dir());
        command.args(words.next()).args(&self.app_path).args(words);
        command.arg("--socket-dir").arg(self.socket_dir());
        output_within(time, command)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.has_exited() {
            // Its workers end with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs the server's program with these arguments until it ends: for wrong words, `--help` and the like. It gets a
/// folder for sockets of its own.
pub fn run<T: AsRef<OsStr>>(arguments: impl IntoIterator<Item = T>) -> Output {
    let dir = temporary_dir();
    let mut command = command(&super::server_program(), dir.path());
    command.args(arguments).env("RIP_SOCKET_DIR", dir.path().join("s"));
    output(command)
}

/// Runs a command to its end, with a deadline.
pub fn output(command: Command) -> Output {
    output_within(VERB_WITHIN, command)
}

fn output_within(time: Duration, mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the command can be started");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(time) else {
        // Not reaped, since its thread still waits for it, so the pid is still its own.
        let _ = kill(pid, Signal::SIGKILL);
        panic!("{command:?} did not end within {} s", time.as_secs());
    };
    let output = output.expect("a child can be waited for");
    Output {
        code: exit_code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

/// Short, since a Unix socket's path has room for 107 bytes.
fn temporary_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder");
    std::fs::create_dir(dir.path().join("t")).expect("a folder in it");
    dir
}

/// The program, in an environment that does not depend on who runs the tests.
fn command(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RIP_") {
            command.env_remove(name);
        }
    }
    for name in ["PORT", "WORKER_ID", "SOCKET_PATH", "CONTROL_SOCKET", "XDG_RUNTIME_DIR", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.env("NODE_ENV", "production").env("TMPDIR", dir.join("t"));
    command
}

/// The lines of a pipe. A thread takes them out, so that nothing stops who writes them.
#[derive(Debug, Clone)]
struct Lines(Arc<Mutex<Collected>>);

#[derive(Debug)]
struct Collected {
    /// `None` behind its end.
    pipe: Option<File>,
    lines: Vec<String>,
    /// Of a line whose end has not come.
    begun: Vec<u8>,
}

impl Lines {
    fn collect(pipe: impl Into<OwnedFd>) -> Lines {
        let pipe = File::from(pipe.into());
        // Only this end of it: who writes waits as ever.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe has flags");
        let looks = pipe.try_clone().expect("a descriptor");
        let collected = Collected { pipe: Some(pipe), lines: Vec::new(), begun: Vec::new() };
        let lines = Lines(Arc::new(Mutex::new(collected)));
        let collected = lines.0.clone();
        std::thread::spawn(move || {
            let mut is_open = true;
            while is_open {
                let _ = poll(&mut [PollFd::new(looks.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
                is_open = collected.lock().expect("no panic holds the lock").take();
            }
        });
        lines
    }

    /// All that has been written by now, whether or not the thread has got to it.
    fn all(&self) -> Vec<String> {
        let mut collected = self.0.lock().expect("no panic holds the lock");
        collected.take();
        collected.lines.clone()
    }
}

impl Collected {
    /// Takes what is there. `false`: there will be no more.
    fn take(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut bytes) {
                Ok(count @ 1..) => self.split(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.pipe = None;
                    if !self.begun.is_empty() {
                        self.split(b"\n");
                    }
                }
            }
        }
        self.pipe.is_some()
    }

    fn split(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if let Some(line) = self.begun.strip_suffix(b"\n") {
                self.lines.push(String::from_utf8_lossy(line).into_owned());
                self.begun.clear();
            }
        }
    }
}
