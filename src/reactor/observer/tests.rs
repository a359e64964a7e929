//! What the observer counts and tells, against what it was told.

use super::*;
use crate::conn::client;
use crate::conn::worker::Answer;
use crate::http::Reason;
use crate::http::forward::{ForwardedTrust, Origin};
use crate::observe::failures::{Cause, Subject};
use crate::process::DescriptorLimit;
use serde_json::json;

const MS: Duration = Duration::from_millis(1);

fn observer(keeps_history: bool, io: &Io) -> Observer {
    Observer::new(Logs::kept(), keeps_history, io.now())
}

fn io() -> Io {
    let limit = DescriptorLimit { soft: 256, hard: 256 };
    Io::new(mio::Poll::new().expect("epoll"), limit, std::env::temp_dir(), 1)
}

fn finished(io: &Io, status: u16, reason: Option<Reason>, times: Times) -> Finished {
    let origin =
        Origin { address: "10.0.0.1", trust: ForwardedTrust::Ignored, fresh_id: b"5e55", start_us: b"1" };
    let mut head = b"GET /page?a=1 HTTP/1.1\r\nHost: h\r\n\r\n".to_vec();
    let step = client::Client::default().advance(&mut head, origin, 0, Vec::new, io.now());
    let client::Event::Request(request) = step.event else { panic!("it is a whole request") };
    let answer = Answer::local(status, "text/plain", true);
    Finished { request, answer, reason, body_bytes: 40, times, worker: Some((1, 42)) }
}

type Event = fn(&mut Observer);

/// The metrics' figure of that name.
fn figure(observer: &Observer, name: &str) -> f64 {
    let text = observer.render(&Snapshot::default());
    let line = text.lines().find(|line| line.split_once(' ').is_some_and(|(first, _)| first == name));
    let value = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
    value.unwrap_or_else(|| panic!("no figure {name} in {text}"))
}

#[test]
fn a_request_that_has_ended_has_its_line_and_is_counted() {
    let mut io = io();
    let mut observer = observer(false, &io);
    let times = Times { queue: 7 * MS, worker: 5 * MS, stream: None };
    let first = finished(&io, 200, None, times);
    io.move_clock_to(io.now() + 20 * MS);
    observer.log(&first, b"10.0.0.9", &io);
    let line = observer.take_lines();
    let line: Value = serde_json::from_slice(&line).expect("a line of JSON");
    let text = line.to_string();
    for part in ["/page", "10.0.0.9", "5e55", "text/plain"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(observer.take_lines().is_empty(), "taken");
    assert_eq!(observer.failures().requests(), json!([]));
    let worse = Times { queue: 3 * MS, ..times };
    observer.log(&finished(&io, 502, Some(Reason::WorkerDied), worse), b"10.0.0.9", &io);
    assert_eq!(observer.longest_wait(), 7 * MS);
    assert_eq!(observer.failures().requests()[0]["path"], "/page");
    assert_eq!(figure(&observer, "rip_requests_total{status=\"2xx\"}"), 1.0);
    assert_eq!(figure(&observer, "rip_requests_total{status=\"5xx\"}"), 1.0);
    assert_eq!(figure(&observer, "rip_sent_body_bytes_total"), 80.0);
    assert_eq!(figure(&observer, "rip_worker_duration_seconds_sum"), 0.01);
    assert_eq!(figure(&observer, "rip_request_duration_seconds_sum"), 0.02);
}

#[test]
fn a_streams_head_counts_as_the_end_of_its_request() {
    let io = io();
    let mut observer = observer(false, &io);
    observer.stream_began(&Times { queue: 1000 * MS, worker: 2000 * MS, stream: None }, 4000 * MS);
    assert_eq!(figure(&observer, "rip_queue_duration_seconds_sum"), 1.0);
    assert_eq!(figure(&observer, "rip_worker_duration_seconds_sum"), 2.0);
    assert_eq!(figure(&observer, "rip_request_duration_seconds_sum"), 4.0);
    let stream = Times { stream: Some(8000 * MS), ..Times::default() };
    observer.log(&finished(&io, 200, None, stream), b"", &io);
    assert_eq!(figure(&observer, "rip_stream_duration_seconds_sum"), 8.0);
}

#[test]
fn each_event_is_counted_in_its_own_figure() {
    let io = io();
    let events: [(Event, &str); 11] = [
        (Observer::retried, "rip_retries_total"),
        (Observer::held_back, "rip_spool_hold_backs_total"),
        (Observer::accept_failed, "rip_accept_failures_total"),
        (|it| it.refused_connection(&"::1", &"full", Instant::now()), "rip_refused_connections_total"),
        (Observer::accepting_paused, "rip_accept_pauses_total"),
        (Observer::closed_for_room, "rip_client_connections_closed_for_room_total"),
        (Observer::worker_started, "rip_worker_starts_total"),
        (Observer::start_failed, "rip_worker_start_failures_total"),
        (Observer::boot_failed, "rip_worker_restarts_total{reason=\"boot_failure\"}"),
        (Observer::worker_crashed, "rip_worker_restarts_total{reason=\"crash\"}"),
        (|it| it.received(1), "rip_received_bytes_total"),
    ];
    let names = events.map(|(_, name)| name);
    for (event, name) in events {
        let mut observer = observer(false, &io);
        let before = names.map(|name| figure(&observer, name));
        event(&mut observer);
        event(&mut observer);
        for (other, before) in names.iter().zip(before) {
            let expected = if *other == name { 2.0 } else { 0.0 };
            assert_eq!(figure(&observer, other) - before, expected, "{other} after {name}");
        }
    }
    let mut observer = observer(false, &io);
    observer.received(40);
    observer.received(2);
    assert_eq!(figure(&observer, "rip_received_bytes_total"), 42.0);
}

#[test]
fn workers_figures_are_their_starts_and_their_time_at_work() {
    let io = io();
    let mut observer = observer(false, &io);
    observer.worker_joined(false, 3000 * MS);
    observer.worker_joined(true, 500 * MS);
    observer.busy_for(2, 5000 * MS);
    observer.worker_started();
    observer.worker_replaced(RetireReason::Reload);
    let text = observer.render(&Snapshot::default());
    let has = |part: &str, value: &str| {
        let mut lines = text.lines().filter(|line| line.contains(part) && !line.starts_with('#'));
        assert!(lines.any(|line| line.ends_with(&format!(" {value}"))), "{part} {value} in {text}");
    };
    has("rip_worker_start_seconds_sum", "3");
    has("rip_worker_start_seconds_sum", "0.5");
    has("rip_worker_busy_seconds_total", "5");
    has("rip_worker_starts_total", "1");
    has("rip_worker_restarts_total", "1");
}

#[test]
fn the_history_is_kept_where_the_page_is() {
    let io = io();
    let load = Load { waiting: 1, at_work: 2, workers: 3 };
    let mut without = observer(false, &io);
    without.note_load(load, io.now());
    assert!(!without.has_history() && without.history_second().is_none());
    assert_eq!(without.history_since(0), Value::Null);
    let mut with = observer(true, &io);
    assert_eq!(with.history_second(), Some((0, io.now() + 1000 * MS)));
    with.note_load(load, io.now());
    with.note_load(load, io.now() + 2500 * MS);
    assert!(with.has_history());
    assert_eq!(with.history_second(), Some((2, io.now() + 3000 * MS)));
    let since = with.history_since(0);
    assert_eq!((&since["second"], &since["runs"][0]["second"]), (&json!(2), &json!(0)));
}

#[test]
fn failures_rolls_and_the_depth_are_kept() {
    let io = io();
    let now = io.now();
    let mut observer = observer(false, &io);
    observer.failures_mut().blame((1, 42), Cause::Crash, Subject::new(b"GET", b"/", b"id"), io.unix());
    assert_eq!(observer.failures().deaths()[0]["pid"], 42);
    observer.rolls_mut().begin(now, io.unix());
    assert_eq!(observer.rolls().to_json(now).as_array().map(Vec::len), Some(1));
    observer.note_size(4, || panic!("the minute is not over"), now);
    assert_eq!(observer.depth().needed_of(2), 4);
}

#[test]
fn a_changed_order_is_noted_once() {
    let io = io();
    let mut observer = observer(false, &io);
    observer.note_order(Serving::NewestFirst, 1);
    assert_eq!(observer.order_changes, 1);
    observer.note_order(Serving::OldestFirst, 2);
    assert_eq!(observer.order_changes, 2);
}

#[test]
fn lines_go_through_to_the_outputs() {
    let io = io();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log");
    let logs = Logs::to_file(&path, io.registry());
    let mut observer = Observer::new(logs, false, io.now());
    observer.worker_line(b"hello", false, "1");
    observer.flush(io.now());
    let text = || std::fs::read_to_string(&path).expect("it is there");
    assert_eq!(text(), "[1] hello\n");
    assert_eq!(observer.next_flush(io.now()), None);
    observer.log(&finished(&io, 200, None, Times::default()), b"10.0.0.9", &io);
    assert_eq!(observer.next_flush(io.now()), Some(io.now() + 50 * MS));
    std::fs::rename(&path, dir.path().join("old")).expect("moved");
    assert_eq!(observer.reopen_log_file(&io), Some(Ok(())));
    let old = std::fs::read_to_string(dir.path().join("old")).expect("it is there");
    assert!(old.contains("GET /page") && text().is_empty());
    observer.log(&finished(&io, 200, None, Times::default()), b"10.0.0.9", &io);
    observer.finish();
    assert!(text().contains("GET /page"));
    assert_eq!(observer.dropped_lines(), 0);
}
