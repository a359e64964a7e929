//! A request that is with a worker, or a question of the server's own.

use crate::conn::Request;
use crate::conn::worker::Answer;
use crate::keys::ClientKey;
use crate::reactor::crossing::{Job, Times};
use crate::reactor::io::spool::{Spool, SpoolBudget};
use crate::states::{Row, may_become};
use std::rc::Rc;
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Exchange {
    /// `None`: nobody waits for the answer any more.
    pub client: Option<ClientKey>,
    pub job: Job,
    pub assigned: Instant,
    stage: Stage,
    pub(super) head_sent_bytes: usize,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    /// The connection was made for this request.
    pub is_connection_new: bool,
    pub answer: Option<Answer>,
    /// Of the answer's body.
    pub body_bytes: u64,
    /// An event stream or a tunnel since then, which counts as no request any more.
    pub streaming_since: Option<Instant>,
}

/// Where an exchange stands.
#[derive(Debug)]
pub(crate) enum Stage {
    /// A client's request goes out, and its answer comes in.
    Serving,
    /// The same request, on its way to the process that has just closed a connection.
    Reconnecting,
    /// After a 101: bytes pass both ways. `out`: on their way to the worker.
    Tunnel { out: Box<Spool> },
    /// The answer has ended with its connection, and the process is ending: its exit status tells whether that was all.
    /// The suffix makes the answer whole.
    AwaitingExit { suffix: &'static [u8] },
    /// A command that was started just now is asked whether it answers.
    Probing,
    /// The connection of this earlier request has ended before its answer, so that its handler may still run: the worker
    /// is asked whether it is idle.
    AskingIdle { about: Box<Request> },
}

/// A stage without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Serving,
    Reconnecting,
    Tunnel,
    AwaitingExit,
    Probing,
    AskingIdle,
}

/// Each state of an exchange, with what may follow. Each may be the last one.
pub(crate) const EXCHANGE: &[Row<State>] = &[
    Row {
        state: State::Serving,
        next: &[State::Reconnecting, State::Tunnel, State::AwaitingExit],
        deadline: "connect until it is connected; then read, or idle of an event stream; stall when nobody waits any more",
    },
    Row {
        state: State::Reconnecting,
        next: &[State::Serving, State::Reconnecting],
        deadline: "cooldown, where nothing tells whether the process lives; connect",
    },
    Row { state: State::Tunnel, next: &[], deadline: "idle; stall when the client has left" },
    Row {
        state: State::AwaitingExit,
        next: &[],
        deadline: "exit, or cooldown where nothing tells whether the process lives",
    },
    Row { state: State::Probing, next: &[], deadline: "connect, then read" },
    Row { state: State::AskingIdle, next: &[], deadline: "stall; ask, between two questions" },
];

/// The way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sending {
    /// Its connection is to be made first, or is being made.
    NotBegun,
    Open,
    /// Shut behind the last byte that waits.
    Ending,
    /// Shut, or the worker takes no more.
    Ended,
}

/// The way from the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiving {
    Open,
    /// The worker is not read while its client's spool is full.
    HeldBack,
    /// The process has ended. What it has written before is read to its end, however much of it the client has taken.
    Rest,
    /// A tunnel's worker has sent its last byte; passed on when the client has all of them.
    Ended,
}

impl Exchange {
    /// A client's request.
    pub(crate) fn of_client(client: ClientKey, job: Job, now: Instant, is_connection_new: bool) -> Self {
        Exchange {
            client: Some(client),
            job,
            assigned: now,
            stage: Stage::Serving,
            head_sent_bytes: 0,
            sending: Sending::NotBegun,
            receiving: Receiving::Open,
            is_connection_new,
            answer: None,
            body_bytes: 0,
            streaming_since: None,
        }
    }

    /// A command's first question.
    pub(crate) fn probe(request: Request, budget: &Rc<SpoolBudget>, now: Instant) -> Self {
        Exchange::question(Job::of_server(request, budget, now), now, Stage::Probing)
    }

    /// The question whether the worker is idle after `about`, which was given to it at `assigned`.
    pub(crate) fn ask_idle(
        question: Request,
        about: Request,
        assigned: Instant,
        budget: &Rc<SpoolBudget>,
    ) -> Self {
        let job = Job::of_server(question, budget, assigned);
        Exchange::question(job, assigned, Stage::AskingIdle { about: Box::new(about) })
    }

    fn question(job: Job, assigned: Instant, stage: Stage) -> Self {
        Exchange {
            client: None,
            job,
            assigned,
            stage,
            head_sent_bytes: 0,
            sending: Sending::NotBegun,
            receiving: Receiving::Open,
            is_connection_new: true,
            answer: None,
            body_bytes: 0,
            streaming_since: None,
        }
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    fn state(stage: &Stage) -> State {
        match stage {
            Stage::Serving => State::Serving,
            Stage::Reconnecting => State::Reconnecting,
            Stage::Tunnel { .. } => State::Tunnel,
            Stage::AwaitingExit { .. } => State::AwaitingExit,
            Stage::Probing => State::Probing,
            Stage::AskingIdle { .. } => State::AskingIdle,
        }
    }

    /// The one door for transitions.
    pub(crate) fn enter(&mut self, next: Stage) {
        let (from, to) = (Self::state(&self.stage), Self::state(&next));
        debug_assert!(may_become(EXCHANGE, &from, &to), "an exchange: no way from {from:?} to {to:?}");
        self.stage = next;
    }

    /// The server's own, and not a client's request.
    pub(crate) fn is_question(&self) -> bool {
        matches!(self.stage, Stage::Probing | Stage::AskingIdle { .. })
    }

    pub(crate) fn is_asking_idle(&self) -> bool {
        matches!(self.stage, Stage::AskingIdle { .. })
    }

    pub(crate) fn is_reconnecting(&self) -> bool {
        matches!(self.stage, Stage::Reconnecting)
    }

    pub(crate) fn is_tunnel(&self) -> bool {
        matches!(self.stage, Stage::Tunnel { .. })
    }

    /// What waits for a tunnel's worker.
    pub(crate) fn tunnel_out(&self) -> Option<&Spool> {
        match &self.stage {
            Stage::Tunnel { out } => Some(out),
            Stage::Serving
            | Stage::Reconnecting
            | Stage::AwaitingExit { .. }
            | Stage::Probing
            | Stage::AskingIdle { .. } => None,
        }
    }

    pub(super) fn tunnel_out_mut(&mut self) -> Option<&mut Spool> {
        match &mut self.stage {
            Stage::Tunnel { out } => Some(out),
            Stage::Serving
            | Stage::Reconnecting
            | Stage::AwaitingExit { .. }
            | Stage::Probing
            | Stage::AskingIdle { .. } => None,
        }
    }

    /// A tunnel whose worker has sent its last byte.
    pub(crate) fn has_tunnel_ended(&self) -> bool {
        self.receiving == Receiving::Ended
    }

    pub(crate) fn is_held_back(&self) -> bool {
        self.receiving == Receiving::HeldBack
    }

    /// Its bytes may be read.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.receiving, Receiving::Open | Receiving::Rest)
    }

    /// The same once more, over a fresh connection.
    pub(crate) fn send_again(&mut self) {
        self.head_sent_bytes = 0;
        self.sending = Sending::NotBegun;
        self.job.body.rewind();
    }

    /// What the worker was at work on, for the log and for status.
    pub(crate) fn subject(&self) -> &Request {
        match &self.stage {
            Stage::AskingIdle { about } => about,
            Stage::Serving
            | Stage::Reconnecting
            | Stage::Tunnel { .. }
            | Stage::AwaitingExit { .. }
            | Stage::Probing => &self.job.request,
        }
    }

    /// Its requests, for their buffers.
    pub(crate) fn into_requests(self) -> impl Iterator<Item = Request> {
        let about = match self.stage {
            Stage::AskingIdle { about } => Some(*about),
            Stage::Serving
            | Stage::Reconnecting
            | Stage::Tunnel { .. }
            | Stage::AwaitingExit { .. }
            | Stage::Probing => None,
        };
        std::iter::once(self.job.request).chain(about)
    }

    pub(crate) fn times(&self, now: Instant) -> Times {
        Times::of_stream(&self.job, self.assigned, self.streaming_since, now)
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.head_sent_bytes == self.job.request.head.len() && self.job.body.is_read()
    }

    /// The way to the worker is not shut.
    pub(super) fn may_write(&self) -> bool {
        self.sending != Sending::Ended
    }

    /// What is still to be sent, of the request and of a tunnel's bytes, while the way is open.
    pub(super) fn unsent_bytes(&self) -> u64 {
        match self.sending {
            Sending::NotBegun | Sending::Ended => 0,
            Sending::Open | Sending::Ending => {
                let of_head = (self.job.request.head.len() - self.head_sent_bytes) as u64;
                of_head + self.job.body.unread_bytes() + self.tunnel_out().map_or(0, Spool::unread_bytes)
            }
        }
    }

    /// The worker has seen nothing of it.
    pub(crate) fn is_unsent(&self) -> bool {
        self.head_sent_bytes == 0
    }

    /// Sending has begun, and there is more to do.
    pub(crate) fn is_half_sent(&self) -> bool {
        let tunnel_waits = self.tunnel_out().is_some_and(|out| !out.is_read());
        match self.sending {
            Sending::Open => self.head_sent_bytes > 0 && (!self.is_sent() || tunnel_waits),
            Sending::Ending => self.head_sent_bytes > 0,
            Sending::NotBegun | Sending::Ended => false,
        }
    }

    /// The whole request is out, and the way is still open: another one may follow on the connection.
    pub(crate) fn has_left_the_way_open(&self) -> bool {
        self.is_sent() && self.sending == Sending::Open
    }

    /// An event stream's head is out: nobody half-closes one, so a FIN is a departure.
    pub(crate) fn is_event_stream(&self) -> bool {
        !self.is_tunnel() && self.answer.is_some_and(|answer| answer.may_idle)
    }

    /// It has a client, and is from now on what may leave its worker's place: a tunnel, or the event stream of a GET. The
    /// streams of other methods are computed, and end.
    pub(crate) fn is_open_stream(&self) -> bool {
        self.client.is_some() && self.is_stream() && self.job.request.method() == b"GET"
    }

    /// An event stream or a tunnel: it may go on for as long as it likes.
    pub(crate) fn is_stream(&self) -> bool {
        self.is_tunnel() || self.answer.is_some_and(|answer| answer.may_idle)
    }
}
