//! The reports of PEERS.md that are about workers, restarts, signals and boots. Some are said by other tests:
//!
//! | report | test |
//! |---|---|
//! | puma/puma#187 | `reload::reload_with_a_broken_build_stops_and_says_why_and_the_old_workers_go_on` |
//! | emmett-framework/granian#921, Unitech/pm2#1875 | `reload::slow_boot_of_the_only_workers_successor_…` |
//! | benoitc/gunicorn#2567, unbit/uwsgi#2235 | `fleet::workers_of_r_20_under_load_…`, `fleet::worker_of_r_100_…` |
//! | benoitc/gunicorn#2529, puma/puma#2337 | `ends::sigterm_finishes_…`, `ends::what_the_kernel_had_accepted_…` |
//! | unbit/uwsgi#515, Unitech/pm2#3522 | `ends::server_as_pid_1_reaps_orphans_and_stops_on_sigterm` |
//! | Kludex/uvicorn#1165 | `ends::ctrl_c_reaches_the_server_and_not_its_workers` |
//! | HKUDS/LightRAG#3494 | `ends::workers_of_a_killed_server_end_…`, `ends::worker_holds_no_socket_of_the_servers` |
//! | puma/puma#468 | `reload::current_symlink_that_moved_is_followed_by_each_new_worker` |
//! | Unitech/pm2#4347, puma/puma#3895 | `fleet::w_auto_on_one_cpu_is_1`, `fleet::w_auto_in_a_cgroup_…` |
//! | benoitc/gunicorn#371 | the simulation of `fleet`: no action names a worker that is gone |

#[path = "support/load.rs"]
mod load;
mod support;

use load::{Event, Gate, Load, PATIENT, children, events, workers};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Client, Server, Signal, is_alive, test_worker};

fn pid_that_answers(server: &Server) -> i32 {
    server.get("/pid").text().parse().expect("a pid")
}

/// All lines so far of the access log of a server with `--json`.
fn access_lines(server: &Server) -> Vec<Value> {
    // Lines come in order, so with this one all earlier ones are there.
    assert_eq!(server.get("/the-last-line").status, 404);
    let mut lines = Vec::new();
    support::wait_until("the last access line", || {
        let parse = |line: &String| serde_json::from_str(line).expect("each line parses");
        lines = server.stdout_lines().iter().map(parse).collect();
        lines.last().is_some_and(|line: &Value| line["path"] == "/the-last-line")
    });
    lines
}

fn summary(server: &Server) -> (u16, String) {
    let response = server.get("/status");
    (response.status, response.json()["status"].as_str().unwrap_or_default().to_owned())
}

/// The waits between starts are at least 100, 200, 400 … ms.
fn assert_backoff(starts: &[Duration]) {
    for (index, pair) in starts.windows(2).enumerate() {
        let (wait, least) = (pair[1] - pair[0], Duration::from_millis(100 << index));
        assert!(wait >= least, "{wait:?} and not {least:?} before start {}", index + 2);
    }
}

/// freeunitorg/freeunit#347: a timeout freed a worker that was still running.
#[test]
fn late_worker_gets_its_next_request_only_when_its_answer_has_ended() {
    let server = Server::with_test_worker(&["w:1", "--read-timeout-ms=800", "--queue-timeout-ms=20000"]);
    let pid = pid_that_answers(&server);
    assert_eq!(server.get("/sleep?ms=1800").status, 504);
    assert_eq!(pid_that_answers(&server), pid);
    assert!(!load::has_line(&server, "busy"), "{}", server.stderr_text());
}

/// php/frankenphp#2205: after worker timeouts everything starved for ever, without a log line.
#[test]
fn fleet_whose_workers_were_all_late_serves_again_and_each_504_is_logged() {
    let mut server = Server::with_test_worker(&["w:2", "--read-timeout-ms=600", "--json"]);
    server.wait_for_workers(2);
    let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
    for client in &mut clients {
        client.send_request("GET", "/sleep?ms=1000", "", b"");
    }
    for client in &mut clients {
        assert_eq!(client.read_response().status, 504);
    }
    server.wait_until("both are idle again", |server| {
        workers(server).iter().filter(|worker| worker.state == "idle").count() == 2
    });
    assert_eq!(server.get("/ping").text(), "pong");
    let sleeps = |line: &&Value| line["path"] == "/sleep";
    let lines = access_lines(&server);
    let late: Vec<&Value> = lines.iter().filter(sleeps).collect();
    assert_eq!(late.len(), 4);
    for line in late {
        assert_eq!(line["status"], 504);
        assert!(line["reason"].is_string(), "{line}");
    }
}

/// phusion/passenger#1621, nginx/unit#408: hung workers stayed hung. unbit/uwsgi#2324: a killed worker's client saw
/// a dropped connection.
#[test]
fn stuck_worker_is_shown_and_replaced_and_killed_long_after_its_client_got_a_504() {
    let gate = Gate::new();
    let server = Server::builder(gate.app()).args(["w:1", "--read-timeout-ms=800"]);
    let mut server = server.args(["--drain-timeout-ms=300", "--queue-timeout-ms=20000"]).start();
    let stuck = pid_that_answers(&server);
    gate.hold();
    assert_eq!(server.get("/sleep?ms=60000").status, 504);
    server.wait_until("its successor boots", |_| gate.starts().len() == 2);
    let list = workers(&server);
    let it = list.iter().find(|worker| worker.pid == stuck).expect("it lives");
    assert_eq!(it.state, "stuck");
    assert!(it.request.ends_with("GET /sleep"), "{it:?}");
    gate.let_go();
    assert_ne!(pid_that_answers(&server), stuck);
    server.wait_until("it is gone", |_| !is_alive(stuck));
    // The test worker hears its SIGTERM, and waits for its handler.
    server.wait_until("its end is logged", |server| {
        events(server).iter().any(
            |event| matches!(event, Event::Ended { pid, exit, .. } if *pid == stuck && exit == "SIGKILL"),
        )
    });
}

/// The same where no successor comes.
#[test]
fn stuck_worker_whose_successor_fails_is_ended_all_the_same() {
    let gate = Gate::new();
    let server = Server::builder(gate.app()).args(["w:1", "--read-timeout-ms=800"]);
    let mut server = server.args(["--drain-timeout-ms=300", "--queue-timeout-ms=20000"]).start();
    let stuck = pid_that_answers(&server);
    gate.break_build();
    assert_eq!(server.get("/sleep?ms=60000").status, 504);
    server.wait_until("it is gone", |_| !is_alive(stuck));
    assert!(gate.starts().len() >= 2, "a successor was started first");
    gate.mend_build();
    assert_ne!(pid_that_answers(&server), stuck);
}

/// benoitc/gunicorn#1060, #1243: no access line when a client gave up or a worker died.
#[test]
fn request_whose_worker_dies_or_whose_client_leaves_has_one_line_that_names_the_worker() {
    let server = Server::with_test_worker(&["w:1", "--json", "--queue-timeout-ms=20000"]);
    let first = pid_that_answers(&server);
    assert_eq!(server.client().post("/die", b"").status, 502);
    let second = pid_that_answers(&server);
    let mut client = server.client();
    client.send_request("GET", "/sleep?ms=1500", "", b"");
    support::wait_until("it is at work", || workers(&server).iter().any(|worker| worker.state == "busy"));
    client.reset();
    assert_eq!(pid_that_answers(&server), second);
    let lines = access_lines(&server);
    let one = |path: &str, status: u16, reason: &str, pid: i32| {
        let these: Vec<&Value> = lines.iter().filter(|line| line["path"] == path).collect();
        assert_eq!(these.len(), 1, "{path}: {lines:#?}");
        let reported = (&these[0]["status"], &these[0]["reason"], &these[0]["worker"], &these[0]["pid"]);
        assert_eq!(reported, (&status.into(), &reason.into(), &0.into(), &pid.into()));
    };
    one("/die", 502, "worker_died", first);
    one("/sleep", 499, "client_gone", second);
}

/// puma/puma#1663, benoitc/gunicorn#2504: a boot failure looped for ever, filled the disk, and looked healthy.
#[test]
fn server_whose_app_never_boots_ends_with_1_and_the_reason_in_a_few_lines() {
    let server = Server::builder(test_worker()).args(["w:2"]).env("TEST_BOOT_FAIL", "1");
    let mut server = server.start();
    assert_ne!(summary_if_alive(&server), Some(200));
    assert_eq!(server.wait_exit(), 1);
    server.wait_until("the reason", |server| load::has_line(server, "no worker ever joined"));
    let (lines, text) = (server.stderr_lines(), server.stderr_text());
    assert!(text.contains("told to fail at its start"), "{text}");
    // Each start, its last words, its end; and the reason.
    assert!(lines.len() <= 2 * 3 * 3 + 3, "{text}");
    assert_eq!(load::files_in(&server.socket_dir()), Vec::<String>::new());
}

/// The status while there is one.
fn summary_if_alive(server: &Server) -> Option<u16> {
    let mut stream = std::net::TcpStream::connect(server.address()).ok()?;
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.get(9..12)?.parse().ok()
}

/// The same with `RIP_KEEP_TRYING=1`.
#[test]
fn server_that_keeps_trying_waits_longer_each_time_and_serves_what_waited_when_a_worker_joins() {
    let gate = Gate::new();
    gate.break_build();
    let server = Server::builder(gate.app()).args(["w:1", "--queue-timeout-ms=60000"]);
    let mut server = server.env("RIP_KEEP_TRYING", "1").start();
    let mut waiting = server.client();
    waiting.send_request("GET", "/ping", "", b"");
    server.wait_until("it has failed four times", |_| gate.starts().len() >= 4);
    assert_eq!(summary(&server), (503, "starting".to_owned()));
    assert!(!server.has_exited());
    assert_eq!(server.details()["queue"]["now"], 1);
    gate.mend_build();
    assert_eq!(waiting.read_response().text(), "pong");
    assert_eq!(summary(&server), (200, "healthy".to_owned()));
    assert_backoff(&gate.starts());
}

/// The same for an app that did boot once.
#[test]
fn server_whose_workers_all_crash_is_degraded_and_goes_on_trying() {
    let gate = Gate::new();
    let mut server = Server::builder(gate.app()).args(["w:1", "--queue-timeout-ms=60000"]).start();
    server.wait_for_workers(1);
    gate.break_build();
    assert_eq!(server.client().post("/die", b"").status, 502);
    let mut waiting = server.client();
    waiting.send_request("GET", "/ping", "", b"");
    // The first start was sound; four that fail are more than the three that end a server that never was well.
    server.wait_until("four starts failed", |_| gate.starts().len() >= 5);
    assert_eq!(summary(&server), (503, "degraded".to_owned()));
    let lines = server.stderr_lines().len();
    assert!(lines <= 4 * gate.starts().len() + 6, "{lines} lines: {}", server.stderr_text());
    gate.mend_build();
    assert_eq!(waiting.read_response().text(), "pong");
    assert_eq!(summary(&server), (200, "healthy".to_owned()));
    assert_backoff(&gate.starts()[1..]);
}

/// emmett-framework/granian#148: a killed worker was not replaced, and a zombie stayed.
#[test]
fn killed_worker_is_reaped_and_logged_with_its_signal_and_started_again() {
    let mut server = Server::builder(test_worker()).arg("w:2").args(PATIENT).start();
    server.wait_for_workers(2);
    let top = pid_that_answers(&server);
    // One client: it has the top of the stack to itself, and the other worker is idle.
    let load = Load::of(&server, "/ping", 1, 0);
    let victim = server.worker_pids().into_iter().find(|&pid| pid != top).expect("another one");
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("it lives");
    server.wait_until("it is replaced", |server| {
        !server.worker_pids().contains(&victim) && server.get("/status").json()["workers"] == 2
    });
    assert_eq!(children(server.pid()).len(), 2, "there is a zombie");
    load.end();
    let end_of = |event: &Event| match event {
        Event::Ended { pid, exit, .. } if *pid == victim => Some(exit.clone()),
        Event::Ended { .. } | Event::Started { .. } | Event::Joined { .. } => None,
    };
    server
        .wait_until("its end is logged", |server| events(server).iter().any(|event| end_of(event).is_some()));
    let ends: Vec<String> = events(&server).iter().filter_map(end_of).collect();
    assert_eq!(ends, ["SIGKILL"]);
}

/// puma/puma#1449: `connect` gave EAGAIN on a full Unix backlog.
#[test]
fn worker_whose_backlog_is_full_is_tried_again_within_the_connect_timeout() {
    let server = Server::without_workers(&["--connect-timeout-ms=60000", "--read-timeout-ms=60000"]);
    let path = server.dir().join("full.sock");
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(&path).expect("an address")).expect("bound");
    listen(&fd, Backlog::new(0).expect("a backlog")).expect("it listens");
    let _first = UnixStream::connect(&path).expect("the only place in the backlog");
    let join = format!(r#"{{"op":"join","workerId":1,"pid":1,"socket":"{}","version":1}}"#, path.display());
    assert_eq!(load::tell(&server, &join).status, 200);
    let mut client = server.client();
    client.send_request("GET", "/", "", b"");
    support::wait_until("it is at the worker", || workers(&server).iter().any(|w| w.state == "busy"));
    let early = client.read_response_within(Duration::from_millis(300));
    assert!(early.is_err(), "nobody has accepted yet: {early:?}");
    let listener = UnixListener::from(fd);
    let _accepted = listener.accept().expect("the first one");
    let (mut stream, _) = listener.accept().expect("the server tries again");
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("the server reads");
    assert_eq!(client.read_response().text(), "ok");
}

/// A server of Python's own for one folder: one connection at a time, as sync workers have. It begins when no file
/// `held` is there; notes connections without a request in `silent`, and SIGTERM in `terms`. While it hangs it does not
/// end at that, but when its server has gone.
const COMMAND: &str = r#"
import os, signal, socket, sys, time
def note(name):
    with open(name, 'a') as file: file.write('x')
hangs, parent = False, os.getppid()
def leave(*_):
    note('terms')
    if not hangs: os._exit(0)
signal.signal(signal.SIGTERM, leave)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(8)
while os.path.exists('held'): time.sleep(0.01)
while True:
    connection, _ = server.accept()
    data = connection.recv(65536)
    if not data: note('silent')
    while data:
        if b'GET /hang' in data:
            hangs = True
            while os.getppid() == parent: time.sleep(0.1)
        body = str(os.getpid()).encode()
        connection.sendall(b'HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b' % (len(body), body))
        data = connection.recv(65536)
    connection.close()
"#;

/// The command above as an app, in a folder; nothing where there is no Python.
fn command_app(test: &str) -> Option<tempfile::TempDir> {
    if !load::has_program("python3") {
        crate::support::skip::skip(test, "there is no python3");
        return None;
    }
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("server.py"), COMMAND).expect("written");
    Some(dir)
}

fn serve_command(dir: &Path, arguments: &[&str]) -> Server {
    let server = Server::builder(dir).args(arguments);
    server.args(["--", "python3", "server.py", "{socket}"]).start()
}

/// emmett-framework/granian#921 for a plain command: a connection that the kernel has accepted proves nothing.
#[test]
fn plain_command_joins_at_its_first_answer_of_any_status() {
    let Some(dir) = command_app("a plain command") else { return };
    fs::write(dir.path().join("held"), "").expect("written");
    let mut server = serve_command(dir.path(), &["w:1", "--queue-timeout-ms=60000"]);
    let socket: PathBuf = server.socket_dir();
    server.wait_until("it listens", |_| load::files_in(&socket).iter().any(|name| name.ends_with(".1.sock")));
    assert!(load::stays(Duration::from_millis(300), || summary(&server) == (503, "starting".to_owned())));
    fs::remove_file(dir.path().join("held")).expect("it was there");
    server.wait_for_workers(1);
    let pid = server.worker_pids()[0];
    for _ in 0..3 {
        let response = server.get("/");
        assert_eq!((response.status, response.text()), (404, pid.to_string()));
    }
    assert_eq!(server.details()["workerList"][0]["requests"], 3, "the question at its start is no request");
    assert!(!dir.path().join("silent").exists(), "a connection was opened without a request to send");
}

/// phusion/passenger#1621 for a plain command that hears its SIGTERM.
#[test]
fn stuck_command_gets_sigterm_before_it_is_killed() {
    let Some(dir) = command_app("a stuck command") else { return };
    let mut server = serve_command(dir.path(), &["w:1", "--read-timeout-ms=800", "--drain-timeout-ms=300"]);
    server.wait_for_workers(1);
    let stuck = server.worker_pids()[0];
    assert_eq!(server.get("/hang").status, 504);
    server.wait_until("it is gone", |_| !is_alive(stuck));
    assert_eq!(fs::read_to_string(dir.path().join("terms")).unwrap_or_default(), "x");
    assert_ne!(server.get("/").text(), stuck.to_string());
}

/// Unitech/pm2#1759: watching looped on the app's own log file, without a reason.
#[test]
fn change_of_a_log_file_replaces_nobody_and_that_of_a_source_does_and_is_named() {
    let Some(dir) = command_app("a watched command") else { return };
    let mut server = serve_command(dir.path(), &["w:1", "--hot-reload=module"]);
    server.wait_for_workers(1);
    let pid = server.worker_pids()[0];
    for folder in [".git", "node_modules"] {
        fs::create_dir(dir.path().join(folder)).expect("a folder");
    }
    for name in ["app.log", ".git/hook.py", "node_modules/part.js", "data.db"] {
        fs::write(dir.path().join(name), "x").expect("written");
        assert_eq!(server.get("/").text(), pid.to_string());
    }
    assert!(!load::has_line(&server, "hot reload"), "{}", server.stderr_text());
    fs::write(dir.path().join("part.py"), "x").expect("written");
    server.wait_until("it is replaced", |server| server.get("/").text() != pid.to_string());
    assert!(load::has_line(&server, "hot reload: part.py has changed"), "{}", server.stderr_text());
}
