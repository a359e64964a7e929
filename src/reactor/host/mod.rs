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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::IncomingStep;
    use line::Heard;
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::SfdFlags;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    fn host(predecessor: Option<Predecessor>, now: Instant) -> Host {
        let signals = SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_NONBLOCK).expect("a signalfd");
        Host::new(signals, Notifier::kept(Duration::from_secs(3), now), predecessor)
    }

    fn successor(pid: i32, now: Instant) -> (Successor, Line) {
        let (line, other) = Line::pair().expect("a pair");
        let machine = Outgoing::begin(Duration::from_secs(10), now);
        (Successor::new(Pid::from_raw(pid), line, machine), other)
    }

    #[test]
    fn a_server_alone_waits_for_nobody() {
        let host = host(None, Instant::now());
        assert!(!host.is_upgrading() && !host.has_open_successor());
        assert!(!host.is_clearing_up() && !host.is_waiting());
        assert_eq!(host.next_deadline(), None);
    }

    #[test]
    fn an_upgrade_is_open_until_one_server_goes_on() {
        let now = Instant::now();
        let mut host = host(None, now);
        host.successor = Some(successor(1, now).0);
        assert!(host.is_upgrading() && host.has_open_successor() && host.is_clearing_up());
        assert!(!host.is_waiting());
        assert_eq!(
            host.next_deadline(),
            host.successor.as_ref().expect("it is there").machine.next_deadline()
        );
        let successor = host.successor.as_mut().expect("it is there");
        successor.machine.fail("no".into());
        assert!(!host.is_upgrading() && !host.has_open_successor());
        assert!(host.is_clearing_up(), "what it leaves is still there");
        host.successor.as_mut().expect("it is there").has_taken_over = true;
        assert!(!host.is_clearing_up());
    }

    #[test]
    fn a_successor_waits_until_it_takes_over() {
        let (line, _other) = Line::pair().expect("a pair");
        let machine = Incoming::new(1);
        let before = Predecessor { line, machine, begin: Begin::default(), clients: 0, workers: 0 };
        let mut host = host(Some(before), Instant::now());
        assert!(host.is_waiting() && host.is_upgrading() && !host.has_open_successor());
        let machine = &mut host.predecessor.as_mut().expect("it is there").machine;
        machine.note_serving(1);
        assert_eq!(machine.on_message(&Message::Go), Some(IncomingStep::TakeOver));
        assert!(!host.is_waiting() && !host.is_upgrading());
    }

    #[test]
    fn a_successor_is_told_once_a_second_how_far_this_server_is() {
        let now = Instant::now();
        let (mut successor, mut other) = successor(1, now);
        successor.report(&Message::Released, now);
        assert!(matches!(other.hear(), Heard::Message(Some(Message::Released), None)));
        let mut host = host(None, now);
        successor.machine.fail("no".into());
        host.successor = Some(successor);
        assert_eq!(host.next_deadline(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_successor_is_asked_for_a_reload_by_one_signal_and_ended_by_another() {
        let sleeper = || Command::new("sleep").arg("1000").spawn().expect("a process");
        let ended_by = |mut child: Child| child.wait().expect("its end").signal();
        let of = |child: &Child| successor(child.id() as i32, Instant::now()).0;
        let child = sleeper();
        of(&child).ask_for_reload();
        assert_eq!(ended_by(child), Some(Signal::SIGHUP as i32));
        let child = sleeper();
        of(&child).kill();
        assert_eq!(ended_by(child), Some(Signal::SIGKILL as i32));
    }

    #[test]
    fn the_pid_file_is_written_where_one_is_asked_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pid");
        let mut host = host(None, Instant::now());
        assert_eq!(host.write_pid_file(None), Ok(()));
        assert_eq!(host.write_pid_file(Some(&path)), Ok(()));
        assert!(path.exists());
        drop(host);
        assert!(!path.exists());
    }
}
