//! What the server and its surroundings tell each other: signals, systemd, the pid file, and the servers before and
//! after this one.

pub(super) mod handed;
pub(super) mod line;
pub(super) mod notifier;
mod pid_file;

use crate::deadlines::earliest;
use crate::handover::{Incoming, Message, Outgoing};
use crate::observe::counters::Counters;
use crate::process;
use handed::Begin;
use line::Line;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use notifier::Notifier;
use pid_file::PidFile;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a server that drains tells the next one how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Host {
    pub(super) signals: SignalFd,
    pub(super) notifier: Notifier,
    pid_file: Option<PidFile>,
    pub(super) successor: Option<Successor>,
    pub(super) predecessor: Option<Predecessor>,
    /// A reload was asked for while an upgrade was under way: whichever server goes on does it then.
    pub(super) owes_reload: bool,
    /// What the servers before this one have counted.
    pub(super) counted: Counters,
}

/// The server that this one has started to follow it.
pub(super) struct Successor {
    pub pid: Pid,
    pub line: Line,
    pub machine: Outgoing,
    pub has_taken_over: bool,
    /// What its run is called, once it has said so.
    pub instance: Option<String>,
    /// When it is told next how far this one is, once it has taken over.
    pub next_report: Option<Instant>,
}

/// The server that has started this one.
pub(super) struct Predecessor {
    pub line: Line,
    pub machine: Incoming,
    pub begin: Begin,
    /// As it has told last: it drains.
    pub clients: usize,
    pub workers: usize,
}

impl Host {
    pub(super) fn new(signals: SignalFd, notifier: Notifier, predecessor: Option<Predecessor>) -> Self {
        Host {
            signals,
            notifier,
            pid_file: None,
            successor: None,
            predecessor,
            owes_reload: false,
            counted: Counters::default(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let successor = self.successor.as_ref();
        let upgrade = successor.and_then(|successor| successor.machine.next_deadline());
        let report = successor.and_then(|successor| successor.next_report);
        earliest([self.notifier.next_deadline(), upgrade, report])
    }

    /// Whether it is open which of two servers will go on: an upgrade is under way, from this one or to this one.
    pub(super) fn is_upgrading(&self) -> bool {
        self.has_open_successor() || self.is_waiting()
    }

    /// Whether an upgrade from this server is under way.
    pub(super) fn has_open_successor(&self) -> bool {
        self.successor.as_ref().is_some_and(|successor| successor.machine.is_open())
    }

    /// A new server that failed is killed, and what it leaves is still to be removed.
    pub(super) fn is_clearing_up(&self) -> bool {
        self.successor.as_ref().is_some_and(|successor| !successor.has_taken_over)
    }

    /// This server waits for its turn, and accepts nobody.
    pub(super) fn is_waiting(&self) -> bool {
        self.predecessor.as_ref().is_some_and(|predecessor| !predecessor.machine.is_serving())
    }

    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn write_pid_file(&mut self, path: Option<&Path>) -> Result<(), String> {
        self.pid_file = path.map(PidFile::write).transpose()?;
        Ok(())
    }
}

impl Successor {
    pub(super) fn new(pid: Pid, line: Line, machine: Outgoing) -> Self {
        Successor { pid, line, machine, has_taken_over: false, instance: None, next_report: None }
    }

    /// Tells it how far this server is, where it is to know.
    pub(super) fn report(&mut self, report: &Message, now: Instant) {
        self.next_report = Some(now + REPORT_EVERY);
        // What does not get through is told again, all but the last.
        let _ = self.line.say(report, None);
    }

    /// SIGHUP, by which a server with `--hot-reload=process` reloads.
    pub(super) fn ask_for_reload(&self) {
        process::hang_up(self.pid);
    }

    /// SIGKILL; its workers end with it.
    pub(super) fn kill(&self) {
        process::kill_one(self.pid);
    }
}
