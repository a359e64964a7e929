//! Verbs that say what is so, signals that end nothing by accident, and starts that hurt nobody.

#[path = "verbs/asking.rs"]
mod asking;
#[path = "verbs/check.rs"]
mod check;
#[path = "verbs/paths.rs"]
mod paths;
#[path = "verbs/signals.rs"]
mod signals;
#[path = "verbs/starts.rs"]
mod starts;
mod support;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::server::{Output, output};
use support::{
    Client, Hold, Server, Signal, is_alive, server_program, skip, test_worker, wait_until, write_script,
};

/// Some user that is neither root nor who runs the tests.
const STRANGER: u32 = 54_321;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    dir
}

/// The program, in an environment that does not depend on who runs the tests.
fn program() -> Command {
    let mut command = Command::new(server_program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RIP_") {
            command.env_remove(name);
        }
    }
    for name in ["PORT", "XDG_RUNTIME_DIR", "RUST_LOG", "PWD"] {
        command.env_remove(name);
    }
    command.env("NODE_ENV", "production");
    command
}

/// A server that is started by hand; ended with SIGKILL when it is dropped.
struct ByHand {
    child: Child,
    first_line: String,
}

impl ByHand {
    fn start(mut command: Command) -> ByHand {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let mut first_line = String::new();
        stdout.read_line(&mut first_line).expect("stdout can be read");
        if first_line.is_empty() {
            let mut text = String::new();
            stderr.read_to_string(&mut text).expect("stderr can be read");
            panic!("the server ended: {text}");
        }
        // Both are read on, so that nothing it says stops it.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        ByHand { child, first_line }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sockets(dir: &Path) -> String {
    format!("--socket-dir={}", dir.join("s").display())
}

fn serve(app: &Path, dir: &Path, words: &[&str]) -> Command {
    let mut command = program();
    command.arg(app).args(["w:1", "http:127.0.0.1:0"]).arg(sockets(dir)).args(words);
    command
}

fn verb(verb: &str, app: &Path, dir: &Path) -> Command {
    let mut command = program();
    command.arg(verb).arg(app).arg(sockets(dir));
    command
}

fn says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    for phrase in words {
        assert!(output.stderr.contains(phrase), "'{phrase}' is missing: {output:?}");
    }
    assert!(!output.stdout.contains("stopped") || code == 0, "{output:?}");
}

/// The command that a complaint advises, as a shell takes it.
fn advice(text: &str) -> Command {
    let words = text.split_once("; rip-server ").expect("a command is named").1;
    let words = words.split(" would").next().unwrap_or_default();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec {} {words}", server_program().display())]);
    command.env("NODE_ENV", "production").env_remove("XDG_RUNTIME_DIR");
    command
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn is_busy(server: &Server) -> bool {
    server.details()["workerList"][0]["state"] == "busy"
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
