//! A server is replaced by a new one on the same sockets: nobody is lost, a new one that fails changes nothing, and
//! nothing is left over.

#[path = "support/load.rs"]
mod load;
mod support;

use load::{Gate, Load, PATIENT, descriptors, files_in, has_line, write_script};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::server::{Output, output};
use support::{Answer, Hold, RawWorker, Server, Signal, TEST_TIMEOUT, comes_true, test_worker, wait_until};

/// Whoever has the server's name; ended with it, since it is no child of the test's.
struct Successors<'a>(&'a Path);

impl Drop for Successors<'_> {
    fn drop(&mut self) {
        for pid in named_pids(self.0) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Processes whose sockets lie in a folder.
fn named_pids(dir: &Path) -> Vec<i32> {
    let text = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let is_verb =
            ["status", "upgrade", "stop", "reload"].iter().any(|verb| words.contains(&format!("\0{verb}\0")));
        words.contains(&text) && !is_verb
    };
    pids.filter(is_one).collect()
}

fn pid_of(server: &Server) -> i32 {
    i32::try_from(server.details()["pid"].as_i64().expect("a pid")).expect("a pid")
}

/// Upgrades, and waits until the server before is gone; the new server's pid.
fn upgrade(server: &Server) -> i32 {
    let before = pid_of(server);
    let verdict = server.verb(["upgrade"]);
    assert_eq!(verdict.code, 0, "{}\n{}", verdict.stderr, server.stderr_text());
    let pid = pid_of(server);
    assert_ne!(pid, before);
    wait_until("the old server is gone", || server.details()["predecessor"].is_null());
    pid
}

fn counted(server: &Server) -> u64 {
    let text = server.control("GET", "/metrics", "").text();
    let line = text.lines().find_map(|line| line.strip_prefix("rip_requests_total{status=\"2xx\"} "));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {text}"))
}

#[test]
fn an_upgrade_loses_nobody_and_keeps_the_counts() {
    const UPGRADES: usize = 3;
    let dir = tempfile::tempdir().expect("a folder");
    let unix = dir.path().join("http.sock");
    let pid_file = dir.path().join("pid");
    let server = Server::builder(test_worker()).args(["w:2", "metrics:127.0.0.1:0", "page:0"]).args(PATIENT);
    let server = server.arg("--pid-file").arg(&pid_file);
    let mut server = server.http("127.0.0.1:0").http(&format!("unix:{}", unix.display())).start();
    let sockets = server.socket_dir();
    let _successors = Successors(&sockets);
    server.wait_for_workers(2);
    let line = server.stdout_lines().remove(0);
    let page = line.split("page=http://").nth(1).and_then(|text| text.split('/').next()?.parse().ok());
    let page: std::net::SocketAddr = page.expect("where the page is");
    let watch = || {
        let mut viewer = support::Client::connect(page);
        viewer.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(viewer.read_head().status().ok(), Some(200));
        viewer
    };
    let load = Load::of(&server, "/ping", 2, 2);
    for _ in 0..UPGRADES {
        let mut viewer = watch();
        load.wait_for_answers(100);
        let pid = upgrade(&server);
        assert_eq!(std::fs::read_to_string(&pid_file).expect("the pid file").trim(), pid.to_string());
        // Whoever looks is sent to the new server.
        viewer.read_until_close();
        drop(watch());
        load.wait_for_answers(100);
        let mut client = support::Client::connect_unix(&unix);
        assert_eq!(client.get("/ping").text(), "pong");
    }
    assert_eq!(server.wait_exit(), 0, "the first one has ended in an orderly way");
    let answers = load.answers() as u64;
    load.end();
    assert!(counted(&server) >= answers, "{} of {answers}", counted(&server));
    let generations = server.details()["workerList"].as_array().expect("a list").clone();
    assert!(
        generations.iter().all(|worker| worker["generation"].as_u64() > Some(UPGRADES as u64)),
        "{generations:?}"
    );
    assert_eq!(server.verb(["stop"]).code, 0);
    assert_eq!(files_in(&sockets), Vec::<String>::new());
    assert!(!unix.exists() && !pid_file.exists());
    wait_until("nobody of its name is left", || named_pids(&sockets).is_empty());
}

#[test]
fn a_unix_listener_keeps_its_mode_and_localhost_both_of_its_addresses() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("a folder");
    let unix = dir.path().join("http.sock");
    let group = format!("--socket-group={}", nix::unistd::getegid());
    let server = Server::builder(test_worker()).args(["w:1", "--socket-mode=620", &group]);
    let server =
        server.http("localhost:0").http(&format!("unix:{}", unix.display())).http("localhost:0").start();
    let sockets = server.socket_dir();
    let _successors = Successors(&sockets);
    let file = || std::fs::metadata(&unix).map(|file| (file.ino(), file.mode() & 0o777, file.gid()));
    let before = file().expect("the socket");
    assert_eq!(before.1, 0o620);
    upgrade(&server);
    assert_eq!(file().expect("the socket"), before);
    for at in server.listeners() {
        let mut client = match at.strip_prefix("unix:") {
            Some(path) => support::Client::connect_unix(Path::new(path)),
            None => support::Client::connect(at.parse().expect("an address")),
        };
        assert_eq!(client.get("/ping").text(), "pong", "{at}");
    }
    assert_eq!(server.verb(["stop"]).code, 0);
    assert!(!unix.exists());
}

#[test]
fn upgrades_in_a_row_leave_nothing_over() {
    const UPGRADES: usize = 6;
    let server = Server::with_test_worker(&["w:1"]);
    let sockets = server.socket_dir();
    let _successors = Successors(&sockets);
    // Connections of its verbs come and go.
    let shape = |pid: i32| (descriptors(pid).len(), files_in(&sockets).len(), named_pids(&sockets).len());
    let mut first = None;
    for _ in 0..UPGRADES {
        let pid = upgrade(&server);
        let (fds, files, pids) = *first.get_or_insert_with(|| shape(pid));
        let is_same = comes_true(TEST_TIMEOUT, || {
            let now = shape(pid);
            now.0 <= fds && now.1 <= files && now.2 <= pids
        });
        assert!(is_same, "{:?}, and {first:?} before: {:?}", shape(pid), descriptors(pid));
    }
    assert_eq!(server.verb(["stop"]).code, 0);
    assert_eq!(files_in(&sockets), Vec::<String>::new());
    wait_until("nobody of its name is left", || named_pids(&sockets).is_empty());
}

#[test]
fn a_stop_waits_for_the_server_before_it_and_status_tells_of_that() {
    let mut server = Server::with_test_worker(&["w:1"]);
    let sockets = server.socket_dir();
    let _successors = Successors(&sockets);
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut slow = hold.ask(&server);
    load::wait_for_busy(&mut server, 1);
    let verdict = server.verb(["upgrade"]);
    assert_eq!(verdict.code, 0, "{}", verdict.stderr);
    server
        .wait_until("the old one tells of itself", |server| server.details()["predecessor"]["clients"] == 1);
    assert_eq!(server.get("/ping").text(), "pong", "the new one serves beside it");
    let again = server.verb(["upgrade"]);
    assert!(again.code == 1 && again.stderr.contains("still finishes"), "{}", again.stderr);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| server.verb(["stop"]));
        wait_until("the new one stops", || has_line(&server, "asked by a command: stopping"));
        hold.let_go();
        assert_eq!(stop.join().expect("no panic").code, 0);
    });
    let answer = slow.read_response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "held"));
    assert_eq!(server.wait_exit(), 0);
    wait_until("nobody of its name is left", || named_pids(&sockets).is_empty());
}

/// A server whose binary is a link that the test can move.
struct Replaceable {
    dir: tempfile::TempDir,
    gate: Gate,
    server: Server,
}

impl Replaceable {
    fn start(arguments: &[&str]) -> Replaceable {
        let dir = tempfile::tempdir().expect("a folder");
        symlink(support::server_program(), dir.path().join("rip-server")).expect("a link");
        let gate = Gate::new();
        let server =
            Server::carried_by(dir.path().join("rip-server")).arg(gate.app()).arg("w:1").args(arguments);
        let mut server = server.start();
        server.wait_for_workers(1);
        Replaceable { dir, gate, server }
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("rip-server")
    }

    /// Puts a script in the binary's place.
    fn replace(&self, script: &str) {
        std::fs::remove_file(self.program()).expect("it is there");
        write_script(&self.program(), script);
    }

    fn upgrade(&self) -> Output {
        let mut command = Command::new(support::server_program());
        command.arg("upgrade").arg(self.gate.app()).arg("--socket-dir").arg(self.server.socket_dir());
        output(command)
    }

    /// The upgrade fails with these words, and the old server serves on as if nothing had been.
    #[track_caller]
    fn assert_fails(&self, reason: &str) {
        let (pid, files) = (self.server.pid(), files_in(&self.server.socket_dir()));
        let verdict = self.upgrade();
        assert!(verdict.code == 1 && verdict.stderr.contains(reason), "{reason}: {}", verdict.stderr);
        assert_eq!(verdict.stderr.trim().lines().count(), 1, "{}", verdict.stderr);
        assert_eq!((self.server.get("/ping").text().as_str(), pid_of(&self.server)), ("pong", pid));
        let sockets = self.server.socket_dir();
        wait_until("nothing of it is left", || files_in(&sockets) == files && load::children(pid).len() == 1);
    }
}

#[test]
fn a_new_server_that_fails_ends_the_upgrade_and_the_old_one_goes_on() {
    let it = Replaceable::start(&[]);
    let sockets = it.server.socket_dir();
    let _successors = Successors(&sockets);
    it.replace("#!/bin/sh\nexit 3\n");
    it.assert_fails("exit code 3");
    let real = support::server_program();
    it.replace(&format!("#!/bin/sh\nexec {} \"$@\" --no-such-flag\n", real.display()));
    it.assert_fails("--no-such-flag");
    // One that knows nothing of upgrades, and so of the line.
    it.replace(&format!("#!/bin/sh\nunset RIP_HANDOVER_FD\nexec {} \"$@\"\n", real.display()));
    it.assert_fails("exit code 1");
    it.replace(&format!("#!/bin/sh\nexec {} \"$@\"\n", real.display()));
    it.gate.break_build();
    it.assert_fails("the build is broken");
    it.gate.mend_build();
    assert_eq!(it.upgrade().code, 0);
    assert_ne!(pid_of(&it.server), it.server.pid());
    assert_eq!(it.server.get("/ping").text(), "pong");
}

#[test]
fn a_new_server_that_hangs_is_killed_and_one_that_is_under_way_refuses_others() {
    let it = Replaceable::start(&["--boot-timeout-ms=2000"]);
    let sockets = it.server.socket_dir();
    let _successors = Successors(&sockets);
    it.replace("#!/bin/sh\nexec sleep 1000\n");
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| it.assert_fails("not ready within 7 s"));
        wait_until("it is under way", || it.server.details()["upgrading"] == true);
        let second = it.upgrade();
        assert!(second.code == 1 && second.stderr.contains("an upgrade is under way"), "{}", second.stderr);
        let reload = load::tell(&it.server, r#"{"op":"reload"}"#);
        assert!(reload.status == 409 && reload.text().contains("upgrade"), "{}", reload.text());
        upgrade.join().expect("no panic");
    });
}

/// The process that an upgrade has started last.
fn started_last(server: &Server) -> i32 {
    let lines = server.stderr_lines();
    let mut pids = lines
        .iter()
        .filter_map(|line| line.split_once("the new server is started (pid ")?.1.strip_suffix(')'));
    pids.next_back().and_then(|pid| pid.parse().ok()).expect("an upgrade has begun")
}

#[test]
fn a_hang_up_during_an_upgrade_reloads_whichever_server_goes_on() {
    let it = Replaceable::start(&["--hot-reload=process"]);
    let sockets = it.server.socket_dir();
    let _successors = Successors(&sockets);
    for is_to_fail in [true, false] {
        let (starts, lines) = (it.gate.starts().len(), it.server.stderr_lines().len());
        let has_line = |text: &str| it.server.stderr_lines()[lines..].iter().any(|line| line.contains(text));
        it.gate.hold();
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| it.upgrade());
            wait_until("the new one boots its worker", || it.gate.starts().len() == starts + 1);
            it.server.signal(Signal::SIGHUP);
            wait_until("it is noted", || has_line("the reload comes behind it"));
            assert_eq!(it.gate.starts().len(), starts + 1, "nothing is reloaded yet");
            if is_to_fail {
                let pid = nix::unistd::Pid::from_raw(started_last(&it.server));
                nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it lives");
            }
            it.gate.let_go();
            let verdict = upgrade.join().expect("no panic");
            assert_eq!(verdict.code, i32::from(is_to_fail), "{}", verdict.stderr);
        });
        wait_until("the reload is done", || has_line("reload: 1 of 1 replaced"));
        assert_eq!(it.server.get("/ping").text(), "pong");
        assert_eq!(pid_of(&it.server) == it.server.pid(), is_to_fail);
    }
}

#[test]
fn an_edit_during_an_upgrade_is_the_new_servers_and_the_old_ones_only_if_that_fails() {
    let it = Replaceable::start(&["--hot-reload=module"]);
    let sockets = it.server.socket_dir();
    let _successors = Successors(&sockets);
    let before = it.server.worker_pids();
    it.gate.hold();
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| it.upgrade());
        wait_until("the new one boots its worker", || it.gate.starts().len() == 2);
        // Beside it and over it, since shells are reading it.
        let edited = it.dir.path().join("edited");
        let text = std::fs::read_to_string(it.gate.app()).expect("a script");
        write_script(&edited, &format!("{text}# edited\n"));
        std::fs::rename(edited, it.gate.app()).expect("a new script");
        wait_until("the new one has seen it", || has_line(&it.server, "hot reload: app has changed"));
        assert_eq!(it.server.get("/ping").text(), "pong", "nobody waits for new code");
        assert_eq!(it.server.worker_pids(), before);
        let pid = nix::unistd::Pid::from_raw(started_last(&it.server));
        nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it lives");
        assert_eq!(upgrade.join().expect("no panic").code, 1);
    });
    it.gate.let_go();
    wait_until("the old one takes it over", || {
        let now = it.server.worker_pids();
        now.len() == 1 && now != before
    });
    assert_eq!(it.server.get("/ping").text(), "pong");
}

#[test]
fn a_stop_during_an_upgrade_ends_both() {
    let it = Replaceable::start(&[]);
    let sockets = it.server.socket_dir();
    let _successors = Successors(&sockets);
    it.gate.hold();
    let Replaceable { mut server, gate, dir } = it;
    server.signal(Signal::SIGUSR2);
    server.wait_until("the new one boots", |server| has_line(server, "upgrade: the new server is started"));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    wait_until("the new one is gone", || named_pids(&sockets).is_empty());
    assert_eq!(files_in(&sockets), Vec::<String>::new());
    assert!(has_line(&server, "upgrade given up: the server stops"), "{}", server.stderr_text());
    assert!(!has_line(&server, "goes on"), "{}", server.stderr_text());
    drop((gate, dir));
}

#[test]
fn process_1_is_not_replaced_and_says_why() {
    let mut probe = Command::new("unshare");
    probe.args(["-fp", "--kill-child", "--mount-proc", "true"]);
    let probe = output(probe);
    if probe.code != 0 {
        return support::skip::skip("the upgrade of process 1", probe.stderr.trim());
    }
    let dir = tempfile::tempdir().expect("a folder");
    let unshare = load::started_by(dir.path(), "exec unshare -fp --kill-child --mount-proc");
    let mut server = Server::carried_by(unshare).arg(test_worker()).arg("w:1").start();
    server.wait_for_workers(1);
    let sockets = server.socket_dir();
    let files = files_in(&sockets);
    let mut command = Command::new(support::server_program());
    command.arg("upgrade").arg(test_worker()).arg("--socket-dir").arg(&sockets);
    let verdict = output(command);
    assert!(verdict.code == 1 && verdict.stderr.contains("it is process 1"), "{}", verdict.stderr);
    assert_eq!((server.get("/ping").text().as_str(), files_in(&sockets)), ("pong", files));
}

#[test]
fn an_upgrade_during_a_reload_or_under_a_systemd_that_would_not_know_of_it_is_refused() {
    let it = Replaceable::start(&["--boot-timeout-ms=20000"]);
    it.gate.hold();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| load::tell(&it.server, r#"{"op":"reload"}"#));
        wait_until("the roll has begun", || it.gate.starts().len() == 2);
        let verdict = it.upgrade();
        assert!(verdict.code == 1 && verdict.stderr.contains("a reload is under way"), "{}", verdict.stderr);
        it.gate.let_go();
        assert!(reload.join().expect("no panic").text().contains("\"ok\":true"));
    });
    drop(it);
    let dir = tempfile::tempdir().expect("a folder");
    let program = load::started_by(dir.path(), "SYSTEMD_EXEC_PID=$$ exec env");
    let server = Server::carried_by(program).arg(test_worker()).arg("w:1").start();
    let verdict = load::tell(&server, r#"{"op":"upgrade"}"#);
    assert!(verdict.status == 409 && verdict.text().contains("Type=notify"), "{}", verdict.text());
}

#[test]
fn given_sockets_and_workers_from_outside_are_handed_over() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = Server::builder("/bin/true").arg("w:0").given(listener.try_clone().expect("a descriptor"));
    let mut server = server.start();
    let sockets = server.socket_dir();
    let _successors = Successors(&sockets);
    let worker = RawWorker::join(&server, 3, |_| Answer::ok("here"));
    assert_eq!(server.get("/").text(), "here");
    for _ in 0..2 {
        upgrade(&server);
        assert_eq!(server.get("/").text(), "here");
    }
    assert_eq!(worker.faults(), Vec::<String>::new());
    assert_eq!(server.wait_exit(), 0);
    assert_eq!(server.verb(["stop"]).code, 0);
    // Whoever gave the socket has it still.
    let waits = std::net::TcpStream::connect(listener.local_addr().expect("it is bound"));
    assert!(waits.is_ok());
}
