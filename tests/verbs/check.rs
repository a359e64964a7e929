//! `check`: one worker is booted and asked, a server that runs is not touched, and nothing is left.

use super::{ByHand, files, folder, program, serve, sockets};
use crate::support::server::output;
use crate::support::{Client, Output, test_worker, wait_until, write_script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// With a folder for temporary files of its own.
fn check(app: &Path, dir: &Path, words: &[&str]) -> Command {
    let temporary = dir.join("t");
    fs::create_dir_all(&temporary).expect("a folder");
    let mut command = program();
    command.arg("check").arg(app).arg(sockets(dir)).args(words).env("TMPDIR", temporary);
    command
}

/// Runs it to its end, behind which nothing is left.
fn checked(app: &Path, dir: &Path, words: &[&str]) -> Output {
    let output = output(check(app, dir, words));
    assert_eq!(files(&dir.join("t")), [""; 0], "{output:?}");
    output
}

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    write_script(&path, &format!("#!/bin/sh\n{text}\n"));
    path
}

#[test]
fn an_app_that_is_served_is_checked_beside_its_server() {
    let dir = folder();
    let server = ByHand::start(serve(&test_worker(), dir.path(), &[]));
    let at = server.first_line.split_once("http=").expect("an address").1.split(' ').next().expect("a word");
    let at = at.parse().expect("an address");
    assert_eq!(Client::connect(at).get("/ping").text(), "pong");
    let before = files(&dir.path().join("s"));
    let variables = dir.path().join("variables");
    fs::write(&variables, "A=1\nB=2\n").expect("a file");
    let place = format!("http:{at}");
    let file = format!("--env-file={}", variables.display());
    let output = checked(&test_worker(), dir.path(), &["w:4", &place, &file]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    let lines: Vec<&str> = output.stdout.lines().map(str::trim).collect();
    assert!(lines[0].starts_with("test-worker: ") && lines[1].contains("2 of "), "{lines:?}");
    assert!(lines[2].contains("joined after"), "{lines:?}");
    assert!(lines[3].ends_with("200") && lines[4].contains("404 text/plain after"), "{lines:?}");
    assert_eq!((lines[5], lines.len()), ("ok", 6));
    assert_eq!(files(&dir.path().join("s")), before, "the server is not touched");
    assert_eq!(Client::connect(at).get("/ping").text(), "pong");
}

#[test]
fn an_app_that_does_not_start_or_fails_its_first_page_is_shown_with_its_own_words() {
    let dir = folder();
    let broken = script(dir.path(), "broken", "echo no database here >&2; exit 7");
    let output = checked(&broken, dir.path(), &[]);
    assert_eq!(output.code, 1, "{output:?}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines[0], "  | no database here");
    assert!(lines[1].contains("'broken' does not start") && lines[1].contains("exit code 7"), "{lines:?}");
    assert_eq!(lines.len(), 2, "{lines:?}");
    let page =
        script(dir.path(), "index.sh", r"printf 'Status: 500\r\nContent-Type: text/plain\r\n\r\nno page'");
    let output = checked(&page, dir.path(), &[]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("answers GET / with 500"), "{output:?}");
}

#[test]
fn wrong_words_are_told_before_anything_is_started() {
    let dir = folder();
    let wrong = dir.path().join("wrong");
    fs::write(&wrong, "no assignment\n").expect("a file");
    let file = format!("--env-file={}", wrong.display());
    for (app, words, complaint) in [
        (test_worker(), &["w:0"][..], "w:0"),
        (test_worker(), &[&file], "line 1 of"),
        (test_worker(), &["--max-qeue=3"], "--max-queue"),
        (dir.path().join("nothing"), &[], "no such file"),
    ] {
        let output = checked(&app, dir.path(), words);
        assert!(output.code == 2 && output.stderr.contains(complaint), "{complaint}: {output:?}");
        assert_eq!(output.stdout, "");
    }
    assert!(!dir.path().join("s").exists(), "no folder for sockets is made");
}

#[test]
fn an_interrupted_check_leaves_nothing() {
    let dir = folder();
    let note = dir.path().join("pid");
    let app = script(dir.path(), "slow", &format!("echo $$ > {}; exec sleep 1000", note.display()));
    let mut command = check(&app, dir.path(), &[]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let check = command.spawn().expect("it can be started");
    let pid = || fs::read_to_string(&note).ok()?.trim().parse::<i32>().ok();
    wait_until("its worker boots", || pid().is_some());
    kill(Pid::from_raw(check.id().cast_signed()), Signal::SIGINT).expect("it lives");
    let output = check.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("SIGINT"), "{stderr}");
    assert_eq!(files(&dir.path().join("t")), [""; 0]);
    let worker = pid().expect("it has told its pid");
    wait_until("its worker is gone", || !crate::support::is_alive(worker));
}
