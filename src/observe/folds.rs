//! A worker that fails repeatedly prints the same each time. It is logged once, and then only counted. Pure.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::time::{Duration, Instant};

/// A line that was not printed for so long is logged again. Longer than the longest wait between two starts.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// How many lines of one failure are remembered; a stack trace is shorter.
const MAX_LINES: usize = 1000;
/// How many lines of all failures are remembered; one crash loop has fewer.
const MAX_KNOWN: usize = 16 * MAX_LINES;

/// What a worker has printed before it has served.
#[derive(Debug, Default)]
pub(crate) struct BootOutput {
    lines: Vec<u64>,
    /// How many lines were not logged because an earlier failure had the same.
    pub folded: usize,
}

/// What workers printed that failed before they had served.
#[derive(Debug, Default)]
pub(crate) struct Folds {
    known: HashSet<u64>,
    last_failure: Option<Instant>,
}

impl Folds {
    /// A worker that has not served prints a line. `true`: an earlier failure had the same line.
    pub(crate) fn is_repeated(&mut self, output: &mut BootOutput, line: &[u8], now: Instant) -> bool {
        if self.last_failure.is_some_and(|last| now.saturating_duration_since(last) >= FORGOTTEN_AFTER) {
            self.forget();
        }
        let line = print(line);
        let is_known = self.known.contains(&line);
        if is_known {
            output.folded += 1;
        } else if output.lines.len() < MAX_LINES {
            output.lines.push(line);
        }
        is_known
    }

    /// The worker has failed.
    pub(crate) fn failed(&mut self, output: &mut BootOutput, now: Instant) {
        if self.known.len() > MAX_KNOWN {
            self.known.clear();
        }
        self.known.extend(output.lines.drain(..));
        self.last_failure = Some(now);
    }

    /// Forgets everything, because other code runs from now on.
    pub(crate) fn forget(&mut self) {
        *self = Folds::default();
    }
}

/// A line without what differs at each start: numbers (times, pids) and addresses.
fn print(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut remaining = line;
    while let [byte, tail @ ..] = remaining {
        remaining = tail;
        match byte {
            b'0' if tail.first() == Some(&b'x') => {
                let end =
                    tail[1..].iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(tail.len() - 1);
                remaining = &tail[1 + end..];
            }
            b'0'..=b'9' => {}
            other => hasher.write_u8(*other),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(folds: &mut Folds, lines: &[&str], now: Instant) -> usize {
        let mut output = BootOutput::default();
        for line in lines {
            folds.is_repeated(&mut output, line.as_bytes(), now);
        }
        folds.failed(&mut output, now);
        output.folded
    }

    #[test]
    fn what_a_failure_says_again_is_folded_whatever_its_numbers() {
        let (mut folds, now) = (Folds::default(), Instant::now());
        let trace = ["Traceback at 0x7f12ab: pid 42", "  line 7, in main", "ValueError: no database"];
        assert_eq!(say(&mut folds, &trace, now), 0);
        let repeated =
            ["Traceback at 0x55dead: pid 43", "  line 7, in main", "ValueError: no database", "and this"];
        assert_eq!(say(&mut folds, &repeated, now), 3, "what is new is said");
        folds.forget();
        assert_eq!(say(&mut folds, &trace, now), 0);
        assert_eq!(say(&mut folds, &trace, now + FORGOTTEN_AFTER), 0, "after a while it is news again");
        assert_eq!(print(b"0x"), print(b""));
    }

    #[test]
    fn workers_that_do_not_fail_fold_nothing() {
        let (mut folds, now) = (Folds::default(), Instant::now());
        for _ in 0..3 {
            assert!(!folds.is_repeated(&mut BootOutput::default(), b"listening", now));
        }
    }
}
