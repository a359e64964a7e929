//! The worker protocol as the harnesses speak it, seen from a second connection to a worker.

use super::checks::{App, Exceptions, app, read_until};
use super::fixture::{Fixture, Needs, bun, node, python, ruby};
use super::support::{Client, Server, wait_until};
use std::path::PathBuf;

const NODE_HTTP: App = App { entry: Some("handler.mjs"), ..app("node-http", node(&[])) };
const CGI: App = App { exceptions: Exceptions::Script, ..app("cgi", Needs::programs(&[])) };

const HARNESSES: [App; 6] = [
    app("fetch", bun(&[])),
    app("fetch", node(&[])),
    NODE_HTTP,
    app("wsgi", python(&["sys"])),
    app("asgi", python(&["asyncio"])),
    app("rack", ruby(&["rack"])),
];

fn with_each(apps: &[App], check: impl Fn(&Fixture, &mut Server)) {
    for app in apps {
        let Some(fixture) = app.fixture() else { continue };
        println!("{} with {:?}", app.folder, app.needs);
        check(&fixture, &mut app.start(&fixture, "production"));
    }
}

pub fn worker_socket(server: &Server) -> PathBuf {
    let worker = &server.details()["workerList"][0];
    let version = worker["generation"].as_u64().expect("a generation");
    let ending = format!(".0.{version}.sock");
    let sockets = std::fs::read_dir(server.socket_dir()).expect("the socket folder").flatten();
    let socket = sockets.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(&ending));
    socket.expect("the worker's socket")
}

/// The first one is in the middle of its answer.
fn second_is_busy(apps: &[App]) {
    with_each(apps, |fixture, server| {
        let gate = fixture.dir().join("gate");
        let mut first = server.client();
        first.send_request("GET", &format!("/stream?gate={}", gate.display()), "", b"");
        read_until(&mut first, "first");
        let mut second = Client::connect_unix(&worker_socket(server));
        let busy = second.post("/sha", &[7; 100_000]);
        assert_eq!((busy.status, busy.header("rip-worker-busy")), (503, Some("1")));
        // It may be asked again on the same connection.
        assert_eq!(second.get("/hello").status, 503);
        std::fs::write(&gate, "").expect("the gate opens");
        assert_eq!(first.read_response().text(), "first\nlast\n");
        wait_until("the second one's turn", || second.get("/hello").text() == "hello");
        assert_eq!(server.get("/hello").text(), "hello");
    });
}

#[test]
fn a_worker_serves_one_request_at_a_time_and_says_busy_to_a_second() {
    second_is_busy(&HARNESSES);
}

#[test]
fn the_built_in_worker_serves_one_request_at_a_time_and_says_busy_to_a_second() {
    second_is_busy(&[CGI]);
}

#[test]
fn a_worker_says_that_it_is_ready_to_probes_alone() {
    let apps: Vec<App> = HARNESSES.into_iter().chain([CGI]).collect();
    with_each(&apps, |_, server| {
        let mut client = Client::connect_unix(&worker_socket(server));
        client.send_request("GET", "/ready", "Rip-Probe: 1\r\n", b"");
        let probed = client.read_response();
        assert_eq!((probed.status, probed.text().as_str()), (200, "ok"));
        // To everybody else it is a path of the app's, which has none; that goes for a client's own field as well.
        assert_ne!(client.get("/ready").text(), "ok");
        let mut client = server.client();
        client.send_request("GET", "/ready", "Rip-Probe: 1\r\n", b"");
        assert_ne!(client.read_response().text(), "ok");
    });
}

#[test]
fn what_an_app_prints_is_told_at_once_with_its_worker() {
    let words = "hello from the app";
    let javascript = format!(
        "export default () => {{ console.log('{words}'); console.error('{words}'); return new Response('hello') }}"
    );
    let python_app = format!(
        "import sys
def app(environ, start_response):
    print('{words}')
    print('{words}', file=sys.stderr)
    start_response('200 OK', [])
    return [b'hello']"
    );
    let ruby_app = format!(
        "run lambda {{ |env|
  puts '{words}'
  warn '{words}'
  [200, {{}}, ['hello']]
}}"
    );
    for (needs, entry, text) in [
        (bun(&[]), "index.mjs", &javascript),
        (node(&[]), "index.mjs", &javascript),
        (python(&["sys"]), "app.py", &python_app),
        (ruby(&["rack"]), "config.ru", &ruby_app),
    ] {
        let Some(fixture) = Fixture::empty(&needs, "app") else { continue };
        fixture.write(entry, text);
        let mut server = fixture.server(None).arg("w:1").start();
        server.wait_for_workers(1);
        assert_eq!(server.get("/").text(), "hello", "{}", server.stderr_text());
        let line = format!("[worker 0] {words}");
        server.wait_until("both lines", |server| {
            server.stdout_lines().contains(&line) && server.stderr_lines().contains(&line)
        });
    }
}
