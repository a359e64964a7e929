//! Clients that do not take their answers, or only slowly.

use crate::support::{Client, Server, Trouble, comes_true, test_worker};
use crate::tools::{asking, line_of, lines_of};
use std::time::{Duration, Instant};

/// More than all socket buffers on the way hold.
const LARGE_BYTES: usize = 60_000_000;
const MAX_KIB: u64 = 20 * 1024;

fn server(words: &[&str]) -> Server {
    let mut server = Server::builder(test_worker()).args(["w:1", "--json"]).args(words).start();
    server.wait_for_workers(1);
    server
}

/// How many open files without a name the server has in its TMPDIR.
fn open_spools(server: &Server) -> usize {
    let folder = server.spool_dir();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the server lives");
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|path| path.starts_with(&folder)).count()
}

fn has_named_spools(server: &Server) -> bool {
    std::fs::read_dir(server.spool_dir()).expect("its TMPDIR").next().is_some()
}

#[test]
fn a_client_that_never_reads_holds_no_worker_and_no_memory_and_is_cut() {
    const TIMEOUT: Duration = Duration::from_millis(4000);
    let mut server = server(&["--idle-timeout-ms=4000"]);
    let begun = Instant::now();
    let mut greedy = asking(&server, &format!("/bytes?n={LARGE_BYTES}"));
    // The only worker serves the next while most of the answer waits in a file.
    assert_eq!(server.get("/ping").text(), "pong");
    assert!(open_spools(&server) > 0, "the answer waits in files");
    assert!(!has_named_spools(&server), "it was unlinked at once");
    assert!(server.rss_kib() < MAX_KIB, "{} KiB", server.rss_kib());
    assert!(lines_of(&server, "/bytes").is_empty(), "it is not over yet");

    let line = line_of(&mut server, "/bytes");
    assert!(begun.elapsed() >= TIMEOUT, "too early: {:?}", begun.elapsed());
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()), "{line}");
    server.wait_until("the file's end", |server| open_spools(server) == 0);
    // What it gets when it looks at last does not seem whole.
    let broken = greedy.read_response_within(Duration::from_secs(20)).expect_err("it was cut");
    assert_eq!(broken.trouble, Trouble::Reset);
    assert!(broken.response.body.len() < LARGE_BYTES);
}

#[test]
fn a_file_goes_with_its_client() {
    let mut server = server(&[]);
    let greedy = asking(&server, &format!("/stream?n={LARGE_BYTES}"));
    assert_eq!(server.get("/ping").text(), "pong");
    assert!(open_spools(&server) > 0);
    drop(greedy);
    server.wait_until("the file's end", |server| open_spools(server) == 0);
    let line = line_of(&mut server, "/stream");
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()), "{line}");
}

#[test]
fn a_client_that_takes_bytes_now_and_then_gets_them_all() {
    const PIECE: usize = 1_000_000;
    let mut server = server(&["--idle-timeout-ms=3000"]);
    let begun = Instant::now();
    let mut slow = asking(&server, "/bytes?n=20000000");
    assert_eq!(slow.read_head().header("content-length"), Some("20000000"));
    for _ in 0..20 {
        let is_cut = |line: &serde_json::Value| line["reason"] == "client_gone";
        let pause = Duration::from_millis(180);
        assert!(
            !comes_true(pause, || lines_of(&server, "/bytes").iter().any(is_cut)),
            "it is slow, not gone"
        );
        assert!(slow.read_exactly(PIECE).iter().all(|&byte| byte == b'x'));
    }
    assert!(begun.elapsed() > Duration::from_millis(3000), "longer than the timeout in all");
    let line = line_of(&mut server, "/bytes");
    assert_eq!((&line["status"], &line["length"]), (&200.into(), &20_000_000.into()), "{line}");
    assert_eq!(slow.get("/ping").text(), "pong");
}

#[test]
fn many_clients_that_never_read_leave_memory_flat() {
    const GREEDY: usize = 20;
    let mut server = server(&[]);
    let greedy: Vec<Client> = (0..GREEDY).map(|_| asking(&server, "/bytes?n=8000000")).collect();
    server.wait_until("all answers are out of the worker", |server| {
        let details = server.details();
        details["workerList"][0]["requests"] == GREEDY && details["queue"]["now"] == 0
    });
    assert_eq!(server.get("/ping").text(), "pong");
    assert!(server.rss_kib() < MAX_KIB, "{} KiB", server.rss_kib());
    // Each of them gets all of it, once it reads.
    for mut client in greedy {
        assert_eq!(client.read_response().body.len(), 8_000_000);
    }
}

#[test]
fn a_small_answer_that_nobody_takes_is_no_trouble() {
    let mut server = server(&[]);
    for _ in 0..50 {
        drop(asking(&server, "/ping"));
    }
    assert_eq!(server.get("/ping").text(), "pong");
    server.wait_until("a line each", |server| lines_of(server, "/ping").len() == 51);
}
