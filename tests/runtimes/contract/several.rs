//! Rules of several at once: four requests a worker (`c:4`), and streams beside requests.

use super::Rule;
use super::endings::HANDSHAKE;
use super::worker::{A_WHILE, Folder, Worker};
use crate::support::{Client, Signal, comes_true};
use std::fs;

pub const RULES: &[Rule] = &[
    Rule::shared("an event stream holds no place: requests are served beside it", serves_beside_streams),
    Rule::shared("WebSockets hold no place: requests are served beside several", serves_beside_websockets),
    Rule::several("`c:4`: four requests run at once, and a fifth is answered busy", takes_four),
    Rule::several(
        "`c:4`: one that fails and one whose client leaves do not touch the others",
        keeps_them_apart,
    ),
    Rule::several("`c:4`: an idle probe with a request's id is about that request", answers_for_one),
    Rule::several("`c:4`: a changed entry serves new requests, and old ones end on theirs", reloads_beside),
    Rule::fresh_several("`c:4`: SIGTERM: all requests in hand are finished", finishes_all),
];

/// What the shared worker of these rules is asked to take.
pub const AT_ONCE: usize = 4;

fn waiting(worker: &Worker<'_>, id: &str) -> (Client, Folder) {
    let folder = worker.folder();
    let client = worker.ask("GET", &folder.target("/wait"), &format!("X-Request-Id: {id}\r\n"), b"");
    worker.wait_for(&folder, "started");
    (client, folder)
}

fn finish(worker: &Worker<'_>, (mut client, folder): (Client, Folder)) {
    folder.go();
    assert_eq!(worker.answer(&mut client).text(), "done");
}

fn serves_beside_streams(worker: &Worker<'_>) {
    assert_eq!(worker.message("join").expect("it has joined")["streams"], true);
    let folder = worker.folder();
    let stream = || {
        let mut client = worker.ask("GET", &folder.target("/ticks"), "Accept: text/event-stream\r\n", b"");
        worker.read_until(&mut client, "data: 0");
        client
    };
    let (mut first, mut second) = (stream(), stream());
    assert_eq!(worker.get("/hello").text(), "hello");
    assert_eq!(worker.probe("idle").text(), "ok");
    folder.go();
    for client in [&mut first, &mut second] {
        assert!(worker.answer(client).text().starts_with("data: 0"));
    }
}

fn serves_beside_websockets(worker: &Worker<'_>) {
    let socket = || {
        let mut client = worker.ask("GET", "/socket", HANDSHAKE, b"");
        worker.read_until(&mut client, "\r\n\r\n");
        assert_eq!(client.read_head().status(), Ok(101));
        client
    };
    let mut clients = [socket(), socket()];
    assert_eq!(worker.get("/hello").text(), "hello");
    for client in &mut clients {
        // "a", masked with zeros.
        client.send([0x81, 0x81, 0, 0, 0, 0, b'a']);
        assert_eq!(client.read_exactly(3), [0x81, 1, b'a']);
    }
}

fn takes_four(worker: &Worker<'_>) {
    assert_eq!(worker.message("join").expect("it has joined")["concurrency"], AT_ONCE);
    let mut four: Vec<_> = (0..AT_ONCE).map(|at| waiting(worker, &format!("four{at}"))).collect();
    let busy = worker.get("/hello");
    assert_eq!((busy.status, busy.header("rip-worker-busy")), (503, Some("1")));
    assert_eq!(worker.probe("1").text(), "ok");
    assert_eq!(worker.probe("idle").status, 503);
    // The third is the first to end, and its place is free.
    finish(worker, four.remove(2));
    let is_served = || worker.get("/hello").status == 200;
    assert!(comes_true(worker.poll_timeout(), is_served), "no place is free");
    four.into_iter().for_each(|one| finish(worker, one));
    worker.wait_until_idle();
}

fn keeps_them_apart(worker: &Worker<'_>) {
    let pid = worker.get("/pid").text();
    let (first, second) = (waiting(worker, "one"), waiting(worker, "two"));
    let (mut gone, folder) = waiting(worker, "gone");
    gone.half_close();
    let kind = worker.column.exceptions()[0];
    assert_eq!(worker.get(&format!("/fail/{kind}")).status, 500);
    folder.go();
    worker.wait_for(&folder, "ended");
    worker.wait_until_closed(&mut gone);
    finish(worker, second);
    finish(worker, first);
    worker.wait_until_idle();
    assert_eq!(worker.get("/pid").text(), pid);
}

fn answers_for_one(worker: &Worker<'_>) {
    let (first, second) = (waiting(worker, "one"), waiting(worker, "two"));
    let is_over = |id: &str| worker.probe_of(id).status == 200;
    assert!(!is_over("one") && !is_over("two") && is_over("three"));
    finish(worker, first);
    assert!(comes_true(worker.poll_timeout(), || is_over("one")), "it does not say that it has ended");
    assert!(!is_over("two"));
    finish(worker, second);
    worker.wait_until_idle();
}

fn reloads_beside(worker: &Worker<'_>) {
    let entry = worker.column.entry(worker.fixture);
    let text = fs::read_to_string(&entry).expect("an entry of text");
    let old = waiting(worker, "old");
    fs::write(&entry, text.replace("hello", "hallo")).expect("the entry can be changed");
    let is_new = comes_true(worker.poll_timeout(), || worker.get("/hallo").text() == "hallo");
    fs::write(&entry, text).expect("the entry can be changed");
    assert!(is_new, "the new handler does not serve");
    finish(worker, old);
    let is_back = || worker.get("/hello").text() == "hello";
    assert!(comes_true(worker.poll_timeout(), is_back), "the first handler is not back");
}

fn finishes_all(worker: &mut Worker<'_>) {
    let (first, second) = (waiting(worker, "one"), waiting(worker, "two"));
    worker.signal(Signal::SIGTERM);
    assert!(!comes_true(A_WHILE, || worker.has_exited()), "it has ended with requests in hand");
    for one in [second, first] {
        finish(worker, one);
    }
    worker.wait_exit();
}
