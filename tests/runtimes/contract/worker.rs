//! One worker, started as the server would start it, with a control socket that only listens.

use super::marks::Cell;
use super::{Column, Fixture};
use crate::fixture::{find_program, python_program};
use crate::support::wire::Wire;
use crate::support::{Client, Response, Signal, TEST_TIMEOUT, Trouble, comes_true, is_alive, server_program};
use rip_server::internals::app::{App, Wanted};
use rip_server::internals::config::{self, Command as Words};
use rip_server::internals::runtime::{self, Harnesses, Identity};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a cell may take that is marked as one that does not hold: whoever waits longer waits in vain.
const SHORT: Duration = Duration::from_millis(400);

pub fn poll_timeout(cell: Cell) -> Duration {
    match cell {
        Cell::Holds => TEST_TIMEOUT,
        Cell::Cannot(_) | Cell::Open(_) => SHORT,
    }
}

/// For what must not happen.
pub const A_WHILE: Duration = Duration::from_millis(150);

pub const INSTANCE: &str = "5e551";
pub const WORKER_ID: usize = 3;
pub const VERSION: u64 = 7;
/// The user's own, which no worker's name may take the place of.
pub const USERS_OWN: [(&str, &str); 4] =
    [("APP_NAME", "mine"), ("APP_ENTRY", "mine"), ("SOCKET_PREFIX", "mine"), ("CONTROL_SOCKET", "mine")];

pub struct Worker<'a> {
    pub column: Column,
    pub fixture: &'a Fixture,
    dir: TempDir,
    socket: PathBuf,
    /// Where a command with `{port}` listens.
    port: Option<u16>,
    control: Control,
    child: Child,
    exit: Option<std::process::ExitStatus>,
    poll_timeout: Duration,
    folders: AtomicU32,
    /// Where its harness lies, as long as it runs.
    _harnesses: Harnesses,
}

impl<'a> Worker<'a> {
    /// Started, and joined; a command listens.
    pub fn start(column: Column, fixture: &'a Fixture) -> Worker<'a> {
        Worker::start_with(column, fixture, &[])
    }

    /// The same, asked to take several requests at once, and looking for changes of its entry.
    pub fn start_several(column: Column, fixture: &'a Fixture) -> Worker<'a> {
        let at_once = super::several::AT_ONCE.to_string();
        Worker::start_with(column, fixture, &[("RIP_CONCURRENCY", &at_once), ("RIP_HOT_RELOAD", "module")])
    }

    fn start_with(column: Column, fixture: &'a Fixture, variables: &[(&str, &str)]) -> Worker<'a> {
        let dir = tempfile::Builder::new().prefix("ctr").tempdir().expect("a temporary folder");
        let socket = dir.path().join("w.sock");
        let port = column.command().is_some_and(|words| words.contains(&"{port}")).then(free_port);
        let control = Control::listen(&dir.path().join("c.sock"));
        let mut harnesses = Harnesses::at(dir.path().join("harness"), runtime::HARNESS_FILES);
        let mut command = command(column, fixture, dir.path(), (&socket, port), &mut harnesses);
        let words = File::create(dir.path().join("words")).expect("a file");
        let child = command
            .env("CONTRACT_DIR", dir.path())
            .env("NODE_ENV", "production")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(words.try_clone().expect("a second handle"))
            .stderr(words)
            .process_group(0)
            .spawn()
            .expect("the worker can be started");
        let mut worker = Worker {
            column,
            fixture,
            dir,
            socket,
            port,
            control,
            child,
            exit: None,
            poll_timeout: TEST_TIMEOUT,
            folders: AtomicU32::new(0),
            _harnesses: harnesses,
        };
        worker.wait_until("the join", |worker| {
            assert!(!worker.has_exited(), "the worker has ended:\n{}", worker.words());
            if column.command().is_some() { worker.listens() } else { worker.message("join").is_some() }
        });
        worker
    }

    pub fn expects(&mut self, cell: Cell) {
        self.poll_timeout = poll_timeout(cell);
    }

    pub fn poll_timeout(&self) -> Duration {
        self.poll_timeout
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `$CONTRACT_DIR`
    pub fn contract_dir(&self) -> &Path {
        self.dir.path()
    }

    /// A new folder in which app and test leave each other files.
    pub fn folder(&self) -> Folder {
        let number = self.folders.fetch_add(1, Ordering::Relaxed);
        Folder::new(self.dir.path().join(format!("f{number}")))
    }

    /// All that it has printed.
    pub fn words(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("words")).unwrap_or_default()).into_owned()
    }

    /// The first message of that kind that it has sent.
    pub fn message(&self, op: &str) -> Option<Value> {
        let messages = self.control.messages.lock().expect("no panic holds the lock");
        messages.iter().find(|message| message["op"] == op).cloned()
    }

    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let poll_timeout = self.poll_timeout;
        assert!(comes_true(poll_timeout, || condition(self)), "waited in vain: {what}");
    }

    /// Waits for a file in one of the folders.
    pub fn wait_for(&self, folder: &Folder, name: &str) {
        assert!(comes_true(self.poll_timeout, || folder.has(name)), "waited in vain: {name}");
    }

    /// The same, until there is a number in it: the file is there a moment before.
    pub fn wait_for_number(&self, folder: &Folder, name: &str) -> i32 {
        assert!(comes_true(self.poll_timeout, || folder.number(name) > 0), "waited in vain: {name}");
        folder.number(name)
    }

    /// Waits until the app was told that nobody waits.
    pub fn wait_until_told(&self, folder: &Folder) {
        let is_told = || folder.is_told(self.column);
        assert!(comes_true(self.poll_timeout, is_told), "waited in vain: the app is told");
    }

    /// Waits until a process has ended.
    pub fn wait_for_end_of(&self, pid: i32) {
        assert!(comes_true(self.poll_timeout, || !is_alive(pid)), "waited in vain: the end of process {pid}");
    }

    pub fn signal(&self, signal: crate::support::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, signal).expect("it is not reaped yet");
    }

    pub fn has_exited(&mut self) -> bool {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("a child can be waited for");
        }
        self.exit.is_some()
    }

    /// Waits for its end, in order.
    pub fn wait_exit(&mut self) {
        self.wait_until("the worker's end", Worker::has_exited);
        let exit = self.exit.expect("as was waited for");
        // Some servers restore the signal's default, and send it to themselves.
        let by_signal = self.column.command().is_some() && exit.signal() == Some(Signal::SIGTERM as i32);
        assert!(exit.success() || by_signal, "{exit}");
    }

    fn listens(&self) -> bool {
        match self.port {
            Some(port) => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
            None => UnixStream::connect(&self.socket).is_ok(),
        }
    }

    pub fn client(&self) -> Client {
        match self.port {
            Some(port) => Client::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            None => Client::connect_unix(&self.socket),
        }
    }

    /// A connection on which that was asked, as the front end asks.
    pub fn ask(&self, method: &str, target: &str, fields: &str, body: &[u8]) -> Client {
        let mut client = self.client();
        send(&mut client, method, target, fields, body);
        client
    }

    /// The next answer on that connection.
    pub fn answer(&self, client: &mut Client) -> Response {
        client
            .read_response_within(self.poll_timeout)
            .unwrap_or_else(|broken| panic!("no whole answer ({:?})", broken.trouble))
    }

    /// One exchange on a connection of its own.
    pub fn get(&self, target: &str) -> Response {
        self.answer(&mut self.ask("GET", target, "", b""))
    }

    /// Reads without taking.
    pub fn read_until(&self, client: &mut Client, text: &str) {
        let deadline = Instant::now() + self.poll_timeout;
        while !String::from_utf8_lossy(client.wire.pending_bytes()).contains(text) {
            let came = client.wire.fill(deadline);
            came.unwrap_or_else(|trouble| panic!("no {text:?} ({trouble:?})"));
        }
    }

    /// Waits until the other side has ended the connection; bytes that come are kept.
    pub fn wait_until_closed(&self, client: &mut Client) {
        assert!(client.is_closed_within(self.poll_timeout), "the connection was not closed");
    }

    /// What of an answer came, and how it ended before its end.
    pub fn broken_answer(&self, client: &mut Client) -> Box<crate::support::Broken> {
        let whole = client.read_response_within(self.poll_timeout).map(|whole| whole.text());
        let broken = whole.expect_err("half an answer");
        assert_ne!(broken.trouble, Trouble::TimedOut, "not cut");
        broken
    }

    /// Waits until it says that no handler runs.
    pub fn wait_until_idle(&self) {
        // Both, since a worker that takes no such probe yet answers it as any other.
        let is_idle = || self.probe("idle").status == 200 && self.get("/hello").status == 200;
        assert!(comes_true(self.poll_timeout, is_idle), "it does not say that it is idle");
    }

    /// Asks whether it is loaded (`1`), or `idle`.
    pub fn probe(&self, kind: &str) -> Response {
        let mut client = self.client();
        client.send_request("GET", "/ready", &format!("Rip-Probe: {kind}\r\n"), b"");
        self.answer(&mut client)
    }

    /// Asks whether the handler of that request runs.
    pub fn probe_of(&self, id: &str) -> Response {
        self.answer(&mut self.ask(
            "GET",
            "/ready",
            &format!("Rip-Probe: idle\r\nX-Request-Id: {id}\r\n"),
            b"",
        ))
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.pid());
        if !self.has_exited() {
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// A loopback port that nobody has.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A request as the front end writes it.
pub fn send(client: &mut Client, method: &str, target: &str, fields: &str, body: &[u8]) {
    let id = if fields.contains("X-Request-Id:") { "" } else { "X-Request-Id: 1234\r\n" };
    let request = format!(
        "{fields}X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n\
         {id}X-Request-Start: t=1\r\n"
    );
    client.send_request(method, target, &request, body);
}

/// The worker's command, as the server makes it.
fn command(
    column: Column,
    fixture: &Fixture,
    dir: &Path,
    (socket, port): (&Path, Option<u16>),
    harnesses: &mut Harnesses,
) -> Command {
    let entry = column.entry(fixture);
    let mut words = vec![entry.clone().into_os_string(), "--hot-reload=none".into()];
    // Of several runtimes that are installed, the one that is meant.
    match column {
        Column::Bun => words.push("--runtime=bun".into()),
        Column::Node | Column::NodeHttp => words.push("--runtime=node".into()),
        _ => {}
    }
    if let Some([name, arguments @ ..]) = column.command() {
        let program = find_program(name).expect("it is installed, as was looked");
        words.extend(["--".into(), program.into_os_string()]);
        words.extend(arguments.iter().map(Into::into));
    }
    let Ok(Words::Serve(config)) = config::read(words, &|_| None, false) else {
        panic!("the words are right");
    };
    let wanted = if column.command().is_some() { Wanted::Command } else { Wanted::Entry };
    let app = App::find(&entry, &wanted).unwrap_or_else(|error| panic!("{error}"));
    harnesses.provide(app.runtime).expect("harnesses can be written");
    let control = dir.join("c.sock");
    let identity = Identity {
        slot: WORKER_ID,
        version: VERSION,
        socket,
        port,
        control_socket: &control,
        prefix: "contract",
        instance: INSTANCE,
        harness_dir: harnesses.dir(),
    };
    let launch = runtime::launch(&app, &config, &identity, &[]).expect("what runs it is there");
    // From where .ci/run has installed it.
    let program = match column {
        Column::Wsgi | Column::Asgi => python_program(),
        Column::Bun => find_program("bun"),
        Column::Node | Column::NodeHttp => find_program("node"),
        Column::Cgi => Some(server_program()),
        Column::Rack | Column::Rust | Column::Uvicorn | Column::NodePort => Some(launch.program.clone()),
    };
    let mut command = Command::new(program.expect("it is installed, as was looked"));
    command.args(&launch.arguments);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RIP_")) {
        command.env_remove(name);
    }
    // An executable speaks the protocol by itself, by the first version's names too.
    if column != Column::Rust {
        command.envs(USERS_OWN);
    }
    command.envs(launch.environment.iter().map(|(name, value)| (name, value))).current_dir(&launch.dir);
    for name in &launch.removed {
        command.env_remove(name);
    }
    command
}

/// Where app and test leave each other files.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(path: PathBuf) -> Folder {
        fs::create_dir(&path).expect("a folder");
        Folder(path)
    }

    /// `/wait?<dir>` and the like.
    pub fn target(&self, path: &str) -> String {
        format!("{path}?{}", self.0.display())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    /// What stands in a file; 0 as long as it is not there in full.
    pub fn number(&self, name: &str) -> i32 {
        let text = fs::read_to_string(self.0.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Whether the app was told that nobody waits. A script is told by its end.
    pub fn is_told(&self, column: Column) -> bool {
        match column {
            Column::Cgi => self.number("started") > 0 && !is_alive(self.number("started")),
            _ => self.has("told"),
        }
    }

    /// What the app waits for.
    pub fn go(&self) {
        fs::write(self.0.join("go"), "").expect("a file");
    }
}

/// The server's control socket: takes every message, and agrees.
struct Control {
    messages: Arc<Mutex<Vec<Value>>>,
}

impl Control {
    fn listen(path: &Path) -> Control {
        let listener = UnixListener::bind(path).expect("a Unix socket");
        let messages = Arc::new(Mutex::new(Vec::new()));
        let taken = messages.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut wire) = stream.and_then(Wire::accepted) else { return };
                let deadline = Instant::now() + TEST_TIMEOUT;
                // Some only look whether somebody is there.
                let Ok(head) = wire.read_head(deadline) else { continue };
                let length = head.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
                let Ok(body) = wire.read_exactly(length, deadline) else { continue };
                let message = serde_json::from_slice(&body).unwrap_or(Value::Null);
                taken.lock().expect("no panic holds the lock").push(message);
                let ok = "{\"ok\":true}\n";
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{ok}",
                    ok.len()
                );
                let _ = wire.write(answer.as_bytes());
            }
        });
        Control { messages }
    }
}
