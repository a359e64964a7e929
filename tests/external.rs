//! Workers from outside (`w:0`): one entry for one socket, and their pids prove nothing.

mod support;

use std::sync::mpsc;
use support::{Answer, RawWorker, Server, Then, WorkerRequest};

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

fn join_at(server: &Server, socket: &str) -> (u16, String) {
    let message = serde_json::json!({"op": "join", "workerId": 9, "pid": 1, "socket": socket, "version": 1});
    let response = server.control("POST", "/worker", &message.to_string());
    (response.status, response.text())
}

#[test]
fn a_join_with_a_socket_that_nobody_can_connect_to_is_refused() {
    let server = Server::without_workers(&[]);
    let _worker = RawWorker::join(&server, 3, |_| Answer::ok("here"));
    for (socket, complaint) in [
        (format!("/{}", "y".repeat(160)), "too long for a Unix socket"),
        ("rel.sock".to_owned(), "not an absolute path"),
        (String::new(), "not an absolute path"),
        ("/a\0b".to_owned(), "no path has a NUL"),
    ] {
        let (status, text) = join_at(&server, &socket);
        assert!(status == 400 && text.contains(complaint), "{status} {text}");
    }
    assert_eq!((joined(&server), server.get("/").text().as_str()), (1, "here"));
}

#[test]
fn a_worker_from_outside_that_cannot_be_connected_to_gets_no_second_request() {
    let mut server = Server::without_workers(&["--queue-timeout-ms=100"]);
    // Whatever the kernel says of such a file, it is not that nobody listens: a folder on the way to it is a file.
    let file = server.dir().join("a-file");
    std::fs::write(&file, "").expect("a file");
    assert_eq!(join_at(&server, &file.join("sock").display().to_string()).0, 200);
    assert_ne!(server.get("/").status, 200, "nobody else is there");
    wait_until_forgotten(&mut server);
    let _worker = RawWorker::join(&server, 3, |_| Answer::ok("here"));
    for _ in 0..3 {
        assert_eq!(server.get("/").text(), "here");
    }
    server.wait_until("that was told", |server| server.stderr_text().contains("no connection to its socket"));
}

/// A worker that takes two requests at once.
fn joined_for_two(
    server: &Server,
    answer: impl Fn(&WorkerRequest) -> Answer + Send + Sync + 'static,
) -> RawWorker {
    let worker = RawWorker::join(server, 3, answer);
    let socket = server.dir().join("raw3.sock");
    let join = format!(
        r#"{{"op":"join","workerId":3,"pid":1,"socket":"{}","version":1,"concurrency":2}}"#,
        socket.display()
    );
    assert_eq!(server.control("POST", "/worker", &join).status, 200);
    worker
}

fn wait_until_forgotten(server: &mut Server) {
    server.wait_until("it is forgotten", |server| {
        server.details()["workerList"].as_array().map(Vec::len) == Some(0)
    });
}

#[test]
fn a_worker_that_takes_no_more_connections_ends_what_it_has_at_work() {
    for is_answered in [true, false] {
        let mut server = Server::without_workers(&["c:2", "--queue-timeout-ms=100"]);
        let (go, gone) = mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let worker = joined_for_two(&server, move |_| {
            let _ = gone.lock().expect("no panic").recv();
            Answer::ok("here")
        });
        let mut slow = server.client();
        slow.send_request("POST", "/slow", "", b"");
        server.wait_until("it is at work", |_| worker.request_count() == 1);
        std::fs::remove_file(server.dir().join("raw3.sock")).expect("its socket");
        assert_eq!(server.get("/other").status, 504, "nobody else is there");
        if is_answered {
            go.send(()).expect("it waits");
            assert_eq!(slow.read_response().text(), "here");
        } else {
            drop(worker);
            assert_eq!(slow.read_response().status, 502);
        }
        wait_until_forgotten(&mut server);
    }
}

#[test]
fn a_worker_that_is_stuck_in_one_request_ends_the_others() {
    const WRITES: usize = 50;
    let words = ["c:2", "--read-timeout-ms=300", "--drain-timeout-ms=300", "--queue-timeout-ms=100"];
    let mut server = Server::without_workers(&words);
    let worker = joined_for_two(&server, |request| match request.target.as_str() {
        "/stuck" => Answer { writes: Vec::new(), then: Then::Hang },
        _ => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {WRITES}\r\n\r\n").into_bytes();
            let writes = std::iter::once(head).chain((0..WRITES).map(|_| b"x".to_vec())).collect();
            Answer { writes, then: Then::Keep }
        }
    });
    let (mut stuck, mut long) = (server.client(), server.client());
    stuck.send_request("GET", "/stuck", "", b"");
    long.send_request("GET", "/long", "", b"");
    assert_eq!(stuck.read_response().status, 504);
    assert_eq!(long.read_response().body.len(), WRITES);
    server.wait_until("that was told", |server| server.stderr_text().contains("stuck in GET /stuck"));
    wait_until_forgotten(&mut server);
    drop(worker);
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
