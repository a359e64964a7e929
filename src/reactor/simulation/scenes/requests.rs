//! Requests step by step: workers that fail, die, hang and refuse, and what their clients, the log and status say of it.

use super::{said, world_of};
use crate::process::Exit;
use crate::reactor::io::token::{Readiness, Target};
use crate::reactor::simulation::process;
use crate::reactor::simulation::rooms::{keep_log, logged, ms};
use crate::reactor::simulation::wire::{self, Kind, Shared, Wire};
use crate::reactor::simulation::world::World;
use crate::reactor::stopping::StopCause;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A world whose clients and workers do only what they are told here.
pub(super) struct Scene {
    pub(super) world: World,
    clients: Vec<Shared>,
    /// Connections to workers, in the order of their making.
    pub(super) lines: Vec<Shared>,
    /// Where workers listen that came by themselves.
    sockets: Vec<PathBuf>,
}

impl Scene {
    pub(super) fn new() -> Self {
        Scene::of("w:1 --quarantine=off")
    }

    pub(super) fn of(words: &str) -> Self {
        keep_log();
        let world = world_of(words);
        let lines = world.workers.iter().flat_map(|worker| &worker.lines).map(|line| line.wire.clone());
        let lines = lines.filter(|wire| !wire.borrow().is_server_gone).collect();
        Scene { world, clients: Vec::new(), lines, sockets: Vec::new() }
    }

    /// A client connects and sends that.
    pub(super) fn send(&mut self, text: &str) -> Shared {
        let client = Wire::new(Kind::Tcp, 1 << 20);
        self.world.door.borrow_mut().waiting.push_back(client.clone());
        client.borrow_mut().send(text.as_bytes());
        self.clients.push(client.clone());
        let knock = Readiness { is_readable: true, ..Readiness::default() };
        self.tick(&[(Target::Listener(0), knock)]);
        self.run();
        client
    }

    /// What is not tried twice.
    pub(super) fn post(&mut self, path: &str, body: &str) -> Shared {
        let length = body.len();
        self.send(&format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}"))
    }

    pub(super) fn get(&mut self, path: &str) -> Shared {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    pub(super) fn tick(&mut self, events: &[(Target, Readiness)]) {
        self.world.reactor.io.move_clock_to(self.world.now);
        self.world.reactor.tick(events);
        self.world.meet_new_workers();
        for socket in self.world.workers.iter().map(|worker| &worker.socket).chain(&self.sockets) {
            self.lines.extend(wire::accept_at(socket));
        }
    }

    /// Ticks until nothing is left to do at this moment.
    pub(super) fn run(&mut self) {
        for _ in 0..300 {
            let told = self.clients.iter().chain(&self.lines).filter_map(|wire| wire.borrow_mut().tell());
            let events: Vec<_> =
                told.filter_map(|(_, token, readiness)| Some((Target::of(token)?, readiness))).collect();
            let reactor = &self.world.reactor;
            let has_ready =
                reactor.io.has_ready() || reactor.frontend.has_work() || reactor.admin.has_ready();
            let has_answers = process::table(|table| !table.answers.is_empty());
            let is_first = events.is_empty() && !has_ready && !has_answers;
            self.tick(&events);
            if is_first || self.world.reactor.exit.is_some() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Time passes, and what is due is done.
    pub(super) fn pass(&mut self, ms: u64) {
        let until = self.world.now + Duration::from_millis(ms);
        while let Some(due) = self.world.reactor.next_deadline().filter(|due| *due <= until) {
            self.world.now = self.world.now.max(due);
            self.run();
        }
        self.world.now = until;
        self.run();
    }

    /// What the worker has been sent over its last connection.
    pub(super) fn asked(&self) -> String {
        self.lines.last().map(said).unwrap_or_default()
    }

    pub(super) fn answer(&mut self, text: &str) {
        self.lines.last().expect("a connection").borrow_mut().send(text.as_bytes());
        self.run();
    }

    /// The worker closes its last connection.
    pub(super) fn hang_up(&mut self) {
        let line = self.lines.last().expect("a connection").clone();
        line.borrow_mut().take(usize::MAX);
        line.borrow_mut().close();
        self.run();
    }

    /// The worker's process ends, and with it all of its connections.
    pub(super) fn die(&mut self, exit: Exit) -> i32 {
        let worker = self.world.workers.last().expect("a worker");
        let pid = worker.pid;
        wire::leave(&worker.socket);
        process::table(|table| table.end(pid, exit));
        for line in &self.lines {
            line.borrow_mut().take(usize::MAX);
            line.borrow_mut().close();
        }
        self.world.reactor.supervisor.note_ended_children();
        self.run();
        pid
    }

    /// The worker's process is on its way out, which the server has not heard yet.
    pub(super) fn is_ending(&mut self, exit: Exit) {
        let pid = self.world.workers.last().expect("a worker").pid;
        process::table(|table| table.end(pid, exit));
    }

    /// Somebody listens there, for connections of the server's.
    pub(super) fn listen(&mut self, path: &str) {
        wire::listen_at(Path::new(path));
        self.sockets.push(path.into());
    }

    /// The worker that was started last is ready.
    pub(super) fn join(&mut self) {
        self.pass(1100);
        self.join_now();
    }

    /// The same, where it was started at once.
    pub(super) fn join_now(&mut self) {
        let last = self.world.workers.len() - 1;
        self.world.join(last);
        let control = self.world.controls.last().expect("its join").clone();
        self.clients.push(control);
        self.run();
    }

    /// The access lines since this was asked last.
    pub(super) fn lines_of_log(&mut self) -> Vec<Value> {
        let text = self.world.reactor.observer.take_lines();
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a line of JSON"))
            .collect()
    }
}

fn code(client: &Shared) -> String {
    let text = said(client);
    text.split(' ').nth(1).unwrap_or("nothing").to_owned()
}

#[test]
fn an_answer_passes_and_has_its_line() {
    let mut scene = Scene::new();
    let client = scene.get("/page?a=1");
    assert!(scene.asked().starts_with("GET /page?a=1 HTTP/1.1\r\n"));
    scene.world.now += ms(30);
    scene.answer(OK);
    assert!(said(&client).ends_with("\r\n\r\nok"));
    let lines = scene.lines_of_log();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].to_string().contains("/page"), "{}", lines[0]);
}

#[test]
fn a_request_whose_idle_connection_was_closed_meanwhile_is_tried_once_more() {
    let mut scene = Scene::new();
    let first = scene.get("/one");
    assert!(scene.asked().starts_with("GET /one "));
    scene.answer(OK);
    assert_eq!(code(&first), "200");
    logged();
    let second = scene.get("/two");
    assert!(scene.asked().starts_with("GET /two "));
    scene.hang_up();
    scene.pass(200);
    let log = logged();
    assert!(log.contains("GET /two (id ") && log.contains("trying it once more"), "{log}");
    // First the worker is asked whether it is idle.
    assert!(scene.asked().starts_with("GET /ready "));
    scene.answer(OK);
    assert!(scene.asked().starts_with("GET /two "));
    scene.world.now += ms(7);
    scene.answer(OK);
    assert_eq!(code(&second), "200");
    assert!(scene.world.reactor.metrics_text().contains("\nrip_retries_total 1\n"));
}

#[test]
fn a_worker_that_gives_no_answer_on_a_fresh_connection_is_told_as_it_is() {
    let mut scene = Scene::new();
    let client = scene.post("/one", "");
    scene.world.now += ms(30);
    scene.hang_up();
    let lines = scene.lines_of_log();
    assert!(lines.len() == 1 && lines[0].to_string().contains("502"), "{lines:?}");
    assert_eq!(code(&client), "502");
    let log = logged();
    assert!(log.contains("worked 30 ms") && log.contains("failed: "), "{log}");
    assert!(!log.contains("once more"), "{log}");
}

#[test]
fn a_worker_that_dies_is_named_with_the_request_that_it_had() {
    let mut scene = Scene::new();
    let client = scene.post("/deadly", "");
    let id = scene.world.reactor.status_details()["workerList"][0]["worker"].clone();
    let pid = scene.die(Exit::Signal(Signal::SIGSEGV));
    scene.pass(200);
    assert_eq!(code(&client), "502");
    let deaths = scene.world.reactor.status_details()["deaths"].clone();
    assert_eq!(deaths[0]["pid"], pid, "{deaths}");
    assert!(deaths[0].to_string().contains("/deadly"), "{deaths}");
    let failures = scene.world.reactor.status_details()["failures"].clone();
    assert_eq!(
        (&failures[0]["path"], &failures[0]["pid"]),
        (&"/deadly".into(), &pid.into()),
        "{failures} {id}"
    );
    let log = logged();
    assert!(log.contains("POST /deadly (id ") && log.contains("failed: "), "{log}");
}

#[test]
fn a_request_in_which_workers_die_is_refused_until_there_is_new_code() {
    let mut scene = Scene::of("w:1 --quarantine=2");
    for count in 1..=2 {
        let client = scene.post("/deadly", "bad");
        assert!(scene.asked().starts_with("POST /deadly "), "{count}");
        scene.die(Exit::Signal(Signal::SIGSEGV));
        scene.pass(200);
        assert_eq!(code(&client), "502");
        scene.join();
        let log = logged();
        let told = if count == 1 { "died in POST /deadly" } else { "the 2. of it within a minute" };
        assert!(log.contains("quarantine: worker ") && log.contains(told), "{log}");
    }
    let refused = scene.post("/deadly", "bad");
    let text = said(&refused);
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    let rows = scene.world.reactor.status_details()["quarantine"].clone();
    assert_eq!(
        (&rows[0]["request"], &rows[0]["deaths"], &rows[0]["refused"]),
        (&"POST /deadly".into(), &2.into(), &1.into())
    );
    assert_eq!(rows[0]["workers"].as_array().map(Vec::len), Some(2), "{rows}");
    let metrics = scene.world.reactor.metrics_text();
    assert!(
        metrics.contains("\nrip_quarantines_total 1\n") && metrics.contains("\nrip_quarantined_requests 1\n")
    );
    // Another body is another request.
    let other = scene.post("/deadly", "good");
    scene.answer(OK);
    assert_eq!(code(&other), "200");
    logged();
    scene.world.reactor.end_quarantine();
    assert!(logged().contains("quarantine: emptied, since there is new code; 1 requests are served again"));
    let again = scene.post("/deadly", "bad");
    scene.answer(OK);
    assert_eq!(code(&again), "200");
    scene.world.reactor.end_quarantine();
    assert_eq!(logged(), "", "there is nothing in it");
}

#[test]
fn an_answer_that_does_not_come_is_told_and_its_worker_is_stuck_and_replaced() {
    let mut scene = Scene::of("w:1 --quarantine=1");
    let client = scene.get("/slow");
    // Others are answered meanwhile, so that it is this one's fault.
    scene.world.reactor.quarantine.note_answer(scene.world.now + ms(600));
    assert_eq!(scene.world.reactor.status_summary().0, 200);
    scene.pass(499);
    assert_eq!(said(&client), "");
    scene.pass(1);
    assert_eq!(code(&client), "504");
    assert!(logged().contains("GET /slow (id "), "named in the log");
    let (status, line) = scene.world.reactor.status_summary();
    assert!(status == 503 && line.contains("\"hung\""), "{line}");
    scene.pass(1800);
    let log = logged();
    assert!(log.contains("stuck in GET /slow (id ") && log.contains("it is replaced"), "{log}");
    assert!(log.contains("got stuck in GET /slow"), "{log}");
    let deaths = scene.world.reactor.status_details()["deaths"].clone();
    assert!(deaths[0].to_string().contains("/slow") && deaths[0].to_string().contains("stuck"), "{deaths}");
}

#[test]
fn bytes_that_are_no_answer_are_a_bad_gateway() {
    let mut scene = Scene::new();
    let client = scene.get("/one");
    scene.answer("this is no answer\r\n\r\n");
    assert_eq!(code(&client), "502");
    assert!(logged().contains("its answer has no status line"));
    scene.pass(200);
    // What it may still be at is not known, so it is asked.
    assert!(scene.asked().starts_with("GET /ready "));
    scene.answer(OK);
    let client = scene.get("/two");
    scene.answer(OK);
    assert_eq!(code(&client), "200");
}

#[test]
fn a_worker_at_whose_socket_nobody_listens_is_replaced() {
    let mut scene = Scene::new();
    let socket = scene.world.workers[0].socket.clone();
    scene.hang_up();
    wire::leave(&socket);
    let _client = scene.get("/one");
    scene.pass(200);
    let log = logged();
    assert_eq!(log.matches("refuses connections; it is replaced").count(), 1, "{log}");
}

#[test]
fn whoever_waits_at_a_second_signal_is_told_that_the_server_stops() {
    let mut scene = Scene::new();
    let served = scene.get("/one");
    let waits = scene.get("/two");
    let arriving = scene.send("POST /three HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab");
    scene.world.reactor.begin_stop(StopCause::Signal(Signal::SIGTERM));
    scene.run();
    assert!(scene.world.reactor.exit.is_none());
    scene.pass(100);
    scene.world.reactor.begin_stop(StopCause::Signal(Signal::SIGTERM));
    assert_eq!(scene.world.reactor.exit, Some(1));
    for client in [&served, &waits, &arriving] {
        let text = said(client);
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    }
    let lines = scene.lines_of_log();
    assert_eq!(lines.len(), 3, "each has its line: {lines:?}");
}

#[test]
fn what_waits_in_the_queue_is_served_in_order_and_no_longer_than_its_time() {
    let mut scene = Scene::new();
    let first = scene.get("/one");
    let (second, third) = (scene.get("/two"), scene.get("/three"));
    let details = scene.world.reactor.status_details();
    assert_eq!((&details["queue"]["now"], &details["clients"]), (&2.into(), &3.into()));
    assert_eq!(details["workerList"][0]["oldest"]["path"], "/one");
    scene.pass(100);
    scene.answer(OK);
    assert_eq!(code(&first), "200");
    assert!(scene.asked().ends_with("\r\n\r\n"));
    scene.pass(200);
    assert_eq!((code(&third).as_str(), said(&second).as_str()), ("504", ""));
    scene.answer(OK);
    assert_eq!(code(&second), "200");
    let details = scene.world.reactor.status_details();
    assert_eq!((&details["queue"]["now"], &details["queue"]["deepest"]), (&0.into(), &2.into()));
    assert!(details["queue"]["longestMs"].as_u64().is_some_and(|waited| waited >= 100));
    // The one at work counts as needed for a minute and more.
    assert_eq!(details["needed"]["workers"], 1);
}

#[test]
fn a_client_that_leaves_the_queue_is_logged_and_no_worker_hears_of_it() {
    let mut scene = Scene::new();
    let _first = scene.get("/one");
    let second = scene.get("/two");
    scene.lines_of_log();
    second.borrow_mut().reset();
    scene.run();
    let lines = scene.lines_of_log();
    assert!(lines.len() == 1 && lines[0].to_string().contains("/two"), "{lines:?}");
    scene.asked();
    scene.answer(OK);
    assert_eq!(scene.asked(), "");
}

/// Takes a part of what the server has written, which the kernel does not tell: its buffer is still two thirds full.
fn take_quietly(wire: &Shared, bytes: usize) {
    let mut wire = wire.borrow_mut();
    let bytes = bytes.min(wire.from_server.len());
    wire.from_server.drain(..bytes);
}

#[test]
fn a_client_that_takes_less_than_the_kernel_tells_of_is_waited_for() {
    let mut scene = Scene::new();
    let client = scene.get("/one");
    client.borrow_mut().set_capacity(100);
    scene.answer(&format!("HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{}", "x".repeat(400)));
    while client.borrow().written.len() < 400 && !client.borrow().is_server_gone {
        take_quietly(&client, 30);
        scene.pass(3000);
    }
    assert!(!client.borrow().is_server_gone, "it takes 30 bytes in 3 seconds");
    // One that takes nothing at all.
    let idle = scene.get("/two");
    idle.borrow_mut().set_capacity(100);
    scene.answer(&format!("HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{}", "x".repeat(400)));
    scene.pass(2999);
    assert!(!idle.borrow().is_server_gone);
    scene.pass(1);
    assert!(idle.borrow().is_server_gone && idle.borrow().server_resets);
}

#[test]
fn a_worker_that_takes_less_than_the_kernel_tells_of_is_waited_for() {
    let mut scene = Scene::new();
    scene.get("/one");
    scene.answer(OK);
    let line = scene.lines.last().expect("a connection").clone();
    line.borrow_mut().take(usize::MAX);
    line.borrow_mut().set_capacity(100);
    let client = scene.post("/two", &format!("{}end", "b".repeat(400)));
    while !line.borrow().written.ends_with(b"end") && client.borrow().written.is_empty() {
        take_quietly(&line, 40);
        scene.pass(500);
    }
    scene.answer(OK);
    assert_eq!(code(&client), "200", "its worker takes 40 bytes in half a second");
    // One that takes nothing at all.
    let client = scene.post("/three", &"b".repeat(400));
    scene.pass(499);
    assert_eq!(said(&client), "");
    scene.pass(1);
    assert_eq!(code(&client), "504");
}
