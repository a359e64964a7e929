//! What all integration tests share: the real server as a child process, a client that speaks raw bytes, and a
//! worker whose every byte the test decides.
//!
//! Nothing here sleeps blindly: [`wait_until`] looks again and again until a condition holds or its deadline is over.

#![allow(dead_code, unused_imports)]

pub mod cases;
pub mod client;
pub mod faults;
pub mod hold;
pub mod message;
pub mod raw_worker;
pub mod server;
pub mod skip;
pub mod wire;

pub use client::Client;
pub use faults::Faults;
pub use hold::Hold;
pub use message::{Head, Response};
pub use nix::sys::signal::Signal;
pub use raw_worker::{Answer, RawWorker, Reads, Then, WorkerRequest};
pub use server::{Output, Server, ServerBuilder, run};
pub use wire::{Broken, Trouble};

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up; long, since a machine may have much else to do.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The server under test.
pub fn server_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_rip-server"))
}

/// The test app (`tests/worker/app.rs`), which can also be started as a server that carries itself.
pub fn test_worker() -> PathBuf {
    let path = server_program().with_file_name("examples").join("test-worker");
    assert!(
        path.is_file(),
        "{} is missing: `cargo test` builds it, with --test so does `cargo build --example test-worker`",
        path.display()
    );
    path
}

/// Waits until `condition` holds. For a server use [`Server::wait_until`], which tells what the server said.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_true(TEST_TIMEOUT, condition), "waited {} s in vain: {what}", TEST_TIMEOUT.as_secs());
}

/// Whether `condition` holds within `time`.
pub fn comes_true(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if condition() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(LOOK_EVERY.min(left));
    }
}

/// Written by a process of its own: a descriptor open for writing, inherited by what another test starts meanwhile,
/// would make `exec` fail with ETXTBSY.
pub fn write_script(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    // Renamed over what is there, since that may be running.
    shell.args(["-c", r#"cat > "$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0""#]).arg(path);
    let mut shell = shell.stdin(Stdio::piped()).spawn().expect("a shell can be started");
    shell.stdin.take().expect("stdin is piped").write_all(text.as_bytes()).expect("the shell reads");
    assert!(shell.wait().expect("a child can be waited for").success());
}

/// Bytes as characters: U+00XX is the byte XX.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// The way back.
pub fn latin1_bytes(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(letter).expect("characters up to U+00FF")).collect()
}

/// What the test worker's `/sha` answers for a body: its length and its FNV-1a checksum.
pub fn length_and_checksum(body: &[u8]) -> String {
    let mut checksum: u64 = 0xcbf2_9ce4_8422_2325;
    for &byte in body {
        checksum = (checksum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{} {checksum:016x}", body.len())
}

/// Whether a process exists (a zombie does not count).
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(") ").next().and_then(|remaining| remaining.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Resident memory of a process.
pub fn rss_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
    line.trim().trim_end_matches(" kB").parse().expect("a number of kB")
}
