//! Workers that do not answer in time: the client is told, and the worker gets nothing before its answer has ended.

use crate::support::{Answer, PATIENCE, RawWorker, Then, is_alive, test_worker};
use crate::tools::{Gate, asking, line_of, patient, patient_without_workers, wait_for_load, word_on_stderr};
use std::time::{Duration, Instant};

#[test]
fn a_late_worker_is_a_504_and_gets_nothing_before_its_answer_has_ended() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let words = ["--read-timeout-ms=300", "--json"];
    let mut server = patient_without_workers(&words);
    let gate = Gate::default();
    let holding = gate.clone();
    let worker = RawWorker::join(&server, 4, move |request| holding.pass(request));
    let begun = Instant::now();
    let late = asking(&server, "/late").read_response();
    let took = begun.elapsed();
    assert_eq!((late.status, late.head.has("connection")), (504, false));
    assert!(took >= TIMEOUT, "too early: {took:?}");
    assert!(took < TIMEOUT + Duration::from_secs(10), "far too late: {took:?}");
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

#[test]
fn an_answer_that_stalls_is_cut() {
    let mut server = patient_without_workers(&["--read-timeout-ms=1500", "--json"]);
    let _worker = RawWorker::join(&server, 4, |_| {
        Answer::bytes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").then(Then::Hang)
    });
    let mut client = asking(&server, "/stalls");
    let broken = client.read_response_within(PATIENCE).expect_err("its end never came");
    assert_eq!((broken.response.status, broken.response.body), (200, b"short".to_vec()));
    let line = line_of(&mut server, "/stalls");
    assert_eq!(
        (&line["status"], &line["reason"], &line["worker"]),
        (&200.into(), &"read_timeout".into(), &4.into())
    );
}

#[test]
fn an_answer_that_takes_long_but_comes_is_no_late_one() {
    let server = patient(test_worker()).args(["w:1", "--read-timeout-ms=3000"]).start();
    let begun = Instant::now();
    assert_eq!(server.get("/chunks?n=18&ms=200").text().lines().count(), 18);
    assert!(begun.elapsed() > Duration::from_millis(3000));
}

#[test]
fn a_stuck_worker_is_replaced_after_the_drain_timeout() {
    const TIMEOUTS: Duration = Duration::from_millis(2000);
    let words = ["w:1", "--read-timeout-ms=1500", "--drain-timeout-ms=500"];
    let mut server = patient(test_worker()).args(words).arg("--json").start();
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
