//! Workers that do not answer in time: the client is told, and the worker gets nothing before its answer has ended.

use crate::support::{Answer, RawWorker, Server, TEST_TIMEOUT, Then, is_alive, test_worker};
use crate::tools::{Gate, asking, line_of, wait_for_load, word_on_stderr};
use std::time::{Duration, Instant};

#[test]
fn a_late_worker_is_a_504_and_gets_nothing_before_its_answer_has_ended() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let words = ["--read-timeout-ms=300", "--json"];
    let mut server = Server::without_workers(&words);
    let gate = Gate::default();
    let holding = gate.clone();
    let worker = RawWorker::join(&server, 4, move |request| holding.pass(request));
    let begun = Instant::now();
    let late = asking(&server, "/late").read_response();
    let took = begun.elapsed();
    assert_eq!((late.status, late.head.has("connection")), (504, false));
    assert!(took >= TIMEOUT, "too early: {took:?}");
    let line = line_of(&mut server, "/late");
    assert_eq!(
        (&line["status"], &line["reason"], &line["worker"]),
        (&504.into(), &"read_timeout".into(), &4.into())
    );
    word_on_stderr(&mut server, &["worker 4", "GET /late", "read_timeout"]);

    // It is not idle: the next request waits.
    let mut next = asking(&server, "/next");
    wait_for_load(&mut server, 1, 1);
    assert!(worker.request_count() <= 1);
    gate.open();
    // The late answer is nobody's; the next one gets its own.
    assert_eq!(next.read_response().status, 200);
    let targets: Vec<String> = worker.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/late", "/next"]);
    assert!(worker.faults().is_empty(), "{:?}", worker.faults());
}

/// A worker that speaks the protocol by hand (`tests/worker/raw.rs`), in that version of it.
fn raw_worker(version: &str, words: &[&str]) -> Server {
    let server = Server::builder(test_worker()).env("TEST_RAW", version).args(["w:1", "--json"]).args(words);
    let mut server = server.start();
    server.wait_for_workers(1);
    server
}

#[test]
fn a_worker_that_closes_while_its_handler_runs_on_is_asked_until_it_is_idle() {
    let server = raw_worker("2", &["--read-timeout-ms=1000"]);
    let begun = Instant::now();
    assert_eq!(server.get("/leave?ms=800").status, 504);
    assert_eq!(server.get("/overlaps").text(), "0", "the next request waits for the handler's end");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1800), "{took:?}");
    let context: u128 = server.get("/asked").text().parse().expect("a number");
    // At once, and then every 50 ms; fewer on a machine that is slow.
    let most = (took.as_millis() - 1000) / 50 + 2;
    assert!((2..=most).contains(&context), "{context} in {took:?}");
}

#[test]
fn a_worker_whose_client_has_reset_is_asked_as_well() {
    let mut server = raw_worker("2", &[]);
    let client = asking(&server, "/leave?ms=500");
    wait_for_load(&mut server, 1, 0);
    client.reset();
    assert_eq!(line_of(&mut server, "/leave")["reason"], "client_gone");
    assert_eq!(server.get("/overlaps").text(), "0");
    assert_ne!(server.get("/asked").text(), "0");
}

#[test]
fn a_worker_that_never_gets_idle_is_replaced_after_the_drain_timeout() {
    let mut server = raw_worker("2", &["--read-timeout-ms=300", "--drain-timeout-ms=400"]);
    let pid = server.worker_pids()[0];
    assert_eq!(server.get("/leave?ms=600000").status, 504);
    assert_ne!(server.get("/").text(), pid.to_string());
    word_on_stderr(&mut server, &["stuck in GET /leave"]);
    server.wait_until("the stuck one's end", |_| !is_alive(pid));
}

#[test]
fn a_worker_of_the_protocols_first_version_is_not_asked() {
    let server = raw_worker("1", &["--read-timeout-ms=1000"]);
    assert_eq!(server.get("/leave?ms=0").status, 504);
    assert_eq!(server.get("/asked").text(), "0");
}

fn raw_command(words: &[&str]) -> Server {
    let dir = test_worker();
    let dir = dir.parent().expect("a folder");
    let program = test_worker();
    let server = Server::builder(dir).env("TEST_RAW", "command").args(["w:1", "--json"]).args(words);
    let mut server = server.args(["--", program.to_str().expect("plain text"), "{socket}"]).start();
    server.wait_for_workers(1);
    server
}

#[test]
fn a_command_is_not_told_before_its_answers_head_and_is_idle_when_that_has_ended() {
    let server = raw_command(&["--read-timeout-ms=1000"]);
    assert_eq!(server.get("/told?ms=1600").status, 504);
    assert_eq!(server.get("/overlaps").text(), "0");
    assert_eq!(server.get("/was-told").text(), "0");
}

#[test]
fn a_command_that_answers_its_probe_busy_is_probed_again_and_the_head_of_an_answer_will_do() {
    let mut server = raw_command(&["--drain-timeout-ms=300"]);
    assert_eq!(server.get("/asked").text(), "3");
    assert!(!server.stderr_text().contains("/ready"), "{}", server.stderr_text());
    wait_for_load(&mut server, 0, 0);
}

#[test]
fn an_answer_that_stalls_is_cut() {
    let mut server = Server::without_workers(&["--read-timeout-ms=1500", "--json"]);
    let _worker = RawWorker::join(&server, 4, |_| {
        Answer::bytes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").then(Then::Hang)
    });
    let mut client = asking(&server, "/stalls");
    let broken = client.read_response_within(TEST_TIMEOUT).expect_err("its end never came");
    assert_eq!((broken.response.status, broken.response.body), (200, b"short".to_vec()));
    let line = line_of(&mut server, "/stalls");
    assert_eq!(
        (&line["status"], &line["reason"], &line["worker"]),
        (&200.into(), &"read_timeout".into(), &4.into())
    );
}

#[test]
fn an_answer_that_takes_long_but_comes_is_no_late_one() {
    let server = Server::builder(test_worker()).args(["w:1", "--read-timeout-ms=3000"]).start();
    let begun = Instant::now();
    assert_eq!(server.get("/chunks?n=18&ms=200").text().lines().count(), 18);
    assert!(begun.elapsed() > Duration::from_millis(3000));
}

#[test]
fn a_stuck_worker_is_replaced_after_the_drain_timeout() {
    const TIMEOUTS: Duration = Duration::from_millis(2000);
    let words = ["w:1", "--read-timeout-ms=1500", "--drain-timeout-ms=500"];
    let mut server = Server::builder(test_worker()).args(words).arg("--json").start();
    let pid: i32 = server.get("/pid").text().parse().expect("a pid");
    let begun = Instant::now();
    assert_eq!(server.get("/sleep?ms=600000").status, 504);
    // Whoever comes now waits for the successor.
    let next = server.get("/pid");
    assert!(begun.elapsed() >= TIMEOUTS, "too early: {:?}", begun.elapsed());
    assert_eq!(next.status, 200, "{}", next.text());
    assert_ne!(next.text(), pid.to_string());
    word_on_stderr(&mut server, &[&format!("pid {pid}"), "stuck", "GET /sleep"]);
    // SIGTERM does not help while it is stuck; a second later SIGKILL does.
    server.wait_until("the stuck one's end", |_| !is_alive(pid));
    server.wait_until("one idle worker", |server| {
        let details = server.details();
        let workers = details["workerList"].as_array().expect("a list of workers");
        workers.len() == 1 && workers[0]["state"] == "idle" && workers[0]["pid"] != pid
    });
}
