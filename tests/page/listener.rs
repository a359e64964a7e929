//! The listener: hosts, methods, bounds, and the stream of events.

use super::page_address;
use crate::support::{Client, Response, Server, TEST_TIMEOUT, comes_true, test_worker};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

/// How many may look at once.
const MAX_VIEWERS: usize = 8;

/// One request with these fields, and its answer.
fn ask(address: SocketAddr, line: &str, fields: &str) -> Response {
    let mut client = Client::connect(address);
    client.send(format!("{line} HTTP/1.1\r\n{fields}\r\n"));
    client.read_response()
}

/// Somebody who looks at the page's events.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    /// Asks, and reads the head of the answer.
    fn connect(address: SocketAddr) -> (Viewer, u16) {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("a deadline");
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the request goes out");
        let mut viewer = Viewer(BufReader::new(stream));
        let status = viewer.line().split(' ').nth(1).and_then(|status| status.parse().ok());
        while !viewer.line().is_empty() {}
        (viewer, status.expect("a status"))
    }

    fn watch(address: SocketAddr) -> Viewer {
        let (viewer, status) = Viewer::connect(address);
        assert_eq!(status, 200);
        viewer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line within its time");
        line.trim_end().to_owned()
    }

    /// The next event.
    fn event(&mut self) -> Value {
        loop {
            if let Some(data) = self.line().strip_prefix("data: ") {
                return serde_json::from_str(data).expect("JSON");
            }
        }
    }
}

/// A connection whose kernel takes little before it is read.
fn connect_with_small_buffer(address: SocketAddr) -> TcpStream {
    let SocketAddr::V4(address) = address else { panic!("{address} is not of IPv4") };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&fd, sockopt::RcvBuf, &2048).expect("a small buffer");
    connect(fd.as_raw_fd(), &SockaddrIn::from(address)).expect("a connection");
    TcpStream::from(fd)
}

#[test]
fn the_page_is_whole_and_only_for_hosts_that_nobody_can_pretend_to_be() {
    let mut server =
        Server::with_test_worker(&["w:1", "page:0", "metrics:127.0.0.1:0", "--page-host=shop.internal"]);
    server.wait_for_workers(1);
    let address = page_address(&server);
    assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
    let mut client = Client::connect(address);
    let mut nonces = Vec::new();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: localhost:5003\r\n\r\n");
        let page = client.read_response();
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let policy = page.header("content-security-policy").expect("a policy").to_owned();
        let nonce = policy.split("script-src 'nonce-").nth(1).and_then(|text| text.split('\'').next());
        let nonce = nonce.expect("a nonce").to_owned();
        assert!(
            policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert_eq!(page.text().matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(page.header(name), Some(value));
        }
        nonces.push(nonce);
    }
    assert!(nonces[0] != nonces[1] && nonces[0].len() == 32, "{nonces:?}");
    for (line, fields, status) in [
        ("GET /", "Host: 127.0.0.1\r\n", 200),
        ("GET /", "Host: [::1]:5003\r\n", 200),
        ("GET /", "Host: SHOP.internal\r\n", 200),
        ("GET /", "Host: evil.example\r\n", 421),
        ("GET /events", "Host: evil.example:5003\r\n", 421),
        ("GET http://evil.example/", "Host: localhost\r\n", 421),
        ("GET /events", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("POST /", "Host: localhost\r\n", 405),
        ("DELETE /events", "Host: localhost\r\n", 405),
        ("GET /metrics", "Host: localhost\r\n", 404),
        ("POST /control", "Host: localhost\r\n", 404),
        ("GET /status", "Host: localhost\r\n", 421),
        ("GET /", "Host: localhost\r\nHost: localhost\r\n", 400),
        ("GET /", "Host: localhost\r\nBad Name: x\r\n", 400),
    ] {
        let answer = ask(address, line, fields);
        assert_eq!(answer.status, status, "{line} {fields}: {}", answer.text());
        if status == 405 {
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
    }
    for path in ["/", "/events"] {
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let head = client.read_response_to_head();
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
    }
    // On the other listeners the path is the app's.
    assert_eq!(server.get("/events?n=1").text(), "data: 0\n\n");
}

#[test]
fn events_are_what_status_tells_and_its_history_second_by_second() {
    let mut server = Server::with_test_worker(&["w:2", "page:0"]);
    server.wait_for_workers(2);
    for _ in 0..5 {
        assert_eq!(server.get("/ping").status, 200);
    }
    assert_eq!(server.client().post("/die", b"").status, 502);
    server.wait_until("its end is known", |server| server.details()["deaths"][0]["exit"] == "SIGKILL");
    server.wait_for_workers(2);
    let mut viewer = Viewer::watch(page_address(&server));
    let first = viewer.event();
    let details = server.details();
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let of_event: Vec<String> = keys(&first).into_iter().filter(|key| key != "history").collect();
    assert_eq!(of_event, keys(&details));
    for key in ["app", "pid", "release", "generation", "failures", "deaths", "rolls", "listeners"] {
        assert_eq!(first[key], details[key], "{key}");
    }
    let death = &details["deaths"][0];
    assert_eq!((&death["cause"], &death["request"]["path"]), (&"crash".into(), &"/die".into()));
    let failure = &details["failures"][0];
    assert_eq!((&failure["reason"], &failure["pid"]), (&"worker_died".into(), &death["pid"]));
    // What has been counted is in the history once its second has ended.
    let (mut answers, mut seconds, mut next) = ([0, 0], 0, first["history"]["second"].as_u64());
    let mut take = |event: &Value| {
        for run in event["history"]["runs"].as_array().expect("runs") {
            seconds += run["seconds"].as_u64().expect("a number");
            answers[0] += run["answers"][1].as_u64().expect("a number");
            answers[1] += run["answers"][4].as_u64().expect("a number");
        }
    };
    take(&first);
    for _ in 0..2 {
        let event = viewer.event();
        assert!(event["history"]["second"].as_u64() > next, "{}", event["history"]);
        next = event["history"]["second"].as_u64();
        take(&event);
    }
    assert_eq!(Some(seconds), next, "each second once");
    assert!(answers[0] >= 5 && answers[1] >= 1, "{answers:?}");
    assert_eq!(server.details()["viewers"], 1);
    drop(viewer);
    server.wait_until("nobody looks", |server| server.details()["viewers"] == 0);
}

/// Whoever reads the JSON of status relies on its names.
#[test]
fn the_names_of_status_are_those_of_the_reference() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let reference = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"));
    let reference = reference.expect("the reference");
    let section =
        reference.split("### The JSON of status").nth(1).and_then(|text| text.split("## The page").next());
    let (of_server, of_worker) =
        section.and_then(|text| text.split_once("Of a worker:")).expect("two tables");
    let details = server.details();
    for (value, table) in [(&details, of_server), (&details["workerList"][0], of_worker)] {
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        let names =
            rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2));
        let mut documented: Vec<&str> = names.collect();
        let mut found: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        documented.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, documented);
    }
}

#[test]
fn the_ninth_viewer_is_refused_and_a_scraper_is_never_kept_waiting() {
    let mut server = Server::with_test_worker(&["w:1", "page:127.0.0.1:0", "metrics:127.0.0.1:0"]);
    server.wait_for_workers(1);
    let address = page_address(&server);
    let mut viewers: Vec<Viewer> = (0..MAX_VIEWERS).map(|_| Viewer::watch(address)).collect();
    let refused = ask(address, "GET /events", "Host: localhost\r\n");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("Too many"), "{}", refused.text());
    // More connections than there may be push each other out, and none of those who look.
    let others: Vec<Client> = (0..64).map(|_| Client::connect(address)).collect();
    assert_eq!(ask(address, "GET /", "Host: localhost\r\n").status, 200);
    for viewer in &mut viewers {
        viewer.event();
        viewer.event();
    }
    drop(others);
    let line = server.stdout_lines().remove(0);
    let metrics = line.split("metrics=").nth(1).and_then(|text| text.split(' ').next()?.parse().ok());
    assert_eq!(Client::connect(metrics.expect("an address")).get("/metrics").status, 200);
    viewers.pop();
    let is_free = || Viewer::connect(address).1 == 200;
    assert!(comes_true(TEST_TIMEOUT, is_free), "a place is free again");
    drop(viewers);
    server.wait_until("nobody looks", |server| server.details()["viewers"] == 0);
}

#[test]
fn a_viewer_that_stops_reading_is_dropped_and_the_others_go_on() {
    let mut server = Server::with_test_worker(&["w:1", "page:0", "--max-queue=0", "--read-timeout-ms=60000"]);
    server.wait_for_workers(1);
    // Events become long: each refusal is a row.
    let mut busy = server.client();
    busy.send_request("GET", "/sleep?ms=60000", "", b"");
    server.wait_until("the worker is busy", |server| server.details()["workerList"][0]["state"] == "busy");
    let mut client = server.client();
    for index in 0..50 {
        assert_eq!(client.get(&format!("/{index}{}", "x".repeat(300))).status, 503);
    }
    let address = page_address(&server);
    let mut other = Viewer::watch(address);
    let mut stalled = connect_with_small_buffer(address);
    stalled.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the request goes out");
    server.wait_until("two look", |server| server.details()["viewers"] == 2);
    let before = server.rss_kib();
    let began = Instant::now();
    let is_alone = || server.details()["viewers"] == 1;
    assert!(comes_true(2 * TEST_TIMEOUT, is_alone), "it is still there");
    assert!(server.rss_kib() < before + 4096, "{} KiB, {before} before", server.rss_kib());
    other.event();
    other.event();
    // What it has been sent is there, and then the end.
    stalled.set_read_timeout(Some(TEST_TIMEOUT)).expect("a deadline");
    let bytes = std::io::copy(&mut stalled.take(1 << 20), &mut std::io::sink()).unwrap_or_default();
    assert!(bytes < 1 << 20, "{bytes} after {:?}", began.elapsed());
}

#[test]
fn without_a_page_there_is_no_listener_and_a_name_alone_is_a_mistake() {
    let server = Server::with_test_worker(&["w:1"]);
    let line = server.stdout_lines().remove(0);
    assert!(!line.contains("page="), "{line}");
    assert!(server.details()["viewers"] == 0);
    let output = Server::builder(test_worker()).arg("--page-host=shop").run();
    assert_eq!(output.code, 2);
    assert!(output.stderr.contains("page:5003"), "{}", output.stderr);
}
