//! CGI scripts: what they are told, and that nothing of them stays behind.

use super::fixture::{Fixture, Needs};
use super::support::{Broken, Server, Signal, TEST_TIMEOUT, Trouble, is_alive, wait_until, write_script};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const SCRIPT: &str = r#"#!/bin/sh
plain() { printf 'Content-Type: text/plain\n\n'; }
case "$PATH_INFO" in
  /env*) plain; env ;;
  /blocked) plain; grep SigBlk /proc/self/status; ls -l /proc/self/fd ;;
  /long)
    sleep 600 &
    echo "$$ $!" >"$QUERY_STRING.new" && mv "$QUERY_STRING.new" "$QUERY_STRING"
    wait
    ;;
  /killed) plain; echo first; sleep 0.1; kill -9 $$ ;;
  /failed) plain; echo whole; exit 7 ;;
  /silent-child) plain; echo first; sleep 600 & ;;
  /late-child) plain; echo first; (sleep 0.1; echo last) & ;;
  /closed) plain; echo first; exec >&-; sleep 0.2; : >"$QUERY_STRING" ;;
  *) plain; printf %s "$PATH_INFO" ;;
esac
"#;

fn cgi(arguments: &[&str]) -> (Fixture, Server) {
    let fixture = Fixture::empty(&Needs::programs(&[]), "app").expect("a shell is everywhere");
    write_script(&fixture.file("index.sh"), SCRIPT);
    let mut server = fixture.server(None).arg("w:1").args(arguments).start();
    server.wait_for_workers(1);
    (fixture, server)
}

fn get(server: &Server, target: &str) -> (u16, String) {
    let response = server.get(target);
    (response.status, response.text())
}

/// A script that runs for long with a child of its own: both pids.
fn long(fixture: &Fixture, server: &Server) -> (super::support::Client, [i32; 2]) {
    let file = fixture.dir().join("pids");
    let _ = std::fs::remove_file(&file);
    let mut client = server.client();
    // Not GET, which would be tried once more where its worker dies.
    client.send_request("POST", &format!("/long?{}", file.display()), "", b"");
    wait_until("the script's start", || file.exists());
    let text = std::fs::read_to_string(&file).expect("its pids");
    let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    let pids = [pids[0], pids[1]];
    assert!(pids.iter().all(|&pid| is_alive(pid)), "{pids:?}");
    (client, pids)
}

fn are_gone(what: &str, pids: [i32; 2]) {
    wait_until(&format!("the end of a script and its child after {what}"), || {
        !pids.iter().any(|&pid| is_alive(pid))
    });
}

#[test]
fn a_script_and_what_it_has_started_end_with_its_worker() {
    let (fixture, mut server) = cgi(&["--drain-timeout-ms=200"]);
    let (_client, pids) = long(&fixture, &server);
    let before = server.worker_pids();
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).expect("the worker");
    are_gone("the kill of its worker", pids);
    server.wait_for_successors(&before, 1);

    let (_client, pids) = long(&fixture, &server);
    assert_eq!(server.verb(["reload"]).code, 0);
    are_gone("a reload", pids);

    let (_client, pids) = long(&fixture, &server);
    server.signal(Signal::SIGTERM);
    server.wait_exit();
    are_gone("a stop", pids);

    let (fixture, server) = cgi(&[]);
    let (_client, pids) = long(&fixture, &server);
    server.signal(Signal::SIGKILL);
    are_gone("the kill of the server", pids);
}

#[test]
fn a_script_starts_with_an_empty_signal_mask_and_three_descriptors() {
    let (_fixture, server) = cgi(&[]);
    let (_, text) = get(&server, "/blocked");
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    // ls has one more open: the folder itself.
    let others: Vec<&str> = text
        .lines()
        .filter(|line| line.contains(" -> ") && !line.contains("/fd"))
        .filter(|line| {
            !["0", "1", "2"]
                .contains(&line.split(" -> ").next().unwrap_or("").rsplit(' ').next().unwrap_or(""))
        })
        .collect();
    assert!(others.is_empty(), "{text}");
}

#[test]
fn half_an_answer_of_a_script_that_was_killed_does_not_look_whole() {
    let (_fixture, mut server) = cgi(&[]);
    let mut client = server.client();
    client.send_request("GET", "/killed", "", b"");
    let broken = client.read_response_within(TEST_TIMEOUT).map(|whole| whole.text());
    let Broken { trouble, response } = *broken.expect_err("half an answer");
    assert_ne!(trouble, Trouble::TimedOut);
    assert_eq!((response.status, response.text().as_str()), (200, "first\n"));
    server.wait_until("a line about it", |server| {
        server.stderr_text().contains("GET /killed: the answer is cut: the script was ended by SIGKILL")
    });
    // An exit code is that of the last command, often a test's.
    assert_eq!(get(&server, "/failed"), (200, "whole\n".into()));
}

#[test]
fn an_answer_ends_soon_after_its_script_although_a_child_holds_its_stdout() {
    // Longer than this test waits.
    let (_fixture, server) = cgi(&["--read-timeout-ms=600000"]);
    assert_eq!(get(&server, "/silent-child"), (200, "first\n".into()));
    // What a child still writes belongs to the answer.
    assert_eq!(get(&server, "/late-child"), (200, "first\nlast\n".into()));
}

#[test]
fn a_script_that_has_closed_its_stdout_is_let_finish() {
    let (fixture, server) = cgi(&[]);
    let done = fixture.dir().join("done");
    assert_eq!(get(&server, &format!("/closed?{}", done.display())), (200, "first\n".into()));
    wait_until("its last step", || done.exists());
}

#[test]
fn a_path_with_a_nul_is_refused_and_an_asterisk_is_no_path() {
    let (_fixture, server) = cgi(&[]);
    assert_eq!(get(&server, "/a%00b").0, 400);
    assert_eq!(get(&server, "/a%2500b").1, "/a%00b");
    let mut client = server.client();
    client.send_request("OPTIONS", "*", "", b"");
    let response = client.read_response();
    assert_eq!((response.status, response.text()), (200, String::new()));
}

#[test]
fn credentials_are_passed_to_a_script_only_if_that_is_wanted() {
    let fields = "Authorization: Basic c2VjcmV0\r\nProxy-Authorization: Basic c2VjcmV0\r\n";
    let reported = |arguments: &[&str]| {
        let (_fixture, server) = cgi(arguments);
        let mut client = server.client();
        client.send_request("GET", "/env", fields, b"");
        let text = client.read_response().text();
        let lines = text.lines().filter(|line| line.contains("c2VjcmV0") || line.contains("PASS_AUTH"));
        lines.map(str::to_owned).collect::<Vec<String>>()
    };
    assert_eq!(reported(&[]), Vec::<String>::new());
    assert_eq!(reported(&["--cgi-pass-auth"]), ["HTTP_AUTHORIZATION=Basic c2VjcmV0"]);
}
