//! Files of what waits that cannot be made, written or read back: the request that is hit is refused or cut, at once
//! and with its reason, and no other.

use crate::support::{Client, Faults, Server, Trouble, length_and_checksum, test_worker};
use crate::tools::{asking, line_of, lines_of};
use crate::workload::{assert_sound, body};
use crate::{can_inject, metric};

const LARGE: usize = 300_000;
/// More than the kernel's buffers between server and client take.
const HUGE: usize = 30_000_000;
const HOLD_BACKS: &str = "rip_spool_hold_backs_total";
const REFUSED: &str = "rip_refusals_total{reason=\"spool_full\"}";

fn start(faults: &Faults) -> Server {
    let mut server = Server::builder(test_worker()).args(["w:1", "--json"]).start_under(faults);
    server.wait_for_workers(1);
    server
}

/// A client that has asked for a huge answer and taken nothing of it: all of it has come from the worker.
fn not_taking(server: &mut Server) -> Client {
    let answers = |server: &Server| server.details()["workerList"][0]["requests"].as_u64().expect("a number");
    let before = answers(server);
    let client = asking(server, &format!("/bytes?n={HUGE}"));
    server.wait_until("the worker's answer", |server| answers(server) > before);
    client
}

fn assert_serves(kept: &mut Client, server: &Server) {
    assert_eq!(kept.get("/ping").text(), "pong");
    let large = body(LARGE);
    assert_eq!(server.client().post("/sha", &large).text(), length_and_checksum(&large));
}

#[test]
fn a_body_that_finds_no_room_is_refused_and_nothing_else() {
    if !can_inject("a_body_that_finds_no_room_is_refused_and_nothing_else") {
        return;
    }
    let rules =
        ["spool.write=ENOSPC@2", "spool.write=EIO@1", "spool.write=EDQUOT@3", "spool.open=ENOSPC@1x2"];
    let faults = Faults::for_later(&rules.join(" "));
    let mut server = start(&faults);
    let mut kept = server.client();
    for (index, rule) in rules.iter().enumerate() {
        faults.turn_one(rule, true);
        let path = format!("/large{index}");
        let mut client = server.client();
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
        let _ = client.try_send([head.as_bytes(), &body(LARGE)].concat());
        assert_eq!(client.read_response().status, 503, "{rule}");
        let line = line_of(&mut server, &path);
        assert_eq!(line["reason"], "spool_full", "{rule}: {line}");
        assert!(line.get("worker").is_none(), "no worker has seen it: {line}");
        faults.turn_one(rule, false);
        assert_serves(&mut kept, &server);
    }
    faults.assert_all_struck();
    assert_eq!(metric(&server, REFUSED), rules.len() as f64);
    drop(kept);
    assert_sound(&mut server);
}

#[test]
fn a_body_that_finds_no_descriptor_waits_for_one() {
    if !can_inject("a_body_that_finds_no_descriptor_waits_for_one") {
        return;
    }
    let rules = ["spool.open=EMFILE@1x4", "spool.open=ENFILE@1x4"];
    let faults = Faults::for_later(&rules.join(" "));
    let mut server = start(&faults);
    for rule in rules {
        faults.turn_one(rule, true);
        let large = body(LARGE);
        assert_eq!(server.client().post("/sha", &large).text(), length_and_checksum(&large), "{rule}");
        faults.turn_one(rule, false);
        // A connection that is quiet meanwhile may be closed to make room.
        assert_serves(&mut server.client(), &server);
    }
    faults.assert_all_struck();
    assert_eq!(metric(&server, REFUSED), 0.0);
    assert_sound(&mut server);
}

#[test]
fn a_folder_that_fails_is_no_folder() {
    if !can_inject("a_folder_that_fails_is_no_folder") {
        return;
    }
    let faults = Faults::new("spool.open=EIO%2 spool.open=EACCES");
    let mut server = start(&faults);
    let mut kept = server.client();
    assert_serves(&mut kept, &server);
    faults.assert_all_struck();
    drop(kept);
    assert_sound(&mut server);
}

#[test]
fn without_a_folder_and_without_memory_a_body_is_refused() {
    if !can_inject("without_a_folder_and_without_memory_a_body_is_refused") {
        return;
    }
    for (error, status) in [("ENOMEM", 503), ("EMFILE", 200)] {
        let faults = Faults::for_later(&format!("spool.memfd={error}@1"));
        let builder = Server::builder(test_worker()).args(["w:1", "--json"]).env("TMPDIR", "/no/such/folder");
        let mut server = builder.start_under(&faults);
        server.wait_for_workers(1);
        let mut kept = server.client();
        faults.turn_on();
        // A descriptor is waited for.
        assert_eq!(server.client().post("/sha", &body(LARGE)).status, status, "{error}");
        let reason = line_of(&mut server, "/sha")["reason"].clone();
        assert_eq!(reason == "spool_full", status == 503, "{error}: {reason}");
        assert_serves(&mut kept, &server);
        faults.assert_all_struck();
        drop(kept);
        assert_sound(&mut server);
    }
}

#[test]
fn a_file_system_without_sendfile_is_copied_from() {
    if !can_inject("a_file_system_without_sendfile_is_copied_from") {
        return;
    }
    let rule = "spool.send=EINVAL";
    let faults = Faults::new(rule);
    let mut server = start(&faults);
    let mut kept = server.client();
    assert_serves(&mut kept, &server);
    let bodies = faults.hits(rule);
    assert!(bodies > 0);
    let mut slow = not_taking(&mut server);
    let response = slow.read_response();
    assert!(response.body.len() == HUGE && response.body.iter().all(|byte| *byte == b'x'));
    assert!(faults.hits(rule) > bodies);
    drop(kept);
    assert_sound(&mut server);
}

#[test]
fn a_body_that_cannot_be_read_back_is_refused_at_once() {
    if !can_inject("a_body_that_cannot_be_read_back_is_refused_at_once") {
        return;
    }
    let faults = Faults::for_later("spool.send=EIO@1 spool.read=EIO@1");
    let mut server = start(&faults);
    let mut kept = server.client();
    faults.turn_on();
    // Long before any timeout: each of them is a minute.
    assert_eq!(server.client().post("/sha", &body(LARGE)).status, 503);
    faults.assert_all_struck();
    let line = line_of(&mut server, "/sha");
    assert_eq!((&line["reason"], &line["worker"]), (&"spool_full".into(), &0.into()), "{line}");
    assert_serves(&mut kept, &server);
    assert_eq!(metric(&server, REFUSED), 1.0);
    drop(kept);
    assert_sound(&mut server);
}

#[test]
fn an_answer_that_cannot_be_read_back_is_cut() {
    if !can_inject("an_answer_that_cannot_be_read_back_is_cut") {
        return;
    }
    let faults = Faults::for_later("spool.send=EIO spool.read=EIO");
    let mut server = start(&faults);
    let mut kept = server.client();
    let mut client = not_taking(&mut server);
    faults.turn_on();
    let (bytes, trouble) = client.read_until_close();
    assert_eq!(trouble, Trouble::Reset);
    assert!(bytes.len() < HUGE);
    server.wait_until("its line", |server| lines_of(server, "/bytes").len() == 1);
    assert_eq!(metric(&server, REFUSED), 1.0);
    faults.turn_off();
    assert_serves(&mut kept, &server);
    faults.assert_all_struck();
    let lines = lines_of(&server, "/bytes");
    assert!(lines.iter().all(|line| line["reason"] == "spool_full"), "{lines:?}");
    drop(kept);
    assert_sound(&mut server);
}

#[test]
fn an_answer_that_finds_no_room_holds_its_worker_back_and_is_whole() {
    if !can_inject("an_answer_that_finds_no_room_holds_its_worker_back_and_is_whole") {
        return;
    }
    // Where memory can stand in for the folder, the worker is free.
    let cases = [
        ("spool.write=EIO@3", false),
        ("spool.open=ENOSPC", false),
        ("spool.open=EMFILE", true),
        ("spool.write=ENOSPC", true),
        ("spool.write=EDQUOT", true),
    ];
    let rules = cases.map(|(rule, _)| rule);
    let faults = Faults::for_later(&rules.join(" "));
    let mut server = start(&faults);
    for (rule, is_held_back) in cases {
        faults.turn_one(rule, true);
        let before = metric(&server, HOLD_BACKS);
        let mut slow = match is_held_back {
            true => asking(&server, &format!("/bytes?n={HUGE}")),
            false => not_taking(&mut server),
        };
        server.wait_until("a worker that is held back", |server| {
            !is_held_back || metric(server, HOLD_BACKS) > before
        });
        let response = slow.read_response();
        assert!(response.body.len() == HUGE && response.body.iter().all(|byte| *byte == b'x'), "{rule}");
        faults.turn_one(rule, false);
        // A connection that is quiet meanwhile may be closed to make room for a file.
        assert_serves(&mut server.client(), &server);
    }
    faults.assert_all_struck();
    assert_eq!(metric(&server, REFUSED), 0.0);
    assert_sound(&mut server);
}
