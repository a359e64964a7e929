//! When a slot is started again: at once after who has served, with backoff after who has not.

use crate::load::{self, Gate, PATIENT, tell, workers};
use crate::support::{self, Server, is_alive, test_worker};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn who_has_served_is_started_again_at_once_however_often_it_crashes() {
    let server = Server::builder(test_worker()).arg("w:1").arg("--quarantine=off").args(PATIENT).start();
    for _ in 0..6 {
        assert_eq!(server.get("/ping").text(), "pong");
        assert_eq!(server.client().post("/die", b"").status, 502);
        assert_eq!(server.details()["waitingSlots"], serde_json::json!([]));
    }
    assert!(!load::has_line(&server, "next start"), "{}", server.stderr_text());
}

#[test]
fn who_dies_of_its_first_request_while_others_serve_is_not_to_blame() {
    let mut server = Server::builder(test_worker()).arg("w:2").arg("--quarantine=off").args(PATIENT).start();
    server.wait_for_workers(2);
    let load = load::Load::of(&server, "/sleep?ms=20", 1, 0);
    for _ in 0..5 {
        let before = server.worker_pids();
        // Whoever is not at work gets it, as its first request.
        assert_eq!(server.client().post("/die", b"").status, 502);
        server.wait_for_successors(&before, 1);
        // Others have been served since it joined.
        load.wait_for_answers(2);
    }
    load.end();
    assert!(!load::has_line(&server, "next start"), "{}", server.stderr_text());
}

#[test]
fn a_clean_quit_is_no_failure() {
    let server = Server::builder(test_worker()).arg("w:1").args(PATIENT).start();
    for _ in 0..6 {
        let pid: i32 = server.get("/pid").text().parse().expect("a pid");
        assert_eq!(tell(&server, r#"{"op":"quit","workerId":0}"#).status, 200);
        assert_eq!(server.details()["waitingSlots"], serde_json::json!([]));
        support::wait_until("it is gone", || !is_alive(pid));
    }
    assert!(!load::has_line(&server, "next start"), "{}", server.stderr_text());
}

#[test]
fn waits_are_told_once_a_step_in_the_log_and_in_status() {
    let gate = Gate::new();
    // While the other one serves, each wait is as long as its step says.
    let mut server = Server::builder(gate.app()).arg("w:2").args(PATIENT).start();
    server.wait_for_workers(2);
    gate.break_build();
    let pids: Vec<i32> = workers(&server).iter().map(|worker| worker.pid).collect();
    kill(Pid::from_raw(pids[0]), Signal::SIGKILL).expect("it lives");
    server.wait_until("four steps are told", |server| load::has_line(server, "the next start is in 800 ms"));
    for step in ["100 ms", "200 ms", "400 ms", "800 ms"] {
        let line = format!("the next start is in {step}");
        assert_eq!(
            server.stderr_lines().iter().filter(|reported| reported.ends_with(&line)).count(),
            1,
            "{step}"
        );
    }
    let mut waiting = serde_json::Value::Null;
    server.wait_until("it waits", |server| {
        waiting = server.details()["waitingSlots"][0].clone();
        waiting["failures"].as_u64() >= Some(4)
    });
    assert_eq!((waiting["slot"].as_u64(), waiting["lastExit"].as_str()), (Some(0), Some("exit code 7")));
    server.wait_until("the table's line", |server| {
        server.verb(["status"]).stdout.contains("slot 0 has no worker: failed")
    });
    // While nobody serves, some slot is tried every second, however long its wait would be.
    kill(Pid::from_raw(pids[1]), Signal::SIGKILL).expect("it lives");
    server.wait_until("more failures", |server| {
        let details = server.details();
        let waiting = details["waitingSlots"].as_array().expect("a list of slots").iter();
        let next_ms = waiting.clone().filter_map(|slot| slot["nextStartMs"].as_u64()).min();
        assert!(details["workers"] != 0 || next_ms <= Some(1000), "{details}");
        waiting.filter_map(|slot| slot["failures"].as_u64()).sum::<u64>() >= 11
    });
    gate.mend_build();
    server.wait_for_workers(2);
}

#[test]
fn what_a_crash_loop_says_again_is_folded_and_counted() {
    let gate = Gate::new();
    gate.break_build();
    let mut server = Server::builder(gate.app()).arg("w:2").args(PATIENT).env("RIP_KEEP_TRYING", "1").start();
    server.wait_until("each has failed four times", |_| gate.starts().len() >= 8);
    server.wait_until("their ends are told", |server| {
        server.stderr_lines().iter().filter(|line| line.contains("exit code 7")).count() >= 8
    });
    let said = server.stderr_lines().iter().filter(|line| line.contains("the build is broken")).count();
    assert!((1..=2).contains(&said), "{said} times: {}", server.stderr_text());
    assert!(
        load::has_line(&server, "it said 2 lines of an earlier failure again"),
        "{}",
        server.stderr_text()
    );
    // A reload begins anew.
    let output = server.verb(["reload"]);
    assert!(output.stderr.contains("the build is broken"), "{}", output.stderr);
    server.wait_until("it is told once more", |server| {
        server.stderr_lines().iter().filter(|line| line.contains("] the build is broken")).count() > said
    });
}
