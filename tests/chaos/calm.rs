//! What a server is like when nobody asks it anything: nothing that a storm has left may stay.

use crate::audit::Evidence;
use crate::clients::Player;
use crate::load::{Event, Worker, children, descriptors, events, files_in, workers};
use crate::support::{Server, Signal, TEST_TIMEOUT, comes_true, is_alive};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Stuck workers have to be killed, and those that load does not need to retire.
const CALM_WITHIN: Duration = Duration::from_secs(60);
/// How many plain requests the usual time is measured with.
const SAMPLES: usize = 200;

/// A server at rest.
#[derive(Debug, Clone)]
pub struct Calm {
    pub descriptors: usize,
    pub resident_kib: u64,
    pub median: Duration,
}

/// Waits until a server rests with so many workers, of so many requests at once, and looks at it; what is not as it should be comes back.
/// `before`: how it rested before the storm.
pub fn look(
    server: &mut Server,
    (workers_at_rest, at_once): (usize, usize),
    player: &mut Player,
    before: Option<&Calm>,
) -> (Calm, Vec<String>) {
    let mut faults = Vec::new();
    let mut unrest = String::new();
    let rests = comes_true(CALM_WITHIN, || {
        if server.has_exited() {
            unrest = "the server has ended".into();
            return true;
        }
        unrest = disquiet(server, (workers_at_rest, at_once), before);
        unrest.is_empty()
    });
    if !rests || !unrest.is_empty() {
        faults.push(format!("no rest: {unrest}"));
    }
    let calm = Calm {
        descriptors: descriptors(server.pid()).len(),
        resident_kib: server.rss_kib(),
        median: Duration::ZERO,
    };
    let pids_before = started(server);
    let asked_before = player.asks.len();
    let mut times = player.ask_plainly(SAMPLES);
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    // The worker that worked last works next, and those that nobody needs sleep.
    let context: BTreeSet<String> = player.asks[asked_before..].iter().map(|ask| ask.path()).collect();
    let mut pids = BTreeSet::new();
    let is_logged = comes_true(TEST_TIMEOUT, || {
        let lines = crate::tools::access_lines(server);
        let of_these =
            lines.iter().filter(|line| line["path"].as_str().is_some_and(|path| context.contains(path)));
        let all: Vec<i64> = of_these.filter_map(|line| line["pid"].as_i64()).collect();
        pids = all.iter().copied().collect();
        all.len() == context.len()
    });
    let replaced = started(server) - pids_before;
    if !is_logged || pids.len() > 1 + replaced {
        faults.push(format!("{} workers at work for one client, {replaced} were replaced", pids.len()));
    }
    (Calm { median, ..calm }, faults)
}

fn started(server: &Server) -> usize {
    events(server).iter().filter(|event| matches!(event, Event::Started { .. })).count()
}

/// Why a server does not rest; empty if it does.
fn disquiet(server: &Server, (workers_at_rest, at_once): (usize, usize), before: Option<&Calm>) -> String {
    let workers = workers(server);
    if workers.len() != workers_at_rest || workers.iter().any(|worker| worker.state != "idle") {
        return format!("the workers are {workers:?}");
    }
    let waiting = &server.details()["queue"]["now"];
    if waiting != 0 {
        return format!("{waiting} requests wait");
    }
    // Zombies are children as well.
    let children: BTreeSet<i32> = children(server.pid()).into_iter().collect();
    if children != workers.iter().map(|worker| worker.pid).collect() {
        return format!("its children are {children:?}, its workers {workers:?}");
    }
    let spool = files_in(&server.spool_dir());
    if !spool.is_empty() {
        return format!("files are left: {spool:?}");
    }
    let connections = metric(&metrics(server), "rip_client_connections");
    if connections != 0 {
        return format!("{connections} clients");
    }
    // The last look's own connection may still be there.
    let open = descriptors(server.pid());
    let kept_connections = workers_at_rest * (at_once - 1);
    if let Some(before) = before
        && open.len() > before.descriptors + kept_connections
    {
        return format!("{} descriptors before, then {open:?}", before.descriptors);
    }
    let files: BTreeSet<String> = files_in(&server.socket_dir()).into_iter().collect();
    let expected = files_of(server, &workers, &files);
    if files != expected {
        return format!("its sockets are {files:?}, and not {expected:?}");
    }
    String::new()
}

/// What is to be in its socket folder: the lock of its name, the control socket of all its runs, and for its one run the
/// control socket and a socket for each worker. The run's name is read from what is there.
fn files_of(server: &Server, workers: &[Worker], files: &BTreeSet<String>) -> BTreeSet<String> {
    let prefix = format!("rip_server2_{}", server.app());
    let instance = |file: &String| {
        file.strip_prefix(&prefix)?.strip_prefix('.')?.strip_suffix(".ctl").map(str::to_owned)
    };
    let run = format!("{prefix}.{}", files.iter().find_map(instance).unwrap_or_default());
    let of_workers = workers.iter().map(|worker| format!("{run}.{}.{}.sock", worker.slot, worker.generation));
    let own = [format!("{prefix}.lock"), format!("{prefix}.ctl.sock"), format!("{run}.ctl")];
    own.into_iter().chain(of_workers).collect()
}

impl Calm {
    /// What the storm has left behind.
    pub fn faults_after(&self, after: &Calm) -> Vec<String> {
        /// The allocator keeps some of what it was asked for at the worst.
        const GROWTH_KIB: u64 = 24 * 1024;
        /// A machine that has slowed down meanwhile is no server that has.
        const SLOWER: u32 = 10;
        const SLOW: Duration = Duration::from_millis(50);
        let mut faults = Vec::new();
        if after.resident_kib > self.resident_kib + GROWTH_KIB {
            faults.push(format!("memory is left: {self:?}, then {after:?}"));
        }
        if after.median > self.median * SLOWER + SLOW {
            faults.push(format!("it has become slow: {self:?}, then {after:?}"));
        }
        faults
    }
}

fn metrics(server: &Server) -> BTreeMap<String, u64> {
    let text = server.control("GET", "/metrics", "").text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

fn metric(metrics: &BTreeMap<String, u64>, name: &str) -> u64 {
    metrics.get(name).copied().unwrap_or_else(|| panic!("no {name} in {metrics:?}"))
}

/// Whether the counters say what the log says.
pub fn faults_of_metrics(server: &Server, evidence: &Evidence) -> Vec<String> {
    let metrics = metrics(server);
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for line in &evidence.lines {
        let class = format!("rip_requests_total{{status=\"{}xx\"}}", line.status / 100);
        *expected.entry(class).or_default() += 1;
        if !line.reason.is_empty() {
            let phrase = line.reason.split(':').next().unwrap_or_default();
            *expected.entry(format!("rip_refusals_total{{reason=\"{phrase}\"}}")).or_default() += 1;
        }
        *expected.entry("rip_sent_body_bytes_total".into()).or_default() += line.length;
    }
    let mut add = |name: &str, count: usize| expected.extend([(name.to_owned(), count as u64)]);
    add("rip_request_duration_seconds_count", evidence.lines.len());
    add("rip_worker_starts_total", started(server));
    add("rip_queue_depth", 0);
    add("rip_log_lines_dropped_total", 0);
    add("rip_retries_total", evidence.retries());
    let is_wrong = |(name, count): &(String, u64)| metric(&metrics, name) != *count;
    let wrong = expected.into_iter().filter(is_wrong);
    wrong.map(|(name, count)| format!("{name} is {} and not {count}", metric(&metrics, &name))).collect()
}

/// SIGTERM: exit 0, and everything is gone.
pub fn faults_of_the_end(server: &mut Server) -> Vec<String> {
    let workers = server.worker_pids();
    server.signal(Signal::SIGTERM);
    let code = server.wait_exit();
    let mut faults = Vec::new();
    if code != 0 {
        faults.push(format!("the server's exit code is {code}"));
    }
    if !comes_true(TEST_TIMEOUT, || !workers.iter().any(|&pid| is_alive(pid))) {
        faults.push("workers outlive the server".into());
    }
    let files = [files_in(&server.socket_dir()), files_in(&server.spool_dir())].concat();
    if !files.is_empty() {
        faults.push(format!("files are left: {files:?}"));
    }
    faults
}
