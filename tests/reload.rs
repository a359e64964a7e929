//! Rolling restarts: all replaced without loss, stopped by the first successor that fails, and nothing left behind.

#[path = "reload/canary.rs"]
mod canary;
#[path = "reload/env_file.rs"]
mod env_file;
#[path = "support/load.rs"]
mod load;
mod support;

use load::{Event, Gate, Load, PATIENT, events, workers};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use support::{Client, Hold, Server, Signal, is_alive, test_worker};

fn pids(server: &Server) -> BTreeSet<i32> {
    server.worker_pids().into_iter().collect()
}

fn pid_that_answers(server: &Server) -> i32 {
    server.get("/pid").text().parse().expect("a pid")
}

/// A server behind a gate whose workers have all joined.
fn gated(workers: u64, arguments: &[&str]) -> (Gate, Server) {
    let gate = Gate::new();
    let server = Server::builder(gate.app()).arg(format!("w:{workers}")).args(arguments);
    let mut server = server.args(PATIENT).start();
    server.wait_for_workers(workers);
    (gate, server)
}

/// Asks for a reload on the control socket; its lines come on the connection.
fn ask_for_reload(server: &Server) -> Client {
    let mut client = Client::connect_unix(&server.control_socket());
    client.send_request("POST", "/control", "", br#"{"op":"reload"}"#);
    assert_eq!(client.read_head().status(), Ok(200));
    client
}

fn lines_of(mut reload: Client) -> Vec<String> {
    let (bytes, _) = reload.read_until_close();
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

#[test]
fn fleet_of_4_under_load_is_replaced_one_at_a_time_and_nothing_is_lost() {
    let mut server = Server::builder(test_worker()).arg("w:4").args(PATIENT).start();
    server.wait_for_workers(4);
    let old = pids(&server);
    let load = Load::start(&server, "/ping");
    let output = std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.verb(["reload"]));
        while !reload.is_finished() {
            // Capacity never dips.
            let status = server.get("/status").json();
            assert!(status["workers"].as_u64() >= Some(4), "{status}");
        }
        reload.join().expect("the command ends")
    });
    load.wait_for_answers(50);
    load.end();
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stdout, "test-worker: 4 of 4 workers replaced\n");
    let progress: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(progress, ["1 of 4 replaced", "2 of 4 replaced", "3 of 4 replaced", "4 of 4 replaced"]);
    assert_eq!(pids(&server).len(), 4);
    assert_eq!(pids(&server).intersection(&old).count(), 0);
    load::assert_one_at_a_time(&events(&server));
    assert!(!load::has_line(&server, "SIGKILL"), "{}", server.stderr_text());
}

#[test]
fn five_reloads_in_a_row_under_load_lose_nothing() {
    let mut server = Server::builder(test_worker()).args(["w:2", "r:20"]).args(PATIENT).start();
    server.wait_for_workers(2);
    let load = Load::start(&server, "/bytes?n=20000");
    for _ in 0..5 {
        let lines = lines_of(ask_for_reload(&server));
        assert_eq!(lines.last().map(String::as_str), Some(r#"{"ok":true,"replaced":2}"#), "{lines:?}");
    }
    load.end();
    load::assert_one_at_a_time(&events(&server));
}

#[test]
fn reload_with_a_broken_build_stops_and_says_why_and_the_old_workers_go_on() {
    let (gate, mut server) = gated(3, &[]);
    let old = pids(&server);
    let load = Load::start(&server, "/ping");
    gate.break_build();
    let output = server.verb(["reload"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{}", output.stderr);
    for words in ["reload stopped", "exit code 7", "the first last word", "the build is broken"] {
        assert!(output.stderr.contains(words), "'{words}' is not said: {}", output.stderr);
    }
    // Stopped: it is not tried again, not even with the next slot.
    load.wait_for_answers(100);
    assert_eq!((pids(&server), gate.starts().len()), (old.clone(), 4));
    gate.mend_build();
    assert_eq!(server.verb(["reload"]).code, 0);
    assert_eq!(pids(&server).intersection(&old).count(), 0);
    server.wait_for_workers(3);
    load.end();
}

#[test]
fn reload_whose_successor_does_not_join_within_the_boot_timeout_stops() {
    let (gate, server) = gated(2, &["--boot-timeout-ms=2000"]);
    let old = pids(&server);
    gate.hold();
    let output = server.verb(["reload"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("did not join within 2000 ms"), "{}", output.stderr);
    assert_eq!(pids(&server), old, "the late one was ended, the old ones were not");
    assert!(old.contains(&pid_that_answers(&server)));
}

#[test]
fn reload_whose_app_is_gone_stops_with_the_reason() {
    let (gate, server) = gated(1, &[]);
    let old = pids(&server);
    std::fs::rename(gate.app(), gate.app().with_extension("away")).expect("it can be moved");
    let output = server.verb(["reload"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("could not be started: no app at"), "{}", output.stderr);
    assert_eq!(pids(&server), old);
    assert!(old.contains(&pid_that_answers(&server)));
}

#[test]
fn reloads_during_a_reload_start_it_over_once() {
    let (gate, mut server) = gated(2, &[]);
    gate.hold();
    let first = ask_for_reload(&server);
    server.wait_until("the first slot's successor boots", |_| gate.starts().len() == 3);
    let (second, third) = (ask_for_reload(&server), ask_for_reload(&server));
    gate.let_go();
    for reload in [first, second, third] {
        let lines = lines_of(reload);
        assert_eq!(lines.last().map(String::as_str), Some(r#"{"ok":true,"replaced":2}"#), "{lines:?}");
    }
    // The slot at hand, and then all of them with the newest code: once, though two asked.
    let generations: Vec<u64> = workers(&server).iter().map(|worker| worker.generation).collect();
    assert_eq!((generations, gate.starts().len()), (vec![3, 2], 5));
}

#[test]
fn slow_boot_of_the_only_workers_successor_delays_no_request() {
    let (gate, mut server) = gated(1, &[]);
    let old = pid_that_answers(&server);
    let load = Load::start(&server, "/pid");
    gate.hold();
    let reload = ask_for_reload(&server);
    server.wait_until("the successor boots", |_| gate.starts().len() == 2);
    // However long that takes: the old one answers.
    for _ in 0..100 {
        assert_eq!(pid_that_answers(&server), old);
    }
    gate.let_go();
    assert_eq!(lines_of(reload).len(), 2);
    assert_ne!(pid_that_answers(&server), old);
    assert!(!is_alive(old));
    load.end();
}

#[test]
fn successor_of_a_worker_that_dies_meanwhile_takes_its_place_and_the_reload_goes_on() {
    let (gate, mut server) = gated(1, &[]);
    let old = pid_that_answers(&server);
    gate.hold();
    let reload = ask_for_reload(&server);
    server.wait_until("the successor boots", |_| gate.starts().len() == 2);
    assert_eq!(server.client().post("/die", b"").status, 502);
    let mut waiting = server.client();
    waiting.send_request("GET", "/pid", "", b"");
    server.wait_until("it waits", |server| {
        server.details()["queue"]["now"] == 1 && server.get("/status").json()["status"] == "degraded"
    });
    gate.let_go();
    assert_eq!(lines_of(reload), [r#"{"of":1,"replaced":1}"#, r#"{"ok":true,"replaced":1}"#]);
    let new = waiting.read_response().text();
    assert_ne!(new, old.to_string());
    // It is the successor itself, and nobody was started beside it.
    assert_eq!((pid_that_answers(&server).to_string(), gate.starts().len()), (new, 2));
}

/// A release whose workers say its name.
fn write_release(dir: &Path, name: &str) {
    std::fs::create_dir(dir.join(name)).expect("a folder");
    write_index(dir, name, name);
}

fn write_index(dir: &Path, folder: &str, name: &str) {
    let text = format!("#!/bin/sh\nTEST_RELEASE={name} exec {}\n", test_worker().display());
    load::write_script(&dir.join(folder).join("index"), &text);
}

fn point_to(dir: &Path, name: &str) {
    symlink(name, dir.join("next")).expect("a symlink");
    std::fs::rename(dir.join("next"), dir.join("current")).expect("it replaces the old one");
}

#[test]
fn current_symlink_that_moved_is_followed_by_the_next_reload_and_by_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["one", "two", "three"] {
        write_release(dir.path(), name);
    }
    point_to(dir.path(), "one");
    let server = Server::builder(dir.path().join("current")).args(["w:1", "--quarantine=off"]).start();
    let release = |server: &Server| {
        let text = server.get("/env").text();
        text.lines()
            .find_map(|line| line.strip_prefix("TEST_RELEASE=").map(str::to_owned))
            .unwrap_or_default()
    };
    assert_eq!(release(&server), "one");
    point_to(dir.path(), "two");
    assert_eq!(release(&server), "one");
    assert_eq!(server.verb(["reload"]).code, 0);
    assert_eq!(release(&server), "two");
    // Not by a crash, and status tells both.
    point_to(dir.path(), "three");
    assert_eq!(server.client().post("/die", b"").status, 502);
    assert_eq!(release(&server), "two");
    let details = server.details();
    let names = |name: &str| details[name].as_str().unwrap_or_default().to_owned();
    assert!(
        names("release").ends_with("two/index") && names("nextRelease").ends_with("three/index"),
        "{details}"
    );
    assert_eq!(details["releaseChanged"], false);
    // Nor by a reload that fails.
    load::write_script(&dir.path().join("three/index"), "#!/bin/sh\nexit 3\n");
    assert_eq!(server.verb(["reload"]).code, 1);
    assert_eq!(server.client().post("/die", b"").status, 502);
    assert_eq!(release(&server), "two");
    assert!(server.details()["release"].as_str().unwrap_or_default().ends_with("two/index"));
    // Where the files change under it, that is told.
    write_index(dir.path(), "two", "four");
    assert_eq!(server.details()["releaseChanged"], true);
    assert_eq!(server.client().post("/die", b"").status, 502);
    assert_eq!(release(&server), "four");
}

#[test]
fn sighup_in_process_mode_reloads() {
    let mut server = Server::with_test_worker(&["w:2", "--hot-reload=process"]);
    server.wait_for_workers(2);
    let old = pids(&server);
    server.signal(Signal::SIGHUP);
    server.wait_until("both are replaced", |server| load::has_line(server, "2 workers replaced"));
    assert_eq!(pids(&server).intersection(&old).count(), 0);
}

#[test]
fn sighup_in_module_mode_stops() {
    let mut server = Server::with_test_worker(&["w:1", "--hot-reload=module"]);
    server.signal(Signal::SIGHUP);
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn sighup_in_none_mode_is_only_logged() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let old = pids(&server);
    server.signal(Signal::SIGHUP);
    server.wait_until("it is logged", |server| load::has_line(server, "SIGHUP"));
    assert_eq!(server.get("/ping").text(), "pong");
    assert_eq!(pids(&server), old);
    assert!(!server.has_exited());
}

#[test]
fn reload_of_a_server_that_stops_fails() {
    let mut server = Server::with_test_worker(&["w:1"]);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    load::wait_for_busy(&mut server, 1);
    server.signal(Signal::SIGTERM);
    server.wait_until("it stops", |server| load::has_line(server, "stopping"));
    let lines = lines_of(ask_for_reload(&server));
    assert_eq!(lines, [r#"{"error":"the server is stopping","ok":false}"#]);
    hold.let_go();
    assert_eq!(client.read_response().text(), "held");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn stop_during_a_reload_ends_both() {
    let (gate, mut server) = gated(2, &[]);
    gate.hold();
    let reload = ask_for_reload(&server);
    server.wait_until("a successor boots", |_| gate.starts().len() == 3);
    let pids = pids(&server);
    assert_eq!(pids.len(), 3);
    server.signal(Signal::SIGTERM);
    let lines = lines_of(reload);
    assert_eq!(lines, [r#"{"error":"the server is stopping","ok":false}"#]);
    assert_eq!(server.wait_exit(), 0);
    assert!(!pids.iter().any(|&pid| is_alive(pid)));
}

#[test]
fn reload_of_a_degraded_server_starts_the_missing_worker_at_once() {
    let (gate, mut server) = gated(1, &[]);
    gate.break_build();
    assert_eq!(server.client().post("/die", b"").status, 502);
    server.wait_until("the next wait is long", |_| gate.starts().len() >= 6);
    let output = server.verb(["reload"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("the build is broken"), "{}", output.stderr);
    gate.mend_build();
    let output = server.verb(["reload"]);
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (0, "app: 1 of 1 workers replaced\n"),
        "{}",
        output.stderr
    );
    assert_eq!(server.get("/ping").text(), "pong");
}

/// What a server holds: descriptors, children (zombies too), files.
fn holdings(server: &Server) -> (usize, usize, usize, usize) {
    (
        load::descriptors(server.pid()).len(),
        load::children(server.pid()).len(),
        load::files_in(&server.socket_dir()).len(),
        load::files_in(&server.spool_dir()).len(),
    )
}

#[test]
fn thirty_reloads_under_load_leave_no_more_behind_than_two() {
    let mut server = Server::builder(test_worker()).arg("w:2").args(PATIENT).start();
    server.wait_for_workers(2);
    let reload_times = |times: usize| {
        // Bodies large enough for a temporary file, on the way to the worker and back.
        let load = Load::of(&server, "/bytes?n=300000", 1, 1);
        for _ in 0..times {
            let lines = lines_of(ask_for_reload(&server));
            assert_eq!(lines.len(), 3, "{lines:?}");
            assert_eq!(server.client().post("/echo", &vec![b'x'; 100_000]).body.len(), 100_000);
        }
        load.end();
    };
    reload_times(2);
    // Connections that were closed a moment ago may not have been seen to be.
    let mut before = (0, 0, 0, 0);
    support::wait_until("it is quiet", || {
        let last = std::mem::replace(&mut before, holdings(&server));
        server.details()["clients"] == 0 && last == before
    });
    let memory_kib = server.rss_kib();
    reload_times(30);
    let is_as_before = || holdings(&server) == before;
    let returns = support::comes_true(support::TEST_TIMEOUT, is_as_before);
    assert!(returns, "{:?} after 2 reloads, {:?} after 32", before, holdings(&server));
    assert_eq!((before.1, before.3), (2, 0), "children and temporary files");
    let grown_kib = server.rss_kib().saturating_sub(memory_kib);
    assert!(grown_kib < 4096, "{grown_kib} KiB more than after two reloads");
    support::wait_until("all 64 ends are logged", || {
        events(&server).iter().filter(|event| matches!(event, Event::Ended { .. })).count() == 64
    });
}
