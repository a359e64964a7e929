//! Rules of a worker's end. In them the test is the server: after `quit` it closes the connections.

use super::Rule;
use super::worker::{A_WHILE, Worker, send};
use crate::support::{Signal, comes_true};
use std::fs;

pub const RULES: &[Rule] = &[
    Rule::fresh("SIGTERM: says quit, and ends with exit code 0 when the connections are closed", leaves),
    Rule::fresh("the quit says whose it is", says_whose_quit_it_is),
    Rule::fresh(
        "a body that the app reads in part is skipped, and does not keep its worker from leaving",
        skips_what_is_left,
    ),
    Rule::fresh("SIGTERM: the request in hand is finished", finishes_its_request),
    Rule::fresh("SIGTERM: what is sent before the quit's answer is served", serves_what_was_sent),
    Rule::fresh("SIGTERM: shutdown hooks run, with the work that they wait for", runs_its_hooks),
    Rule::fresh("SIGTERM: an event stream is told at once", tells_streams),
    Rule::fresh("SIGTERM: the event stream of a POST is finished", finishes_computed_streams),
    Rule::fresh("SIGTERM: a WebSocket is closed with 1012", closes_websockets),
    Rule::fresh("SIGINT is the server's, not the worker's", ignores_sigint),
];

/// A command says nothing; it has the signal.
fn wait_for_quit(worker: &mut Worker<'_>) {
    if worker.column.command().is_none() {
        wait_for_a_quit(worker);
    }
}

fn wait_for_a_quit(worker: &mut Worker<'_>) {
    worker.wait_until("the quit", |worker| worker.message("quit").is_some());
}

fn leaves(worker: &mut Worker<'_>) {
    let mut client = worker.ask("GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut client).text(), "hello");
    worker.signal(Signal::SIGTERM);
    wait_for_a_quit(worker);
    drop(client);
    worker.wait_exit();
}

fn says_whose_quit_it_is(worker: &mut Worker<'_>) {
    worker.signal(Signal::SIGTERM);
    wait_for_a_quit(worker);
    let quit = worker.message("quit").expect("as was waited for");
    assert_eq!(quit["instance"], super::worker::INSTANCE);
    assert_eq!(quit["workerId"], super::worker::WORKER_ID);
    worker.wait_exit();
}

/// What a connection holds, what comes with the head, and what takes many reads.
const LEFT_BYTES: [usize; 3] = [150_000, 2_000, 3_000_000];

fn skips_what_is_left(worker: &mut Worker<'_>) {
    for kind in ["leave", "stop"] {
        let mut client = worker.client();
        for size in LEFT_BYTES {
            send(&mut client, "POST", &format!("/part/{kind}"), "", &vec![7; size]);
            assert_eq!(worker.answer(&mut client).text(), "left", "{kind}, {size} bytes");
            send(&mut client, "GET", "/hello", "", b"");
            assert_eq!(worker.answer(&mut client).text(), "hello", "{kind}, behind {size} bytes");
        }
    }
    let last = LEFT_BYTES.map(|size| {
        let mut client = worker.ask("POST", "/part/leave", "", &vec![7; size]);
        assert_eq!(worker.answer(&mut client).text(), "left", "{size} bytes");
        client
    });
    worker.wait_until_idle();
    worker.signal(Signal::SIGTERM);
    wait_for_quit(worker);
    drop(last);
    worker.wait_exit();
}

fn finishes_its_request(worker: &mut Worker<'_>) {
    let folder = worker.folder();
    let mut client = worker.ask("GET", &folder.target("/wait"), "", b"");
    worker.wait_for(&folder, "started");
    worker.signal(Signal::SIGTERM);
    assert!(!comes_true(A_WHILE, || worker.has_exited()), "it has ended with a request in hand");
    folder.go();
    assert_eq!(worker.answer(&mut client).text(), "done");
    wait_for_quit(worker);
    drop(client);
    worker.wait_exit();
}

fn serves_what_was_sent(worker: &mut Worker<'_>) {
    let mut client = worker.ask("GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut client).text(), "hello");
    worker.signal(Signal::SIGTERM);
    send(&mut client, "GET", "/pid", "", b"");
    assert_eq!(worker.answer(&mut client).status, 200);
    wait_for_a_quit(worker);
    drop(client);
    worker.wait_exit();
}

fn runs_its_hooks(worker: &mut Worker<'_>) {
    let mut client = worker.ask("GET", "/hello", "", b"");
    assert_eq!(worker.answer(&mut client).text(), "hello");
    worker.signal(Signal::SIGTERM);
    wait_for_quit(worker);
    drop(client);
    worker.wait_exit();
    assert!(worker.contract_dir().join("hook").exists(), "its hook did not run to its end");
}

fn tells_streams(worker: &mut Worker<'_>) {
    let folder = worker.folder();
    let mut client = worker.ask("GET", &folder.target("/ticks"), "Accept: text/event-stream\r\n", b"");
    worker.read_until(&mut client, "data: 0");
    worker.signal(Signal::SIGTERM);
    worker.wait_until_told(&folder);
    worker.wait_until_closed(&mut client);
    worker.wait_exit();
}

fn finishes_computed_streams(worker: &mut Worker<'_>) {
    let folder = worker.folder();
    let mut client = worker.ask("POST", &folder.target("/ticks"), "", b"");
    worker.read_until(&mut client, "data: 0");
    worker.signal(Signal::SIGTERM);
    assert!(!comes_true(A_WHILE, || worker.has_exited()), "it has ended with a request in hand");
    folder.go();
    assert!(worker.answer(&mut client).text().starts_with("data: 0"));
    drop(client);
    worker.wait_exit();
}

pub const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn closes_websockets(worker: &mut Worker<'_>) {
    let mut client = worker.ask("GET", "/socket", HANDSHAKE, b"");
    worker.read_until(&mut client, "\r\n\r\n");
    assert_eq!(client.read_head().status(), Ok(101));
    worker.signal(Signal::SIGTERM);
    // A close frame of 1012, unmasked.
    let frame = client.read_exactly(4);
    assert_eq!((frame[0], &frame[2..]), (0x88, [0x03, 0xf4].as_slice()), "{frame:?}");
    // The client's own, masked with zeros. Some servers have closed the connection by now, without waiting for it.
    let _ = client.try_send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]);
    worker.wait_until_closed(&mut client);
    worker.wait_exit();
    let code = fs::read_to_string(worker.contract_dir().join("closed")).unwrap_or_default();
    assert_eq!(code, "1012");
}

fn ignores_sigint(worker: &mut Worker<'_>) {
    worker.signal(Signal::SIGINT);
    let mut client = worker.ask("GET", "/pid", "", b"");
    assert_eq!(worker.answer(&mut client).text(), worker.pid().to_string());
    // Commands are known to end, sooner or later on a loaded machine.
    let within = if worker.column.command().is_some() { A_WHILE * 40 } else { A_WHILE };
    assert!(!comes_true(within, || worker.has_exited()));
}
