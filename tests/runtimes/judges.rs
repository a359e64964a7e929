//! What others have written judges the Python harness: `wsgiref.validate`, `websockets`, and h11 where it is installed.

use super::fixture::{Fixture, python, python_program};
use super::support::Response;
use std::path::Path;
use std::process::Command;

/// Rounds of the mutators; each head takes some 150 µs, and each few frames 400.
const HEADS: &str = "4000";
const FRAMES: &str = "2000";
const SEED: &str = "1";

#[test]
fn mutated_heads_are_refused_or_read_as_h11_reads_them() {
    let Some(_fixture) = Fixture::empty(&python(&["sys"]), "heads") else { return };
    judge("python_heads.py", &["tests/cases/http-requests.json"], HEADS);
}

#[test]
fn mutated_frames_of_websockets_are_read_as_websockets_reads_them() {
    let Some(_fixture) = Fixture::empty(&python(&["websockets"]), "frames") else { return };
    judge("python_frames.py", &[], FRAMES);
}

/// Runs a script of this folder on the harness.
fn judge(script: &str, files: &[&str], rounds: &str) {
    let place = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let output = Command::new(python_program().expect("it is installed, as was looked"))
        .arg(place("tests/runtimes").join(script))
        .arg(place("src/runtime/python"))
        .args(files.iter().map(|name| place(name)))
        .args([SEED, rounds])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("Python can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
}

const VALIDATED: &str = "
import warnings
from wsgiref.validate import validator
from wsgi import application as app
warnings.simplefilter('error')
application = validator(app)
";

#[test]
fn wsgiref_finds_no_fault_with_the_environ_and_the_answers() {
    for at_once in ["c:1", "c:4"] {
        let Some(fixture) = Fixture::copy_of(&python(&["sys"]), "tests/apps/contract") else { return };
        fixture.write("validated.py", VALIDATED);
        fixture.write("long", &"x".repeat(300_000));
        let server = fixture.server(Some("validated.py")).env("CONTRACT_DIR", fixture.dir());
        let mut server = server.args(["w:1", "--hot-reload=none", at_once]).start();
        server.wait_for_workers(1);
        let mut client = server.client();
        let said = |response: &Response| (response.status, response.text());
        let long = fixture.file("long").display().to_string();
        assert_eq!(said(&client.get("/hello?a=%20")), (200, "hello".into()), "{}", server.stderr_text());
        assert!(
            said(&client.post("/sha", &[1; 300_000])).1.starts_with("300000 "),
            "{}",
            server.stderr_text()
        );
        assert_eq!(said(&client.post("/ignore", &[1; 300_000])), (200, "ignored".into()));
        assert_eq!(client.get(&format!("/pieces?{long}")).body.len(), 300_000, "{}", server.stderr_text());
        assert_eq!(client.get(&format!("/file?{long}")).body.len(), 300_000);
        assert_eq!(client.get("/missing").status, 404);
        client.send_request("HEAD", "/missing", "", b"");
        assert_eq!(client.read_response_to_head().status, 404);
        client.send_request("OPTIONS", "*", "", b"");
        assert_eq!(client.read_response().status, 404, "{}", server.stderr_text());
        client.send(
            b"GET /fields HTTP/1.1\r\nHost: [::1]:80\r\nX-Latin: \xe9\r\nX-Many: a\r\nX-Many: b\r\n\r\n",
        );
        assert_eq!(client.read_response().status, 200, "{}", server.stderr_text());
        // What it cannot raise it prints.
        let words = server.stderr_text();
        assert!(!words.contains("without being closed") && !words.contains("Traceback"), "{words}");
    }
}
