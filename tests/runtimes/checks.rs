//! What every runtime must do, asked of its app (`tests/apps/README.md`) through the server.

use super::fixture::{Fixture, Needs};
use super::support::{Broken, Client, Response, Server, Signal, TEST_TIMEOUT, Trouble, is_alive};
use std::time::Instant;

/// An app and what can be asked of it.
#[derive(Debug)]
pub struct App {
    /// In `tests/apps`.
    pub folder: &'static str,
    /// Where the folder's own entry is not meant.
    pub entry: Option<&'static str>,
    pub needs: Needs,
    /// Behind `--`.
    pub command: &'static [&'static str],
    pub exceptions: Exceptions,
    /// The app has a `/break`, and a framework that does not end such an answer as if it were whole.
    pub breaks: bool,
    /// Its parser takes a path that is not escaped, as no browser sends it.
    pub raw_paths: bool,
    pub leavers: Leavers,
}

/// Whose an exception of the app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceptions {
    /// The harness answers, and prints the trace with the request's id.
    Harness,
    /// The framework answers and lets the harness print.
    Passed,
    /// The framework answers and prints a trace, which does not have the request's id.
    Framework,
    /// The framework answers and prints no trace.
    ForwardedFields,
    /// A script that ends without an answer has no trace either.
    Script,
}

/// What becomes of a worker whose client has gone in the middle of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leavers {
    /// The same process goes on with the next request.
    Noticed,
    /// It cannot notice: it is replaced when the drain timeout is over.
    Replaced,
}

/// Most apps: started by their folder, their exceptions left to the harness.
pub const fn app(folder: &'static str, needs: Needs) -> App {
    App {
        folder,
        entry: None,
        needs,
        command: &[],
        exceptions: Exceptions::Harness,
        breaks: true,
        raw_paths: true,
        leavers: Leavers::Noticed,
    }
}

const REQUEST_ID: &str = "the-id-of-this-request";

impl App {
    /// Its folder. `None`: something is not installed.
    pub fn fixture(&self) -> Option<Fixture> {
        Fixture::copy_of(&self.needs, &format!("tests/apps/{}", self.folder))
    }

    pub fn start(&self, fixture: &Fixture, node_env: &str) -> Server {
        let server = fixture.server(self.entry).env("NODE_ENV", node_env);
        let server = server.args(["w:1", "--trust-proxy=loopback", "--hot-reload=none", "--json-logging"]);
        let server = match self.leavers {
            Leavers::Noticed => server,
            Leavers::Replaced => server.arg("--drain-timeout-ms=300"),
        };
        let server = if self.command.is_empty() { server } else { server.arg("--").args(self.command) };
        let mut server = server.start();
        server.wait_for_workers(1);
        server
    }

    /// Everything.
    pub fn check(&self) {
        let Some(fixture) = self.fixture() else { return };
        let mut server = self.start(&fixture, "production");
        answers_get_and_head(&server);
        takes_bodies(&server);
        streams(&server, &fixture);
        passes_cookies(&server);
        passes_utf8(&server, self.raw_paths);
        self.fails_quietly(&mut server);
        if self.breaks {
            cuts_what_breaks(&server, &fixture);
        }
        self.is_freed_by_a_leaver(&server);
        stops(server, &fixture);
        if self.exceptions == Exceptions::Harness {
            shows_traces(&self.start(&fixture, "development"));
        }
    }

    fn fails_quietly(&self, server: &mut Server) {
        let response = fail(server, "Accept: text/html\r\n");
        assert_eq!(response.status, 500);
        assert!(!response.text().contains("told to fail"), "{}", response.text());
        let (exceptions, entry) = (self.exceptions, self.entry.unwrap_or_default());
        server.wait_until("the exception on stderr", |server| {
            let text = server.stderr_text();
            let has_trace = matches!(exceptions, Exceptions::ForwardedFields | Exceptions::Script)
                || has_frame(&text, entry);
            let has_id = matches!(exceptions, Exceptions::ForwardedFields | Exceptions::Framework)
                || text.contains(REQUEST_ID);
            text.contains("told to fail") && has_trace && has_id
        });
    }

    fn is_freed_by_a_leaver(&self, server: &Server) {
        let before = server.get("/pid").text();
        let mut client = server.client();
        client.send_request("GET", "/endless", "", b"");
        read_until(&mut client, "tick");
        client.reset();
        let after = server.get("/pid");
        assert_eq!(after.status, 200, "{}\n{}", after.text(), server.stderr_text());
        assert_eq!(after.text() == before, self.leavers == Leavers::Noticed, "{before}, {}", after.text());
    }
}

fn answers_get_and_head(server: &Server) {
    let mut client = server.client();
    let got = client.get("/hello");
    assert_eq!((got.status, got.text().as_str()), (200, "hello"), "{}", server.stderr_text());
    let media_type = got.header("content-type").unwrap_or_default().to_lowercase();
    assert!(media_type.starts_with("text/plain"), "{media_type}");
    client.send_request("HEAD", "/hello", "", b"");
    let head = client.read_response_to_head();
    assert_eq!(head.status, 200);
    // Bun leaves out what only the body tells.
    let media_type = head.header("content-type");
    assert!(media_type.is_none() || media_type == got.header("content-type"), "{media_type:?}");
    // Not one byte of a body is between that head and the next one.
    assert_eq!(client.get("/hello").text(), "hello");
}

/// 300,000 bytes that repeat late; their SHA-256 is sha256sum's.
const BODY_SHA: &str = "a66d397a4ebf35119b801e438af707aa632b9baea51356d16213fecd4c09abcd";

fn takes_bodies(server: &Server) {
    let body: Vec<u8> = (0..300_000_u32).flat_map(|at| at.to_le_bytes()).take(300_000).collect();
    let expected = format!("{} {BODY_SHA}", body.len());
    let mut client = server.client();
    client.send_request("POST", "/sha", "Content-Type: application/octet-stream\r\n", &body);
    assert_eq!(client.read_response().text(), expected);
    client.send("POST /sha HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\n");
    client.send("Transfer-Encoding: chunked\r\n\r\n");
    for piece in body.chunks(7_777) {
        client.send(format!("{:x}\r\n", piece.len()));
        client.send(piece);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.read_response().text(), expected);
}

/// Asks for a stream that goes on only when its first piece has been seen.
fn gated(server: &Server, fixture: &Fixture, path: &str) -> Result<Response, Box<Broken>> {
    let gate = fixture.dir().join(format!("gate-of-{}", &path[1..]));
    let mut client = server.client();
    client.send_request("GET", &format!("{path}?gate={}", gate.display()), "", b"");
    read_until(&mut client, "first");
    std::fs::write(&gate, "").expect("the gate opens");
    client.read_response_within(TEST_TIMEOUT)
}

fn streams(server: &Server, fixture: &Fixture) {
    let response = gated(server, fixture, "/stream").expect("a whole answer");
    assert_eq!(response.text(), "first\nlast\n");
}

/// The request under way gets its whole answer, and then nothing holds up the end.
fn stops(mut server: Server, fixture: &Fixture) {
    let gate = fixture.dir().join("last-gate");
    let mut client = server.client();
    client.send_request("GET", &format!("/stream?gate={}", gate.display()), "", b"");
    read_until(&mut client, "first");
    let pids = server.worker_pids();
    server.signal(Signal::SIGTERM);
    server.wait_until("a word of its stopping", |server| server.stderr_text().contains("stopping"));
    std::fs::write(&gate, "").expect("the gate opens");
    assert_eq!(client.read_response().text(), "first\nlast\n");
    // A connection that stays gets a second for a request that is on its way.
    drop(client);
    assert_eq!(server.wait_exit(), 0, "{}", server.stderr_text());
    assert!(!pids.iter().any(|&pid| is_alive(pid)), "{}", server.stderr_text());
}

/// Half an answer never looks whole.
fn cuts_what_breaks(server: &Server, fixture: &Fixture) {
    let broken = gated(server, fixture, "/break").map(|response| response.text());
    let Broken { trouble, response } = *broken.expect_err("half an answer");
    assert_ne!(trouble, Trouble::TimedOut);
    assert_eq!((response.status, response.text().as_str()), (200, "first\n"));
    assert_eq!(server.get("/hello").text(), "hello");
}

fn passes_cookies(server: &Server) {
    let response = server.get("/cookies");
    // Frameworks order and spell a cookie's attributes in their own ways.
    let cookies: Vec<String> = response.head.values("set-cookie").map(str::to_lowercase).collect();
    assert_eq!(cookies.len(), 2, "{cookies:?}");
    assert!(cookies[0].starts_with("a=1") && cookies[0].contains("path=/"), "{cookies:?}");
    assert!(cookies[1].starts_with("b=2") && cookies[1].contains("01 jan 1970 00:00:00 gmt"), "{cookies:?}");
}

fn passes_utf8(server: &Server, raw_paths: bool) {
    let mut client = server.client();
    let raw = raw_paths.then_some("/echo/grüße-€");
    for path in ["/echo/gr%C3%BC%C3%9Fe-%E2%82%AC"].into_iter().chain(raw) {
        client.send_request("GET", path, "X-Name: Zoë €\r\n", b"");
        let response = client.read_response();
        assert_eq!((response.status, response.text().as_str()), (200, "/echo/grüße-€"), "{path}");
        // Heads are read as Latin-1.
        let echoed = response.header("x-echo").unwrap_or_default();
        assert_eq!(echoed, super::support::latin1("Zoë €".as_bytes()), "{path}");
    }
}

fn fail(server: &Server, fields: &str) -> Response {
    let mut client = server.client();
    client.send_request("GET", "/fail", &format!("X-Request-Id: {REQUEST_ID}\r\n{fields}"), b"");
    let response = client.read_response();
    // The worker serves on.
    assert_eq!(client.get("/hello").text(), "hello");
    response
}

/// Whether a trace's line names the app's file.
fn has_frame(stderr: &str, entry: &str) -> bool {
    let names = [entry, "index.mjs", "index.ts", "handler.mjs", "app.py", "wsgi.py", "asgi.py", "config.ru"];
    names.iter().any(|name| !name.is_empty() && stderr.contains(&format!("/{name}")))
}

fn shows_traces(server: &Server) {
    let page = fail(server, "Accept: text/html\r\n");
    assert_eq!(page.status, 500);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{page:?}");
    let text = page.text();
    assert!(text.contains("<pre>") && text.contains("told to fail") && has_frame(&text, ""), "{text}");
    let plain = fail(server, "Accept: application/json\r\n");
    assert!(plain.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{plain:?}");
    assert!(plain.text().contains("told to fail") && has_frame(&plain.text(), ""), "{}", plain.text());
}

/// Reads without taking.
pub fn read_until(client: &mut Client, text: &str) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !String::from_utf8_lossy(client.wire.pending_bytes()).contains(text) {
        let came = client.wire.fill(deadline);
        let pending_bytes = String::from_utf8_lossy(client.wire.pending_bytes()).into_owned();
        came.unwrap_or_else(|trouble| panic!("no {text:?} ({trouble:?}): {pending_bytes}"));
    }
}
