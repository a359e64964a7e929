//! Prometheus' text format: a strict parser of our own, and `prometheus_client`'s where some Python has it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// All samples, by name and labels as they are written: `rip_workers{state="idle"}`.
pub type Samples = BTreeMap<String, f64>;

/// Parses a whole exposition; panics with what is wrong with it.
#[track_caller]
pub fn parse(text: &str) -> Samples {
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut samples = Samples::new();
    let mut families: BTreeSet<&str> = BTreeSet::new();
    let (mut helped, mut family, mut kind) = ("", "", "");
    for line in text.lines() {
        if let Some(remaining) = line.strip_prefix("# HELP ") {
            let (name, help) = remaining.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(!help.is_empty() && families.insert(name), "{line}");
            helped = name;
        } else if let Some(remaining) = line.strip_prefix("# TYPE ") {
            (family, kind) = remaining.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
            assert_eq!(family, helped, "HELP stands before TYPE: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", family.ends_with("_total"), "counters end with _total: {line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            assert_sample_of(family, kind, name);
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(samples.insert(name.to_owned(), value).is_none(), "it is there twice: {line}");
        }
    }
    assert_histograms(&samples);
    samples
}

/// Name and labels: `name`, or `name{label="value",…}`.
#[track_caller]
fn assert_sample_of(family: &str, kind: &str, sample: &str) {
    let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    assert!(name.chars().all(is_letter), "{sample}");
    let suffix =
        name.strip_prefix(family).unwrap_or_else(|| panic!("{sample} stands in the family {family}"));
    let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
    assert!(suffixes.contains(&suffix), "{sample} is none of a {kind}'s");
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("labels without an end: {sample}"));
    // No value of the server's own has a comma, a quote or a backslash in it.
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{sample}"));
        let is_quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
        assert!(is_quoted && name.chars().all(is_letter), "{sample}");
    }
}

/// Buckets only grow, and the last one has all.
#[track_caller]
fn assert_histograms(samples: &Samples) {
    for (name, count) in samples.iter().filter(|(name, _)| name.ends_with("_count")) {
        let family = name.trim_end_matches("_count");
        let prefix = format!("{family}_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter_map(|(name, below)| {
                let bound = name.strip_prefix(&prefix)?.trim_end_matches("\"}");
                Some((bound.parse().expect("a bound"), *below))
            })
            .collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(buckets.is_sorted_by(|one, other| one.1 <= other.1), "{family}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{family}");
        assert!(samples.contains_key(&format!("{family}_sum")), "{family}");
    }
}

/// What `prometheus_client` reads; `None` (and said so) where no Python has it.
pub fn parse_with_prometheus_client(text: &str) -> Option<Samples> {
    const READ: &str = r#"
import json, sys
from prometheus_client.parser import text_string_to_metric_families
samples = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation and family.type in ("counter", "gauge", "histogram"), family
    for sample in family.samples:
        labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
        samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
print(json.dumps(samples))
"#;
    let venv = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python3"));
    let has_it = |python: &PathBuf| {
        let mut command = Command::new(python);
        command.args(["-c", "import prometheus_client"]).output().is_ok_and(|output| output.status.success())
    };
    let Some(python) = [venv, "python3".into()].into_iter().find(has_it) else {
        // Past the test runner, which keeps what a test that passes prints.
        crate::support::skip::skip("prometheus_client's parser", "no python3 has it");
        return None;
    };
    let mut child = Command::new(python);
    child.args(["-c", READ]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().expect("python3 can be started");
    // It reads all before it writes.
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("a child can be waited for");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}
