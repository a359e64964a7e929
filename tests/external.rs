//! Workers from outside (`w:0`): one entry for one socket, and their pids prove nothing.

mod support;

use std::sync::mpsc;
use support::{Answer, RawWorker, Server};

fn joined(server: &Server) -> u64 {
    server.get("/status").json()["workers"].as_u64().expect("a number")
}

/// Joins again under the socket of `worker`, as a process of that pid.
fn join_again(server: &Server, worker: &RawWorker, pid: i32) {
    let socket = server.dir().join(format!("raw{}.sock", worker.id));
    let (id, socket) = (worker.id, socket.display());
    let message = format!(r#"{{"op":"join","workerId":{id},"pid":{pid},"socket":"{socket}","version":1}}"#);
    assert_eq!(server.control("POST", "/worker", &message).status, 200);
}

#[test]
fn a_second_join_under_one_socket_replaces_the_first() {
    let mut server = Server::without_workers(&[]);
    let worker = RawWorker::join(&server, 3, |_| Answer::ok("here"));
    assert_eq!(server.get("/").text(), "here");
    for pid in [1, 4242, 1] {
        join_again(&server, &worker, pid);
        server.wait_until("one entry", |server| joined(server) == 1);
        assert_eq!(server.details()["workerList"].as_array().map(Vec::len), Some(1));
        for _ in 0..3 {
            assert_eq!(server.get("/").text(), "here");
        }
    }
}

#[test]
fn a_join_while_the_first_is_at_work_lets_that_end() {
    let mut server = Server::without_workers(&[]);
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let worker = RawWorker::join(&server, 3, move |request| {
        if request.target == "/slow" {
            let _ = gone.lock().expect("no panic").recv();
        }
        Answer::ok("here")
    });
    let mut slow = server.client();
    slow.send_request("GET", "/slow", "", b"");
    server.wait_until("it is at work", |_| worker.request_count() == 1);
    join_again(&server, &worker, 77);
    assert_eq!(server.get("/").text(), "here", "the new one serves");
    go.send(()).expect("it waits");
    assert_eq!(slow.read_response().text(), "here");
    server.wait_until("the first is forgotten", |server| {
        server.details()["workerList"].as_array().map(Vec::len) == Some(1)
    });
}

#[test]
fn a_worker_that_quits_with_a_request_in_hand_is_forgotten_when_that_has_ended() {
    let mut server = Server::without_workers(&[]);
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let worker = RawWorker::join(&server, 3, move |_| {
        let _ = gone.lock().expect("no panic").recv();
        Answer::ok("here")
    });
    let mut slow = server.client();
    slow.send_request("GET", "/slow", "", b"");
    server.wait_until("it is at work", |_| worker.request_count() == 1);
    worker.quit();
    go.send(()).expect("it waits");
    assert_eq!(slow.read_response().text(), "here");
    server.wait_until("it is forgotten", |server| {
        server.details()["workerList"].as_array().map(Vec::len) == Some(0)
    });
}

#[test]
fn a_worker_that_takes_no_more_connections_ends_what_it_has_at_work() {
    let mut server = Server::without_workers(&["c:2", "--queue-timeout-ms=100"]);
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let worker = RawWorker::join(&server, 3, move |_| {
        let _ = gone.lock().expect("no panic").recv();
        Answer::ok("here")
    });
    let socket = server.dir().join("raw3.sock");
    let join = format!(
        r#"{{"op":"join","workerId":3,"pid":1,"socket":"{}","version":1,"concurrency":2}}"#,
        socket.display()
    );
    assert_eq!(server.control("POST", "/worker", &join).status, 200);
    let mut slow = server.client();
    slow.send_request("GET", "/slow", "", b"");
    server.wait_until("it is at work", |_| worker.request_count() == 1);
    std::fs::remove_file(socket).expect("its socket");
    assert_eq!(server.get("/other").status, 504, "nobody else is there");
    go.send(()).expect("it waits");
    assert_eq!(slow.read_response().text(), "here");
    server.wait_until("it is forgotten", |server| {
        server.details()["workerList"].as_array().map(Vec::len) == Some(0)
    });
}

#[test]
fn a_pid_of_another_namespace_is_no_proof_of_death() {
    // A process that has ended and is not reaped: as a pid of ours it would be a dead one's.
    let mut ended = std::process::Command::new("true").spawn().expect("a process");
    let pid = i32::try_from(ended.id()).expect("a pid");
    support::wait_until("it has ended", || !support::is_alive(pid));
    let server = Server::without_workers(&[]);
    let first = std::sync::atomic::AtomicBool::new(true);
    let worker = RawWorker::join(&server, 3, move |_| {
        let is_first = first.swap(false, std::sync::atomic::Ordering::Relaxed);
        // Its connection ends, idle, and it lives.
        let then = if is_first { support::Then::Close } else { support::Then::Keep };
        Answer::ok("here").then(then)
    });
    join_again(&server, &worker, pid);
    for _ in 0..5 {
        let response = server.get("/");
        assert_eq!((response.status, response.text().as_str()), (200, "here"));
    }
    assert_eq!(joined(&server), 1, "{}", server.stderr_text());
    ended.wait().expect("a child");
}
