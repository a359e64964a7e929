//! What workers inherit of a server, and what is left of one that was killed.

use super::{sleeping_app, status_line};
use crate::load::{self, descriptors, workers};
use crate::support::{self, Client, Server, Signal, is_alive};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;

#[test]
fn workers_of_a_killed_server_end_and_a_new_one_takes_the_port_and_the_name() {
    let mut server = Server::with_test_worker(&["w:3"]);
    server.wait_for_workers(3);
    let pids = server.worker_pids();
    server.signal(Signal::SIGKILL);
    assert_eq!(server.wait_exit(), -9);
    support::wait_until("the workers are gone", || !pids.iter().any(|&pid| is_alive(pid)));
    drop(TcpListener::bind(server.address()).expect("nobody holds the port"));
    // Of the same name, and it cannot boot: it was started, and ended for that reason only.
    let dir = tempfile::tempdir().expect("a folder");
    let app = dir.path().join("test-worker");
    load::write_script(&app, "#!/bin/sh\nexit 1\n");
    let app = app.to_str().expect("plain letters");
    let sockets = server.socket_dir();
    let sockets = sockets.to_str().expect("plain letters");
    let output = support::run([app, "w:1", "http:127.0.0.1:0", "--socket-dir", sockets]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("no worker ever joined"), "{}", output.stderr);
}

#[test]
fn worker_starts_with_an_empty_mask_the_old_limit_and_no_descriptor_but_its_three_pipes() {
    // What cargo has left open for whoever comes is not the server's.
    let earlier = descriptors(std::process::id() as i32);
    let dir = tempfile::tempdir().expect("a folder");
    let limited = load::started_by(dir.path(), "ulimit -S -n 256; exec");
    let mut server = Server::carried_by(limited).arg(sleeping_app(dir.path())).arg("w:2").start();
    // The successor of a killed one is started while there are clients, a neighbour, and a control connection.
    let mut clients = [server.client(), server.client()];
    for client in &mut clients {
        assert_eq!(client.get("/server").status, 200);
    }
    let mut control = Client::connect_unix(&server.control_socket());
    assert_eq!(control.get("/server").status, 200);
    server.wait_until("both are started", |server| workers(server).len() == 2);
    let first = workers(&server)[0].pid;
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("it lives");
    let mut next = first;
    server.wait_until("its successor runs", |server| {
        next = workers(server).iter().find(|worker| worker.slot == 0).map_or(first, |worker| worker.pid);
        next != first && fs::read_to_string(format!("/proc/{next}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    assert_eq!(status_line(next, "SigBlk"), "0000000000000000");
    let soft_limit = |pid: i32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process lives");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("such a line");
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|phrase| phrase.parse().ok()).collect();
        (numbers[0], numbers[1])
    };
    let (soft, hard) = soft_limit(next);
    // A worker may hold 1000 streams, beside its request and what its app opens.
    assert_eq!(soft, hard.min(1000 + 1 + 256));
    assert_eq!(soft_limit(server.pid()), (hard, hard), "the server raises its own");
    // The program's libraries are open for a moment while it is loaded.
    server.wait_until("three pipes and nothing else", |_| {
        let mut inherited = descriptors(next);
        inherited.retain(|what| !earlier.contains(what));
        inherited.len() == 3 && inherited.iter().all(|what| what.starts_with("pipe:"))
    });
}

#[test]
fn worker_holds_no_socket_of_the_servers() {
    let mut server = Server::with_test_worker(&["w:3"]);
    server.wait_for_workers(3);
    let client = server.client();
    assert_eq!(server.verb(["reload"]).code, 0);
    let sockets = |pid: i32| -> BTreeSet<String> {
        descriptors(pid).into_iter().filter(|what| what.starts_with("socket:")).collect()
    };
    let own = sockets(server.pid());
    assert!(own.len() > 3, "the listener, the control socket, and one to each worker: {own:?}");
    for pid in server.worker_pids() {
        assert_eq!(sockets(pid).intersection(&own).count(), 0, "worker {pid}");
    }
    drop(client);
}
