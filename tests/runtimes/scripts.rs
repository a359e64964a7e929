//! CGI, and executables that speak the worker protocol.

use super::checks::{App, Exceptions, app, read_until};
use super::fixture::{Fixture, Needs, node};
use super::support::{Server, is_alive};

const NOTHING: Needs = Needs::programs(&[]);

#[test]
fn a_cgi_script_serves() {
    App { exceptions: Exceptions::Script, breaks: false, ..app("cgi", NOTHING) }.check();
}

#[test]
fn an_executable_that_speaks_the_protocol_serves() {
    App {
        entry: Some("index"),
        exceptions: Exceptions::Passed,
        raw_paths: false,
        ..app("node-http", node(&[]))
    }
    .check();
}

fn cgi(arguments: &[&str]) -> (Fixture, Server) {
    let fixture = Fixture::copy_of(&NOTHING, "tests/apps/cgi").expect("a shell is everywhere");
    let mut server = fixture.server(None).with_own_timeouts().arg("w:1").args(arguments).start();
    server.wait_for_workers(1);
    (fixture, server)
}

#[test]
fn a_cgi_script_may_give_every_kind_of_answer() {
    let (_fixture, mut server) = cgi(&[]);
    let missing = server.get("/missing");
    assert_eq!((missing.status, missing.text().as_str()), (404, "nothing here"));
    assert!(missing.header("status").is_none());
    let away = server.get("/away");
    assert_eq!((away.status, away.header("location")), (302, Some("https://example.com/")));
    let inside = server.get("/inside");
    assert_eq!((inside.status, inside.text().as_str()), (200, "hello"));
    assert_eq!(server.get("/circle").status, 500);
    server
        .wait_until("a word of the circle", |server| server.stderr_text().contains("redirects in a circle"));
    let whole = server.get("/nph");
    assert_eq!((whole.status, whole.text().as_str()), (201, "whole"));
}

#[test]
fn a_cgi_script_is_told_of_the_request() {
    let (fixture, server) = cgi(&[]);
    let mut client = server.client();
    let fields =
        "Content-Type: text/x-test\r\nX-Some-Field: some value\r\nProxy: evil\r\nAuthorization: secret\r\n";
    client.send_request("POST", "/env/a%20b%2Fc?q=1&r=%20", fields, b"12345");
    let response = client.read_response();
    let text = response.text();
    let lines: Vec<&str> = text.lines().collect();
    let script = fixture.file("index.sh").canonicalize().expect("the script").display().to_string();
    for expected in [
        "GATEWAY_INTERFACE=CGI/1.1",
        "SERVER_PROTOCOL=HTTP/1.1",
        "SERVER_NAME=a",
        "SERVER_PORT=80",
        "REQUEST_METHOD=POST",
        "SCRIPT_NAME=",
        "PATH_INFO=/env/a b/c",
        "QUERY_STRING=q=1&r=%20",
        "REMOTE_ADDR=127.0.0.1",
        "CONTENT_TYPE=text/x-test",
        "CONTENT_LENGTH=5",
        "HTTP_X_SOME_FIELD=some value",
        &format!("SCRIPT_FILENAME={script}"),
    ] {
        assert!(lines.contains(&expected), "no {expected} in:\n{text}");
    }
    for hidden in ["HTTP_PROXY=", "HTTP_AUTHORIZATION=", "RIP_", "SOCKET_PATH=", "WORKER_ID="] {
        assert!(!lines.iter().any(|line| line.starts_with(hidden)), "{hidden} in:\n{text}");
    }
}

/// The process that the script has started to write for it.
fn helper(server: &mut Server) -> i32 {
    let mut pid = None;
    server.wait_until("the helper's pid", |server| {
        let text = server.stderr_text();
        pid = text.split_once("ticks come from ").and_then(|(_, remaining)| {
            let digits = remaining.split('\n').next()?;
            digits.parse().ok()
        });
        pid.is_some()
    });
    pid.expect("as was waited for")
}

#[test]
fn a_cgi_script_ends_with_all_that_it_has_started_when_its_client_leaves() {
    let (_fixture, mut server) = cgi(&[]);
    let mut client = server.client();
    client.send_request("GET", "/endless", "", b"");
    read_until(&mut client, "tick");
    let helper = helper(&mut server);
    assert!(is_alive(helper));
    client.reset();
    server.wait_until("the helper's end", |_| !is_alive(helper));
    assert_eq!(server.get("/hello").text(), "hello");
}

#[test]
fn a_cgi_script_ends_when_its_time_is_up() {
    let (fixture, mut server) = cgi(&["--read-timeout-ms=2000", "--drain-timeout-ms=300"]);
    let never = fixture.dir().join("never");
    let mut client = server.client();
    client.send_request("GET", &format!("/stream?gate={}", never.display()), "", b"");
    let broken = client.read_response_within(super::support::TEST_TIMEOUT);
    assert_eq!(broken.expect_err("half an answer").response.text(), "first\n");
    let log = |server: &mut Server| server.stdout_lines().join("\n");
    server.wait_until("the access line", |server| log(server).contains("GET /stream"));
    // The worker is free again: the script is not waited for.
    assert_eq!(server.get("/hello").text(), "hello");
}
