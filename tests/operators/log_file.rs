//! `--log-file` and its rotation.

use crate::support::server::output;
use crate::support::skip::note;
use crate::support::{Server, Signal, server_program, test_worker};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn server_with(file: &Path, arguments: &[&str]) -> Server {
    let mut server = Server::builder(test_worker())
        .arg("w:1")
        .arg(format!("--log-file={}", file.display()))
        .args(arguments);
    server = server.env("TZ", "UTC");
    let mut server = server.start();
    server.wait_for_workers(1);
    server
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("access.log");
    (dir, file)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn the_log_file_has_what_stdout_would_have_had_and_the_line_at_the_start_stays_there() {
    let (_dir, file) = folder();
    let mut server = server_with(&file, &[]);
    assert_eq!(server.get("/ping").text(), "pong");
    server.wait_until("its line", |_| text(&file).contains("GET /ping → 200"));
    let lines = server.stdout_lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("rip-server: app="), "{lines:?}");
    assert!(!text(&file).contains("rip-server:"), "the server's own words stay on stderr");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    // A further start goes on behind it.
    let before = text(&file);
    let mut server = server_with(&file, &["--json"]);
    assert_eq!(server.get("/again").status, 404);
    server.wait_until("its line", |_| text(&file).contains(r#""path":"/again""#));
    assert!(text(&file).starts_with(&before));
    assert_eq!(server.stdout_lines(), [""; 0]);
}

#[test]
fn a_rotated_log_file_is_opened_anew_at_usr1_and_no_line_is_lost() {
    const REQUESTS: usize = 40;
    let (dir, file) = folder();
    let mut server = server_with(&file, &["--json"]);
    let mut client = server.client();
    let mut rotated = Vec::new();
    for number in 0..REQUESTS {
        assert_eq!(client.get(&format!("/no-{number}")).status, 404);
        if number % 10 == 9 {
            let to = dir.path().join(format!("access.log.{number}"));
            fs::rename(&file, &to).expect("it is there");
            rotated.push(to);
            server.signal(Signal::SIGUSR1);
            server.wait_until("the new file", |_| file.is_file());
            let to = rotated.last().expect("one");
            server.wait_until("the lines so far", |_| text(to).contains(&format!("/no-{number}\"")));
        }
    }
    assert!(
        server.stderr_text().contains("SIGUSR1: the log file is opened anew"),
        "{}",
        server.stderr_text()
    );
    let all: String = rotated.iter().map(|path| text(path)).collect::<String>() + &text(&file);
    for number in 0..REQUESTS {
        assert_eq!(all.matches(&format!("\"/no-{number}\"")).count(), 1, "request {number}");
    }
}

#[test]
fn a_log_file_that_cannot_be_opened_anew_is_told_and_the_old_one_goes_on() {
    let (dir, _) = folder();
    let logs = dir.path().join("logs");
    fs::create_dir(&logs).expect("a folder");
    let file = logs.join("access.log");
    let mut server = server_with(&file, &["--json"]);
    let aside = dir.path().join("aside");
    fs::rename(&logs, &aside).expect("it is there");
    server.signal(Signal::SIGUSR1);
    server.wait_until("the complaint", |server| server.stderr_text().contains("mkdir -p"));
    assert_eq!(server.get("/later").status, 404);
    server.wait_until("its line", |_| text(&aside.join("access.log")).contains("/later"));
    // Once the folder is there, the signal does what it should have done.
    fs::create_dir(&logs).expect("a folder");
    server.signal(Signal::SIGUSR1);
    server.wait_until("the new file", |_| file.is_file());
    assert_eq!(server.get("/newest").status, 404);
    server.wait_until("its line", |_| text(&file).contains("/newest"));
}

#[test]
fn usr1_without_a_log_file_does_nothing_and_says_so() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.signal(Signal::SIGUSR1);
    server.wait_until("the words", |server| {
        server.stderr_text().contains("SIGUSR1: nothing to do (a --log-file")
    });
}

#[test]
fn a_log_file_that_cannot_be_opened_is_refused_at_the_start() {
    let (dir, _) = folder();
    let path = dir.path();
    nix::unistd::mkfifo(&path.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    fs::write(path.join("plain"), "").expect("a file");
    let start = |file: &Path| {
        let mut command = Command::new(server_program());
        command.arg(test_worker()).args(["w:1", "http:127.0.0.1:0", "--log-file"]).arg(file);
        command.env("RIP_SOCKET_DIR", path.join("s")).env("NODE_ENV", "production");
        command
    };
    for (file, words) in [
        (path.join("missing/access.log"), "mkdir -p"),
        (path.to_path_buf(), "it is a folder"),
        (path.join("plain/access.log"), "is no folder"),
        (path.join("pipe"), "a pipe that nobody reads"),
    ] {
        let output = output(start(&file));
        assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{}", output.stderr);
        assert_eq!(output.stderr.matches('\n').count(), 1, "one line: {}", output.stderr);
        assert!(output.stderr.contains(words) && output.stderr.contains("--log-file"), "{}", output.stderr);
    }
    if nix::unistd::geteuid().is_root() {
        let mut command = start(Path::new("/var/log/rip-server-nobody.log"));
        // A folder that is its own, and of nobody else's tests.
        let sockets = std::env::temp_dir().join(format!("rip-test-{}", std::process::id()));
        command.uid(12345).gid(12345).env("RIP_SOCKET_DIR", &sockets);
        let output = output(command);
        let _ = fs::remove_dir_all(&sockets);
        assert!(output.code == 1 && output.stderr.contains("user 12345 may not write"), "{}", output.stderr);
    } else {
        note("a log file of another user", "only root can be one");
    }
}

#[test]
fn a_full_disk_under_the_log_file_is_told_and_loses_no_request() {
    if !Path::new("/dev/full").exists() {
        return note("a full disk", "there is no /dev/full");
    }
    let mut server = server_with(Path::new("/dev/full"), &["--json"]);
    for _ in 0..3 {
        assert_eq!(server.get("/ping").text(), "pong");
    }
    server.wait_until("the words", |server| {
        server.stderr_text().contains("'/dev/full' cannot be written to: No space left on device")
    });
    assert_eq!(server.get("/ping").text(), "pong");
}
