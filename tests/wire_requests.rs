//! Plays `cases/http-requests.json`: what clients send, in several ways, against the real server with a worker that
//! answers everything. What the server answers, and above all what the worker gets, must be as the cases say.

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::cases::{self, FieldRules, excerpt};
use support::message::{request_head_faults, response_head_faults};
use support::raw_worker::GAP;
use support::{Answer, Client, RawWorker, Response, Server, Trouble, WorkerRequest};

/// Most of a play is waiting whether the connection stays open.
const THREADS: usize = 24;
/// An answer that is due comes within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// A connection that is quiet for so long behind its last answer stays open.
const IDLE_FOR: Duration = Duration::from_secs(1);
/// What the front end refuses with when it cannot say where the next request starts: it has to close.
const REFUSALS_THAT_CLOSE: [u16; 8] = [400, 408, 413, 414, 417, 431, 501, 505];

#[derive(Debug, Clone)]
struct Case {
    id: String,
    writes: Vec<Vec<u8>>,
    half_close: bool,
    flags: Vec<String>,
    status: Vec<u16>,
    later: Vec<Vec<u16>>,
    responses: Option<usize>,
    interim: Option<Vec<u16>>,
    then: String,
    reaches_worker: Option<bool>,
    worker_requests: Option<usize>,
    worker_never_sees: Vec<String>,
    worker_sees: WorkerSees,
    targets: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct WorkerSees {
    method: Option<String>,
    target: Option<String>,
    body: Option<Vec<u8>>,
    fields: FieldRules,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    AsWritten,
    OneWrite,
    ByteByByte,
    /// The client goes on sending behind what is refused; it must be able to read its answer all the same.
    GoesOnSending,
}

/// What came of a play.
#[derive(Debug)]
struct Outcome {
    responses: Vec<Response>,
    /// `TimedOut`: still open.
    end: Trouble,
    /// A response that was begun and did not come whole.
    partial: Option<Response>,
    requests: Vec<WorkerRequest>,
    faults: Vec<String>,
}

/// A server with the flags that its cases need, and its worker.
#[derive(Default)]
struct Stage(Option<(Vec<String>, Server, RawWorker)>);

#[test]
fn all_cases_in_all_ways() {
    let cases: Vec<Case> = cases::load("http-requests.json").iter().map(Case::parse).collect();
    let ways = [Way::AsWritten, Way::OneWrite, Way::ByteByByte, Way::GoesOnSending];
    let plays: Vec<(&Case, Way)> = ways
        .iter()
        .flat_map(|&way| cases.iter().filter(move |case| case.suits(way)).map(move |case| (case, way)))
        .collect();
    let name = |(case, way): &(&Case, Way)| format!("{} ({way:?})", case.id);
    cases::play_all(&plays, THREADS, name, |stage: &mut Stage, (case, way)| play(stage, case, *way));
}

#[test]
fn the_runner_can_fail() {
    let plain = json!({"id": "plain", "why": "", "source": "", "send": ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"],
        "expect": {"status": [200], "then": "open", "responses": 1, "reaches_worker": true, "worker_requests": 1,
            "targets": ["/"], "interim": [], "worker_never_sees": ["/smuggled"],
            "worker_sees": {"method": "POST", "target": "/", "body": "hi", "headers": {"host": "a"},
                "headers_present": ["x-request-id"], "headers_absent": ["te"]}}});
    let mut stage = Stage::default();
    assert_eq!(play(&mut stage, &Case::parse(&plain), Way::AsWritten), Vec::<String>::new());
    let mut wrong_cases = Vec::new();
    for (key, wrong) in [
        ("status", json!([400])),
        ("then", json!("close")),
        ("responses", json!(0)),
        ("later", json!([[200]])),
        ("reaches_worker", json!(false)),
        ("worker_requests", json!(0)),
        ("targets", json!(["/other"])),
        ("interim", json!([100])),
        ("worker_never_sees", json!(["/"])),
        ("worker_sees", json!({"method": "GET"})),
        ("worker_sees", json!({"target": "/other"})),
        ("worker_sees", json!({"body": "ho"})),
        ("worker_sees", json!({"headers": {"host": "b"}})),
        ("worker_sees", json!({"headers_present": ["te"]})),
        ("worker_sees", json!({"headers_absent": ["host"]})),
    ] {
        let mut doctored = plain.clone();
        doctored["expect"][key] = wrong.clone();
        doctored["id"] = format!("{key}: {wrong}").into();
        wrong_cases.push(Case::parse(&doctored));
    }
    std::thread::scope(|scope| {
        for case in &wrong_cases {
            scope.spawn(|| {
                let faults = play(&mut Stage::default(), case, Way::OneWrite);
                assert!(!faults.is_empty(), "{} passes", case.id);
            });
        }
    });
}

impl Case {
    fn parse(value: &Value) -> Case {
        let expect = &value["expect"];
        let sees = &expect["worker_sees"];
        cases::assert_known_keys(value, &["id", "why", "source", "send", "half_close", "flags", "expect"]);
        cases::assert_known_keys(
            expect,
            &[
                "status",
                "later",
                "responses",
                "interim",
                "then",
                "reaches_worker",
                "worker_requests",
                "worker_never_sees",
                "worker_sees",
                "targets",
            ],
        );
        if sees.is_object() {
            cases::assert_known_keys(sees, &[&["method", "target", "body"][..], &FieldRules::KEYS].concat());
        }
        Case {
            id: cases::text(&value["id"]).expect("an id"),
            writes: cases::writes(&value["send"]),
            half_close: value["half_close"] == true,
            flags: cases::texts(&value["flags"]),
            status: cases::statuses(&expect["status"]).expect("statuses"),
            later: expect["later"].as_array().into_iter().flatten().filter_map(cases::statuses).collect(),
            responses: cases::number(&expect["responses"]),
            interim: cases::statuses(&expect["interim"]),
            then: cases::text(&expect["then"]).expect("what follows"),
            reaches_worker: expect["reaches_worker"].as_bool(),
            worker_requests: cases::number(&expect["worker_requests"]),
            worker_never_sees: cases::texts(&expect["worker_never_sees"]),
            worker_sees: WorkerSees {
                method: cases::text(&sees["method"]),
                target: cases::text(&sees["target"]),
                body: cases::text(&sees["body"]).map(|body| support::latin1_bytes(&body)),
                fields: FieldRules::of(sees),
            },
            targets: cases::texts(&expect["targets"]),
        }
    }

    /// Whether the case says the same when it is sent that way.
    fn suits(&self, way: Way) -> bool {
        let is_about_time = self.flags.iter().any(|flag| flag.contains("timeout"))
            || self.interim.as_ref().is_some_and(|interim| !interim.is_empty());
        match way {
            Way::AsWritten => true,
            Way::OneWrite => !is_about_time && self.writes.len() > 1,
            Way::ByteByByte => !is_about_time,
            Way::GoesOnSending => {
                let is_refused = self.reaches_worker == Some(false) && self.then == "close";
                is_refused && !is_about_time && !self.half_close && !self.status.contains(&0)
            }
        }
    }
}

fn play(stage: &mut Stage, case: &Case, way: Way) -> Vec<String> {
    let (server, worker) = stage.for_flags(&case.flags);
    let (seen_before, faults_before) = (worker.request_count(), worker.faults().len());
    let mut client = server.client();
    let is_reset = !send(&mut client, case, way) && way == Way::GoesOnSending;
    let asks_head = case.writes.concat().starts_with(b"HEAD ");
    let (responses, end, partial) = read_responses(&mut client, case.responses.unwrap_or(1), asks_head);
    // Whatever was meant for the worker before this one has reached it by now: requests wait in one queue.
    let marker = server.get("/marker");
    let mut requests = worker.requests().split_off(seen_before);
    let is_marked = requests.pop().is_some_and(|last| last.target == "/marker");
    let mut faults = worker.faults().split_off(faults_before);
    if is_reset {
        faults.push(
            "a reset met the client that went on sending: on many systems the answer is lost then".into(),
        );
    }
    if marker.header("x-echo-target") != Some("/marker") || !is_marked {
        faults.push(format!("the next request got status {} {}", marker.status, excerpt(&marker.body)));
    }
    let outcome = Outcome { responses, end, partial, requests, faults };
    let mut faults = outcome.check(case);
    if !faults.is_empty() {
        faults.push(outcome.describe());
        faults.extend(server.stderr_lines().into_iter().filter(|line| line.contains("panicked")));
    }
    faults
}

impl Stage {
    fn for_flags(&mut self, flags: &[String]) -> (&Server, &RawWorker) {
        if self.0.as_ref().is_none_or(|(other, ..)| other != flags) {
            let words: Vec<&str> = flags.iter().map(String::as_str).collect();
            let server = Server::without_workers(&words);
            let worker = RawWorker::join(&server, 0, Answer::echo);
            self.0 = Some((flags.to_vec(), server, worker));
        }
        let (_, server, worker) = self.0.as_ref().expect("there is one by now");
        (server, worker)
    }
}

/// Whether the server took everything. That it has closed meanwhile is no failure of most cases.
fn send(client: &mut Client, case: &Case, way: Way) -> bool {
    /// At both ends of a long case; what lies between is the same over and over.
    const SINGLE_BYTES: usize = 4096;
    let all = case.writes.concat();
    let is_taken = match way {
        Way::AsWritten => send_with_gaps(client, &case.writes),
        Way::OneWrite => client.try_send(&all).is_ok(),
        Way::ByteByByte => {
            let (start, remaining) = all.split_at(all.len().min(SINGLE_BYTES));
            let (middle, end) = remaining.split_at(remaining.len().saturating_sub(SINGLE_BYTES));
            let singly =
                |client: &mut Client, bytes: &[u8]| bytes.chunks(1).all(|byte| client.try_send(byte).is_ok());
            singly(client, start) && client.try_send(middle).is_ok() && singly(client, end)
        }
        Way::GoesOnSending => {
            let more = vec![vec![b'x'; 8192]; 6];
            client.try_send(&all).is_ok() && send_with_gaps(client, &more)
        }
    };
    if case.half_close {
        client.half_close();
    }
    is_taken
}

/// Whether the server took everything.
fn send_with_gaps(client: &mut Client, writes: &[Vec<u8>]) -> bool {
    writes.iter().enumerate().all(|(index, bytes)| {
        let is_broken = index > 0 && client.wire.breaks_within(GAP);
        !is_broken && client.try_send(bytes).is_ok()
    })
}

/// Everything that comes, until the connection ends or is quiet.
fn read_responses(
    client: &mut Client,
    expected: usize,
    asks_head: bool,
) -> (Vec<Response>, Trouble, Option<Response>) {
    let mut responses = Vec::new();
    loop {
        let time = if responses.len() < expected { ANSWER_WITHIN } else { IDLE_FOR };
        // Of refusals only the first can be one of a HEAD: nothing behind it is answered.
        let is_refused_head = asks_head && responses.is_empty();
        let is_bodiless = |head: &support::Head| {
            head.header("x-echo-method").map_or(is_refused_head, |method| method == "HEAD")
        };
        match client.wire.read_response(Instant::now() + time, is_bodiless) {
            Ok(response) => responses.push(response),
            Err(broken) => {
                let is_begun = broken.response.status != 0 || !broken.response.interim.is_empty();
                let partial =
                    (is_begun || !client.wire.pending_bytes().is_empty()).then_some(broken.response);
                return (responses, broken.trouble, partial);
            }
        }
    }
}

impl Outcome {
    fn check(&self, case: &Case) -> Vec<String> {
        let mut faults = self.faults.clone();
        faults.extend(self.check_responses(case));
        faults.extend(self.check_end(case));
        faults.extend(self.check_requests(case));
        faults
    }

    /// Of the first response; 0 for none.
    fn status(&self) -> u16 {
        self.responses.first().map_or(0, |response| response.status)
    }

    fn check_responses(&self, case: &Case) -> Vec<String> {
        let mut faults = Vec::new();
        if !case.status.contains(&self.status()) {
            faults.push(format!("expected status {:?}, got {}", case.status, self.status()));
        }
        for (index, expected) in case.later.iter().enumerate() {
            let status = self.responses.get(index + 1).map_or(0, |response| response.status);
            if !expected.contains(&status) {
                faults.push(format!("response {}: expected status {expected:?}, got {status}", index + 2));
            }
        }
        if case.responses.is_some_and(|expected| expected != self.responses.len()) {
            faults.push(format!("expected {:?} responses, got {}", case.responses, self.responses.len()));
        }
        let first = self.responses.first().or(self.partial.as_ref());
        let interim = first.map(Response::interim_statuses).unwrap_or_default();
        if case.interim.as_ref().is_some_and(|expected| *expected != interim) {
            faults.push(format!("expected interim {:?}, got {interim:?}", case.interim));
        }
        for (index, expected) in case.targets.iter().enumerate() {
            let target = self.responses.get(index).and_then(|response| response.header("x-echo-target"));
            if target != Some(expected) {
                faults.push(format!("response {} answers {target:?}, not {expected:?}", index + 1));
            }
        }
        faults.extend(self.responses.iter().flat_map(response_head_faults));
        faults
    }

    fn check_end(&self, case: &Case) -> Vec<String> {
        let mut faults = Vec::new();
        match (case.then.as_str(), &self.end) {
            ("close", Trouble::Closed) | ("open", Trouble::TimedOut) => {}
            ("any", Trouble::Closed | Trouble::TimedOut) => {}
            (then, end) => faults.push(format!("expected the connection to be {then}, got {end:?}")),
        }
        let refused = self.responses.iter().find(|response| response.header("x-echo-target").is_none());
        if let Some(status) = refused.map(|response| response.status)
            && REFUSALS_THAT_CLOSE.contains(&status)
            && self.end == Trouble::TimedOut
        {
            faults.push(format!("open after a refusal with {status}"));
        }
        faults.extend(self.partial.as_ref().map(|_| "a response that did not come whole".to_owned()));
        faults
    }

    fn check_requests(&self, case: &Case) -> Vec<String> {
        let mut faults = Vec::new();
        let is_answered = (200..400).contains(&self.status());
        if case.reaches_worker.unwrap_or(is_answered) == self.requests.is_empty() {
            faults.push(format!("the worker saw {} requests", self.requests.len()));
        }
        if case.worker_requests.is_some_and(|expected| expected != self.requests.len()) {
            faults.push(format!(
                "expected {:?} requests at the worker, got {}",
                case.worker_requests,
                self.requests.len()
            ));
        }
        for request in &self.requests {
            faults.extend(
                request_head_faults(&request.head).iter().map(|fault| format!("the worker got {fault}")),
            );
            if case.worker_never_sees.contains(&request.target) {
                faults.push(format!("the worker saw {}", request.target));
            }
        }
        if let Some(request) = self.requests.first() {
            faults.extend(case.worker_sees.faults(request));
        }
        faults
    }

    fn describe(&self) -> String {
        let responses: Vec<String> =
            self.responses.iter().chain(&self.partial).map(|response| excerpt(&response.head.raw)).collect();
        let requests: Vec<String> = self.requests.iter().map(|request| excerpt(&request.head.raw)).collect();
        format!("responses: {}; then {:?}; requests: {}", responses.join(", "), self.end, requests.join(", "))
    }
}

impl WorkerSees {
    fn faults(&self, request: &WorkerRequest) -> Vec<String> {
        let mut faults = self.fields.faults(&request.head);
        if self.method.as_ref().is_some_and(|expected| *expected != request.method) {
            faults.push(format!("expected the method {:?}, got {:?}", self.method, request.method));
        }
        if self.target.as_ref().is_some_and(|expected| *expected != request.target) {
            faults.push(format!("expected the target {:?}, got {:?}", self.target, request.target));
        }
        if let Some(expected) = self.body.as_ref().filter(|expected| **expected != request.body) {
            faults.push(format!("expected the body {}, got {}", excerpt(expected), excerpt(&request.body)));
        }
        faults
    }
}
