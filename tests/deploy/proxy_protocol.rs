//! A real HAProxy with `send-proxy` and `send-proxy-v2` before the server.

use super::find_program;
use crate::support::skip::skip;
use crate::support::{Client, Server, TEST_TIMEOUT, comes_true, test_worker};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Where HAProxy connects from; its clients have another address.
const PROXY: &str = "127.0.0.6";

/// Ended when it is dropped.
struct HaProxy(Child);

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// HAProxy passes connections of each of the fronts on to the server, and says first who has connected in its own way.
fn start(program: &Path, dir: &Path, fronts: [(SocketAddr, &str); 2], server: SocketAddr) -> HaProxy {
    let mut text = String::from(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n",
    );
    for (number, (front, way)) in fronts.iter().enumerate() {
        let line = format!("server rip {server} source {PROXY} {way} check inter 200 check-send-proxy");
        text += &format!("listen front{number}\n  bind {front}\n  {line}\n");
    }
    let path = dir.join("haproxy.cfg");
    std::fs::write(&path, text).expect("a file can be written");
    let mut command = Command::new(program);
    command.args(["-db", "-f"]).arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    HaProxy(command.spawn().expect("HAProxy can be started"))
}

/// An address that is free now, on a loopback address that no other test uses.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((PROXY, 0)).expect("a loopback address");
    listener.local_addr().expect("it is bound")
}

#[test]
fn haproxy_says_who_has_connected_in_both_versions_of_its_protocol() {
    let Some(program) = find_program("haproxy") else {
        return skip("the PROXY protocol", "there is no haproxy");
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let server = Server::builder(test_worker()).http("127.0.0.1:0,proxy").args(["w:2", "--json"]);
    let mut server = server.arg(format!("--trust-proxy={PROXY}")).start();
    server.wait_until("two workers", |server| server.details()["workers"] == 2);
    let fronts = [(free_address(), "send-proxy"), (free_address(), "send-proxy-v2")];
    let _haproxy = start(&program, dir.path(), fronts, server.address());
    for (front, way) in fronts {
        let connects = || std::net::TcpStream::connect(front).is_ok();
        assert!(comes_true(TEST_TIMEOUT, connects), "{way}: HAProxy does not listen");
        let mut client = Client::connect(front);
        let own = client.local_address().ip().to_string();
        assert_ne!(own, PROXY);
        for _ in 0..3 {
            // Its own claim counts for nothing.
            client.send_request("GET", &format!("/told?{way}"), "X-Forwarded-For: 6.6.6.6\r\n", b"");
            let answer = client.read_response();
            assert!(answer.text().starts_with(&format!("{own} ")), "{way}: {}", answer.text());
        }
    }
    let line = r#""path":"/told","status":207"#;
    server.wait_until("the lines", |server| {
        server.stdout_lines().iter().filter(|text| text.contains(line) && !text.contains(PROXY)).count() == 6
    });
    // Its health checks are no news.
    assert!(!server.stderr_text().contains("is closed:"), "{}", server.stderr_text());
}
