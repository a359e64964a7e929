//! Ends of the server: with everything answered, at its deadline, at once, and by SIGKILL.

use crate::support::{Client, Hold, Server, Signal, Trouble, is_alive, test_worker, wait_until};
use crate::tools::{asking, line_of, lines_of, wait_for_load};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn server(words: &[&str]) -> Server {
    Server::builder(test_worker()).args(words).arg("--json").start()
}

#[track_caller]
fn assert_nothing_is_left(server: &Server, pids: &[i32]) {
    let left: Vec<_> = std::fs::read_dir(server.socket_dir())
        .expect("the socket folder")
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    assert!(left.is_empty(), "left in the socket folder: {left:?}");
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "workers are left");
}

#[test]
fn sigterm_finishes_what_is_at_work_and_what_waits() {
    let mut server = server(&["w:4"]);
    server.wait_for_workers(4);
    let pids = server.worker_pids();
    let address = server.address();
    let hold = Hold::new();
    let mut clients: Vec<Client> = (0..8).map(|_| hold.ask(&server)).collect();
    wait_for_load(&mut server, 4, 4);
    server.signal(Signal::SIGTERM);
    wait_until("the listener's end", || TcpStream::connect(address).is_err());
    hold.let_go();
    for client in &mut clients {
        let response = client.read_response();
        assert_eq!((response.status, response.text().as_str()), (200, "held"));
        assert_eq!(response.header("connection"), Some("close"));
        assert!(matches!(client.read_until_close(), (remaining, Trouble::Closed) if remaining.is_empty()));
    }
    assert_eq!(server.wait_exit(), 0);
    assert_nothing_is_left(&server, &pids);
    server.wait_until("eight lines", |server| lines_of(server, "/hold").len() == 8);
}

#[test]
fn sigint_and_stop_end_like_sigterm() {
    for by_verb in [false, true] {
        let mut server = server(&["w:2"]);
        server.wait_for_workers(2);
        let pids = server.worker_pids();
        let hold = Hold::new();
        let mut client = hold.ask(&server);
        wait_for_load(&mut server, 1, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if by_verb {
                    let stop = server.verb(["stop"]);
                    assert_eq!((stop.code, stop.stderr.as_str()), (0, ""));
                } else {
                    server.signal(Signal::SIGINT);
                }
            });
            wait_until("it stops", || server.stderr_text().contains("stopping"));
            hold.let_go();
        });
        assert_eq!(client.read_response().text(), "held");
        assert_eq!(server.wait_exit(), 0);
        assert_nothing_is_left(&server, &pids);
    }
}

#[test]
fn a_quiet_connection_does_not_hold_up_a_stop() {
    let mut server = server(&["w:1", "--drain-timeout-ms=600000"]);
    let mut idle = server.client();
    assert_eq!(idle.get("/ping").text(), "pong");
    let mut silent = server.client();
    assert_eq!(server.get("/server").text(), "ok", "so the silent one was accepted");
    server.signal(Signal::SIGTERM);
    // A second each; the drain timeout is longer than this test waits.
    assert_eq!(server.wait_exit(), 0);
    for client in [&mut idle, &mut silent] {
        assert!(matches!(client.read_until_close(), (remaining, Trouble::Closed) if remaining.is_empty()));
    }
}

#[test]
fn what_is_not_done_by_the_drain_timeout_is_refused_as_stopping() {
    const DRAIN: Duration = Duration::from_millis(500);
    let mut server = server(&["w:1", "--drain-timeout-ms=500"]);
    let mut at_work = asking(&server, "/sleep?ms=600000");
    wait_for_load(&mut server, 1, 0);
    let mut waiting = asking(&server, "/waiting");
    wait_for_load(&mut server, 1, 1);
    let pids = server.worker_pids();
    let context = Instant::now();
    server.signal(Signal::SIGTERM);
    for client in [&mut at_work, &mut waiting] {
        let response = client.read_response();
        assert_eq!((response.status, response.header("connection")), (503, Some("close")));
    }
    assert!(context.elapsed() >= DRAIN, "too early: {:?}", context.elapsed());
    assert_eq!(server.wait_exit(), 0);
    assert_nothing_is_left(&server, &pids);
    let line = line_of(&mut server, "/sleep");
    assert_eq!((&line["reason"], &line["pid"]), (&"stopping".into(), &pids[0].into()), "{line}");
    assert_eq!(line_of(&mut server, "/waiting")["reason"], "stopping");
}

#[test]
fn workers_end_with_a_killed_server() {
    let mut server = server(&["w:3", "--read-timeout-ms=600000"]);
    server.wait_for_workers(3);
    let pids = server.worker_pids();
    let _at_work = asking(&server, "/sleep?ms=600000");
    wait_for_load(&mut server, 1, 0);
    server.signal(Signal::SIGKILL);
    wait_until("the workers' end", || !pids.iter().any(|pid| is_alive(*pid)));
    assert_eq!(server.wait_exit(), -9);
}
