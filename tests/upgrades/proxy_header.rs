//! Listeners whose peers are proxies that say first who has connected to them (`http:<port>,proxy`).

use crate::support::{Answer, Client, RawWorker, Server, ServerBuilder, TEST_TIMEOUT, test_worker};
use crate::tools::line_of;
use std::time::{Duration, Instant};

const REQUEST: &str = "GET /seen HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
/// As HAProxy sends it (`send-proxy-v2`) for 192.0.2.7.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\xdc\x04\x13\x8a";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn builder(trust: &str) -> ServerBuilder {
    let builder = Server::builder("/bin/true").args(["w:0", "--json"]);
    builder.http("127.0.0.1:0,proxy").arg(format!("--trust-proxy={trust}"))
}

fn server(trust: &str) -> (Server, RawWorker) {
    let server = builder(trust).start();
    let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
    (server, worker)
}

/// What the worker gets as `X-Forwarded-For` behind that header.
fn chain(server: &Server, worker: &RawWorker, header: &[u8]) -> String {
    let mut client = server.client();
    client.send([header, REQUEST.as_bytes()].concat());
    assert_eq!(client.read_response().status, 200);
    let request = worker.requests().pop().expect("the worker was asked");
    let chains: Vec<&str> = request.head.values("x-forwarded-for").collect();
    assert_eq!(chains.len(), 1);
    chains[0].to_owned()
}

fn line(address: &str) -> Vec<u8> {
    format!("PROXY TCP4 {address} 127.0.0.1 56324 5002\r\n").into_bytes()
}

#[test]
fn the_client_is_whom_the_proxy_names_and_is_believed_by_its_own_address() {
    let (mut server, worker) = server("loopback,10.0.0.0/8");
    // A stranger's own claim counts for nothing, whoever has passed it on.
    assert_eq!(chain(&server, &worker, &line("192.0.2.7")), "192.0.2.7");
    let access = line_of(&mut server, "/seen");
    assert_eq!((&access["client"], &access["peer"]), (&"192.0.2.7".into(), &"192.0.2.7".into()));
    assert_eq!(chain(&server, &worker, BINARY), "192.0.2.7");
    // Behind the first proxy is another one that is trusted.
    assert_eq!(chain(&server, &worker, &line("10.1.2.3")), "6.6.6.6, 10.1.2.3");
    // The proxy itself, and somebody that it does not know: the connection's own address.
    assert_eq!(chain(&server, &worker, LOCAL), "6.6.6.6, 127.0.0.1");
    assert_eq!(chain(&server, &worker, b"PROXY UNKNOWN\r\n"), "6.6.6.6, 127.0.0.1");
    let text = "PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n";
    assert_eq!(chain(&server, &worker, text.as_bytes()), "2001:db8::7");
}

#[test]
fn a_header_comes_once_a_connection_and_in_any_pieces() {
    let (server, _worker) = server("loopback");
    let mut client = server.client();
    for byte in [BINARY, REQUEST.as_bytes()].concat() {
        client.send([byte]);
    }
    assert_eq!(client.read_response().status, 200);
    client.send(REQUEST);
    assert_eq!(client.read_response().status, 200);
    // A second one is no request.
    client.send([&line("192.0.2.7"), &b"\r\n"[..]].concat());
    assert_eq!(client.read_response().status, 400);
}

#[test]
fn a_connection_without_its_header_is_closed_without_an_answer_and_with_a_line() {
    let (mut server, worker) = server("loopback");
    for (bytes, words) in [
        (REQUEST.as_bytes(), "it does not begin with a PROXY protocol header"),
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2 3\r\n", "PROXY protocol line cannot be read"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\0", "of an unknown kind"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "is too long"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x03", "too short for its addresses"),
    ] {
        // One line a second.
        server.wait_until(words, |server| {
            let mut client = server.client();
            let _ = client.try_send(bytes);
            let (answer, _) = client.read_until_close();
            assert_eq!(answer, b"");
            server.stderr_text().contains(words)
        });
    }
    assert!(worker.requests().is_empty());
    assert!(
        server.stderr_text().contains("a connection from 127.0.0.1 is closed: "),
        "{}",
        server.stderr_text()
    );
    let metrics = server.control("GET", "/metrics", "").text();
    let count = metrics.lines().find_map(|line| line.strip_prefix("rip_refused_connections_total "));
    assert!(count.and_then(|count| count.parse::<u64>().ok()) >= Some(5), "{metrics}");
}

#[test]
fn a_header_that_does_not_come_in_time_is_not_waited_for() {
    let mut server = builder("loopback").arg("--client-timeout-ms=600").start();
    let started = Instant::now();
    let mut silent = server.client();
    let mut slow = server.client();
    slow.send("PROXY TCP4");
    assert!(silent.is_closed_within(TEST_TIMEOUT) && slow.is_closed_within(TEST_TIMEOUT));
    assert!(started.elapsed() >= Duration::from_millis(550), "{:?}", started.elapsed());
    server.wait_until("the line", |server| {
        server.stderr_text().contains("it has sent no PROXY protocol header in time")
    });
    // Who only looks whether somebody listens is no news.
    let said = server.stderr_lines();
    drop(server.client());
    server.wait_until("it is gone", |server| server.details()["clients"] == 0);
    assert_eq!(server.stderr_lines(), said);
}

#[test]
fn whoever_is_not_named_may_not_say_who_has_connected() {
    let mut server = builder("10.0.0.0/8").start();
    let mut client = server.client();
    let _ = client.try_send(line("10.1.2.3"));
    let (answer, _) = client.read_until_close();
    assert_eq!(answer, b"");
    server.wait_until("the line", |server| server.stderr_text().contains("--trust-proxy does not name it"));
}

#[test]
fn a_stop_does_not_wait_for_headers() {
    let builder = Server::builder("/bin/true").args(["w:0", "--client-timeout-ms=600000"]);
    let builder = builder.http("127.0.0.1:0,proxy").arg("--trust-proxy=loopback");
    let mut server = builder.start();
    let client = server.client();
    server.wait_until("it is connected", |server| server.details()["clients"] == 1);
    server.signal(crate::support::Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    drop(client);
}

#[test]
fn other_listeners_of_the_same_server_take_requests_as_ever() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("http.sock");
    let builder = Server::builder(test_worker()).args(["w:1", "--trust-proxy=loopback"]);
    let builder = builder.http("127.0.0.1:0").http("127.0.0.1:0,proxy");
    let mut server = builder.http(&format!("unix:{},proxy", path.display())).start();
    server.wait_for_workers(1);
    let at = server.listeners().to_vec();
    assert_eq!(Client::connect(at[0].parse().expect("an address")).get("/ping").text(), "pong");
    for mut client in [Client::connect(at[1].parse().expect("an address")), Client::connect_unix(&path)] {
        client.send(line("192.0.2.7"));
        assert_eq!(client.get("/ping").text(), "pong");
    }
}
