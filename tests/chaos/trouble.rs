//! What goes on beside the clients: workers that are killed and stopped from outside, and an operator who reloads,
//! with builds that work and builds that do not.

use crate::load::{Gate, children, tell, workers, write_script};
use crate::random::Random;
use crate::support::{Client, Server, Signal, comes_true};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

/// The server's `--read-timeout-ms`; a worker that is stopped for longer has its request fail.
pub const READ_TIMEOUT: Duration = Duration::from_millis(2500);

/// The server's `--drain-timeout-ms`: what a worker that leaves has not answered by then is cut.
pub const DRAIN_TIMEOUT: Duration = Duration::from_millis(2500);

/// A slot whose workers die early again and again waits for up to half a minute, and a reload waits for it.
const RELOAD_WITHIN: Duration = Duration::from_secs(200);

/// What was done, and what went wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    pub stopped: BTreeSet<i32>,
    pub killed: BTreeSet<i32>,
    pub counts: BTreeMap<&'static str, usize>,
    /// What those reloads said that should have come to their end.
    pub failed_reloads: Vec<String>,
    pub faults: Vec<String>,
}

impl Report {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn merge(&mut self, other: Report) {
        self.stopped.extend(other.stopped);
        self.killed.extend(other.killed);
        self.counts.extend(other.counts);
        self.failed_reloads.extend(other.failed_reloads);
        self.faults.extend(other.faults);
    }
}

/// Kills and stops workers from outside.
pub fn vandalise(server: &Server, mut random: Random, until: Instant) -> Report {
    let mut report = Report::default();
    loop {
        if is_over_within(random.between(50, 900), until) {
            return report;
        }
        // One that boots is left alone: its death would rightly end a reload.
        let joined = workers(server);
        let joined: Vec<_> = joined.iter().filter(|worker| worker.state != "booting").collect();
        if joined.is_empty() {
            continue;
        }
        let victim = random.pick(&joined);
        let is_ours = || children(server.pid()).contains(&victim.pid);
        match random.between(0, 9) {
            0..=2 if is_ours() => {
                report.count("kill -9");
                report.killed.insert(victim.pid);
                // It may be gone in this very moment.
                let _ = kill(Pid::from_raw(victim.pid), Signal::SIGKILL);
            }
            3..=6 if is_ours() => {
                report.count("SIGSTOP");
                report.stopped.insert(victim.pid);
                let most_ms = if random.chance(15) { READ_TIMEOUT.as_millis() as usize + 500 } else { 300 };
                let _ = kill(Pid::from_raw(victim.pid), Signal::SIGSTOP);
                let time = Duration::from_millis(random.between(10, most_ms) as u64);
                let is_gone = comes_true(time, || !is_ours());
                if !is_gone {
                    let _ = kill(Pid::from_raw(victim.pid), Signal::SIGCONT);
                }
            }
            7 => {
                report.count("retire");
                tell(server, &format!(r#"{{"op":"retire","workerId":{}}}"#, victim.slot));
            }
            8 => {
                report.count("scrape");
                let answer = server.control("GET", "/metrics", "");
                if answer.status != 200 {
                    report.faults.push(format!("metrics: {}", answer.status));
                }
            }
            _ => {}
        }
    }
}

/// Reloads in every way. `watches`: the server looks at its entry by itself, and a SIGHUP would end it.
pub fn operate(server: &Server, gate: &Gate, watches: bool, mut random: Random, until: Instant) -> Report {
    let mut report = Report::default();
    loop {
        if is_over_within(random.between(100, 2500), until) {
            return report;
        }
        match random.between(0, 4) {
            0 => {
                report.count("reload");
                let output = server.verb_within(RELOAD_WITHIN, ["reload"]);
                if output.code != 0 {
                    report.failed_reloads.push(format!("{output:?}"));
                }
            }
            1 => {
                report.count("reload by the socket");
                let mut client = Client::connect_unix(&server.control_socket());
                client.send_request("POST", "/control", "", br#"{"op":"reload"}"#);
                let (bytes, _) = client.wire.read_to_end(Instant::now() + RELOAD_WITHIN);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if !text.contains(r#""ok":true"#) {
                    report.failed_reloads.push(text);
                }
            }
            2 | 3 => {
                report.count("reload of a broken build");
                gate.break_build();
                let output = server.verb_within(RELOAD_WITHIN, ["reload"]);
                gate.mend_build();
                if output.code != 1 || !output.stderr.contains("the build is broken") {
                    report.faults.push(format!("a reload of a broken build: {output:?}"));
                }
            }
            _ if watches => {
                report.count("new entry");
                let (app, new) = (gate.app(), gate.app().with_file_name("app.new"));
                let text = fs::read_to_string(&app).expect("the app is a script");
                write_script(&new, &text);
                fs::rename(&new, &app).expect("a file can be renamed");
            }
            _ => {
                report.count("SIGHUP");
                server.signal(Signal::SIGHUP);
            }
        }
    }
}

/// Whether the storm is over within that time.
fn is_over_within(time_ms: usize, until: Instant) -> bool {
    comes_true(Duration::from_millis(time_ms as u64), || Instant::now() >= until)
}

/// The longest that a wait of a moment took beyond it: what this machine may do to a worker as well.
pub fn measure_stalls(until: Instant) -> Duration {
    const MOMENT: Duration = Duration::from_millis(10);
    let mut worst = Duration::ZERO;
    while Instant::now() < until {
        let since = Instant::now();
        comes_true(MOMENT, || Instant::now() >= until);
        worst = worst.max(since.elapsed().saturating_sub(MOMENT));
    }
    worst
}
