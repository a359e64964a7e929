//! The socket unit, and sockets as systemd gives them.

use super::{example, find_program};
use crate::support::server::output;
use crate::support::skip::{note, skip};
use crate::support::{Client, Server, Signal, test_worker, wait_until};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

/// Ended when it is dropped, as systemd would end the service.
struct Activated(std::process::Child);

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.5:0").expect("a loopback address");
    listener.local_addr().expect("it is bound")
}

#[test]
fn systemd_socket_activate_starts_a_server_that_serves_on_its_sockets() {
    let Some(activate) = find_program("systemd-socket-activate") else {
        return skip("systemd-socket-activate", "it is not installed (apt install systemd)");
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (http, metrics, page) = (free_address(), free_address(), free_address());
    let mut command = Command::new(activate);
    for address in [http, metrics, page] {
        command.args(["-l", &address.to_string()]);
    }
    command.arg("--fdname=http:metrics:page");
    command.arg(format!("--setenv=RIP_SOCKET_DIR={}", dir.path().join("s").display()));
    // Beaten by the socket.
    command.args(["--setenv=PORT=1", "--setenv=PATH"]);
    command.arg(crate::support::server_program()).arg(test_worker()).arg("w:1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut activated = Activated(command.spawn().expect("it can be started"));
    wait_until("it listens", || std::net::TcpStream::connect(metrics).is_ok());
    let mut client = Client::connect(http);
    assert_eq!(client.get("/ping").text(), "pong");
    assert!(Client::connect(metrics).get("/metrics").text().contains("rip_uptime_seconds"));
    let mut viewer = Client::connect(page);
    viewer.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(viewer.read_response().header("content-type"), Some("text/html; charset=utf-8"));
    drop((client, viewer));
    let mut stderr = activated.0.stderr.take().expect("it is piped");
    drop(activated);
    let mut text = String::new();
    stderr.read_to_string(&mut text).expect("it can be read");
    assert!(text.contains("stopped"), "{text}");
}

#[test]
fn who_waits_in_the_backlog_of_a_given_socket_when_the_server_stops_is_served_by_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let start = || {
        let socket = listener.try_clone().expect("another descriptor");
        let server = Server::builder(test_worker()).arg("w:1").env("PORT", "1").given(socket);
        let mut server = server.start();
        server.wait_for_workers(1);
        server
    };
    let mut first = start();
    let mut accepted = first.client();
    assert_eq!(accepted.get("/ping").text(), "pong");
    // It hears of the signal before it hears of those who connect.
    first.signal(Signal::SIGSTOP);
    let mut clients: Vec<Client> = (0..20).map(|_| first.client()).collect();
    clients.iter_mut().for_each(|client| client.send_request("GET", "/ping", "", b""));
    first.signal(Signal::SIGTERM);
    first.signal(Signal::SIGCONT);
    drop(accepted);
    // Some may have been accepted before the signal was read; nobody is lost between the two.
    assert_eq!(first.wait_exit(), 0);
    clients.push(Client::connect(listener.local_addr().expect("it is bound")));
    clients.last_mut().expect("one").send_request("GET", "/ping", "", b"");
    let second = start();
    for mut client in clients {
        assert_eq!(client.read_response().text(), "pong");
    }
    let environ =
        std::fs::read(format!("/proc/{}/environ", second.worker_pids()[0])).expect("its environment");
    assert!(!String::from_utf8_lossy(&environ).contains("LISTEN_"), "workers are told of the sockets");
}

#[test]
fn a_given_socket_that_cannot_be_served_on_is_a_complaint() {
    let app = test_worker();
    let app = app.to_str().expect("plain letters");
    let shell = |script: &str| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg(crate::support::server_program()).arg(app);
        command.env("RIP_SOCKET_DIR", dir.path().join("s"));
        output(command)
    };
    for (script, given, would_do) in [
        ("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" http:1", "LISTEN_FDS", "one of them"),
        (
            "exec 3</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"",
            "descriptor 3 is no socket",
            "listening",
        ),
        ("exec \"$0\" \"$@\" http:fd:9", "descriptor 9 is not open", "http:<port>"),
    ] {
        let complaint = shell(script);
        let text = &complaint.stderr;
        assert!(complaint.code == 2 && text.contains(given) && text.contains(would_do), "{script}: {text}");
    }
}

#[test]
fn systemd_understands_the_socket_unit() {
    let Some(analyze) = find_program("systemd-analyze") else {
        return note("systemd-analyze verify", "there is no systemd-analyze");
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let program = dir.path().join("rip-server");
    crate::load::write_script(&program, "#!/bin/sh\n");
    for name in ["rip-server@.socket", "rip-server@.service"] {
        let text = example(name).replace("/usr/local/bin/rip-server", &program.display().to_string());
        std::fs::write(dir.path().join(name), text).expect("a file can be written");
    }
    let mut command = Command::new(analyze);
    command.args(["verify", "--man=no"]).arg(dir.path().join("rip-server@.socket"));
    let verdict = output(command);
    let complaints = verdict.stderr.lines().filter(|line| line.contains("rip-server@")).count();
    assert!(verdict.code == 0 && complaints == 0, "exit {}: {}", verdict.code, verdict.stderr);
}
