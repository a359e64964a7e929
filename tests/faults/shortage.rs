//! Descriptors, memory or processes run out: what waits goes on by itself when there are some again, and it is
//! counted.

use crate::load;
use crate::support::{Answer, Client, Faults, RawWorker, Server, Signal, Then, test_worker};
use crate::tools::{Gate, asking, kill_9, line_of, wait_for_load, word_on_stderr};
use crate::workload::{Holdings, assert_sound};
use crate::{can_inject, metric};
use std::time::{Duration, Instant};

const PAUSES: &str = "rip_accept_pauses_total";
const CLOSED_FOR_ROOM: &str = "rip_client_connections_closed_for_room_total";
const START_FAILURES: &str = "rip_worker_start_failures_total";

fn start(faults: &Faults) -> Server {
    let mut server = Server::builder(test_worker()).args(["w:1", "--json"]).start_under(faults);
    server.wait_for_workers(1);
    server
}

#[test]
fn accepting_goes_on_by_itself_after_each_kind_of_trouble() {
    if !can_inject("accepting_goes_on_by_itself_after_each_kind_of_trouble") {
        return;
    }
    /// Who has been quiet for so long may be closed to make room.
    const IDLE_FOR: Duration = Duration::from_millis(130);
    // The last two lack nothing, but accepting again at once would only meet them again.
    let kinds = [
        ("EMFILE", true),
        ("ENFILE", true),
        ("ENOMEM", true),
        ("ENOBUFS", true),
        ("EPERM", false),
        ("EINVAL", false),
    ];
    let rules = kinds.map(|(error, _)| format!("client.accept={error}@1"));
    let faults = Faults::for_later(&rules.join(" "));
    let mut server = Server::builder("/bin/true").args(["w:0", "--json"]).start_under(&faults);
    let gate = Gate::default();
    let _workers = [1, 2].map(|id| {
        let gate = gate.clone();
        RawWorker::join(&server, id, move |request| match request.target.strip_prefix("/held") {
            Some(_) => gate.pass(request),
            None => Answer::ok("pong"),
        })
    });
    for (index, (error, is_shortage)) in kinds.into_iter().enumerate() {
        let held = format!("/held/{error}");
        let mut idle = server.client();
        assert_eq!(idle.get("/ping").text(), "pong");
        let since = Instant::now();
        let mut at_work = asking(&server, &held);
        wait_for_load(&mut server, 1, 0);
        server.wait_until("it is quiet", |_| since.elapsed() > IDLE_FOR);
        faults.turn_one(&rules[index], true);
        assert_eq!(server.get("/ping").text(), "pong", "{error}");
        assert_eq!(metric(&server, PAUSES), (index + 1) as f64, "{error}");
        gate.open_for(&held);
        assert_eq!(at_work.read_response().status, 200, "{error}: a request at work is untouched");
        if is_shortage {
            assert_eq!(idle.read_until_close().0, b"", "{error}");
        } else {
            assert_eq!(idle.get("/ping").text(), "pong", "{error}: nothing is to be won by its end");
        }
    }
    faults.assert_all_struck();
    assert!(metric(&server, CLOSED_FOR_ROOM) >= 4.0);
    // Told once each time that it begins.
    server.wait_until("the words", |server| {
        server.stderr_lines().iter().filter(|line| line.contains("accepting pauses")).count() == rules.len()
    });
    assert_sound(&mut server);
}

#[test]
fn verbs_and_scrapers_that_found_no_descriptor_are_answered_a_little_later() {
    if !can_inject("verbs_and_scrapers_that_found_no_descriptor_are_answered_a_little_later") {
        return;
    }
    let rules = ["control.accept=EMFILE@1x2", "client.accept=ENOMEM@1x2", "client.accept=ECONNABORTED@1"];
    let faults = Faults::for_later(&rules.join(" "));
    let mut server = Server::builder(test_worker()).args(["w:1", "metrics:127.0.0.1:0"]).start_under(&faults);
    server.wait_for_workers(1);
    let stdout = server.stdout_lines();
    let scraped = stdout[0].split(' ').find_map(|phrase| phrase.strip_prefix("metrics=")?.parse().ok());
    let scraped = scraped.expect("a listener for metrics");
    faults.turn_one(rules[0], true);
    assert_eq!(server.control("GET", "/status", "").status, 200);
    for rule in &rules[1..] {
        faults.turn_one(rule, true);
        let text = Client::connect(scraped).get("/metrics").text();
        assert!(text.contains(PAUSES), "{text}");
    }
    faults.assert_all_struck();
    assert_sound(&mut server);
}

#[test]
fn a_worker_that_cannot_be_started_is_tried_again() {
    if !can_inject("a_worker_that_cannot_be_started_is_tried_again") {
        return;
    }
    let faults = Faults::new("any.fork=EAGAIN@1x2 any.fork=ENOMEM@1x2");
    let mut server = Server::builder(test_worker()).args(["w:2"]).start_under(&faults);
    // Requests wait meanwhile.
    assert_eq!(server.get("/ping").text(), "pong");
    server.wait_for_workers(2);
    faults.assert_all_struck();
    assert_eq!(metric(&server, START_FAILURES), 4.0);
    assert_eq!(metric(&server, "rip_worker_starts_total"), 2.0);
    word_on_stderr(&mut server, &["cannot be started", "Cannot allocate memory"]);
    assert_sound(&mut server);
}

/// The next start needs a fork of the server's.
fn end_spawner(server: &mut Server) {
    let spawner = load::spawner(server.pid()).expect("workers were started");
    kill_9(spawner);
    server.wait_until("it is reaped", |server| load::spawner(server.pid()).is_none());
}

#[test]
fn starts_that_fail_leave_no_descriptor_behind() {
    if !can_inject("starts_that_fail_leave_no_descriptor_behind") {
        return;
    }
    // A worker gets two pipes: each of them fails once, then the fork of the process that starts workers.
    let rules = ["any.pipe=EMFILE@1", "any.pipe=ENFILE@2", "any.fork=EAGAIN@1"];
    let faults = Faults::for_later(&rules.join(" "));
    let mut server = start(&faults);
    assert_eq!(server.get("/ping").text(), "pong");
    server.wait_until("no client is left", |server| server.details()["clients"] == 0);
    let before = Holdings::at_rest(&server);
    for (index, rule) in rules.iter().enumerate() {
        faults.turn_one(rule, true);
        if rule.contains("fork") {
            end_spawner(&mut server);
        }
        let reload = server.verb(["reload"]);
        assert_eq!(reload.code, 1, "{rule}: {}", reload.stderr);
        faults.turn_one(rule, false);
        if rule.contains("fork") {
            assert_eq!(server.verb(["reload"]).code, 0, "and then it is there again");
        }
        assert_eq!(metric(&server, START_FAILURES), (index + 1) as f64, "{rule}");
        server.wait_until(&format!("{before:?} after {rule}"), |server| {
            Holdings::at_rest(server).is_within(&before)
        });
    }
    faults.assert_all_struck();
    assert_eq!(server.get("/ping").text(), "pong");
    assert_sound(&mut server);
}

#[test]
fn what_waits_at_a_stop_without_descriptors_is_served() {
    if !can_inject("what_waits_at_a_stop_without_descriptors_is_served") {
        return;
    }
    let faults = Faults::for_later("client.accept=EMFILE@1x3");
    let mut server = start(&faults);
    faults.turn_on();
    server.signal(Signal::SIGSTOP);
    let mut waiting = asking(&server, "/ping");
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGCONT);
    assert_eq!(waiting.read_response().text(), "pong");
    assert_eq!(server.wait_exit(), 0);
    faults.assert_all_struck();
}

#[test]
fn without_processes_the_workers_that_live_serve_on() {
    if !can_inject("without_processes_the_workers_that_live_serve_on") {
        return;
    }
    let rule = "any.fork=EAGAIN";
    let faults = Faults::for_later(rule);
    let mut server = Server::builder(test_worker()).args(["w:2"]).start_under(&faults);
    server.wait_for_workers(2);
    faults.turn_on();
    end_spawner(&mut server);
    kill_9(server.worker_pids()[0]);
    server.wait_until("tries to start", |_| faults.hits(rule) >= 3);
    assert_eq!(server.get("/ping").text(), "pong");
    let reload = server.verb(["reload"]);
    assert_eq!(reload.code, 1);
    assert!(reload.stderr.contains("could not be started"), "{}", reload.stderr);
    assert_eq!(server.get("/ping").text(), "pong");
    faults.turn_off();
    server.wait_for_workers(2);
    assert_eq!(metric(&server, START_FAILURES), faults.hits(rule) as f64);
    assert_eq!(server.verb(["reload"]).code, 0);
    assert_sound(&mut server);
}

#[test]
fn a_server_that_can_start_no_worker_at_all_ends_and_says_why() {
    if !can_inject("a_server_that_can_start_no_worker_at_all_ends_and_says_why") {
        return;
    }
    let faults = Faults::new("any.fork=ENOMEM");
    let mut server = Server::builder(test_worker()).args(["w:1"]).start_under(&faults);
    assert_eq!(server.wait_exit(), 1);
    server.wait_until("the reason", |server| {
        let words = server.stderr_text();
        words.contains("Cannot allocate memory") && words.contains("no worker ever joined")
    });
}

/// A server whose worker closes after each answer, so that each request needs a connection.
fn reconnecting(faults: &Faults, arguments: &[&str]) -> (Server, RawWorker) {
    let server = Server::builder("/bin/true").args(["w:0", "--json"]).args(arguments.iter().copied());
    let server = server.start_under(faults);
    let worker = RawWorker::join(&server, 1, |_| {
        let text = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\npong";
        Answer::bytes(text).then(Then::Close)
    });
    assert_eq!(server.get("/first").text(), "pong");
    (server, worker)
}

#[test]
fn a_worker_that_cannot_be_connected_to_at_once_is_tried_again_until_it_can() {
    if !can_inject("a_worker_that_cannot_be_connected_to_at_once_is_tried_again_until_it_can") {
        return;
    }
    let rules = [
        "worker.connect=EAGAIN@1x5",
        "worker.connect=EINTR@1x5",
        "any.socket=EMFILE@1x5",
        "any.socket=ENFILE@1x5",
        "worker.watch=ENOMEM@1x5",
    ];
    let faults = Faults::for_later(&rules.join(" "));
    let (mut server, worker) = reconnecting(&faults, &["--connect-timeout-ms=20000"]);
    for rule in rules {
        faults.turn_one(rule, true);
        assert_eq!(server.client().post("/again", b"once").text(), "pong", "{rule}");
        faults.turn_one(rule, false);
    }
    faults.assert_all_struck();
    assert_eq!(worker.request_count(), 1 + rules.len(), "each came once");
    assert_sound(&mut server);
}

#[test]
fn a_worker_that_cannot_be_connected_to_in_time_costs_its_request() {
    if !can_inject("a_worker_that_cannot_be_connected_to_in_time_costs_its_request") {
        return;
    }
    let faults = Faults::for_later("any.socket=EMFILE");
    let (mut server, _worker) = reconnecting(&faults, &["--connect-timeout-ms=50"]);
    faults.turn_on();
    assert_eq!(server.get("/lost").status, 502);
    let line = line_of(&mut server, "/lost");
    assert_eq!(line["reason"], "connect_failed", "{line}");
    faults.turn_off();
    assert_eq!(server.get("/later").text(), "pong");
    assert_eq!(metric(&server, "rip_refusals_total{reason=\"connect_failed\"}"), 1.0);
    assert_sound(&mut server);
}

#[test]
fn a_worker_that_refuses_a_connection_is_replaced_and_its_request_served() {
    if !can_inject("a_worker_that_refuses_a_connection_is_replaced_and_its_request_served") {
        return;
    }
    let faults = Faults::for_later("worker.read=ECONNRESET@1 worker.connect=ECONNREFUSED@1");
    let mut server = start(&faults);
    let before = server.worker_pids();
    faults.turn_on();
    assert_eq!(server.get("/ping").text(), "pong");
    faults.assert_all_struck();
    server.wait_until("another", |server| {
        let now = server.worker_pids();
        now.len() == 1 && now != before
    });
    assert_sound(&mut server);
}

#[test]
fn connections_that_cannot_be_watched_are_closed_and_no_other() {
    if !can_inject("connections_that_cannot_be_watched_are_closed_and_no_other") {
        return;
    }
    let faults = Faults::for_later("client.watch=ENOMEM@1x3");
    let mut server = start(&faults);
    let mut kept = server.client();
    assert_eq!(kept.get("/ping").text(), "pong");
    faults.turn_on();
    for _ in 0..3 {
        let mut closed = server.client();
        let _ = closed.try_send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(closed.read_until_close().0, b"");
    }
    faults.assert_all_struck();
    assert_eq!(metric(&server, "rip_accept_failures_total"), 3.0);
    assert_eq!(kept.get("/ping").text(), "pong");
    drop(kept);
    assert_eq!(server.get("/ping").text(), "pong");
    assert_sound(&mut server);
}

#[test]
fn interrupted_signals_are_read_again() {
    if !can_inject("interrupted_signals_are_read_again") {
        return;
    }
    let faults = Faults::new("kernel.read=EINTR%2");
    let mut server = start(&faults);
    let before = server.worker_pids();
    kill_9(before[0]);
    server.wait_until("another", |server| {
        let now = server.worker_pids();
        now.len() == 1 && now != before
    });
    assert_sound(&mut server);
    faults.assert_all_struck();
}
