//! Requests in which workers die: refused after the second death, and nobody else is.

use crate::load::{self, PATIENT};
use crate::support::{Server, TEST_TIMEOUT, test_worker};
use std::time::Instant;

fn metric(server: &Server, line: &str) -> u64 {
    let text = server.control("GET", "/metrics", "").text();
    let value = text.lines().find_map(|other| other.strip_prefix(line)).expect("the metric");
    value.trim().parse().expect("a number")
}

#[test]
fn a_poison_request_ends_two_workers_and_costs_nobody_else_anything() {
    let mut server = Server::builder(test_worker()).arg("w:4").args(PATIENT).start();
    server.wait_for_workers(4);
    let load = load::Load::of(&server, "/sleep?ms=2", 2, 1);
    let mut client = server.client();
    // It is tried twice; the second death is known a moment after its 502.
    assert_eq!(client.get("/die?now").status, 502);
    server.wait_until("the deaths are known", |server| !server.details()["quarantine"][0].is_null());
    const REFUSED: usize = 20;
    for _ in 0..REFUSED {
        assert_eq!(client.get("/die?now").status, 503);
    }
    load.wait_for_answers(20);
    load.end();
    let crashes = metric(&server, r#"rip_worker_restarts_total{reason="crash"}"#);
    assert_eq!(crashes, 2, "{}", server.stderr_text());
    assert_eq!(metric(&server, "rip_quarantined_requests"), 1);
    assert_eq!(metric(&server, "rip_quarantines_total"), 1);
    let details = server.details();
    let row = &details["quarantine"][0];
    assert_eq!((&row["request"], &row["deaths"]), (&"GET /die".into(), &2.into()), "{details}");
    assert_eq!(row["workers"].as_array().map(Vec::len), Some(2), "{details}");
    assert_eq!(row["refused"], REFUSED, "{details}");
    let table = server.verb(["status"]).stdout;
    assert!(table.contains("refused  GET /die: 2 workers died in it"), "{table}");
    assert!(load::has_line(&server, "such requests get 503 quarantined"), "{}", server.stderr_text());
    // Another request to the same path is another request.
    assert_eq!(server.client().get("/die?later").status, 502);
    // New code may do better.
    assert_eq!(server.verb(["reload"]).code, 0);
    assert_eq!(metric(&server, "rip_quarantined_requests"), 0);
    assert_eq!(client.get("/die?now").status, 502);
}

#[test]
fn a_post_is_known_by_its_body() {
    let mut server = Server::builder(test_worker()).arg("w:2").args(PATIENT).start();
    server.wait_for_workers(2);
    let mut client = server.client();
    for _ in 0..2 {
        assert_eq!(client.post("/die", b"poison").status, 502);
    }
    server.wait_until("both deaths are known", |server| !server.details()["quarantine"][0].is_null());
    assert_eq!(client.post("/die", b"poison").status, 503);
    assert_eq!(client.post("/die", b"another").status, 502);
}

#[test]
fn when_all_workers_hang_at_once_no_request_is_to_blame() {
    let words = ["w:2", "--read-timeout-ms=100", "--drain-timeout-ms=200", "--no-access-log"];
    let server = Server::builder(test_worker()).args(words).start();
    let address = server.address();
    let begun = Instant::now();
    // As if all of them waited for a database.
    while metric(&server, r#"rip_worker_restarts_total{reason="stuck"}"#) < 4 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| crate::support::Client::connect(address).get("/sleep?ms=60000").status);
            }
        });
        assert!(begun.elapsed() < TEST_TIMEOUT, "{}", server.stderr_text());
    }
    assert_eq!(metric(&server, "rip_quarantines_total"), 0, "{}", server.stderr_text());
}

#[test]
fn a_request_that_hangs_while_others_are_answered_is_to_blame() {
    let words = ["w:3", "--read-timeout-ms=2000", "--drain-timeout-ms=1000", "--no-access-log"];
    let mut server = Server::builder(test_worker()).args(words).start();
    server.wait_for_workers(3);
    let load = load::Load::of(&server, "/ping", 1, 0);
    let mut client = server.client();
    for _ in 0..2 {
        assert_eq!(client.get("/sleep?ms=60000").status, 504);
    }
    server.wait_until("two stuck workers are known", |server| !server.details()["quarantine"][0].is_null());
    assert_eq!(client.get("/sleep?ms=60000").status, 503);
    load.end();
}
