//! Workers that die by SIGKILL at every point of an exchange: what the client gets, what the log says, and that the
//! pool is whole again.

use crate::support::{
    Answer, Client, Hold, RawWorker, Server, Signal, TEST_TIMEOUT, Then, Trouble, is_alive, test_worker,
    wait_until,
};
use crate::tools::{
    asking, kill_9, line_of, settled_lines, wait_for_busy_pid, wait_for_load, word_on_stderr,
};
use serde_json::Value;
use std::process::Command;

fn server(words: &[&str]) -> Server {
    Server::builder(test_worker()).args(words).arg("--json").start()
}

/// Waits until so many workers are joined of which none is that process.
fn wait_until_whole_without(server: &mut Server, count: usize, dead: i32) {
    server.wait_until("a whole pool without the dead worker", |server| {
        let details = server.details();
        let workers = details["workerList"].as_array().expect("a list of workers");
        workers.len() == count
            && workers.iter().all(|worker| worker["state"] == "idle" && worker["pid"] != dead)
    });
    assert_eq!(server.get("/ping").text(), "pong");
}

/// A line that says which worker was at fault, and how.
#[track_caller]
fn assert_blames(line: &Value, status: u16, pid: i32) {
    assert_eq!((&line["status"], &line["reason"]), (&status.into(), &"worker_died".into()), "{line}");
    assert_eq!(line["pid"], pid, "{line}");
    assert!(line["worker"].is_number(), "{line}");
}

#[test]
fn an_idle_worker_that_is_killed_costs_no_request() {
    let mut server = server(&["w:1"]);
    server.wait_for_workers(1);
    for _ in 0..3 {
        let pid: i32 = server.get("/pid").text().parse().expect("a pid");
        kill_9(pid);
        // At once, before anybody may have noticed.
        let response = server.get("/pid");
        assert_eq!(response.status, 200, "{}", response.text());
        assert_ne!(response.text(), pid.to_string());
        word_on_stderr(&mut server, &[&format!("pid {pid}"), "SIGKILL"]);
        wait_until_whole_without(&mut server, 1, pid);
    }
    assert!(settled_lines(&mut server).iter().all(|line| line["status"] == 200));
}

#[test]
fn an_idle_worker_that_is_killed_leaves_a_post_unharmed() {
    let mut server = server(&["w:2"]);
    server.wait_for_workers(2);
    let pid: i32 = server.get("/pid").text().parse().expect("a pid");
    kill_9(pid);
    word_on_stderr(&mut server, &[&format!("pid {pid}"), "SIGKILL"]);
    assert_eq!(server.client().post("/echo", b"a body").body, b"a body");
}

#[test]
fn a_worker_that_dies_in_a_post_is_a_502_and_no_second_try() {
    let mut server = server(&["w:2"]);
    server.wait_for_workers(2);
    let pid: i32 = server.get("/pid").text().parse().expect("a pid");
    let pids = server.worker_pids();
    let mut client = server.client();
    let response = client.post("/die", b"a body");
    assert_eq!(response.status, 502);
    assert!(!response.body.is_empty(), "a sentence for people");
    assert_blames(&line_of(&mut server, "/die"), 502, pid);
    word_on_stderr(&mut server, &[&format!("pid {pid}"), "SIGKILL"]);
    wait_until_whole_without(&mut server, 2, pid);
    let survivor = pids.into_iter().find(|other| *other != pid).expect("two workers");
    assert!(is_alive(survivor) && server.worker_pids().contains(&survivor), "nobody else was asked");
    // The client's connection was in no doubt.
    assert_eq!(client.get("/ping").text(), "pong");
}

#[test]
fn a_get_whose_worker_dies_before_the_first_byte_is_tried_once_more() {
    kill_in_a_get(&["w:2"]);
}

#[test]
fn a_get_whose_only_worker_dies_before_the_first_byte_waits_for_the_next() {
    kill_in_a_get(&["w:1"]);
}

fn kill_in_a_get(words: &[&str]) {
    let mut server = server(words);
    let count = server.announced_workers();
    server.wait_for_workers(count as u64);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    let pid = wait_for_busy_pid(&mut server);
    kill_9(pid);
    hold.let_go();
    let response = client.read_response();
    assert_eq!((response.status, response.text().as_str()), (200, "held"), "{}", server.stderr_text());
    let line = line_of(&mut server, "/hold");
    assert_eq!(line["status"], 200);
    assert_ne!(line["pid"], pid, "another one has answered: {line}");
    // Who failed, in what, and what was done about it.
    word_on_stderr(&mut server, &[&format!("pid {pid}"), "GET /hold", "once more", "worker_died"]);
    word_on_stderr(&mut server, &[&format!("pid {pid}"), "SIGKILL"]);
    wait_until_whole_without(&mut server, count, pid);
}

#[test]
fn there_is_no_third_try() {
    let mut server = server(&["w:3"]);
    server.wait_for_workers(3);
    let pids = server.worker_pids();
    assert_eq!(server.get("/die").status, 502);
    let line = line_of(&mut server, "/die");
    assert_eq!((&line["status"], &line["reason"]), (&502.into(), &"worker_died".into()), "{line}");
    wait_until("the death of two", || pids.iter().filter(|pid| is_alive(**pid)).count() == 1);
    server.wait_for_workers(3);
    assert_eq!(pids.iter().filter(|pid| is_alive(**pid)).count(), 1, "the third one was not asked");
}

#[test]
fn a_worker_that_dies_after_the_head_cuts_the_connection() {
    let mut server = server(&["w:1"]);
    server.wait_for_workers(1);
    let pid: i32 = server.get("/pid").text().parse().expect("a pid");
    let mut client = asking(&server, "/die-after-head");
    let broken = client.read_response_within(crate::support::TEST_TIMEOUT).expect_err("its end never came");
    assert_eq!((broken.response.status, broken.response.body), (200, b"the last words".to_vec()));
    assert!(matches!(broken.trouble, Trouble::Closed | Trouble::Reset), "{:?}", broken.trouble);
    let line = line_of(&mut server, "/die-after-head");
    assert_blames(&line, 200, pid);
    assert_eq!(line["length"], "the last words".len());
    wait_until_whole_without(&mut server, 1, pid);
}

#[test]
fn a_cut_answer_is_reset_for_an_http_1_0_client() {
    let mut server = server(&["w:1"]);
    server.wait_for_workers(1);
    let pid: i32 = server.get("/pid").text().parse().expect("a pid");
    let mut client = server.client();
    client.send("GET /die-after-head HTTP/1.0\r\n\r\n");
    let (bytes, trouble) = client.read_until_close();
    assert_eq!(trouble, Trouble::Reset, "a plain end would look whole: {}", String::from_utf8_lossy(&bytes));
    assert_blames(&line_of(&mut server, "/die-after-head"), 200, pid);
}

/// What a client of that version gets of an answer that a worker begins and does not end.
fn cut_answer(answer: &'static [u8], version: &str) -> (Vec<u8>, Trouble, Value) {
    let mut server = Server::without_workers(&["--json"]);
    let begin = |_: &_| Answer { writes: vec![answer.to_vec()], then: Then::Close };
    let _worker = RawWorker::join(&server, 7, begin);
    let mut client: Client = server.client();
    client.send(format!("GET /cut HTTP/1.{version}\r\nHost: a\r\n\r\n"));
    let (bytes, trouble) = client.read_until_close();
    let line = line_of(&mut server, "/cut");
    // Its process lives.
    assert_eq!((&line["worker"], &line["reason"]), (&7.into(), &"answer_cut".into()), "{line}");
    (bytes, trouble, line)
}

#[test]
fn a_cut_answer_with_a_length_stays_short_of_it() {
    const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort";
    let (bytes, _, line) = cut_answer(BEGUN, "1");
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("Content-Length: 9\r\n") && text.ends_with("\r\n\r\nshort"), "{text}");
    assert_eq!(line["length"], 5);
    assert_eq!(cut_answer(BEGUN, "0").1, Trouble::Reset);
}

#[test]
fn a_cut_answer_in_chunks_has_no_last_chunk() {
    const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n";
    let (bytes, _, _) = cut_answer(BEGUN, "1");
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.ends_with("5\r\nshort\r\n"), "{text}");
    assert_eq!(cut_answer(BEGUN, "0").1, Trouble::Reset);
}

#[test]
fn the_human_log_names_the_culprit_too() {
    let mut server = Server::builder(test_worker()).args(["w:1"]).start();
    server.wait_for_workers(1);
    let pid: i32 = server.get("/pid").text().parse().expect("a pid");
    assert_eq!(server.client().post("/die", b"a body").status, 502);
    let named = format!("worker 0 pid {pid}");
    server.wait_until("the access line", |server| {
        let lines = server.stdout_lines();
        lines
            .iter()
            .any(|line| ["POST /die → 502", "worker_died", &named].iter().all(|phrase| line.contains(phrase)))
    });
}

#[test]
fn a_panic_is_a_500_and_no_death() {
    let mut server = server(&["w:1"]);
    let pid = server.get("/pid").text();
    assert_eq!(server.get("/panic").status, 500);
    assert_eq!(server.get("/pid").text(), pid);
    let line = line_of(&mut server, "/panic");
    assert_eq!(line["status"], 500);
    assert!(line.get("reason").is_none(), "the answer is the app's: {line}");
    let id = line["id"].as_str().expect("an id").to_owned();
    word_on_stderr(&mut server, &[&id]);
}

#[test]
fn worker_that_ends_while_it_rests_from_a_busy_answer_is_not_met_again() {
    let server = Server::without_workers(&["--queue-timeout-ms=500"]);
    // It joins by itself, so that its process is known; and when it has ended, this test does not reap it.
    let mut worker = Command::new(test_worker())
        .env("TEST_RAW", "1")
        .env("WORKER_ID", "1")
        .env("RIP_VERSION", "1")
        .env("SOCKET_PATH", server.dir().join("raw.sock"))
        .env("RIP_CONTROL_SOCKET", server.control_socket())
        .spawn()
        .expect("a process can be started");
    wait_until("it has joined", || server.get("/").status == 200);
    // It waits for longer than the rest takes.
    assert_eq!(server.get("/busy?then=exit0").status, 504);
    assert_eq!(server.get("/").status, 504);
    assert_eq!(server.worker_pids(), Vec::<i32>::new(), "nobody else tells that it is gone");
    worker.wait().expect("a child can be waited for");
}

/// A worker that speaks the protocol by hand (`tests/worker/raw.rs`), in that version of it.
fn raw_worker(version: &str, words: &[&str]) -> Server {
    let mut server =
        Server::builder(test_worker()).env("TEST_RAW", version).args(words).arg("--json").start();
    server.wait_for_workers(1);
    server
}

/// What a client of that version gets of an answer that ends with its connection, and how its connection ends.
fn open_answer(server: &mut Server, then: &str, version: &str) -> (Vec<u8>, Trouble, Value) {
    let mut client = server.client();
    client.send(format!("GET /open/{version}?then={then} HTTP/1.{version}\r\nHost: a\r\n\r\n"));
    let (bytes, trouble) = client.read_until_close();
    (bytes, trouble, line_of(server, &format!("/open/{version}")))
}

#[test]
fn an_answer_that_ends_with_its_worker_is_whole_only_if_that_has_exited_0() {
    for (then, is_whole) in [("exit1", false), ("kill", false), ("exit0", true), ("close", true)] {
        let mut server = raw_worker("2", &["w:1"]);
        let reason = if is_whole { Value::Null } else { "worker_died".into() };
        let mut client = server.client();
        client.send(crate::tools::get(&format!("/open?then={then}")));
        let response = client.read_response_within(TEST_TIMEOUT);
        assert_eq!(response.is_ok(), is_whole, "{then}: {response:?}");
        let body = response.map_or_else(|broken| broken.response.body, |response| response.body);
        assert_eq!(body, b"some", "{then}");
        let line = line_of(&mut server, "/open");
        assert_eq!((&line["status"], &line["reason"]), (&200.into(), &reason), "{then}: {line}");
        // To an HTTP/1.0 client only a reset shows it.
        let (bytes, trouble, line) = open_answer(&mut server, then, "0");
        assert_eq!(trouble, if is_whole { Trouble::Closed } else { Trouble::Reset }, "{then}");
        assert!(!is_whole || bytes.ends_with(b"\r\n\r\nsome"), "{then}");
        assert_eq!(line["reason"], reason, "{then}: {line}");
    }
}

#[test]
fn an_answer_over_a_unix_socket_is_whole_though_its_worker_leaves_the_body_unread() {
    let mut server = raw_worker("2", &["w:1"]);
    let response = server.client().post("/open?then=close", &[b'b'; 300_000]);
    assert_eq!((response.status, response.text().as_str()), (200, "some"));
    assert_eq!(line_of(&mut server, "/open")["reason"], Value::Null);
}

#[test]
fn an_answer_that_a_reset_has_cut_does_not_look_whole() {
    const BYTES: usize = 3_000_000;
    let program = test_worker();
    let program = program.to_str().expect("a name");
    let builder = Server::builder(std::path::Path::new("/")).env("TEST_RAW", "port").args(["w:2", "--json"]);
    let mut server = builder.args(["--", program, "{port}"]).start();
    server.wait_for_workers(2);
    // Whether the kernel loses anything is a matter of moments.
    for _ in 0..8 {
        let mut client = server.client();
        let head =
            format!("POST /reset?bytes={BYTES} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n");
        client.send(head);
        client.send(vec![b'b'; 5_000_000]);
        match client.read_response_within(TEST_TIMEOUT) {
            Ok(response) => assert_eq!(response.body.len(), BYTES, "it looks whole"),
            Err(broken) => assert!(broken.response.body.len() <= BYTES),
        }
    }
}

#[test]
fn an_answer_that_a_process_has_left_behind_is_read_to_its_end() {
    const BYTES: usize = 300_000;
    let mut server = raw_worker("2", &["w:1"]);
    let worker = server.worker_pids()[0];
    let mut client = asking(&server, &format!("/left?bytes={BYTES}"));
    wait_until("it has ended", || !is_alive(worker));
    server.signal(Signal::SIGCONT);
    let response = client.read_response();
    assert_eq!((response.status, response.body.len()), (200, BYTES));
    assert_eq!(line_of(&mut server, "/left")["reason"], Value::Null);
}

#[test]
fn a_request_that_hangs_until_the_drains_end_is_told_so_once_and_not_tried_again() {
    let mut server = raw_worker("2", &["w:1", "--drain-timeout-ms=400"]);
    let mut hanging = asking(&server, "/none?then=hang");
    wait_for_load(&mut server, 1, 0);
    let old = server.worker_pids()[0];
    assert_eq!(server.control("POST", "/worker", r#"{"op":"reload"}"#).status, 200);
    let response = hanging.read_response();
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    let line = line_of(&mut server, "/none");
    assert_eq!((&line["reason"], &line["pid"]), (&"stopping".into(), &old.into()), "{line}");
    server.wait_until("the old one's end", |_| !is_alive(old));
    assert!(server.get("/").text() != old.to_string());
    assert_eq!(server.get("/overlaps").text(), "0", "nothing hangs in the new one");
}

#[test]
fn an_answer_that_its_server_ends_at_the_drains_end_does_not_look_whole() {
    let mut server = raw_worker("2", &["w:1", "--drain-timeout-ms=400"]);
    let mut new = asking(&server, "/open?then=hang");
    assert_eq!(new.read_head().status(), Ok(200));
    assert_eq!(server.control("POST", "/worker", r#"{"op":"reload"}"#).status, 200);
    let (bytes, _) = new.read_until_close();
    assert!(!bytes.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&bytes));
    let line = line_of(&mut server, "/open");
    assert_eq!((&line["status"], &line["reason"]), (&200.into(), &"stopping".into()), "{line}");
}

/// Each of them has died, and the server may not have heard of all of them.
#[test]
fn the_one_more_try_goes_to_a_worker_that_lives() {
    let mut server = Server::builder(test_worker()).args(["w:4", "--json", "--quarantine=off"]).start();
    // Each round's lives are short, so the waits before the next starts grow.
    for _ in 0..4 {
        server.wait_for_workers(4);
        let mut client = server.client();
        assert_eq!(client.get("/ping").status, 200);
        let pids = server.worker_pids();
        pids.iter().copied().for_each(kill_9);
        let response = client.get("/ping");
        assert_eq!(response.status, 200, "{}", server.stderr_text());
        server.wait_for_successors(&pids, 4);
    }
}

#[test]
fn a_living_worker_that_gives_no_answer_has_cut_it_and_does_not_rest() {
    let mut server = raw_worker("2", &["w:1"]);
    let mut client = server.client();
    assert_eq!(client.post("/none?then=close", b"").status, 502);
    assert_eq!(client.get("/asked").text(), "1", "it is asked whether it is idle, and serves on");
    let line = line_of(&mut server, "/none");
    assert_eq!((&line["status"], &line["reason"]), (&502.into(), &"answer_cut".into()), "{line}");
    word_on_stderr(&mut server, &["POST /none", "failed: answer_cut"]);
}
