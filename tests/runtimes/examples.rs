//! What lies in `examples/` runs as its first line says.

use super::fixture::{Fixture, Needs, bun, node, python, ruby};
use super::support::{Client, Server};

fn start(folder: &str, needs: &Needs, command: &[&str]) -> Option<(Fixture, Server)> {
    let fixture = Fixture::copy_of(needs, &format!("examples/{folder}"))?;
    let server = fixture.server(None).arg("w:2");
    let server = if command.is_empty() { server } else { server.arg("--").args(command) };
    let mut server = server.start();
    server.wait_for_workers(2);
    Some((fixture, server))
}

fn greets(folder: &str, needs: &Needs, command: &[&str], greeting: &str) {
    let Some((_fixture, server)) = start(folder, needs, command) else { return };
    let response = server.get("/");
    assert_eq!(response.status, 200);
    assert!(response.text().contains(greeting), "{}", response.text());
}

#[test]
fn the_example_for_bun_runs() {
    greets("bun", &bun(&[]), &[], "\"hello\":\"/\"");
}

#[test]
fn the_example_for_express_runs() {
    let Some((_fixture, server)) = start("node-express", &node(&["express"]), &[]) else { return };
    assert_eq!(server.get("/").json()["hello"], "express");
    let mut client = server.client();
    client.send_request("POST", "/echo", "Content-Type: application/json\r\n", b"{\"a\":[1]}");
    assert_eq!(client.read_response().text(), "{\"a\":[1]}");
}

#[test]
fn the_example_for_flask_runs() {
    let Some((_fixture, server)) = start("flask", &python(&["flask"]), &[]) else { return };
    assert!(server.get("/").text().starts_with("Hello from worker "));
    assert_eq!(server.get("/count").text(), "0\n1\n2\n");
}

#[test]
fn the_example_for_fastapi_runs() {
    greets("fastapi", &python(&["fastapi"]), &[], "\"worker\":");
}

#[test]
fn the_example_for_rack_runs() {
    greets("rack", &ruby(&["rack"]), &[], "Hello from worker ");
}

#[test]
fn the_example_for_cgi_runs() {
    greets("cgi", &Needs::programs(&[]), &[], "Hello from /\n");
}

#[test]
fn the_example_of_an_executable_keeps_the_worker_protocol() {
    let Some((_fixture, mut server)) = start("executable", &python(&["sys"]), &[]) else { return };
    assert!(server.get("/a").text().ends_with(": GET /a, 0 bytes\n"));
    let mut client = server.client();
    assert!(client.post("/b", &[7; 100_000]).text().ends_with(": POST /b, 100000 bytes\n"));
    let socket = super::protocol::worker_socket(&server);
    let mut second = Client::connect_unix(&socket);
    for probe in ["1", "idle"] {
        second.send_request("GET", "/ready", &format!("Rip-Probe: {probe}\r\n"), b"");
        assert_eq!(second.read_response().text(), "ok", "{probe}");
    }
    drop(second);
    // It drains: a reload ends the old ones by SIGTERM, and they leave with 0.
    let pids = server.worker_pids();
    let reload = server.verb(["reload"]);
    assert_eq!(reload.code, 0, "{}", reload.stderr);
    server.wait_until("the old ones have ended", |server| {
        let text = server.stderr_text();
        pids.iter().all(|pid| text.contains(&format!("(pid {pid}): ended after ")))
    });
}

#[test]
fn the_example_of_a_command_runs() {
    greets("command", &node(&[]), &["node", "server.mjs"], "Hello from worker ");
}
