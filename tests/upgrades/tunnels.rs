//! After a 101 both connections only pass bytes on, until they end.

use crate::support::wire::Wire;
use crate::support::{Client, Head, Server, Signal, TEST_TIMEOUT, Trouble};
use crate::tools::{access_lines, asking, join_with_connection, line_of, lines_of, wait_for_load};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const UPGRADE: &str = "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A worker that answers `/tunnel` with a 101, `greeting` in the same write, and hands the connection to the test.
/// Everything else gets `other`.
fn tunnel_worker(server: &Server, greeting: &'static str) -> mpsc::Receiver<(Wire, Head)> {
    let (sender, tunnels) = mpsc::channel();
    join_with_connection(server, 1, move |mut wire: Wire, head: Head| {
        if head.start_line.starts_with("GET /tunnel ") {
            wire.write(format!("{SWITCHED}{greeting}").as_bytes()).expect("the server takes it");
            let _ = sender.send((wire, head));
        } else {
            let _ = wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother");
        }
    });
    tunnels
}

/// Both ends of a tunnel.
fn tunnel(server: &Server, tunnels: &mpsc::Receiver<(Wire, Head)>) -> (Client, Wire) {
    let mut client = server.client();
    client.send(UPGRADE);
    assert_eq!(client.read_head().status(), Ok(101));
    let (worker, _) = tunnels.recv_timeout(TEST_TIMEOUT).expect("the worker has the other end");
    (client, worker)
}

#[track_caller]
fn read(wire: &mut Wire, count: usize) -> Vec<u8> {
    wire.read_exactly(count, Instant::now() + TEST_TIMEOUT).expect("the bytes come")
}

/// Bytes of every value, none of them a frame.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|index| ((index * 2_654_435_761) >> 11) as u8).collect()
}

#[test]
fn an_upgrade_is_passed_on_and_its_answer_passed_back() {
    let server = Server::without_workers(&[]);
    let tunnels = tunnel_worker(&server, "");
    let mut client = server.client();
    client.send(UPGRADE);
    let head = client.read_head();
    assert_eq!(head.status(), Ok(101));
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    let (_worker, context) = tunnels.recv_timeout(TEST_TIMEOUT).expect("the worker is asked");
    for head in [&head, &context] {
        assert!(head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
        assert!(head.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")));
    }
    assert_eq!(context.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert!(context.has("x-forwarded-for"));
}

#[test]
fn a_tunnel_passes_raw_bytes_both_ways_at_once() {
    const BYTES: usize = 3_000_000;
    let server = Server::without_workers(&[]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    for count in [1, 2, 255, 4096, 100_000] {
        client.send(noise(count));
        assert_eq!(read(&mut worker, count), noise(count));
        worker.write(&noise(count)).expect("the server takes it");
        assert_eq!(client.read_exactly(count), noise(count));
    }
    // More than what lies about on the way: both sides write before either has read all.
    let peer = std::thread::spawn(move || {
        let got = read(&mut worker, BYTES);
        worker.write(&noise(BYTES)).expect("the server takes it");
        (got, worker)
    });
    client.send(noise(BYTES));
    let back = client.read_exactly(BYTES);
    let (there, _worker) = peer.join().expect("no panic");
    assert!(there == noise(BYTES) && back == noise(BYTES));
}

#[test]
fn bytes_behind_the_heads_go_along() {
    let mut server = Server::without_workers(&["--json"]);
    let tunnels = tunnel_worker(&server, "a greeting");
    let mut client = server.client();
    client.send(format!("{UPGRADE}early bytes"));
    assert_eq!(client.read_head().status(), Ok(101));
    assert_eq!(client.read_exactly(10), b"a greeting");
    let (mut worker, _) = tunnels.recv_timeout(TEST_TIMEOUT).expect("the worker has the other end");
    assert_eq!(read(&mut worker, 11), b"early bytes");
    // What looks like a request is none any more.
    client.send("GET /inside HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(read(&mut worker, 24).starts_with(b"GET /inside HTTP/1.1\r\n"));
    drop((client, worker));
    line_of(&mut server, "/tunnel");
    assert!(lines_of(&server, "/inside").is_empty());
}

#[test]
fn the_clients_end_is_passed_on_and_the_worker_may_still_speak() {
    let server = Server::without_workers(&[]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    client.send("the last words");
    client.half_close();
    let (bytes, trouble) = worker.read_to_end(Instant::now() + TEST_TIMEOUT);
    assert_eq!((bytes.as_slice(), trouble), (&b"the last words"[..], Trouble::Closed));
    worker.write(b"a late answer").expect("the server takes it");
    assert_eq!(client.read_exactly(13), b"a late answer");
    drop(worker);
    assert_eq!(client.read_until_close(), (Vec::new(), Trouble::Closed));
}

#[test]
fn the_workers_end_is_passed_on_and_the_client_may_still_speak() {
    let server = Server::without_workers(&[]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    worker.write(b"the last words").expect("the server takes it");
    worker.half_close().expect("a connection");
    assert_eq!(client.read_exactly(14), b"the last words");
    assert!(client.is_closed_within(TEST_TIMEOUT), "its end is passed on");
    client.send("a late answer");
    assert_eq!(worker.read_exactly(13, Instant::now() + TEST_TIMEOUT), Ok(b"a late answer".to_vec()));
    client.half_close();
    assert_eq!(worker.fill(Instant::now() + TEST_TIMEOUT), Err(Trouble::Closed));
}

#[test]
fn all_bytes_come_before_the_workers_end() {
    const BYTES: usize = 20_000_000;
    let server = Server::without_workers(&[]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    let writer = std::thread::spawn(move || worker.write(&noise(BYTES)).expect("the server takes it"));
    writer.join().expect("no panic");
    // Only now does the client read, and the worker has closed.
    let (bytes, trouble) = client.read_until_close();
    assert_eq!((bytes.len(), trouble), (BYTES, Trouble::Closed));
    assert!(bytes == noise(BYTES));
}

#[test]
fn a_tunnel_holds_its_worker_and_is_logged_at_its_end() {
    let mut server = Server::without_workers(&["--json"]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    let mut waiting = asking(&server, "/waiting");
    wait_for_load(&mut server, 1, 1);
    assert_eq!(server.details()["tunnels"], 1);
    client.send("ping");
    assert_eq!(read(&mut worker, 4), b"ping");
    worker.write(b"pong!").expect("the server takes it");
    assert_eq!(client.read_exactly(5), b"pong!");
    assert!(lines_of(&server, "/tunnel").is_empty(), "it is not over");
    drop((client, worker));
    assert_eq!(waiting.read_response().text(), "other");
    let line = line_of(&mut server, "/tunnel");
    assert_eq!((&line["status"], &line["worker"]), (&101.into(), &1.into()), "{line}");
    assert!(line.get("reason").is_none(), "it ended as tunnels end: {line}");
    assert_eq!(server.details()["tunnels"], 0);
    assert_eq!(access_lines(&server).iter().filter(|line| line["status"] == 101).count(), 1);
}

#[test]
fn a_client_that_breaks_away_frees_the_worker() {
    let mut server = Server::without_workers(&["--json"]);
    let tunnels = tunnel_worker(&server, "");
    let (client, mut worker) = tunnel(&server, &tunnels);
    client.reset();
    assert!(worker.fill(Instant::now() + TEST_TIMEOUT).is_err(), "the worker is told");
    assert_eq!(server.get("/next").text(), "other");
    assert_eq!(line_of(&mut server, "/tunnel")["status"], 101);
}

#[test]
fn a_closed_tunnel_frees_its_worker_when_that_has_ended_and_says_that_it_is_idle() {
    let mut server = Server::without_workers(&["--json"]);
    let (sender, ends) = mpsc::channel();
    crate::tools::join_askable(&server, 1, move |mut wire: Wire, head: Head| {
        if head.start_line.starts_with("GET /tunnel ") {
            wire.write(SWITCHED.as_bytes()).expect("the server takes it");
            let _ = sender.send(wire.read_to_end(Instant::now() + TEST_TIMEOUT));
        } else {
            let _ = wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    for reset in [false, true] {
        let mut client = server.client();
        client.send(UPGRADE);
        assert_eq!(client.read_head().status(), Ok(101));
        client.send("the last words");
        wait_for_load(&mut server, 1, 0);
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        let (bytes, trouble) = ends.recv_timeout(TEST_TIMEOUT).expect("the worker is told");
        assert_eq!(trouble, Trouble::Closed);
        assert!(reset || bytes == b"the last words", "everything came before the end");
        assert_eq!(server.get("/next").text(), "ok");
    }
    server.wait_until("their lines", |server| lines_of(server, "/tunnel").len() == 2);
    wait_for_load(&mut server, 0, 0);
}

#[test]
fn a_tunnel_outlives_the_read_timeout_but_not_the_idle_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(2500);
    let mut server = Server::without_workers(&["--read-timeout-ms=700", "--idle-timeout-ms=2500", "--json"]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    let begun = Instant::now();
    // Bytes either way keep it.
    let mut idle = begun;
    for from_client in [true, false, true, false, true, false] {
        assert!(!client.is_closed_within(Duration::from_millis(500)), "neither side has been quiet for long");
        idle = Instant::now();
        if from_client {
            client.send("x");
            assert_eq!(read(&mut worker, 1), b"x");
        } else {
            worker.write(b"y").expect("the server takes it");
            assert_eq!(client.read_exactly(1), b"y");
        }
    }
    assert!(begun.elapsed() > TIMEOUT);
    assert!(client.is_closed_within(TEST_TIMEOUT));
    assert!(idle.elapsed() >= TIMEOUT, "too early: {:?}", idle.elapsed());
    assert!(worker.fill(Instant::now() + TEST_TIMEOUT).is_err(), "both sides end");
    assert_eq!(line_of(&mut server, "/tunnel")["status"], 101);
}

#[test]
fn a_tunnel_goes_on_in_a_drain_and_is_cut_at_its_deadline() {
    const DRAIN: Duration = Duration::from_millis(3000);
    let mut server = Server::without_workers(&["--drain-timeout-ms=3000", "--json"]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    let context = Instant::now();
    server.signal(Signal::SIGTERM);
    server.wait_until("the drain", |server| server.stderr_text().contains("stopping"));
    client.send("still there?");
    assert_eq!(read(&mut worker, 12), b"still there?");
    worker.write(b"yes").expect("the server takes it");
    assert_eq!(client.read_exactly(3), b"yes");
    assert!(client.is_closed_within(TEST_TIMEOUT));
    assert!(worker.fill(Instant::now() + TEST_TIMEOUT).is_err());
    assert!(context.elapsed() >= DRAIN, "too early: {:?}", context.elapsed());
    assert_eq!(server.wait_exit(), 0);
    assert_eq!(line_of(&mut server, "/tunnel")["status"], 101);
}

#[test]
fn a_reader_that_does_not_read_does_not_fill_memory_in_a_tunnel() {
    const BYTES: usize = 30_000_000;
    let server = Server::without_workers(&[]);
    let tunnels = tunnel_worker(&server, "");
    let (mut client, mut worker) = tunnel(&server, &tunnels);
    let before_kib = server.rss_kib();
    let (done, is_done) = mpsc::channel();
    let sending = std::thread::spawn(move || {
        client.send(noise(BYTES));
        let _ = done.send(());
        client
    });
    // The worker does not read, so the client is held back.
    assert!(is_done.recv_timeout(Duration::from_millis(700)).is_err(), "all of it was taken");
    let grown_kib = server.rss_kib().saturating_sub(before_kib);
    assert!(grown_kib < 2 * 1024, "{grown_kib} KiB");
    assert!(read(&mut worker, BYTES) == noise(BYTES));
    drop(sending.join().expect("no panic"));
}

#[test]
fn an_upgrade_that_is_refused_leaves_an_ordinary_connection() {
    let server = Server::without_workers(&[]);
    let _tunnels = tunnel_worker(&server, "");
    let mut client = server.client();
    client.send(UPGRADE.replace("/tunnel", "/elsewhere"));
    assert_eq!(client.read_response().text(), "other");
    assert_eq!(client.get("/next").text(), "other");
}
