//! Clocks that jump: what is told follows the wall clock, what is waited for does not, and service goes on.

use crate::support::{Answer, Faults, RawWorker, Server, test_worker};
use crate::tools::{Gate, access_lines, asking, lines_of, wait_for_load};
use crate::workload::{Expect, WORKERS, assert_sound, run, run_under, server};
use crate::{can_inject, metric};
use std::time::{Duration, SystemTime};

const HOURS_MS: i64 = 5 * 3_600_000;

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970")
}

/// How far a time is ahead of this process's clock.
fn ahead_s(time: Duration) -> f64 {
    time.as_secs_f64() - since_1970(SystemTime::now()).as_secs_f64()
}

fn date_ahead_s(server: &Server) -> f64 {
    let response = server.get("/server");
    let date = httpdate::parse_http_date(response.header("date").expect("a Date")).expect("a date");
    ahead_s(since_1970(date))
}

/// As the worker is told.
fn request_start_ahead_s(server: &Server) -> f64 {
    let shown = server.get("/headers").text().to_lowercase();
    let start = shown.lines().find_map(|line| line.strip_prefix("x-request-start: t=")?.parse().ok());
    ahead_s(Duration::from_micros(start.expect("the start of the request")))
}

#[test]
fn a_wall_clock_that_jumps_moves_dates_and_nothing_else() {
    if can_inject("a_wall_clock_that_jumps_moves_dates_and_nothing_else") {
        std::thread::scope(|scope| {
            scope.spawn(|| assert_only_dates_move(HOURS_MS));
            scope.spawn(|| assert_only_dates_move(-HOURS_MS));
        });
    }
}

fn assert_only_dates_move(ahead_ms: i64) {
    const SLACK_S: f64 = 60.0;
    let faults = Faults::for_later(&format!("any.realtime={ahead_ms}"));
    let mut server = server().start_under(&faults);
    server.wait_for_workers(WORKERS as u64);
    let mut kept = server.client();
    assert_eq!(kept.get("/ping").text(), "pong");
    let mut sleeper = asking(&server, "/sleep?ms=300");
    faults.turn_on();
    let jump_s = ahead_ms as f64 / 1000.0;
    server.wait_until("dates follow", |server| (date_ahead_s(server) - jump_s).abs() < SLACK_S);
    assert_eq!(kept.get("/ping").text(), "pong");
    assert_eq!(sleeper.read_response().text(), "slept");
    drop((kept, sleeper));
    run(&mut server, Expect::Right, 0);
    assert!((request_start_ahead_s(&server) - jump_s).abs() < SLACK_S);
    faults.turn_off();
    server.wait_until("dates come back", |server| date_ahead_s(server).abs() < SLACK_S);
    for line in access_lines(&server) {
        let total = line["totalSeconds"].as_f64().expect("a number");
        assert!((0.0..SLACK_S).contains(&total) && line.get("reason").is_none(), "{line}");
    }
    faults.assert_all_struck();
    assert_sound(&mut server);
}

#[test]
fn a_clock_that_leaps_ends_what_waited_once_and_service_goes_on() {
    if !can_inject("a_clock_that_leaps_ends_what_waited_once_and_service_goes_on") {
        return;
    }
    let faults = Faults::for_later(&format!("any.monotonic={HOURS_MS}"));
    let mut server = Server::builder("/bin/true").args(["w:0", "--json"]).start_under(&faults);
    let gate = Gate::default();
    let holding = gate.clone();
    let _worker = RawWorker::join(&server, 1, move |request| match request.target.as_str() {
        "/held" => holding.pass(request),
        _ => Answer::ok("pong"),
    });
    let mut idle = server.client();
    assert_eq!(idle.get("/ping").text(), "pong");
    let mut begun = server.client();
    begun.send("POST /begun HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nshort");
    let mut at_work = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let mut waiting = asking(&server, "/waits");
    wait_for_load(&mut server, 1, 1);
    faults.turn_on();
    // Has the loop take a turn.
    let _ = server.client();
    assert_eq!((at_work.read_response().status, waiting.read_response().status), (504, 504));
    assert_eq!(begun.read_response().status, 408);
    assert_eq!(idle.read_until_close().0, b"");
    gate.open();
    assert_eq!(server.get("/ping").text(), "pong");
    server.wait_until("the worker is idle", |server| metric(server, "rip_workers{state=\"idle\"}") == 1.0);
    for (path, reason) in
        [("/held", "read_timeout"), ("/waits", "queue_timeout"), ("/begun", "client_timeout")]
    {
        // Lines are written some milliseconds behind their answers.
        server.wait_until("the request's line", |server| !lines_of(server, path).is_empty());
        let lines = lines_of(&server, path);
        let reasons: Vec<_> = lines.iter().map(|line| line["reason"].as_str()).collect();
        assert_eq!(reasons, [Some(reason)], "{path}");
    }
    // It stays where it is now, and all is as ever.
    assert_eq!(server.get("/ping").text(), "pong");
    faults.assert_all_struck();
    assert_sound(&mut server);
}

#[test]
fn a_clock_that_leaps_while_workers_start_has_them_started_again() {
    if !can_inject("a_clock_that_leaps_while_workers_start_has_them_started_again") {
        return;
    }
    let faults = Faults::for_later(&format!("any.monotonic={HOURS_MS}"));
    let builder = Server::builder(test_worker()).args(["w:1", "--json"]).env("TEST_BOOT_MS", "500");
    let mut server = builder.start_under(&faults);
    server.wait_until("a worker that starts", |server| server.worker_pids().len() == 1);
    faults.turn_on();
    server.wait_for_workers(1);
    assert_eq!(server.get("/ping").text(), "pong");
    faults.assert_all_struck();
    assert_sound(&mut server);
}

#[test]
fn small_steps_back_are_no_time_at_all() {
    if can_inject("small_steps_back_are_no_time_at_all") {
        run_under("any.monotonic=-7%3 any.monotonic=3%5", Expect::Right);
    }
}
