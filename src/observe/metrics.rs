//! Counters and histograms, and their text for Prometheus. Pure: events come in, text goes out.

use super::exposition::Text;
use super::histogram::Histogram;
use crate::fleet::RetireReason;
use crate::http::Reason;
use std::collections::BTreeMap;
use std::time::Duration;

/// All bad requests are counted under one word; the log has the details.
const BAD_REQUEST: &str = "bad_request";

/// One request that was answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served {
    pub status: u16,
    pub reason: Option<Reason>,
    pub queue: Duration,
    pub worker: Duration,
    pub total: Duration,
    pub body_bytes: u64,
    /// Whether a worker got it.
    pub reached_worker: bool,
    /// It was a stream for so long; the rest was counted at its head.
    pub stream: Option<Duration>,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    by_class: [u64; 5],
    refusals: BTreeMap<&'static str, u64>,
    total: Histogram,
    queue: Histogram,
    worker: Histogram,
    streams: Histogram,
    sent_body_bytes: u64,
    pub received_bytes: u64,
    pub retries: u64,
    pub accept_pauses: u64,
    pub accept_failures: u64,
    /// Connections that were closed for want of their PROXY protocol header.
    pub refused_connections: u64,
    pub closed_for_room: u64,
    /// How often a worker was held back because there was no room for its answer.
    pub hold_backs: u64,
    pub worker_starts: u64,
    pub worker_start_failures: u64,
    pub worker_crashes: u64,
    pub worker_boot_failures: u64,
    /// From the word to start a worker to its join, by how it was started.
    forks: Histogram,
    starts: Histogram,
    replacements: BTreeMap<&'static str, u64>,
    /// For how long exactly N workers were busy at once, by N.
    busy: Vec<Duration>,
}

/// What is measured when the metrics are asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub app: String,
    pub uptime: Duration,
    pub waiting: usize,
    pub longest_queue: usize,
    pub longest_wait: Duration,
    pub is_newest_first: bool,
    /// For how long it has been so.
    pub order_age: Duration,
    pub order_changes: u64,
    pub connections: usize,
    /// Open event streams and tunnels.
    pub streams: usize,
    pub dropped_log_lines: u64,
    /// By state: idle, busy, booting, reserve, leaving, stuck.
    pub workers: Vec<(&'static str, usize)>,
    pub needed_workers: usize,
    /// In memory, in memfds and on disk, and the bound of the last.
    pub spooled: [(&'static str, u64); 3],
    pub max_spool_bytes: u64,
    pub quarantine: Quarantined,
    /// Of the workers of each slot, where the kernel tells.
    pub resident_by_slot: Vec<(usize, u64)>,
    pub own: OwnUse,
}

/// What the server's own process uses, as far as the kernel tells.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OwnUse {
    pub cpu: Duration,
    pub resident_bytes: Option<u64>,
    pub descriptors: Option<u64>,
    pub max_descriptors: Option<u64>,
}

/// Requests that are refused because workers died in them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quarantined {
    pub now: usize,
    pub ever: u64,
    pub lifted: u64,
    pub evicted: u64,
}

/// What is counted of all requests, as it stands at some time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub by_class: [u64; 5],
    pub refusals: BTreeMap<&'static str, u64>,
    pub total: Histogram,
    pub queue: Histogram,
}

impl Metrics {
    pub(crate) fn served(&mut self, served: Served) {
        let class = usize::from(served.status / 100).clamp(1, 5) - 1;
        self.by_class[class] += 1;
        if let Some(reason) = served.reason {
            *self.refusals.entry(code(reason)).or_default() += 1;
        }
        match (served.stream, served.reached_worker) {
            (Some(age), _) => self.streams.observe(age),
            (None, true) => self.took(served.queue, served.worker, served.total),
            (None, false) => self.total.observe(served.total),
        }
        self.sent_body_bytes += served.body_bytes;
    }

    /// How long a request took that a worker had.
    pub(crate) fn took(&mut self, queue: Duration, worker: Duration, total: Duration) {
        self.total.observe(total);
        self.queue.observe(queue);
        self.worker.observe(worker);
    }

    /// A worker has joined so long after it was asked for.
    pub(crate) fn joined(&mut self, is_fork: bool, time: Duration) {
        if is_fork { &mut self.forks } else { &mut self.starts }.observe(time);
    }

    pub(crate) fn replaced(&mut self, why: RetireReason) {
        *self.replacements.entry(why.code()).or_default() += 1;
    }

    /// Counts that `busy` workers were at work for that long.
    pub(crate) fn busy_for(&mut self, busy: usize, time: Duration) {
        if self.busy.len() <= busy {
            self.busy.resize(busy + 1, Duration::ZERO);
        }
        self.busy[busy] += time;
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            by_class: self.by_class,
            refusals: self.refusals.clone(),
            total: self.total.clone(),
            queue: self.queue.clone(),
        }
    }

    /// Prometheus' text format, version 0.0.4.
    pub(crate) fn render(&self, now: &Snapshot) -> String {
        let mut text = Text(String::with_capacity(8192));
        text.head("rip_info", "gauge", "The app that is served.");
        text.line("rip_info", &[("app", &now.app), ("version", env!("CARGO_PKG_VERSION"))], 1);
        text.single("rip_uptime_seconds", "gauge", "Since the start of the server.", now.uptime.as_secs());

        text.head(
            "rip_requests_total",
            "counter",
            "Requests that have had an answer, by class of its status.",
        );
        for (class, count) in self.by_class.iter().enumerate() {
            text.line("rip_requests_total", &[("status", &format!("{}xx", class + 1))], *count);
        }
        text.head(
            "rip_refusals_total",
            "counter",
            "Requests that ended with an answer of the server's own, by reason.",
        );
        // Each has its line from the start, so alerts need no special case.
        for &reason in Reason::ALL {
            let count = self.refusals.get(code(reason)).copied().unwrap_or(0);
            text.line("rip_refusals_total", &[("reason", code(reason))], count);
        }
        let histograms = [
            (
                "rip_request_duration_seconds",
                "From a request's first byte to its answer's last.",
                &self.total,
            ),
            ("rip_queue_duration_seconds", "What requests waited for a worker.", &self.queue),
            ("rip_worker_duration_seconds", "What workers took for an answer.", &self.worker),
            ("rip_stream_duration_seconds", "From a stream's head to its end.", &self.streams),
        ];
        for (name, help, histogram) in histograms {
            text.head(name, "histogram", help);
            text.histogram(name, None, histogram);
        }
        text.single("rip_queue_depth", "gauge", "Requests that wait for a worker now.", now.waiting as u64);
        text.single(
            "rip_queue_depth_max",
            "gauge",
            "The most that ever waited at once.",
            now.longest_queue as u64,
        );
        text.head(
            "rip_queue_wait_max_seconds",
            "gauge",
            "The longest that a request ever waited for a worker.",
        );
        text.line("rip_queue_wait_max_seconds", &[], now.longest_wait.as_secs_f64());
        text.single(
            "rip_queue_newest_first",
            "gauge",
            "1 while waiting requests are served newest first, in a lasting overload.",
            now.is_newest_first.into(),
        );
        text.single(
            "rip_queue_order_seconds",
            "gauge",
            "For how long waiting requests have been served in the order of now.",
            now.order_age.as_secs(),
        );
        text.single(
            "rip_queue_order_changes_total",
            "counter",
            "Times that the order in which waiting requests are served has changed.",
            now.order_changes,
        );
        text.single("rip_streams", "gauge", "Open event streams and WebSockets.", now.streams as u64);
        text.single("rip_retries_total", "counter", "Requests that were tried once more.", self.retries);
        text.single(
            "rip_client_connections",
            "gauge",
            "Open connections of clients.",
            now.connections as u64,
        );
        text.single(
            "rip_client_connections_closed_for_room_total",
            "counter",
            "Quiet connections that were closed because descriptors ran out.",
            self.closed_for_room,
        );
        text.single(
            "rip_accept_pauses_total",
            "counter",
            "Times that accepting paused, for want of descriptors or memory.",
            self.accept_pauses,
        );
        text.single(
            "rip_accept_failures_total",
            "counter",
            "Connections that were closed at once, since the kernel had no room to watch them.",
            self.accept_failures,
        );
        text.single(
            "rip_refused_connections_total",
            "counter",
            "Connections that were closed for want of the PROXY protocol header that their listener asks for.",
            self.refused_connections,
        );

        text.head("rip_spooled_bytes", "gauge", "Bodies and answers that wait, by where they do.");
        for (place, bytes) in now.spooled {
            text.line("rip_spooled_bytes", &[("in", place)], bytes);
        }
        text.single(
            "rip_spool_max_bytes",
            "gauge",
            "What may wait on disk, as --max-spool says.",
            now.max_spool_bytes,
        );
        text.single(
            "rip_spool_hold_backs_total",
            "counter",
            "Times that a worker was held back, since there was no room for what its client had not taken.",
            self.hold_backs,
        );

        text.head("rip_workers", "gauge", "Workers, by state.");
        for (state, count) in &now.workers {
            text.line("rip_workers", &[("state", state)], *count);
        }
        let needed = now.needed_workers as u64;
        text.single(
            "rip_workers_needed",
            "gauge",
            "The most workers at work at once in the last minute.",
            needed,
        );
        text.head(
            "rip_worker_busy_seconds_total",
            "counter",
            "How long at least so many workers were at work at once: what the Nth of them was needed for.",
        );
        let mut at_least = Duration::ZERO;
        let mut lines = Vec::new();
        for (depth, time) in self.busy.iter().enumerate().skip(1).rev() {
            at_least += *time;
            lines.push((depth, at_least));
        }
        for (depth, time) in lines.into_iter().rev() {
            text.line("rip_worker_busy_seconds_total", &[("depth", &depth.to_string())], time.as_secs_f64());
        }
        text.single(
            "rip_worker_starts_total",
            "counter",
            "Worker processes that were started.",
            self.worker_starts,
        );
        text.single(
            "rip_worker_start_failures_total",
            "counter",
            "Worker processes that could not be started at all.",
            self.worker_start_failures,
        );
        let name = "rip_worker_start_seconds";
        text.head(name, "histogram", "From the word to start a worker to its join, by how it was started.");
        text.histogram(name, Some(("kind", "fork")), &self.forks);
        text.histogram(name, Some(("kind", "start")), &self.starts);
        let help = "Resident memory of the workers of each slot, where the kernel tells.";
        text.head("rip_worker_resident_bytes", "gauge", help);
        for (slot, bytes) in &now.resident_by_slot {
            text.line("rip_worker_resident_bytes", &[("slot", &slot.to_string())], bytes);
        }
        text.head("rip_worker_restarts_total", "counter", "Workers that were replaced or died, by reason.");
        for &why in RetireReason::ALL {
            let count = self.replacements.get(why.code()).copied().unwrap_or(0);
            text.line("rip_worker_restarts_total", &[("reason", why.code())], count);
        }
        text.line("rip_worker_restarts_total", &[("reason", "crash")], self.worker_crashes);
        text.line("rip_worker_restarts_total", &[("reason", "boot_failure")], self.worker_boot_failures);

        text.single(
            "rip_quarantined_requests",
            "gauge",
            "Requests that are refused now, since workers have died in them.",
            now.quarantine.now as u64,
        );
        text.single(
            "rip_quarantines_total",
            "counter",
            "Requests that began to be refused because workers died in them.",
            now.quarantine.ever,
        );
        text.single(
            "rip_quarantine_lifts_total",
            "counter",
            "Times that the quarantine was lifted, since it refused more than 1 % of the requests.",
            now.quarantine.lifted,
        );
        text.single(
            "rip_quarantine_evictions_total",
            "counter",
            "Requests in which workers died that were forgotten early, since there were too many of them.",
            now.quarantine.evicted,
        );
        text.single(
            "rip_received_bytes_total",
            "counter",
            "Bytes that came from clients.",
            self.received_bytes,
        );
        let sent = self.sent_body_bytes;
        text.single("rip_sent_body_bytes_total", "counter", "Bytes of answers' bodies.", sent);
        let dropped = now.dropped_log_lines;
        text.single(
            "rip_log_lines_dropped_total",
            "counter",
            "Log lines that nobody read or that could not be written.",
            dropped,
        );
        text.own_use(&now.own);
        text.0
    }
}

fn code(reason: Reason) -> &'static str {
    match reason {
        Reason::BadRequest(_) => BAD_REQUEST,
        other => other.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_depths_too() {
        let mut metrics = Metrics::default();
        for (ms, reason) in [(1, None), (3, None), (60_000, Some(Reason::QueueTimeout))] {
            let time = Duration::from_millis(ms);
            metrics.served(Served {
                status: if reason.is_some() { 504 } else { 200 },
                reason,
                queue: Duration::ZERO,
                worker: time,
                total: time,
                body_bytes: 4,
                reached_worker: reason.is_none(),
                stream: None,
            });
        }
        metrics.busy_for(1, Duration::from_secs(3));
        metrics.busy_for(2, Duration::from_secs(2));
        let text = metrics.render(&Snapshot { app: "a\"b".into(), ..Snapshot::default() });
        for line in [
            "rip_requests_total{status=\"2xx\"} 2",
            "rip_refusals_total{reason=\"queue_timeout\"} 1",
            "rip_refusals_total{reason=\"bad_request\"} 0",
            "rip_request_duration_seconds_bucket{le=\"0.005\"} 2",
            "rip_request_duration_seconds_bucket{le=\"+Inf\"} 3",
            "rip_worker_duration_seconds_count 2",
            "rip_worker_busy_seconds_total{depth=\"1\"} 5",
            "rip_worker_busy_seconds_total{depth=\"2\"} 2",
            "rip_sent_body_bytes_total 12",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("app=\"a\\\"b\""));
    }
}
