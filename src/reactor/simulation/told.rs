//! What the server tells of itself, in status and in the metrics, compared with what the simulator knows.

use super::world::World;
use crate::fleet;
use crate::keys::WorkerKey;
use crate::reactor::backend::exchange::Exchange;
use crate::reactor::frontend::phase::Phase;
use serde_json::Value;
use std::time::Duration;

impl World {
    /// At rest, now and then: each look takes longer than a tick.
    pub(crate) fn check_told(&self) {
        if self.reactor.exit.is_some() || !self.rests.is_multiple_of(7) {
            return;
        }
        let status = self.reactor.status_details();
        let metrics = self.reactor.metrics_text();
        self.check_counts(&status, &metrics);
        self.check_worker_list(&status, &metrics);
        self.check_health(&status);
    }

    fn check_counts(&self, status: &Value, metrics: &str) {
        let reactor = &self.reactor;
        let clients = reactor.frontend.clients();
        let tunnels =
            clients.iter().filter(|(_, entry)| matches!(entry.phase(), Phase::Tunnel { .. })).count();
        let exchanges = || reactor.backend.upstreams().filter_map(|(_, entry)| entry.exchange());
        let streams = exchanges().filter(|exchange| exchange.streaming_since.is_some()).count();
        for (name, told, metric, expected) in [
            ("clients", &status["clients"], Some("rip_client_connections"), clients.len()),
            ("waiting", &status["queue"]["now"], Some("rip_queue_depth"), reactor.balancer.waiting()),
            ("streams", &status["streams"], Some("rip_streams"), streams),
            ("tunnels", &status["tunnels"], None, tunnels),
        ] {
            assert_eq!(told.as_u64(), Some(expected as u64), "{name}");
            if let Some(metric) = metric {
                assert_eq!(value_of(metrics, metric), Some(expected as f64), "{metric}");
            }
        }
        let order = status["queue"]["order"].as_str();
        let is_newest_first = value_of(metrics, "rip_queue_newest_first") == Some(1.0);
        assert_eq!(order == Some("newest first"), is_newest_first);
        let uptime = reactor.io.uptime().as_secs();
        assert_eq!(status["uptime"].as_u64(), Some(uptime));
        assert!(status["queue"]["orderSeconds"].as_u64() <= Some(uptime));
    }

    fn check_worker_list(&self, status: &Value, metrics: &str) {
        // The clock of the last tick: the simulator's may have moved on.
        let (reactor, now) = (&self.reactor, self.reactor.io.now());
        let list = status["workerList"].as_array().expect("a list");
        let workers = reactor.supervisor.workers();
        let own = workers.iter().filter(|(_, entry)| !entry.is_template()).count();
        assert_eq!(list.len(), own, "each worker once");
        let by_slot = list.iter().map(|worker| worker["slot"].as_u64());
        assert!(by_slot.is_sorted(), "slot by slot");
        let mut places: Vec<u64> = list.iter().filter_map(|worker| worker["stack"].as_u64()).collect();
        places.sort_unstable();
        assert!(places.iter().copied().eq(0..places.len() as u64), "each place in the stack once");
        for told in list {
            let has_pid = |entry: &crate::reactor::supervisor::worker::Worker| {
                told["pid"].as_i64() == Some(i64::from(entry.pid_number()))
            };
            let (key, entry) = workers.iter().find(|(_, entry)| has_pid(entry)).expect("a worker of ours");
            let worker = WorkerKey(key);
            let of_it = reactor.backend.upstreams().filter(|(_, entry)| entry.worker() == worker);
            let exchanges: Vec<&Exchange> = of_it.filter_map(|(_, entry)| entry.exchange()).collect();
            let (streams, requests): (Vec<&Exchange>, Vec<&Exchange>) =
                exchanges.into_iter().partition(|exchange| exchange.streaming_since.is_some());
            assert_eq!(told["streams"].as_u64(), Some(streams.len() as u64), "worker {key}");
            assert_eq!(told["atWork"].as_u64(), Some(requests.len() as u64), "worker {key}");
            let oldest = requests.iter().min_by_key(|exchange| exchange.assigned);
            let is_told = entry.joins() && oldest.is_some();
            assert_eq!(told["request"].is_string(), is_told, "worker {key}");
            if let Some(oldest) = oldest.filter(|_| is_told) {
                let seconds = told["oldest"]["seconds"].as_f64().expect("how old it is");
                let age = (now - oldest.assigned).as_secs_f64();
                assert!((seconds - age).abs() < 1e-6, "worker {key}: {seconds} s, and it is {age}");
                let text = told["request"].as_str().expect("it is told");
                let others = requests.len() - 1;
                assert_eq!(text.ends_with(&format!(" (+{others})")), others > 0, "worker {key}: {text}");
            }
            let is_first =
                reactor.balancer.top() == Some(worker) && reactor.balancer.stack().next() == Some(worker);
            assert!(!is_first || told["stack"].as_u64() == Some(0), "worker {key} is the next one");
            self.check_state(told, worker);
        }
        for state in ["idle", "busy", "booting", "reserve", "leaving", "stuck"] {
            let listed = list.iter().filter(|worker| worker["state"] == state).count();
            let metric = format!("rip_workers{{state=\"{state}\"}}");
            assert_eq!(value_of(metrics, &metric), Some(listed as f64), "{metric}");
        }
    }

    fn check_state(&self, told: &Value, worker: WorkerKey) {
        let reactor = &self.reactor;
        let is_stuck = reactor.supervisor.workers().get(worker.0).is_some_and(|entry| entry.is_stuck());
        let mut members = reactor.supervisor.fleet().members();
        let member = members.find(|(_, member)| member.worker == worker);
        let busy_or_idle = if reactor.balancer.is_idle(worker) { "idle" } else { "busy" };
        let expected = match member.map(|(_, member)| member.phase()) {
            _ if is_stuck => "stuck",
            Some(fleet::Phase::Booting { .. }) => "booting",
            Some(fleet::Phase::Reserve { is_serving: false, .. }) => "reserve",
            Some(fleet::Phase::Serving { .. } | fleet::Phase::Reserve { .. }) | None => busy_or_idle,
            Some(fleet::Phase::Leaving { .. } | fleet::Phase::Terminating { .. } | fleet::Phase::Killed) => {
                "leaving"
            }
        };
        assert_eq!(told["state"], expected, "{worker:?}");
        assert_eq!(told["generation"].as_u64(), member.map(|(_, member)| member.version), "{worker:?}");
    }

    fn check_health(&self, status: &Value) {
        let (code, line) = self.reactor.status_summary();
        let summary: Value = serde_json::from_str(&line).expect("one line of JSON");
        for name in ["status", "app", "workers", "ports", "uptime"] {
            assert_eq!(summary[name], status[name], "{name}: as the control socket tells it");
        }
        let gets_some = |worker: &&Value| worker["state"] == "idle";
        let idle = status["workerList"].as_array().into_iter().flatten().filter(gets_some).count();
        let health = status["status"].as_str().expect("a word");
        assert_eq!(code == 200, health == "healthy", "{health}: {code}");
        let serving = status["workers"].as_u64().expect("a number");
        assert!(serving >= idle as u64, "who is idle serves");
        assert_eq!(serving == 0, matches!(health, "starting" | "degraded"), "{health} with {serving}");
        if health == "hung" {
            let is_old = |exchange: &Exchange| {
                exchange.client.is_none()
                    && self.reactor.io.now() - exchange.assigned >= Duration::from_millis(500)
            };
            assert_eq!(idle, 0, "hung, and somebody is idle");
            let mut exchanges = self.reactor.backend.upstreams().filter_map(|(_, entry)| entry.exchange());
            assert!(exchanges.any(is_old), "hung, and nobody has waited for long");
        }
    }
}

/// The value of a metric's line, by its name with its labels.
fn value_of(metrics: &str, name: &str) -> Option<f64> {
    let rest = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    rest.parse().ok()
}
