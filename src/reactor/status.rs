//! What the server tells of itself: to anybody, to the command line, to Prometheus.

use super::backend::exchange::Exchange;
use super::io::listen::Listener;
use super::tick::Reactor;
use crate::balancer::Serving;
use crate::keys::WorkerKey;
use crate::observe::failures::Subject;
use crate::observe::metrics::{OwnUse, Snapshot};
use crate::observe::timestamp;
use crate::process;
use nix::unistd::getpid;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

impl Reactor {
    /// What `GET /status` answers to anybody: the status code and a line of JSON.
    pub(crate) fn status_summary(&self) -> (u16, String) {
        let (status, value) = self.summary();
        // In an order that people read; serde_json sorts the keys.
        let fields: Vec<String> = ["status", "app", "workers", "ports", "uptime"]
            .into_iter()
            .map(|name| format!("{}:{}", json!(name), value[name]))
            .collect();
        (status, format!("{{{}}}\n", fields.join(",")))
    }

    fn summary(&self) -> (u16, Value) {
        let joined = self.supervisor.serving();
        let (status, health) = match (joined, self.supervisor.was_ever_healthy()) {
            (0, false) => (503, "starting"),
            (0, true) => (503, "degraded"),
            (_, _) if self.is_hung() => (503, "hung"),
            (_, _) => (200, "healthy"),
        };
        let port = self.frontend.listeners().iter().find_map(Listener::port);
        let value = json!({
            "status": health,
            "app": self.supervisor.launcher().names().app,
            "workers": joined,
            "ports": {"http": port},
            "uptime": self.io.uptime().as_secs(),
        });
        (status, value)
    }

    /// Whether every worker is still at work on a request that nobody waits for any more: a new one would only wait.
    fn is_hung(&self) -> bool {
        self.supervisor.serving_workers().all(|worker| self.is_overdue(worker))
    }

    /// Whether each of the worker's requests has had more than the read timeout, and its client an answer or enough of
    /// waiting.
    fn is_overdue(&self, worker: WorkerKey) -> bool {
        let is_overdue = |exchange: &Exchange| {
            exchange.client.is_none() && exchange.assigned + self.config.read_timeout <= self.io.now()
        };
        let mut requests = self
            .backend
            .exchanges_of(worker)
            .filter(|exchange| exchange.streaming_since.is_none())
            .peekable();
        requests.peek().is_some() && requests.all(is_overdue)
    }

    /// What the control socket tells: everything.
    pub(crate) fn status_details(&self) -> Value {
        let (_, mut value) = self.summary();
        let workers = self.supervisor.keys_by_slot();
        let places: HashMap<WorkerKey, usize> =
            self.balancer.stack().enumerate().map(|(place, worker)| (worker, place)).collect();
        let details = |worker: WorkerKey| self.worker_details(worker, places.get(&worker).copied());
        let workers: Vec<Value> = workers.into_iter().map(details).collect();
        let addresses: Vec<String> = self.frontend.listeners().iter().map(Listener::address).collect();
        let (release, has_changed) = self.supervisor.release();
        let launcher = self.supervisor.launcher();
        value["time"] = timestamp(self.io.unix()).into();
        value["pid"] = std::process::id().into();
        value["path"] = launcher.source().path().to_string_lossy().into_owned().into();
        value["release"] = release.into();
        value["program"] = self.supervisor.program().into();
        value["releaseChanged"] = has_changed.into();
        value["nextRelease"] = self.supervisor.next_release().into();
        value["listeners"] = addresses.into();
        value["queue"] = json!({
            "now": self.balancer.waiting(),
            "deepest": self.balancer.longest_queue(),
            "longestMs": self.observer.longest_wait().as_millis() as u64,
            "order": self.balancer.serving().code(),
            "orderSeconds": self.order_age().as_secs(),
        });
        value["generation"] = self.supervisor.fleet().generation().into();
        value["hotReload"] = self.config.hot_reload.code().into();
        value["needed"] = json!({"workers": self.needed_workers(), "of": self.needed_of()});
        value["waitingSlots"] = self.supervisor.waiting_slots(self.io.now()).into();
        value["starting"] = launcher.starts().into();
        value["clients"] = self.frontend.connections().into();
        value["concurrency"] = self.config.concurrency.into();
        value["streams"] = self.backend.streams().into();
        value["tunnels"] = self.backend.tunnels().into();
        value["droppedLogLines"] = self.observer.dropped_lines().into();
        value["quarantine"] = self.quarantine_details();
        value["predecessor"] = self.host.predecessor_details();
        value["upgrading"] = self.host.is_upgrading().into();
        value["templates"] = self.supervisor.templates(self.io.now()).into();
        value["workerList"] = workers.into();
        value["failures"] = self.observer.failures().requests();
        value["failuresTotal"] = self.observer.failures().requests_total().into();
        value["deaths"] = self.observer.failures().deaths();
        value["rolls"] = self.observer.rolls().to_json(self.io.now());
        value["viewers"] = self.admin.viewers().into();
        value
    }

    /// `place`: how many workers would be chosen before it.
    fn worker_details(&self, worker: WorkerKey, place: Option<usize>) -> Value {
        let now = self.io.now();
        // Streams have their own place.
        let requests =
            self.backend.exchanges_of(worker).filter(|exchange| exchange.streaming_since.is_none());
        let (oldest, at_work) = requests.fold((None, 0), |(oldest, count), exchange| {
            let is_older = |other: &&Exchange| other.assigned <= exchange.assigned;
            (oldest.filter(is_older).or(Some(exchange)), count + 1)
        });
        let request = oldest.map(|exchange| {
            let request = exchange.subject();
            let seconds = now.saturating_duration_since(exchange.assigned).as_secs_f64();
            let others = if at_work > 1 { format!(" (+{})", at_work - 1) } else { String::new() };
            format!(
                "{seconds:.1}s {} {}{others}",
                request.method().escape_ascii(),
                request.path().escape_ascii()
            )
        });
        let streams = self.backend.exchanges_of(worker).count() - at_work;
        let mut value = self.supervisor.details(worker, self.balancer.is_idle(worker), request, now);
        if !value.is_null() {
            // What a command is asked before it serves is no request.
            let oldest = oldest.filter(|_| !value["request"].is_null()).map(|exchange| {
                let request = exchange.subject();
                let mut value = Subject::new(request.method(), request.path(), request.id()).to_json();
                value["seconds"] = now.saturating_duration_since(exchange.assigned).as_secs_f64().into();
                value["hasClient"] = exchange.client.is_some().into();
                value
            });
            value["oldest"] = oldest.into();
            value["stack"] = place.into();
            value["atWork"] = at_work.into();
            value["streams"] = streams.into();
        }
        value
    }

    /// The most workers that were at work at once within the last minute or two.
    fn needed_workers(&self) -> usize {
        self.observer.depth().needed(self.balancer.deepest(), self.supervisor.fleet().size())
    }

    fn needed_of(&self) -> usize {
        self.observer.depth().needed_of(self.supervisor.fleet().size())
    }

    /// For how long the waiting have been served in the order of now.
    fn order_age(&self) -> Duration {
        let since = self.balancer.serving_since();
        since.map_or(self.io.uptime(), |since| self.io.now().saturating_duration_since(since))
    }

    /// Prometheus' text.
    pub(crate) fn metrics_text(&self) -> String {
        let states = ["idle", "busy", "booting", "reserve", "leaving", "stuck"];
        let state_of = |worker: &WorkerKey| self.supervisor.state_of(*worker, self.balancer.is_idle(*worker));
        let workers = self.supervisor.keys();
        let count = |state: &str| workers.iter().filter(|worker| state_of(worker) == state).count();
        let spooled = self.io.spools().spooled();
        let text = self.observer.render(&Snapshot {
            app: self.supervisor.launcher().names().app.clone(),
            uptime: self.io.uptime(),
            waiting: self.balancer.waiting(),
            longest_queue: self.balancer.longest_queue(),
            longest_wait: self.observer.longest_wait(),
            is_newest_first: self.balancer.serving() == Serving::NewestFirst,
            order_age: self.order_age(),
            order_changes: self.balancer.order_changes(),
            connections: self.frontend.connections(),
            streams: self.backend.streams(),
            dropped_log_lines: self.observer.dropped_lines(),
            workers: states.into_iter().map(|state| (state, count(state))).collect(),
            needed_workers: self.needed_workers(),
            spooled: [
                ("memory", spooled.memory_bytes),
                ("memfd", spooled.memfd_bytes),
                ("disk", spooled.disk_bytes),
            ],
            max_spool_bytes: spooled.max_disk_bytes,
            quarantine: self.quarantined(),
            resident_by_slot: self.supervisor.resident_by_slot(),
            own: OwnUse {
                cpu: process::own_cpu(),
                resident_bytes: process::resident_bytes(getpid()),
                descriptors: process::open_descriptors(),
                max_descriptors: process::max_descriptors(),
            },
        });
        self.host.counted.add_to(text)
    }
}
