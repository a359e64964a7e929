//! What is told of the workers: in status, in the metrics, and to whoever asked for a reload.

use super::worker::{Origin, Worker};
use super::{Supervisor, process};

use crate::fleet::{Phase, Release, RollEnd, TemplateId, TrialFailure};
use crate::keys::WorkerKey;
use crate::process::Exit;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A process's share of memory is looked at no more often: the kernel walks through all of its pages.
const WEIGH_EVERY: Duration = Duration::from_secs(10);
/// Of a larger fleet the metrics do not tell each worker's memory: a look costs 10 µs.
const MAX_WEIGHED_FOR_METRICS: usize = 256;

impl Supervisor {
    /// Workers that get requests: none that leaves, is stuck, or is known to be gone.
    pub(crate) fn serving_workers(&self) -> impl Iterator<Item = WorkerKey> {
        let is_serving = |worker: &WorkerKey| {
            let worker = *worker;
            let Some(entry) = self.get(worker) else { return false };
            let has_joined = match self.phase_of(worker) {
                // One in reserve that is the only one of its release has requests all the time.
                Some(phase) => {
                    matches!(phase, Phase::Serving { .. } | Phase::Reserve { is_serving: true, .. })
                }
                None => entry.has_joined(),
            };
            has_joined && !entry.is_dead() && !entry.is_stuck
        };
        self.workers.iter().map(|(key, _)| WorkerKey(key)).filter(is_serving)
    }

    pub(crate) fn serving(&self) -> usize {
        self.serving_workers().count()
    }

    pub(crate) fn was_ever_healthy(&self) -> bool {
        self.history.was_ever_healthy
    }

    pub(crate) fn keys(&self) -> Vec<WorkerKey> {
        let workers = self.workers.iter().filter(|(_, entry)| !entry.origin.is_template());
        workers.map(|(key, _)| WorkerKey(key)).collect()
    }

    /// Slot by slot, and in each the oldest first.
    pub(crate) fn keys_by_slot(&self) -> Vec<WorkerKey> {
        let place = |worker: &WorkerKey| {
            self.get(*worker).map(|entry| (entry.origin.worker_id(), entry.process.started))
        };
        let mut workers = self.keys();
        workers.sort_by_key(place);
        workers
    }

    /// The program that runs the app, as the newest worker was started: an interpreter, or the app itself.
    pub(crate) fn program(&self) -> Option<&str> {
        let own = self.workers.iter().map(|(_, entry)| entry).filter(|entry| entry.origin.is_own());
        own.max_by_key(|entry| entry.process.started).map(|entry| entry.process.program.as_str())
    }

    fn last_exit(&self, slot: usize) -> Option<String> {
        self.history.last_exits.get(&slot).map(Exit::to_string)
    }

    /// Slots that have failed and wait for their next start.
    pub(crate) fn waiting_slots(&self, now: Instant) -> Vec<Value> {
        let failed = self.fleet.empty_slots().filter(|(_, failures, _)| *failures > 0);
        let waiting = failed.map(|(slot, failures, at)| {
            let next_ms = at.saturating_duration_since(now).as_millis() as u64;
            let last_exit = self.last_exit(slot);
            json!({"slot": slot, "failures": failures, "nextStartMs": next_ms, "lastExit": last_exit})
        });
        waiting.collect()
    }

    /// What is served, and `true` if other files lie there by now. In `module` mode workers take over changes
    /// themselves.
    pub(crate) fn release(&self) -> (String, bool) {
        let releases = self.launcher.releases();
        match releases.app(Release::Good) {
            Ok(app) => {
                let is_module = self.config.hot_reload == crate::config::HotReload::Module;
                let has_changed = !is_module && releases.has_changed();
                (app.entry.to_string_lossy().into_owned(), has_changed)
            }
            Err(complaint) => (complaint, false),
        }
    }

    /// What a reload would bring, where that is something else than what is served.
    pub(crate) fn next_release(&self) -> Option<String> {
        let found = self.launcher.source().find();
        if found == self.launcher.releases().app(Release::Good) {
            return None;
        }
        Some(found.map_or_else(|complaint| complaint, |app| app.entry.to_string_lossy().into_owned()))
    }

    /// How a worker stands; `is_idle`: it has no request.
    pub(crate) fn state_of(&self, worker: WorkerKey, is_idle: bool) -> &'static str {
        let Some(entry) = self.get(worker) else { return "gone" };
        match self.phase_of(worker) {
            _ if entry.is_stuck => "stuck",
            Some(Phase::Booting { .. }) => "booting",
            Some(Phase::Reserve { is_serving: false, .. }) => "reserve",
            // One that cools down after a busy answer has no request, and gets none.
            Some(Phase::Serving { .. } | Phase::Reserve { .. }) | None if !is_idle => "busy",
            Some(Phase::Serving { .. } | Phase::Reserve { .. }) | None => "idle",
            Some(Phase::Leaving { .. } | Phase::Terminating { .. } | Phase::Killed) => "leaving",
        }
    }

    /// Everything about one worker; `request`: what it is at work on.
    pub(crate) fn details(
        &self,
        worker: WorkerKey,
        is_idle: bool,
        request: Option<String>,
        now: Instant,
    ) -> Value {
        let Some(entry) = self.get(worker) else { return Value::Null };
        let member = self.fleet.members().find(|(_, member)| member.worker == worker);
        let slot = entry.origin.worker_id();
        json!({
            "slot": slot,
            "generation": member.map(|(_, member)| member.version),
            "pid": entry.process.pid.as_raw(),
            "forked": entry.process.is_fork,
            "state": self.state_of(worker, is_idle),
            "request": request.filter(|_| entry.has_joined()),
            "requests": entry.counts.requests,
            "reloads": entry.counts.reloads,
            "rssBytes": entry.pid().and_then(process::resident_bytes),
            "pssBytes": entry.memory.proportional_bytes,
            "ageSeconds": now.duration_since(entry.process.started).as_secs(),
            "lastExit": self.last_exit(slot),
        })
    }

    /// Whether the share of memory of any process is not known, or was looked at too long ago.
    pub(crate) fn has_to_weigh(&self, now: Instant) -> bool {
        self.next_to_weigh(now).is_some()
    }

    fn next_to_weigh(&self, now: Instant) -> Option<usize> {
        let is_due = |entry: &Worker| {
            let weighed = entry.memory.weighed;
            !entry.is_dead() && weighed.is_none_or(|at| now.duration_since(at) >= WEIGH_EVERY)
        };
        self.workers.iter().find(|(_, entry)| is_due(entry)).map(|(key, _)| key)
    }

    /// Looks how much memory the next of them uses: one at a time, since it takes the kernel milliseconds.
    pub(crate) fn weigh_next(&mut self, now: Instant) {
        let Some(entry) = self.next_to_weigh(now).and_then(|key| self.workers.get_mut(key)) else { return };
        entry.memory.weighed = Some(now);
        entry.memory.proportional_bytes = entry.pid().and_then(process::proportional_bytes);
    }

    /// The resident memory of the workers of each slot. None of a large fleet: each look opens a file.
    pub(crate) fn resident_by_slot(&self) -> Vec<(usize, u64)> {
        let mut by_slot = BTreeMap::new();
        if self.workers.len() <= MAX_WEIGHED_FOR_METRICS {
            let workers = self.workers.iter().map(|(_, entry)| entry);
            for entry in workers.filter(|entry| !entry.origin.is_template() && !entry.is_dead()) {
                if let Some(bytes) = entry.pid().and_then(process::resident_bytes) {
                    *by_slot.entry(entry.origin.worker_id()).or_default() += bytes;
                }
            }
        }
        by_slot.into_iter().collect()
    }

    /// The templates that are there.
    pub(crate) fn templates(&self, now: Instant) -> Vec<Value> {
        let templates = self.workers.iter().map(|(_, entry)| entry);
        let templates = templates.filter(|entry| entry.origin.is_template() && entry.exit().is_none());
        let loads =
            |entry: &Worker| matches!(entry.origin, Origin::Template { id } if self.fleet.is_loading(id));
        let template = |entry: &Worker| {
            json!({
                "loading": loads(entry),
                "pid": entry.process.pid.as_raw(),
                "rssBytes": entry.pid().and_then(process::resident_bytes),
                "pssBytes": entry.memory.proportional_bytes,
                "ageSeconds": now.duration_since(entry.process.started).as_secs(),
            })
        };
        templates.map(template).collect()
    }

    /// How a roll has ended, for whoever asked for it.
    pub(crate) fn end_roll(&mut self, end: RollEnd) -> Result<usize, String> {
        self.launcher.end_release();
        match end {
            RollEnd::Done { replaced } => {
                log::info!(
                    "reload: {replaced} {} replaced",
                    if replaced == 1 { "worker" } else { "workers" }
                );
                Ok(replaced)
            }
            RollEnd::Failed { slot, worker } => {
                let why = self.roll_failure(slot, worker);
                log::error!("reload stopped: {why}");
                Err(why)
            }
            RollEnd::Unstable { slot } => {
                let why =
                    format!("the new workers of slot {slot} ended again and again; the old workers go on");
                log::error!("reload stopped: {why}");
                Err(why)
            }
            RollEnd::NotTaken { slot, worker, failure } => {
                let why = self.trial_failure(slot, worker, failure);
                log::error!("reload undone: {why}");
                Err(why)
            }
            RollEnd::TemplateFailed { template } => {
                let why = self.template_failure(template);
                log::error!("reload stopped: {why}");
                Err(why)
            }
            RollEnd::Stopping => Err("the server is stopping".to_owned()),
        }
    }

    /// Why the first worker of a new release was not kept.
    fn trial_failure(&self, slot: usize, worker: WorkerKey, failure: TrialFailure) -> String {
        let what = match failure {
            TrialFailure::Errors { own, others } => format!(
                "failed at {} of {} requests, and the old ones at {} of {}",
                own.failed, own.answers, others.failed, others.answers
            ),
            TrialFailure::Ended => match self.get(worker).and_then(|entry| entry.exit()) {
                Some(exit) => format!("ended: {exit}"),
                None => "ended".to_owned(),
            },
            TrialFailure::Left => "left by itself".to_owned(),
            TrialFailure::Stuck => "got stuck".to_owned(),
            TrialFailure::Alone => "has no worker of the old release beside it".to_owned(),
        };
        format!("on trial the new worker {slot} {what}; the old release goes on")
    }

    /// Why a successor failed.
    fn roll_failure(&self, slot: usize, worker: Option<WorkerKey>) -> String {
        let Some(entry) = worker.and_then(|worker| self.get(worker)) else {
            let why = self.history.last_spawn_error.as_deref().unwrap_or("the reason is in the log");
            return format!("the successor of worker {slot} could not be started: {why}");
        };
        if let Some(error) = &entry.process.exec_failure {
            let program = &entry.process.program;
            return format!("the successor of worker {slot} could not be started: '{program}': {error}");
        }
        let how = match entry.exit() {
            Some(exit) if entry.has_joined() => format!("ended before it had served: {exit}"),
            Some(Exit::Signal(Signal::SIGKILL)) if entry.process.was_late => {
                format!("did not join within {} ms", self.config.boot_timeout.as_millis())
            }
            Some(exit) => format!("ended before it had joined: {exit}"),
            None => "failed".to_owned(),
        };
        let (pid, words) = (entry.process.pid, last_words(entry));
        format!("the successor of worker {slot} (pid {pid}) {how}; the old workers go on{words}")
    }

    /// Why a roll's template failed: no worker was touched.
    fn template_failure(&self, template: TemplateId) -> String {
        let Some(entry) = self.template_entry(template) else {
            let why = self.history.last_spawn_error.as_deref().unwrap_or("the reason is in the log");
            return format!("the template of the new code could not be started: {why}");
        };
        if let Some(error) = &entry.process.exec_failure {
            let program = &entry.process.program;
            return format!("the template of the new code could not be started: '{program}': {error}");
        }
        let how = match entry.exit() {
            Some(exit) => format!("ended before a worker had joined: {exit}"),
            None => {
                let did_not = match self.history.unresponsive_template == Some(template) {
                    true => "answer",
                    false => "load it",
                };
                format!("did not {did_not} within {} ms", self.config.boot_timeout.as_millis())
            }
        };
        let (pid, words) = (entry.process.pid, last_words(entry));
        format!("the template of the new code (pid {pid}) {how}; the old workers go on{words}")
    }
}

/// What it has said last, as lines of a message.
fn last_words(entry: &Worker) -> String {
    let words: Vec<&str> = entry.said.last_words.iter().map(String::as_str).collect();
    if words.is_empty() { String::new() } else { format!("\n  {}", words.join("\n  ")) }
}
