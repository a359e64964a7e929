//! Requests that arrive too slowly, or are too large, and connections on which nothing arrives.

use crate::support::{Answer, Client, RawWorker, Server, TEST_TIMEOUT, Trouble};
use crate::tools::{get, line_of, lines_of, settled_lines};
use std::time::{Duration, Instant};

fn server(words: &[&str]) -> (Server, RawWorker) {
    let server = Server::builder("/bin/true").args(["w:0", "--json"]).args(words).start();
    let worker = RawWorker::join(&server, 1, |request| Answer::ok(&request.body.len().to_string()));
    (server, worker)
}

/// What the client gets in the end is a 408 and the end of its connection.
#[track_caller]
fn assert_timed_out(client: &mut Client) {
    let response = client.read_response();
    assert_eq!((response.status, response.header("connection")), (408, Some("close")));
    assert!(!response.body.is_empty(), "a sentence for people");
    assert!(client.is_closed_within(TEST_TIMEOUT));
}

#[test]
fn a_head_that_drips_is_refused_when_its_time_is_over_although_bytes_come() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let (mut server, worker) = server(&["--client-timeout-ms=700"]);
    let mut client = server.client();
    let begun = Instant::now();
    client.send("GET /drips HTTP/1.1\r\nHost: a\r\nX-Long: ");
    let mut response = None;
    while response.is_none() && begun.elapsed() < TEST_TIMEOUT {
        let _ = client.try_send("x");
        // Far apart for a client, but never as far as the timeout.
        response = client.read_response_within(Duration::from_millis(100)).ok();
    }
    let took = begun.elapsed();
    assert!(took >= TIMEOUT, "too early: {took:?}");
    assert_eq!(response.expect("each byte is no new start").status, 408);
    let line = line_of(&mut server, "/drips");
    assert_eq!((&line["status"], &line["reason"]), (&408.into(), &"client_timeout".into()), "{line}");
    assert_eq!(worker.request_count(), 0);
}

#[test]
fn a_head_that_stops_is_refused() {
    let (mut server, worker) = server(&["--client-timeout-ms=300"]);
    for begun in ["GET /stops HTTP/1.1\r\nHost: a\r\n", "GET /stops", "G"] {
        let mut client = server.client();
        client.send(begun);
        assert_timed_out(&mut client);
    }
    // As the second on a connection too.
    let mut client = server.client();
    assert_eq!(client.get("/first").status, 200);
    client.send("GET /stops HTTP/1.1\r\n");
    assert_timed_out(&mut client);
    let lines = settled_lines(&mut server);
    assert_eq!(lines.iter().filter(|line| line["reason"] == "client_timeout").count(), 4, "{lines:?}");
    assert_eq!((lines.len(), worker.request_count()), (5, 1));
}

#[test]
fn a_body_may_take_as_long_as_it_comes() {
    let (server, _worker) = server(&["--client-timeout-ms=3000"]);
    let mut client = server.client();
    client.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n");
    let begun = Instant::now();
    for _ in 0..14 {
        assert!(!client.is_closed_within(Duration::from_millis(250)), "it has time for each byte");
        client.send("x");
    }
    assert!(begun.elapsed() > Duration::from_millis(3000), "longer than the timeout in all");
    assert_eq!(client.read_response().text(), "14");
}

#[test]
fn a_chunked_body_may_take_as_long_as_it_comes() {
    let (server, _worker) = server(&["--client-timeout-ms=2500"]);
    let mut client = server.client();
    client.send("POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for byte in "4\r\nbody\r\n0\r\n\r\n".bytes() {
        assert!(!client.is_closed_within(Duration::from_millis(220)), "it has time for each byte");
        client.send([byte]);
    }
    assert_eq!(client.read_response().text(), "4");
}

#[test]
fn a_body_that_stops_is_refused() {
    const TIMEOUT: Duration = Duration::from_millis(400);
    let (mut server, worker) = server(&["--client-timeout-ms=400"]);
    let begun = Instant::now();
    let mut client = server.client();
    client.send("POST /stops HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nfour");
    assert_timed_out(&mut client);
    assert!(begun.elapsed() >= TIMEOUT, "too early: {:?}", begun.elapsed());
    let mut client = server.client();
    client.send("POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nfour");
    assert_timed_out(&mut client);
    for path in ["/stops", "/chunks"] {
        let line = line_of(&mut server, path);
        assert_eq!((&line["status"], &line["reason"]), (&408.into(), &"client_timeout".into()), "{line}");
    }
    assert_eq!(worker.request_count(), 0);
}

#[test]
fn a_quiet_connection_is_closed_without_a_word() {
    const TIMEOUT: Duration = Duration::from_millis(1500);
    let (mut server, _worker) = server(&["--idle-timeout-ms=1500"]);
    let begun = Instant::now();
    let mut silent = server.client();
    let mut kept_alive = server.client();
    assert_eq!(kept_alive.get("/served").status, 200);
    for client in [&mut silent, &mut kept_alive] {
        let (bytes, trouble) = client.read_until_close();
        assert_eq!((bytes.len(), trouble), (0, Trouble::Closed), "no 408, no reset");
    }
    assert!(begun.elapsed() >= TIMEOUT, "too early: {:?}", begun.elapsed());
    let lines = settled_lines(&mut server);
    assert_eq!(lines.len(), 1, "no line for a connection that was merely quiet: {lines:?}");
}

#[test]
fn a_connection_that_is_used_is_not_quiet() {
    let (server, _worker) = server(&["--idle-timeout-ms=2500"]);
    let mut client = server.client();
    let begun = Instant::now();
    for _ in 0..11 {
        assert_eq!(client.get("/").status, 200);
        assert!(!client.is_closed_within(Duration::from_millis(250)), "it is used");
    }
    assert!(begun.elapsed() > Duration::from_millis(2500));
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn a_body_over_the_bound_is_refused_before_it_is_read() {
    let (mut server, worker) = server(&["--max-body=10k"]);
    let fits = vec![b'x'; 10 * 1024];
    assert_eq!(server.client().post("/fits", &fits).text(), fits.len().to_string());
    for (path, expects) in [("/announced", ""), ("/expects", "Expect: 100-continue\r\n")] {
        let mut client = server.client();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{expects}Content-Length: 10241\r\n\r\n"));
        // Not a byte of the body is sent.
        let response = client.read_response();
        assert_eq!((response.status, response.header("connection")), (413, Some("close")));
        assert!(response.interim.is_empty(), "no leave to send it: {:?}", response.interim_statuses());
        assert_eq!(line_of(&mut server, path)["reason"], "body_too_large");
    }
    let mut client = server.client();
    client.send("POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2801\r\n");
    assert_eq!(client.read_response().status, 413);
    assert_eq!(worker.request_count(), 1);
}

#[test]
fn a_client_that_goes_on_sending_can_read_its_413() {
    let (server, _worker) = server(&["--max-body=10k"]);
    let mut client = server.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n");
    for _ in 0..50 {
        if client.try_send([b'x'; 100_000]).is_err() {
            break;
        }
    }
    assert_eq!(client.read_response().status, 413);
}

#[test]
fn five_hundred_silent_connections_slow_nobody() {
    const SILENT: usize = 500;
    let (mut server, _worker) = server(&[]);
    let mut client = server.client();
    let ask = |client: &mut Client, times: usize| {
        for _ in 0..times {
            assert_eq!(client.get("/").status, 200);
        }
    };
    ask(&mut client, 100);
    let before_kib = server.rss_kib();
    let silent: Vec<Client> = (0..SILENT).map(|_| server.client()).collect();
    let mut begun: Vec<Client> = (0..100).map(|_| server.client()).collect();
    for client in &mut begun {
        client.send("GET / HTTP/1.1\r\n");
    }
    server.wait_until("all are accepted", |server| {
        server.details()["clients"].as_u64().is_some_and(|count| count > (SILENT + begun.len()) as u64)
    });
    ask(&mut client, 300);
    let grown_kib = server.rss_kib().saturating_sub(before_kib);
    // At most 2 KiB a connection, and twice that for a build without optimisation and its slack.
    assert!(grown_kib < 4 * (SILENT + begun.len()) as u64, "{grown_kib} KiB");
    drop((silent, begun));
    server.wait_until("all are gone", |server| server.details()["clients"] == 1);
    ask(&mut client, 10);
    // Those that left in the middle of a head have a line, those that never said anything have none.
    let lines = settled_lines(&mut server);
    let refused = lines.iter().filter(|line| line["status"] == 400 || line["status"] == 499).count();
    assert_eq!((refused, lines.len()), (100, 510));
}

#[test]
fn a_silent_client_holds_no_worker() {
    let (server, worker) = server(&[]);
    let mut slow = server.client();
    slow.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nfour");
    for _ in 0..3 {
        assert_eq!(server.get("/").status, 200);
    }
    slow.send("four");
    assert_eq!(slow.read_response().text(), "8");
    assert_eq!(worker.request_count(), 4);
}

#[test]
fn a_pipeline_without_a_reader_is_served_one_by_one() {
    let (mut server, worker) = server(&[]);
    let mut client = server.client();
    for _ in 0..20 {
        client.send(get("/pipelined").repeat(5));
    }
    server.wait_until("all lines", |server| lines_of(server, "/pipelined").len() == 100);
    assert_eq!(worker.request_count(), 100);
    for _ in 0..100 {
        assert_eq!(client.read_response().status, 200);
    }
}
