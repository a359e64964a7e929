//! WebSockets through the front end, with the client that PyPI calls `websockets`.

use super::fixture::{Fixture, Needs, bun, python, python_program};
use super::support::server::output;
use std::path::Path;
use std::process::Command;

/// Messages of all kinds come back; whether the client says goodbye or not, its worker is free afterwards.
fn echoes(folder: &str, needs: &Needs, command: &[&str]) {
    let client_needs = python(&["websockets"]);
    let fixture = Fixture::copy_of(needs, &format!("tests/apps/{folder}"));
    let (Some(fixture), Some(_)) = (fixture, Fixture::empty(&client_needs, "client")) else {
        return;
    };
    let server = fixture.server(None).args(["w:1", "--hot-reload=none"]);
    let server = if command.is_empty() { server } else { server.arg("--").args(command) };
    let mut server = server.start();
    server.wait_for_workers(1);
    let pid = server.get("/pid").text();
    // Of a connection that just ends, uvicorn says the one, everybody else the other.
    for (leave, codes) in [("orderly", ["4001"].as_slice()), ("rudely", &["1005", "1006"])] {
        let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runtimes/websocket_client.py");
        let mut python = Command::new(python_program().expect("Python, as was looked"));
        python.arg(client).arg(format!("ws://{}/socket", server.address())).arg(leave);
        let output = output(python);
        assert_eq!((output.code, output.stdout.as_str()), (0, "echoed 7\n"), "{}", output.stderr);
        assert_eq!(server.get("/pid").text(), pid, "{}", server.stderr_text());
        server.wait_until("the app's word of its end", |server| {
            let lines = server.stdout_lines();
            let is_it = |line: &String| {
                line.split_once("closed with ").is_some_and(|(_, code)| codes.contains(&code))
            };
            lines.iter().any(is_it)
        });
    }
}

#[test]
fn bun_serves_websockets() {
    echoes("bun-socket", &bun(&[]), &[]);
}

#[test]
fn python_serves_websockets_to_a_bare_asgi_app() {
    echoes("asgi", &python(&["asyncio"]), &[]);
}

#[test]
fn python_serves_websockets_to_fastapi() {
    echoes("fastapi", &python(&["fastapi"]), &[]);
}

#[test]
fn uvicorn_serves_websockets_as_a_command() {
    let needs = Needs { programs: &["uvicorn"], ..python(&["uvicorn"]) };
    echoes("asgi", &needs, &["uvicorn", "--no-access-log", "--uds", "{socket}", "asgi:app"]);
}
