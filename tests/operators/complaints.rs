//! Complaints at the start: one line that says what is wrong, and what would do.

use crate::load::write_script;
use crate::support::server::output;
use crate::support::skip::skip;
use crate::support::{Output, Server, run, server_program, test_worker};
use std::path::Path;
use std::process::Command;

#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    assert!(output.code == 1 || output.code == 2, "exit {}: {}", output.code, output.stderr);
    assert_eq!(output.stdout, "", "nothing is started");
    assert_eq!(output.stderr.matches('\n').count(), 1, "one line: {}", output.stderr);
    assert!(output.stderr.starts_with("rip-server: "), "{}", output.stderr);
    for phrase in words {
        assert!(output.stderr.contains(phrase), "'{phrase}' is missing: {}", output.stderr);
    }
}

/// The server's command for an app, with nothing in PATH but that folder.
fn with_path(path: &Path, app: &Path) -> Command {
    let mut command = Command::new(server_program());
    command.env_clear().env("PATH", path).env("RIP_SOCKET_DIR", path.join("s"));
    command.arg(app).args(["w:1", "http:127.0.0.1:0"]);
    command
}

#[test]
fn a_missing_interpreter_is_named_with_how_to_get_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (entry, words) in [
        ("index.rip", &["index.rip", "Bun", "npm install -g bun", "bun.sh"][..]),
        ("index.ts", &["index.ts", "Bun", "npm install -g bun"]),
        ("index.js", &["index.js", "Bun", "Node", "npm install -g bun"]),
        ("index.mjs", &["index.mjs", "Bun", "Node"]),
        ("app.py", &["python3", "apt install python3"]),
        ("config.ru", &["ruby", "apt install ruby"]),
    ] {
        let app = dir.path().join(entry.replace('.', "-"));
        std::fs::create_dir(&app).expect("a folder");
        std::fs::write(app.join(entry), "").expect("a file");
        assert_refused(&output(with_path(dir.path(), &app)), words);
    }
}

#[test]
fn node_alone_is_not_enough_for_typescript_and_that_is_said() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_script(&dir.path().join("node"), "#!/bin/sh\n");
    let app = dir.path().join("shop");
    std::fs::create_dir(&app).expect("a folder");
    std::fs::write(app.join("index.ts"), "").expect("a file");
    assert_refused(&output(with_path(dir.path(), &app)), &["index.ts", "needs Bun", "npm install -g bun"]);
}

#[test]
fn a_missing_command_is_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = with_path(dir.path(), dir.path());
    command.args(["--", "uvicorn", "--uds", "{socket}", "app:app"]);
    assert_refused(&output(command), &["'uvicorn'", "not there"]);
}

/// A command for the test worker, refused for what it listens on.
fn listening_on(place: &str) -> Output {
    let worker = test_worker();
    let app = worker.to_str().expect("a path in UTF-8");
    let metrics_alone = ["http:127.0.0.1:0"];
    let http = metrics_alone.iter().filter(|_| place.starts_with("metrics:"));
    run([app, "w:1", place].iter().chain(http))
}

#[test]
fn a_port_in_use_names_its_holder() {
    let holder = Server::with_test_worker(&["w:1"]);
    let (address, pid) = (holder.address(), format!("pid {}", holder.pid()));
    for phrase in ["http", "metrics"] {
        let refused = listening_on(&format!("{phrase}:{address}"));
        assert_refused(&refused, &[&format!("port {}", address.port()), "in use", &pid, "would do"]);
        assert_eq!(refused.code, 1);
    }
}

#[test]
fn a_metrics_port_in_use_is_told_what_would_do_for_metrics() {
    let holder = Server::with_test_worker(&["w:1"]);
    let refused = listening_on(&format!("metrics:{}", holder.address()));
    assert_refused(&refused, &["in use", "metrics:"]);
}

#[test]
fn a_socket_folder_too_long_says_how_long_it_may_be() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let worker = test_worker();
    let app = worker.to_str().expect("a path in UTF-8");
    let deep = dir.path().join("d".repeat(100));
    let refused = run([app, "http:127.0.0.1:0", "--socket-dir", deep.to_str().expect("UTF-8")]);
    assert_refused(&refused, &["too long", "107", "--socket-dir"]);
}

#[test]
fn a_listeners_path_too_long_says_how_long_it_may_be() {
    let deep = format!("http:unix:/tmp/{}.sock", "d".repeat(110));
    assert_refused(&listening_on(&deep), &["too long", "107"]);
}

#[test]
fn a_port_below_1024_without_the_right_says_so() {
    let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let is_bound = lowest.ok().and_then(|port| port.trim().parse::<u16>().ok()).is_some_and(|port| port > 81);
    let has_setpriv = Command::new("setpriv").arg("--version").output().is_ok();
    if !is_bound || !has_setpriv {
        return skip("a port below 1024", "here anybody may listen there, or there is no setpriv");
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("setpriv");
    if nix::unistd::geteuid().is_root() {
        // Root without that one right.
        command.args(["--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]);
    }
    command.arg(server_program()).arg(test_worker()).args(["w:1", "http:127.0.0.1:81"]);
    command.arg("--socket-dir").arg(dir.path().join("s"));
    assert_refused(&output(command), &["127.0.0.1 port 81", "1024", "would do"]);
}
