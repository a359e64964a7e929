//! The clients' side: listeners, connections, what arrives on them and what is still to be written to them.

mod accepting;
mod answering;
pub(crate) mod client;
mod files;
pub(crate) mod phase;
mod reading;
#[cfg(any(test, fuzzing))]
mod seen;
#[cfg(test)]
mod tests;

pub(crate) use answering::Flushed;
pub(crate) use files::FileTurn;
pub(crate) use reading::FromClient;

use super::crossing::{Job, Then};
use super::io::Io;
use super::io::listen::Listener;
use super::io::spool::Spool;
use super::io::token::Readiness;
use super::limits::{GRACE, LINGER};
use crate::config::Config;
use crate::conn::Request;
use crate::deadlines::{Deadlines, earliest};
use crate::http::Version;
use crate::keys::{ClientKey, UpstreamKey};
use accepting::Acceptor;
use client::{Client, ClientDeadline, PeerState};
use files::FileQueue;
use phase::{Phase, Wait};
use slab::Slab;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

pub(crate) struct Frontend {
    acceptor: Acceptor,
    clients: Slab<Client>,
    closed: Vec<ClientKey>,
    deadlines: Deadlines<ClientDeadline>,
    /// How long an idle connection waits for its next request: long, but at a stop only as long as one may be on its way.
    idle_kind: ClientDeadline,
    /// Requests past their queue deadline whose 504 has not been written yet.
    timed_out: VecDeque<ClientKey>,
    /// Whose second try is placed in the next tick. At most one of each client.
    second_tries: Vec<ClientKey>,
    files: FileQueue,
    config: Rc<Config>,
}

impl Frontend {
    pub(crate) fn new(listeners: Vec<Listener>, kept_descriptors: u64, config: Rc<Config>) -> Self {
        Frontend {
            acceptor: Acceptor::new(listeners, kept_descriptors),
            clients: Slab::new(),
            closed: Vec::new(),
            deadlines: Deadlines::new(|kind| match kind {
                ClientDeadline::Idle | ClientDeadline::Take => config.idle_timeout,
                ClientDeadline::Receive => config.client_timeout,
                ClientDeadline::Linger => LINGER,
                ClientDeadline::Grace => GRACE,
            }),
            idle_kind: ClientDeadline::Idle,
            timed_out: VecDeque::new(),
            second_tries: Vec::new(),
            files: FileQueue::default(),
            config,
        }
    }
}

/// Getters.
impl Frontend {
    pub(crate) fn connections(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn phase(&self, client: ClientKey) -> Option<&Phase> {
        self.clients.get(client.0).map(|entry| &entry.phase)
    }

    /// The connection that it is assigned to, or tunnelled through.
    pub(crate) fn upstream_of(&self, client: ClientKey) -> Option<UpstreamKey> {
        match self.phase(client)? {
            Phase::Assigned { upstream } | Phase::Tunnel { upstream } => Some(*upstream),
            Phase::Reading
            | Phase::Dispatching
            | Phase::Waiting { .. }
            | Phase::Finishing { .. }
            | Phase::Lingering
            | Phase::Closed => None,
        }
    }

    pub(crate) fn tunnel_of(&self, client: ClientKey) -> Option<UpstreamKey> {
        match self.phase(client)? {
            Phase::Tunnel { upstream } => Some(*upstream),
            Phase::Reading
            | Phase::Dispatching
            | Phase::Waiting { .. }
            | Phase::Assigned { .. }
            | Phase::Finishing { .. }
            | Phase::Lingering
            | Phase::Closed => None,
        }
    }

    /// Who has connected, as the log names it.
    pub(crate) fn address(&self, client: ClientKey) -> &[u8] {
        self.clients.get(client.0).map_or(b"", |entry| entry.address.as_bytes())
    }

    /// What the kernel has told of its end.
    pub(crate) fn peer(&self, client: ClientKey) -> Option<PeerState> {
        self.clients.get(client.0).map(|entry| entry.peer)
    }

    /// Its connection is a Unix socket's, which gives what was sent before its end.
    pub(crate) fn is_local(&self, client: ClientKey) -> bool {
        self.clients.get(client.0).is_some_and(|entry| !entry.stream.loses_by_a_reset())
    }

    pub(crate) fn has_undelivered(&self, client: ClientKey) -> bool {
        self.clients.get(client.0).is_some_and(|entry| !entry.out.is_read())
    }

    pub(crate) fn is_waiting(&self, client: ClientKey, for_what: Wait) -> bool {
        matches!(self.phase(client), Some(Phase::Waiting { wait, .. }) if *wait == for_what)
    }

    /// Whether a worker may be asked once more: by a client that is there, or in the backlog.
    pub(crate) fn may_bring_requests(&self) -> bool {
        let may_ask = |(_, entry): (usize, &Client)| match entry.phase {
            Phase::Reading
            | Phase::Dispatching
            | Phase::Waiting { .. }
            | Phase::Finishing { then: Then::Keep, .. } => true,
            Phase::Assigned { .. }
            | Phase::Finishing { then: Then::Close | Then::Cut { .. }, .. }
            | Phase::Tunnel { .. }
            | Phase::Lingering
            | Phase::Closed => false,
        };
        self.acceptor.is_listening() || self.clients.iter().any(may_ask)
    }

    /// Nobody is connected any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.iter().all(|(_, entry)| entry.is_closed())
    }

    /// Everybody who is in the queue.
    pub(crate) fn queued(&self) -> impl Iterator<Item = ClientKey> {
        let is_queued = |entry: &Client| matches!(entry.phase, Phase::Waiting { wait: Wait::Queued, .. });
        self.clients.iter().filter(move |(_, entry)| is_queued(entry)).map(|(key, _)| ClientKey(key))
    }

    pub(crate) fn keys(&self) -> Vec<ClientKey> {
        self.clients.iter().map(|(key, _)| ClientKey(key)).collect()
    }

    /// When something is to be done by the clock.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        // Who waited for a file may be gone.
        let files = self.files.looked_at_again().filter(|_| !self.clients.is_empty());
        earliest([self.deadlines.next(), files, self.acceptor.next_deadline()])
    }

    /// There is something to do in the next tick, without an event.
    pub(crate) fn has_work(&self) -> bool {
        !self.timed_out.is_empty() || !self.second_tries.is_empty() || self.files.wants_files_now()
    }
}

/// Requests on their way.
impl Frontend {
    /// A whole request, with the body that came with it. Inlined, since a call would move all of it once more.
    #[inline(always)]
    pub(crate) fn job(
        &mut self,
        client: ClientKey,
        request: Request,
        deadline: Instant,
        io: &Io,
    ) -> Option<Job> {
        let entry = self.clients.get_mut(client.0)?;
        let body = std::mem::replace(&mut entry.body, Spool::new(io.spools()));
        Some(Job { request, body, submitted: io.now(), deadline, tries: 1, is_client_asked: false })
    }

    /// A request waits from now on.
    pub(crate) fn enqueue(&mut self, client: ClientKey, job: Job) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.phase.enter(Phase::Waiting { job, wait: Wait::Queued });
        }
    }

    /// A worker has a request from now on.
    pub(crate) fn assign(&mut self, client: ClientKey, upstream: UpstreamKey) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.phase.enter(Phase::Assigned { upstream });
        }
    }

    /// A request waits no longer: a worker takes it, or the server answers it by itself.
    pub(crate) fn end_wait(&mut self, client: ClientKey) -> Option<Job> {
        let entry = self.clients.get_mut(client.0)?;
        match entry.phase.leave_for(Phase::Dispatching) {
            Phase::Waiting { job, .. } => Some(job),
            _ => {
                debug_assert!(false, "{client:?} does not wait");
                None
            }
        }
    }

    /// The request comes back from a worker, to be tried again at once.
    pub(crate) fn take_back(&mut self, client: ClientKey) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.phase.enter(Phase::Dispatching);
        }
    }

    /// The request comes back from a worker, to be tried again in the next tick, when the hang-ups of this moment have
    /// been read.
    pub(crate) fn try_next_tick(&mut self, client: ClientKey, job: Job) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.phase.enter(Phase::Waiting { job, wait: Wait::SecondTry });
            self.second_tries.push(client);
        }
    }

    /// All whose second try is due.
    pub(crate) fn take_second_tries(&mut self) -> Vec<ClientKey> {
        std::mem::take(&mut self.second_tries)
    }

    /// From now on no worker gets the request. Its answer is written when its turn comes.
    pub(crate) fn has_waited_too_long(&mut self, client: ClientKey) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.phase.wait_for(Wait::TimedOut);
            self.timed_out.push_back(client);
        }
    }

    /// The next request that has waited for too long. Some have left meanwhile.
    pub(crate) fn next_timed_out(&mut self) -> Option<ClientKey> {
        self.timed_out.pop_front()
    }

    pub(crate) fn has_timed_out(&self) -> bool {
        !self.timed_out.is_empty()
    }

    /// After a 101: from now on bytes are only passed on.
    pub(crate) fn upgrade(&mut self, client: ClientKey, upstream: UpstreamKey) -> bool {
        let Some(entry) = self.clients.get_mut(client.0) else { return false };
        entry.conn.upgraded();
        entry.phase.enter(Phase::Tunnel { upstream });
        true
    }
}

/// Departures.
impl Frontend {
    /// An event has come. `true`: it tells that the client has closed its side, or has gone altogether.
    pub(crate) fn note(&mut self, client: ClientKey, event: Readiness) -> Option<bool> {
        let entry = self.clients.get_mut(client.0)?;
        entry.is_readable |= event.is_readable || event.is_read_closed;
        let before = entry.peer;
        entry.peer = before.max(PeerState::of(event));
        Some(entry.peer != before)
    }

    /// Whether somebody who waits, and has sent its FIN, is to be asked by a `100 Continue` whether it is there. HTTP/1.0
    /// knows no 1xx, and a Unix peer's hang-up tells without asking. Asked once.
    pub(crate) fn is_to_be_asked(&self, client: ClientKey, job: &mut Job) -> bool {
        let Some(entry) = self.clients.get(client.0) else { return false };
        job.request.context.version == Version::Http11
            && !entry.stream.tells_hang_up()
            && !std::mem::replace(&mut job.is_client_asked, true)
    }

    /// The same of one whose request waits here.
    pub(crate) fn is_waiting_to_be_asked(&mut self, client: ClientKey) -> bool {
        let Some(entry) = self.clients.get_mut(client.0) else { return false };
        let tells_hang_up = entry.stream.tells_hang_up();
        match &mut entry.phase {
            Phase::Waiting { job, wait: Wait::Queued } => {
                job.request.context.version == Version::Http11
                    && !tells_hang_up
                    && !std::mem::replace(&mut job.is_client_asked, true)
            }
            _ => false,
        }
    }

    /// A client has gone away, or its connection ends: out of the slab after this batch, and the socket closes with it.
    /// Gives what it leaves; `None`: it was closed already.
    pub(crate) fn close(&mut self, client: ClientKey) -> Option<Phase> {
        self.clients.get(client.0).filter(|entry| !entry.is_closed())?;
        self.about_to_close(client);
        Some(self.clients.get_mut(client.0)?.phase.leave_for(Phase::Closed))
    }

    /// What a close is, all but the phase.
    fn about_to_close(&mut self, client: ClientKey) {
        self.deadlines.disarm(client.0);
        self.closed.push(client);
    }

    /// Whatever is still to be written to it, its end cannot look orderly.
    pub(crate) fn reset_on_close(&self, client: ClientKey) {
        if let Some(entry) = self.clients.get(client.0) {
            entry.stream.reset_on_close();
        }
    }

    /// The client gets the end behind what it has.
    pub(crate) fn shut_down(&self, client: ClientKey) {
        if let Some(entry) = self.clients.get(client.0) {
            entry.stream.shutdown_write();
        }
    }

    /// Gives up a request that is still arriving, for its log line.
    pub(crate) fn abandon(&mut self, client: ClientKey, io: &mut Io) -> Option<Request> {
        let entry = self.clients.get_mut(client.0)?;
        entry.conn.abandon(io.take_buffer(), io.now())
    }

    /// The same of one that has gone: between two requests nothing is given up.
    pub(crate) fn abandon_arriving(&mut self, client: ClientKey, io: &mut Io) -> Option<Request> {
        let entry = self.clients.get_mut(client.0).filter(|entry| entry.conn.is_receiving())?;
        entry.conn.abandon(io.take_buffer(), io.now())
    }

    /// At a stop: idle connections get a moment.
    pub(crate) fn begin_stop(&mut self, now: Instant) {
        self.idle_kind = ClientDeadline::Grace;
        for (key, entry) in &self.clients {
            if entry.conn.is_idle() {
                self.deadlines.arm(key, ClientDeadline::Grace, now);
            }
        }
    }

    /// Closed entries leave the slab only now, so that no key is used again inside one batch of events.
    pub(crate) fn remove_closed(&mut self) {
        for client in self.closed.drain(..) {
            self.deadlines.disarm(client.0);
            self.clients.try_remove(client.0);
        }
    }
}

/// Deadlines.
impl Frontend {
    /// Takes one client whose deadline is due.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(ClientKey, ClientDeadline)> {
        let (key, kind) = self.deadlines.expire(now)?;
        Some((ClientKey(key), kind))
    }

    pub(crate) fn disarm(&mut self, client: ClientKey) {
        self.deadlines.disarm(client.0);
    }

    pub(crate) fn arm_receive(&mut self, client: ClientKey, now: Instant) {
        self.deadlines.arm(client.0, ClientDeadline::Receive, now);
    }
}
