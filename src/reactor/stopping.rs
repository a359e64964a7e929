//! The end without loss: what was accepted is served, what is under way is finished, then the workers
//! go.

use super::crossing::Times;
use super::frontend::phase::{Phase, Wait};
use super::stage::Stage;
use super::tick::Reactor;
use crate::handover::Message;
use crate::http::Reason;
use crate::keys::ClientKey;
use nix::sys::signal::Signal;
use std::fmt;
use std::time::{Duration, Instant};

/// `timeout` of the coreutils and some supervisors signal the process and then its group: that is one signal.
const SAME_SIGNAL: Duration = Duration::from_millis(20);
/// What workers get to end when the drain timeout has run out already.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Who asks for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopCause {
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
        let now = self.io.now();
        let signalled = match cause {
            StopCause::Signal(_) => Some(now),
            StopCause::Command => None,
        };
        match &mut self.stage {
            Stage::Running => {
                let (busy, waiting) = (self.balancer.busy(), self.balancer.waiting());
                log::info!("{cause}: stopping; {busy} at work, {waiting} waiting");
                self.abort_upgrade();
                // The server before this one ends with it.
                if let Some(predecessor) = &self.host.predecessor {
                    let _ = predecessor.line.say(&Message::Stop, None);
                }
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

    pub(super) fn drain(&mut self, signalled: Option<Instant>) {
        let now = self.io.now();
        self.stop_listening();
        self.stage = Stage::Draining { signalled, until: now + self.config.drain_timeout };
        self.supervisor.fleet_mut().drain(now);
        self.release_streams();
        self.backend.close_clients();
        self.frontend.begin_stop(now);
    }

    /// What the kernel had already accepted is taken, and for a moment those whose handshake had begun, then nothing
    /// more. Where descriptors lack for that, it waits in the backlog until there are some.
    fn stop_listening(&mut self) {
        self.frontend.begin_closing(&self.io);
        self.take_all_connections();
        self.go_on_closing();
    }

    /// Closes the listeners once that is due.
    pub(super) fn go_on_closing(&mut self) {
        if !self.frontend.closes_now(self.io.now()) {
            return;
        }
        self.take_all_connections();
        if !self.frontend.is_accepting_paused() {
            self.frontend.stop_listening();
        }
    }

    fn take_all_connections(&mut self) {
        for index in 0..self.frontend.listeners().len() {
            while self.take_connections(index) {}
        }
    }

    /// Looks whether the next step of the end is due.
    pub(super) fn go_on_stopping(&mut self) {
        let now = self.io.now();
        match self.stage {
            Stage::Running => {}
            Stage::Draining { signalled, until } => {
                let is_awaited = self.frontend.may_bring_requests() || self.backend.keeps_clients();
                if now < until && is_awaited {
                    return;
                }
                self.stage = Stage::Leaving { signalled, until };
                self.supervisor.fleet_mut().stop(until.max(now + LAST_MOMENT), now);
                self.go_on_leaving(signalled, until);
            }
            Stage::Leaving { signalled, until } => self.go_on_leaving(signalled, until),
            Stage::Ending { .. } => self.end_if_alone(),
        }
    }

    fn go_on_leaving(&mut self, signalled: Option<Instant>, until: Instant) {
        let is_done = self.frontend.is_empty() && self.balancer.busy() == 0;
        if self.io.now() < until && !is_done {
            return;
        }
        if !is_done {
            self.cut_everything();
            self.frontend.stop_listening();
        }
        self.stage = Stage::Ending { signalled };
        self.end_if_alone();
    }

    /// Workers that are held by a stream or a tunnel would be so until the end: they are told at once, unless they are
    /// all that those who wait, or may still ask, can hope for. Streams that hold nobody are told when nobody may bring
    /// requests any more.
    fn release_streams(&mut self) {
        let mut held = self.backend.workers_held_by_streams();
        held.retain(|worker| !self.balancer.has_place(*worker));
        let is_anybody_left = held.len() < self.supervisor.fleet().serving();
        let is_anybody_awaited = self.balancer.waiting() > 0 || self.frontend.may_bring_requests();
        if is_anybody_awaited && !is_anybody_left {
            return;
        }
        for worker in held {
            self.supervisor.fleet_mut().release(worker, self.io.now());
        }
    }

    fn end_if_alone(&mut self) {
        // Whoever waits for this server's end waits for that of the one before it as well.
        let is_alone = self.host.predecessor.is_none() || self.host.is_waiting();
        if self.supervisor.is_gone() && is_alone && !self.host.is_clearing_up() {
            log::info!("stopped");
            self.report_to_successor();
            self.exit = Some(0);
        }
    }

    /// The drain's time is up: whoever still waits is told so.
    fn cut_everything(&mut self) {
        for upstream in self.backend.keys() {
            self.cut_exchange(upstream);
        }
        while self.frontend.has_timed_out() {
            self.answer_timed_out();
        }
        for client in self.frontend.keys() {
            self.tell_of_the_end(client);
            self.cut_answer(client);
        }
    }

    /// Whoever has no answer yet gets the server's own.
    fn tell_of_the_end(&mut self, client: ClientKey) {
        match self.frontend.phase(client) {
            Some(Phase::Waiting { wait: Wait::Queued | Wait::SecondTry, .. }) => {
                self.balancer.forget(client);
                if let Some(job) = self.frontend.end_wait(client) {
                    let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
                    self.refuse(client, job.request, Reason::Stopping, times, None);
                }
            }
            Some(Phase::Reading) => self.refuse_arriving(client, Reason::Stopping),
            _ => {}
        }
    }

    /// An answer that has not been taken is cut, so that it does not look whole; then the connection goes.
    fn cut_answer(&mut self, client: ClientKey) {
        if matches!(self.frontend.phase(client), Some(Phase::Finishing { .. })) {
            self.frontend.reset_on_close(client);
        }
        if let Some(Phase::Finishing { mut finished, .. }) = self.frontend.close(client) {
            finished.reason.get_or_insert(Reason::Stopping);
            self.log(client, &finished);
        }
    }

    /// Everything ends now: whoever waits is told so, each request has its line, and no worker outlives the server.
    pub(super) fn end_now(&mut self, code: u8) {
        self.stage = Stage::Ending { signalled: None };
        self.abort_upgrade();
        if let Some(predecessor) = self.host.predecessor.as_ref().filter(|_| !self.host.is_waiting()) {
            let _ = predecessor.line.say(&Message::End, None);
        }
        self.cut_everything();
        self.admin.answer_roll_followers(&Err("the server has ended".to_owned()), &self.io);
        self.supervisor.kill_all();
        self.report_to_successor();
        self.exit = Some(code);
    }
}
