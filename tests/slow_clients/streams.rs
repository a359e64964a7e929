//! Answers that come piece by piece: each passes at once, quiet ones go on, and whoever leaves sets the worker free.

use crate::support::wire::Wire;
use crate::support::{Answer, Client, Head, RawWorker, Server, TEST_TIMEOUT, Then, Trouble, test_worker};
use crate::tools::{asking, join_askable, line_of, wait_for_load};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

/// A worker that streams what the test says, when it says so.
struct Streamer {
    pieces: mpsc::Sender<&'static str>,
    /// Told when the worker sees that nobody waits.
    noticed: mpsc::Receiver<Trouble>,
}

/// What a worker of the protocol's second version answers when it is asked whether it is idle.
const IDLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn streaming_worker(server: &Server) -> Streamer {
    let (pieces, reported) = mpsc::channel::<&'static str>();
    let (notice, noticed) = mpsc::channel();
    let reported = std::sync::Arc::new(std::sync::Mutex::new(reported));
    join_askable(server, 1, move |mut wire: Wire, head: Head| {
        if head.header("rip-probe") == Some("idle") {
            let _ = wire.write(IDLE);
            return;
        }
        if !head.start_line.starts_with("GET /stream") {
            let _ = wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother");
            return;
        }
        let reported = reported.lock().expect("no panic holds the lock");
        while let Ok(piece) = reported.recv_timeout(TEST_TIMEOUT) {
            if piece.is_empty() {
                break;
            }
            if wire.write(piece.as_bytes()).is_err() {
                return;
            }
        }
        // It looks for the end of its connection, as a runtime does that can.
        let trouble = loop {
            if let Err(trouble) = wire.fill(Instant::now() + TEST_TIMEOUT) {
                break trouble;
            }
        };
        let _ = notice.send(trouble);
    });
    Streamer { pieces, noticed }
}

impl Streamer {
    fn say(&self, piece: &'static str) {
        self.pieces.send(piece).expect("the worker listens");
    }
}

/// The next bytes. They do not wait for others, since the worker says nothing more until they are there.
#[track_caller]
fn assert_comes_at_once(client: &mut Client, expected: &str) {
    assert_eq!(String::from_utf8_lossy(&client.read_exactly(expected.len())), expected);
}

#[test]
fn a_streams_head_comes_before_its_first_event_and_each_event_at_once() {
    let server = Server::without_workers(&[]);
    let worker = streaming_worker(&server);
    let mut client = asking(&server, "/stream");
    worker.say(HEAD);
    // The worker says nothing more until each is there.
    let head = client.read_head();
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        worker.say(event);
        assert_comes_at_once(&mut client, &format!("{:x}\r\n{event}\r\n", event.len()));
    }
}

#[test]
fn a_streams_events_reach_an_http_1_0_client_at_once() {
    let server = Server::without_workers(&[]);
    let worker = streaming_worker(&server);
    let mut client = server.client();
    client.send("GET /stream HTTP/1.0\r\n\r\n");
    worker.say(HEAD);
    assert!(!client.read_head().has("transfer-encoding"));
    worker.say("data: 1\n\n");
    assert_comes_at_once(&mut client, "data: 1\n\n");
}

#[test]
fn an_answer_of_any_kind_passes_piece_by_piece() {
    let server = Server::without_workers(&[]);
    let worker = streaming_worker(&server);
    let mut client = asking(&server, "/stream");
    worker.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none");
    assert_eq!(client.read_head().header("content-length"), Some("6"));
    assert_comes_at_once(&mut client, "one");
    worker.say("two");
    assert_comes_at_once(&mut client, "two");
}

#[test]
fn a_client_that_leaves_a_stream_frees_its_worker() {
    let mut server = Server::without_workers(&["--json"]);
    let worker = streaming_worker(&server);
    let mut client = asking(&server, "/stream");
    worker.say(HEAD);
    worker.say("data: 1\n\n");
    assert_eq!(client.read_head().status(), Ok(200));
    drop(client);
    // Nobody half-closes an event stream: not one more event is needed.
    worker.say("");
    // The worker is told; when it ends its answer, it is free.
    let noticed = worker.noticed.recv_timeout(TEST_TIMEOUT).expect("the worker is told");
    assert_eq!(noticed, Trouble::Closed);
    assert_eq!(server.get("/next").text(), "other");
    let line = line_of(&mut server, "/stream");
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()), "{line}");
    wait_for_load(&mut server, 0, 0);
}

#[test]
fn a_client_that_leaves_before_the_head_frees_its_worker() {
    let mut server = Server::without_workers(&["--json"]);
    let worker = streaming_worker(&server);
    let client = asking(&server, "/stream");
    wait_for_load(&mut server, 1, 0);
    client.reset();
    assert_eq!(line_of(&mut server, "/stream")["reason"], "client_gone");
    // It is told before it has said a word.
    worker.say("");
    assert_eq!(worker.noticed.recv_timeout(TEST_TIMEOUT), Ok(Trouble::Closed));
    assert_eq!(server.get("/next").text(), "other");
}

#[test]
fn a_silent_event_stream_that_is_closed_sets_its_worker_free_at_once_a_hundred_times() {
    let mut server = Server::without_workers(&["--json"]);
    join_askable(&server, 1, |mut wire: Wire, head: Head| match head.header("rip-probe") {
        Some("idle") => drop(wire.write(IDLE)),
        _ => {
            // One event, then silence until the worker is told.
            let _ = wire.write(format!("{HEAD}data: 1\n\n").as_bytes());
            let _ = wire.fill(Instant::now() + TEST_TIMEOUT);
        }
    });
    let begun = Instant::now();
    for _ in 0..100 {
        let mut client = asking(&server, "/events");
        assert_eq!(client.read_head().status(), Ok(200));
        assert_comes_at_once(&mut client, "9\r\ndata: 1\n\n\r\n");
    }
    assert!(begun.elapsed() < TEST_TIMEOUT, "{:?}", begun.elapsed());
    let lines = crate::tools::settled_lines(&mut server);
    let gone = |line: &&serde_json::Value| line["status"] == 499 && line["reason"] == "client_gone";
    server.wait_until("all their lines", |server| {
        crate::tools::lines_of(server, "/events").iter().filter(gone).count() == 100
    });
    assert!(lines.iter().all(|line| line["status"] == 499), "{lines:?}");
}

#[test]
fn an_http_1_0_stream_that_a_half_close_ends_does_not_look_whole() {
    let server = Server::without_workers(&[]);
    let worker = streaming_worker(&server);
    let mut client = server.client();
    client.send("GET /stream HTTP/1.0\r\n\r\n");
    worker.say(HEAD);
    assert_eq!(client.read_head().status(), Ok(200));
    client.half_close();
    assert_eq!(client.read_until_close(), (Vec::new(), Trouble::Reset));
    worker.say("");
}

#[test]
fn a_half_close_before_a_streams_head_is_no_departure() {
    let mut server = Server::without_workers(&["--json"]);
    let worker = streaming_worker(&server);
    let mut client = asking(&server, "/stream");
    wait_for_load(&mut server, 1, 0);
    client.half_close();
    // The server has seen that when it has answered somebody who came later.
    assert_eq!(server.get("/server").text(), "ok");
    worker.say(HEAD);
    assert_eq!(client.read_head().status(), Ok(200));
    worker.say("data: 1\n\n");
    assert_comes_at_once(&mut client, "9\r\ndata: 1\n\n\r\n");
}

#[test]
fn a_fire_and_forget_request_whose_client_closes_runs_to_its_end() {
    let mut server = Server::without_workers(&["--json"]);
    let gate = crate::tools::Gate::default();
    let holding = gate.clone();
    let _worker = RawWorker::join(&server, 1, move |request| holding.pass(request));
    let mut client = server.client();
    client.send_request("PUT", "/forgotten", "", b"a body");
    wait_for_load(&mut server, 1, 0);
    drop(client);
    assert_eq!(server.get("/server").text(), "ok");
    wait_for_load(&mut server, 1, 0);
    gate.open();
    assert_eq!(line_of(&mut server, "/forgotten")["status"], 200);
    wait_for_load(&mut server, 0, 0);
}

#[test]
fn a_request_whose_client_resets_is_given_to_its_worker_in_full_before_the_end() {
    const BYTES: usize = 3_000_000;
    let mut server = Server::without_workers(&["--json"]);
    let (sender, read) = mpsc::channel();
    let gate = std::sync::Arc::new(std::sync::Barrier::new(2));
    let holding = gate.clone();
    join_askable(&server, 1, move |mut wire: Wire, head: Head| {
        if head.start_line.starts_with("POST ") {
            holding.wait();
            let _ = sender.send(wire.read_to_end(Instant::now() + TEST_TIMEOUT));
        } else {
            let _ = wire.write(IDLE);
        }
    });
    let mut client = server.client();
    client.send_request("POST", "/upload", "", &vec![b'x'; BYTES]);
    // More than a socket holds, so that the worker has not been sent all of it.
    wait_for_load(&mut server, 1, 0);
    client.reset();
    assert_eq!(line_of(&mut server, "/upload")["reason"], "client_gone");
    gate.wait();
    let (body, trouble) = read.recv_timeout(TEST_TIMEOUT).expect("the worker reads to the end");
    assert_eq!((body.len(), trouble), (BYTES, Trouble::Closed));
}

#[test]
fn a_worker_that_streams_for_nobody_is_replaced() {
    let server = Server::builder(test_worker()).env("TEST_RAW", "2");
    let mut server = server.args(["w:1", "--json", "--drain-timeout-ms=300"]).start();
    let pid = server.get("/pid").text();
    // An answer without an end in sight, and a worker that does not look.
    let mut client = asking(&server, "/open?then=hang");
    assert_eq!(client.read_head().status(), Ok(200));
    client.reset();
    let next = server.get("/pid");
    assert_eq!(next.status, 200);
    assert_ne!(next.text(), pid);
    server.wait_until("the old one's end", |_| !crate::support::is_alive(pid.parse().expect("a pid")));
}

/// Events on both sides of a pause of 1.5 s: an empty write only waits.
fn events_around_a_pause(kind: &str) -> Answer {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut writes = vec![(head + "6\r\nbefore\r\n").into_bytes()];
    writes.resize(51, Vec::new());
    writes.push(b"5\r\nafter\r\n0\r\n\r\n".to_vec());
    Answer { writes, then: Then::Keep }
}

#[test]
fn events_may_be_quiet_for_longer_than_the_read_timeout() {
    let server = Server::without_workers(&["--read-timeout-ms=1000"]);
    let _worker = RawWorker::join(&server, 1, |request| match request.target.as_str() {
        "/events" => events_around_a_pause("text/event-stream; charset=utf-8"),
        _ => events_around_a_pause("text/plain"),
    });
    assert_eq!(server.get("/events").text(), "beforeafter");
    // Anything else may not.
    let mut client = asking(&server, "/text");
    let broken = client.read_response_within(TEST_TIMEOUT).expect_err("it was cut");
    assert_eq!((broken.response.status, broken.response.body), (200, b"before".to_vec()));
}

#[test]
fn events_may_not_be_quiet_for_longer_than_the_idle_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(2000);
    let mut server = Server::without_workers(&["--read-timeout-ms=1000", "--idle-timeout-ms=2000", "--json"]);
    let _worker =
        RawWorker::join(&server, 1, |_| Answer::bytes(format!("{HEAD}data: 1\n\n")).then(Then::Hang));
    let begun = Instant::now();
    let mut client = asking(&server, "/stream");
    assert!(client.is_closed_within(TEST_TIMEOUT));
    assert!(begun.elapsed() >= TIMEOUT, "too early: {:?}", begun.elapsed());
    assert_eq!(line_of(&mut server, "/stream")["reason"], "read_timeout");
}
