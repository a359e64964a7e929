//! Prometheus' text format: heads, samples with their labels, histograms. Pure.

use super::histogram::{BOUNDS_S, Histogram};
use super::metrics::OwnUse;
use std::fmt::Write;

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Text(pub(super) String);

impl Text {
    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail, here and below.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub(super) fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (place, (label, content)) in labels.iter().enumerate() {
            let content = content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{content}\"", if place == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }

    pub(super) fn histogram(&mut self, name: &str, label: Option<(&str, &str)>, histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut line = |bound: &str, count: u64| {
            let labels: Vec<_> = label.into_iter().chain([("le", bound)]).collect();
            self.line(&bucket, &labels, count);
        };
        let mut below = 0;
        for (bound, count) in BOUNDS_S.iter().zip(histogram.counts) {
            below += count;
            line(&bound.to_string(), below);
        }
        line("+Inf", histogram.count);
        self.line(&format!("{name}_sum"), label.as_slice(), histogram.sum.as_secs_f64());
        self.line(&format!("{name}_count"), label.as_slice(), histogram.count);
    }

    /// The server's own process, under the names that Prometheus' clients give to theirs.
    pub(super) fn own_use(&mut self, own: &OwnUse) {
        let name = "process_cpu_seconds_total";
        self.head(name, "counter", "CPU time of the server's own process.");
        self.line(name, &[], own.cpu.as_secs_f64());
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory of the server's own process.",
                own.resident_bytes,
            ),
            ("process_open_fds", "Descriptors that the server has open.", own.descriptors),
            ("process_max_fds", "Descriptors that it may have open.", own.max_descriptors),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                self.single(name, "gauge", help, value);
            }
        }
    }
}
