//! Which workers exist: cycles, memory, `retire` and `quit`, growth and shrinking, who may join.

#[path = "fleet/crashes.rs"]
mod crashes;
#[path = "fleet/leaving.rs"]
mod leaving;
#[path = "support/load.rs"]
mod load;
#[path = "fleet/quarantine.rs"]
mod quarantine;
#[path = "fleet/size.rs"]
mod size;
mod support;

use load::{Event, Gate, Load, PATIENT, events, tell, workers};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Hold, Server, is_alive, test_worker};

/// How many requests each worker that has ended had served.
fn served(events: &[Event]) -> Vec<u64> {
    let served = events.iter().filter_map(|event| match event {
        Event::Ended { requests, .. } => Some(*requests),
        Event::Started { .. } | Event::Joined { .. } => None,
    });
    served.collect()
}

fn states(server: &Server) -> Vec<(u64, u64, String)> {
    workers(server).into_iter().map(|worker| (worker.slot, worker.generation, worker.state)).collect()
}

fn pid_that_answers(server: &Server) -> i32 {
    server.get("/pid").text().parse().expect("a pid")
}

#[test]
fn workers_of_r_20_under_load_are_cycled_one_at_a_time_and_nothing_is_lost() {
    let mut server = Server::builder(test_worker()).args(["w:3", "r:20"]).args(PATIENT).start();
    server.wait_for_workers(3);
    let load = Load::start(&server, "/ping");
    server.wait_until("each slot is cycled four times", |server| {
        workers(server).iter().filter(|worker| worker.generation > 4).count() >= 3
    });
    load.end();
    let events = events(&server);
    load::assert_one_at_a_time(&events);
    let bad = |event: &&Event| matches!(event, Event::Ended { exit, .. } if !exit.is_empty());
    assert_eq!(events.iter().find(bad), None, "every worker ends by itself");
    assert!(served(&events).iter().all(|&count| count >= 18), "{:?}", served(&events));
}

/// No worker of a later generation is there, or on its way.
fn is_alone(details: &serde_json::Value, generation: u64) -> bool {
    let later = |worker: &serde_json::Value| worker["generation"].as_u64() > Some(generation);
    details["starting"] == 0 && !details["workerList"].as_array().expect("a list").iter().any(later)
}

#[test]
fn worker_of_r_100_gets_its_successor_at_90_to_100_requests_each_at_a_draw_of_its_own() {
    let mut server = Server::with_test_worker(&["w:1", "r:100", "--no-access-log"]);
    server.wait_for_workers(1);
    let mut client = server.client();
    let mut limits = BTreeSet::new();
    for generation in 1..=6 {
        let mut served = 0;
        // Its successor is asked for in the turn of its last answer, so the next look shows that.
        while is_alone(&server.details(), generation) {
            assert_eq!(client.get("/slot").text(), format!("0 {generation}"));
            served += 1;
        }
        assert!((90..=100).contains(&served), "generation {generation} was to serve {served} requests");
        limits.insert(served);
        support::wait_until("the old worker is gone", || {
            states(&server) == [(0, generation + 1, "idle".to_owned())]
        });
    }
    assert!(limits.len() > 1, "all six of them drew {limits:?}: they would all go at once");
}

#[test]
fn workers_of_an_age_are_replaced_under_load_at_a_draw_of_their_own_and_nothing_is_lost() {
    let mut server = Server::builder(test_worker()).args(["w:2", "r:0,1s"]).args(PATIENT).start();
    server.wait_for_workers(2);
    let load = Load::start(&server, "/ping");
    server.wait_until("each slot's worker has aged", |server| {
        workers(server).iter().filter(|worker| worker.generation > 1).count() >= 2
    });
    load.end();
    assert!(load::has_line(&server, "successor after age"), "{}", server.stderr_text());
    load::assert_one_at_a_time(&events(&server));
}

#[test]
fn worker_above_max_memory_after_an_answer_is_replaced_and_a_light_one_is_not() {
    let server = Server::builder(test_worker()).args(["w:1", "--max-memory=40m"]).args(PATIENT).start();
    let first = pid_that_answers(&server);
    assert_eq!(server.get("/leak?bytes=5000000").status, 200);
    // It is looked at once a second; it is still there after two looks.
    let is_first = || pid_that_answers(&server) == first;
    assert!(load::stays(Duration::from_millis(1500), is_first), "{}", server.stderr_text());
    let load = Load::start(&server, "/ping");
    assert_eq!(server.get("/leak?bytes=50000000").status, 200);
    support::wait_until("the heavy worker is gone", || !is_alive(first));
    assert_ne!(pid_that_answers(&server), first);
    load.end();
    assert!(load::has_line(&server, "successor after memory"), "{}", server.stderr_text());
}

#[test]
fn retired_worker_serves_on_until_its_successor_has_joined() {
    let gate = Gate::new();
    let mut server = Server::builder(gate.app()).arg("w:1").args(PATIENT).start();
    server.wait_for_workers(1);
    let old = pid_that_answers(&server);
    let load = Load::start(&server, "/pid");
    gate.hold();
    for _ in 0..2 {
        let answer = tell(&server, r#"{"op":"retire","workerId":0}"#);
        assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}\n"));
    }
    // Asked twice, one successor.
    server.wait_until("the successor boots", |_| gate.starts().len() == 2);
    load.wait_for_answers(50);
    assert_eq!(pid_that_answers(&server), old);
    assert_eq!(workers(&server).iter().filter(|worker| worker.state == "booting").count(), 1);
    gate.let_go();
    server.wait_until("the old worker is gone", |_| !is_alive(old));
    assert_ne!(pid_that_answers(&server), old);
    load.end();
    server.wait_until("one worker is left", |server| states(server) == [(0, 2, "idle".to_owned())]);
    server
        .wait_until("its end is logged, and was of its own", |server| load::has_line(server, "ended after"));
}

#[test]
fn worker_that_quits_finishes_its_request_and_gets_no_new_one() {
    let mut server = Server::with_test_worker(&["w:2"]);
    server.wait_for_workers(2);
    let top = pid_that_answers(&server);
    let hold = Hold::new();
    let mut crossing = hold.ask(&server);
    let mut slot = None;
    server.wait_until("the request is at the worker", |server| {
        slot = workers(server).into_iter().find(|worker| worker.state == "busy");
        slot.is_some()
    });
    let slot = slot.expect("it was just seen");
    assert_eq!(slot.pid, top, "the worker that worked last works next");
    let answer = tell(&server, &format!(r#"{{"op":"quit","workerId":{}}}"#, slot.slot));
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":true}\n"));
    for _ in 0..20 {
        assert_ne!(pid_that_answers(&server), top);
    }
    hold.let_go();
    assert_eq!(crossing.read_response().text(), "held");
    server.wait_until("somebody took its place", |server| {
        !is_alive(top) && server.get("/status").json()["workers"] == 2
    });
}

#[test]
fn quit_of_an_old_worker_that_leaves_spares_its_successor() {
    let mut server = Server::builder(test_worker()).arg("w:1").args(PATIENT).start();
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    load::wait_for_busy(&mut server, 1);
    tell(&server, r#"{"op":"retire","workerId":0}"#);
    let serving = |server: &Server| {
        workers(server).into_iter().find(|worker| worker.generation == 2 && worker.state == "idle")
    };
    server.wait_until("its successor has joined", |server| serving(server).is_some());
    let successor = serving(&server).map(|worker| worker.pid);
    // Both have this number; the one that leaves is meant.
    assert_eq!(tell(&server, r#"{"op":"quit","workerId":0}"#).status, 200);
    hold.let_go();
    assert_eq!(client.read_response().text(), "held");
    server.wait_until("the old one is gone", |server| workers(server).len() == 1);
    assert_eq!(Some(pid_that_answers(&server)), successor);
}

#[test]
fn successor_that_fails_leaves_the_old_worker_at_work_and_is_tried_again_with_backoff() {
    let gate = Gate::new();
    let mut server = Server::builder(gate.app()).arg("w:1").args(PATIENT).start();
    server.wait_for_workers(1);
    let old = pid_that_answers(&server);
    let load = Load::of(&server, "/ping", 1, 1);
    gate.break_build();
    tell(&server, r#"{"op":"retire","workerId":0}"#);
    server.wait_until("four successors failed", |_| gate.starts().len() >= 5);
    assert_eq!(pid_that_answers(&server), old);
    let tries = &gate.starts()[1..];
    for (pair, wait_ms) in tries.windows(2).zip([100, 200, 400]) {
        let wait = pair[1] - pair[0];
        assert!(wait >= Duration::from_millis(wait_ms), "{wait:?} and not {wait_ms} ms: {tries:?}");
    }
    gate.mend_build();
    server.wait_until("a successor made it", |_| !is_alive(old));
    assert_ne!(pid_that_answers(&server), old);
    load.end();
}

#[test]
fn fleet_of_1_to_4_grows_while_requests_wait_and_shrinks_from_the_bottom() {
    let server = Server::builder(test_worker()).args(["w:1..4", "--no-access-log"]);
    let mut server = server.arg("--queue-timeout-ms=60000").env("RIP_SHRINK_AFTER_MS", "1500").start();
    server.wait_for_workers(1);
    assert_eq!(server.announced_workers(), 1);
    // Twice as many clients as there may be workers: some wait, always.
    let load = Load::of(&server, "/sleep?ms=20", 8, 0);
    server.wait_for_workers(4);
    load.wait_for_answers(50);
    load.end();
    // One of them works on for a while, and is on top of the stack then.
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    let mut top = None;
    server.wait_until("one is at work", |server| {
        top = workers(server).into_iter().find(|worker| worker.state == "busy").map(|worker| worker.pid);
        top.is_some()
    });
    hold.let_go();
    assert_eq!(client.read_response().text(), "held");
    server.wait_until("the rest has retired", |server| workers(server).len() == 1);
    assert_eq!(server.worker_pids().first(), top.as_ref());
    assert_eq!(client.get("/ping").text(), "pong");
    let lives = events(&server);
    assert_eq!(lives.iter().filter(|event| matches!(event, Event::Started { .. })).count(), 4);
    let mut is_booting = false;
    for event in &lives {
        match event {
            Event::Started { .. } => {
                assert!(!is_booting, "two boot at once: {lives:?}");
                is_booting = true;
            }
            Event::Joined { .. } => is_booting = false,
            Event::Ended { exit, .. } => assert_eq!(exit, ""),
        }
    }
}

#[test]
fn status_of_a_fleet_says_how_deep_the_stack_was_used() {
    let mut server = Server::with_test_worker(&["w:5"]);
    server.wait_for_workers(5);
    let hold = Hold::new();
    let _clients = [(); 3].map(|()| hold.ask(&server));
    load::wait_for_busy(&mut server, 3);
    assert_eq!(server.details()["needed"], serde_json::json!({"workers": 3, "of": 5}));
}

#[test]
fn status_of_a_fleet_that_grew_says_that_all_of_it_was_needed() {
    let mut server = Server::builder(test_worker()).arg("w:1..3").args(PATIENT).start();
    let load = Load::of(&server, "/sleep?ms=20", 6, 0);
    server.wait_for_workers(3);
    load.wait_for_answers(50);
    assert_eq!(server.details()["needed"], serde_json::json!({"workers": 3, "of": 3}));
    load.end();
}

#[test]
fn w_auto_on_one_cpu_is_1() {
    let all = sched_getaffinity(Pid::from_raw(0)).expect("an affinity");
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu).unwrap_or(false));
    let cpu = cpus.next().expect("this test runs on one");
    let server = Server::with_test_worker(&["w:auto"]);
    assert!(server.announced_workers() >= 1);
    // In a thread of its own, since that is what the server inherits it from; as `taskset -c` does.
    let pinned = std::thread::spawn(move || {
        let mut one = CpuSet::new();
        one.set(cpu).expect("a CPU");
        sched_setaffinity(Pid::from_raw(0), &one).expect("an affinity can be set");
        Server::with_test_worker(&["w:auto"]).announced_workers()
    });
    assert_eq!(pinned.join().expect("the server starts"), 1);
}

/// A cgroup with a quota of one CPU; nothing where this machine lets none be made.
struct OneCpu(PathBuf);

impl OneCpu {
    fn new() -> Option<OneCpu> {
        let name = format!("rip-test-{}", std::process::id());
        let versions = [
            ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "100000"),
            ("/sys/fs/cgroup", "cpu.max", "100000 100000"),
        ];
        versions.into_iter().find_map(|(parent, file, quota)| {
            let group = Path::new(parent).join(&name);
            // Without this file the folder is not a cgroup's.
            fs::metadata(Path::new(parent).join("cgroup.procs")).ok()?;
            fs::create_dir(&group).ok()?;
            let group = OneCpu(group);
            fs::OpenOptions::new()
                .write(true)
                .open(group.0.join(file))
                .ok()?
                .write_all(quota.as_bytes())
                .ok()?;
            Some(group)
        })
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        // Its processes may be on their way out.
        support::comes_true(support::TEST_TIMEOUT, || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn w_auto_in_a_cgroup_with_a_quota_of_one_cpu_is_1() {
    let Some(group) = OneCpu::new() else {
        return crate::support::skip::skip("w:auto with a quota", "no cgroup for CPU time can be made");
    };
    let dir = tempfile::tempdir().expect("a folder");
    let enter = format!("echo $$ > {}/cgroup.procs && exec", group.0.display());
    let server = Server::carried_by(load::started_by(dir.path(), &enter)).arg(test_worker());
    let server = server.arg("w:auto").start();
    assert_eq!(server.announced_workers(), 1);
    // Its end comes before the group's.
    drop(server);
}

#[test]
fn join_that_is_not_of_a_booting_slot_is_refused_with_a_reason() {
    // Boots for ever, so that the test speaks for it with what it was told.
    let dir = tempfile::tempdir().expect("a folder");
    let (app, told) = (dir.path().join("silent"), dir.path().join("told"));
    let tells = r#"echo "$SOCKET_PATH $RIP_INSTANCE" > "$0.told" && mv "$0.told""#;
    load::write_script(&app, &format!("#!/bin/sh\n{tells} {}\nexec sleep 1000\n", told.display()));
    let mut server = Server::builder(&app).arg("w:1").start();
    server.wait_until("a worker boots", |server| workers(server).len() == 1 && told.exists());
    let pid = workers(&server)[0].pid;
    let told = fs::read_to_string(told).expect("it was there");
    let (path, instance) = told.trim().split_once(' ').expect("a path and an instance");
    let join = |instance: &str, slot: u64, version: u64, socket: &str| {
        let message = format!(
            r#"{{"op":"join","instance":"{instance}","workerId":{slot},"pid":{pid},"socket":"{socket}","version":{version}}}"#
        );
        let answer = tell(&server, &message);
        (answer.status, answer.json()["error"].as_str().unwrap_or_default().to_owned())
    };
    // What a worker of that slot was given before there were instances in the names.
    let without = server.socket_dir().join("rip_server2_silent.0.1.sock").display().to_string();
    let refusals = [
        (join("other", 0, 1, path), "belongs to the instance 'other'"),
        (join(instance, 7, 1, path), "no worker 7 of generation 1 is booting"),
        (join(instance, 0, 9, path), "no worker 0 of generation 9 is booting"),
        (join(instance, 0, 1, "/tmp/elsewhere"), "another socket than '/tmp/elsewhere'"),
        (join(instance, 0, 1, &without), "another socket than"),
    ];
    for ((status, error), reason) in refusals {
        assert_eq!(status, 400);
        assert!(error.contains(reason), "{error}");
    }
    for op in ["retire", "quit"] {
        let answer = tell(&server, &format!(r#"{{"op":"{op}","workerId":7}}"#));
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("no worker 7"), "{}", answer.text());
    }
    assert_eq!(server.get("/status").json()["workers"], 0);
    // The right one, and only once.
    assert_eq!(join(instance, 0, 1, path), (200, String::new()));
    assert_eq!(server.get("/status").json()["workers"], 1);
    assert_eq!(join(instance, 0, 1, path).0, 400);
}
