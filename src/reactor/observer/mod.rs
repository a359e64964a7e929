//! What is told of the server: access lines, its own words, figures.

mod depth;
mod log_file;
mod logs;
mod refusals;
mod stdio;

pub(super) use logs::Logs;

use super::crossing::{Finished, Times};
use super::io::Io;
use crate::balancer::Serving;
use crate::fleet::RetireReason;
use crate::observe::access::Record;
use crate::observe::failures::Failures;
use crate::observe::history::{History, Load};
use crate::observe::metrics::{Metrics, Served, Snapshot};
use crate::observe::rolls::Rolls;
use depth::Depth;
use refusals::Refusals;
use serde_json::Value;
use std::fmt::Display;
use std::time::{Duration, Instant};

pub(super) struct Observer {
    logs: Logs,
    metrics: Metrics,
    depth: Depth,
    refusals: Refusals,
    failures: Failures,
    rolls: Rolls,
    /// Only for the operators' page.
    history: Option<Box<History>>,
    longest_wait: Duration,
    /// What was last told of the order in which the waiting are served.
    order_changes: u64,
}

impl Observer {
    pub(super) fn new(logs: Logs, keeps_history: bool, now: Instant) -> Self {
        Observer {
            logs,
            metrics: Metrics::default(),
            depth: Depth::new(now),
            refusals: Refusals::default(),
            failures: Failures::default(),
            rolls: Rolls::default(),
            history: keeps_history.then(|| Box::new(History::new(now))),
            longest_wait: Duration::ZERO,
            order_changes: 0,
        }
    }

    /// Says how the waiting are served if that has changed.
    pub(super) fn note_order(&mut self, serving: Serving, changes: u64) {
        if std::mem::replace(&mut self.order_changes, changes) == changes {
            return;
        }
        match serving {
            Serving::OldestFirst => log::info!("queue: waiting requests are served in order again"),
            Serving::NewestFirst => log::warn!(
                "queue: overload; more requests come than the workers can serve, and who waits in order is served too late: from now on newest first"
            ),
        }
    }

    /// Counts a request and adds its access line to those that wait.
    pub(super) fn log(&mut self, finished: &Finished, peer: &[u8], io: &Io) {
        let now = io.now();
        let request = &finished.request;
        let record = Record {
            method: request.method(),
            path: request.path(),
            status: finished.answer.status,
            total: now.saturating_duration_since(request.started),
            worker_time: finished.times.worker,
            queue_time: finished.times.queue,
            media_type: finished.answer.media_type(),
            body_bytes: finished.body_bytes,
            worker: finished.worker,
            id: request.id(),
            client: request.client().unwrap_or(peer),
            peer,
            reason: finished.reason,
        };
        self.metrics.served(Served {
            stream: finished.times.stream,
            status: record.status,
            reason: record.reason,
            queue: record.queue_time,
            worker: record.worker_time,
            total: record.total,
            body_bytes: record.body_bytes,
            reached_worker: record.worker.is_some(),
        });
        self.failures.note(&record, io.unix());
        self.longest_wait = self.longest_wait.max(record.queue_time);
        self.logs.append_access_line(&record, io.unix(), now);
    }

    /// A stream's head is out: as a request it has ended.
    pub(super) fn stream_began(&mut self, times: &Times, total: Duration) {
        self.metrics.took(times.queue, times.worker, total);
    }

    pub(super) fn depth(&self) -> &Depth {
        &self.depth
    }

    /// The fleet has that size now; `take_deepest` gives how deep the stack was used since it was asked last.
    pub(super) fn note_size(&mut self, size: usize, take_deepest: impl FnOnce() -> usize, now: Instant) {
        self.depth.note(size, take_deepest, now);
    }

    pub(super) fn longest_wait(&self) -> Duration {
        self.longest_wait
    }

    pub(super) fn render(&self, snapshot: &Snapshot) -> String {
        self.metrics.render(snapshot)
    }
}

/// What has happened lately.
impl Observer {
    pub(super) fn has_history(&self) -> bool {
        self.history.is_some()
    }

    /// A tick begins; `load` has been there since the one before.
    pub(super) fn note_load(&mut self, load: Load, now: Instant) {
        if let Some(history) = &mut self.history {
            history.note(load, now, || self.metrics.tally());
        }
    }

    /// The history's second that has not ended, and when it ends.
    pub(super) fn history_second(&self) -> Option<(u64, Instant)> {
        self.history.as_ref().map(|history| (history.second(), history.next_second()))
    }

    pub(super) fn history_since(&self, second: u64) -> Value {
        self.history.as_ref().map_or(Value::Null, |history| history.since(second))
    }

    pub(super) fn failures(&self) -> &Failures {
        &self.failures
    }

    pub(super) fn failures_mut(&mut self) -> &mut Failures {
        &mut self.failures
    }

    pub(super) fn rolls(&self) -> &Rolls {
        &self.rolls
    }

    pub(super) fn rolls_mut(&mut self) -> &mut Rolls {
        &mut self.rolls
    }
}

/// The outputs.
impl Observer {
    /// The line at the start.
    pub(super) fn announce(&mut self, line: &[u8]) {
        self.logs.announce(line);
    }

    /// A line that a worker has printed.
    pub(super) fn worker_line(&mut self, line: &[u8], is_stderr: bool, label: &str) {
        self.logs.worker_line(line, is_stderr, label);
    }

    /// Writes what is due, without waiting for anybody.
    pub(super) fn flush(&mut self, now: Instant) {
        self.logs.flush(now);
    }

    /// When lines must be written at the latest.
    pub(super) fn next_flush(&self, now: Instant) -> Option<Instant> {
        self.logs.next_flush(now)
    }

    /// One of the two outputs has room again.
    pub(super) fn on_output_writable(&mut self) {
        self.logs.has_room();
    }

    /// Opens the log file anew. `None`: there is none.
    ///
    /// # Errors
    /// Why it cannot be opened; the one that is open stays.
    pub(super) fn reopen_log_file(&mut self, io: &Io) -> Option<Result<(), String>> {
        self.logs.reopen_file(io.registry())
    }

    /// The last lines, at the end.
    pub(super) fn finish(&mut self) {
        self.logs.finish();
    }

    pub(super) fn dropped_lines(&self) -> u64 {
        self.logs.dropped_lines()
    }

    #[cfg(test)]
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn take_lines(&mut self) -> Vec<u8> {
        self.logs.take_lines()
    }
}

/// Figures.
impl Observer {
    pub(super) fn busy_for(&mut self, workers: usize, time: Duration) {
        self.metrics.busy_for(workers, time);
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.metrics.received_bytes += bytes as u64;
    }

    pub(super) fn retried(&mut self) {
        self.metrics.retries += 1;
    }

    pub(super) fn held_back(&mut self) {
        self.metrics.hold_backs += 1;
    }

    pub(super) fn accept_failed(&mut self) {
        self.metrics.accept_failures += 1;
    }

    /// A connection was closed since its proxy has not said who has connected to it.
    pub(super) fn refused_connection(&mut self, peer: &dyn Display, why: &dyn Display, now: Instant) {
        self.metrics.refused_connections += 1;
        self.refusals.note(peer, why, now);
    }

    pub(super) fn accepting_paused(&mut self) {
        self.metrics.accept_pauses += 1;
    }

    pub(super) fn closed_for_room(&mut self) {
        self.metrics.closed_for_room += 1;
    }

    pub(super) fn worker_started(&mut self) {
        self.metrics.worker_starts += 1;
    }

    pub(super) fn worker_replaced(&mut self, reason: RetireReason) {
        self.metrics.replaced(reason);
    }

    pub(super) fn worker_joined(&mut self, is_fork: bool, took: Duration) {
        self.metrics.joined(is_fork, took);
    }

    pub(super) fn start_failed(&mut self) {
        self.metrics.worker_start_failures += 1;
    }

    pub(super) fn worker_crashed(&mut self) {
        self.metrics.worker_crashes += 1;
    }

    pub(super) fn boot_failed(&mut self) {
        self.metrics.worker_boot_failures += 1;
    }
}

#[cfg(test)]
mod tests;
