//! Rules of what no front end sends: a worker's socket is its user's alone, but a bug of a neighbour must not take the
//! worker along. Whatever comes, what goes back is an answer or nothing, and the next request is served.

use super::Rule;
use super::worker::Worker;
use crate::support::{Client, Signal, Trouble, cases};
use std::time::Instant;

pub const RULES: &[Rule] = &[
    Rule::shared("what clients may send wrong is answered or closed, and the worker goes on", survives_cases),
    Rule::shared("the same byte by byte", survives_cases_in_bytes),
    Rule::shared("what no front end sends is answered 400, and its connection closed", refuses_the_rest),
    Rule::shared("a request that is cut anywhere leaves nothing behind", survives_cuts),
    Rule::shared("200 connections that say nothing, or half a head, keep nobody out", survives_floods),
    Rule::shared(
        "an answer that nobody reads, or that is broken off, leaves nothing behind",
        survives_leavers,
    ),
    Rule::shared("a worker that was stopped for a moment goes on", survives_a_pause),
    Rule::several(
        "what clients may send wrong is answered or closed, and the worker goes on, with `c:4` too",
        survives_cases,
    ),
    Rule::several(
        "200 connections that say nothing, or half a head, keep nobody out, with `c:4` too",
        survives_floods,
    ),
];

/// Longer ones are about the front end's bounds, and would take their time byte by byte.
const MAX_BYTES_ONE_BY_ONE: usize = 600;
const FLOOD: usize = 200;
const LEAVERS: usize = 4;
/// More than sockets hold.
const LONG_BYTES: usize = 4 * 1024 * 1024;
/// Each is wrong in one way.
const SENT_BY_NOBODY: &[&str] = &[
    "GET /hello\r\nHost: a\r\n\r\n",
    "GET  /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET hello HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /hello HTTP/1.0\r\nHost: a\r\n\r\n",
    "GET /hello HTTP/1.1x\r\nHost: a\r\n\r\n",
    "GET /he\tllo HTTP/1.1\r\nHost: a\r\n\r\n",
    "G@T /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    "\r\n\r\n",
    "GET /hello HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
    "GET /hello HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n",
    "GET /hello HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "GET /hello HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "GET /hello HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n",
    "GET /hello HTTP/1.1\r\nHost: a\r\nX-A: b\rX-B: c\r\n\r\n",
    "POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nhow",
    "POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nhow",
    "POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nhow",
    "POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nhow",
    "POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhow",
    "POST /sha HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhow\r\n0\r\n\r\n",
];

/// The worker is free again, and has printed nothing: no handler fails here, so an exception is its own.
fn goes_on(worker: &Worker<'_>, words_before: &str) {
    worker.wait_until_idle();
    assert_eq!(worker.get("/hello").text(), "hello");
    // A command says what it likes.
    if worker.column.command().is_none() {
        assert_eq!(worker.words().strip_prefix(words_before), Some(""), "what it has printed since");
    }
}

/// All that comes back until the other side closes.
fn remainder(worker: &Worker<'_>, client: &mut Client) -> Vec<u8> {
    let (came, trouble) = client.wire.read_to_end(Instant::now() + worker.poll_timeout());
    assert_ne!(trouble, Trouble::TimedOut, "neither answered nor closed; came: {}", came.escape_ascii());
    came
}

fn survives(worker: &Worker<'_>, is_one_by_one: bool) {
    let words = worker.words();
    for case in cases::load("http-requests.json") {
        let id = case["id"].as_str().unwrap_or_default();
        let bytes = cases::writes(&case["send"]).concat();
        if is_one_by_one && bytes.len() > MAX_BYTES_ONE_BY_ONE {
            continue;
        }
        let mut client = worker.client();
        // It may close in the middle.
        let _ = match is_one_by_one {
            true => bytes.chunks(1).try_for_each(|byte| client.try_send(byte)),
            false => client.try_send(&bytes),
        };
        let _ = client.wire.half_close();
        let came = remainder(worker, &mut client);
        assert!(came.is_empty() || came.starts_with(b"HTTP/1."), "{id}: {}", came.escape_ascii());
    }
    goes_on(worker, &words);
}

fn survives_cases(worker: &Worker<'_>) {
    survives(worker, false);
}

fn survives_cases_in_bytes(worker: &Worker<'_>) {
    survives(worker, true);
}

fn refuses_the_rest(worker: &Worker<'_>) {
    let words = worker.words();
    for request in SENT_BY_NOBODY {
        let mut client = worker.client();
        client.send(request);
        let came = remainder(worker, &mut client);
        assert!(came.starts_with(b"HTTP/1.1 400 "), "{request:?}: {}", came.escape_ascii());
    }
    goes_on(worker, &words);
}

fn survives_cuts(worker: &Worker<'_>) {
    let words = worker.words();
    let plain =
        b"POST /sha HTTP/1.1\r\nHost: a\r\nX-Request-Id: 12\r\nContent-Length: 7\r\n\r\nhow now".as_slice();
    let chunked = b"POST /sha HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhow\r\n0\r\n\r\n";
    for whole in [plain, chunked] {
        for end in 0..whole.len() {
            let mut client = worker.client();
            client.send(&whole[..end]);
            // Every other one is closed at once, the rest from one side.
            if end % 2 == 0 {
                continue;
            }
            client.half_close();
            let came = remainder(worker, &mut client);
            // Chunks come from no front end, so what reads them may take a half-close for their end.
            let is_answer = came.is_empty()
                || came.starts_with(b"HTTP/1.1 4")
                || came.starts_with(b"HTTP/1.1 503")
                || whole == chunked && came.starts_with(b"HTTP/1.1 ");
            assert!(is_answer, "cut at {end}: {}", came.escape_ascii());
        }
    }
    goes_on(worker, &words);
}

fn survives_floods(worker: &Worker<'_>) {
    let words = worker.words();
    let half_a_head = |number: usize| if number.is_multiple_of(2) { "" } else { "GET /hello HTTP/1.1\r\nHo" };
    let flood: Vec<Client> = (0..FLOOD)
        .map(|number| {
            let mut client = worker.client();
            client.send(half_a_head(number));
            client
        })
        .collect();
    // A single thread that reads one connection after the other would wait for the first of them.
    assert_eq!(worker.get("/hello").text(), "hello");
    drop(flood);
    goes_on(worker, &words);
}

fn survives_leavers(worker: &Worker<'_>) {
    let words = worker.words();
    let long = worker.contract_dir().join("long");
    std::fs::write(&long, vec![7; LONG_BYTES]).expect("a file");
    let pieces = format!("/pieces?{}", long.display());
    for (method, target) in [("GET", "/hello"), ("POST", "/sha"), ("GET", pieces.as_str())] {
        let body: &[u8] = if method == "POST" { &[7; 1000] } else { b"" };
        for round in 0..LEAVERS {
            let mut client = worker.ask(method, target, "", body);
            if round % 2 == 0 {
                // Some of it is on its way by then.
                worker.read_until(&mut client, "\r\n\r\n");
            }
            client.reset();
            worker.wait_until_idle();
        }
    }
    goes_on(worker, &words);
}

fn survives_a_pause(worker: &Worker<'_>) {
    let words = worker.words();
    worker.signal(Signal::SIGSTOP);
    let mut client = worker.ask("GET", "/hello", "", b"");
    worker.signal(Signal::SIGCONT);
    assert_eq!(worker.answer(&mut client).text(), "hello");
    worker.signal(Signal::SIGWINCH);
    goes_on(worker, &words);
}
