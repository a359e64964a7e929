//! The smallest app that carries the server: `cargo run --release --example hello -- w:4 http:5002`.

use rip_server::Response;

fn main() -> std::process::ExitCode {
    rip_server::run(|request| match request.path() {
        "/ping" => Response::text("pong"),
        path => Response::text(format!("Hello from {path}\n")),
    })
}
