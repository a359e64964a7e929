//! Verbs that last: `reload`, `upgrade` and `stop` follow what they have asked for to its end.

use super::{Inquiry, Progress, connect, is_silence, print};
use crate::control::{CanaryPlan, Message};
use crate::handover::SERVER_STOPS;
use crate::names::Names;
use crate::paths::shown;
use crate::process;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Returns when the server is gone. One that stops already is waited for.
pub(super) fn stop(names: &Names) -> Result<(), String> {
    let mut inquiry = Inquiry::begin(names, "POST", "/control", &Message::Stop.to_json())?;
    let mut progress = Progress::new("stop: what is under way is finished");
    // The connection ends with the server, a moment before its process does.
    while inquiry.next_line(&mut progress)?.is_some() {}
    let is_gone = match inquiry.server {
        Some(server) => has_ended(server),
        // Of another pid namespace: its socket tells.
        None => connect(&names.control).is_err_and(|error| !is_silence(&error)),
    };
    drop(progress);
    match is_gone {
        true => print(&format!("{}: stopped\n", names.app)),
        false => Err(format!("{} has closed the connection, and lives on", inquiry.who())),
    }
}

/// Returns when all workers are replaced, or the reload has stopped.
pub(super) fn reload(names: &Names, canary: Option<CanaryPlan>) -> Result<(), String> {
    let mut inquiry = Inquiry::begin(names, "POST", "/control", &Message::Reload(canary).to_json())?;
    let mut progress = Progress::new("reload: the first new worker starts");
    let mut replaced = String::from("0");
    while let Some(line) = inquiry.next_line(&mut progress)? {
        let value = inquiry.value(&line)?;
        match value["ok"].as_bool() {
            None if value["every"].is_number() => {
                let (worker, pid, every) = (&value["worker"], &value["pid"], &value["every"]);
                progress.step(&format!(
                    "worker {worker} (pid {pid}) is on trial, and gets one request in {every}"
                ));
            }
            // The reload goes on, and its end is what counts.
            None => {
                replaced = format!("{} of {}", value["replaced"], value["of"]);
                progress.step(&format!("{replaced} replaced"));
            }
            Some(true) => {
                drop(progress);
                return print(&format!("{}: {replaced} workers replaced\n", names.app));
            }
            Some(false) => {
                return Err(format!("reload stopped: {}", value["error"].as_str().unwrap_or("?")));
            }
        }
    }
    Err("the server ended during the reload".into())
}

/// Returns when the new server serves, or the old one goes on.
pub(super) fn upgrade(names: &Names) -> Result<(), String> {
    let mut inquiry = Inquiry::begin(names, "POST", "/control", &Message::Upgrade.to_json())?;
    let mut progress = Progress::new("upgrade: the new server starts");
    while let Some(line) = inquiry.next_line(&mut progress)? {
        let value = inquiry.value(&line)?;
        match value["ok"].as_bool() {
            // The upgrade goes on, and its end is what counts.
            None => progress.step(&format!("{} of {} new workers serve", value["serving"], value["of"])),
            Some(true) => {
                drop(progress);
                return print(&format!(
                    "{}: pid {} serves; the old server finishes what it has\n",
                    names.app, value["pid"]
                ));
            }
            Some(false) if value["error"] == SERVER_STOPS => {
                return Err(format!("upgrade given up: {} stops", inquiry.who()));
            }
            Some(false) => {
                let reason = shown(value["error"].as_str().unwrap_or("?")).to_string();
                return Err(format!("upgrade failed, and {} goes on: {reason}", inquiry.who()));
            }
        }
    }
    Err("the server ended during the upgrade".into())
}

/// Waits until a process is gone, or ended and only not taken in by its parent. `false`: it lives on.
fn has_ended(pid: Pid) -> bool {
    /// Ending takes milliseconds; what takes longer is not waited for.
    const WITHIN: Duration = Duration::from_secs(5);
    const EVERY: Duration = Duration::from_millis(2);
    let since = Instant::now();
    loop {
        if !process::lives(pid) {
            return true;
        }
        if since.elapsed() >= WITHIN {
            return false;
        }
        std::thread::sleep(EVERY);
    }
}
