//! What systemd is told, by a socket that stands for its own.

use crate::load::{Gate, has_line};
use crate::support::{Server, Signal, test_worker};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// The notify socket, and what has come there.
struct Systemd {
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Systemd {
    fn at(address: &SocketAddr) -> Systemd {
        let socket = UnixDatagram::bind_addr(address).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        Systemd { socket, told: Vec::new() }
    }

    /// Takes in what has come so far; whether it has this line.
    fn has(&mut self, line: &str) -> bool {
        let mut message = [0; 4096];
        while let Ok(bytes) = self.socket.recv(&mut message) {
            self.told.extend(String::from_utf8_lossy(&message[..bytes]).lines().map(str::to_owned));
            if self.told.len() > 10_000 {
                panic!("too much is told");
            }
        }
        self.told.iter().any(|told| told == line)
    }

    fn take(&mut self) -> Vec<String> {
        self.has("");
        std::mem::take(&mut self.told)
    }
}

/// Lines that are neither a status nor a beat.
fn turning_points(told: &[String]) -> Vec<&str> {
    let is_minor = |line: &&String| line.starts_with("STATUS=") || line.starts_with("WATCHDOG=");
    let told = told.iter().filter(|line| !is_minor(line));
    told.map(|line| line.split('=').next().unwrap_or_default()).collect()
}

#[test]
fn each_message_comes_at_its_moment_and_none_at_another() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("notify");
    let mut systemd = Systemd::at(&SocketAddr::from_pathname(&path).expect("an address"));
    let gate = Gate::new();
    gate.hold();
    let server =
        Server::builder(gate.app()).arg("w:2").env("NODE_ENV", "production").env("NOTIFY_SOCKET", &path);
    let mut server = server.start();
    server.wait_until("it says that it starts", |_| systemd.has("STATUS=starting"));
    assert_eq!(turning_points(&systemd.take()), Vec::<&str>::new(), "before the first join");
    gate.let_go();
    server.wait_until("both serve", |_| systemd.has("STATUS=2 of 2 workers serve"));
    assert_eq!(turning_points(&systemd.take()), ["READY"]);
    for worker in server.worker_pids() {
        let environ = std::fs::read(format!("/proc/{worker}/environ")).expect("its environment");
        assert!(
            !String::from_utf8_lossy(&environ).contains("NOTIFY_SOCKET"),
            "workers may speak for the server"
        );
    }
    assert_eq!(server.verb(["reload"]).code, 0);
    server.wait_until("it is ready again", |_| systemd.has("READY=1"));
    assert_eq!(turning_points(&systemd.take()), ["RELOADING", "MONOTONIC_USEC", "READY"]);
    gate.break_build();
    assert_eq!(server.verb(["reload"]).code, 1);
    server.wait_until("it is ready with the old code", |_| systemd.has("READY=1"));
    assert_eq!(turning_points(&systemd.take()), ["RELOADING", "MONOTONIC_USEC", "READY"]);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert_eq!(turning_points(&systemd.take()), ["STOPPING"]);
}

#[test]
fn a_reload_that_fails_at_once_is_told_from_its_begin_to_its_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let (path, variables) = (dir.path().join("notify"), dir.path().join("variables"));
    std::fs::write(&variables, "A=1\n").expect("a file");
    let mut systemd = Systemd::at(&SocketAddr::from_pathname(&path).expect("an address"));
    let server = Server::builder(test_worker()).args(["w:1", "--hot-reload=process", "--env-file"]);
    let mut server = server.arg(&variables).env("NOTIFY_SOCKET", &path).start();
    server.wait_until("it serves", |_| systemd.has("STATUS=1 of 1 workers serve"));
    systemd.take();
    std::fs::write(&variables, "A=1\nB\n").expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_until("it is ready with what it had", |_| systemd.has("READY=1"));
    assert_eq!(turning_points(&systemd.take()), ["RELOADING", "MONOTONIC_USEC", "READY"]);
    assert!(server.stderr_text().contains("reload stopped"), "{}", server.stderr_text());
}

#[test]
fn the_watchdog_hears_of_a_loop_that_turns_and_of_no_other() {
    const WATCHDOG: Duration = Duration::from_millis(400);
    let name = format!("rip-notify-{}", std::process::id());
    let mut systemd = Systemd::at(&SocketAddr::from_abstract_name(&name).expect("an address"));
    let start = |pid: Option<&str>| {
        let server = Server::builder(test_worker()).arg("w:1").env("NOTIFY_SOCKET", format!("@{name}"));
        let server = server.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        let server = match pid {
            Some(pid) => server.env("WATCHDOG_PID", pid),
            None => server,
        };
        server.start()
    };
    let mut server = start(None);
    let beats = |told: &[String]| told.iter().filter(|line| *line == "WATCHDOG=1").count();
    server.wait_until("it is ready", |_| systemd.has("READY=1"));
    // Those that were sent before are not counted.
    let (begin, mut count) = (Instant::now(), 0);
    systemd.take();
    server.wait_until("five beats", |_| {
        count += beats(&systemd.take());
        count >= 5
    });
    assert!(begin.elapsed() >= WATCHDOG, "it beats faster than it needs to: {:?}", begin.elapsed());
    server.signal(Signal::SIGSTOP);
    crate::support::wait_until("it is stopped", || {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap_or_default();
        status.contains(") T ")
    });
    systemd.take();
    let stopped = Instant::now();
    crate::support::wait_until("its time is over", || stopped.elapsed() > 2 * WATCHDOG);
    assert_eq!(beats(&systemd.take()), 0, "a loop that does not turn is said to");
    server.signal(Signal::SIGCONT);
    server.wait_until("it beats again", |_| systemd.has("WATCHDOG=1"));
    drop(server);
    systemd.take();
    let mut server = start(Some("1"));
    server.wait_until("it serves", |_| systemd.has("STATUS=1 of 1 workers serve"));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert!(has_line(&server, "stopping"));
    assert_eq!(beats(&systemd.take()), 0, "the watchdog of another process");
}

/// The old server names its successor before it lets it serve, and has nothing to say after that; the new one takes the
/// watchdog over.
#[test]
fn an_upgrade_names_the_new_process_and_tells_of_no_stop() {
    const WATCHDOG: Duration = Duration::from_millis(400);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("notify");
    let mut systemd = Systemd::at(&SocketAddr::from_pathname(&path).expect("an address"));
    // As systemd starts it.
    let program = crate::load::started_by(dir.path(), "SYSTEMD_EXEC_PID=$$ WATCHDOG_PID=$$ exec env");
    let server = Server::carried_by(program).arg(test_worker()).arg("w:1").env("NOTIFY_SOCKET", &path);
    let mut server = server.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()).start();
    server.wait_until("it serves", |_| systemd.has("STATUS=1 of 1 workers serve"));
    systemd.take();
    assert_eq!(server.control("POST", "/control", r#"{"op":"upgrade"}"#).status, 200);
    assert_eq!(server.wait_exit(), 0);
    server.wait_until("the new one serves", |_| systemd.has("STATUS=1 of 1 workers serve"));
    let told = systemd.take();
    let pid = server.details()["pid"].as_i64().expect("a pid");
    assert_eq!(turning_points(&told), ["MAINPID", "READY"], "{told:?}");
    assert!(told.contains(&format!("MAINPID={pid}")), "{told:?}");
    server.wait_until("it beats", |_| systemd.has("WATCHDOG=1"));
    let stop = crate::load::tell(&server, r#"{"op":"stop"}"#);
    assert_eq!(stop.status, 200);
    crate::support::wait_until("it is gone", || !crate::support::is_alive(pid as i32));
    assert_eq!(turning_points(&systemd.take()), ["STOPPING"]);
}
