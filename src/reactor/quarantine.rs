//! Requests in which workers die: what is remembered of them, and who is refused for it.

use super::backend::exchange::{Exchange, Stage};
use super::crossing::{Job, Times};
use super::tick::Reactor;
use crate::fleet::TrialOutcome;
use crate::http::Reason;
use crate::keys::{ClientKey, UpstreamKey, WorkerKey};
use crate::observe::metrics::Quarantined;
use crate::quarantine::{Consequence, Fingerprint, MAX_HASHED_BODY_BYTES, Suspect, Verdict, Victim};
use serde_json::{Value, json};

/// Of a request's path so much is told: longer ones would fill status.
const MAX_SHOWN_BYTES: usize = 256;

/// Status shows so many of them; the metrics count all.
const MAX_SHOWN_ROWS: usize = 20;

/// Requests on their way. To be asked only while something is remembered.
impl Reactor {
    /// Whether a request that has just arrived is refused.
    pub(super) fn is_quarantined(&mut self, client: ClientKey, job: &Job) -> bool {
        let fingerprint = self.known_fingerprint(job);
        let address = job.request.client().unwrap_or_else(|| self.frontend.address(client));
        let address = self.quarantine.hash(address);
        match self.quarantine.judge(fingerprint, address, self.io.now()) {
            Verdict::Passes => false,
            Verdict::PassesOnTrial => {
                log::info!(
                    "quarantine: {} is let through, to see whether it still ends a worker",
                    shown(job)
                );
                false
            }
            Verdict::Refused => true,
            Verdict::Lifted => {
                log::error!(
                    "quarantine: lifted for a minute, since it refused more than 1 % of the requests; workers die of something else than a few requests"
                );
                false
            }
        }
    }

    /// Whether a request that has waited, or had a first try, may go to a worker.
    pub(super) fn may_go_on(&self, job: &Job) -> bool {
        self.quarantine.may_go_on(self.known_fingerprint(job), job.submitted, self.io.now())
    }

    pub(super) fn refuse_quarantined(&mut self, client: ClientKey, job: Job) {
        let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
        self.refuse(client, job.request, Reason::Quarantined, times, None);
    }

    /// A worker has answered a request: one that was let through has passed its trial.
    pub(super) fn has_passed_trial(&mut self, job: &Job) {
        let fingerprint = self.known_fingerprint(job);
        if self.quarantine.on_answer(fingerprint, job.submitted, self.io.now()) {
            log::info!("quarantine: {} was answered, and is refused no longer", shown(job));
        }
    }

    fn known_fingerprint(&self, job: &Job) -> Option<Fingerprint> {
        self.quarantine.known_fingerprint(&job.request.head, || body_of(job))
    }
}

/// Workers that end.
impl Reactor {
    /// A worker's connection has ended in the middle of an exchange. Whether its process has as well will be known soon.
    pub(super) fn suspect(&mut self, upstream: UpstreamKey) {
        let Some(worker) = self.backend.worker_of(upstream) else { return };
        // Of several nobody can tell which was it.
        let is_alone = self.backend.crashed_with(worker, self.io.now()) <= 1
            && self.backend.exchanges_of(worker).count() <= 1;
        let suspect = self.backend.exchange(upstream).and_then(|exchange| self.suspect_of(exchange));
        if let Some(suspect) = suspect.filter(|_| is_alone) {
            self.quarantine.suspect(worker.0, suspect);
        }
    }

    /// What a worker has at work, if it can be to blame for the worker's end. Of a stream, what passes over it is.
    fn suspect_of(&self, exchange: &Exchange) -> Option<Suspect> {
        let is_request = match exchange.stage() {
            Stage::Serving | Stage::Reconnecting | Stage::AwaitingExit { .. } => true,
            Stage::Tunnel { .. } | Stage::Probing | Stage::AskingIdle { .. } => false,
        };
        if self.quarantine.is_off() || !is_request || exchange.is_unsent() || exchange.is_stream() {
            return None;
        }
        let job = &exchange.job;
        let fingerprint = self.quarantine.fingerprint(&job.request.head, || body_of(job));
        Some(Suspect { fingerprint, request: shown(job) })
    }

    /// A worker's process has ended. It counts against what it had at work if it ended by itself.
    pub(super) fn blame_for_end(&mut self, worker: WorkerKey) {
        let Some(suspect) = self.quarantine.take_suspect(worker.0) else { return };
        if !self.supervisor.was_told_to_end(worker) {
            let victim = self.supervisor.identity(worker);
            let request = suspect.request.clone();
            let consequence = self.quarantine.on_death(suspect, victim, self.io.now());
            tell(&request, victim, "died", consequence);
            self.tell_evictions();
        }
    }

    /// A worker's answer has not ended by the drain timeout after its read timeout.
    pub(super) fn blame_for_hang(&mut self, upstream: UpstreamKey) {
        let suspect = self.backend.exchange(upstream).and_then(|exchange| self.suspect_of(exchange));
        let Some(suspect) = suspect else { return };
        let (victim, now) = (self.identity(upstream), self.io.now());
        let since = now.checked_sub(self.config.drain_timeout).unwrap_or(now);
        let request = suspect.request.clone();
        let consequence = self.quarantine.on_hang(suspect, victim, since, now);
        tell(&request, victim, "got stuck", consequence);
    }

    /// Says that requests are forgotten for want of room: at the first, and whenever they are twice as many.
    fn tell_evictions(&mut self) {
        if let Some(count) = self.quarantine.news_of_evictions() {
            log::error!(
                "quarantine: workers die in more different requests than it can remember; {count} were forgotten early by now"
            );
        }
    }

    /// New code serves from now on.
    pub(super) fn end_quarantine(&mut self) {
        let count = self.quarantine.clear();
        if count > 0 {
            log::info!("quarantine: emptied, since there is new code; {count} requests are served again");
        }
    }
}

/// For operators.
impl Reactor {
    pub(super) fn quarantined(&self) -> Quarantined {
        let counts = self.quarantine.counts();
        Quarantined {
            now: self.quarantine.rows(self.io.now()).count(),
            ever: counts.quarantined,
            lifted: counts.lifted,
            evicted: counts.evicted,
        }
    }

    /// Which requests are refused, which workers they have ended, and for how long it lasts.
    pub(super) fn quarantine_details(&self) -> Value {
        let now = self.io.now();
        let rows = self.quarantine.rows(now).take(MAX_SHOWN_ROWS).map(|row| {
            let workers = row.victims.iter().map(|(slot, pid)| json!({"worker": slot, "pid": pid}));
            json!({
                "request": row.request,
                "deaths": row.deaths,
                "workers": workers.collect::<Vec<Value>>(),
                "refused": row.refused,
                "secondsLeft": row.until.saturating_duration_since(now).as_secs_f64().ceil(),
            })
        });
        rows.collect()
    }
}

/// A release on trial.
impl Reactor {
    /// What became of a request. To be called only while somebody is on trial.
    pub(super) fn note_outcome(&mut self, worker: WorkerKey, job: &Job, outcome: TrialOutcome) {
        let target = self.quarantine.hash(first_line(&job.request.head));
        self.supervisor.fleet_mut().note_outcome(worker, target, outcome, self.io.now());
    }

    /// The same of one that is at work, if anybody is on trial.
    pub(super) fn note_failure(&mut self, upstream: UpstreamKey) {
        if !self.supervisor.fleet().is_judging() {
            return;
        }
        let exchange = self.backend.exchange(upstream).filter(|exchange| !exchange.is_question());
        let target = exchange.map(|exchange| self.quarantine.hash(first_line(&exchange.job.request.head)));
        if let (Some(worker), Some(target)) = (self.backend.worker_of(upstream), target) {
            self.supervisor.fleet_mut().note_outcome(worker, target, TrialOutcome::Failed, self.io.now());
        }
    }
}

fn first_line(head: &[u8]) -> &[u8] {
    head.split(|&byte| byte == b'\n').next().unwrap_or_default()
}

fn tell(request: &str, victim: Option<Victim>, how: &str, consequence: Consequence) {
    let worker = victim.map_or("a worker".to_owned(), |(slot, pid)| format!("worker {slot} (pid {pid})"));
    match consequence {
        Consequence::None => {}
        Consequence::Remembered => log::warn!("quarantine: {worker} {how} in {request}"),
        Consequence::Refused { deaths, is_new: true } => log::error!(
            "quarantine: {worker} {how} in {request}, the {deaths}. of it within a minute; such requests get 503 quarantined, and one a minute is let through"
        ),
        Consequence::Refused { deaths, is_new: false } => {
            log::error!("quarantine: {worker} {how} in {request} too ({deaths} by now); it stays refused");
        }
    }
}

/// A body's length, and its beginning.
fn body_of(job: &Job) -> (u64, Vec<u8>) {
    (job.body.len(), job.body.start(MAX_HASHED_BODY_BYTES))
}

/// `GET /path`, without the query: secrets travel there.
fn shown(job: &Job) -> String {
    let path = job.request.path();
    let path = &path[..path.len().min(MAX_SHOWN_BYTES)];
    format!("{} {}", job.request.method().escape_ascii(), path.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_first_line_of_a_head() {
        assert_eq!(first_line(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"), b"GET / HTTP/1.1\r");
        assert_eq!(first_line(b""), b"");
    }
}
