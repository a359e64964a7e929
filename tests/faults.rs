//! The kernel's bad days: calls that fail, come short or are interrupted under the real server. The request that is
//! hit gets the right answer, the others do not notice, nothing is left over, and it is counted.
//!
//! The injector and its plans: `faults/inject.rs`.

#[path = "support/load.rs"]
mod load;
mod support;
mod tools;

#[path = "faults/broken.rs"]
mod broken;
#[path = "faults/clocks.rs"]
mod clocks;
#[path = "faults/full_disk.rs"]
mod full_disk;
#[path = "faults/handover.rs"]
mod handover;
#[path = "faults/logs.rs"]
mod logs;
#[path = "faults/shortage.rs"]
mod shortage;
#[path = "faults/trials.rs"]
mod trials;
#[path = "faults/unseen.rs"]
mod unseen;
#[path = "faults/workload.rs"]
mod workload;

use std::collections::BTreeMap;
use support::Server;

/// Whether faults can be injected here; says so where they cannot.
fn can_inject(test: &str) -> bool {
    let can = support::faults::injector().is_some();
    if !can {
        crate::support::skip::skip(test, "a static program loads no library before it");
    }
    can
}

/// What the server counts, by name and labels.
fn metrics(server: &Server) -> BTreeMap<String, f64> {
    let text = server.control("GET", "/metrics", "").text();
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn metric(server: &Server, name: &str) -> f64 {
    *metrics(server).get(name).unwrap_or_else(|| panic!("no {name} is counted"))
}
