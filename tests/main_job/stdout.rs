//! Nobody reads what the server writes, or nobody can any more: it serves on, and what is dropped is counted.

use crate::support::{
    Client, TEST_TIMEOUT, comes_true, server_program, test_worker, wait_until, write_script,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{PipeReader, PipeWriter, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A path in each access line, so long that few requests fill what may wait.
const PATH_BYTES: usize = 12_000;
/// What the server holds for a reader that does not read is 1 MiB, and a pipe's buffer is 64 KiB.
const REQUESTS: usize = 200;
/// Less than the server holds, and far more than a pipe does.
const LAST_LINES: usize = 10_000;

/// A server whose stdout is a pipe of the test's own. Killed when it is dropped.
struct Piped {
    child: Child,
    dir: TempDir,
    stdout: PipeReader,
    /// The same open file as the server's stdout.
    shared: PipeWriter,
}

impl Piped {
    fn start() -> Piped {
        let dir = tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder");
        Piped::of(&test_worker(), &["--json"], dir)
    }

    /// Its worker prints [`LAST_LINES`] lines when it is told to end, which is when this returns.
    fn ending_with_many_lines() -> Piped {
        let dir = tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder");
        let app = dir.path().join("prints");
        let last = format!("yes 'a last line of the worker' | head -n {LAST_LINES}");
        let text =
            format!("#!/bin/sh\ntrap \"kill \\$!; {last}; exit\" TERM\nsleep 1000 &\necho ready >&2\nwait\n");
        write_script(&app, &text);
        let server = Piped::of(&app, &[], dir);
        wait_until("the worker is ready", || server.stderr().contains("] ready\n"));
        kill(Pid::from_raw(server.child.id() as i32), Signal::SIGTERM).expect("it lives");
        server
    }

    fn of(app: &Path, words: &[&str], dir: TempDir) -> Piped {
        let (stdout, writer) = std::io::pipe().expect("a pipe");
        let stderr = std::fs::File::create(dir.path().join("stderr")).expect("a file");
        let mut command = Command::new(server_program());
        command.env_clear().env("NODE_ENV", "production").env("RIP_QUEUE_TIMEOUT_MS", "60000");
        command.arg(app).args(words);
        command.args(["w:1", "http:127.0.0.1:0", "--socket-dir"]).arg(dir.path().join("s"));
        command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a second handle")).stderr(stderr);
        let child = command.spawn().expect("the server can be started");
        Piped { child, dir, stdout, shared: writer }
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).expect("the file")
    }

    /// With `--json` the line at the start is on stderr.
    fn address(&mut self) -> SocketAddr {
        let mut address = None;
        wait_until("the line at the start", || {
            let exit = self.child.try_wait().expect("a child can be waited for");
            assert_eq!(exit, None, "the server ended: {}", self.stderr());
            let text = self.stderr();
            address = text.split_whitespace().find_map(|phrase| phrase.strip_prefix("http=")?.parse().ok());
            address.is_some()
        });
        address.expect("an address")
    }

    /// So many requests, each with a long line.
    fn serve_many(&mut self) {
        let address = self.address();
        let mut client = Client::connect(address);
        let target = format!("/{}", "x".repeat(PATH_BYTES));
        for _ in 0..REQUESTS {
            assert_eq!(client.get(&target).status, 404);
        }
        assert_eq!(client.get("/ping").text(), "pong");
    }

    /// Nobody else holds the end that writes, so that whoever reads sees the end.
    fn let_go_of_writer(&mut self) {
        let (_, other) = std::io::pipe().expect("a pipe");
        drop(std::mem::replace(&mut self.shared, other));
    }

    fn control_socket(&self) -> PathBuf {
        self.dir.path().join("s/rip_server2_test-worker.ctl.sock")
    }

    fn dropped_lines(&self) -> u64 {
        let mut control = Client::connect_unix(&self.control_socket());
        control.get("/status").json()["droppedLogLines"].as_u64().expect("a number")
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pipe_that_nobody_reads_stops_nobody_and_dropped_lines_are_counted() {
    let mut server = Piped::start();
    server.serve_many();
    // Lines are written a moment later.
    assert!(
        comes_true(TEST_TIMEOUT, || server.dropped_lines() > 0),
        "nothing was dropped: is the test too small?"
    );
    // Somebody reads again: what waited comes whole, and the count of the rest is told.
    let mut reader = server.stdout.try_clone().expect("a second handle");
    let counted = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut piece = [0; 64 * 1024];
        while let Ok(count @ 1..) = reader.read(&mut piece) {
            all.extend_from_slice(&piece[..count]);
        }
        let text = String::from_utf8(all).expect("UTF-8");
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("whole lines");
        }
        text.lines().count()
    });
    let mut reported = 0;
    wait_until("the count on stderr", || {
        let text = server.stderr();
        let line = text.lines().find(|line| line.contains("dropped"));
        let number = line.and_then(|line| line.split(' ').find_map(|phrase| phrase.parse::<usize>().ok()));
        number.map(|number| reported = number).is_some()
    });
    assert_eq!(server.dropped_lines(), reported as u64);
    let mut client = Client::connect(server.address());
    assert_eq!(client.get("/ping").text(), "pong");
    let mut control = Client::connect_unix(&server.control_socket());
    assert_eq!(control.post("/control", br#"{"op":"stop"}"#).status, 200);
    drop(client);
    wait_until("the server's end", || server.child.try_wait().is_ok_and(|exit| exit.is_some()));
    // All writers have to be gone for the reader to see the end.
    server.let_go_of_writer();
    assert_eq!(counted.join().expect("every line parses") + reported, REQUESTS + 2);
}

#[test]
fn a_stdout_that_was_closed_stops_nobody() {
    let mut server = Piped::start();
    server.address();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(std::mem::replace(&mut server.shared, writer));
    drop(std::mem::replace(&mut server.stdout, reader));
    server.serve_many();
    // Told once, counted for ever, and nothing piles up.
    server.serve_many();
    wait_until("the word on stderr", || server.stderr().contains("stdout has no reader any more"));
    assert!(
        comes_true(TEST_TIMEOUT, || server.dropped_lines() >= REQUESTS as u64),
        "{}",
        server.dropped_lines()
    );
    assert_eq!(server.stderr().matches("no reader").count(), 1, "{}", server.stderr());
    assert_eq!(server.child.try_wait().expect("a child can be waited for"), None, "it goes on");
}

#[test]
fn a_shared_stdout_stays_blocking_for_the_others() {
    let mut server = Piped::start();
    server.serve_many();
    let flags = OFlag::from_bits_retain(fcntl(&server.shared, FcntlArg::F_GETFL).expect("flags"));
    assert!(!flags.contains(OFlag::O_NONBLOCK), "the shell would be surprised");
}

#[test]
fn a_full_disk_under_the_log_stops_nobody() {
    let dir = tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder");
    let mut command = Command::new(server_program());
    command.env_clear().env("NODE_ENV", "production").env("RIP_QUEUE_TIMEOUT_MS", "60000");
    command.arg(test_worker());
    command.args(["w:1", "http:127.0.0.1:0", "--json", "--socket-dir"]).arg(dir.path().join("s"));
    let stderr = std::fs::File::create(dir.path().join("stderr")).expect("a file");
    // Every write to it fails with ENOSPC.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    command.stdin(Stdio::null()).stdout(full).stderr(stderr);
    let child = command.spawn().expect("the server can be started");
    let (stdout, shared) = std::io::pipe().expect("a pipe");
    let mut server = Piped { child, dir, stdout, shared };
    server.serve_many();
    assert!(
        comes_true(TEST_TIMEOUT, || server.dropped_lines() >= REQUESTS as u64),
        "{}",
        server.dropped_lines()
    );
}

#[test]
fn what_still_waits_at_the_end_is_written_while_somebody_reads() {
    let mut server = Piped::ending_with_many_lines();
    server.let_go_of_writer();
    // All that it has printed waits in the server, but for what the pipe holds.
    wait_until("the last word", || server.stderr().contains("rip-server: stopped\n"));
    let mut text = String::new();
    server.stdout.read_to_string(&mut text).expect("it is read to its end");
    let lines = text.lines().filter(|line| line.ends_with("a last line of the worker")).count();
    assert_eq!(lines, LAST_LINES, "{}", server.stderr());
    assert!(!server.stderr().contains("dropped"), "{}", server.stderr());
    assert!(server.child.wait().is_ok_and(|exit| exit.success()));
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_no_end_and_the_count_of_what_was_dropped_is_told() {
    let mut server = Piped::ending_with_many_lines();
    wait_until("the server's end", || server.child.try_wait().is_ok_and(|exit| exit.is_some()));
    server.let_go_of_writer();
    let mut text = Vec::new();
    server.stdout.read_to_end(&mut text).expect("it is read to its end");
    let announced = text.starts_with(b"rip-server: ") as usize;
    let written = text.iter().filter(|byte| **byte == b'\n').count() - announced;
    let stderr = server.stderr();
    let told = format!("rip-server: warn: {} lines for stdout were dropped\n", LAST_LINES - written);
    assert!(stderr.ends_with(&told) && stderr.matches("dropped").count() == 1, "{told}{stderr}");
}
