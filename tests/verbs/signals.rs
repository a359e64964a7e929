//! Signals that end nothing by accident.

use super::*;

#[test]
fn signals_of_no_meaning_end_nothing_and_are_logged() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let signals = [
        Signal::SIGUSR1,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGSTKFLT,
        Signal::SIGXCPU,
        Signal::SIGPIPE,
    ];
    for signal in signals {
        server.signal(signal);
        // Ignored, as in every program of Rust's.
        let is_silent = signal == Signal::SIGPIPE;
        server.wait_until(signal.as_str(), |server| {
            is_silent || server.stderr_text().contains(&format!("{}: nothing to do", signal.as_str()))
        });
    }
    // A real-time signal.
    let sent = Command::new("sh").args(["-c", &format!("kill -40 {}", server.pid())]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    server.wait_until("signal 40", |server| server.stderr_text().contains("signal 40: nothing to do"));
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn sigquit_drains() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    server.wait_until("it is at work", |server| is_busy(server));
    server.signal(Signal::SIGQUIT);
    server.wait_until("it stops", |server| server.stderr_text().contains("stopping"));
    hold.let_go();
    assert_eq!(client.read_response().text(), "held");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn a_sighup_while_the_server_stops_says_that_it_does_nothing() {
    let mut server = Server::with_test_worker(&["w:1", "--hot-reload=process"]);
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    server.wait_until("it is at work", |server| is_busy(server));
    server.signal(Signal::SIGTERM);
    server.wait_until("it stops", |server| server.stderr_text().contains("stopping;"));
    server.signal(Signal::SIGHUP);
    server.wait_until("it says so", |server| {
        server.stderr_text().contains("SIGHUP: nothing to do (the server is stopping)")
    });
    hold.let_go();
    assert_eq!(client.read_response().text(), "held");
    assert_eq!(server.wait_exit(), 0);
    assert!(!server.stderr_text().contains("SIGHUP: reload"), "{}", server.stderr_text());
}

#[test]
fn what_was_ignored_at_the_start_stays_ignored() {
    let dir = folder();
    let wrapper = dir.path().join("nohup");
    let text = format!("#!/bin/sh\ntrap '' HUP INT\nexec {} \"$@\"\n", server_program().display());
    write_script(&wrapper, &text);
    let server = Server::carried_by(wrapper).arg(test_worker()).args(["w:1", "--hot-reload=module"]);
    let mut server = server.start();
    server.wait_for_workers(1);
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGINT);
    server.signal(Signal::SIGUSR1);
    server.wait_until("it has heard the last", |server| server.stderr_text().contains("SIGUSR1"));
    assert_eq!(server.get("/ping").text(), "pong");
    assert!(!server.stderr_text().contains("SIGHUP"), "{}", server.stderr_text());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn children_are_heard_of_though_sigchld_was_ignored_at_the_start() {
    let dir = folder();
    let wrapper = dir.path().join("deaf");
    let text = format!("#!/bin/bash\ntrap '' CHLD\nexec {} \"$@\"\n", server_program().display());
    write_script(&wrapper, &text);
    let mut server = Server::carried_by(wrapper).arg(test_worker()).arg("w:1").start();
    server.wait_for_workers(1);
    let first = server.worker_pids()[0];
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("it lives");
    server.wait_until("another one serves", |server| {
        server.worker_pids().first().is_some_and(|pid| *pid != first)
    });
    assert_eq!(server.get("/ping").text(), "pong");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
}
