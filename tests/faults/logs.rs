//! Output that fails: requests go on, lines stay whole, and those that are lost are counted.

use crate::support::{Faults, Server, test_worker};
use crate::tools::server_behind;
use crate::workload::assert_sound;
use crate::{can_inject, metric};
use serde_json::Value;

const DROPPED: &str = "rip_log_lines_dropped_total";
/// In each access line, so that few requests fill what is written at once.
const PATH_BYTES: usize = 10_000;
const REQUESTS: usize = 150;

fn serve_many(server: &Server) {
    let mut client = server.client();
    let target = format!("/{}", "x".repeat(PATH_BYTES));
    for _ in 0..REQUESTS {
        assert_eq!(client.get(&target).status, 404);
    }
}

/// A refusal that is one line on stderr.
fn have_a_word_said(server: &Server, worker: u64) {
    let message = format!(r#"{{"op":"quit","workerId":{worker}}}"#);
    assert_eq!(server.control("POST", "/worker", &message).status, 400);
}

#[test]
fn a_disk_that_is_full_now_and_then_leaves_whole_lines_and_counts_the_others() {
    if !can_inject("a_disk_that_is_full_now_and_then_leaves_whole_lines_and_counts_the_others") {
        return;
    }
    let faults = Faults::for_later(
        "stdout.write=ENOSPC%3 stdout.write=EIO%5 stdout.write=EDQUOT%4 stdout.write=EINTR%6 stdout.write=short%2",
    );
    let shell = r#"exec "$@" >"$TMPDIR/out""#;
    let mut server = server_behind(shell, test_worker()).args(["w:1", "--json"]).start_under(&faults);
    server.wait_for_workers(1);
    let out = server.spool_dir().join("out");
    let lines = || -> Vec<String> {
        let text = std::fs::read_to_string(&out).expect("the log");
        text.lines().map(str::to_owned).collect()
    };
    let ends_with = |path: &str| lines().last().is_some_and(|line| line.contains(path));
    assert_eq!(server.get("/before").status, 404);
    server.wait_until("the lines so far", |_| ends_with("/before"));
    let before = lines().len();
    faults.turn_on();
    serve_many(&server);
    faults.turn_off();
    faults.assert_all_struck();
    // Another line shows that all before it were written or lost.
    assert_eq!(server.get("/after").status, 404);
    server.wait_until("the last line", |_| ends_with("/after"));
    let lines = lines();
    for line in &lines {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line:.300}"));
    }
    let dropped = metric(&server, DROPPED);
    assert!(dropped > 0.0);
    assert_eq!((lines.len() - before) as f64 + dropped, REQUESTS as f64 + 1.0);
    server.wait_until("the words", |server| {
        let words = server.stderr_text();
        words.contains("stdout cannot be written to") && words.contains("lines for stdout were dropped")
    });
    assert_sound(&mut server);
}

#[test]
fn a_full_disk_under_stderr_loses_each_line_once() {
    if !can_inject("a_full_disk_under_stderr_loses_each_line_once") {
        return;
    }
    let faults = Faults::for_later("stderr.write=ENOSPC");
    let shell = r#"exec "$@" 2>"$TMPDIR/err""#;
    let mut server = server_behind(shell, test_worker()).args(["w:1"]).start_under(&faults);
    server.wait_for_workers(1);
    faults.turn_on();
    have_a_word_said(&server, 77);
    server.wait_until("a lost line", |server| metric(server, DROPPED) > 0.0);
    // Each look is a turn of the loop, in which nothing more is lost but the word of the loss.
    for _ in 0..50 {
        assert!(metric(&server, DROPPED) <= 2.0, "{}", metric(&server, DROPPED));
    }
    faults.turn_off();
    have_a_word_said(&server, 78);
    let err = server.spool_dir().join("err");
    server.wait_until("the count", |_| {
        let words = std::fs::read_to_string(&err).expect("the file");
        words.contains("worker 78")
            && words.contains("lines for stderr were dropped")
            && !words.contains("worker 77")
    });
    assert_sound(&mut server);
}

#[test]
fn outputs_whose_readers_have_gone_stop_nobody() {
    if !can_inject("outputs_whose_readers_have_gone_stop_nobody") {
        return;
    }
    let faults = Faults::for_later("stdout.write=EPIPE@1 stderr.write=EPIPE@1");
    let mut server = Server::builder(test_worker()).args(["w:1", "--json"]).start_under(&faults);
    server.wait_for_workers(1);
    faults.turn_on();
    serve_many(&server);
    have_a_word_said(&server, 77);
    server.wait_until("both ends", |_| faults.all_hits().iter().all(|(_, hits)| *hits > 0));
    serve_many(&server);
    server.wait_until("the count", |server| metric(server, DROPPED) >= REQUESTS as f64);
    assert_sound(&mut server);
}
