//! Ends without loss, by whatever is asked for one, and what workers inherit from a server that may die.

#[path = "ends/behind.rs"]
mod behind;
#[path = "ends/inherited.rs"]
mod inherited;
#[path = "support/load.rs"]
mod load;
mod support;

use load::{Gate, Load, PATIENT, children, workers};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Client, Hold, Response, Server, Signal, Trouble, is_alive, test_worker};

fn sleeping_app(dir: &Path) -> std::path::PathBuf {
    let app = dir.join("sleeper");
    load::write_script(&app, "#!/bin/sh\nexec sleep 1000\n");
    app
}

fn is_at_work(server: &Server) -> bool {
    workers(server).iter().any(|worker| worker.state == "busy")
}

/// `name`'s line of `/proc/<pid>/status`.
fn status_line(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("such a line");
    line.trim_start_matches(':').trim().to_owned()
}

fn assert_last(response: &Response, body: &str) {
    assert_eq!((response.status, response.text().as_str()), (200, body));
    assert_eq!(response.header("connection"), Some("close"));
}

/// A request under way and one that waits are finished, and nothing is left.
fn assert_ends_without_loss(stop: impl FnOnce(&Server) + Send) {
    let hold = Hold::new();
    let dir = tempfile::tempdir().expect("a folder");
    let unix = dir.path().join("http.sock");
    let server = Server::builder(test_worker()).args(["w:1", "--queue-timeout-ms=20000"]);
    let mut server = server.http("127.0.0.1:0").http(&format!("unix:{}", unix.display())).start();
    server.wait_for_workers(1);
    let worker = server.worker_pids()[0];
    let (mut first, mut second) = (hold.ask(&server), Client::connect_unix(&unix));
    server.wait_until("one is at work", |server| is_at_work(server));
    second.send_request("GET", "/ping", "", b"");
    server.wait_until("one waits", |server| server.details()["queue"]["now"] == 1);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| stop(&server));
        support::wait_until("it stops", || load::has_line(&server, "stopping"));
        hold.let_go();
        stop.join().expect("no panic");
    });
    assert_last(&first.read_response(), "held");
    assert_last(&second.read_response(), "pong");
    assert_eq!(server.wait_exit(), 0);
    assert!(!is_alive(worker));
    assert_eq!(load::files_in(&server.socket_dir()), Vec::<String>::new());
    assert!(!unix.exists());
    assert!(std::net::TcpStream::connect(server.address()).is_err());
}

#[test]
fn sigterm_finishes_what_is_under_way_and_what_waits() {
    assert_ends_without_loss(|server| server.signal(Signal::SIGTERM));
}

#[test]
fn sigint_finishes_what_is_under_way_and_what_waits() {
    assert_ends_without_loss(|server| server.signal(Signal::SIGINT));
}

#[test]
fn stop_finishes_what_is_under_way_and_what_waits_and_returns_when_the_server_is_gone() {
    assert_ends_without_loss(|server| {
        let output = server.verb(["stop"]);
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert!(!is_alive(server.pid()), "it is gone, and only not taken in yet");
        assert_eq!(load::files_in(&server.socket_dir()), Vec::<String>::new());
        assert!(std::net::TcpStream::connect(server.address()).is_err());
    });
}

#[test]
fn the_same_signal_to_the_process_and_to_its_group_is_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let app = dir.path().join("stubborn");
    // So that the server is still there for the second one, with nothing left to drain.
    load::write_script(&app, "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n");
    let is_one = || {
        let mut server = Server::builder(&app).args(["w:1", "--drain-timeout-ms=100"]).start();
        server.wait_until("the worker is started", |server| workers(server).len() == 1);
        server.signal(Signal::SIGTERM);
        server.wait_until("it stops", |server| load::has_line(server, "stopping"));
        server.signal(Signal::SIGTERM);
        server.wait_exit() == 0
    };
    // On a slow machine the second one may come too late to be the same.
    assert!((0..10).any(|_| is_one()));
}

#[test]
fn sockets_that_a_killed_server_has_left_are_swept_away_by_the_next() {
    let server = Server::with_test_worker(&["w:1"]);
    let dir = server.socket_dir();
    let app = server.dir().join("broken");
    load::write_script(&app, "#!/bin/sh\nexit 1\n");
    let socket = |name: &str| {
        let path = dir.join(name);
        (std::os::unix::net::UnixListener::bind(&path).expect("a socket"), path)
    };
    let nobodys = |name: &str| socket(name).1;
    // The second is of a server from before there were instances in the names.
    let left =
        ["5e55.7.9.sock", "7.9.sock", "5e55.ctl"].map(|end| nobodys(&format!("rip_server2_broken.{end}")));
    let (_listens, lives) = socket("rip_server2_broken.5e55.8.1.sock");
    let strange = nobodys("rip_server2_other.5e55.7.9.sock");
    let (app, sockets) = (app.to_str().expect("plain letters"), dir.to_str().expect("plain letters"));
    let output = support::run([app, "w:1", "http:127.0.0.1:0", "--socket-dir", sockets]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert_eq!(left.iter().find(|path| path.exists()), None);
    assert!(lives.exists() && strange.exists());
}

#[test]
fn a_control_socket_that_a_dying_child_still_holds_is_no_server() {
    let server = Server::with_test_worker(&["w:1"]);
    let app = server.dir().join("broken");
    load::write_script(&app, "#!/bin/sh\nexit 1\n");
    let control = server.socket_dir().join("rip_server2_broken.ctl.sock");
    let sockets = server.socket_dir();
    let (app, sockets) = (app.to_str().expect("plain letters"), sockets.to_str().expect("plain letters"));
    let start = || support::run([app, "w:1", "http:127.0.0.1:0", "--socket-dir", sockets]);
    let listen = || std::os::unix::net::UnixListener::bind(&control).expect("a socket");

    // A look whether somebody listens, then a question: after that it is gone.
    let holder = listen();
    let holds = std::thread::spawn(move || drop([holder.accept(), holder.accept()]));
    let output = start();
    assert!(output.stderr.contains("no worker ever joined"), "it was started: {}", output.stderr);
    holds.join().expect("no panic");

    // Somebody who never answers is asked three times.
    let holder = listen();
    let holds = std::thread::spawn(move || (0..6).for_each(|_| drop(holder.accept())));
    let output = start();
    assert_eq!((output.code, output.stderr.matches("does not answer").count()), (1, 1), "{}", output.stderr);
    holds.join().expect("no panic");
}

#[test]
fn a_worker_that_ends_by_the_servers_own_sigterm_is_no_warning() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = Server::builder(sleeping_app(dir.path())).arg("w:1").start();
    server.wait_until("the worker is started", |server| workers(server).len() == 1);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    support::wait_until("its last line", || load::has_line(&server, "stopped"));
    let text = server.stderr_text();
    assert!(text.contains("ended by SIGTERM") && !text.contains("warn:"), "{text}");
}

#[test]
fn a_worker_that_does_not_join_in_time_is_said_to() {
    let dir = tempfile::tempdir().expect("a folder");
    let app = sleeping_app(dir.path());
    let app = app.to_str().expect("plain letters");
    let output = support::run([app, "w:1", "http:127.0.0.1:0", "--boot-timeout-ms=100"]);
    assert_eq!(output.code, 1);
    for words in ["did not join within --boot-timeout-ms=100", "before it had joined"] {
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
}

#[test]
fn request_on_its_way_on_a_quiet_connection_within_the_second_of_grace_is_served() {
    load::play_in_time("requests within the second of grace", || {
        let mut server = Server::with_test_worker(&["w:1"]);
        let (mut used, mut fresh, mut idle) = (server.client(), server.client(), server.client());
        assert_eq!((used.get("/ping").status, idle.get("/ping").status), (200, 200));
        server.wait_until("all are accepted", |server| server.details()["clients"] == 3);
        let start = Instant::now();
        server.signal(Signal::SIGTERM);
        server.wait_until("it stops", |server| load::has_line(server, "stopping"));
        let request = "GET /ping HTTP/1.1\r\nHost: a\r\n\r\n";
        let sent = (used.try_send(request), fresh.try_send(request));
        if start.elapsed() > Duration::from_millis(800) {
            return None;
        }
        assert!(sent.0.is_ok() && sent.1.is_ok(), "{sent:?}");
        assert_last(&used.read_response(), "pong");
        assert_last(&fresh.read_response(), "pong");
        // Who stays quiet is closed without a word, and does not hold up the end.
        assert_eq!(idle.read_until_close(), (Vec::new(), Trouble::Closed));
        assert_eq!(server.wait_exit(), 0);
        Some(())
    });
}

#[test]
fn constant_keep_alive_traffic_does_not_prevent_the_end_and_loses_nothing() {
    let mut server = Server::builder(test_worker()).arg("w:2").args(PATIENT).start();
    let load = Load::of(&server, "/ping", 4, 0);
    load.wait_for_answers(200);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    load.end_with_the_server();
}

#[test]
fn second_signal_ends_at_once_and_everybody_is_told() {
    let mut server = Server::with_test_worker(&["w:1", "--read-timeout-ms=60000", "--json"]);
    let mut client = server.client();
    client.send_request("GET", "/sleep?ms=60000", "", b"");
    server.wait_until("it is at work", |server| is_at_work(server));
    let mut waiting = server.client();
    waiting.send_request("GET", "/ping", "", b"");
    server.wait_until("another one waits", |server| server.details()["queue"]["now"] == 1);
    let worker = server.worker_pids()[0];
    server.signal(Signal::SIGTERM);
    server.wait_until("it stops", |server| load::has_line(server, "stopping"));
    assert!(load::stays(Duration::from_millis(300), || !server.has_exited()), "one signal drains");
    server.signal(Signal::SIGTERM);
    // Long before the drain timeout of 30 s.
    assert_eq!(server.wait_exit(), 1);
    support::wait_until("the worker is gone", || !is_alive(worker));
    assert_eq!(load::files_in(&server.socket_dir()), Vec::<String>::new());
    assert_eq!((client.read_response().status, waiting.read_response().status), (503, 503));
    support::wait_until("a line for each", || server.stdout_lines().len() == 2);
    let is_told = |line: &String| line.contains(r#""status":503"#) && line.contains(r#""reason":"stopping""#);
    assert!(server.stdout_lines().iter().all(is_told), "{:?}", server.stdout_lines());
}

#[test]
fn request_that_outlasts_the_drain_timeout_is_refused_with_a_reason() {
    let mut server =
        Server::with_test_worker(&["w:1", "--read-timeout-ms=60000", "--drain-timeout-ms=500", "--json"]);
    let mut client = server.client();
    client.send_request("GET", "/sleep?ms=60000", "", b"");
    server.wait_until("it is at work", |server| is_at_work(server));
    let worker = server.worker_pids()[0];
    server.signal(Signal::SIGTERM);
    assert_eq!(client.read_response().status, 503);
    assert_eq!(server.wait_exit(), 0);
    assert!(!is_alive(worker));
    support::wait_until("its line", || server.stdout_lines().len() == 1);
    assert!(server.stdout_lines()[0].contains(r#""reason":"stopping""#), "{:?}", server.stdout_lines());
}

#[test]
fn request_that_waits_for_the_first_worker_is_served_though_the_server_stops() {
    let gate = Gate::new();
    gate.hold();
    let mut server = Server::builder(gate.app()).args(["w:1", "--queue-timeout-ms=60000"]).start();
    let mut client = server.client();
    client.send_request("GET", "/ping", "", b"");
    server.wait_until("it waits", |server| server.details()["queue"]["now"] == 1);
    server.signal(Signal::SIGTERM);
    server.wait_until("it stops", |server| load::has_line(server, "stopping"));
    gate.let_go();
    assert_last(&client.read_response(), "pong");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn request_that_waits_while_the_only_worker_dies_is_served_though_the_server_stops() {
    let mut server =
        Server::with_test_worker(&["w:1", "--queue-timeout-ms=60000", "--read-timeout-ms=60000"]);
    let (mut first, mut second) = (server.client(), server.client());
    first.send_request("POST", "/sleep?ms=60000", "", b"");
    server.wait_until("one is at work", |server| is_at_work(server));
    second.send_request("GET", "/ping", "", b"");
    server.wait_until("one waits", |server| server.details()["queue"]["now"] == 1);
    server.signal(Signal::SIGTERM);
    server.wait_until("it stops", |server| load::has_line(server, "stopping"));
    kill(Pid::from_raw(server.worker_pids()[0]), Signal::SIGKILL).expect("it lives");
    assert_eq!(first.read_response().status, 502);
    assert_last(&second.read_response(), "pong");
    assert_eq!(server.wait_exit(), 0);
}

/// Clients that come while the server hears nothing; the signal comes before or behind them.
fn assert_serves_what_the_kernel_accepts(is_signal_first: bool) {
    let mut server = Server::with_test_worker(&["w:2", "--queue-timeout-ms=20000"]);
    server.wait_for_workers(2);
    // A server that is stopped accepts nothing; the kernel does.
    server.signal(Signal::SIGSTOP);
    support::wait_until("it is stopped", || status_line(server.pid(), "State").starts_with('T'));
    if is_signal_first {
        server.signal(Signal::SIGTERM);
    }
    let mut clients: Vec<Client> = (0..50).map(|_| server.client()).collect();
    for client in &mut clients {
        client.send_request("GET", "/ping", "", b"");
    }
    if !is_signal_first {
        server.signal(Signal::SIGTERM);
    }
    server.signal(Signal::SIGCONT);
    for client in &mut clients {
        assert_last(&client.read_response(), "pong");
    }
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn what_the_kernel_had_accepted_before_the_signal_is_served() {
    assert_serves_what_the_kernel_accepts(false);
}

#[test]
fn what_the_kernel_has_accepted_before_the_server_hears_the_signal_is_served() {
    assert_serves_what_the_kernel_accepts(true);
}

/// Clients that connect while the server stops, until nobody can any more, as fast as the kernel can: each that is
/// connected is answered.
fn assert_loses_nobody_who_connects(mut server: Server, connect: impl Fn() -> Option<Client> + Sync) {
    /// As many as there are descriptors for, since nobody is done before the end.
    const CLIENTS: usize = 250;
    // Each asks at once: one connect may wait a second for its refusal, and whoever is silent so long is closed.
    let ask = |mut client: Client| {
        client.send("GET /server HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        client
    };
    let connect_all = || (0..CLIENTS).map_while(|_| connect().map(ask)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(connect_all)).collect();
        server.signal(Signal::SIGTERM);
        for mut client in threads.into_iter().flat_map(|thread| thread.join().expect("no panic")) {
            assert_eq!(client.read_response().text(), "ok");
        }
    });
    assert_eq!(server.wait_exit(), 0);
}

const STOPS: usize = 10;

#[test]
fn a_unix_listener_resets_nobody_who_connects_while_it_closes() {
    let dir = tempfile::tempdir().expect("a folder");
    for stop in 0..STOPS {
        let path = dir.path().join(format!("{stop}.sock"));
        let server = Server::builder(test_worker()).arg("w:1").http(&format!("unix:{}", path.display()));
        let connect = || support::wire::Wire::unix(&path).ok().map(|wire| Client { wire });
        assert_loses_nobody_who_connects(server.start(), connect);
        assert!(!path.exists());
    }
}

#[test]
fn a_tcp_listener_resets_nobody_who_connects_while_it_closes() {
    for at in ["127.0.0.1:0", "[::1]:0", "0"].into_iter().cycle().take(STOPS) {
        let server = Server::builder(test_worker()).arg("w:1").http(at).start();
        let address = server.address();
        let connect = || support::wire::Wire::tcp(address).ok().map(|wire| Client { wire });
        assert_loses_nobody_who_connects(server, connect);
    }
}

#[test]
fn a_request_that_crosses_the_end_of_an_idle_connection_meets_no_reset() {
    load::play_in_time("a request within a second of the end", || {
        let mut server = Server::with_test_worker(&["w:1"]);
        let mut idle = server.client();
        assert_eq!(idle.get("/ping").status, 200);
        server.signal(Signal::SIGTERM);
        assert_eq!(idle.read_until_close(), (Vec::new(), Trouble::Closed));
        let end = Instant::now();
        let sent = idle.try_send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n");
        let after = idle.read_until_close();
        let waits = !server.has_exited();
        if end.elapsed() > Duration::from_millis(800) {
            return None;
        }
        assert!(sent.is_ok(), "{sent:?}");
        assert_eq!(after, (Vec::new(), Trouble::Closed));
        assert!(waits, "it waits for the client's end");
        drop(idle);
        assert_eq!(server.wait_exit(), 0);
        Some(())
    });
}

#[test]
fn ctrl_c_reaches_the_server_and_not_its_workers() {
    let dir = tempfile::tempdir().expect("a folder");
    // A session of its own, as a shell's job has a group of its own: the signal must not reach this test.
    let server = Server::carried_by(load::started_by(dir.path(), "exec setsid")).arg(test_worker());
    let mut server = server.arg("w:2").start();
    server.wait_for_workers(2);
    let groups: Vec<(i32, i32)> = server
        .worker_pids()
        .into_iter()
        .map(|pid| (pid, nix::unistd::getpgid(Some(Pid::from_raw(pid))).expect("a group").as_raw()))
        .collect();
    assert!(groups.iter().all(|(pid, group)| pid == group), "{groups:?}");
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    server.wait_until("it is at work", |server| is_at_work(server));
    killpg(Pid::from_raw(server.pid()), Signal::SIGINT).expect("the server's group");
    server.wait_until("it stops", |server| load::has_line(server, "stopping"));
    hold.let_go();
    assert_last(&client.read_response(), "held");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn server_as_pid_1_reaps_orphans_and_stops_on_sigterm() {
    const NAME: &str = "a server as PID 1";
    let probe = support::server::output({
        let mut probe = Command::new("unshare");
        probe.args(["-fp", "--kill-child", "--mount-proc", "true"]);
        probe
    });
    if probe.code != 0 {
        return crate::support::skip::skip(NAME, probe.stderr.trim());
    }
    let dir = tempfile::tempdir().expect("a folder");
    let app = dir.path().join("app");
    // The subshell ends at once, so its child becomes an orphan.
    let text = format!("#!/bin/sh\n(sleep 1000 &)\nexec {}\n", test_worker().display());
    load::write_script(&app, &text);
    let unshare = load::started_by(dir.path(), "exec unshare -fp --kill-child --mount-proc");
    let mut server = Server::carried_by(unshare).arg(&app).arg("w:1").start();
    server.wait_for_workers(1);
    let inner = children(server.pid())[0];
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let orphan = || children(inner).into_iter().find(|pid| name(pid) == "sleep\n");
    support::wait_until("the orphan is the server's", || orphan().is_some());
    let orphan = orphan().expect("it was just seen");
    kill(Pid::from_raw(orphan), Signal::SIGKILL).expect("it lives");
    // A zombie would stay there.
    support::wait_until("the orphan is reaped", || !children(inner).contains(&orphan));
    assert_eq!(server.get("/ping").text(), "pong");
    kill(Pid::from_raw(inner), Signal::SIGTERM).expect("it lives");
    assert_eq!(server.wait_exit(), 0);
    assert_eq!(load::files_in(&server.socket_dir()), Vec::<String>::new());
}

#[test]
fn second_server_of_the_same_app_says_so_and_the_first_goes_on() {
    let server = Server::with_test_worker(&["w:1"]);
    let app = test_worker();
    let sockets = server.socket_dir();
    let (app, sockets) = (app.to_str().expect("plain letters"), sockets.to_str().expect("plain letters"));
    let output = support::run([app, "w:1", "http:127.0.0.1:0", "--socket-dir", sockets]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""));
    assert!(output.stderr.contains("is served already"), "{}", output.stderr);
    assert!(output.stderr.contains(&server.pid().to_string()), "{}", output.stderr);
    assert_eq!(server.get("/ping").text(), "pong");
    assert_eq!(server.verb(["stop"]).code, 0);
}
