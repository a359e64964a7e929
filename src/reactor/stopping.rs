//! The end without loss: what was accepted is served, what is under way is finished, then the workers
//! go.

use super::entry::{ClientDeadline, Phase, Times};
use super::{Reactor, process};
use crate::http::Reason;
use crate::keys::{ClientKey, WorkerKey};
use nix::sys::signal::Signal;
use std::fmt;
use std::time::{Duration, Instant};

/// `timeout` of the coreutils and some supervisors signal the process and then its group: that is one signal.
const SAME_SIGNAL: Duration = Duration::from_millis(20);
/// What workers get to end when the drain timeout has run out already.
const LAST_MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Running,
    /// Requests are finished until then. `signalled`: when a signal last asked for the end.
    Draining {
        signalled: Option<Instant>,
        until: Instant,
    },
    /// No request can come any more: the workers leave, and clients take what they have been answered until then.
    Leaving {
        signalled: Option<Instant>,
        until: Instant,
    },
    /// The workers end.
    Ending {
        signalled: Option<Instant>,
    },
}

/// Who asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    Signal(Signal),
    /// `rip-server stop`
    Command,
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopCause::Signal(signal) => f.write_str(signal.as_str()),
            StopCause::Command => f.write_str("asked by a command"),
        }
    }
}

impl Stage {
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Stage::Draining { until, .. } | Stage::Leaving { until, .. } => Some(until),
            Stage::Running | Stage::Ending { .. } => None,
        }
    }
}

impl Reactor {
    pub(super) fn is_stopping(&self) -> bool {
        self.stage != Stage::Running
    }

    /// All workers leave, so that nobody is there for another try.
    pub(super) fn has_dismissed_workers(&self) -> bool {
        matches!(self.stage, Stage::Leaving { .. } | Stage::Ending { .. })
    }

    /// The first call drains. A second signal ends at once; a command joins the wait.
    pub(super) fn begin_stop(&mut self, cause: StopCause) {
        let now = self.clock.now;
        let signalled = match cause {
            StopCause::Signal(_) => Some(now),
            StopCause::Command => None,
        };
        match &mut self.stage {
            Stage::Running => {
                let (busy, waiting) = (self.balancer.busy(), self.balancer.waiting());
                log::info!("{cause}: stopping; {busy} at work, {waiting} waiting");
                self.drain(signalled);
            }
            Stage::Draining { signalled: earlier, .. }
            | Stage::Leaving { signalled: earlier, .. }
            | Stage::Ending { signalled: earlier } => match (cause, *earlier) {
                (StopCause::Command, _) => log::info!("{cause} once more: waits for the end"),
                (StopCause::Signal(_), None) => {
                    log::info!("{cause}: stopping already; a second signal would end at once");
                    *earlier = Some(now);
                }
                (StopCause::Signal(_), Some(at)) if now.duration_since(at) < SAME_SIGNAL => {}
                (StopCause::Signal(_), Some(_)) => {
                    log::warn!("{cause} once more: ending at once");
                    self.end_now(1);
                }
            },
        }
    }

    fn drain(&mut self, signalled: Option<Instant>) {
        let now = self.clock.now;
        self.stop_listening();
        self.stage = Stage::Draining { signalled, until: now + self.config.drain_timeout };
        self.fleet.drain(now);
        self.release_streams();
        for (_, entry) in &mut self.workers {
            entry.conn.close_client();
        }
        let idle: Vec<usize> =
            self.clients.iter().filter(|(_, entry)| entry.conn.is_idle()).map(|(key, _)| key).collect();
        for key in idle {
            self.client_deadlines.arm(key, ClientDeadline::Grace, now);
        }
    }

    /// What the kernel had already accepted is taken, then nothing more. Where descriptors lack for that, it waits in
    /// the backlog until there are some.
    pub(super) fn stop_listening(&mut self) {
        self.accept_again = None;
        for listener in &self.listeners {
            listener.close_path();
        }
        for index in 0..self.listeners.len() {
            while self.take_connections(index) {}
        }
        if self.accept_again.is_none() {
            self.listeners.clear();
        }
    }

    /// Looks whether the next step of the end is due.
    pub(super) fn go_on_stopping(&mut self) {
        let now = self.clock.now;
        match self.stage {
            Stage::Running => {}
            Stage::Draining { signalled, until } => {
                if now < until && self.may_get_requests() {
                    return;
                }
                self.stage = Stage::Leaving { signalled, until };
                self.fleet.stop(until.max(now + LAST_MOMENT), now);
                self.go_on_leaving(signalled, until);
            }
            Stage::Leaving { signalled, until } => self.go_on_leaving(signalled, until),
            Stage::Ending { .. } => self.end_if_alone(),
        }
    }

    /// Whether a worker may be asked once more: by a client that is there, or in the backlog.
    fn may_get_requests(&self) -> bool {
        let may_ask = |(_, entry): (usize, &super::entry::ClientEntry)| match entry.phase {
            Phase::Reading | Phase::Queued(_) | Phase::Retrying(_) | Phase::TimedOut(_) => true,
            Phase::Assigned { .. }
            | Phase::Finishing { .. }
            | Phase::Tunnel { .. }
            | Phase::Lingering
            | Phase::Dead => false,
        };
        !self.listeners.is_empty() || self.clients.iter().any(may_ask)
    }

    fn go_on_leaving(&mut self, signalled: Option<Instant>, until: Instant) {
        let lives = |(_, entry): (usize, &super::entry::ClientEntry)| !entry.is_dead();
        let is_done = !self.clients.iter().any(lives) && self.balancer.busy() == 0;
        if self.clock.now < until && !is_done {
            return;
        }
        if !is_done {
            self.cut_everything();
            self.listeners.clear();
        }
        self.stage = Stage::Ending { signalled };
        self.end_if_alone();
    }

    /// Workers that hold a stream or a tunnel would do so until the end: they are told at once, unless they are all
    /// that those who wait can hope for.
    fn release_streams(&mut self) {
        if self.balancer.waiting() > 0 {
            return;
        }
        let has_stream = |entry: &super::entry::WorkerEntry| {
            entry.exchange.as_ref().is_some_and(|exchange| {
                exchange.tunnel.is_some() || exchange.answer.is_some_and(|answer| answer.may_idle)
            })
        };
        let workers: Vec<usize> =
            self.workers.iter().filter(|(_, entry)| has_stream(entry)).map(|(key, _)| key).collect();
        for key in workers {
            self.fleet.release(WorkerKey(key), self.clock.now);
        }
    }

    fn end_if_alone(&mut self) {
        if self.fleet.is_gone() && self.starts.is_empty() && self.groups.is_empty() {
            log::info!("stopped");
            self.exit = Some(0);
        }
    }

    /// The drain's time is up: whoever still waits is told so.
    fn cut_everything(&mut self) {
        let workers: Vec<usize> = self.workers.iter().map(|(key, _)| key).collect();
        for key in workers {
            self.cut_exchange(WorkerKey(key));
        }
        while !self.timed_out.is_empty() {
            self.answer_timed_out();
        }
        let clients: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for client in clients.into_iter().map(ClientKey) {
            self.tell_of_the_end(client);
            self.cut_answer(client);
        }
    }

    /// Whoever has no answer yet gets the server's own.
    fn tell_of_the_end(&mut self, client: ClientKey) {
        match self.clients.get(client.0).map(|entry| &entry.phase) {
            Some(Phase::Queued(_) | Phase::Retrying(_)) => {
                self.balancer.forget(client);
                if let Some(job) = self.take_job(client) {
                    let times = Times { queue: self.clock.now - job.submitted, ..Times::default() };
                    self.refuse(client, job.request, Reason::Stopping, times, None);
                }
            }
            Some(Phase::Reading) => self.refuse_arriving(client, Reason::Stopping),
            _ => {}
        }
    }

    /// An answer that has not been taken is cut, so that it does not look whole; then the connection goes.
    fn cut_answer(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get_mut(client.0).filter(|entry| !entry.is_dead()) else {
            return;
        };
        if let Phase::Finishing { finished, .. } = &mut entry.phase {
            entry.stream.reset_on_close();
            if let Some(mut finished) = finished.take() {
                finished.reason.get_or_insert(Reason::Stopping);
                self.log(client, &finished);
            }
        }
        self.kill_client(client);
    }

    /// Everything ends now: whoever waits is told so, each request has its line, and no worker outlives the server.
    pub(super) fn end_now(&mut self, code: u8) {
        self.stage = Stage::Ending { signalled: None };
        self.cut_everything();
        self.answer_roll_followers(&Err("the server has ended".to_owned()));
        for (_, entry) in &self.workers {
            if entry.exit.is_none() && matches!(entry.origin, super::entry::Origin::Slot { .. }) {
                process::kill_group(entry.pid);
                entry.endpoint.remove_file();
            }
        }
        self.groups.kill_all();
        self.exit = Some(code);
    }
}
