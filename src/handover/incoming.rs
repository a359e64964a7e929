//! The new server's side of an upgrade.

use super::Message;

/// The new server's side.
#[derive(Debug)]
pub(crate) struct Incoming {
    state: State,
    /// So many workers served with the old server, or as many as this one has.
    wanted: usize,
    told: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Booting,
    /// Enough workers serve, and the old server has been told.
    Ready,
    /// It is the server.
    Serving,
}

/// What the new server is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IncomingStep {
    Say(Message),
    /// It takes the name, accepts, and says so.
    TakeOver,
    /// It ends: there is nobody to take over from.
    GiveUp,
}

impl Incoming {
    /// `wanted`: so many workers are to serve before it takes over.
    pub(crate) fn new(wanted: usize) -> Self {
        Incoming { state: State::Booting, wanted, told: 0 }
    }

    /// It is the server from now on.
    pub(crate) fn is_serving(&self) -> bool {
        self.state == State::Serving
    }

    /// So many workers serve now.
    pub(crate) fn note_serving(&mut self, serving: usize) -> Vec<IncomingStep> {
        let mut steps = Vec::new();
        if self.state != State::Booting {
            return steps;
        }
        if serving != self.told {
            self.told = serving;
            steps.push(IncomingStep::Say(Message::Serving { now: serving, of: self.wanted }));
        }
        if serving >= self.wanted {
            self.state = State::Ready;
            steps.push(IncomingStep::Say(Message::Ready));
        }
        steps
    }

    /// The old server has said something.
    pub(crate) fn on_message(&mut self, message: &Message) -> Option<IncomingStep> {
        match (self.state, message) {
            (State::Ready, Message::Go) => {
                self.state = State::Serving;
                Some(IncomingStep::TakeOver)
            }
            (State::Booting | State::Ready | State::Serving, _) => None,
        }
    }

    /// The old server is gone.
    pub(crate) fn on_hang_up(&self) -> Option<IncomingStep> {
        match self.state {
            State::Booting | State::Ready => Some(IncomingStep::GiveUp),
            State::Serving => None,
        }
    }
}
