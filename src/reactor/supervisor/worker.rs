//! A worker: a process that listens for requests.

use crate::control::{Abilities, Join, Sender};
use crate::fleet::TemplateId;
use crate::observe::folds::BootOutput;
use crate::process::Exit;
use crate::reactor::endpoint::Endpoint;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::time::Instant;

/// What is kept of a worker's last words on stderr, for whoever asks why it died: a stack trace, with what stands
/// above it.
const LAST_WORDS: usize = 24;
const LAST_WORD_BYTES: usize = 500;

#[derive(Debug)]
pub(crate) struct Worker {
    pub(super) origin: Origin,
    pub(super) endpoint: Endpoint,
    /// Its connections are opened only with a request to send.
    pub(super) is_command: bool,
    pub(super) process: Process,
    pub(super) joined: Option<Instant>,
    pub(super) presence: Presence,
    /// Its answer does not end.
    pub(super) is_stuck: bool,
    /// It has old code, and gets nothing until the new one has come, or has not.
    pub(super) is_withheld: bool,
    pub(super) talk: Talk,
    pub(super) counts: Counts,
    pub(super) memory: Memory,
    pub(super) said: Said,
}

impl Worker {
    /// How one that came by itself would join again, and which process it is. `None`: the fleet started it.
    pub(super) fn external_join(&self) -> Option<(Join, Option<i32>)> {
        let Origin::Outside { worker_id, process } = self.origin else { return None };
        let join = Join {
            // Whoever has named one speaks the second version of the protocol.
            sender: Sender {
                instance: self.talk.can_be_asked.then(String::new),
                worker_id: worker_id as u64,
            },
            pid: self.process.pid.as_raw(),
            socket: self.endpoint.path()?.to_str()?.to_owned(),
            version: 0,
            abilities: self.talk.abilities,
        };
        Some((join, process.map(Pid::as_raw)))
    }
}

/// Where a worker comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The fleet started it.
    Slot { slot: usize, version: u64 },
    /// It came by itself (`w:0`).
    /// `process`: its pid here, where the kernel has confirmed the one that it says. One from another namespace may
    /// be a stranger's here, or nobody's.
    Outside { worker_id: usize, process: Option<Pid> },
    /// No worker, but what workers are forked from.
    Template { id: TemplateId },
}

/// How it was started.
#[derive(Debug)]
pub(super) struct Process {
    pub pid: Pid,
    pub started: Instant,
    /// When it was asked for: its start is counted from here.
    pub asked: Instant,
    /// Names its start in the spawner's answers.
    pub start_id: Option<u64>,
    pub program: String,
    pub is_fork: bool,
    /// Why its process could not become the program.
    pub exec_failure: Option<String>,
    /// The server ended it because it had not joined in time.
    pub was_late: bool,
}

/// Whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Present,
    /// It refused a connection, or one that came by itself has gone.
    Gone,
    /// Its process has ended. It is reaped when nobody is left in its group; then its pid may be somebody else's.
    Exited(Exit),
}

/// What it can do, as its join said.
#[derive(Debug, Default)]
pub(super) struct Talk {
    pub abilities: Abilities,
    /// Its join spoke the protocol's second version, so it answers `Rip-Probe: idle`.
    pub can_be_asked: bool,
}

/// What it has done.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// It was given a request.
    pub was_asked: bool,
    pub requests: u64,
    pub request_limit: Option<u64>,
    /// It has served so many.
    pub is_limit_reached: bool,
    /// Busy answers in a row.
    pub busy_streak: u8,
    /// Module reloads, as it tells.
    pub reloads: u64,
}

/// When its memory was last looked at, and what it was.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub checked: Option<Instant>,
    pub resident_bytes: Option<u64>,
    /// That it is above `--max-memory` is in the log.
    pub is_above_told: bool,
    /// When its share of memory was looked at last, and what it was.
    pub weighed: Option<Instant>,
    pub proportional_bytes: Option<u64>,
}

/// What it has printed.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub last_words: VecDeque<String>,
    pub boot_output: BootOutput,
}

/// Whether a worker's process lives, as far as can be known now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// On its way out; its exit status will come.
    IsEnding,
    /// Nothing tells.
    Unknown,
    Exited(Exit),
}

impl Origin {
    pub(crate) fn worker_id(self) -> usize {
        match self {
            Origin::Slot { slot, .. } => slot,
            Origin::Outside { worker_id, .. } => worker_id,
            Origin::Template { .. } => 0,
        }
    }

    pub(crate) fn is_own(self) -> bool {
        match self {
            Origin::Slot { .. } | Origin::Template { .. } => true,
            Origin::Outside { .. } => false,
        }
    }

    pub(crate) fn is_template(self) -> bool {
        matches!(self, Origin::Template { .. })
    }
}

impl Worker {
    pub(super) fn new(origin: Origin, pid: Pid, endpoint: Endpoint, is_command: bool, now: Instant) -> Self {
        Worker {
            origin,
            endpoint,
            is_command,
            process: Process {
                pid,
                started: now,
                asked: now,
                start_id: None,
                program: String::new(),
                is_fork: false,
                exec_failure: None,
                was_late: false,
            },
            joined: None,
            presence: Presence::Present,
            is_stuck: false,
            is_withheld: false,
            talk: Talk::default(),
            counts: Counts::default(),
            memory: Memory::default(),
            said: Said::default(),
        }
    }

    /// Its process, where it is known which one that is.
    pub(super) fn pid(&self) -> Option<Pid> {
        match self.origin {
            Origin::Slot { .. } | Origin::Template { .. } => Some(self.process.pid),
            Origin::Outside { process, .. } => process,
        }
    }

    /// Known to be gone: ended, or it refused a connection.
    pub(super) fn is_dead(&self) -> bool {
        self.presence != Presence::Present
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        match self.presence {
            Presence::Exited(exit) => Some(exit),
            Presence::Present | Presence::Gone => None,
        }
    }

    pub(super) fn has_joined(&self) -> bool {
        self.joined.is_some()
    }

    /// It has not ended, and is a child of ours.
    pub(super) fn is_own_child(&self) -> bool {
        self.exit().is_none() && self.origin.is_own()
    }

    pub(super) fn learn(&mut self, join: &Join) {
        self.talk.abilities = join.abilities;
        self.talk.can_be_asked = join.speaks_second_version();
    }

    /// Keeps a line of its stderr.
    pub(super) fn remember(&mut self, line: &[u8]) {
        let words = &mut self.said.last_words;
        if words.len() == LAST_WORDS {
            words.pop_front();
        }
        words.push_back(String::from_utf8_lossy(&line[..line.len().min(LAST_WORD_BYTES)]).into_owned());
    }

    /// `worker 3 (pid 42)`
    pub(super) fn label(&self) -> String {
        format!("{} (pid {})", self.output_label(), self.process.pid)
    }

    /// What is said in front of its lines.
    pub(super) fn output_label(&self) -> String {
        match self.origin {
            Origin::Template { .. } => "template".to_owned(),
            Origin::Slot { .. } | Origin::Outside { .. } => format!("worker {}", self.origin.worker_id()),
        }
    }
}
