//! What the server tells of itself: to anybody, to the command line, to Prometheus.

use super::listen::Listener;
use super::{Reactor, process};
use crate::config::HotReload;
use crate::fleet::{Phase, Release};
use crate::keys::WorkerKey;
use crate::observe::metrics::Snapshot;
use serde_json::{Value, json};

impl Reactor {
    /// What `GET /status` answers to anybody: the status code and a line of JSON.
    pub(super) fn status_summary(&self) -> (u16, String) {
        let (status, value) = self.summary();
        (status, format!("{value}\n"))
    }

    fn summary(&self) -> (u16, Value) {
        let joined = self.serving_workers();
        let (status, health) = match (joined, self.control.was_ever_healthy) {
            (0, false) => (503, "starting"),
            (0, true) => (503, "degraded"),
            (_, _) => (200, "healthy"),
        };
        let port = self.listeners.iter().find_map(Listener::port);
        let value = json!({
            "status": health,
            "app": self.names.app,
            "workers": joined,
            "ports": {"http": port},
            "uptime": self.clock.now.duration_since(self.started).as_secs(),
        });
        (status, value)
    }

    /// Workers that get requests: none that leaves, is stuck, or is known to be gone.
    fn serving_workers(&self) -> usize {
        let is_serving = |key: usize, entry: &super::entry::WorkerEntry| {
            let member = self.fleet.members().find(|(_, member)| member.worker == WorkerKey(key));
            let has_joined = match member {
                Some((_, member)) => matches!(member.phase, Phase::Serving { .. }),
                None => entry.has_joined,
            };
            has_joined && !entry.is_dead && !entry.is_stuck
        };
        self.workers.iter().filter(|(key, entry)| is_serving(*key, entry)).count()
    }

    /// Slots that have failed and wait for their next start.
    fn waiting_slots(&self) -> Vec<Value> {
        let waiting = self.fleet.empty_slots().map(|(slot, failures, at)| {
            let next_ms = at.saturating_duration_since(self.clock.now).as_millis() as u64;
            let last_exit = self.control.last_exit(slot).map(|exit| exit.to_string());
            json!({"slot": slot, "failures": failures, "nextStartMs": next_ms, "lastExit": last_exit})
        });
        waiting.collect()
    }

    /// What is served, and `true` if other files lie there by now. In `module` mode workers take over changes
    /// themselves.
    fn release(&self) -> (String, bool) {
        match self.releases.app(Release::Good) {
            Ok(app) => {
                let has_changed = self.config.hot_reload != HotReload::Module && self.releases.has_changed();
                (app.entry.to_string_lossy().into_owned(), has_changed)
            }
            Err(complaint) => (complaint, false),
        }
    }

    /// What a reload would bring, where that is something else than what is served.
    fn next_release(&self) -> Option<String> {
        let found = self.source.find();
        if found == self.releases.app(Release::Good) {
            return None;
        }
        Some(found.map_or_else(|complaint| complaint, |app| app.entry.to_string_lossy().into_owned()))
    }

    /// What the control socket tells: everything.
    pub(super) fn status_details(&self) -> Value {
        let (_, mut value) = self.summary();
        let workers: Vec<Value> =
            self.workers.iter().map(|(key, _)| self.worker_details(WorkerKey(key))).collect();
        let addresses: Vec<String> = self.listeners.iter().map(Listener::address).collect();
        let (release, has_changed) = self.release();
        value["pid"] = std::process::id().into();
        value["path"] = self.source.path().to_string_lossy().into_owned().into();
        value["release"] = release.into();
        value["releaseChanged"] = has_changed.into();
        value["nextRelease"] = self.next_release().into();
        value["listeners"] = addresses.into();
        value["queue"] = json!({
            "now": self.balancer.waiting(),
            "deepest": self.balancer.longest_queue(),
            "longestMs": self.longest_wait.as_millis() as u64,
        });
        value["hotReload"] = self.config.hot_reload.code().into();
        value["needed"] = json!({"workers": self.needed_workers(), "of": self.needed_of()});
        value["starting"] = self.starts.len().into();
        value["waitingSlots"] = self.waiting_slots().into();
        value["clients"] = self.clients.len().into();
        value["tunnels"] = self.tunnels().into();
        value["droppedLogLines"] = self.logs.dropped_lines().into();
        value["workerList"] = workers.into();
        value
    }

    fn tunnels(&self) -> usize {
        let has_tunnel = |entry: &super::entry::WorkerEntry| {
            let exchange = entry.exchange.as_ref();
            exchange.is_some_and(|exchange| exchange.tunnel.is_some() && exchange.client.is_some())
        };
        self.workers.iter().filter(|(_, entry)| has_tunnel(entry)).count()
    }

    fn state_of(&self, worker: WorkerKey) -> &'static str {
        let Some(entry) = self.workers.get(worker.0) else { return "gone" };
        let member = self.fleet.members().find(|(_, member)| member.worker == worker);
        match member.map(|(_, member)| member.phase) {
            _ if entry.is_stuck => "stuck",
            Some(Phase::Booting { .. }) => "booting",
            // One that rests after a busy answer has no request, and gets none.
            Some(Phase::Serving { .. }) | None if !self.balancer.is_idle(worker) => "busy",
            Some(Phase::Serving { .. }) | None => "idle",
            Some(Phase::Leaving { .. } | Phase::Terminating { .. } | Phase::Killed) => "leaving",
        }
    }

    fn worker_details(&self, worker: WorkerKey) -> Value {
        let Some(entry) = self.workers.get(worker.0) else { return Value::Null };
        let member = self.fleet.members().find(|(_, member)| member.worker == worker);
        let slot = entry.origin.worker_id();
        let exchange = entry.exchange.as_ref().filter(|_| entry.has_joined);
        let request = exchange.map(|exchange| {
            let request = exchange.subject();
            let seconds = self.clock.now.saturating_duration_since(exchange.assigned).as_secs_f64();
            format!("{seconds:.1}s {} {}", request.method().escape_ascii(), request.path().escape_ascii())
        });
        json!({
            "slot": slot,
            "generation": member.map(|(_, member)| member.version),
            "pid": entry.pid.as_raw(),
            "state": self.state_of(worker),
            "request": request,
            "requests": entry.requests,
            "reloads": entry.reloads,
            "rssBytes": entry.process().and_then(process::resident_bytes),
            "ageSeconds": self.clock.now.duration_since(entry.started).as_secs(),
            "lastExit": self.control.last_exit(slot).map(|exit| exit.to_string()),
        })
    }

    /// Prometheus' text.
    pub(super) fn metrics_text(&self) -> String {
        let states = ["idle", "busy", "booting", "leaving", "stuck"];
        let count = |state: &str| {
            self.workers.iter().filter(|(key, _)| self.state_of(WorkerKey(*key)) == state).count()
        };
        let workers = states.into_iter().map(|state| (state, count(state))).collect();
        let spooled = self.spools.spooled();
        self.metrics.render(&Snapshot {
            app: self.names.app.clone(),
            uptime: self.clock.now.duration_since(self.started),
            waiting: self.balancer.waiting(),
            longest_queue: self.balancer.longest_queue(),
            longest_wait: self.longest_wait,
            connections: self.clients.len(),
            dropped_log_lines: self.logs.dropped_lines(),
            workers,
            needed_workers: self.needed_workers(),
            spooled: [
                ("memory", spooled.memory_bytes),
                ("memfd", spooled.memfd_bytes),
                ("disk", spooled.disk_bytes),
            ],
            max_spool_bytes: spooled.max_disk_bytes,
        })
    }
}
