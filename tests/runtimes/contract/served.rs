//! Rules that take both sides: asked through the real server.

use super::marks::Cell;
use super::worker::{Folder, poll_timeout};
use super::{Column, Fixture, Rule, Served};
use crate::support::{Client, Response, TEST_TIMEOUT, Trouble, comes_true};
use std::time::Duration;

pub const RULES: &[Rule] = &[
    Rule::served(
        "after a 504 the next request waits for the handler: never two, never busy",
        waits_after_a_504,
    ),
    Rule::served("a client that resets is told to the app, and the worker is free", resets_are_told),
    Rule::served("an event stream that its client closes ends within 100 ms", closed_streams_end),
    Rule::served("a method that nobody knows gets to the app, or is a 501", answers_unknown_methods),
    Rule::served("the client's address is the one that no trusted proxy has", knows_the_client),
];

const READ_TIMEOUT_MS: u64 = 250;

impl<'a> Served<'a> {
    pub fn start(column: Column, fixture: &'a Fixture) -> Served<'a> {
        let entry = column.entry(fixture);
        let mut builder = fixture
            .server(entry.to_str())
            .env("CONTRACT_DIR", fixture.dir())
            .args([
                "w:1",
                "--hot-reload=none",
                "--json",
                "--trust-proxy=loopback",
                "--queue-timeout-ms=20000",
            ])
            .arg(format!("--read-timeout-ms={READ_TIMEOUT_MS}"));
        if let Some(command) = column.command() {
            builder = builder.arg("--").args(command);
        }
        let mut server = builder.start();
        server.wait_for_workers(1);
        // A program's first request may take longer than the read timeout where the machine is busy.
        assert!(comes_true(TEST_TIMEOUT, || server.get("/pid").status == 200), "{}", server.stderr_text());
        Served { column, fixture, server, poll_timeout: TEST_TIMEOUT }
    }

    pub fn expects(&mut self, cell: Cell) {
        self.poll_timeout = poll_timeout(cell);
    }

    fn wait_until_told(&self, folder: &Folder) {
        let is_told = || folder.is_told(self.column);
        assert!(comes_true(self.poll_timeout, is_told), "waited in vain: the app is told");
    }

    fn answer(&self, client: &mut Client) -> Response {
        let answer = client.read_response_within(self.poll_timeout);
        answer.unwrap_or_else(|broken| panic!("no whole answer ({:?})", broken.trouble))
    }

    /// The worker's process, as its app says.
    fn pid(&self) -> String {
        let mut client = self.server.client();
        client.send_request("GET", "/pid", "", b"");
        self.answer(&mut client).text()
    }

    fn folder(&self, name: &str) -> Folder {
        Folder::new(self.fixture.dir().join(name))
    }
}

fn waits_after_a_504(served: &mut Served<'_>) {
    let folder = served.folder("late");
    let pid = served.pid();
    let mut first = served.server.client();
    first.send_request("GET", &folder.target("/wait"), "", b"");
    assert_eq!(served.answer(&mut first).status, 504);
    let mut second = served.server.client();
    second.send_request("GET", "/pid", "", b"");
    if served.column == Column::Cgi {
        // A script of a safe method ends with its 504.
        served.wait_until_told(&folder);
    } else {
        let early = second.read_response_within(Duration::from_millis(200));
        let early = early.map(|answer| format!("{} {}", answer.status, answer.text()));
        assert_eq!(early.expect_err("it has to wait").trouble, Trouble::TimedOut);
        folder.go();
    }
    let answer = served.answer(&mut second);
    assert_eq!((answer.status, answer.text()), (200, pid), "{}", served.server.stderr_text());
    let log = served.server.stdout_lines().join("\n");
    assert!(!log.contains("worker_busy"), "{log}");
}

fn resets_are_told(served: &mut Served<'_>) {
    let folder = served.folder("reset");
    let pid = served.pid();
    let mut client = served.server.client();
    client.send_request("GET", &folder.target("/ticks"), "Accept: text/event-stream\r\n", b"");
    super::super::checks::read_until(&mut client, "data: 0");
    client.reset();
    served.wait_until_told(&folder);
    assert_eq!(served.pid(), pid, "{}", served.server.stderr_text());
}

/// Some one after the other; a slow machine may make some of them late.
fn closed_streams_end(served: &mut Served<'_>) {
    const ROUNDS: u32 = 5;
    let pid = served.pid();
    let mut in_time = 0;
    for round in 0..ROUNDS {
        let folder = served.folder(&format!("closed{round}"));
        let mut client = served.server.client();
        client.send_request("GET", &folder.target("/ticks"), "Accept: text/event-stream\r\n", b"");
        super::super::checks::read_until(&mut client, "data: 0");
        let start = std::time::Instant::now();
        client.half_close();
        served.wait_until_told(&folder);
        assert_eq!(served.pid(), pid, "{}", served.server.stderr_text());
        in_time += u32::from(start.elapsed() < Duration::from_millis(100));
    }
    assert!(in_time > 0, "none of {ROUNDS} within 100 ms");
}

fn knows_the_client(served: &mut Served<'_>) {
    let mut client = served.server.client();
    let chain = "X-Forwarded-For: 203.0.113.9, 198.51.100.4\r\n";
    client.send_request("GET", "/client", chain, b"");
    assert_eq!(client.read_response().text(), "198.51.100.4");
}

fn answers_unknown_methods(served: &mut Served<'_>) {
    let pid = served.pid();
    let mut client = served.server.client();
    for method in ["BREW", "get"] {
        client.send_request(method, "/hello", "", b"");
        let answer = served.answer(&mut client);
        assert!(matches!(answer.status, 200 | 404 | 405 | 501), "{method}: {}", answer.status);
        client.send_request("GET", "/pid", "", b"");
        assert_eq!(served.answer(&mut client).text(), pid, "{method}");
    }
}
