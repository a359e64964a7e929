//! The failures that operators are shown: requests, and workers that ended otherwise than they were told to. Pure.

use super::access::Record;
use super::timestamp;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// The failed requests that are kept. Older ones are in the log.
const MAX_REQUESTS: usize = 50;
/// The workers' deaths that are kept.
const MAX_DEATHS: usize = 50;
/// Of a path so much is kept: longer ones would fill status.
const MAX_PATH_BYTES: usize = 256;
/// A failure like one of so many before it is counted there: a flood of one kind leaves the others visible.
const MAX_LOOKED_BACK: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// The newest is at the front, here and below.
    requests: VecDeque<FailedRequest>,
    deaths: VecDeque<Death>,
    /// The failed requests since the start, also those that are not kept.
    requests_total: u64,
}

#[derive(Debug)]
struct FailedRequest {
    /// Since 1970, of the last one like it.
    at: Duration,
    what: Subject,
    status: u16,
    reason: Option<String>,
    worker: Option<(usize, i32)>,
    total: Duration,
    /// How many were like it.
    times: u64,
}

/// A request as it is shown: without its query, where secrets travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    method: String,
    path: String,
    id: String,
}

/// How it came to a worker's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// By itself, after its join.
    Crash,
    /// Before its join.
    BootFailure,
    /// Its answer did not end, and it was replaced.
    Stuck,
}

#[derive(Debug)]
struct Death {
    /// Since 1970.
    at: Duration,
    worker: (usize, i32),
    cause: Cause,
    /// What it had at work, as far as that is known.
    request: Option<Subject>,
    /// How it ended; `None`: that is not known yet, or never will be.
    exit: Option<String>,
}

impl Cause {
    const fn code(self) -> &'static str {
        match self {
            Cause::Crash => "crash",
            Cause::BootFailure => "boot_failure",
            Cause::Stuck => "stuck",
        }
    }
}

impl Subject {
    pub(crate) fn new(method: &[u8], path: &[u8], id: &[u8]) -> Self {
        let shown = |bytes: &[u8]| bytes[..bytes.len().min(MAX_PATH_BYTES)].escape_ascii().to_string();
        Subject { method: shown(method), path: shown(path), id: shown(id) }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"method": self.method, "path": self.path, "id": self.id})
    }
}

impl Failures {
    /// A request has ended, well or not.
    pub(crate) fn note(&mut self, record: &Record<'_>, unix: Duration) {
        let is_failure = record.status >= 500 || record.reason.is_some_and(|reason| reason.status() >= 500);
        if is_failure {
            self.requests_total += 1;
            self.add(record, unix);
        }
    }

    fn add(&mut self, record: &Record<'_>, unix: Duration) {
        let what = Subject::new(record.method, record.path, record.id);
        let reason = record.reason.map(|reason| reason.to_string());
        let is_like = |other: &FailedRequest| {
            let key = |what: &Subject| (what.method.clone(), what.path.clone());
            (other.status, &other.reason) == (record.status, &reason) && key(&other.what) == key(&what)
        };
        let like = self.requests.iter().take(MAX_LOOKED_BACK).position(is_like);
        let times = like.and_then(|at| self.requests.remove(at)).map_or(1, |other| other.times + 1);
        self.requests.truncate(MAX_REQUESTS - 1);
        self.requests.push_front(FailedRequest {
            at: unix,
            what,
            status: record.status,
            reason,
            worker: record.worker,
            total: record.total,
            times,
        });
    }

    /// A worker ends, or has to, with this at work. Its exit is told later.
    pub(crate) fn blame(&mut self, worker: (usize, i32), cause: Cause, request: Subject, unix: Duration) {
        let awaits_exit = |death: &&mut Death| death.worker == worker && death.exit.is_none();
        match self.deaths.iter_mut().find(awaits_exit) {
            // Of several requests at once the first one is named.
            Some(death) => death.request = death.request.take().or(Some(request)),
            None => self.add_death(Death { at: unix, worker, cause, request: Some(request), exit: None }),
        }
    }

    /// A worker's process has ended. `cause`: it was not told to.
    pub(crate) fn ended(&mut self, worker: (usize, i32), cause: Option<Cause>, exit: String, unix: Duration) {
        let awaits_exit = |death: &&mut Death| death.worker == worker && death.exit.is_none();
        match (self.deaths.iter_mut().find(awaits_exit), cause) {
            (Some(death), _) => death.exit = Some(exit),
            (None, Some(cause)) => {
                self.add_death(Death { at: unix, worker, cause, request: None, exit: Some(exit) });
            }
            (None, None) => {}
        }
    }

    fn add_death(&mut self, death: Death) {
        self.deaths.truncate(MAX_DEATHS - 1);
        self.deaths.push_front(death);
    }

    /// The failed requests, the newest first.
    pub(crate) fn requests(&self) -> Value {
        let row = |failed: &FailedRequest| {
            let (worker, pid) = failed.worker.unzip();
            json!({
                "at": timestamp(failed.at),
                "method": failed.what.method,
                "path": failed.what.path,
                "id": failed.what.id,
                "status": failed.status,
                "reason": failed.reason,
                "worker": worker,
                "pid": pid,
                "totalSeconds": failed.total.as_secs_f64(),
                "times": failed.times,
            })
        };
        self.requests.iter().map(row).collect()
    }

    /// How many there were, so that whoever looks again knows what it has missed.
    pub(crate) fn requests_total(&self) -> u64 {
        self.requests_total
    }

    /// The workers that have died, the newest first.
    pub(crate) fn deaths(&self) -> Value {
        let row = |death: &Death| {
            json!({
                "at": timestamp(death.at),
                "worker": death.worker.0,
                "pid": death.worker.1,
                "cause": death.cause.code(),
                "exit": death.exit,
                "request": death.request.as_ref().map(Subject::to_json),
            })
        };
        self.deaths.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Reason;
    use crate::http::reason::Bad;

    fn record(path: &str, status: u16, reason: Option<Reason>) -> Record<'_> {
        Record {
            method: b"GET",
            path: path.as_bytes(),
            status,
            total: Duration::from_millis(1500),
            worker_time: Duration::ZERO,
            queue_time: Duration::ZERO,
            media_type: b"",
            body_bytes: 0,
            worker: Some((2, 77)),
            id: b"abc",
            client: b"",
            peer: b"",
            reason,
        }
    }

    const AT: Duration = Duration::from_millis(1_772_366_400_123);

    #[test]
    fn failures_are_5xx_and_cut_answers_and_nothing_that_a_client_did() {
        let mut failures = Failures::default();
        for (status, reason) in [
            (200, None),
            (404, None),
            (499, Some(Reason::ClientGone)),
            (400, Some(Reason::BadRequest(Bad::Host))),
            (413, Some(Reason::BodyTooLarge)),
        ] {
            failures.note(&record("/fine", status, reason), AT);
        }
        assert_eq!(failures.requests(), json!([]));
        failures.note(&record("/app", 500, None), AT);
        failures.note(&record("/late", 504, Some(Reason::ReadTimeout)), AT);
        failures.note(&record("/cut", 200, Some(Reason::WorkerDied)), AT);
        let rows = failures.requests();
        let paths = |at: usize| rows[at]["path"].clone();
        assert_eq!([paths(0), paths(1), paths(2)], ["/cut", "/late", "/app"]);
        let expected = json!({"at": "2026-03-01T12:00:00.123Z", "method": "GET", "path": "/late", "id": "abc", "status": 504,
            "reason": "read_timeout", "worker": 2, "pid": 77, "totalSeconds": 1.5, "times": 1});
        assert_eq!(rows[1], expected);
    }

    #[test]
    fn a_flood_of_one_kind_is_one_row_and_the_rest_is_bounded() {
        let mut failures = Failures::default();
        failures.note(&record("/rare", 500, None), AT);
        for _ in 0..1000 {
            failures.note(&record("/a", 503, Some(Reason::QueueFull)), AT);
            failures.note(&record("/b", 503, Some(Reason::QueueFull)), AT);
        }
        assert_eq!(failures.requests().as_array().map(Vec::len), Some(3));
        assert_eq!(failures.requests()[0]["times"], 1000);
        assert_eq!(failures.requests_total(), 2001);
        for index in 0..1000 {
            failures.note(&record(&format!("/{index}{}", "x".repeat(1000)), 500, None), AT);
            failures.ended((0, index), Some(Cause::Crash), "SIGSEGV".into(), AT);
        }
        assert_eq!(failures.requests().as_array().map(Vec::len), Some(MAX_REQUESTS));
        assert_eq!(failures.requests()[0]["path"].as_str().map(str::len), Some(MAX_PATH_BYTES));
        assert_eq!(failures.deaths().as_array().map(Vec::len), Some(MAX_DEATHS));
    }

    #[test]
    fn a_death_has_its_request_and_its_exit() {
        let mut failures = Failures::default();
        failures.blame((1, 40), Cause::Crash, Subject::new(b"GET", b"/die", b"x"), AT);
        failures.blame((1, 40), Cause::Crash, Subject::new(b"GET", b"/other", b"y"), AT);
        assert_eq!(failures.deaths()[0]["exit"], Value::Null);
        failures.ended((1, 40), Some(Cause::Crash), "SIGSEGV".into(), AT);
        // Who was told to end is none, and neither is a process that ends with nothing at work.
        failures.ended((2, 41), None, "SIGTERM".into(), AT);
        let expected = json!([{"at": "2026-03-01T12:00:00.123Z", "worker": 1, "pid": 40, "cause": "crash", "exit": "SIGSEGV",
            "request": {"method": "GET", "path": "/die", "id": "x"}}]);
        assert_eq!(failures.deaths(), expected);
        failures.ended((1, 42), Some(Cause::BootFailure), "exit code 1".into(), AT);
        assert_eq!(failures.deaths()[0]["request"], Value::Null);
    }
}
