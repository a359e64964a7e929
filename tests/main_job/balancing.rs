//! Who gets which worker, who waits, and who is refused.

use crate::support::{Answer, Client, RawWorker, Server, test_worker, wait_until};
use crate::tools::{Gate, asking, get, line_of, lines_of, settled_lines, wait_for_load};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Workers that hold each request at a gate, and answer with their number.
fn gated_workers(server: &Server, count: u64) -> (Gate, Vec<RawWorker>) {
    let gate = Gate::default();
    let join = |id| {
        let gate = gate.clone();
        RawWorker::join(server, id, move |request| gate.pass(request))
    };
    let workers = (1..=count).map(join).collect();
    (gate, workers)
}

#[test]
fn a_hundred_requests_in_a_row_go_to_one_worker_of_four() {
    let mut server = Server::builder(test_worker()).args(["w:4"]).start();
    server.wait_for_workers(4);
    let mut client = server.client();
    let mut pids = HashSet::new();
    for index in 0..100 {
        // Half of them over one connection, half over new ones.
        let response = if index % 2 == 0 { client.get("/pid") } else { server.get("/pid") };
        pids.insert(response.text());
    }
    assert_eq!(pids.len(), 1, "{pids:?}");
}

#[test]
fn of_workers_freed_one_after_another_the_last_is_asked_next() {
    let mut server = Server::without_workers(&[]);
    let (gate, _workers) = gated_workers(&server, 4);
    let mut held = Vec::new();
    for index in 0..4 {
        held.push(asking(&server, &format!("/held{index}")));
        wait_for_load(&mut server, index + 1, 0);
    }
    let mut freed = Vec::new();
    for index in [2, 0, 3, 1] {
        gate.open_for(&format!("/held{index}"));
        freed.push(held[index].read_response().text());
    }
    assert_eq!(freed.iter().collect::<HashSet<_>>().len(), 4, "each had one: {freed:?}");
    // Taken from the stack one after another: the other way round.
    let mut second: Vec<_> = (0..4)
        .map(|index| {
            let client = asking(&server, &format!("/again{index}"));
            wait_for_load(&mut server, index + 1, 0);
            client
        })
        .collect();
    gate.open();
    let taken: Vec<String> = second.iter_mut().map(|client| client.read_response().text()).collect();
    freed.reverse();
    assert_eq!(taken, freed);
}

#[test]
fn a_full_queue_refuses_at_once_with_retry_after() {
    let mut server = Server::builder("/bin/true").args(["w:0", "--max-queue=4", "--json"]).start();
    let (gate, workers) = gated_workers(&server, 2);
    let mut clients: Vec<_> = (0..11).map(|_| asking(&server, "/held")).collect();
    // The five are refused while all others are still held.
    let mut refused = Vec::new();
    server.wait_until("five refusals", |_| {
        clients.retain_mut(|client| match client.read_response_within(Duration::from_millis(1)) {
            Ok(response) => {
                refused.push(response);
                false
            }
            Err(_) => true,
        });
        refused.len() == 5
    });
    for response in &refused {
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!(!response.body.is_empty(), "a sentence for people");
        assert!(!response.head.has("connection"), "nothing is in doubt: the connection stays open");
    }
    wait_for_load(&mut server, 2, 4);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!(workers.iter().map(RawWorker::request_count).sum::<usize>(), 6);
    let lines = settled_lines(&mut server);
    assert_eq!(lines.len(), 11);
    let full = lines.iter().filter(|line| line["reason"] == "queue_full" && line["status"] == 503);
    assert_eq!(full.count(), 5);
}

#[test]
fn without_a_queue_nobody_waits() {
    let mut server = Server::without_workers(&["--max-queue=0"]);
    let (gate, _workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    assert_eq!(server.get("/").status, 503);
    gate.open();
    assert_eq!(held.read_response().status, 200);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_queued_request_gets_504_at_its_deadline_and_is_never_dispatched() {
    const DEADLINE: Duration = Duration::from_millis(300);
    let mut server = Server::without_workers(&["--queue-timeout-ms=300", "--json"]);
    let (gate, workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let context = Instant::now();
    let late = asking(&server, "/late").read_response();
    let waited = context.elapsed();
    assert_eq!(late.status, 504);
    assert!(waited >= DEADLINE, "too early: {waited:?}");
    let line = line_of(&mut server, "/late");
    assert_eq!((&line["status"], &line["reason"]), (&504.into(), &"queue_timeout".into()));
    assert!(line["queueSeconds"].as_f64().is_some_and(|seconds| seconds >= 0.3), "{line}");
    assert!(line.get("worker").is_none(), "no worker was asked: {line}");
    gate.open();
    assert_eq!(held.read_response().status, 200);
    assert_eq!(server.get("/next").status, 200);
    let targets: Vec<String> = workers[0].requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/held", "/next"]);
}

/// More than the server takes up in one turn of its loop.
const A_CROWD: usize = 500;

#[test]
fn a_crowd_that_is_due_at_once_is_refused_whole() {
    // All must be there before the first is due, which takes a slow machine longer.
    let mut times_ms = [1500, 6000, 30_000].into_iter();
    assert!(times_ms.any(is_crowd_refused_whole));
}

/// `false`: the first was due before the last was there.
fn is_crowd_refused_whole(timeout_ms: u64) -> bool {
    let mut server = Server::without_workers(&[&format!("--queue-timeout-ms={timeout_ms}"), "--json"]);
    let (gate, workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let mut crowd: Vec<_> = (0..A_CROWD).map(|_| asking(&server, "/late")).collect();
    let (mut waiting, mut is_late) = (0, false);
    server.wait_until("all wait", |server| {
        let now = server.details()["queue"]["now"].as_u64().expect("a number") as usize;
        is_late = now < waiting;
        waiting = now;
        is_late || waiting == A_CROWD
    });
    if is_late {
        return false;
    }
    // While the server stands still, all of them become due, and some leave.
    server.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let leavers = crowd.split_off(A_CROWD - 50);
    leavers.into_iter().for_each(Client::reset);
    server.wait_until("all to be due", |_| stopped.elapsed() > Duration::from_millis(timeout_ms + 100));
    server.signal(Signal::SIGCONT);
    for client in &mut crowd {
        assert_eq!(client.read_response().status, 504);
    }
    assert_eq!(server.get("/server").status, 200);
    gate.open();
    assert_eq!(held.read_response().status, 200);
    assert_eq!(crowd[0].get("/next").status, 200, "the connection stays open");
    assert_eq!(workers[0].request_count(), 2);
    let lines = settled_lines(&mut server);
    let late: Vec<_> = lines.iter().filter(|line| line["path"] == "/late").collect();
    assert_eq!(late.len(), A_CROWD, "one line each");
    assert!(late.iter().all(|line| line["status"] == 504 || line["status"] == 499));
    true
}

#[test]
fn a_crowd_that_comes_at_once_is_accepted_whole() {
    let server = Server::without_workers(&[]);
    server.signal(Signal::SIGSTOP);
    let mut crowd: Vec<_> = (0..A_CROWD).map(|_| asking(&server, "/server")).collect();
    server.signal(Signal::SIGCONT);
    for client in &mut crowd {
        assert_eq!(client.read_response().status, 200);
    }
}

#[test]
fn a_queue_timeout_of_zero_asks_an_idle_worker_or_none() {
    let mut server = Server::without_workers(&["--queue-timeout-ms=0"]);
    let (gate, _workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    assert_eq!(server.get("/").status, 504);
    gate.open();
    assert_eq!(held.read_response().status, 200);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_client_that_left_while_it_waited_is_never_seen_by_a_worker() {
    let mut server = Server::without_workers(&["--json"]);
    let (gate, workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let closed = asking(&server, "/closed");
    let reset = asking(&server, "/reset");
    let mut closing = server.client();
    closing.send("GET /closing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut posted = server.client();
    posted.send_request("POST", "/posted", "", b"a body");
    let mut stays = asking(&server, "/stays");
    wait_for_load(&mut server, 1, 5);
    drop(closed);
    reset.reset();
    drop(closing);
    drop(posted);
    wait_for_load(&mut server, 1, 1);
    gate.open();
    assert_eq!((held.read_response().status, stays.read_response().status), (200, 200));
    let targets: Vec<String> = workers[0].requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/held", "/stays"]);
    for path in ["/closed", "/reset", "/closing", "/posted"] {
        let line = line_of(&mut server, path);
        assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()), "{line}");
        assert!(line.get("worker").is_none(), "{line}");
    }
}

/// Waits until the client has been asked once whether it is there.
fn wait_for_100(client: &mut Client) {
    wait_until("a 100", || {
        let broken = client.read_response_within(Duration::from_millis(1)).expect_err("nobody answers");
        broken.response.interim.len() == 1
    });
}

/// Whatever its `Connection` says: who waits and has sent a FIN is asked once by a 100 whether it is there.
#[test]
fn a_half_closed_client_waits_on_and_gets_its_answer_behind_one_100() {
    let mut server = Server::without_workers(&[]);
    let (gate, _workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let mut early = server.client();
    early.send("GET /early HTTP/1.1\r\nHost: a\r\n\r\n");
    early.half_close();
    let mut late = asking(&server, "/late");
    let mut closing = server.client();
    closing.send("GET /closing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut old = server.client();
    old.send("GET /old HTTP/1.0\r\n\r\n");
    wait_for_load(&mut server, 1, 4);
    for client in [&mut late, &mut closing, &mut old] {
        client.half_close();
    }
    for client in [&mut early, &mut late, &mut closing] {
        wait_for_100(client);
    }
    // This one comes later, so the server has seen the end of the other, which has no 100, when it is there.
    let mut later = asking(&server, "/later");
    wait_for_load(&mut server, 1, 5);
    gate.open();
    assert_eq!(held.read_response().status, 200);
    for (client, interims) in
        [(&mut early, 1), (&mut late, 1), (&mut closing, 1), (&mut old, 0), (&mut later, 0)]
    {
        let response = client.read_response();
        assert_eq!((response.status, response.interim.len()), (200, interims));
    }
}

#[test]
fn a_unix_client_that_hangs_up_while_it_waits_is_dropped_without_being_asked() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("http.sock");
    let mut server = Server::without_workers(&["--json", &format!("http:unix:{}", path.display())]);
    let (gate, workers) = gated_workers(&server, 1);
    let connect = || Client::connect_unix(&path);
    let mut held = connect();
    held.send(crate::tools::get("/held"));
    wait_for_load(&mut server, 1, 0);
    let (mut gone, mut stays) = (connect(), connect());
    gone.send(crate::tools::get("/gone"));
    stays.send(crate::tools::get("/stays"));
    stays.half_close();
    wait_for_load(&mut server, 1, 2);
    drop(gone);
    wait_for_load(&mut server, 1, 1);
    gate.open();
    assert_eq!(held.read_response().status, 200);
    let response = stays.read_response();
    assert_eq!((response.status, response.interim.len()), (200, 0));
    let targets: Vec<String> = workers[0].requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/held", "/stays"]);
}

/// A worker whose backlog is full, so that the server tries to connect again and again.
struct Unreachable {
    listener: UnixListener,
    _first: UnixStream,
}

impl Unreachable {
    fn join(server: &Server) -> Self {
        let path = server.dir().join("full.sock");
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        let fd = fd.expect("a socket");
        bind(fd.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("bound");
        listen(&fd, Backlog::new(0).expect("a backlog")).expect("it listens");
        let first = UnixStream::connect(&path).expect("the only place in the backlog");
        let path = path.display();
        let join = format!(r#"{{"op":"join","workerId":1,"pid":1,"socket":"{path}","version":1}}"#);
        assert_eq!(server.control("POST", "/worker", &join).status, 200);
        Unreachable { listener: UnixListener::from(fd), _first: first }
    }

    /// The first line of what the server sends when it gets through.
    fn next_request(&self) -> String {
        let (_, _) = self.listener.accept().expect("the first one");
        let (stream, _) = self.listener.accept().expect("the server tries again");
        let line = BufReader::new(stream).lines().next();
        line.expect("a line").expect("text")
    }
}

#[test]
fn a_client_that_resets_while_its_worker_cannot_be_reached_is_never_dispatched() {
    let mut server = Server::without_workers(&["--json"]);
    let unreachable = Unreachable::join(&server);
    let mut closed = asking(&server, "/closed");
    wait_for_load(&mut server, 1, 0);
    let mut posted = server.client();
    posted.send_request("POST", "/posted", "", b"a body");
    wait_for_load(&mut server, 1, 1);
    posted.reset();
    // This one has only sent a FIN, and is asked as if it waited in the queue.
    closed.half_close();
    wait_for_load(&mut server, 1, 0);
    wait_for_100(&mut closed);
    drop(closed);
    let mut next = server.client();
    next.send_request("POST", "/next", "", b"a body");
    wait_for_load(&mut server, 1, 1);
    next.reset();
    wait_for_load(&mut server, 1, 0);

    // What a close tells behind a FIN comes with the answer; the reset ones are not even sent.
    assert_eq!(unreachable.next_request(), "GET /closed HTTP/1.1");
    for path in ["/posted", "/next"] {
        assert_eq!(line_of(&mut server, path)["reason"], "client_gone");
    }
}

#[test]
fn a_client_that_resets_before_its_worker_could_be_reached_leaves_that_free() {
    let mut server = Server::without_workers(&["--json"]);
    let unreachable = Unreachable::join(&server);
    let mut posted = server.client();
    posted.send_request("POST", "/posted", "", b"a body");
    wait_for_load(&mut server, 1, 0);
    posted.reset();
    assert_eq!(line_of(&mut server, "/posted")["reason"], "client_gone");
    wait_for_load(&mut server, 0, 0);
    let _next = asking(&server, "/next");
    wait_for_load(&mut server, 1, 0);
    assert_eq!(unreachable.next_request(), "GET /next HTTP/1.1");
}

#[test]
fn a_half_close_is_no_departure_where_the_connection_would_end_anyway() {
    let mut server = Server::without_workers(&[]);
    let (gate, _workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let mut closing = server.client();
    closing.send("GET /closing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let mut old = server.client();
    old.send("GET /old HTTP/1.0\r\n\r\n");
    wait_for_load(&mut server, 1, 2);
    closing.half_close();
    old.half_close();
    // This one comes later, so the server has seen the others' ends when it is there.
    let mut later = asking(&server, "/later");
    wait_for_load(&mut server, 1, 3);
    gate.open();
    for client in [&mut held, &mut closing, &mut old, &mut later] {
        assert_eq!(client.read_response().status, 200);
    }
}

#[test]
fn a_half_close_under_way_still_gets_its_answer() {
    let mut server = Server::without_workers(&[]);
    let (gate, _workers) = gated_workers(&server, 1);
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    held.half_close();
    // Another connection's bytes come later, so the server has seen the end by then.
    assert_eq!(server.get("/server").text(), "ok");
    gate.open();
    assert_eq!(held.read_response().status, 200);
}

#[test]
fn the_queue_keeps_its_order() {
    let mut server = Server::without_workers(&[]);
    let (gate, workers) = gated_workers(&server, 1);
    let mut clients = Vec::new();
    for index in 0..20 {
        clients.push(asking(&server, &format!("/{index}")));
        wait_for_load(&mut server, 1, index);
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
    let targets: Vec<String> = workers[0].requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, (0..20).map(|index| format!("/{index}")).collect::<Vec<_>>());
}

#[test]
fn a_request_waits_for_the_first_worker_to_join() {
    let dir = tempfile::tempdir().expect("a folder");
    let go = dir.path().join("go");
    let server = Server::builder(test_worker()).args(["w:1", "--json"]).env("TEST_BOOT_UNTIL", &go);
    let mut server = server.start();
    let mut early = asking(&server, "/ping");
    wait_for_load(&mut server, 0, 1);
    let waits = Instant::now();
    let status = server.get("/status");
    assert_eq!((status.status, &status.json()["status"]), (503, &"starting".into()));
    let waited = waits.elapsed().as_secs_f64();
    std::fs::write(go, "").expect("a file can be written");
    assert_eq!(early.read_response().text(), "pong");
    assert_eq!(server.get("/status").json()["status"], "healthy");
    let line = line_of(&mut server, "/ping");
    assert!(line["queueSeconds"].as_f64() >= Some(waited), "{waited}: {line}");
}

#[test]
fn a_worker_that_joins_takes_what_waits() {
    let mut server = Server::without_workers(&[]);
    let mut waiting = asking(&server, "/");
    wait_for_load(&mut server, 0, 1);
    let worker = RawWorker::join(&server, 1, |_| Answer::ok("here"));
    assert_eq!(waiting.read_response().text(), "here");
    assert_eq!(worker.request_count(), 1);
}

#[test]
fn a_pipelined_client_never_has_two_workers() {
    let mut server = Server::without_workers(&["--json"]);
    let (gate, workers) = gated_workers(&server, 2);
    let mut client = server.client();
    client.send(get("/first") + &get("/second"));
    let count = || workers.iter().map(RawWorker::request_count).sum::<usize>();
    server.wait_until("the first", |_| count() > 0);
    assert_eq!(server.get("/server").text(), "ok");
    assert_eq!(count(), 1);
    gate.open();
    assert_eq!((client.read_response().status, client.read_response().status), (200, 200));
    settled_lines(&mut server);
    assert_eq!((lines_of(&server, "/first").len(), lines_of(&server, "/second").len()), (1, 1));
}
