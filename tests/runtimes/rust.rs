//! Handlers in Rust, in programs that carry the server.

use super::support::{Client, Server, test_worker, wait_until};
use std::process::{Command, Stdio};

fn embedded(environment: &[(&str, &str)], arguments: &[&str]) -> Server {
    let builder = Server::carried_by(test_worker()).args(arguments);
    environment.iter().fold(builder, |builder, (name, value)| builder.env(name, *value)).start()
}

#[test]
fn an_error_by_question_mark_is_a_500_with_a_line_and_one_with_a_status_is_an_answer() {
    let mut server = embedded(&[], &["w:1"]);
    let get = |server: &Server, target| {
        let response = server.get(target);
        (response.status, response.text())
    };
    assert_eq!(get(&server, "/parse?number=7"), (200, "7".into()));
    assert_eq!(get(&server, "/parse"), (400, "which number?\n".into()));
    assert_eq!(get(&server, "/parse?number=x"), (500, "Internal Server Error\n".into()));
    server.wait_until("the error on stderr", |server| {
        server.stderr_text().contains("GET /parse: invalid digit found in string (request ")
    });
    let shown = embedded(&[("NODE_ENV", "development")], &["w:1", "--hot-reload=none"]);
    assert_eq!(get(&shown, "/parse?number=x"), (500, "invalid digit found in string\n".into()));
}

#[test]
fn a_field_that_is_not_valid_is_a_500_that_names_it() {
    let mut server = embedded(&[], &["w:1"]);
    let given = server.get("/header?value=gr%C3%BC%C3%9Fe+x");
    assert_eq!((given.status, given.header("x-given")), (200, Some("gr\u{c3}\u{bc}\u{c3}\u{9f}e x")));
    assert_eq!(server.get("/header?value=a%0d%0aX-Evil:+b").status, 500);
    server.wait_until("a line about it", |server| {
        server.stderr_text().contains(r#"not a header field: "X-Given": "a\r\nX-Evil: b""#)
    });
}

#[test]
fn a_handler_knows_its_client_the_requests_id_and_decoded_parameters() {
    let server = embedded(&[], &["w:1", "--trust-proxy=loopback"]);
    let mut client = server.client();
    let fields = "X-Forwarded-For: 203.0.113.9, 198.51.100.4\r\nX-Request-Id: seven\r\n";
    client.send_request("GET", "/told?n%C3%A4me=a+b%2Bc", fields, b"");
    let response = client.read_response();
    assert_eq!((response.status, response.text()), (207, "198.51.100.4 seven a b+c".into()));
    assert_eq!(response.head.start_line, "HTTP/1.1 207 Multi-Status");
}

#[test]
fn a_programs_own_words_are_defaults() {
    let defaults = ("TEST_DEFAULTS", "w:3 --max-body=5");
    let server = embedded(&[defaults], &[]);
    assert_eq!(server.announced_workers(), 3);
    assert_eq!(server.client().post("/echo", b"123456").status, 413);
    let server = embedded(&[defaults], &["w:1", "--max-body=10"]);
    assert_eq!(server.announced_workers(), 1);
    assert_eq!(server.client().post("/echo", b"123456").status, 200);
    assert_eq!(
        embedded(&[defaults, ("RIP_MAX_BODY", "6")], &[]).client().post("/echo", b"123456").status,
        200
    );
}

#[test]
fn what_a_handler_starts_has_no_signal_blocked() {
    let server = embedded(&[], &["w:1"]);
    assert_eq!(server.get("/childs-mask").text(), "SigBlk:\t0000000000000000\n");
}

#[test]
fn a_concurrent_handler_serves_several_at_once() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().to_str().expect("a path of letters");
    let server = embedded(&[("CONTRACT_DIR", path)], &["w:1", "c:3"]);
    let ask = |name: &str| -> Client {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let mut client = server.client();
        client.send_request("GET", &format!("/wait?{}", folder.display()), "", b"");
        wait_until("the handler", || folder.join("started").exists());
        client
    };
    let mut clients = [ask("a"), ask("b")];
    assert_eq!(server.get("/hello").text(), "hello");
    for (client, name) in clients.iter_mut().zip(["a", "b"]) {
        std::fs::write(dir.path().join(name).join("go"), "").expect("a file");
        assert_eq!(client.read_response().text(), "done");
    }
}

#[test]
fn a_handler_for_one_request_at_a_time_refuses_more() {
    let output = Command::new(test_worker()).args(["w:1", "c:2"]).stdin(Stdio::null()).output();
    let output = output.expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("'c:2'") && said.contains("one request at a time"), "{said}");
}
