//! What connections to workers wait for, and for how long.

use super::Backend;
use super::link::Link;
use crate::config::Config;
use crate::deadlines::{Deadlines, deadline_kinds, earliest};
use crate::keys::UpstreamKey;
use crate::reactor::io::token::Readiness;
use crate::reactor::limits::COOLDOWN;
use std::time::{Duration, Instant};

/// Between two tries to connect to a full backlog.
const CONNECT_AGAIN: Duration = Duration::from_millis(5);
/// Between two looks whether a command answers.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Between two questions whether a worker is idle.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long the exit status of a process that is ending is waited for: one that frees gigabytes or writes a core file
/// takes a while.
const EXIT_WAIT: Duration = Duration::from_secs(2);

deadline_kinds! {
    /// What a connection to a worker waits for.
    pub(crate) enum UpstreamDeadline {
        /// The next byte of an answer.
        Read,
        /// The same, where a stream may be idle for long.
        Idle,
        /// The end of an answer that nobody waits for.
        Stall,
        /// Another try to connect: the backlog was full.
        Connect,
        /// The end of its cooldown after a busy answer or a strange end.
        Cooldown,
        /// Another look whether a command answers by now.
        Probe,
        /// The exit status of a process that is ending.
        Exit,
    }
}

deadline_kinds! {
    /// What runs beside [`UpstreamDeadline::Stall`], while a worker is asked whether it is idle.
    pub(crate) enum AskDeadline {
        /// The next time that it is asked.
        Repeat,
    }
}

/// Of each connection, what it waits for.
pub(super) fn deadlines(config: &Config) -> Deadlines<UpstreamDeadline> {
    Deadlines::new(|kind| match kind {
        UpstreamDeadline::Read => config.read_timeout,
        UpstreamDeadline::Idle => config.idle_timeout,
        UpstreamDeadline::Stall => config.drain_timeout,
        UpstreamDeadline::Connect => CONNECT_AGAIN,
        UpstreamDeadline::Cooldown => COOLDOWN,
        UpstreamDeadline::Probe => PROBE_EVERY,
        UpstreamDeadline::Exit => EXIT_WAIT,
    })
}

/// And when its worker is asked again.
pub(super) fn ask_deadlines() -> Deadlines<AskDeadline> {
    Deadlines::new(|kind| match kind {
        AskDeadline::Repeat => ASK_EVERY,
    })
}

/// Deadlines.
impl Backend {
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        earliest([self.deadlines.next(), self.ask_deadlines.next(), self.upstreams.next_sweep()])
    }

    /// Closes connections that have not been needed for long.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.upstreams.sweep(now);
    }

    /// Takes one connection whose deadline is due.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(UpstreamKey, UpstreamDeadline)> {
        let (key, kind) = self.deadlines.expire(now)?;
        Some((UpstreamKey(key), kind))
    }

    /// Takes one worker that is to be asked again.
    pub(crate) fn expire_question(&mut self, now: Instant) -> Option<UpstreamKey> {
        self.ask_deadlines.expire(now).map(|(key, AskDeadline::Repeat)| UpstreamKey(key))
    }

    pub(crate) fn armed(&self, upstream: UpstreamKey) -> Option<UpstreamDeadline> {
        self.deadlines.armed(upstream.0)
    }

    pub(crate) fn arm(&mut self, upstream: UpstreamKey, kind: UpstreamDeadline, now: Instant) {
        self.deadlines.arm(upstream.0, kind, now);
    }

    pub(crate) fn disarm(&mut self, upstream: UpstreamKey) {
        self.deadlines.disarm(upstream.0);
    }

    /// A worker's time to end an answer that nobody waits for. Where it runs, nothing sets it back.
    pub(crate) fn arm_stall(&mut self, upstream: UpstreamKey, now: Instant) {
        if self.armed(upstream) != Some(UpstreamDeadline::Stall) {
            self.arm(upstream, UpstreamDeadline::Stall, now);
        }
    }

    /// A question is asked again after a while.
    pub(crate) fn arm_question(&mut self, upstream: UpstreamKey, now: Instant) {
        self.ask_deadlines.arm(upstream.0, AskDeadline::Repeat, now);
    }

    /// The worker takes bytes, so it lives.
    pub(crate) fn note_progress(&mut self, upstream: UpstreamKey, now: Instant) {
        if let Some(kind @ (UpstreamDeadline::Read | UpstreamDeadline::Idle)) = self.armed(upstream) {
            self.arm(upstream, kind, now);
        }
    }

    /// A piece of an answer has come, and it goes on. Once nobody waits, the stall's clock runs and is not set back by more
    /// bytes.
    pub(crate) fn answer_goes_on(&mut self, upstream: UpstreamKey, now: Instant) {
        let may_idle = self.answer_of(upstream).is_some_and(|answer| answer.may_idle);
        if self.armed(upstream) != Some(UpstreamDeadline::Stall) {
            let kind = if may_idle { UpstreamDeadline::Idle } else { UpstreamDeadline::Read };
            self.arm(upstream, kind, now);
        }
    }

    /// An event has come. `false`: of nobody.
    pub(crate) fn note(&mut self, upstream: UpstreamKey, event: Readiness) -> bool {
        let Some(entry) = self.get_mut(upstream) else { return false };
        let may_write = entry.exchange.as_ref().is_none_or(|exchange| exchange.may_write());
        match &mut entry.link {
            Link::Open(socket) => socket.note_end(event, may_write),
            // Not this one; another is tried.
            Link::Connecting { since, .. } if event.is_read_closed || event.is_error => {
                let since = *since;
                entry.link.enter(Link::Connecting { since, stream: None });
            }
            Link::Connecting { .. } | Link::Closed => {}
        }
        true
    }
}
