//! Rules of one exchange, asked of a worker without a server.

use super::worker::{A_WHILE, Folder, INSTANCE, USERS_OWN, VERSION, WORKER_ID, Worker, send};
use super::{Column, Rule};
use crate::support::{Client, is_alive, latin1, latin1_bytes, length_and_checksum};
use std::process::{Command, Stdio};

pub const RULES: &[Rule] = &[
    Rule::shared("the join says who it is and what it can", joins),
    Rule::shared(
        "the environment has the protocol's names, and the user's own untouched",
        knows_its_environment,
    ),
    Rule::shared("a second request at once is answered busy", second_is_busy),
    Rule::shared("a probe is answered ok, and without its field the path is the app's", answers_probes),
    Rule::shared("a probe is answered ok while a handler runs", answers_probes_at_work),
    Rule::shared("an idle probe is answered busy while a handler runs", answers_idle_probes),
    Rule::shared("10 MB go in whole", takes_long_bodies),
    Rule::shared("10 MB come out whole, with a length and without", gives_long_bodies),
    Rule::shared("a request right behind an answer on its connection is served", serves_behind_an_answer),
    Rule::shared("a body that the app leaves unread is skipped", skips_unread_bodies),
    Rule::shared("repeated fields arrive, in one or joined", passes_repeated_fields),
    Rule::shared("fields of Latin-1 arrive byte for byte", passes_latin1),
    Rule::shared(
        "HEAD, 204 and 304 have no body, and the next answer is its own",
        keeps_bodiless_answers_apart,
    ),
    Rule::shared("the app knows its client's address", knows_the_client),
    Rule::shared("a half-close does not end the handler, nor the connection before it", half_close_waits),
    Rule::shared("a half-close is told to the app", half_close_is_told),
    Rule::shared("a silent event stream is told of a half-close", silent_stream_is_told),
    Rule::shared("an event stream that says something is told of a half-close", stream_is_told),
    Rule::shared("an exception before the head is a 500, and the worker goes on", answers_exceptions),
    Rule::shared("an exception in mid-answer cuts the answer", cuts_answers),
    Rule::fresh("a child that a handler forked never comes back into the harness", keeps_children_out),
    Rule::fresh("a child that stays holds no connection", children_hold_no_connection),
];

fn joins(worker: &Worker<'_>) {
    let join = worker.message("join").expect("it has joined");
    assert_eq!(join["instance"], INSTANCE);
    assert_eq!(join["workerId"], WORKER_ID);
    assert_eq!(join["version"], VERSION);
    assert_eq!(join["pid"], worker.pid());
    assert_eq!(join["socket"], worker.socket().to_str().expect("a path of letters"));
    assert_eq!(join["drains"], true);
    assert!(join["concurrency"].as_u64().is_none_or(|count| count >= 1), "{join}");
}

fn knows_its_environment(worker: &Worker<'_>) {
    let text = worker.get("/env").text();
    let has = |line: &str| text.lines().any(|other| other == line);
    let entry = worker.column.entry(worker.fixture);
    let folder = entry.canonicalize().expect("the entry");
    let folder = if folder.is_dir() { &folder } else { folder.parent().expect("its folder") }.display();
    assert!(has(&format!("cwd={folder}")), "not in {folder}:\n{text}");
    if worker.column == Column::Cgi {
        // A script is not told how its worker speaks with the server.
        assert!(!text.contains("RIP_") && !text.contains("\nSOCKET_PATH="), "{text}");
    } else {
        assert!(has(&format!("WORKER_ID={WORKER_ID}")) && has(&format!("RIP_INSTANCE={INSTANCE}")), "{text}");
        assert!(has(&format!("RIP_VERSION={VERSION}")) && text.contains("RIP_APP_ENTRY="), "{text}");
    }
    if worker.column == Column::Rust {
        assert!(has("SOCKET_PREFIX=contract"), "{text}");
    } else {
        for (name, value) in USERS_OWN {
            assert!(has(&format!("{name}={value}")), "{name}:\n{text}");
        }
    }
}

/// A handler at work, until its folder says go.
fn waiting(worker: &Worker<'_>, method: &str) -> (Client, Folder) {
    let folder = worker.folder();
    let client = worker.ask(method, &folder.target("/wait"), "", b"");
    worker.wait_for(&folder, "started");
    (client, folder)
}

fn second_is_busy(worker: &Worker<'_>) {
    let (mut first, folder) = waiting(worker, "GET");
    let mut second = worker.ask("POST", "/sha", "", &[7; 100_000]);
    let busy = worker.answer(&mut second);
    assert_eq!((busy.status, busy.header("rip-worker-busy")), (503, Some("1")));
    // It may be asked again on the same connection.
    send(&mut second, "GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut second).status, 503);
    folder.go();
    assert_eq!(worker.answer(&mut first).text(), "done");
    worker.wait_until_idle();
    send(&mut second, "GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut second).text(), "hello");
}

fn answers_probes(worker: &Worker<'_>) {
    let probe = worker.probe("1");
    assert_eq!((probe.status, probe.text().as_str()), (200, "ok"));
    let text = worker.get("/ready").text();
    let is_the_apps = text.starts_with("the app") || text.is_empty() && worker.column == Column::Cgi;
    assert!(is_the_apps, "{text}");
}

fn answers_probes_at_work(worker: &Worker<'_>) {
    let (mut first, folder) = waiting(worker, "GET");
    let probe = worker.probe("1");
    assert_eq!((probe.status, probe.text().as_str()), (200, "ok"));
    folder.go();
    assert_eq!(worker.answer(&mut first).text(), "done");
    worker.wait_until_idle();
}

fn answers_idle_probes(worker: &Worker<'_>) {
    let (mut first, folder) = waiting(worker, "GET");
    let busy = worker.probe("idle");
    assert_eq!((busy.status, busy.header("rip-worker-busy")), (503, Some("1")));
    folder.go();
    assert_eq!(worker.answer(&mut first).text(), "done");
    worker.wait_until_idle();
    assert_eq!(worker.probe("idle").text(), "ok");
}

/// 10 MB that repeat nowhere near.
fn long_body() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..2_500_000).flat_map(|_| next().to_le_bytes()).collect()
}

fn sha256sum(path: &std::path::Path) -> String {
    let output = Command::new("sha256sum").arg(path).stdin(Stdio::null()).output().expect("sha256sum");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

fn takes_long_bodies(worker: &Worker<'_>) {
    let body = long_body();
    let path = worker.contract_dir().join("up");
    std::fs::write(&path, &body).expect("a file");
    let expected = match worker.column {
        Column::Rust => length_and_checksum(&body),
        _ => format!("{} {}", body.len(), sha256sum(&path)),
    };
    // On one connection, so that what is left over would be seen.
    let mut client = worker.ask("POST", "/sha", "Content-Type: application/octet-stream\r\n", &body);
    assert_eq!(worker.answer(&mut client).text(), expected);
    send(&mut client, "GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut client).text(), "hello");
}

fn gives_long_bodies(worker: &Worker<'_>) {
    let body = long_body();
    let path = worker.contract_dir().join("down");
    std::fs::write(&path, &body).expect("a file");
    let mut client = worker.client();
    for name in ["file", "pieces"] {
        send(&mut client, "GET", &format!("/{name}?{}", path.display()), "", b"");
        let answer = worker.answer(&mut client);
        assert_eq!(answer.body.len(), body.len(), "{name}");
        assert!(answer.body == body, "{name}");
    }
}

/// The answer is written, and not read yet, when the next request comes.
fn serves_behind_an_answer(worker: &Worker<'_>) {
    let path = worker.contract_dir().join("written");
    std::fs::write(&path, long_body()).expect("a file");
    let mut client = worker.ask("GET", &format!("/file?{}", path.display()), "", b"");
    worker.read_until(&mut client, "\r\n\r\n");
    send(&mut client, "GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut client).body.len(), 10_000_000);
    let next = worker.answer(&mut client);
    assert_eq!((next.status, next.text().as_str()), (200, "hello"));
}

fn skips_unread_bodies(worker: &Worker<'_>) {
    let mut client = worker.ask("POST", "/ignore", "", &long_body());
    assert_eq!(worker.answer(&mut client).text(), "ignored");
    send(&mut client, "GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut client).text(), "hello");
}

fn passes_repeated_fields(worker: &Worker<'_>) {
    let fields = "X-Many: a\r\nX-Many: b\r\nCookie: c=1\r\nCookie: d=2\r\n";
    let answer = worker.answer(&mut worker.ask("GET", "/fields", fields, b""));
    let text = latin1(&answer.body);
    let lines: Vec<&str> = text.lines().collect();
    // With a blank behind the comma or without: both are the same list.
    assert_eq!(lines.first().map(|line| line.replace(' ', "")).as_deref(), Some("a,b"), "{text}");
    assert_eq!(lines.get(1), Some(&"c=1; d=2"), "{text}");
    let cookies: Vec<&str> = answer.head.values("set-cookie").collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    let out: Vec<&str> = answer.head.values("x-out").collect();
    assert_eq!(out.join(", "), "a, b");
}

fn passes_latin1(worker: &Worker<'_>) {
    let mut client = worker.client();
    for value in ["caf\u{e9} \u{fc}\u{a0}x", "gr\u{c3}\u{bc}\u{c3}\u{9f}e"] {
        let mut bytes =
            b"GET /fields HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\nX-Latin: ".to_vec();
        bytes.extend(latin1_bytes(value));
        bytes.extend(b"\r\n\r\n");
        client.send(bytes);
        let answer = worker.answer(&mut client);
        assert_eq!(latin1(&answer.body).lines().nth(2), Some(value), "in");
        assert_eq!(answer.header("x-latin"), Some(value), "out");
    }
}

fn keeps_bodiless_answers_apart(worker: &Worker<'_>) {
    let mut client = worker.client();
    send(&mut client, "HEAD", "/hello", "", b"");
    assert_eq!(client.read_response_to_head().status, 200);
    for status in [204, 304] {
        send(&mut client, "GET", &format!("/nobody/{status}"), "", b"");
        assert_eq!(client.read_response_to_head().status, status);
        send(&mut client, "GET", "/hello", "", b"");
        let next = worker.answer(&mut client);
        assert_eq!((next.status, next.text().as_str()), (200, "hello"), "after a {status}");
    }
    send(&mut client, "HEAD", "/fail/error", "", b"");
    assert_eq!(client.read_response_to_head().status, 500);
    send(&mut client, "GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut client).text(), "hello");
}

fn knows_the_client(worker: &Worker<'_>) {
    assert_eq!(worker.get("/client").text(), "192.0.2.7");
    let mut proxied = worker.ask("GET", "/client", "Rip-Client: 203.0.113.9\r\n", b"");
    assert_eq!(worker.answer(&mut proxied).text(), "203.0.113.9");
}

fn half_close_waits(worker: &Worker<'_>) {
    // A script of a safe method ends where nobody waits; one that changes something goes on.
    let (mut client, folder) = waiting(worker, "POST");
    client.half_close();
    assert!(!client.is_closed_within(A_WHILE), "closed with its handler at work");
    if worker.column.command().is_none() {
        assert_eq!(worker.probe("idle").status, 503);
    }
    folder.go();
    worker.wait_for(&folder, "ended");
    worker.wait_until_closed(&mut client);
    worker.wait_until_idle();
    assert_eq!(worker.get("/hello").text(), "hello");
}

fn half_close_is_told(worker: &Worker<'_>) {
    let (mut client, folder) = waiting(worker, "GET");
    client.half_close();
    worker.wait_until_told(&folder);
    folder.go();
    worker.wait_until_closed(&mut client);
    worker.wait_until_idle();
}

fn told_of_a_half_close(worker: &Worker<'_>, path: &str) {
    let folder = worker.folder();
    let mut client = worker.ask("GET", &folder.target(path), "Accept: text/event-stream\r\n", b"");
    worker.read_until(&mut client, "data: 0");
    client.half_close();
    worker.wait_until_told(&folder);
    worker.wait_until_closed(&mut client);
    worker.wait_until_idle();
}

fn silent_stream_is_told(worker: &Worker<'_>) {
    told_of_a_half_close(worker, "/events");
}

fn stream_is_told(worker: &Worker<'_>) {
    told_of_a_half_close(worker, "/ticks");
}

fn answers_exceptions(worker: &Worker<'_>) {
    let pid = worker.get("/pid").text();
    let mut client = worker.client();
    for kind in worker.column.exceptions() {
        send(&mut client, "GET", &format!("/fail/{kind}"), "", b"");
        let answer = worker.answer(&mut client);
        assert_eq!(answer.status, 500, "{kind}");
        if worker.column.command().is_some() && answer.header("connection") == Some("close") {
            client = worker.client();
        }
        send(&mut client, "GET", "/pid", "", b"");
        assert_eq!(worker.answer(&mut client).text(), pid, "{kind}");
    }
}

fn cuts_answers(worker: &Worker<'_>) {
    let pid = worker.get("/pid").text();
    for kind in worker.column.late_exceptions() {
        let folder = worker.folder();
        let mut client = worker.ask("GET", &folder.target(&format!("/break/{kind}")), "", b"");
        worker.read_until(&mut client, "first");
        folder.go();
        worker.broken_answer(&mut client);
        worker.wait_until_idle();
        assert_eq!(worker.get("/pid").text(), pid, "{kind}");
    }
}

fn keeps_children_out(worker: &mut Worker<'_>) {
    for kind in ["return", "raise"] {
        let folder = worker.folder();
        let mut client = worker.ask("GET", &folder.target(&format!("/fork/{kind}")), "", b"");
        assert_eq!(worker.answer(&mut client).text(), "the parent", "{kind}");
        let child = worker.wait_for_number(&folder, "child");
        worker.wait_for_end_of(child);
        for _ in 0..5 {
            send(&mut client, "GET", "/pid", "", b"");
            assert_eq!(worker.answer(&mut client).text(), worker.pid().to_string(), "{kind}");
        }
    }
}

fn children_hold_no_connection(worker: &mut Worker<'_>) {
    let (stays, folder) = (worker.folder(), worker.folder());
    let mut client = worker.ask("GET", &stays.target("/fork/stay"), "", b"");
    assert_eq!(worker.answer(&mut client).text(), "the parent");
    let child = worker.wait_for_number(&stays, "child");
    send(&mut client, "GET", &folder.target("/break/error"), "", b"");
    worker.read_until(&mut client, "first");
    folder.go();
    worker.wait_until_closed(&mut client);
    assert!(is_alive(child));
    stays.go();
}
