//! A client that goes away before its answer has begun: the handler is let finish within the read timeout, since a
//! request may be sent without any wish for an answer; then it is told, where the runtime can.

use super::fixture::{Fixture, Needs, bun, node, python};
use super::support::Server;

fn is_told(folder: &str, needs: &Needs) {
    let Some(fixture) = Fixture::copy_of(needs, &format!("tests/apps/{folder}")) else {
        return;
    };
    let mut server =
        fixture.server(None).args(["w:1", "--hot-reload=none", "--read-timeout-ms=2000"]).start();
    server.wait_for_workers(1);
    let pid = server.get("/pid").text();
    let mut client = server.client();
    client.send_request("GET", "/wait", "", b"");
    let says = |server: &Server, words| server.stdout_lines().iter().any(|line| line.ends_with(words));
    server.wait_until("the handler's start", |server| says(server, "waiting"));
    client.reset();
    server.wait_until("the handler's end", |server| says(server, "the client has gone"));
    assert_eq!(server.get("/pid").text(), pid, "{}", server.stderr_text());
}

#[test]
fn a_handler_under_bun_is_told_by_its_signal() {
    is_told("fetch", &bun(&[]));
}

#[test]
fn a_handler_under_node_is_told_by_its_signal() {
    is_told("fetch", &node(&[]));
}

#[test]
fn an_asgi_app_is_told_by_http_disconnect() {
    is_told("asgi", &python(&["asyncio"]));
}
