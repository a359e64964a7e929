//! `reload --canary`: the first worker of a new release on trial beside the old ones.

use crate::support::{Client, Server};
use crate::{load::PATIENT, pids, point_to, write_release};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// A server of the release `one`, whose next one is named.
fn server(workers: u64, next: &str) -> (TempDir, Server) {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["one", next] {
        write_release(dir.path(), name);
    }
    point_to(dir.path(), "one");
    let server = Server::builder(dir.path().join("current")).arg(format!("w:{workers}")).args(PATIENT);
    let mut server = server.start();
    server.wait_for_workers(workers);
    point_to(dir.path(), next);
    (dir, server)
}

/// Reloads under load. Its exit code, what it printed, and how often each answer came: a status and a release.
fn reload_under_load(server: &Server, words: &[&str]) -> (i32, String, BTreeMap<String, usize>) {
    let (address, is_over) = (server.address(), AtomicBool::new(false));
    let ask = |thread: usize| {
        let mut client = Client::connect(address);
        let mut answers = BTreeMap::new();
        let mut number = 0;
        while !is_over.load(Ordering::Relaxed) {
            number += 1;
            // Each of its own kind: a target that fails on one release is not asked for again on the other.
            let response = client.get(&format!("/release?number={thread}-{number}"));
            *answers.entry(format!("{} {}", response.status, response.text().trim())).or_insert(0) += 1;
        }
        answers
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|thread| scope.spawn(move || ask(thread))).collect();
        let output = server.verb([&["reload"], words].concat());
        is_over.store(true, Ordering::Relaxed);
        let mut answers = BTreeMap::new();
        for thread in threads {
            for (answer, count) in thread.join().expect("each request was answered") {
                *answers.entry(answer).or_insert(0) += count;
            }
        }
        (output.code, output.stdout + &output.stderr, answers)
    })
}

#[test]
fn good_release_passes_its_trial_and_the_reload_goes_on() {
    let (_dir, server) = server(3, "two");
    let before = pids(&server);
    let (code, said, answers) = reload_under_load(&server, &["--canary=60"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("is on trial, and gets one request in 3"), "{said}");
    assert!(said.contains("3 of 3 replaced"), "{said}");
    assert!(answers.keys().all(|answer| answer.starts_with("200 ")), "{answers:?}");
    assert!(pids(&server).is_disjoint(&before));
    assert_eq!(server.get("/release").text(), "two");
}

#[test]
fn release_that_fails_too_often_is_undone_and_the_old_workers_are_back() {
    let (_dir, mut server) = server(3, "bad");
    let before = pids(&server);
    let (code, said, answers) = reload_under_load(&server, &["--canary=200", "--canary-errors=10"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("failed at") && said.contains("the old release goes on"), "{said}");
    assert!(answers.contains_key("200 bad") && answers.contains_key("500 bad"), "{answers:?}");
    server.wait_until("the old workers alone", |server| pids(server) == before);
    for _ in 0..6 {
        assert_eq!(server.get("/release").text(), "one");
    }
    let states = server.details()["workerList"].to_string();
    assert!(!states.contains("reserve"), "{states}");
}

#[test]
fn release_whose_worker_ends_on_trial_is_undone_at_once() {
    let (_dir, mut server) = server(2, "deadly");
    let before = pids(&server);
    let (code, said, _) = reload_under_load(&server, &["--canary=600s"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("ended: SIGKILL"), "{said}");
    server.wait_until("the old workers alone", |server| pids(server) == before);
    assert_eq!(server.get("/release").text(), "one");
}

#[test]
fn with_one_worker_it_and_its_predecessor_serve_by_turns() {
    let (_dir, server) = server(1, "two");
    let (code, said, answers) = reload_under_load(&server, &["--canary=60"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("gets one request in 2"), "{said}");
    assert!(answers["200 one"] >= 50 && answers["200 two"] >= 50, "{answers:?}");
}

#[test]
fn what_no_trial_can_be_is_refused() {
    let (_dir, server) = server(1, "two");
    for (words, complaint) in [
        (&["--canary=10"][..], "--canary takes a number of requests from 50"),
        (&["--canary=0s"], "--canary takes a number of requests from 50"),
        (&["--canary=100", "--canary-errors=101"], "--canary-errors takes a number from 0 to 100"),
        (&["--canary-errors=5"], "--canary=500 --canary-errors=5 would do"),
    ] {
        let output = server.verb([&["reload"], words].concat());
        assert_eq!(output.code, 2, "{words:?}: {}", output.stderr);
        assert!(output.stderr.contains(complaint), "{words:?}: {}", output.stderr);
    }
}
