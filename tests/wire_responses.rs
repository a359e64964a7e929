//! Plays `cases/worker-responses.json`: what workers send, byte by byte as the cases say, against the real server.
//! What the client gets must be as the cases say, and the next request must get its own answer.

mod support;

use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::cases::{self, FieldRules, excerpt};
use support::message::{request_head_faults, response_head_faults};
use support::{Answer, Client, RawWorker, Reads, Response, Server, Then, Trouble, WorkerRequest};

/// Each play has a server of its own, and mostly waits.
const THREADS: usize = 12;
/// An answer has ended, or was given up, within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// What a worker has written is with the client within this. A connection that is quiet for so long stays open.
const SOON: Duration = Duration::from_secs(1);
/// Requests around the case's own, which the worker answers with an echo.
const BEFORE: &str = "/before";
const NEXT_THERE: &str = "/next-there";
const NEXT_ELSEWHERE: &str = "/next-elsewhere";

#[derive(Debug, Clone)]
struct Case {
    id: String,
    request: Vec<u8>,
    flags: Vec<String>,
    is_kept_alive: bool,
    reads: Reads,
    answer: Answer,
    second_answer: Option<Answer>,
    status: Vec<u16>,
    interim: Option<Vec<u16>>,
    fields: FieldRules,
    body: Option<Vec<u8>>,
    body_prefix: Option<Vec<u8>>,
    connection: Option<String>,
    worker_reused: Option<bool>,
    worker_requests: Option<usize>,
}

/// What came of a play.
#[derive(Debug)]
struct Outcome {
    response: Response,
    /// Why it is not whole.
    cut: Option<Trouble>,
    /// The body as far as it came within [`SOON`].
    soon: Vec<u8>,
    /// How the connection ended behind the answer; `TimedOut`: not at all.
    end: Trouble,
    next: Vec<Next>,
    /// The workers' requests, but for those around the case's own.
    requests: Vec<WorkerRequest>,
    /// Requests that came behind it.
    later_requests: Vec<WorkerRequest>,
    faults: Vec<String>,
}

/// What one of the next requests got.
#[derive(Debug)]
struct Next {
    target: &'static str,
    result: Result<Response, Trouble>,
}

#[test]
fn all_cases() {
    let cases: Vec<Case> = cases::load("worker-responses.json").iter().map(Case::parse).collect();
    cases::play_all(&cases, THREADS, |case| case.id.clone(), |(), case| play(case));
}

#[test]
fn the_runner_can_fail() {
    let plain = json!({"id": "plain", "why": "", "source": "",
        "worker_sends": ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"], "worker_then": "keep",
        "expect": {"status": [200], "interim": [], "body": "hello", "body_prefix": "he", "connection": "open",
            "worker_reused": true, "worker_requests": 1, "headers": {"x-a": "b"}, "headers_present": ["date"],
            "headers_absent": ["x-b"], "count": {"x-a": 1}}});
    assert_eq!(play(&Case::parse(&plain)), Vec::<String>::new());
    let cut = json!(["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"]);
    let mut wrong_cases = Vec::new();
    for (part, key, wrong) in [
        ("expect", "status", json!([502])),
        ("expect", "interim", json!([103])),
        ("expect", "body", json!("hell")),
        ("expect", "body_prefix", json!("hi")),
        ("expect", "connection", json!("close")),
        ("expect", "connection", json!("cut")),
        ("expect", "worker_reused", json!(false)),
        ("expect", "worker_requests", json!(2)),
        ("expect", "headers", json!({"x-a": "c"})),
        ("expect", "headers_present", json!(["x-b"])),
        ("expect", "headers_absent", json!(["x-a"])),
        ("expect", "count", json!({"x-a": 2})),
        ("", "worker_sends", cut),
        ("", "worker_then", json!("close")),
    ] {
        let mut doctored = plain.clone();
        let place = if part.is_empty() { &mut doctored } else { &mut doctored[part] };
        place[key] = wrong.clone();
        doctored["id"] = format!("{key}: {wrong}").into();
        if key == "worker_sends" {
            doctored["worker_then"] = "close".into();
        }
        wrong_cases.push(Case::parse(&doctored));
    }
    std::thread::scope(|scope| {
        for case in &wrong_cases {
            scope.spawn(|| assert!(!play(case).is_empty(), "{} passes", case.id));
        }
    });
}

impl Case {
    fn parse(value: &Value) -> Case {
        let expect = &value["expect"];
        cases::assert_known_keys(
            value,
            &[
                "id",
                "why",
                "source",
                "request",
                "request_body_bytes",
                "flags",
                "kept_alive",
                "worker_reads",
                "worker_sends",
                "worker_then",
                "second_worker_sends",
                "expect",
            ],
        );
        let known =
            ["status", "interim", "body", "body_prefix", "connection", "worker_reused", "worker_requests"];
        cases::assert_known_keys(expect, &[&known[..], &FieldRules::KEYS].concat());
        let bytes = |value: &Value| cases::text(value).map(|text| support::latin1_bytes(&text));
        let mut request =
            bytes(&value["request"]).unwrap_or_else(|| b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
        let body_bytes = cases::number(&value["request_body_bytes"]).unwrap_or(0);
        request.resize(request.len() + body_bytes, b'x');
        let (then, resets) = match value["worker_then"].as_str() {
            Some("keep") => (Then::Keep, false),
            Some("close") => (Then::Close, false),
            Some("hang") => (Then::Hang, false),
            // A Unix socket is reset by closing it with unread input.
            Some("rst") => (Then::Close, true),
            other => panic!("worker_then: {other:?}"),
        };
        let reads_head = value["worker_reads"] == "head" || resets;
        // A second worker's answer that is an empty list: it closes without a byte.
        let second_writes =
            value["second_worker_sends"].is_array().then(|| cases::writes(&value["second_worker_sends"]));
        let second_then = |writes: &Vec<Vec<u8>>| {
            if writes.is_empty() { Then::Close } else { Then::Keep }
        };
        Case {
            id: cases::text(&value["id"]).expect("an id"),
            request,
            flags: cases::texts(&value["flags"]),
            is_kept_alive: value["kept_alive"] == true,
            reads: if reads_head { Reads::Head } else { Reads::All },
            answer: Answer { writes: cases::writes(&value["worker_sends"]), then },
            second_answer: second_writes.map(|writes| Answer { then: second_then(&writes), writes }),
            status: cases::statuses(&expect["status"]).expect("statuses"),
            interim: cases::statuses(&expect["interim"]),
            fields: FieldRules::of(expect),
            body: bytes(&expect["body"]),
            body_prefix: bytes(&expect["body_prefix"]),
            connection: cases::text(&expect["connection"]),
            worker_reused: expect["worker_reused"].as_bool(),
            worker_requests: cases::number(&expect["worker_requests"]),
        }
    }

    fn is_head(&self) -> bool {
        self.request.starts_with(b"HEAD ")
    }

    /// The status that body, fields and connection are about.
    fn governed_status(&self) -> u16 {
        let is_answer = |status: &&u16| !matches!(status, 502 | 504);
        *self.status.iter().find(is_answer).unwrap_or(&self.status[0])
    }
}

fn play(case: &Case) -> Vec<String> {
    let flags: Vec<&str> = case.flags.iter().map(String::as_str).collect();
    let server = Server::without_workers(&flags);
    let answer_with = |answer: &Answer| {
        let answer = Arc::new(answer.clone());
        move |request: &WorkerRequest| match request.target.as_str() {
            BEFORE | NEXT_THERE | NEXT_ELSEWHERE => Answer::echo(request),
            _ => Answer::clone(&answer),
        }
    };
    // Who joins goes to the bottom of the stack, so the first one is asked first.
    let first = RawWorker::join_reading(case.reads, &server, 0, answer_with(&case.answer));
    let second = case.second_answer.as_ref().map(|answer| RawWorker::join(&server, 1, answer_with(answer)));

    let mut client = server.client();
    if case.is_kept_alive {
        let response = client.get(BEFORE);
        assert_eq!(response.header("x-echo-target"), Some(BEFORE), "the exchange before");
    }
    client.send(&case.request);
    let (response, cut, soon, end) = read_answer(&mut client, case);
    // All that the worker has to say is said before the next request.
    support::wait_until("the worker's answer", || first.answer_count() == first.request_count());
    let next = ask_again(&server, client, case, &end, &first);

    let mut all: Vec<WorkerRequest> = first.requests();
    all.extend(second.iter().flat_map(RawWorker::requests));
    let mut faults = first.faults();
    faults.extend(second.iter().flat_map(RawWorker::faults));
    for request in &all {
        faults.extend(request_head_faults(&request.head).iter().map(|fault| format!("a worker got {fault}")));
    }
    let is_later = |request: &WorkerRequest| matches!(request.target.as_str(), NEXT_THERE | NEXT_ELSEWHERE);
    let (later_requests, requests) =
        all.into_iter().filter(|request| request.target != BEFORE).partition(is_later);
    let outcome = Outcome { response, cut, soon, end, next, requests, later_requests, faults };
    let mut faults = outcome.check(case);
    if !faults.is_empty() {
        faults.push(outcome.describe());
        faults.extend(server.stderr_lines().into_iter().filter(|line| line.contains("panicked")));
    }
    faults
}

/// The answer, why it is not whole if it is not, what of its body came soon, and the connection's end behind it.
fn read_answer(client: &mut Client, case: &Case) -> (Response, Option<Trouble>, Vec<u8>, Trouble) {
    let read =
        |client: &mut Client, time| client.wire.read_response(Instant::now() + time, |_| case.is_head());
    let soon = read(client, SOON);
    let mut soon_bytes = match &soon {
        Ok(response) => response.body.clone(),
        Err(broken) => broken.response.body.clone(),
    };
    let last = match soon {
        // Still on its way: to be read again, from its start. An endless one is open if it stays so for a while.
        Err(broken) if broken.trouble == Trouble::TimedOut => {
            let stays_open = case.body_prefix.is_some() && case.connection.as_deref() == Some("open");
            read(client, if stays_open { SOON } else { ANSWER_WITHIN })
        }
        last => last,
    };
    match last {
        Ok(mut response) if response.status == 101 => {
            // Raw bytes follow.
            (response.body, _) = client.wire.read_to_end(Instant::now() + SOON);
            soon_bytes.clone_from(&response.body);
            let end = client.wire.fill(Instant::now() + SOON).err().unwrap_or(Trouble::TimedOut);
            (response, None, soon_bytes, end)
        }
        Ok(response) => {
            let closes = matches!(case.connection.as_deref(), Some("close" | "cut"));
            let time = if closes { ANSWER_WITHIN } else { Duration::ZERO };
            let (_, end) = client.wire.read_to_end(Instant::now() + time);
            (response, None, soon_bytes, end)
        }
        Err(broken) => {
            let end = broken.trouble.clone();
            (broken.response, Some(broken.trouble), soon_bytes, end)
        }
    }
}

/// The next requests: on the same connection where that is still good for one, and on another.
fn ask_again(
    server: &Server,
    mut client: Client,
    case: &Case,
    end: &Trouble,
    worker: &RawWorker,
) -> Vec<Next> {
    let mut next = Vec::new();
    let is_ready = *end == Trouble::TimedOut && case.answer.then != Then::Hang;
    if is_ready && case.connection.as_deref() == Some("open") {
        next.push(Next::ask(&mut client, NEXT_THERE));
    }
    // Whoever hung would be in the way of the next request.
    drop(client);
    worker.let_go();
    next.push(Next::ask(&mut server.client(), NEXT_ELSEWHERE));
    next
}

impl Next {
    fn ask(client: &mut Client, target: &'static str) -> Next {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let _ = client.try_send(head);
        let result = client.read_response_within(ANSWER_WITHIN).map_err(|broken| broken.trouble);
        Next { target, result }
    }

    fn fault(&self) -> Option<String> {
        let is_own = |response: &Response| {
            response.status == 200
                && response.header("x-echo-target") == Some(self.target)
                && response.body == b"echo"
        };
        match &self.result {
            Ok(response) if is_own(response) => None,
            Ok(response) => Some(format!(
                "{} got {} {}",
                self.target,
                excerpt(&response.head.raw),
                excerpt(&response.body)
            )),
            Err(trouble) => Some(format!("{} got no answer: {trouble:?}", self.target)),
        }
    }
}

impl Outcome {
    fn check(&self, case: &Case) -> Vec<String> {
        let mut faults = self.faults.clone();
        let status = self.response.status;
        if !case.status.contains(&status) {
            faults.push(format!("expected status {:?}, got {status}", case.status));
        }
        if status != 0 {
            faults.extend(response_head_faults(&self.response));
        }
        if status == case.governed_status() {
            faults.extend(self.check_answer(case));
            faults.extend(self.check_connection(case));
        }
        faults.extend(self.next.iter().filter_map(Next::fault));
        faults.extend(self.check_workers(case));
        faults
    }

    fn check_answer(&self, case: &Case) -> Vec<String> {
        let mut faults = case.fields.faults(&self.response.head);
        let interim = self.response.interim_statuses();
        if case.interim.as_ref().is_some_and(|expected| *expected != interim) {
            faults.push(format!("expected interim {:?}, got {interim:?}", case.interim));
        }
        if let Some(expected) = case.body.as_ref().filter(|expected| **expected != self.response.body) {
            faults.push(format!(
                "expected the body {}, got {}",
                excerpt(expected),
                excerpt(&self.response.body)
            ));
        }
        if let Some(expected) = case.body_prefix.as_ref().filter(|expected| !self.soon.starts_with(expected))
        {
            faults.push(format!(
                "expected {} within a second, got {}",
                excerpt(expected),
                excerpt(&self.soon)
            ));
        }
        faults
    }

    fn check_connection(&self, case: &Case) -> Option<String> {
        // Only an answer that never ends may be unfinished and open.
        let is_endless = case.answer.then == Then::Hang && case.body_prefix.is_some();
        let is_fine = match (case.connection.as_deref(), &self.cut, &self.end) {
            (Some("open"), None, Trouble::TimedOut) => true,
            (Some("open"), Some(Trouble::TimedOut), _) => is_endless,
            (Some("close"), None, Trouble::Closed) => true,
            (Some("cut"), Some(Trouble::Closed | Trouble::Reset), _) => true,
            (None, cut, _) => cut.is_none() || case.body.is_none(),
            _ => false,
        };
        let expected = case.connection.as_deref().unwrap_or("a whole answer");
        (!is_fine).then(|| {
            format!("expected {expected}, got {:?} in the answer, {:?} behind it", self.cut, self.end)
        })
    }

    fn check_workers(&self, case: &Case) -> Vec<String> {
        let mut faults = Vec::new();
        if case.worker_requests.is_some_and(|expected| expected != self.requests.len()) {
            faults.push(format!(
                "expected {:?} requests, the workers saw {}",
                case.worker_requests,
                self.requests.len()
            ));
        }
        let place = |request: &WorkerRequest| (request.worker, request.connection);
        let own = self.requests.iter().find(|request| request.worker == 0).map(place);
        let is_reused = self.later_requests.iter().any(|request| Some(place(request)) == own);
        if case.worker_reused.is_some_and(|expected| expected != is_reused) {
            faults.push(format!("expected reuse {:?}, got {is_reused}", case.worker_reused));
        }
        faults
    }

    fn describe(&self) -> String {
        let (head, body) = (excerpt(&self.response.head.raw), excerpt(&self.response.body));
        let seen: Vec<(u64, usize, &str)> = self
            .requests
            .iter()
            .chain(&self.later_requests)
            .map(|request| (request.worker, request.connection, request.target.as_str()))
            .collect();
        format!(
            "got {head} {body}, {:?}, then {:?}; (worker, connection, target): {seen:?}",
            self.cut, self.end
        )
    }
}
