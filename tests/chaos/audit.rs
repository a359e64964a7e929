//! Each request is accounted for: what the client saw, what the log says, and what workers have noted.

use crate::ask::{Ask, Deed, Outcome};
use crate::load::{self, Event};
use crate::support::Server;
use crate::tools::access_lines;
use crate::trouble::{DRAIN_TIMEOUT, READ_TIMEOUT, Report};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A line of the access log.
#[derive(Debug, Clone)]
pub struct Line {
    pub path: String,
    pub status: u16,
    pub reason: String,
    pub pid: Option<i32>,
    pub worker_time: Duration,
    pub length: u64,
}

/// What is known besides the clients' own view.
pub struct Evidence {
    pub lines: Vec<Line>,
    by_path: HashMap<String, Vec<usize>>,
    begun: HashMap<String, usize>,
    /// Paths that the server has tried once more.
    retried: BTreeSet<String>,
    /// Processes that somebody had end with a request in their hands, maybe: a request, the test, or the server
    /// after the drain timeout.
    dead: BTreeSet<i32>,
    /// All that ended.
    ended: BTreeSet<i32>,
    stopped: BTreeSet<i32>,
    /// This machine kept somebody waiting for so long that a worker may have seemed hung.
    has_stalled: bool,
}

impl Line {
    fn of(value: &Value) -> Line {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Line {
            path: text("path"),
            status: value["status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or(0),
            reason: text("reason"),
            pid: value["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()),
            worker_time: Duration::from_secs_f64(value["workerSeconds"].as_f64().unwrap_or(0.0)),
            length: value["length"].as_u64().unwrap_or(0),
        }
    }
}

impl Evidence {
    pub fn gather(server: &Server, diary_dir: &Path, report: &Report, worst_stall: Duration) -> Evidence {
        let lines: Vec<Line> = access_lines(server).iter().map(Line::of).collect();
        let mut by_path: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, line) in lines.iter().enumerate() {
            by_path.entry(line.path.clone()).or_default().push(index);
        }
        let diary = fs::read_to_string(diary_dir.join("diary")).unwrap_or_default();
        let (mut begun, mut dead) = (HashMap::new(), report.killed.clone());
        for line in diary.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["begun", id, _] => *begun.entry(id.to_owned()).or_default() += 1,
                ["exit", pid] => dead.extend(pid.parse::<i32>()),
                _ => panic!("the diary says {line:?}"),
            }
        }
        let stderr = server.stderr_lines();
        dead.extend(stderr.iter().filter_map(|line| pid_of_a_kill(line)));
        let ended = load::events(server).into_iter().filter_map(|event| match event {
            Event::Ended { pid, .. } => Some(pid),
            Event::Started { .. } | Event::Joined { .. } => None,
        });
        let ended = ended.collect();
        let retried = stderr.iter().filter_map(|line| retried_path(line)).collect();
        let has_stalled = worst_stall > READ_TIMEOUT / 4;
        Evidence { lines, by_path, begun, retried, dead, ended, stopped: report.stopped.clone(), has_stalled }
    }

    pub fn retries(&self) -> usize {
        self.retried.len()
    }

    pub fn lines_of(&self, ask: &Ask) -> Vec<&Line> {
        let indexes = self.by_path.get(&ask.path()).into_iter().flatten();
        indexes.map(|&index| &self.lines[index]).collect()
    }

    pub fn begun(&self, ask: &Ask) -> usize {
        self.begun.get(&ask.id).copied().unwrap_or(0)
    }

    /// What does not add up about a request.
    pub fn fault(&self, ask: &Ask) -> Option<String> {
        self.fault_of_the_answer(ask).or_else(|| self.fault_of_the_work(ask))
    }

    fn fault_of_the_answer(&self, ask: &Ask) -> Option<String> {
        let lines = self.lines_of(ask);
        if lines.len() > 1 {
            return Some("more than one line in the log".into());
        }
        let line = lines.first().copied();
        match (&ask.outcome, line) {
            (Outcome::Answered { fault: Some(fault), .. } | Outcome::Cut { fault: Some(fault), .. }, _) => {
                Some(fault.clone())
            }
            (Outcome::Nothing(trouble), _) => Some(format!("no answer: {trouble:?}")),
            (Outcome::Answered { .. } | Outcome::Cut { .. } | Outcome::Refused { .. }, None)
                if !matches!(ask.outcome, Outcome::Refused { .. }) =>
            {
                Some("no line in the log".into())
            }
            (Outcome::Answered { status, .. }, Some(line)) => {
                if line.status != *status {
                    return Some("the log has another status than the client".into());
                }
                self.fault_of_the_reason(ask, line)
            }
            (Outcome::Cut { status: 101, .. }, Some(line)) => {
                let is_explained = line.pid.is_some_and(|pid| self.ended.contains(&pid))
                    || matches!(ask.deed, Deed::Tunnel { bytes: 1.. });
                (line.status != 101 || !is_explained).then(|| "its tunnel ended, and nobody ended it".into())
            }
            (Outcome::Cut { status, .. }, Some(line)) => {
                if line.status != *status || line.reason.is_empty() {
                    return Some("it was cut, and the log does not say so".into());
                }
                self.fault_of_the_reason(ask, line)
            }
            // Nonsense has no path to be found by.
            (Outcome::Refused { status }, _) => {
                (!matches!(status, 400 | 413)).then(|| format!("refused with {status}"))
            }
            (Outcome::Left { must_arrive: true, .. }, None) => {
                Some("it was read whole, and is not in the log".into())
            }
            (Outcome::Left { status, .. }, Some(line)) => match (line.status, status) {
                (499, _) => (line.reason != "client_gone").then(|| "a 499 for another reason".into()),
                (status, Some(seen)) if status != *seen => {
                    Some(format!("the log has another status than the client, which saw {seen}"))
                }
                (400, None) => None,
                _ => self.fault_of_the_reason(ask, line),
            },
            (Outcome::Unanswered, Some(line)) if line.status != 499 => {
                Some("it got an answer behind the last one".into())
            }
            (
                Outcome::Left { .. } | Outcome::Unanswered | Outcome::Answered { .. } | Outcome::Cut { .. },
                _,
            ) => None,
        }
    }

    /// Whether a request of this kind may have that status, in the chaos that was.
    fn fault_of_the_reason(&self, ask: &Ask, line: &Line) -> Option<String> {
        let pid_is_in = |pids: &BTreeSet<i32>| line.pid.is_some_and(|pid| pids.contains(&pid));
        let is_retried = self.retried.contains(&ask.path());
        let is_right = match (line.status, line.reason.as_str(), ask.deed) {
            (101, "", Deed::Tunnel { .. }) => true,
            (101, "worker_died", Deed::Tunnel { .. }) => pid_is_in(&self.dead),
            (200, "", Deed::Die | Deed::DieMid { .. } | Deed::Cut { .. } | Deed::Garbage) => {
                // Nothing is cut off an answer without a body.
                ask.method == "HEAD"
            }
            (200, "", Deed::Busy | Deed::Tunnel { .. }) => false,
            // This machine may hold the server back for as long as the worker sleeps.
            (200, "", Deed::Hang { .. }) => self.has_stalled,
            (200, "", _) => true,
            (503, "queue_full", _) => line.pid.is_none(),
            (504, "queue_timeout", _) => line.pid.is_none(),
            // The first try may have met another trouble.
            (503, "worker_busy", Deed::Busy | Deed::BusyOnce) => is_retried,
            (502, "bad_response", Deed::Garbage) => true,
            (502, "worker_died", Deed::Die) => true,
            (200, "worker_died", Deed::DieMid { .. }) => true,
            // It may have ended before the server looked: it was leaving, say.
            (200, "worker_died", Deed::Cut { .. }) => pid_is_in(&self.ended),
            // Its worker lives on.
            (200, "answer_cut", Deed::Cut { .. }) => true,
            (200 | 504, "read_timeout", _) => {
                line.worker_time >= READ_TIMEOUT
                    && (matches!(ask.deed, Deed::Hang { .. }) || pid_is_in(&self.stopped) || self.has_stalled)
            }
            (200 | 503, "stopping", _) => {
                line.worker_time >= DRAIN_TIMEOUT && (pid_is_in(&self.stopped) || self.has_stalled)
            }
            // A second worker died as well, or the first in the middle of its answer.
            (502, "worker_died", _) => pid_is_in(&self.dead) && (is_retried || !ask.is_idempotent()),
            (200, "worker_died", _) => pid_is_in(&self.dead),
            (502, "connect_failed", _) => is_retried && pid_is_in(&self.ended),
            _ => false,
        };
        (!is_right).then(|| "such a request may not get that".into())
    }

    /// Whether workers have begun it as often as they may.
    fn fault_of_the_work(&self, ask: &Ask) -> Option<String> {
        let begun = self.begun(ask);
        let line = self.lines_of(ask).first().copied();
        let is_retried = self.retried.contains(&ask.path());
        if begun > 1 && !(ask.is_idempotent() && is_retried && begun == 2) {
            return Some(format!("begun {begun} times"));
        }
        match (&ask.outcome, line) {
            (Outcome::Answered { status: 200 | 101, .. } | Outcome::Cut { .. }, _) if begun == 0 => {
                Some("answered, and no worker had it".into())
            }
            (Outcome::Refused { .. }, _) | (_, None) if begun > 0 => {
                Some("a worker had it, and the log does not know".into())
            }
            (_, Some(line)) if line.pid.is_none() && begun > 0 && !is_retried => {
                Some("a worker had it, and the log says that none did".into())
            }
            _ => None,
        }
    }

    /// Reloads that failed, and not because somebody had a new worker end before it had served.
    pub fn faults_of_reloads(&self, failed: &[String]) -> Vec<String> {
        let is_explained = |said: &&String| {
            let of = |pid: &i32| said.contains(&format!("(pid {pid}) ended before it had served: SIGKILL"));
            self.dead.iter().any(of)
        };
        failed
            .iter()
            .filter(|said| !is_explained(said))
            .map(|said| format!("a reload failed: {said}"))
            .collect()
    }

    /// Lines that belong to no request: those of nonsense, and the test's own looks.
    pub fn strangers(&self, asks: &[Ask]) -> Vec<&Line> {
        let known: BTreeSet<String> = asks.iter().map(Ask::path).collect();
        let is_strange = |line: &&Line| match line.path.as_str() {
            "/server" | "/status" => false,
            path if known.contains(path) => false,
            _ => !matches!(line.status, 400 | 408 | 499),
        };
        self.lines.iter().filter(is_strange).collect()
    }
}

/// `rip-server: warn: worker 2 (pid 4711): SIGKILL: its time to end is over`
fn pid_of_a_kill(line: &str) -> Option<i32> {
    let (before, why) = line.strip_prefix("rip-server: warn: worker ")?.split_once("): SIGKILL")?;
    let has_reason = why.is_empty() || why.starts_with(": ");
    before.rsplit(' ').next()?.parse().ok().filter(|_| has_reason)
}

/// `…: GET /c/01-0000001 (id …) failed: worker_died; trying it once more`
fn retried_path(line: &str) -> Option<String> {
    let (before, _) = line.split_once(" (id ").filter(|_| line.ends_with("; trying it once more"))?;
    before.rsplit(' ').next().map(str::to_owned)
}

#[test]
fn a_worker_that_the_server_has_killed_counts_as_dead_whatever_the_reason() {
    for (line, pid) in [
        ("rip-server: warn: worker 2 (pid 4711): SIGKILL", Some(4711)),
        ("rip-server: warn: worker 0 (pid 7): SIGKILL: it has not ended 1 s after SIGTERM", Some(7)),
        ("rip-server: warn: worker 0 (pid 7): ended by SIGKILL", None),
        ("[worker 0 (pid 7)] rip-server: warn: worker 2 (pid 4711): SIGKILL", None),
        ("rip-server: info: worker 0 (pid 7): SIGTERM", None),
    ] {
        assert_eq!(pid_of_a_kill(line), pid, "{line}");
    }
}
