//! The old server's side of an upgrade.

use super::Message;
use std::time::{Duration, Instant};

/// What the new server needs beside its workers' boot timeout: to be executed, to read, to take the name.
const SPARE: Duration = Duration::from_secs(5);

/// The old server's side, from the new one's start on.
#[derive(Debug)]
pub(crate) struct Outgoing {
    state: State,
    until: Instant,
    within: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The new server's workers boot.
    Starting,
    /// It may serve from any moment on.
    Going,
    /// It serves, or the upgrade has failed.
    Over,
}

/// What the old server is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OutgoingStep {
    /// Whoever follows the upgrade hears of it.
    Progress { now: usize, of: usize },
    /// The new server becomes the service's main process, and is told to serve.
    Go,
    /// The new server serves: this one stops to listen, without a loss for those in the backlog, and drains.
    HandOver,
    /// The upgrade is over, and this server goes on; it is the main process, if it was not any more. What is left of
    /// the new one is killed.
    Fail { reason: String, was_going: bool },
}

impl Outgoing {
    /// The new server has been started. `boot_timeout`: what its workers have to join.
    pub(crate) fn begin(boot_timeout: Duration, now: Instant) -> Self {
        let within = boot_timeout + SPARE;
        Outgoing { state: State::Starting, until: now + within, within }
    }

    /// Whether it is still open which of the two servers will go on.
    pub(crate) fn is_open(&self) -> bool {
        self.state != State::Over
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.is_open().then_some(self.until)
    }

    /// The new server has said something.
    pub(crate) fn on_message(&mut self, message: &Message) -> Option<OutgoingStep> {
        match (self.state, message) {
            (State::Starting, Message::Serving { now, of }) => {
                Some(OutgoingStep::Progress { now: *now, of: *of })
            }
            (State::Starting, Message::Ready) => {
                self.state = State::Going;
                Some(OutgoingStep::Go)
            }
            (State::Going, Message::Taken) => {
                self.state = State::Over;
                Some(OutgoingStep::HandOver)
            }
            (State::Starting | State::Going, Message::Failed { reason }) => self.fail(reason.clone()),
            // Nothing else has a meaning here, and what a broken server says is no reason to follow it.
            (State::Starting | State::Going | State::Over, _) => None,
        }
    }

    /// The new server's process has ended. What it had said is taken in.
    pub(crate) fn on_end(&mut self, exit: &dyn std::fmt::Display) -> Option<OutgoingStep> {
        self.fail(format!(
            "the new server ended with {exit} before it was ready; its own words are in the log"
        ))
    }

    /// It has closed its side, and lives or not.
    pub(crate) fn on_hang_up(&mut self) -> Option<OutgoingStep> {
        self.fail(
            "the new server does not listen to this one: it may be of a version that cannot take over".into(),
        )
    }

    pub(crate) fn on_deadline(&mut self, now: Instant) -> Option<OutgoingStep> {
        if now < self.until {
            return None;
        }
        let seconds = self.within.as_secs_f64();
        self.fail(format!("the new server was not ready within {seconds} s (--boot-timeout-ms and 5 s)"))
    }

    /// This server stops, or the other one cannot be told what it has to know.
    pub(crate) fn fail(&mut self, reason: String) -> Option<OutgoingStep> {
        let was_going = self.state == State::Going;
        if !self.is_open() {
            return None;
        }
        self.state = State::Over;
        Some(OutgoingStep::Fail { reason, was_going })
    }
}
