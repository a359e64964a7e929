//! What operators see: `/server`, `/status`, and one access line a request.

use crate::support::{Answer, RawWorker, Server, Then, test_worker, wait_until};
use crate::tools::{Gate, access_lines, asking, line_of, lines_of, settled_lines, wait_for_load};
use serde_json::Value;
use std::collections::BTreeMap;

#[test]
fn server_says_ok_without_a_worker() {
    let mut server = Server::without_workers(&["--json"]);
    let response = server.get("/server");
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let mut client = server.client();
    client.send("HEAD /server?deep=1 HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.read_response_to_head();
    assert_eq!((head.status, head.header("content-length")), (200, Some("2")));
    // The connection is where it should be.
    assert_eq!(client.get("/server").text(), "ok");
    server.wait_until("three lines", |server| lines_of(server, "/server").len() == 3);
}

#[test]
fn only_get_and_head_of_these_paths_are_the_servers_own() {
    let server = Server::without_workers(&[]);
    let worker = RawWorker::join(&server, 1, |request| Answer::ok(&request.target));
    let mut client = server.client();
    for path in ["/server", "/status"] {
        assert_eq!(client.post(path, b"a body").text(), path);
        client.send_request("DELETE", path, "", b"");
        assert_eq!(client.read_response().text(), path);
    }
    assert_eq!(client.get("/server/").text(), "/server/");
    assert_eq!(worker.request_count(), 5);
}

#[test]
fn status_tells_healthy_degraded_and_starting() {
    let server = Server::without_workers(&[]);
    let phrase = || {
        let response = server.get("/status");
        (response.status, response.json()["status"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(phrase(), (503, "starting".into()));
    let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
    assert_eq!(phrase(), (200, "healthy".into()));
    let status = server.get("/status");
    assert_eq!(status.header("content-type"), Some("application/json"));
    let text = status.text();
    let at = ["\"status\"", "\"app\"", "\"workers\"", "\"ports\"", "\"uptime\""].map(|key| text.find(key));
    assert!(at.is_sorted() && at[0].is_some(), "in an order that people read: {text}");
    let status = status.json();
    assert_eq!((&status["app"], &status["workers"]), (&"true".into(), &1.into()));
    assert_eq!(status["ports"]["http"], server.address().port());
    assert!(status["uptime"].is_number());
    worker.quit();
    assert_eq!(phrase(), (503, "degraded".into()));
    wait_until("a line of its end", || server.stderr_text().contains("): gone"));
}

/// `[2026-03-01 12:00:00.123 +0000  1.2ms  0.9ms]` without its brackets.
fn assert_stamp(stamp: &str) {
    let words: Vec<&str> = stamp.split_whitespace().collect();
    let [date, time, zone, total, worker] = words[..] else { panic!("not five words: {stamp}") };
    let shape = |phrase: &str| -> String {
        phrase.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect()
    };
    assert_eq!((shape(date).as_str(), shape(time).as_str()), ("0000-00-00", "00:00:00.000"), "{stamp}");
    assert!(["+0000", "-0000"].contains(&shape(zone).as_str()), "{stamp}");
    for duration in [total, worker] {
        let tenths = duration.strip_suffix("ms").and_then(|text| text.split_once('.'));
        assert!(tenths.is_some_and(|(_, tenth)| tenth.len() == 1), "{stamp}");
        assert!(duration.trim_end_matches("ms").parse::<f64>().is_ok(), "{stamp}");
    }
}

#[test]
fn human_lines_are_as_documented() {
    let mut server = Server::builder(test_worker()).args(["w:1"]).start();
    assert_eq!(server.get("/ping?token=secret").text(), "pong");
    assert_eq!(server.client().post("/echo", &[b'x'; 1536]).body.len(), 1536);
    assert_eq!(server.get("/nowhere").status, 404);
    for expected in ["GET /ping → 200 plain 4B", "POST /echo → 200 - 1.5kB", "GET /nowhere → 404 plain 17B"]
    {
        let mut found = String::new();
        server.wait_until(expected, |server| {
            let line = server.stdout_lines().into_iter().find(|line| line.ends_with(expected));
            line.map(|line| found = line).is_some()
        });
        let stamp = found.strip_prefix('[').and_then(|line| line.split_once("] "));
        let (stamp, remaining) = stamp.unwrap_or_else(|| panic!("no stamp: {found}"));
        assert_eq!(remaining, expected);
        assert_stamp(stamp);
    }
    // Secrets travel in queries.
    assert!(!server.stdout_lines().iter().any(|line| line.contains("secret")));
}

#[test]
fn json_lines_have_every_documented_field() {
    let mut server = Server::builder(test_worker()).args(["w:1", "--json-logging"]).start();
    let client = asking(&server, "/ping?token=secret");
    let address = client.local_address().ip().to_string();
    let mut client = client;
    assert_eq!(client.read_response().text(), "pong");
    let pid: i32 = client.get("/pid").text().parse().expect("a pid");
    let line = line_of(&mut server, "/ping");
    let expected: [(&str, Value); 10] = [
        ("app", "test-worker".into()),
        ("method", "GET".into()),
        ("path", "/ping".into()),
        ("status", 200.into()),
        ("type", "text/plain".into()),
        ("length", 4.into()),
        ("worker", 0.into()),
        ("pid", pid.into()),
        ("client", address.clone().into()),
        ("peer", address.into()),
    ];
    for (key, value) in &expected {
        assert_eq!(&line[key], value, "{key} of {line}");
    }
    let time = line["t"].as_str().expect("a time");
    assert_eq!((time.len(), &time[10..11], &time[19..20], &time[23..]), (24, "T", ".", "Z"), "{time}");
    let seconds = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"));
    assert!(seconds("queueSeconds") >= 0.0 && seconds("workerSeconds") > 0.0, "{line}");
    assert!(seconds("totalSeconds") >= seconds("workerSeconds"), "{line}");
    assert!(line["id"].as_str().is_some_and(|id| !id.is_empty()), "{line}");
    assert!(line.get("reason").is_none(), "the answer is the app's: {line}");
    // With JSON on stdout, everything else is on stderr.
    assert!(server.stdout_lines().iter().all(|line| line.starts_with('{')));
    assert!(server.stderr_text().contains("rip-server: app=test-worker http="));
}

#[test]
fn the_id_in_the_log_is_the_one_that_the_worker_saw() {
    let mut server = Server::without_workers(&["--json"]);
    let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
    for path in ["/a", "/b"] {
        assert_eq!(server.get(path).status, 200);
    }
    let seen: Vec<String> = worker
        .requests()
        .iter()
        .map(|request| request.header("x-request-id").unwrap_or_default().to_owned())
        .collect();
    assert_ne!(seen[0], seen[1]);
    for (path, id) in ["/a", "/b"].into_iter().zip(seen) {
        assert_eq!(line_of(&mut server, path)["id"], id);
    }
}

#[test]
fn every_request_has_exactly_one_line_however_it_ends() {
    let mut server = Server::without_workers(&["--json", "--max-queue=1", "--max-body=1k"]);
    let gate = Gate::default();
    let holding = gate.clone();
    let _worker = RawWorker::join(&server, 1, move |request| match request.target.as_str() {
        "/held" => holding.pass(request),
        "/dies" => Answer { writes: vec![], then: Then::Close },
        "/garbage" => Answer::bytes("what?\r\n\r\n").then(Then::Close),
        "/cut" => Answer::bytes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").then(Then::Close),
        path => Answer::ok(path),
    });
    let mut expected: BTreeMap<&str, (u16, Option<&str>)> = BTreeMap::new();
    let mut expect = |path, status, reason| {
        expected.insert(path, (status, reason));
    };

    let mut client = server.client();
    assert_eq!(client.get("/fine").status, 200);
    expect("/fine", 200, None);
    client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_response_to_head().status, 200);
    expect("/head", 200, None);

    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let gone = asking(&server, "/gone-in-the-queue");
    wait_for_load(&mut server, 1, 1);
    assert_eq!(server.get("/one-too-many").status, 503);
    expect("/one-too-many", 503, Some("queue_full"));
    drop(gone);
    expect("/gone-in-the-queue", 499, Some("client_gone"));
    wait_for_load(&mut server, 1, 0);
    gate.open();
    assert_eq!(held.read_response().status, 200);
    expect("/held", 200, None);

    assert_eq!(server.client().post("/dies", b"x").status, 502);
    expect("/dies", 502, Some("answer_cut"));
    assert_eq!(server.get("/garbage").status, 502);
    expect("/garbage", 502, Some("bad_response"));
    asking(&server, "/cut").read_until_close();
    expect("/cut", 200, Some("answer_cut"));

    let refused = |bytes: &str, status: u16| {
        let mut client = server.client();
        client.send(bytes);
        assert_eq!(client.read_response().status, status, "{bytes}");
    };
    refused("GET /two-hosts HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400);
    expect("/two-hosts", 400, Some("bad_request: host_twice"));
    refused("GET /http3 HTTP/3.0\r\nHost: a\r\n\r\n", 505);
    expect("/http3", 505, Some("bad_request: version"));
    refused("POST /too-large HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n", 413);
    expect("/too-large", 413, Some("body_too_large"));
    refused("POST /bad-chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400);
    expect("/bad-chunk", 400, Some("bad_request: chunk_size"));

    let mut leaves = server.client();
    leaves.send("POST /leaves-in-its-body HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nshort");
    leaves.reset();
    expect("/leaves-in-its-body", 499, Some("client_gone"));

    let count = expected.len();
    server.wait_until("all lines", |server| {
        let of_ours = |line: &&Value| line["path"] != "/status" && line["path"] != "/server";
        access_lines(server).iter().filter(of_ours).count() >= count
    });
    let lines = settled_lines(&mut server);
    for (path, (status, reason)) in expected {
        let found: Vec<_> = lines.iter().filter(|line| line["path"] == path).collect();
        let shown: Vec<_> =
            found.iter().map(|line| (line["status"].as_u64(), line["reason"].as_str())).collect();
        assert_eq!(shown, [(Some(u64::from(status)), reason)], "{path}");
    }
    assert_eq!(lines.len(), count, "{lines:?}");
}

#[test]
fn a_request_that_came_too_late_has_exactly_one_line() {
    let mut server = Server::without_workers(&["--json", "--queue-timeout-ms=300", "--read-timeout-ms=700"]);
    let gate = Gate::default();
    let holding = gate.clone();
    let worker = RawWorker::join(&server, 1, move |request| holding.pass(request));
    let mut held = asking(&server, "/held");
    server.wait_until("it is at work", |_| worker.request_count() == 1);
    assert_eq!((server.get("/waited").status, held.read_response().status), (504, 504));
    // The late answer is nobody's, and has no line either.
    gate.open();
    wait_for_load(&mut server, 0, 0);
    let lines = settled_lines(&mut server);
    let of = |path: &str| lines.iter().find(|line| line["path"] == path).map(|line| line["reason"].clone());
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!((of("/waited"), of("/held")), (Some("queue_timeout".into()), Some("read_timeout".into())));
}

/// Targets that could break a line, as bytes.
const NASTY: [&[u8]; 6] = [
    b"/a\"quote\"",
    b"/back\\slash",
    b"/caf\xc3\xa9",
    b"/\xff\xfe",
    b"/\xe2\x80\xa8separator",
    b"/\xc2\x9bcsi",
];
/// Targets that are refused, and stand in the log all the same.
const REFUSED: [&[u8]; 4] = [b"/\x1b[31mred", b"/bell\x07", b"/nul\0", b"/del\x7f"];

#[test]
fn nothing_in_a_url_breaks_a_json_line() {
    let mut server = Server::builder(test_worker()).args(["w:1", "--json"]).start();
    for target in NASTY.iter().chain(&REFUSED) {
        let mut client = server.client();
        client.send([b"GET ", *target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        assert!(client.read_response().status >= 400);
    }
    let lines = settled_lines(&mut server);
    assert_eq!(lines.len(), NASTY.len() + REFUSED.len());
    let paths: Vec<&str> = lines.iter().filter_map(|line| line["path"].as_str()).collect();
    for expected in ["/a\"quote\"", "/back\\slash", "/caf\u{e9}"] {
        assert!(paths.contains(&expected), "{expected} is missing: {paths:?}");
    }
    let refused = lines.iter().filter(|line| line["status"] == 400);
    assert!(
        refused.clone().all(|line| line["reason"].as_str().is_some_and(|it| it.starts_with("bad_request")))
    );
    assert!(refused.count() >= REFUSED.len());
}

#[test]
fn nothing_in_a_url_steers_a_terminal() {
    let mut server = Server::builder(test_worker()).args(["w:1"]).start();
    for target in NASTY.iter().chain(&REFUSED) {
        let mut client = server.client();
        client.send([b"GET ", *target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        assert!(client.read_response().status >= 400);
    }
    let is_access = |line: &&String| line.starts_with('[');
    let count = NASTY.len() + REFUSED.len();
    server.wait_until("all lines", |server| server.stdout_lines().iter().filter(is_access).count() == count);
    for line in server.stdout_lines() {
        let is_odd = |letter: char| letter.is_control() || letter == '\u{2028}' || letter == '\u{fffd}';
        assert!(!line.contains(is_odd), "{line:?}");
    }
}

#[test]
fn without_an_access_log_stdout_has_one_line() {
    let mut server = Server::builder(test_worker()).args(["w:1", "--no-access-log"]).start();
    assert_eq!(server.get("/ping").text(), "pong");
    server.signal(crate::support::Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert_eq!(server.stdout_lines().len(), 1, "{:?}", server.stdout_lines());
}
