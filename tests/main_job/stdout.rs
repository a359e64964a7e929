//! Nobody reads what the server writes, or nobody can any more: it serves on, and what is dropped is counted.

use crate::support::{Client, TEST_TIMEOUT, comes_true, server_program, test_worker, wait_until};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::{PipeReader, PipeWriter, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A path in each access line, so long that few requests fill what may wait.
const PATH_BYTES: usize = 12_000;
/// What the server holds for a reader that does not read is 1 MiB, and a pipe's buffer is 64 KiB.
const REQUESTS: usize = 200;

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
        let (stdout, writer) = std::io::pipe().expect("a pipe");
        let stderr = std::fs::File::create(dir.path().join("stderr")).expect("a file");
        let mut command = Command::new(server_program());
        command.env_clear().env("NODE_ENV", "production").env("RIP_QUEUE_TIMEOUT_MS", "60000");
        command.arg(test_worker());
        command.args(["w:1", "http:127.0.0.1:0", "--json", "--socket-dir"]).arg(dir.path().join("s"));
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
    let (_, writer) = std::io::pipe().expect("a pipe");
    drop(std::mem::replace(&mut server.shared, writer));
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
