//! The systemd unit: its keys, what `systemd-analyze` says of it, and whether its commands do what it wants.

use super::{default_drain, example, find_program};
use crate::load::write_script;
use crate::support::server::output;
use crate::support::skip::note;
use crate::support::{Server, test_worker};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const UNIT: &str = "rip-server@.service";
const PROGRAM: &str = "/usr/local/bin/rip-server";
const APP: &str = "/srv/%i/current";

/// All values of a key, in order.
fn values(key: &str) -> Vec<String> {
    let unit = example(UNIT);
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
    unit.lines().filter_map(value).collect()
}

#[track_caller]
fn value(key: &str) -> String {
    let mut all = values(key);
    assert_eq!(all.len(), 1, "{key}: {all:?}");
    all.remove(0)
}

/// `40s`, `10min`
fn seconds(key: &str) -> Duration {
    let text = value(key);
    let parse = |number: &str| number.parse().unwrap_or_else(|_| panic!("{key}={text}"));
    Duration::from_secs(match text.strip_suffix("min") {
        Some(minutes) => parse(minutes) * 60,
        None => parse(text.trim_end_matches('s')),
    })
}

#[test]
fn the_unit_stops_and_reloads_as_the_server_needs_it() {
    assert_eq!(value("Type"), "notify");
    assert_eq!(value("KillMode"), "mixed");
    assert_eq!(value("ExecReload"), format!("{PROGRAM} reload {APP}"));
    assert!(value("ExecStart").starts_with(&format!("{PROGRAM} {APP} ")), "{}", value("ExecStart"));
    let longest = default_drain();
    assert!(seconds("TimeoutStopSec") > longest, "a stop may take {longest:?}");
    assert!(seconds("TimeoutStartSec") > longest, "a reload waits for each worker's end, {longest:?}");
    assert_eq!(value("RestartPreventExitStatus"), "2");
}

#[test]
fn the_unit_keeps_the_sockets_of_each_app_for_itself() {
    assert_eq!(value("RuntimeDirectoryMode"), "0700");
    let folder = value("RuntimeDirectory");
    assert!(folder.contains("%i"), "systemd removes {folder} when any of the apps stops");
    let environment = values("Environment");
    assert!(environment.contains(&format!("RIP_SOCKET_DIR=%t/{folder}")), "{environment:?}");
    assert!(environment.contains(&"NODE_ENV=production".to_owned()), "{environment:?}");
}

#[test]
fn the_unit_hardens_nothing_that_workers_need() {
    let keys = ["MemoryDenyWriteExecute", "ProcSubset", "PrivateNetwork", "PrivateUsers", "DynamicUser"];
    for key in keys {
        assert!(values(key).is_empty(), "{key} would break workers or their sockets");
    }
    for family in ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"] {
        assert!(value("RestrictAddressFamilies").split(' ').any(|phrase| phrase == family), "{family}");
    }
}

#[test]
fn systemd_understands_the_unit() {
    let Some(analyze) = find_program("systemd-analyze") else {
        return note(
            "systemd-analyze verify",
            "there is no systemd-analyze; the keys are checked all the same",
        );
    };
    // A program that is missing is a complaint too.
    let dir = tempfile::tempdir().expect("a temporary folder");
    let program = dir.path().join("rip-server");
    write_script(&program, "#!/bin/sh\n");
    let unit = dir.path().join(UNIT);
    let text = example(UNIT).replace(PROGRAM, &program.display().to_string());
    std::fs::write(&unit, text).expect("a file can be written");
    let mut command = Command::new(analyze);
    command.args(["verify", "--man=no"]).arg(&unit);
    let verdict = output(command);
    let complaints: Vec<&str> = verdict.stderr.lines().filter(|line| line.contains(UNIT)).collect();
    assert!(verdict.code == 0 && complaints.is_empty(), "exit {}: {}", verdict.code, verdict.stderr);
}

/// As systemd would, but for the port and the folder above the app's.
#[test]
fn the_units_commands_serve_and_follow_the_symlink_at_a_reload() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let app = dir.path().join(APP.replace("%i", "shop").trim_start_matches('/'));
    let release = |name: &str| {
        let release = app.with_file_name(name);
        std::fs::create_dir_all(&release).expect("a folder");
        symlink(test_worker(), release.join("index")).expect("a symlink");
        release
    };
    let (old, new) = (release("r1"), release("r2"));
    symlink(old, &app).expect("a symlink");
    let start = value("ExecStart");
    let words = start.split(' ').skip(2).map(str::to_owned);
    let mut server = super::dockerfiles::with_words(Server::builder(&app), words).start();
    let workers = server.announced_workers() as u64;
    server.wait_for_workers(workers);
    assert_eq!(server.app(), "shop");
    std::fs::remove_file(&app).and_then(|()| symlink(&new, &app)).expect("the symlink is moved");
    let reload = server.verb(["reload"]);
    assert_eq!(reload.code, 0, "{}", reload.stderr);
    let details = server.details();
    let release = details["release"].as_str().expect("the release's path");
    let release = Path::new(release).canonicalize().expect("it is there");
    assert_eq!(release, new.join("index").canonicalize().expect("it is there"));
}
