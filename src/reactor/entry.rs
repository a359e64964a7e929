//! What the slabs hold: a client's and a worker's connection, and the work that passes between them.

use super::ports;
use super::spool::{Spool, SpoolBudget};
use super::stream::{Io, Stream};
use crate::conn::worker::Answer;
use crate::conn::{self, Request};
use crate::control::Abilities;
use crate::deadlines::Kind;
use crate::keys::{ClientKey, WorkerKey};
use crate::observe::folds::BootOutput;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// What a client's connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Kind for ClientDeadline {
    const COUNT: usize = 5;
    fn index(self) -> usize {
        self as usize
    }
}

/// What a worker's connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    Rest,
    /// Another look whether a command answers by now.
    Probe,
}

impl Kind for WorkerDeadline {
    const COUNT: usize = 6;
    fn index(self) -> usize {
        self as usize
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
    /// The peer has closed its side, so a short read does not mean that there is no more.
    pub is_closing: bool,
    /// It stands in the list of those who wait for a tick that may make files.
    pub waits_for_file: bool,
}

/// Where a client stands.
#[derive(Debug)]
pub enum Phase {
    /// Between requests, or one is arriving.
    Reading,
    /// Its request waits for a worker.
    Queued(Job),
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
    /// What it can do, as its join said.
    pub abilities: Abilities,
    pub is_stuck: bool,
    /// It has old code, and gets nothing until the new one has come, or has not.
    pub is_withheld: bool,
    /// How the process ended. It is reaped when nobody is left in its group; then its pid may be somebody else's.
    pub exit: Option<crate::process::Exit>,
    /// Module reloads, as it tells.
    pub reloads: u64,
    /// When its memory was last looked at, and what it was.
    pub weighed: Option<Instant>,
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

    pub fn is_held_back(&self) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.is_held_back)
    }
}

/// A request that is with a worker.
#[derive(Debug)]
pub struct Exchange {
    /// `None`: nobody waits for the answer any more.
    pub client: Option<ClientKey>,
    pub job: Job,
    pub assigned: Instant,
    pub head_sent_bytes: usize,
    /// The worker takes no more of the request.
    pub is_send_broken: bool,
    /// The connection was made for this request.
    pub is_connection_new: bool,
    /// On its way to the process that has just closed a connection.
    pub is_reconnecting: bool,
    pub answer: Option<Answer>,
    /// Of the answer's body.
    pub body_bytes: u64,
    /// The worker is not read while its client's spool is full.
    pub is_held_back: bool,
    /// A look at a command, not a client's request.
    pub is_probe: bool,
    /// After a 101.
    pub tunnel: Option<Tunnel>,
}

/// The way from the client to the worker, after a 101.
#[derive(Debug)]
pub struct Tunnel {
    pub out: Spool,
    /// The client has sent its last byte; passed on when all is out.
    pub client_has_ended: bool,
    /// The worker has sent its last byte; passed on when the client has all of them.
    pub worker_has_ended: bool,
}

impl Exchange {
    pub fn is_sent(&self) -> bool {
        self.head_sent_bytes == self.job.request.head.len() && self.job.body.is_read()
    }

    /// Sending has begun, and there is more.
    pub fn is_half_sent(&self) -> bool {
        let tunnel_waits = self.tunnel.as_ref().is_some_and(|tunnel| !tunnel.out.is_read());
        let has_more = !self.is_sent() || tunnel_waits;
        self.head_sent_bytes > 0 && has_more && !self.is_send_broken
    }

    /// The whole request is out, and the way is still open: another one may follow on the connection.
    pub fn has_left_the_way_open(&self) -> bool {
        self.is_sent() && !self.is_send_broken
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
            is_closing: false,
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
