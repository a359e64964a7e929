//! No request gets lost: while workers are replaced under load, when its client does not wait, or does not read.

use crate::support::{Answer, Client, RawWorker, Server, Signal, is_alive, length_and_checksum, test_worker};
use crate::tools::{Gate, asking, line_of, lines_of, settled_lines, wait_for_load};
use std::collections::HashSet;
use std::sync::Mutex;

#[test]
fn workers_that_are_replaced_under_load_lose_nothing() {
    const CONNECTIONS: usize = 8;
    const REQUESTS: usize = 500;
    const MIN_WORKERS: usize = 20;
    let mut server = Server::builder(test_worker()).args(["w:3", "r:20", "--no-access-log"]).start();
    server.wait_for_workers(3);
    let address = server.address();
    // At most about twenty requests a worker; how many more depends on how long its successor takes to start. So all
    // go on until so many workers were asked.
    let asked: Mutex<HashSet<String>> = Mutex::default();
    let goes_on =
        |index: usize| index < REQUESTS || asked.lock().expect("no panic holds the lock").len() < MIN_WORKERS;
    std::thread::scope(|scope| {
        let converse = || {
            // One connection for all: it must never be closed.
            let mut client = Client::connect(address);
            let ask = |index: usize| match index % 4 {
                0 => {
                    let body = index.to_string();
                    let response = client.post("/echo", body.as_bytes());
                    assert_eq!((response.status, response.text()), (200, body));
                }
                _ => {
                    let response = client.get("/pid");
                    assert_eq!(response.status, 200, "{}", response.text());
                    asked.lock().expect("no panic holds the lock").insert(response.text());
                }
            };
            (0..).take_while(|index| goes_on(*index)).for_each(ask);
        };
        (0..CONNECTIONS).for_each(|_| drop(scope.spawn(converse)));
    });
    server.wait_until("three idle workers", |server| {
        let details = server.details();
        let workers = details["workerList"].as_array().expect("a list of workers");
        workers.len() == 3 && workers.iter().all(|worker| worker["state"] == "idle")
    });
    let pids = server.worker_pids();
    let is_gone = |pid: &String| pids.iter().all(|other| other.to_string() != *pid);
    for pid in asked.into_inner().expect("no panic holds the lock").into_iter().filter(is_gone) {
        assert!(!is_alive(pid.parse().expect("a pid")), "{pid} was replaced and goes on");
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn a_put_whose_client_leaves_at_once_counts_each_time() {
    const TIMES: usize = 200;
    let mut server = Server::without_workers(&["--json"]);
    let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
    for count in 1..=TIMES {
        let mut client = server.client();
        client.send_request("PUT", "/count", "", format!("number {count}").as_bytes());
        drop(client);
        // An idle worker is part of the promise: its answer is out before the next one comes.
        server.wait_until("the request", |_| worker.answer_count() >= count);
    }
    let bodies: Vec<String> =
        worker.requests().iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    let expected: Vec<String> = (1..=TIMES).map(|count| format!("number {count}")).collect();
    assert_eq!(bodies, expected);
    assert_eq!(settled_lines(&mut server).len(), TIMES);
}

#[test]
fn a_put_whose_client_leaves_while_the_body_is_spooled_counts() {
    let mut server = Server::without_workers(&["--json"]);
    let worker = RawWorker::join(&server, 1, |_| Answer::ok(""));
    let body = vec![b'x'; 3_000_000];
    for count in 1..=10 {
        let mut client = server.client();
        client.send_request("PUT", "/count", "", &body);
        drop(client);
        server.wait_until("the request", |_| worker.answer_count() >= count);
    }
    assert!(worker.requests().iter().all(|request| request.body == body));
    assert_eq!(settled_lines(&mut server).len(), 10);
}

#[test]
fn a_reader_that_does_not_read_does_not_hold_the_worker() {
    const BYTES: usize = 30_000_000;
    let mut server = Server::builder(test_worker()).args(["w:1", "--json"]).start();
    let mut slow = asking(&server, &format!("/bytes?n={BYTES}"));
    // The only worker serves others meanwhile.
    for _ in 0..3 {
        assert_eq!(server.get("/ping").text(), "pong");
    }
    assert!(lines_of(&server, "/bytes").is_empty(), "it is not over for the slow client");
    let response = slow.read_response();
    assert_eq!((response.status, response.body.len()), (200, BYTES));
    assert!(response.body.iter().all(|&byte| byte == b'x'));
    let line = line_of(&mut server, "/bytes");
    assert_eq!((&line["status"], &line["length"]), (&200.into(), &BYTES.into()));
}

#[test]
fn large_bodies_arrive_whole_both_ways_without_filling_memory() {
    const BYTES: usize = 60_000_000;
    const MAX_KIB: u64 = 20 * 1024;
    let server = Server::builder(test_worker()).args(["w:1", "--max-body=300m"]).start();
    let body: Vec<u8> = (0..BYTES as u64).map(|index| ((index * 2_654_435_761) >> 13) as u8).collect();
    let mut client = server.client();
    assert_eq!(client.post("/sha", &body).text(), length_and_checksum(&body));
    assert!(server.rss_kib() < MAX_KIB, "{} KiB after the upload", server.rss_kib());
    // The same in chunks, without a length.
    client.send("POST /sha HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.chunks(1_000_000) {
        client.send(format!("{:x}\r\n", piece.len()));
        client.send(piece);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.read_response().text(), length_and_checksum(&body));
    for target in [format!("/bytes?n={BYTES}"), format!("/stream?n={BYTES}")] {
        let mut slow = asking(&server, &target);
        // With all of it in its hands while nobody reads.
        assert_eq!(server.get("/ping").text(), "pong");
        assert!(server.rss_kib() < MAX_KIB, "{} KiB at {target}", server.rss_kib());
        assert_eq!(slow.read_response().body.len(), BYTES);
        assert!(server.rss_kib() < MAX_KIB, "{} KiB after {target}", server.rss_kib());
    }
    assert!(std::fs::read_dir(server.spool_dir()).expect("its TMPDIR").next().is_none(), "a file is left");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_answer_costs_nobody_anything() {
    let mut server = Server::builder(test_worker()).args(["w:1", "--json"]).start();
    let pid = server.get("/pid").text();
    for _ in 0..5 {
        let mut client = asking(&server, "/bytes?n=20000000");
        assert_eq!(client.read_head().status(), Ok(200));
        drop(client);
        assert_eq!(server.get("/ping").text(), "pong");
    }
    assert_eq!(server.get("/pid").text(), pid, "the same worker goes on");
    server.wait_until("five lines", |server| lines_of(server, "/bytes").len() == 5);
    for line in lines_of(&server, "/bytes") {
        assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()), "{line}");
    }
}

#[test]
fn memory_of_those_who_left_is_not_kept() {
    const ROUNDS: usize = 25;
    const AT_ONCE: usize = 40;
    /// Near the largest head that is kept for reuse.
    const COOKIE_BYTES: usize = 3500;
    let mut server = Server::without_workers(&["--json"]);
    let gate = Gate::default();
    let join = |id| {
        let gate = gate.clone();
        RawWorker::join(&server, id, move |request| gate.pass(request))
    };
    let _workers: Vec<_> = (1..=AT_ONCE as u64).map(join).collect();
    let cookie = format!("Cookie: {}\r\n", "c".repeat(COOKIE_BYTES));
    let mut leave = |round: usize| {
        let target = format!("/left{round}");
        let mut clients: Vec<_> = (0..AT_ONCE).map(|_| server.client()).collect();
        for client in &mut clients {
            client.send_request("GET", &target, &cookie, b"");
        }
        wait_for_load(&mut server, AT_ONCE, 0);
        clients.into_iter().for_each(crate::support::Client::reset);
        server.wait_until("their lines", |server| lines_of(server, &target).len() == AT_ONCE);
        gate.open_for(&target);
        wait_for_load(&mut server, 0, 0);
        server.rss_kib()
    };
    let first_kib = (0..5).map(&mut leave).last().expect("some rounds");
    let last_kib = (5..ROUNDS).map(&mut leave).last().expect("some rounds");
    let heads_kib = ((ROUNDS - 5) * AT_ONCE * COOKIE_BYTES) as u64 / 1024;
    assert!(last_kib < first_kib + heads_kib / 4, "{first_kib} KiB have become {last_kib} KiB");
}
