//! What the slabs hold: a client's and a worker's connection, and the work that passes between them.

use super::ports;
use super::spool::{Spool, SpoolBudget};
use super::stream::{Io, Stream};
use crate::conn::worker::Answer;
use crate::conn::{self, Request};
use crate::control::Abilities;
use crate::deadlines::deadline_kinds;
use crate::keys::{ClientKey, WorkerKey};
use crate::observe::folds::BootOutput;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

deadline_kinds! {
    /// What a client's connection waits for.
    pub enum ClientDeadline {
        /// A next request.
        Idle,
        /// That the client takes a byte of its answer.
        Take,
        /// The whole head, or the next byte of a body.
        Receive,
        /// The end of a client that was refused.
        Linger,
        /// At a stop: a request that may be on its way.
        Grace,
    }
}

deadline_kinds! {
    /// What a worker's connection waits for.
    pub enum WorkerDeadline {
        /// The next byte of an answer.
        Read,
        /// The same, where a stream may be quiet for long.
        Idle,
        /// The end of an answer that nobody waits for.
        Stall,
        /// Another try to connect: the backlog was full.
        Connect,
        /// The end of its rest after a busy answer or a strange end.
        Cooldown,
        /// Another look whether a command answers by now.
        Probe,
        /// The exit status of a process that is ending.
        Exit,
    }
}

deadline_kinds! {
    /// What runs beside [`WorkerDeadline::Stall`], while a worker is asked whether it is idle.
    pub enum AskDeadline {
        /// The next time that it is asked.
        Repeat,
    }
}

#[derive(Debug)]
pub struct ClientEntry {
    pub stream: Stream,
    pub address: Box<str>,
    pub is_trusted: bool,
    pub conn: conn::Client,
    /// The body of the request that is being read.
    pub body: Spool,
    /// What the client has not taken yet.
    pub out: Spool,
    pub phase: Phase,
    /// The kernel may hold more bytes.
    pub is_readable: bool,
    pub peer: PeerState,
    /// It stands in the list of those who wait for a tick that may make files.
    pub waits_for_file: bool,
}

/// What the kernel has told of a client's end of the connection, read or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerState {
    Open,
    /// It has sent its FIN: a short read does not mean that there is no more.
    HalfClosed,
    /// It has reset the connection, or (a Unix peer) closed it altogether.
    Gone,
}

/// Where a client stands.
#[derive(Debug)]
pub enum Phase {
    /// Between requests, or one is arriving.
    Reading,
    /// Its request waits for a worker.
    Queued(Job),
    /// Its request's second try waits for the next turn, when the hang-ups of this moment have been read.
    Retrying(Job),
    /// Its request has waited for too long, and no worker will get it; its answer is about to be written.
    TimedOut(Job),
    /// Its request is with a worker.
    Assigned { worker: WorkerKey },
    /// Its answer is whole, and not all of it is taken.
    Finishing { finished: Option<Finished>, then: Then },
    /// After a 101.
    Tunnel { worker: WorkerKey },
    /// Refused, and still sending.
    Lingering,
    /// Out of the slab after this batch.
    Dead,
}

/// What follows when all bytes are out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The next request.
    Keep,
    Close,
    /// Close in a way that shows that the answer is not whole.
    Cut {
        reset: bool,
    },
}

/// A request on its way through the server.
#[derive(Debug)]
pub struct Job {
    pub request: Request,
    pub body: Spool,
    pub submitted: Instant,
    /// Until when it waits for a worker, first and second try together.
    pub deadline: Instant,
    pub tries: u8,
    /// Its client has sent its FIN, and was asked by a `100 Continue` whether it is there.
    pub is_client_asked: bool,
}

/// A request that has had its answer, for the log.
#[derive(Debug)]
pub struct Finished {
    pub request: Request,
    pub answer: Answer,
    pub reason: Option<crate::http::Reason>,
    pub body_bytes: u64,
    pub times: Times,
    pub worker: Option<(usize, i32)>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    pub queue: std::time::Duration,
    pub worker: std::time::Duration,
}

#[derive(Debug)]
pub struct WorkerEntry {
    pub origin: Origin,
    pub pid: Pid,
    pub endpoint: Endpoint,
    pub stream: Option<Stream>,
    pub conn: conn::Worker,
    pub exchange: Option<Exchange>,
    /// The kernel is watched for room to write, after a short write.
    pub is_watched_for_room: bool,
    pub is_closing: bool,
    pub connecting_since: Option<Instant>,
    /// Its connections are opened only with a request to send.
    pub is_command: bool,
    pub has_joined: bool,
    pub joined: Option<Instant>,
    /// It was given a request.
    pub was_asked: bool,
    /// Known to be gone: reaped, or it refused a connection.
    pub is_dead: bool,
    pub requests: u64,
    pub request_limit: Option<u64>,
    pub busy_streak: u8,
    pub started: Instant,
    pub last_words: VecDeque<String>,
    pub boot_output: BootOutput,
    /// Names its start in the spawner's answers.
    pub start_id: Option<u64>,
    pub program: String,
    /// Why its process could not become the program.
    pub exec_failure: Option<String>,
    /// What it can do, as its join said.
    pub abilities: Abilities,
    /// Its join spoke the protocol's second version, so it answers `Rip-Probe: idle`.
    pub can_be_asked: bool,
    pub is_stuck: bool,
    /// It has old code, and gets nothing until the new one has come, or has not.
    pub is_withheld: bool,
    /// How the process ended. It is reaped when nobody is left in its group; then its pid may be somebody else's.
    pub exit: Option<crate::process::Exit>,
    /// Module reloads, as it tells.
    pub reloads: u64,
    /// When its memory was last looked at, and what it was.
    pub rss_checked: Option<Instant>,
    pub resident_bytes: Option<u64>,
}

/// Where a worker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    /// A command's `{port}`. Whether it listens on 127.0.0.1 or only on ::1 is found out.
    Loopback {
        port: u16,
        is_ipv6: bool,
    },
}

impl Endpoint {
    /// The socket's file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Loopback { .. } => None,
        }
    }

    /// The address, if it has a port.
    pub fn address(&self) -> Option<SocketAddr> {
        match *self {
            Endpoint::Unix(_) => None,
            Endpoint::Loopback { port, is_ipv6 } => Some(ports::loopback(port, is_ipv6)),
        }
    }

    /// Some servers take `localhost` for ::1 alone.
    pub fn try_other_address(&mut self) {
        match self {
            Endpoint::Unix(_) => {}
            Endpoint::Loopback { is_ipv6, .. } => *is_ipv6 = !*is_ipv6,
        }
    }

    /// The last user of the file is gone.
    pub fn remove_file(&self) {
        if let Some(path) = self.path() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where a worker comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The fleet started it.
    Slot { slot: usize, version: u64 },
    /// It came by itself (`w:0`).
    /// `process`: its pid here, where the kernel has confirmed the one that it says. One from another namespace may
    /// be a stranger's here, or nobody's.
    Outside { worker_id: usize, process: Option<Pid> },
}

impl Origin {
    pub fn worker_id(self) -> usize {
        match self {
            Origin::Slot { slot, .. } => slot,
            Origin::Outside { worker_id, .. } => worker_id,
        }
    }
}

impl WorkerEntry {
    /// Its process, where it is known which one that is.
    pub fn process(&self) -> Option<Pid> {
        match self.origin {
            Origin::Slot { .. } => Some(self.pid),
            Origin::Outside { process, .. } => process,
        }
    }

    /// Whether it may be told, by a half-close, that nobody waits for its answer. A plain command may close for that
    /// while its handler runs on, and cannot be asked about it: only the end of its answer shows that it is idle. But one
    /// whose head is out may never end it otherwise.
    pub fn may_be_told(&self, has_head: bool) -> bool {
        !self.is_command || has_head
    }

    pub fn is_held_back(&self) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.is_held_back)
    }
}

/// A request that is with a worker, or a question of the server's own.
#[derive(Debug)]
pub struct Exchange {
    /// `None`: nobody waits for the answer any more.
    pub client: Option<ClientKey>,
    pub job: Job,
    pub assigned: Instant,
    state: ExchangeState,
    pub head_sent_bytes: usize,
    pub sending: Sending,
    /// The connection was made for this request.
    pub is_connection_new: bool,
    pub answer: Option<Answer>,
    /// Of the answer's body.
    pub body_bytes: u64,
    /// The worker is not read while its client's spool is full.
    pub is_held_back: bool,
    /// After a 101.
    pub tunnel: Option<Tunnel>,
}

/// Where an exchange stands.
///
/// ```text
/// Serving ⇄ Reconnecting      Probing      AskingIdle
///    └──▶ AwaitingExit
/// ```
#[derive(Debug)]
pub enum ExchangeState {
    /// A client's request goes out, and its answer comes in.
    Serving,
    /// The same request, on its way to the process that has just closed a connection.
    Reconnecting,
    /// The answer has ended with its connection, and the process is ending: its exit status tells whether that was all.
    /// The suffix makes the answer whole.
    AwaitingExit { suffix: &'static [u8] },
    /// A command that was started just now is asked whether it answers.
    Probing,
    /// The connection of this earlier request has ended before its answer, so that its handler may still run: the worker
    /// is asked whether it is idle.
    AskingIdle { about: Box<Request> },
}

/// The way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    Open,
    /// Shut behind the last byte that waits.
    Ending,
    /// Shut, or the worker takes no more.
    Ended,
}

/// The way from the client to the worker, after a 101.
#[derive(Debug)]
pub struct Tunnel {
    pub out: Spool,
    /// The worker has sent its last byte; passed on when the client has all of them.
    pub worker_has_ended: bool,
}

impl Exchange {
    /// A client's request.
    pub fn of_client(client: ClientKey, job: Job, now: Instant, is_connection_new: bool) -> Self {
        Exchange {
            client: Some(client),
            job,
            assigned: now,
            state: ExchangeState::Serving,
            head_sent_bytes: 0,
            sending: Sending::Open,
            is_connection_new,
            answer: None,
            body_bytes: 0,
            is_held_back: false,
            tunnel: None,
        }
    }

    /// A command's first question.
    pub fn probe(request: Request, budget: &Rc<SpoolBudget>, now: Instant) -> Self {
        Exchange::new(Job::of_server(request, budget, now), now, ExchangeState::Probing)
    }

    /// The question whether the worker is idle after `about`, which was given to it at `assigned`.
    pub fn ask_idle(question: Request, about: Request, assigned: Instant, budget: &Rc<SpoolBudget>) -> Self {
        let job = Job::of_server(question, budget, assigned);
        let state = ExchangeState::AskingIdle { about: Box::new(about) };
        Exchange::new(job, assigned, state)
    }

    fn new(job: Job, assigned: Instant, state: ExchangeState) -> Self {
        Exchange {
            client: None,
            job,
            assigned,
            state,
            head_sent_bytes: 0,
            sending: Sending::Open,
            is_connection_new: true,
            answer: None,
            body_bytes: 0,
            is_held_back: false,
            tunnel: None,
        }
    }

    pub fn state(&self) -> &ExchangeState {
        &self.state
    }

    /// The one door for transitions.
    pub fn enter(&mut self, next: ExchangeState) {
        use ExchangeState::*;
        debug_assert!(
            matches!(
                (&self.state, &next),
                (Serving, Reconnecting | AwaitingExit { .. }) | (Reconnecting, Serving | Reconnecting)
            ),
            "no way from {:?} to {next:?}",
            self.state
        );
        self.state = next;
    }

    /// The server's own, and not a client's request.
    pub fn is_question(&self) -> bool {
        matches!(self.state, ExchangeState::Probing | ExchangeState::AskingIdle { .. })
    }

    /// The same question once more, over a fresh connection.
    pub fn send_again(&mut self) {
        self.head_sent_bytes = 0;
        self.sending = Sending::Open;
        self.job.body.rewind();
    }

    /// Its requests, for their buffers.
    pub fn into_requests(self) -> impl Iterator<Item = Request> {
        let about = match self.state {
            ExchangeState::AskingIdle { about } => Some(*about),
            ExchangeState::Serving
            | ExchangeState::Reconnecting
            | ExchangeState::AwaitingExit { .. }
            | ExchangeState::Probing => None,
        };
        std::iter::once(self.job.request).chain(about)
    }

    pub fn is_asking_idle(&self) -> bool {
        matches!(self.state, ExchangeState::AskingIdle { .. })
    }

    pub fn is_reconnecting(&self) -> bool {
        matches!(self.state, ExchangeState::Reconnecting)
    }

    /// What the worker was at work on, for the log and for status.
    pub fn subject(&self) -> &Request {
        match &self.state {
            ExchangeState::AskingIdle { about } => about,
            ExchangeState::Serving
            | ExchangeState::Reconnecting
            | ExchangeState::AwaitingExit { .. }
            | ExchangeState::Probing => &self.job.request,
        }
    }

    pub fn is_sent(&self) -> bool {
        self.head_sent_bytes == self.job.request.head.len() && self.job.body.is_read()
    }

    /// The worker has seen nothing of it.
    pub fn is_unsent(&self) -> bool {
        self.head_sent_bytes == 0
    }

    /// Sending has begun, and there is more to do.
    pub fn is_half_sent(&self) -> bool {
        let tunnel_waits = self.tunnel.as_ref().is_some_and(|tunnel| !tunnel.out.is_read());
        match self.sending {
            Sending::Open => self.head_sent_bytes > 0 && (!self.is_sent() || tunnel_waits),
            Sending::Ending => self.head_sent_bytes > 0,
            Sending::Ended => false,
        }
    }

    /// The whole request is out, and the way is still open: another one may follow on the connection.
    pub fn has_left_the_way_open(&self) -> bool {
        self.is_sent() && self.sending == Sending::Open
    }

    /// An event stream's head is out: nobody half-closes one, so a FIN is a departure.
    pub fn is_event_stream(&self) -> bool {
        self.tunnel.is_none() && self.answer.is_some_and(|answer| answer.may_idle)
    }
}

impl Job {
    /// Of a question that the server asks for itself.
    fn of_server(request: Request, budget: &Rc<SpoolBudget>, now: Instant) -> Self {
        Job {
            request,
            body: Spool::new(budget),
            submitted: now,
            deadline: now,
            tries: 1,
            is_client_asked: false,
        }
    }
}

/// How a delivery to a client went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The kernel has it all.
    Sent,
    /// Some of it waits.
    Waits,
    Gone,
    /// What the client has not taken cannot be read back.
    SpoolFull,
}

impl ClientEntry {
    pub fn new(stream: Stream, address: Box<str>, is_trusted: bool, budget: &Rc<SpoolBudget>) -> Self {
        ClientEntry {
            stream,
            address,
            is_trusted,
            conn: conn::Client::default(),
            body: Spool::new(budget),
            out: Spool::new(budget),
            phase: Phase::Reading,
            is_readable: false,
            peer: PeerState::Open,
            waits_for_file: false,
        }
    }

    /// Whether bytes that come now can be used.
    pub fn wants_bytes(&self) -> bool {
        matches!(self.phase, Phase::Reading | Phase::Tunnel { .. } | Phase::Lingering)
    }

    pub fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead)
    }

    /// Sends what can be sent at once, and keeps the rest.
    pub fn deliver(&mut self, parts: [&[u8]; 3]) -> Delivery {
        let all: usize = parts.iter().map(|part| part.len()).sum();
        if all == 0 {
            return if self.out.is_read() { Delivery::Sent } else { Delivery::Waits };
        }
        let mut sent = 0;
        if self.out.is_read() {
            let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
            let mut used = 0;
            for part in parts.iter().filter(|part| !part.is_empty()) {
                slices[used] = IoSlice::new(part);
                used += 1;
            }
            match self.stream.send(&slices[..used]) {
                Io::Bytes(bytes) => sent = bytes,
                Io::Later => {}
                Io::End | Io::Gone => return Delivery::Gone,
            }
            if sent == all {
                return Delivery::Sent;
            }
        }
        for part in parts {
            let skipped = sent.min(part.len());
            sent -= skipped;
            self.out.push_all(&part[skipped..]);
        }
        Delivery::Waits
    }
}
