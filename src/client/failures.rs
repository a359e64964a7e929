//! `status --failures`: what has failed lately, and with `--watch` what fails from now on, a line each.

use super::{Inquiry, catch_signals, print};
use crate::names::Names;
use crate::paths::shown;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::io;
use std::os::fd::AsFd;

/// How often the server is asked. It keeps the last failures of each kind, and counts those that are alike.
const EVERY_MS: u16 = 1000;

/// Failures as the server has told them last.
#[derive(Debug, Default)]
struct Seen {
    requests: Vec<Failed>,
    deaths: Vec<String>,
    /// The failed requests since the server's start.
    total: Option<u64>,
}

/// A kind of failed request, when the last one was, and how many there were.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failed {
    kind: String,
    at: String,
    times: u64,
}

/// Prints what is known.
pub(super) fn tell(names: &Names) -> Result<(), String> {
    let lines = Seen::default().news(&status(names)?);
    lines.iter().try_for_each(|line| print(&format!("{line}\n")))
}

/// Prints what comes, until a signal, the end of whoever reads it, or the server's.
pub(super) fn follow(names: &Names) -> Result<(), String> {
    let caught = catch_signals().map_err(|error| format!("signals: {error}"))?;
    let stdout = io::stdout();
    let mut seen = Seen::default();
    // What was before is not followed.
    let _ = seen.news(&status(names)?);
    loop {
        let mut events =
            [PollFd::new(caught.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut events, PollTimeout::from(EVERY_MS)) {
            Ok(0) | Err(Errno::EINTR) => {}
            // A signal, or nobody reads any more.
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        for line in seen.news(&status(names)?) {
            print(&format!("{line}\n"))?;
        }
    }
}

fn status(names: &Names) -> Result<Value, String> {
    let mut inquiry = Inquiry::begin(names, "GET", "/status", "")?;
    let text = inquiry.remaining()?;
    inquiry.value(&text)
}

impl Seen {
    /// Lines about what has failed since the last look, the oldest first.
    fn news(&mut self, status: &Value) -> Vec<String> {
        let rows = |name: &str| status[name].as_array().cloned().unwrap_or_default();
        // The server has the newest first.
        let (failures, deaths) = (rows("failures"), rows("deaths"));
        let requests: Vec<Failed> = failures.iter().map(Failed::of).collect();
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut told = 0;
        for (row, failed) in failures.iter().zip(&requests).rev() {
            if !self.requests.contains(failed) {
                let before = self.requests.iter().filter(|other| other.is_before(failed, &requests));
                let before = before.map(|other| other.times).max().unwrap_or_default();
                told += failed.times - before;
                lines.push((failed.at.clone(), request_line(row, failed.times - before)));
            }
        }
        let mut known = Vec::new();
        for row in deaths.iter().rev() {
            let Some(line) = death_line(row) else { continue };
            if !self.deaths.contains(&line) {
                lines.push((word(&row["at"]), line.clone()));
            }
            known.push(line);
        }
        let total = status["failuresTotal"].as_u64();
        // Another server has followed where there were fewer.
        let came = total.zip(self.total).and_then(|(total, before)| total.checked_sub(before));
        *self = Seen { requests, deaths: known, total };
        lines.sort_by_key(|(at, _)| moment(at));
        let lines = lines.into_iter().map(|(_, line)| line);
        lines.chain(missed_line(came.unwrap_or_default().saturating_sub(told))).collect()
    }
}

impl Failed {
    fn of(row: &Value) -> Failed {
        let parts = ["method", "path", "status", "reason"].map(|name| row[name].to_string());
        Failed { kind: parts.join(" "), at: word(&row["at"]), times: row["times"].as_u64().unwrap_or(1) }
    }

    /// Whether `later` counts on from this one, which is not among what is told `now`.
    fn is_before(&self, later: &Failed, now: &[Failed]) -> bool {
        self.kind == later.kind && self.times < later.times && !now.contains(self)
    }
}

/// Seconds, and their fraction, which has as many digits as it needs.
fn moment(at: &str) -> (String, String) {
    let at = at.trim_end_matches('Z');
    let (seconds, fraction) = at.split_once('.').unwrap_or((at, ""));
    (seconds.to_owned(), fraction.to_owned())
}

/// A value of the server's as it may stand in a line.
fn word(value: &Value) -> String {
    match value.as_str() {
        Some(text) => shown(text).to_string(),
        None => value.to_string(),
    }
}

fn request_line(row: &Value, times: u64) -> String {
    let part = |name: &str| word(&row[name]);
    let mut line = format!("{} {} {} {}", part("at"), part("status"), part("method"), part("path"));
    if row["reason"].is_string() {
        line += &format!(" {}", part("reason"));
    }
    line += &format!(" after {:.1} s", row["totalSeconds"].as_f64().unwrap_or_default());
    if row["worker"].is_number() {
        line += &format!(", worker {} (pid {})", part("worker"), part("pid"));
    }
    if row["id"].as_str().is_some_and(|id| !id.is_empty()) {
        line += &format!(", request {}", part("id"));
    }
    if times > 1 {
        line += &format!(", {times} times");
    }
    line
}

/// What has failed between two looks, and was not kept until the second. `None`: nothing.
fn missed_line(missed: u64) -> Option<String> {
    match missed {
        0 => None,
        1 => Some("1 more request failed, which the server has not kept; the access log has it".to_owned()),
        _ => Some(format!(
            "{missed} more requests failed, which the server has not kept; the access log has them"
        )),
    }
}

/// `None`: how it ends is to come.
fn death_line(row: &Value) -> Option<String> {
    let part = |name: &str| word(&row[name]);
    let how = match (row["cause"].as_str(), row["exit"].is_string()) {
        (Some("stuck"), _) => "does not end its answer".to_owned(),
        (_, false) => return None,
        (Some("boot_failure"), true) => format!("{} before it had joined", part("exit")),
        (_, true) => part("exit"),
    };
    let request = &row["request"];
    let at_work = match request.is_object() {
        true => {
            let part = |name: &str| word(&request[name]);
            format!(" at {} {}, request {}", part("method"), part("path"), part("id"))
        }
        false => String::new(),
    };
    Some(format!("{} worker {} (pid {}): {how}{at_work}", part("at"), part("worker"), part("pid")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed(at: &str, path: &str, times: u64) -> Value {
        json!({"at": at, "method": "GET", "path": path, "id": "abc", "status": 504, "reason": "read_timeout",
            "worker": 2, "pid": 77, "totalSeconds": 5.01, "times": times})
    }

    fn death(exit: Value) -> Value {
        json!({"at": "2026-03-01T12:00:02Z", "worker": 1, "pid": 40, "cause": "crash", "exit": exit,
            "request": {"method": "GET", "path": "/die", "id": "x"}})
    }

    #[test]
    fn each_failure_is_told_once_and_those_that_are_alike_are_counted() {
        let mut seen = Seen::default();
        let first = failed("2026-03-01T12:00:00.48Z", "/a", 1);
        let status = json!({"failures": [failed("2026-03-01T12:00:00.5Z", "/b", 3), first], "deaths": []});
        let about_a = "GET /a read_timeout after 5.0 s, worker 2 (pid 77), request abc";
        assert_eq!(
            seen.news(&status),
            [
                format!("2026-03-01T12:00:00.48Z 504 {about_a}"),
                format!("2026-03-01T12:00:00.5Z 504 {}, 3 times", about_a.replace("/a", "/b")),
            ]
        );
        assert_eq!(seen.news(&status), [""; 0]);
        // The same kind again, while the other row stays.
        let status = json!({"failures": [failed("2026-03-01T12:00:01Z", "/b", 5), first], "deaths": []});
        assert_eq!(
            seen.news(&status),
            [format!("2026-03-01T12:00:01Z 504 {}, 2 times", about_a.replace("/a", "/b"))]
        );
        assert_eq!(seen.news(&json!({})), [""; 0]);
    }

    #[test]
    fn of_more_failures_than_the_server_keeps_the_others_are_counted() {
        let mut seen = Seen::default();
        let rows = |from: u64| -> Vec<Value> {
            let row = |index| failed(&format!("2026-03-01T12:00:00.{index:03}Z"), &format!("/{index}"), 1);
            (from..from + 50).rev().map(row).collect()
        };
        let mut news = |from, total: u64| seen.news(&json!({"failures": rows(from), "failuresTotal": total}));
        assert_eq!(news(100, 200).len(), 50, "what was before the first look is not missed");
        let lines = news(220, 320);
        assert_eq!(lines.len(), 51);
        let words = "more requests failed, which the server has not kept; the access log has them";
        assert_eq!(lines[50], format!("70 {words}"));
        assert_eq!(news(220, 320), [""; 0]);
        assert_eq!(news(221, 321).len(), 1);
        assert_eq!(
            news(272, 372)[50],
            "1 more request failed, which the server has not kept; the access log has it"
        );
        assert_eq!(news(400, 50).len(), 50, "a server that has followed counts anew");
    }

    #[test]
    fn a_death_is_told_when_its_exit_is_known() {
        let mut seen = Seen::default();
        let news_of = |seen: &mut Seen, exit: Value| seen.news(&json!({"deaths": [death(exit)]}));
        assert_eq!(news_of(&mut seen, Value::Null), [""; 0]);
        let expected = "2026-03-01T12:00:02Z worker 1 (pid 40): SIGSEGV at GET /die, request x";
        assert_eq!(news_of(&mut seen, "SIGSEGV".into()), [expected]);
        assert_eq!(news_of(&mut seen, "SIGSEGV".into()), [""; 0]);
    }

    #[test]
    fn a_line_break_from_outside_breaks_no_line() {
        let mut row = failed("2026-03-01T12:00:00Z", "/a\nb", 1);
        row["id"] = "x\u{2028}y".into();
        let lines = Seen::default().news(&json!({"failures": [row]}));
        assert!(
            lines.len() == 1 && lines[0].lines().count() == 1 && lines[0].contains("/a\\nb"),
            "{lines:?}"
        );
    }
}
