//! `status --failures`: what has failed, and with `--watch` what fails from now on.

use crate::support::{Server, server_program, test_worker, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

fn follow(server: &Server) -> (Child, ChildStdout) {
    let mut command = Command::new(server_program());
    command.args(["status", "--watch", "--failures"]).arg(test_worker());
    command.arg("--socket-dir").arg(server.socket_dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it can be started");
    let stdout = child.stdout.take().expect("stdout is piped");
    (child, stdout)
}

/// Its exit code and what it has said on stderr.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn failures_are_followed_as_they_come_until_ctrl_c() {
    let mut server = Server::with_test_worker(&["w:2"]);
    server.wait_for_workers(2);
    server.get("/panic?before");
    let (child, stdout) = follow(&server);
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let collected = lines.clone();
    let reads = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            collected.lock().expect("no panic holds the lock").push(line);
        }
    });
    let has_line =
        |text: &str| lines.lock().expect("no panic holds the lock").iter().any(|line| line.contains(text));
    // What fails before its first look is not followed.
    wait_until("it follows", || {
        server.get("/panic?now");
        has_line(" 500 GET /panic after ")
    });
    server.get("/die");
    wait_until("the worker's end", || has_line("): SIGKILL at GET /die, request "));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("it lives");
    assert_eq!(end(child), (Some(0), String::new()));
    reads.join().expect("no panic");
    let kept = server.verb(["status", "--failures"]);
    assert_eq!((kept.code, kept.stderr.as_str()), (0, ""));
    for text in [" 500 GET /panic after ", " 502 GET /die worker_died after ", "): SIGKILL at GET /die"] {
        assert!(kept.stdout.lines().any(|line| line.contains(text)), "{text}: {}", kept.stdout);
    }
}

#[test]
fn who_follows_ends_quietly_with_its_reader_and_says_so_when_the_server_ends() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let (child, stdout) = follow(&server);
    drop(stdout);
    assert_eq!(end(child), (Some(0), String::new()));
    let (child, _stdout) = follow(&server);
    assert_eq!(server.verb(["stop"]).code, 0);
    let (code, stderr) = end(child);
    assert!(code == Some(1) && stderr.contains("test-worker") && stderr.lines().count() == 1, "{stderr}");
}
