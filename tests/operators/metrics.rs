//! Metrics: where they are to be had, whether Prometheus can read them, and whether they tell what has happened.

use super::busy;
use super::exposition::{Samples, parse, parse_with_prometheus_client};
use crate::load::{Gate, started_by};
use crate::support::{Client, Hold, Server, Signal, Trouble, test_worker};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Longer than any test needs.
const LONG_MS: u64 = 60_000;

fn metrics_address(server: &Server) -> SocketAddr {
    let lines = server.stdout_lines();
    let first = lines.first().expect("the line at the start");
    let phrase = first.split(' ').find_map(|phrase| phrase.strip_prefix("metrics="));
    phrase.and_then(|at| at.parse().ok()).unwrap_or_else(|| panic!("no metrics= in: {first}"))
}

/// What the control socket tells, which counts itself nowhere.
fn samples(server: &Server) -> Samples {
    parse(&server.control("GET", "/metrics", "").text())
}

/// How much a sample has grown since.
fn grown(before: &Samples, after: &Samples, name: &str) -> f64 {
    let value = |samples: &Samples| samples.get(name).copied();
    // A depth that was never reached has no line.
    let after = value(after).unwrap_or_else(|| panic!("no {name} in {after:#?}"));
    after - value(before).unwrap_or(0.0)
}

/// Waits until that much is counted, since a request is counted when its answer is out.
#[track_caller]
fn assert_grows(server: &Server, before: &Samples, expected: &[(&str, f64)]) {
    let mut found = Vec::new();
    let is_so = || {
        let after = samples(server);
        found = expected.iter().map(|(name, _)| (*name, grown(before, &after, name))).collect();
        found == expected
    };
    let holds = crate::support::comes_true(crate::support::TEST_TIMEOUT / 4, is_so);
    assert!(holds, "grown: {found:#?}, expected: {expected:#?}");
}

#[test]
fn port_0_is_told_and_metrics_are_all_that_is_there() {
    let mut server = Server::with_test_worker(&["w:1", "metrics:127.0.0.1:0"]);
    server.wait_for_workers(1);
    let address = metrics_address(&server);
    assert_ne!(address.port(), 0);
    assert_ne!(address, server.address());
    let mut client = Client::connect(address);
    let answer = client.get("/metrics");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").expect("a type");
    assert!(kind.starts_with("text/plain") && kind.contains("version=0.0.4"), "{kind}");
    let text = answer.text();
    let over_http = parse(&text);
    assert_eq!(client.get("/metrics").status, 200, "the connection goes on");
    for (method, path) in [("GET", "/"), ("GET", "/status"), ("POST", "/control"), ("POST", "/metrics")] {
        client.send_request(method, path, "", br#"{"op":"stop"}"#);
        let refused = client.read_response();
        assert_eq!(refused.status, 404, "{method} {path}: {}", refused.text());
    }
    assert!(samples(&server).keys().eq(over_http.keys()), "the control socket tells the same");
    // On the app's port the path is the app's.
    assert_eq!(server.get("/metrics").status, 404);
    if let Some(read) = parse_with_prometheus_client(&text) {
        assert_eq!(read, over_http);
    }
}

#[test]
fn every_metric_of_the_docs_is_there_from_the_start() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let samples = samples(&server);
    let reference = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"))
        .expect("the reference");
    let is_name = |phrase: &&str| {
        (phrase.starts_with("rip_") || phrase.starts_with("process_")) && !phrase.starts_with("rip_<")
    };
    let names: Vec<&str> = reference
        .lines()
        .filter(|line| line.starts_with("| `rip_") || line.starts_with("| `process_"))
        .flat_map(|line| line.split('|').nth(1).unwrap_or_default().split('`').filter(is_name))
        .map(|name| name.split('{').next().unwrap_or_default())
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        // Depths come with load.
        let is_it = |sample: &String| {
            sample
                .split('{')
                .next()
                .is_some_and(|found| found == name || found.strip_suffix("_count") == Some(name))
        };
        assert!(name.contains("busy_seconds") || samples.keys().any(is_it), "{name}");
    }
}

#[test]
fn requests_are_counted_by_class_and_refusals_by_reason() {
    let mut server = Server::with_test_worker(&[
        "w:1",
        "--max-body=1k",
        "--max-queue=1",
        "--queue-timeout-ms=2000",
        "--read-timeout-ms=600000",
    ]);
    server.wait_for_workers(1);
    let before = samples(&server);
    let mut client = server.client();
    for (target, status) in [("/ping", 200), ("/ping", 200), ("/none", 404), ("/panic", 500)] {
        assert_eq!(client.get(target).status, status, "{target}");
    }
    assert_eq!(server.client().post("/echo", &[b'x'; 1025]).status, 413);
    let mut wrong = server.client();
    wrong.send("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n");
    assert_eq!(wrong.read_response().status, 400);
    let _busy = busy(&mut server);
    let mut waiting = server.client();
    waiting.send_request("GET", "/ping", "", b"");
    server.wait_until("one waits", |server| server.details()["queue"]["now"] == 1);
    assert_eq!(server.get("/ping").status, 503);
    assert_eq!(waiting.read_response().status, 504);
    // One that leaves while it waits.
    let mut leaving = server.client();
    leaving.send_request("GET", "/ping", "", b"");
    server.wait_until("one waits", |server| server.details()["queue"]["now"] == 1);
    drop(leaving);
    assert_grows(
        &server,
        &before,
        &[
            ("rip_requests_total{status=\"2xx\"}", 2.0),
            ("rip_requests_total{status=\"3xx\"}", 0.0),
            ("rip_requests_total{status=\"4xx\"}", 4.0),
            ("rip_requests_total{status=\"5xx\"}", 3.0),
            ("rip_refusals_total{reason=\"body_too_large\"}", 1.0),
            ("rip_refusals_total{reason=\"bad_request\"}", 1.0),
            ("rip_refusals_total{reason=\"queue_full\"}", 1.0),
            ("rip_refusals_total{reason=\"queue_timeout\"}", 1.0),
            ("rip_refusals_total{reason=\"client_gone\"}", 1.0),
            ("rip_refusals_total{reason=\"worker_died\"}", 0.0),
            ("rip_request_duration_seconds_count", 9.0),
            ("rip_worker_duration_seconds_count", 4.0),
        ],
    );
    let after = samples(&server);
    assert_eq!(after["rip_queue_depth_max"], 1.0);
    let longest = after["rip_queue_wait_max_seconds"];
    assert!((2.0..60.0).contains(&longest), "{longest}");
    let total = grown(&before, &after, "rip_request_duration_seconds_sum");
    assert!(total >= 2.0, "one has waited for 2 s: {total}");
}

#[test]
fn retries_and_restarts_are_counted_by_reason() {
    let mut server = Server::with_test_worker(&["w:2", "--read-timeout-ms=1000"]);
    server.wait_for_workers(2);
    let before = samples(&server);
    assert_eq!(before["rip_worker_starts_total"], 2.0);
    // Tried once more, as a GET may be; both of its workers die.
    assert_eq!(server.get("/die").status, 502);
    server.wait_until("two others", |server| {
        let now = samples(server);
        now["rip_worker_starts_total"] == 4.0 && now["rip_workers{state=\"idle\"}"] == 2.0
    });
    assert_eq!(server.client().get("/sleep?ms=1500").status, 504);
    server.wait_until("both are idle", |server| samples(server)["rip_workers{state=\"idle\"}"] == 2.0);
    assert_eq!(server.verb(["reload"]).code, 0);
    assert_eq!(server.control("POST", "/control", r#"{"op":"retire","workerId":0}"#).status, 200);
    let restarts = |reason: &str| format!("rip_worker_restarts_total{{reason=\"{reason}\"}}");
    assert_grows(
        &server,
        &before,
        &[
            ("rip_retries_total", 1.0),
            ("rip_refusals_total{reason=\"worker_died\"}", 1.0),
            ("rip_refusals_total{reason=\"read_timeout\"}", 1.0),
            (&restarts("reload"), 2.0),
            (&restarts("asked"), 1.0),
            (&restarts("requests"), 0.0),
            (&restarts("stuck"), 0.0),
            // Two after the deaths, two of the reload, and one that was asked for.
            ("rip_worker_starts_total", 5.0),
        ],
    );
}

#[test]
fn crashes_and_failed_boots_are_counted() {
    let gate = Gate::new();
    let mut server = Server::builder(gate.app()).arg("w:1").start();
    server.wait_for_workers(1);
    let before = samples(&server);
    assert_eq!(server.client().post("/die", b"").status, 502);
    let restarts = |reason: &str| format!("rip_worker_restarts_total{{reason=\"{reason}\"}}");
    assert_grows(&server, &before, &[(&restarts("crash"), 1.0), (&restarts("boot_failure"), 0.0)]);
    server.wait_for_workers(1);
    gate.break_build();
    assert_eq!(server.verb(["reload"]).code, 1);
    assert_grows(&server, &before, &[(&restarts("crash"), 1.0), (&restarts("boot_failure"), 1.0)]);
}

#[test]
fn a_worker_that_has_served_enough_has_its_reason() {
    let mut server = Server::with_test_worker(&["w:1", "r:10"]);
    server.wait_for_workers(1);
    let before = samples(&server);
    for _ in 0..10 {
        assert_eq!(server.get("/ping").status, 200);
    }
    assert_grows(&server, &before, &[("rip_worker_restarts_total{reason=\"requests\"}", 1.0)]);
}

#[test]
fn a_worker_that_is_stuck_has_its_reason() {
    let mut server = Server::with_test_worker(&["w:1", "--read-timeout-ms=100", "--drain-timeout-ms=100"]);
    server.wait_for_workers(1);
    let before = samples(&server);
    assert_eq!(server.get(&format!("/sleep?ms={LONG_MS}")).status, 504);
    assert_grows(&server, &before, &[("rip_worker_restarts_total{reason=\"stuck\"}", 1.0)]);
}

#[test]
fn workers_are_told_by_state_and_by_what_the_nth_was_needed_for() {
    let mut server = Server::with_test_worker(&["w:3", "--read-timeout-ms=60000"]);
    server.wait_for_workers(3);
    let state = |name: &str| format!("rip_workers{{state=\"{name}\"}}");
    let now = samples(&server);
    assert_eq!((now[&state("idle")], now[&state("busy")]), (3.0, 0.0));
    let _first = busy(&mut server);
    let hold = Hold::new();
    let mut second = hold.ask(&server);
    server.wait_until("two at work", |server| samples(server)[&state("busy")] == 2.0);
    let both = Instant::now();
    let now = samples(&server);
    assert_eq!((now[&state("idle")], now[&state("booting")]), (1.0, 0.0));
    let both_s = both.elapsed().as_secs_f64();
    hold.let_go();
    assert_eq!(second.read_response().status, 200);
    let now = samples(&server);
    let depth = |depth: u8| now.get(&format!("rip_worker_busy_seconds_total{{depth=\"{depth}\"}}"));
    let (one, two) = (depth(1).expect("one was at work"), depth(2).expect("two were"));
    assert!(*two >= both_s && one >= two, "{one} and {two}, at least {both_s}");
    assert!(depth(3).is_none_or(|three| *three == 0.0), "three never were");
    assert_eq!(now["rip_workers_needed"], 2.0);
}

#[test]
fn bytes_are_counted_both_ways() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    server.wait_until("no client", |server| samples(server)["rip_client_connections"] == 0.0);
    let before = samples(&server);
    let mut client = server.client();
    let body = vec![b'x'; 100_000];
    let head = format!("POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send(&head);
    client.send(&body);
    let answer = client.read_response();
    assert_eq!(client.get("/bytes?n=200000").body.len(), 200_000);
    let get = "GET /bytes?n=200000 HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_grows(
        &server,
        &before,
        &[
            ("rip_received_bytes_total", (head.len() + body.len() + get.len()) as f64),
            ("rip_sent_body_bytes_total", (answer.body.len() + 200_000) as f64),
            ("rip_client_connections", 1.0),
        ],
    );
}

#[test]
fn lines_that_nobody_reads_are_counted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fifo = dir.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a pipe with a name");
    // Both of its ends are the server's own, so it is open and never read.
    let start = started_by(dir.path(), &format!("exec 1<>{}; exec", fifo.display()));
    let server = Server::carried_by(start).arg(test_worker()).args(["w:1", "--json"]);
    let mut server = server.start();
    server.wait_for_workers(1);
    assert_eq!(samples(&server)["rip_log_lines_dropped_total"], 0.0);
    // More than the pipe and the server's own bound of 1 MiB hold.
    let target = format!("/{}", "x".repeat(12_000));
    let mut client = server.client();
    for _ in 0..200 {
        client.send_request("GET", &target, "", b"");
        let answer = client.read_response_within(crate::support::TEST_TIMEOUT);
        assert!(answer.as_ref().is_ok_and(|answer| answer.status == 404), "{answer:?}");
    }
    let mut dropped = 0.0;
    // Lines are written a moment behind their answers, so it may grow between two looks.
    server.wait_until("dropped lines", |server| {
        dropped = samples(server)["rip_log_lines_dropped_total"];
        dropped > 0.0 && server.details()["droppedLogLines"].as_f64() == Some(dropped)
    });
    assert!(dropped <= 201.0, "{dropped}");
}

/// More scrapers than are kept at once.
const SCRAPERS: usize = 80;

#[test]
fn scrapers_that_stay_give_way_to_younger_ones() {
    let mut server = Server::with_test_worker(&["w:1", "metrics:127.0.0.1:0"]);
    server.wait_for_workers(1);
    let ask = |_| {
        let mut client = Client::connect(metrics_address(&server));
        assert_eq!(client.get("/metrics").status, 200);
        client
    };
    let mut scrapers: Vec<Client> = (0..SCRAPERS).map(ask).collect();
    assert!(scrapers[0].is_closed_within(crate::support::TEST_TIMEOUT), "the oldest one");
    assert_eq!(scrapers[SCRAPERS - 1].get("/metrics").status, 200, "the youngest one");
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn scrapers_that_come_all_at_once_give_way_to_the_youngest_too() {
    let mut server = Server::with_test_worker(&["w:1", "metrics:127.0.0.1:0"]);
    server.wait_for_workers(1);
    let address = metrics_address(&server);
    // All of them are in the backlog when the server looks.
    server.signal(Signal::SIGSTOP);
    let mut scrapers: Vec<Client> = (0..SCRAPERS).map(|_| Client::connect(address)).collect();
    server.signal(Signal::SIGCONT);
    assert!(scrapers[0].is_closed_within(crate::support::TEST_TIMEOUT), "the oldest one");
    for scraper in &mut scrapers[SCRAPERS / 2..] {
        assert_eq!(scraper.get("/metrics").status, 200, "a young one");
    }
}

#[test]
fn what_is_no_http_is_refused_at_the_metrics_port() {
    let server = Server::with_test_worker(&["w:1", "metrics:127.0.0.1:0"]);
    let mut wrong = Client::connect(metrics_address(&server));
    wrong.send("this is no HTTP\r\n\r\n");
    assert_eq!(wrong.read_response().status, 400);
    let (_, trouble) = wrong.read_until_close();
    assert!(matches!(trouble, Trouble::Closed | Trouble::Reset));
}

/// Sends as many requests as the server takes within a while, and reads nothing.
fn pipeline(client: &mut Client, request: &str) {
    const MAX_REQUESTS: usize = 50_000;
    client.wire.write_within(Duration::from_millis(300));
    let many = request.repeat(50);
    let _ = (0..MAX_REQUESTS / 50).find(|_| client.try_send(&many).is_err());
}

#[test]
fn who_pipelines_requests_and_reads_nothing_costs_next_to_nothing() {
    const REQUEST: &str = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut server = Server::with_test_worker(&["w:1", "metrics:127.0.0.1:0"]);
    server.wait_for_workers(1);
    // Code that has never run is not in memory yet.
    for mut warm in
        [Client::connect(metrics_address(&server)), Client::connect_unix(&server.control_socket())]
    {
        warm.send(REQUEST.repeat(300));
        for _ in 0..300 {
            assert_eq!(warm.read_response().status, 200);
        }
    }
    let before_kib = server.rss_kib();
    let mut scraper = Client::connect(metrics_address(&server));
    let mut operator = Client::connect_unix(&server.control_socket());
    pipeline(&mut scraper, REQUEST);
    pipeline(&mut operator, REQUEST);
    let grown_kib = server.rss_kib().saturating_sub(before_kib);
    assert!(grown_kib < 1024, "{grown_kib} KiB for two that read nothing");
    assert_eq!(server.get("/server").text(), "ok");
    // Whoever reads after all gets all of it, one behind the other.
    for _ in 0..300 {
        assert_eq!(scraper.read_response().status, 200);
    }
    assert_eq!(server.details()["status"], "healthy");
}

#[test]
fn idle_connections_of_operators_are_closed_and_bounded() {
    const MORE_THAN_THE_BOUND: usize = 300;
    let mut server = Server::with_test_worker(&["w:1", "metrics:127.0.0.1:0", "--idle-timeout-ms=1500"]);
    server.wait_for_workers(1);
    let control = server.control_socket();
    let mut operators: Vec<Client> =
        (0..MORE_THAN_THE_BOUND).map(|_| Client::connect_unix(&control)).collect();
    let mut scrapers: Vec<Client> = (0..100).map(|_| Client::connect(metrics_address(&server))).collect();
    assert_eq!(server.details()["status"], "healthy", "many that say nothing keep nobody out");
    let mut scraper = Client::connect(metrics_address(&server));
    assert_eq!(scraper.get("/metrics").status, 200);
    for client in operators.iter_mut().chain(&mut scrapers).chain([&mut scraper]) {
        assert!(client.is_closed_within(crate::support::TEST_TIMEOUT), "an idle connection stays open");
    }
}

#[test]
fn a_half_closed_operator_gets_its_answer() {
    let server = Server::with_test_worker(&["w:1"]);
    let mut operator = Client::connect_unix(&server.control_socket());
    operator.send("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\nGET /server HTTP/1.1\r\nHost: a\r\n\r\n");
    operator.half_close();
    assert_eq!(operator.read_response().status, 200);
    assert_eq!(operator.read_response().text(), "ok");
    assert_eq!(operator.read_until_close().1, Trouble::Closed);
}
