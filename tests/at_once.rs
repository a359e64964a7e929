//! Several requests at once in each worker (`c:`), and streams that hold nobody: the real server with a worker in Rust.

mod support;
mod tools;

use std::collections::BTreeSet;
use std::time::Instant;
use support::{Client, Hold, Server, Signal, test_worker};
use tools::{line_of, lines_of, word_on_stderr};

fn start(workers: u64, words: &[&str]) -> Server {
    let builder = Server::builder(test_worker()).env("TEST_SEVERAL", "1");
    let mut server = builder.arg("--json").args(words).arg(format!("w:{workers}")).start();
    server.wait_for_workers(workers);
    server
}

fn asking(server: &Server, method: &str, target: &str) -> Client {
    let mut client = server.client();
    client.send_request(method, target, "", b"");
    client
}

/// An event stream whose first event has come.
fn stream(server: &Server, method: &str, target: &str) -> Client {
    let mut client = server.client();
    client.send_request(method, target, "Accept: text/event-stream\r\nConnection: close\r\n", b"");
    let head = client.read_head();
    assert_eq!(head.header("content-type"), Some("text/event-stream"), "{head:?}");
    client.read_exactly(b"9\r\ndata: 0".len());
    client
}

fn assert_ends_well(stream: &mut Client) {
    let (events, _) = stream.read_until_close();
    assert!(events.ends_with(b"\r\n0\r\n\r\n"), "{}", String::from_utf8_lossy(&events));
}

/// Over all workers.
fn sum(server: &Server, field: &str) -> u64 {
    let details = server.details();
    let workers = details["workerList"].as_array().expect("a list of workers");
    workers.iter().filter_map(|worker| worker[field].as_u64()).sum()
}

fn wait_for(server: &mut Server, at_work: u64, streams: u64) {
    server.wait_until(&format!("{at_work} at work and {streams} streams"), |server| {
        (sum(server, "atWork"), sum(server, "streams")) == (at_work, streams)
    });
}

fn pids(server: &Server) -> BTreeSet<i32> {
    server.worker_pids().into_iter().collect()
}

#[test]
fn a_post_that_streams_holds_its_place_and_nobody_waits_behind_it() {
    let mut server = start(2, &["--queue-timeout-ms=0"]);
    let hold = Hold::new();
    let mut computed = stream(&server, "POST", &hold.events());
    let watched = stream(&server, "GET", "/events");
    let begun = Instant::now();
    wait_for(&mut server, 1, 1);
    // Whoever had to wait would be refused at once.
    let mut client = server.client();
    let answers: BTreeSet<String> = (0..50).map(|_| client.get("/pid").text()).collect();
    assert_eq!(answers.len(), 1, "the other worker has all of them: {answers:?}");
    // The server's clock is read once a turn, so it may be a little behind.
    let age = begun.elapsed().as_secs_f64() / 2.0;
    hold.let_go();
    assert_ends_well(&mut computed);
    wait_for(&mut server, 0, 1);
    drop(watched);
    server.wait_until("their lines", |server| lines_of(server, "/events").len() == 2);
    let ended = lines_of(&server, "/events");
    assert!(ended.iter().all(|line| line["totalSeconds"].as_f64() > Some(age)), "its age, {age}: {ended:?}");
}

#[test]
fn more_than_a_worker_takes_wait_and_all_run_side_by_side() {
    let mut server = start(1, &["c:4"]);
    // All four have begun, and none ends by itself.
    let inside: Vec<Client> = (0..4).map(|_| stream(&server, "POST", "/events")).collect();
    wait_for(&mut server, 4, 0);
    let mut more: Vec<Client> = (0..4).map(|_| asking(&server, "GET", "/sleep?ms=1")).collect();
    server.wait_until("four that wait", |server| server.details()["queue"]["now"] == 4);
    drop(inside);
    for client in &mut more {
        assert_eq!(client.read_response().text(), "slept");
    }
    assert!(!server.stderr_text().contains("answered busy"), "{}", server.stderr_text());
}

#[test]
fn a_busy_answer_stops_what_is_new_and_touches_nothing_that_is_in_the_worker() {
    let mut server = start(1, &["c:4"]);
    let begun = Instant::now();
    let mut inside = stream(&server, "POST", "/events?ms=20");
    wait_for(&mut server, 1, 0);
    // Somebody else takes the other places, and has them once the first events have come.
    let socket = std::fs::read_dir(server.socket_dir()).expect("the socket folder").filter_map(Result::ok);
    let socket = socket.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(".0.1.sock"));
    let socket = socket.expect("the worker's socket");
    let mut others: Vec<Client> = (0..3).map(|_| Client::connect_unix(&socket)).collect();
    for other in &mut others {
        other.send_request("POST", "/events", "", b"");
        other.read_head();
        other.read_exactly(b"9\r\ndata: 0".len());
    }
    let refused = server.get("/ping");
    assert_eq!((refused.status, refused.header("rip-worker-busy")), (503, None));
    word_on_stderr(&mut server, &["answered busy"]);
    // More than can have come before the refusal, at 20 ms an event.
    let events = usize::try_from(begun.elapsed().as_millis()).expect("a short time") / 20 + 2;
    inside.read_exactly(events * b"BB\r\ndata: 9999\n\n\r\n".len());
    drop(others);
    assert_eq!(server.get("/ping").text(), "pong");
    server.wait_until("both lines", |server| lines_of(server, "/ping").len() == 2);
    assert_eq!(lines_of(&server, "/ping")[0]["reason"], "worker_busy");
}

#[test]
fn a_crash_names_all_that_were_in_the_worker() {
    let mut server = start(1, &["c:4"]);
    let old = pids(&server);
    let mut inside: Vec<Client> =
        (0..3).map(|at| asking(&server, "POST", &format!("/sleep?ms=20000&at={at}"))).collect();
    wait_for(&mut server, 3, 0);
    let mut deadly = asking(&server, "POST", "/die");
    for client in inside.iter_mut().chain([&mut deadly]) {
        assert_eq!(client.read_response().status, 502);
    }
    let names = |server: &Server, path: &str| {
        let lines = server.stderr_lines();
        lines.iter().filter(|line| line.contains(path) && line.contains("one among 4")).count()
    };
    server.wait_until("a line of each", |server| {
        (names(server, "POST /sleep"), names(server, "POST /die")) == (3, 1)
    });
    server.wait_for_workers(1);
    assert_eq!(server.get("/ping").text(), "pong");
    assert!(pids(&server).is_disjoint(&old));
}

#[test]
fn a_stuck_request_withdraws_its_worker_and_the_other_in_it_ends_well() {
    let mut server = start(1, &["c:2", "--read-timeout-ms=1500", "--drain-timeout-ms=700"]);
    let old = pids(&server);
    let mut stuck = asking(&server, "POST", "/sleep?ms=60000");
    assert_eq!(stuck.read_response().status, 504);
    // Later than that one, so that it is at work when the drain timeout has made the worker stuck.
    let hold = Hold::new();
    let mut other = stream(&server, "POST", &hold.events());
    server.wait_until("a successor", |server| !pids(server).is_subset(&old));
    server.wait_for_workers(1);
    assert_eq!(server.get("/ping").text(), "pong");
    hold.let_go();
    assert_ends_well(&mut other);
    server.wait_until("the stuck one's end", |server| pids(server).is_disjoint(&old));
}

#[test]
fn a_reload_tells_streams_when_all_successors_have_joined_and_a_stop_tells_them() {
    let mut server = start(2, &[]);
    let mut streams: Vec<Client> = (0..4).map(|_| stream(&server, "GET", "/events")).collect();
    wait_for(&mut server, 0, 4);
    let old = pids(&server);
    let output = server.verb(["reload"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(pids(&server).is_disjoint(&old));
    for stream in &mut streams {
        stream.read_until_close();
    }
    let ended = |server: &Server| lines_of(server, "/events").len();
    server.wait_until("their lines", |server| ended(server) == 4);
    // Whoever comes again is spread.
    let mut streams: Vec<Client> = (0..4).map(|_| stream(&server, "GET", "/events")).collect();
    let details = server.details();
    let counts: Vec<_> =
        details["workerList"].as_array().into_iter().flatten().map(|one| &one["streams"]).collect();
    assert_eq!(counts, [2, 2]);
    server.signal(Signal::SIGTERM);
    for stream in &mut streams {
        stream.read_until_close();
    }
    assert_eq!(server.wait_exit(), 0);
    assert_eq!(ended(&server), 8, "each has its line: {:?}", server.stdout_lines());
}

#[test]
fn streams_that_come_at_once_fill_all_workers_to_the_bound() {
    let mut server = start(2, &["--max-streams=20"]);
    let mut clients: Vec<Client> = (0..50).map(|_| server.client()).collect();
    for client in &mut clients {
        client.send_request("GET", "/events", "Accept: text/event-stream\r\n", b"");
    }
    let heads: Vec<_> = clients.iter_mut().map(Client::read_head).collect();
    let is_stream = |head: &&support::Head| head.header("content-type") == Some("text/event-stream");
    assert_eq!(heads.iter().filter(is_stream).count(), 40);
    wait_for(&mut server, 0, 40);
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn a_cycle_waits_for_a_workers_streams() {
    let mut server = start(1, &["r:10", "--max-streams=1"]);
    let watched = stream(&server, "GET", "/events");
    let old = pids(&server);
    let mut client = server.client();
    (0..15).for_each(|_| assert_eq!(client.get("/ping").text(), "pong"));
    assert_eq!(pids(&server), old);
    let full = {
        let mut client = server.client();
        client.send_request("GET", "/events", "Accept: text/event-stream\r\n", b"");
        client.read_response()
    };
    assert_eq!(full.status, 503);
    assert_eq!(line_of(&mut server, "/events")["reason"], "streams_full");
    drop(watched);
    server.wait_until("its successor", |server| pids(server).is_disjoint(&old));
}
