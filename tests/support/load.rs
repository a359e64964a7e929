//! For the tests of the fleet: load from a few threads, what the server tells of its workers, and an app whose boots
//! the test holds in its hand. Used with `#[path = "support/load.rs"] mod load;` beside `mod support;`.

#![allow(dead_code)]

pub use crate::support::write_script;
use crate::support::{Client, Response, Server, TEST_TIMEOUT, comes_true, test_worker, wait_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// What a server under load is started with, so that no stall of a slow machine looks like a loss.
pub const PATIENT: [&str; 3] = ["--no-access-log", "--queue-timeout-ms=60000", "--read-timeout-ms=60000"];

/// Clients that ask again and again. Whatever is not a whole 200 is a fault.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    target: String,
    is_over: AtomicBool,
    answers: AtomicUsize,
    faults: Mutex<Vec<String>>,
    /// Connections that nobody accepted: a fault, unless the server was told to stop.
    refusals: Mutex<Vec<String>>,
}

impl Load {
    /// Two clients with keep-alive and two without.
    pub fn start(server: &Server, target: &str) -> Load {
        Load::of(server, target, 2, 2)
    }

    pub fn of(server: &Server, target: &str, kept: usize, fresh: usize) -> Load {
        let shared = Arc::new(Shared {
            address: server.address(),
            target: target.to_owned(),
            is_over: AtomicBool::new(false),
            answers: AtomicUsize::new(0),
            faults: Mutex::default(),
            refusals: Mutex::default(),
        });
        let threads = (0..kept + fresh).map(|index| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.ask_until_the_end(index < kept))
        });
        let threads = threads.collect();
        let load = Load { shared, threads };
        load.wait_for_answers(1);
        load
    }

    pub fn answers(&self) -> usize {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Waits for so many more answers.
    pub fn wait_for_answers(&self, count: usize) {
        let wanted = self.answers() + count;
        wait_until("more answers", || self.answers() >= wanted || self.has_faults());
    }

    fn has_faults(&self) -> bool {
        !self.shared.faults.lock().expect("no panic holds the lock").is_empty()
    }

    /// Nothing was lost.
    pub fn end(self) {
        let shared = self.join();
        let faults = [&shared.faults, &shared.refusals]
            .map(|list| list.lock().expect("no panic holds the lock").clone())
            .concat();
        let answers = shared.answers.load(Ordering::Relaxed);
        assert!(faults.is_empty(), "{} faults beside {answers} answers: {faults:#?}", faults.len());
    }

    /// The same for a server that stops meanwhile: nothing of what it took was lost.
    pub fn end_with_the_server(self) {
        let shared = self.join();
        let faults = shared.faults.lock().expect("no panic holds the lock").clone();
        assert!(faults.is_empty(), "{} faults: {faults:#?}", faults.len());
    }

    fn join(mut self) -> Arc<Shared> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("load does not panic");
        }
        self.shared.clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn ask_until_the_end(&self, keeps: bool) {
        let mut kept = None;
        while !self.is_over.load(Ordering::Relaxed) {
            let client = kept.take().map_or_else(|| connect(self.address), Ok);
            let mut client = match client {
                Ok(client) => client,
                Err(error) => {
                    return self.refusals.lock().expect("no panic holds the lock").push(error.to_string());
                }
            };
            match exchange(&mut client, &self.target, keeps) {
                Ok(response) => {
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    let is_last = response.header("connection") == Some("close");
                    kept = (keeps && !is_last).then_some(client);
                }
                Err(fault) => self.faults.lock().expect("no panic holds the lock").push(fault),
            }
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<Client> {
    crate::support::wire::Wire::tcp(address).map(|wire| Client { wire })
}

fn exchange(client: &mut Client, target: &str, keeps: bool) -> Result<Response, String> {
    let close = if keeps { "" } else { "Connection: close\r\n" };
    let sent = client.try_send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{close}\r\n"));
    sent.map_err(|error| format!("not sent (kept: {keeps}): {error}"))?;
    let response = client.read_response_within(TEST_TIMEOUT);
    let response = response.map_err(|broken| format!("no answer (kept: {keeps}): {:?}", broken.trouble))?;
    match response.status {
        200 => Ok(response),
        status => Err(format!("{status}: {}", response.text())),
    }
}

/// A worker, as the control socket tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub slot: u64,
    pub generation: u64,
    pub pid: i32,
    pub state: String,
    pub request: String,
}

/// All workers that have a process, by slot and then generation.
pub fn workers(server: &Server) -> Vec<Worker> {
    let details = server.details();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let list = details["workerList"].as_array().expect("a list of workers");
    let mut workers: Vec<Worker> = list
        .iter()
        .map(|worker| Worker {
            slot: number(&worker["slot"]),
            generation: number(&worker["generation"]),
            pid: i32::try_from(number(&worker["pid"])).expect("a pid"),
            state: worker["state"].as_str().unwrap_or_default().to_owned(),
            request: worker["request"].as_str().unwrap_or_default().to_owned(),
        })
        .collect();
    workers.sort_by_key(|worker| (worker.slot, worker.generation));
    workers
}

/// Waits until so many workers are at work.
pub fn wait_for_busy(server: &mut Server, count: usize) {
    server.wait_until(&format!("{count} at work"), |server| {
        workers(server).iter().filter(|worker| worker.state == "busy").count() == count
    });
}

/// Sends a message as a worker or a command does: `{"op":…}`.
pub fn tell(server: &Server, message: &str) -> Response {
    server.control("POST", "/worker", message)
}

/// What the log tells of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Started {
        slot: u64,
        pid: i32,
        why: Option<String>,
    },
    Joined {
        slot: u64,
        pid: i32,
    },
    /// `exit`: empty for exit code 0.
    Ended {
        slot: u64,
        pid: i32,
        exit: String,
        requests: u64,
    },
}

/// The lives of all workers so far, from the server's own lines on stderr.
pub fn events(server: &Server) -> Vec<Event> {
    server.stderr_lines().iter().filter_map(|line| event(line)).collect()
}

fn event(line: &str) -> Option<Event> {
    let line = line.strip_prefix("rip-server: ")?;
    let line = line.strip_prefix("warn: ").unwrap_or(line);
    let (who, what) = line.strip_prefix("worker ")?.split_once("): ")?;
    let (slot, pid) = who.split_once(" (pid ")?;
    let (slot, pid) = (slot.parse().ok()?, pid.parse().ok()?);
    if what.starts_with("started") {
        let why = what.split_once("successor after ").map(|(_, why)| why.to_owned());
        return Some(Event::Started { slot, pid, why });
    }
    if what.starts_with("joined") {
        return Some(Event::Joined { slot, pid });
    }
    let (exit, remaining) = what.split_once("after ")?;
    let requests = remaining.split_once(" request")?.0.parse().ok()?;
    Some(Event::Ended { slot, pid, exit: exit.replace("ended", "").trim().to_owned(), requests })
}

/// Asserts that no successor was started before the one before it had joined, and that nobody who was replaced went
/// before its successor came.
pub fn assert_one_at_a_time(events: &[Event]) {
    let mut serving = BTreeMap::new();
    let mut booting: Option<(i32, Option<i32>)> = None;
    for event in events {
        match event {
            Event::Started { slot, pid, why: Some(_) } => {
                assert_eq!(booting, None, "two are replaced at once: {events:#?}");
                booting = Some((*pid, serving.get(slot).copied()));
            }
            Event::Started { .. } => {}
            Event::Joined { slot, pid } => {
                serving.insert(*slot, *pid);
                booting = booting.filter(|(successor, _)| successor != pid);
            }
            Event::Ended { pid, .. } => {
                let is_early = booting.is_some_and(|(_, old)| old == Some(*pid));
                assert!(!is_early, "it went before its successor came: {events:#?}");
            }
        }
    }
}

/// An app whose starts the test decides: they fail, they are held, or they go on to the test worker.
pub struct Gate {
    dir: TempDir,
}

impl Gate {
    pub fn new() -> Gate {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (place, worker) = (dir.path().display(), test_worker());
        // The time first, so that the wait between two lines is never shorter than that between end and start.
        let text = format!(
            "#!/bin/sh\ndate +%s%N >> {place}/starts\n\
             if [ -e {place}/broken ]; then echo the first last word >&2; echo the build is broken >&2; exit 7; fi\n\
             while [ -e {place}/held ]; do sleep 0.02; done\nexec {}\n",
            worker.display()
        );
        write_script(&dir.path().join("app"), &text);
        Gate { dir }
    }

    pub fn app(&self) -> PathBuf {
        self.dir.path().join("app")
    }

    /// Starts fail from now on.
    pub fn break_build(&self) {
        fs::write(self.dir.path().join("broken"), "").expect("a file can be written");
    }

    pub fn mend_build(&self) {
        fs::remove_file(self.dir.path().join("broken")).expect("it was broken");
    }

    /// Workers that start from now on do not join.
    pub fn hold(&self) {
        fs::write(self.dir.path().join("held"), "").expect("a file can be written");
    }

    pub fn let_go(&self) {
        fs::remove_file(self.dir.path().join("held")).expect("it was held");
    }

    /// When the starts were, since 1970.
    pub fn starts(&self) -> Vec<Duration> {
        let text = fs::read_to_string(self.dir.path().join("starts")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).map(Duration::from_nanos).collect()
    }
}

/// A server behind a script that ends in `exec <server> "$@"`, for what must be set before its start. The app's path
/// is the first argument.
pub fn started_by(dir: &Path, before: &str) -> PathBuf {
    let script = dir.join("start");
    let server = crate::support::server_program();
    write_script(&script, &format!("#!/bin/sh\n{before} {} \"$@\"\n", server.display()));
    script
}

/// The processes whose parent it is, zombies included, but for the one that starts workers.
pub fn children(pid: i32) -> Vec<i32> {
    all_children(pid).into_iter().filter(|(_, name)| name != SPAWNER).map(|(child, _)| child).collect()
}

/// The process that starts a server's workers; it is there from the first start on.
pub fn spawner(pid: i32) -> Option<i32> {
    all_children(pid).into_iter().find(|(_, name)| name == SPAWNER).map(|(child, _)| child)
}

const SPAWNER: &str = "rip-spawner";

/// With the names that the kernel has for them.
fn all_children(pid: i32) -> Vec<(i32, String)> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |child: i32| -> Option<(i32, String)> {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        let (name, remaining) = stat.rsplit_once(") ")?;
        let parent: i32 = remaining.split(' ').nth(1)?.parse().ok()?;
        (parent == pid).then(|| (child, name.split_once('(').unwrap_or_default().1.to_owned()))
    };
    all.filter_map(is_child).collect()
}

/// What a process's descriptors are: `socket:[123]`, `pipe:[45]`, a path.
pub fn descriptors(pid: i32) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives").flatten();
    all.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())).collect()
}

/// Sockets of files in a folder, or whatever else is there.
pub fn files_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether a program is in PATH.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Plays a scene that counts only if it is fast enough (`None`: it was not); a slow machine gets more tries.
pub fn play_in_time(test: &str, mut scene: impl FnMut() -> Option<()>) {
    const TRIES: usize = 10;
    if !(0..TRIES).any(|_| scene().is_some()) {
        crate::support::skip::note(test, "this machine was too slow each time");
    }
}

/// Whether a line on stderr has these words.
pub fn has_line(server: &Server, words: &str) -> bool {
    server.stderr_lines().iter().any(|line| line.contains(words))
}

/// That it stays so for a while, as far as a test can see.
pub fn stays(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    !comes_true(time, || !condition())
}
