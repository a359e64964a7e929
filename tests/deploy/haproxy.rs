//! `haproxy.cfg` for real: two servers behind an HAProxy, one after the other stopped and started under load. Each
//! server has a loopback address of its own, so that no other connection of this machine takes its port meanwhile.

use super::{example, find_program};
use crate::support::skip::skip;
use crate::support::wire::Wire;
use crate::support::{Client, Response, Server, Signal, TEST_TIMEOUT, comes_true, test_worker, wait_until};
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;

/// What the example says, and where it stands for something of the test's own.
const FRONT: &str = "bind :80\n";
const STATISTICS: &str = "bind 127.0.0.1:8404\n";
const SERVERS: [(&str, &str, &str); 2] =
    [("a", "192.0.2.11:5002", "127.0.0.2:0"), ("b", "192.0.2.12:5002", "127.0.0.3:0")];
/// HAProxy's own address, for its two ports.
const HAPROXY_ADDRESS: &str = "127.0.0.4:0";

struct HaProxy {
    child: Child,
    front: SocketAddr,
    statistics: SocketAddr,
    dir: TempDir,
}

impl HaProxy {
    /// Started from the example, with `servers` in the place of its servers.
    fn start(program: &Path, servers: [SocketAddr; 2]) -> HaProxy {
        let (front, statistics) = (free_address(), free_address());
        let mut text = example("haproxy.cfg");
        let mut replace = |from: &str, to: &str| {
            assert_eq!(text.matches(from).count(), 1, "'{from}' stands once in haproxy.cfg");
            text = text.replace(from, to);
        };
        replace(FRONT, &format!("bind {front}\n"));
        replace(STATISTICS, &format!("bind {statistics}\n"));
        for ((_, from, _), to) in SERVERS.iter().zip(servers) {
            replace(from, &to.to_string());
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("haproxy.cfg");
        std::fs::write(&path, text).expect("a file can be written");
        let log = File::create(dir.path().join("log")).expect("a file can be made");
        let mut command = Command::new(program);
        command.args(["-db", "-f"]).arg(&path).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let child = command.spawn().expect("HAProxy can be started");
        let proxy = HaProxy { child, front, statistics, dir };
        for (name, _, _) in SERVERS {
            proxy.wait_for_state(name, "UP");
        }
        proxy
    }

    /// Waits until HAProxy says so of a server.
    fn wait_for_state(&self, server: &str, state: &str) {
        let is_so = || self.state(server).is_some_and(|found| found == state);
        assert!(comes_true(TEST_TIMEOUT, is_so), "{server} is not {state}; HAProxy said:\n{}", self.log());
    }

    /// `UP`, `DOWN`, or on the way from one to the other.
    fn state(&self, server: &str) -> Option<String> {
        const STATUS_COLUMN: usize = 17;
        let mut wire = Wire::tcp(self.statistics).ok()?;
        wire.write(b"GET /;csv HTTP/1.1\r\nHost: a\r\n\r\n").ok()?;
        let text = Client { wire }.read_response_within(TEST_TIMEOUT).ok()?.text();
        let info = text.lines().find(|info| info.starts_with(&format!("servers,{server},")))?;
        info.split(',').nth(STATUS_COLUMN).map(str::to_owned)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address where nobody listens. Nobody else picks ports of this one.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(HAPROXY_ADDRESS).expect("a loopback address");
    listener.local_addr().expect("it is bound")
}

fn start_server(address: &str) -> Server {
    let server = Server::builder(test_worker()).args(["w:2", "--trust-proxy=127.0.0.1", "--no-access-log"]);
    let mut server = server.http(address).start();
    server.wait_for_workers(2);
    server
}

/// Load from a few threads through HAProxy, until the end of `play`; whatever is not a whole 200 is a fault.
struct Load {
    front: SocketAddr,
    is_over: AtomicBool,
    answers: AtomicUsize,
    faults: Mutex<Vec<String>>,
}

impl Load {
    const KEPT: usize = 4;
    const FRESH: usize = 4;
    /// So many answers prove that it goes on.
    const ANSWERS: usize = 300;

    fn play(front: SocketAddr, scene: impl FnOnce(&Load)) {
        let load = Load {
            front,
            is_over: AtomicBool::new(false),
            answers: AtomicUsize::new(0),
            faults: Mutex::default(),
        };
        std::thread::scope(|scope| {
            let load = &load;
            for index in 0..Load::KEPT + Load::FRESH {
                // What may not be tried again may not be lost either.
                let what = if index % 2 == 0 { "GET /ping" } else { "POST /echo" };
                scope.spawn(move || load.ask_until_the_end(what, index < Load::KEPT));
            }
            // Also if the scene gives up, since the threads are waited for.
            let _end = SetAtDrop(&load.is_over);
            load.wait_for_answers();
            scene(load);
        });
        let (faults, answers) =
            (load.faults.lock().expect("no panic holds the lock"), load.answers.into_inner());
        assert!(faults.is_empty(), "{} faults beside {answers} answers: {faults:#?}", faults.len());
    }

    fn wait_for_answers(&self) {
        let wanted = self.answers.load(Ordering::Relaxed) + Load::ANSWERS;
        wait_until("more answers", || self.answers.load(Ordering::Relaxed) >= wanted);
    }

    fn ask_until_the_end(&self, what: &str, keeps: bool) {
        let mut kept = None;
        while !self.is_over.load(Ordering::Relaxed) {
            match self.exchange(what, kept.take(), keeps) {
                Ok((client, response)) => {
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    let is_last = response.header("connection") == Some("close");
                    kept = (keeps && !is_last).then_some(client);
                }
                Err(fault) => self.faults.lock().expect("no panic holds the lock").push(fault),
            }
        }
    }

    fn exchange(&self, what: &str, kept: Option<Client>, keeps: bool) -> Result<(Client, Response), String> {
        const BODY: &str = "pong";
        let is_new = kept.is_none();
        let context =
            |error: &dyn std::fmt::Debug| format!("{what}, keeps: {keeps}, new: {is_new}: {error:?}");
        let client = kept.map_or_else(|| Wire::tcp(self.front).map(|wire| Client { wire }), Ok);
        let mut client = client.map_err(|error| context(&error))?;
        let close = if keeps { "" } else { "Connection: close\r\n" };
        let body = if what.starts_with("POST") { BODY } else { "" };
        let length = body.len();
        let head = format!("{what} HTTP/1.1\r\nHost: a\r\n{close}Content-Length: {length}\r\n\r\n");
        client.try_send(head + body).map_err(|error| context(&error))?;
        let response =
            client.read_response_within(TEST_TIMEOUT).map_err(|broken| context(&broken.trouble))?;
        match (response.status, response.text().as_str()) {
            (200, BODY) => Ok((client, response)),
            (status, text) => Err(context(&format!("{status} {text}"))),
        }
    }
}

struct SetAtDrop<'a>(&'a AtomicBool);

impl Drop for SetAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn haproxy_takes_the_configuration() {
    let Some(program) = find_program("haproxy") else {
        return skip("haproxy.cfg", "there is no haproxy");
    };
    let mut command = Command::new(program);
    command.args(["-c", "-f"]).arg(super::example_path("haproxy.cfg"));
    let output = crate::support::server::output(command);
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
    assert!(!output.stderr.contains("WARNING"), "{}", output.stderr);
}

#[test]
fn nothing_is_lost_behind_haproxy_while_one_server_after_the_other_is_stopped_and_started() {
    let Some(program) = find_program("haproxy") else {
        return skip("servers behind HAProxy", "there is no haproxy");
    };
    let mut servers = SERVERS.map(|(_, _, address)| start_server(address));
    let addresses = [servers[0].address(), servers[1].address()];
    let proxy = HaProxy::start(&program, addresses);
    Load::play(proxy.front, |load| {
        for (index, (name, _, _)) in SERVERS.iter().enumerate() {
            servers[index].signal(Signal::SIGTERM);
            assert_eq!(servers[index].wait_exit(), 0);
            load.wait_for_answers();
            // The first one stays away until HAProxy knows; the second one is back before that.
            if index == 0 {
                proxy.wait_for_state(name, "DOWN");
                load.wait_for_answers();
            }
            servers[index] = start_server(&addresses[index].to_string());
            proxy.wait_for_state(name, "UP");
            load.wait_for_answers();
        }
    });
    for server in &servers {
        let details = server.details();
        let workers = details["workerList"].as_array().expect("a list of workers");
        let requests: u64 = workers.iter().filter_map(|worker| worker["requests"].as_u64()).sum();
        assert!(requests > 0, "it was left out after its start: {details}");
    }
}
