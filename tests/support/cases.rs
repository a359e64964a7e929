//! The cases of `tests/cases` (its README has the format), as far as both of their runners need the same.

use super::{Head, latin1_bytes};
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Reads one of the lists.
pub fn load(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/cases/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    value.as_array().expect("a list of cases").clone()
}

/// Panics on a key that the runner does not know: an expectation that nobody checks is worse than none.
pub fn assert_known_keys(value: &Value, known: &[&str]) {
    for key in value.as_object().expect("an object").keys() {
        assert!(known.contains(&key.as_str()), "nobody checks '{key}' of {value}");
    }
}

pub fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

pub fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(text).collect()
}

/// A list of writes, each as its bytes.
pub fn writes(value: &Value) -> Vec<Vec<u8>> {
    texts(value).iter().map(|text| latin1_bytes(text)).collect()
}

pub fn number(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}

/// Status codes; `None` where the case does not say.
pub fn statuses(value: &Value) -> Option<Vec<u16>> {
    let list = value.as_array()?;
    Some(list.iter().filter_map(|status| u16::try_from(status.as_u64()?).ok()).collect())
}

/// What is expected of a head's fields.
#[derive(Debug, Clone, Default)]
pub struct FieldRules {
    exact: Vec<(String, String)>,
    present: Vec<String>,
    absent: Vec<String>,
    count: Vec<(String, usize)>,
}

impl FieldRules {
    /// The keys that these rules take from a case.
    pub const KEYS: [&str; 4] = ["headers", "headers_present", "headers_absent", "count"];

    pub fn of(value: &Value) -> FieldRules {
        let entries = |name: &str| value[name].as_object().cloned().unwrap_or_default();
        FieldRules {
            exact: entries("headers")
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
                .collect(),
            present: texts(&value["headers_present"]),
            absent: texts(&value["headers_absent"]),
            count: entries("count")
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), number(value)?)))
                .collect(),
        }
    }

    pub fn faults(&self, head: &Head) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, expected) in &self.exact {
            let values: Vec<&str> = head.values(name).collect();
            if values != [expected] {
                faults.push(format!("{name}: expected {expected:?}, got {values:?}"));
            }
        }
        for name in self.present.iter().filter(|name| !head.has(name)) {
            faults.push(format!("{name} is missing"));
        }
        for name in self.absent.iter().filter(|name| head.has(name)) {
            faults.push(format!("{name} is there: {:?}", head.header(name)));
        }
        for (name, expected) in &self.count {
            if head.count(name) != *expected {
                faults.push(format!("{name}: expected {expected} lines, got {}", head.count(name)));
            }
        }
        faults
    }
}

/// Bytes for people: escaped, and not too many of them.
pub fn excerpt(bytes: &[u8]) -> String {
    const MAX_BYTES: usize = 200;
    let shown = bytes[..bytes.len().min(MAX_BYTES)].escape_ascii();
    let remaining = bytes.len().saturating_sub(MAX_BYTES);
    if remaining == 0 { format!("\"{shown}\"") } else { format!("\"{shown}\" and {remaining} bytes more") }
}

/// Plays everything in a few threads, and panics with the list of what failed. Each thread has a `Stage` of its own
/// (a server, say), which `play` gets and may replace.
pub fn play_all<Play: Sync, Stage: Default>(
    plays: &[Play],
    threads: usize,
    name: impl Fn(&Play) -> String + Sync,
    play: impl Fn(&mut Stage, &Play) -> Vec<String> + Sync,
) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut stage = Stage::default();
                while let Some(item) = plays.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // A tool that gives up (no server, no connection) is a failure of this play, not of the others.
                    let result = catch_unwind(AssertUnwindSafe(|| play(&mut stage, item)));
                    let faults = result.unwrap_or_else(|panic| vec![panic_text(&*panic)]);
                    if !faults.is_empty() {
                        // Whatever the trouble was, the next play starts afresh.
                        stage = Stage::default();
                        let failure = format!("{}\n    {}", name(item), faults.join("\n    "));
                        failures.lock().expect("no panic holds the lock").push(failure);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no panic holds the lock");
    failures.sort();
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), plays.len(), failures.join("\n"));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
