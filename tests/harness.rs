//! The tests' own tools: whoever builds on them should know that they can see and that they can fail.

mod support;

use support::{Answer, Client, RawWorker, Server, Signal, Trouble};

#[test]
fn a_server_with_the_test_worker_answers() {
    let mut server = Server::with_test_worker(&["w:2"]);
    assert_eq!((server.app(), server.announced_workers()), ("test-worker", 2));
    server.wait_for_workers(2);
    let mut client = server.client();
    assert_eq!(client.get("/ping").text(), "pong");
    assert_eq!(client.post("/echo", b"hello").body, b"hello");
    assert_eq!(client.post("/sha", b"hello").text(), support::length_and_checksum(b"hello"));
    assert_eq!(client.get("/bytes?n=200000").body.len(), 200_000);
    assert_eq!(client.get("/stream?n=200000").body.len(), 200_000);
    assert_eq!(client.get("/chunks?n=3&ms=1").text(), "chunk 0\nchunk 1\nchunk 2\n");
    assert_eq!(client.get("/panic").status, 500);
    assert!(client.get("/env").text().contains("NODE_ENV=production"));
    let pid: i32 = client.get("/pid").text().parse().expect("a pid");
    assert!(server.worker_pids().contains(&pid));
    assert!(server.rss_kib() > 0);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert!(!support::is_alive(pid));
    assert!(server.stdout_lines().iter().any(|line| line.contains("/ping")), "{:?}", server.stdout_lines());
}

#[test]
fn a_verb_finds_its_server() {
    let server = Server::with_test_worker(&["w:1"]);
    let output = server.verb(["status"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(support::run(["--no-such-flag"]).code, 2);
}

#[test]
fn a_carried_server_is_its_own_app() {
    let server = Server::carried_by(support::test_worker()).arg("w:1").start();
    assert_eq!(server.get("/ping").text(), "pong");
    assert_eq!(server.verb(["stop"]).code, 0);
}

#[test]
fn the_first_raw_worker_to_join_is_asked_first() {
    let server = Server::without_workers(&[]);
    let first = RawWorker::join(&server, 1, |_| Answer::ok("first"));
    let last = RawWorker::join(&server, 2, |_| Answer::ok("last"));
    // Who joins goes to the bottom of the stack.
    assert_eq!(server.get("/").text(), "first");
    first.quit();
    assert_eq!(server.get("/").text(), "last");
    assert_eq!((first.request_count(), last.request_count()), (1, 1));
    assert!(first.faults().is_empty());
}

#[test]
fn a_broken_answer_is_seen_as_broken() {
    let server = Server::without_workers(&[]);
    let cut = |_: &support::WorkerRequest| Answer {
        writes: vec![b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_vec()],
        then: support::Then::Close,
    };
    let _worker = RawWorker::join(&server, 1, cut);
    let mut client = server.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let broken = client.read_response_within(support::TEST_TIMEOUT).expect_err("it is short");
    assert!(matches!(broken.trouble, Trouble::Closed | Trouble::Reset));
    assert_eq!((broken.response.status, broken.response.body), (200, b"short".to_vec()));
    assert!(Client::connect(server.address()).wire.pending_bytes().is_empty());
}

#[test]
#[ignore = "played by the next test"]
fn lacks_a_program() {
    support::skip::skip("a probe", "there is no such program");
    support::skip::skip("a probe", "there is no such program");
}

#[test]
fn a_skipped_test_is_a_line_at_the_end_and_a_failure_where_all_is_wanted() {
    let play = |all: &str| {
        let mut second = std::process::Command::new(std::env::current_exe().expect("this program"));
        second.args(["lacks_a_program", "--ignored", "--exact"]).env("RIP_TEST_ALL", all);
        let output = second.output().expect("this program runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (passes, stderr) = play("");
    assert!(passes, "{stderr}");
    assert_eq!(stderr, "skipped: lacks_a_program: a probe: there is no such program\n");
    let (passes, stderr) = play("1");
    assert!(
        !passes && stderr.ends_with("skipped: lacks_a_program: a probe: there is no such program\n"),
        "{stderr}"
    );
}
