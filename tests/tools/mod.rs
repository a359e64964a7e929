//! What the tests of the whole server share beyond the harness: access lines as JSON, gates that hold workers, a
//! worker whose connection is the test's own, and servers behind a line of shell.

#![allow(dead_code)]

use crate::support::wire::Wire;
use crate::support::{Answer, Client, Head, Server, ServerBuilder, TEST_TIMEOUT, WorkerRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::HashSet;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// The access log of a server with `--json`; whatever stands on its stdout has to parse.
pub fn access_lines(server: &Server) -> Vec<Value> {
    let parse = |line: &String| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"))
    };
    server.stdout_lines().iter().map(parse).collect()
}

/// The access lines of one path.
pub fn lines_of(server: &Server, path: &str) -> Vec<Value> {
    access_lines(server).into_iter().filter(|line| line["path"] == path).collect()
}

/// Waits for the access line of a path that was asked for once.
pub fn line_of(server: &mut Server, path: &str) -> Value {
    server.wait_until(&format!("the access line of {path}"), |server| !lines_of(server, path).is_empty());
    let lines = lines_of(server, path);
    assert_eq!(lines.len(), 1, "{path} was asked for once: {lines:?}");
    lines[0].clone()
}

/// All access lines so far. Lines keep their order, so with that of one more request all before it are there.
pub fn settled_lines(server: &mut Server) -> Vec<Value> {
    const LAST: &str = "/server";
    let count = lines_of(server, LAST).len();
    assert_eq!(server.get(LAST).text(), "ok");
    server.wait_until("the last access line", |server| lines_of(server, LAST).len() > count);
    let mut lines = access_lines(server);
    lines.retain(|line| line["path"] != LAST && line["path"] != "/status");
    lines
}

/// Waits for the one line on stderr that has all of these words in it.
pub fn word_on_stderr(server: &mut Server, words: &[&str]) -> String {
    let has_all = |line: &String| words.iter().all(|phrase| line.contains(phrase));
    server.wait_until(&format!("a line with {words:?}"), |server| server.stderr_lines().iter().any(has_all));
    server.stderr_lines().into_iter().find(has_all).unwrap_or_default()
}

/// Waits until so many requests are at work and so many are waiting.
pub fn wait_for_load(server: &mut Server, busy: usize, waiting: usize) {
    server.wait_until(&format!("{busy} at work and {waiting} waiting"), |server| {
        let details = server.details();
        let workers = details["workerList"].as_array().expect("a list of workers");
        workers.iter().filter(|worker| worker["state"] == "busy").count() == busy
            && details["queue"]["now"] == waiting
    });
}

/// The process that is at work, where there is only one.
pub fn wait_for_busy_pid(server: &mut Server) -> i32 {
    wait_for_load(server, 1, 0);
    let details = server.details();
    let busy =
        details["workerList"].as_array().into_iter().flatten().find(|worker| worker["state"] == "busy");
    let pid = busy.and_then(|worker| worker["pid"].as_i64()).expect("it is still busy");
    i32::try_from(pid).expect("a pid")
}

/// `kill -9`.
pub fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal can be sent");
}

/// Holds workers until they are let through, by the targets of their requests.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<Opened>, Condvar)>);

#[derive(Default)]
struct Opened {
    targets: HashSet<String>,
    is_open: bool,
}

impl Gate {
    /// An answer that waits until the gate lets its request through; the body is the worker's number.
    pub fn pass(&self, request: &WorkerRequest) -> Answer {
        let (opened, changed) = &*self.0;
        let holds = |opened: &mut Opened| !opened.is_open && !opened.targets.contains(&request.target);
        let opened = opened.lock().expect("no panic holds the lock");
        let (opened, time) =
            changed.wait_timeout_while(opened, TEST_TIMEOUT, holds).expect("no panic holds the lock");
        drop(opened);
        assert!(!time.timed_out(), "{} waited in vain at the gate", request.target);
        Answer::ok(&request.worker.to_string())
    }

    /// Lets one request through.
    pub fn open_for(&self, target: &str) {
        self.0.0.lock().expect("no panic holds the lock").targets.insert(target.to_owned());
        self.0.1.notify_all();
    }

    /// Lets all through, now and later.
    pub fn open(&self) {
        self.0.0.lock().expect("no panic holds the lock").is_open = true;
        self.0.1.notify_all();
    }
}

/// A server behind a line of shell, in which `"$@"` is the server's command; it must end in `exec`, so that the
/// server's pid is the child's.
pub fn server_behind(shell: &str, app: impl Into<PathBuf>) -> ServerBuilder {
    Server::carried_by(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/shell"))
        .env("TEST_SHELL", shell)
        .env("TEST_PROGRAM", crate::support::server_program())
        .arg(app.into())
}

/// Joins a `w:0` server with a worker whose connections are handed to `converse`, each in a thread of its own, with
/// the head of their first request. It goes on for as long as the test's process.
pub fn join_with_connection(
    server: &Server,
    id: u64,
    converse: impl Fn(Wire, Head) + Clone + Send + 'static,
) {
    join_as(server, std::process::id(), id, converse);
}

/// The same with a join of the protocol's second version: such a worker is asked whether it is idle.
pub fn join_askable(server: &Server, id: u64, converse: impl Fn(Wire, Head) + Clone + Send + 'static) {
    join_saying(r#","drains":true"#, server, std::process::id(), id, converse);
}

/// The same as another process.
pub fn join_as(server: &Server, pid: u32, id: u64, converse: impl Fn(Wire, Head) + Clone + Send + 'static) {
    join_saying("", server, pid, id, converse);
}

fn join_saying(
    more: &str,
    server: &Server,
    pid: u32,
    id: u64,
    converse: impl Fn(Wire, Head) + Clone + Send + 'static,
) {
    let socket = server.dir().join(format!("own{id}.sock"));
    let listener = UnixListener::bind(&socket).expect("a Unix socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut wire) = stream.and_then(Wire::accepted) else { return };
            let converse = converse.clone();
            std::thread::spawn(move || {
                // A connection that ends without a request is none of the test's business.
                if let Ok(head) = wire.read_head(Instant::now() + TEST_TIMEOUT * 3) {
                    converse(wire, head);
                }
            });
        }
    });
    let path = socket.display();
    let join = format!(r#"{{"op":"join","workerId":{id},"pid":{pid},"socket":"{path}","version":1{more}}}"#);
    assert_eq!(server.control("POST", "/worker", &join).status, 200, "the worker joins");
}

/// The whole path of a request that a worker is to see as it is.
pub fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// A client that has sent a GET and waits.
pub fn asking(server: &Server, target: &str) -> Client {
    let mut client = server.client();
    client.send(get(target));
    client
}
