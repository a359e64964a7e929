//! Requests: what arrives from clients, and who gets it.

use super::crossing::{Job, Received, Times};
use super::frontend::client::{ClientDeadline, PeerState};
use super::frontend::phase::{Phase, Wait};
use super::frontend::{Flushed, FromClient};
use super::io::token::{Readiness, Target};
use super::limits::MAX_REFUSALS_PER_TICK;
use super::tick::Reactor;
use crate::balancer::{Decision, NextStep, Wish};
use crate::conn::Request;
use crate::http::Reason;
use crate::keys::ClientKey;

/// Whether the client is there, and leave to send its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Reactor {
    /// Reads what a client has sent and does what comes of it; it also gets what waits for it. Without an `event` there is
    /// more to do: what it has sent before comes first.
    pub(super) fn on_client(&mut self, client: ClientKey, event: Option<Readiness>) {
        let Some(has_closed) = self.frontend.note(client, event.unwrap_or_default()) else { return };
        if event.is_none_or(|event| event.is_writable) && self.frontend.has_undelivered(client) {
            self.flush_client(client);
        }
        let mut scratch = self.io.take_scratch();
        let mut budget = self.frontend.read_budget(client);
        let mut is_kept = event.is_none();
        loop {
            let count = if std::mem::take(&mut is_kept) {
                0
            } else if self.is_tunnel_full(client) {
                break;
            } else {
                match self.frontend.receive(client, &mut scratch, &mut budget, &mut self.io) {
                    Some(Received::Bytes(count)) => {
                        self.observer.received(count);
                        count
                    }
                    Some(Received::End) => 0,
                    Some(Received::Gone) => break self.client_gone(client),
                    None => break,
                }
            };
            let Some(mut bytes) = self.frontend.pending(client, &mut scratch[..count]) else { break };
            while let Some(event) = self.frontend.advance(client, &mut bytes, &mut self.io) {
                match event {
                    FromClient::Request(request) => self.dispatch(client, request),
                    FromClient::Refused(reason, request) => {
                        self.refuse(client, request, reason, Times::default(), None);
                    }
                    FromClient::AsksForLeave => self.send(client, CONTINUE),
                    FromClient::NoRoom => self.refuse_arriving(client, Reason::SpoolFull),
                    FromClient::Tunnel(count) => {
                        self.tunnel_to_worker(client, &bytes.remaining()[..count]);
                        bytes.consume(count);
                    }
                    FromClient::NoProxyHeader(Some(fault)) => self.refuse_connection(client, &fault),
                    FromClient::NoProxyHeader(None) => {
                        self.refuse_connection(client, &"its PROXY protocol header has no end");
                    }
                    FromClient::End => {
                        self.client_ended(client);
                        break;
                    }
                }
            }
            self.frontend.keep(client, bytes, &self.io);
        }
        self.io.give_scratch_back(scratch);
        if has_closed {
            self.client_closed(client);
        }
    }

    /// A whole request: answered here, or given to a worker, or to the queue.
    fn dispatch(&mut self, client: ClientKey, request: Request) {
        if let Some(local) = request.local {
            return self.answer_locally(client, request, local);
        }
        if self.has_dismissed_workers() {
            return self.refuse(client, request, Reason::Stopping, Times::default(), None);
        }
        self.read_watch();
        if self.has_failed_to_start() {
            return self.refuse_failed_start(client, request, Times::default());
        }
        let deadline = self.queue_deadline();
        let Some(job) = self.frontend.job(client, request, deadline, &self.io) else { return };
        if !self.quarantine.is_empty() && self.is_quarantined(client, &job) {
            return self.refuse_quarantined(client, job);
        }
        let wish = if job.request.asks_for_stream() { Wish::Stream } else { Wish::Answer };
        let refusal = match self.balancer.submit(client, wish, deadline, self.io.now()) {
            Decision::Assign { worker } => return self.assign(worker, client, job, wish),
            Decision::Enqueue => return self.enqueue(client, job),
            Decision::Reject => Reason::QueueFull,
            Decision::RejectStream => Reason::StreamsFull,
        };
        self.refuse(client, job.request, refusal, Times::default(), None);
    }

    fn enqueue(&mut self, client: ClientKey, job: Job) {
        self.frontend.enqueue(client, job);
        self.ask_client(client);
    }

    /// A request is tried once more: with an idle worker that lives, else at the front of the queue under its first
    /// deadline.
    pub(super) fn place(&mut self, client: ClientKey, job: Job) {
        if self.has_dismissed_workers() {
            let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
            return self.refuse(client, job.request, Reason::Stopping, times, None);
        }
        if !self.quarantine.is_empty() && !self.may_go_on(&job) {
            return self.refuse_quarantined(client, job);
        }
        while let Some(worker) = self.balancer.top()
            && self.supervisor.is_dying(worker)
        {
            self.take_out(worker);
        }
        match self.balancer.resubmit(client, job.deadline, self.io.now()) {
            Decision::Assign { worker } => self.assign(worker, client, job, Wish::Answer),
            Decision::Enqueue | Decision::Reject | Decision::RejectStream => self.enqueue(client, job),
        }
    }

    pub(super) fn place_second_tries(&mut self, clients: Vec<ClientKey>) {
        for client in clients {
            // Some have left meanwhile.
            if self.frontend.is_waiting(client, Wait::SecondTry)
                && let Some(job) = self.frontend.end_wait(client)
            {
                self.place(client, job);
            }
        }
    }

    /// Writes answers to those who have waited for too long, as many as a tick may take.
    pub(super) fn answer_timed_out(&mut self) {
        for _ in 0..MAX_REFUSALS_PER_TICK {
            let Some(client) = self.frontend.next_timed_out() else { break };
            // Some have left meanwhile.
            if self.frontend.is_waiting(client, Wait::TimedOut)
                && let Some(job) = self.frontend.end_wait(client)
            {
                let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
                if self.knows_failed_start() {
                    self.refuse_failed_start(client, job.request, times);
                } else {
                    self.refuse(client, job.request, Reason::QueueTimeout, times, None);
                }
            }
        }
    }

    /// At the end of a tick: those that wait for a stream go to workers that may take one by now, and are refused when no
    /// worker may hold another one.
    pub(super) fn place_streams(&mut self) {
        while let Some((worker, client)) = self.balancer.next_stream(self.io.now()) {
            self.go_on_with_worker(worker, NextStep::Dispatch { client, wish: Wish::Stream });
        }
        while let Some(client) = self.balancer.refuse_stream(self.io.now()) {
            if let Some(job) = self.frontend.end_wait(client) {
                let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
                self.refuse(client, job.request, Reason::StreamsFull, times, None);
            }
        }
    }

    /// Closes a connection on which nothing can be believed: its proxy does not say who has connected to it.
    fn refuse_connection(&mut self, client: ClientKey, why: &dyn std::fmt::Display) {
        let address = String::from_utf8_lossy(self.frontend.address(client));
        self.observer.refused_connection(&address, why, self.io.now());
        self.frontend.close(client);
    }

    /// Refuses a request that is still arriving.
    pub(super) fn refuse_arriving(&mut self, client: ClientKey, reason: Reason) {
        if let Some(request) = self.frontend.abandon(client, &mut self.io) {
            self.refuse(client, request, reason, Times::default(), None);
        }
    }

    pub(super) fn on_client_deadline(&mut self, client: ClientKey, kind: ClientDeadline) {
        match kind {
            // It waits for us, and its turn will come.
            ClientDeadline::Receive if self.frontend.waits_for_file(client) => {
                if self.io.spools().lacks_descriptors() {
                    self.refuse_arriving(client, Reason::SpoolFull);
                } else {
                    self.frontend.arm_receive(client, self.io.now());
                }
            }
            ClientDeadline::Receive if self.frontend.awaits_proxy_header(client) => {
                // What has arrived by now is in time.
                self.on_client(client, Some(Readiness::READABLE));
                if self.frontend.awaits_proxy_header(client) {
                    self.refuse_connection(client, &"it has sent no PROXY protocol header in time");
                }
            }
            ClientDeadline::Receive => self.refuse_arriving(client, Reason::ClientTimeout),
            ClientDeadline::Linger => drop(self.frontend.close(client)),
            // Between two requests: no answer and no line.
            ClientDeadline::Idle => drop(self.close_if_idle(client)),
            ClientDeadline::Grace => match self.frontend.phase(client) {
                Some(Phase::Lingering) => drop(self.frontend.close(client)),
                Some(_) | None => {
                    self.read_idle(client);
                    self.frontend.part_if_idle(client, self.io.now());
                }
            },
            // The kernel tells of room only when a third of its buffer is free. What has left it before shows here.
            ClientDeadline::Take => {
                if !self.flush_client(client) {
                    self.frontend.reset_on_close(client);
                    self.client_gone(client);
                }
            }
        }
    }

    /// Writes what waits for the client. `false`: it takes nothing now.
    fn flush_client(&mut self, client: ClientKey) -> bool {
        match self.frontend.flush(client, &mut self.io) {
            Flushed::All => self.client_has_taken_all(client),
            Flushed::Some => self.settle_answer(client),
            Flushed::Nothing => return false,
            Flushed::Gone => self.client_takes_no_more(client),
            Flushed::Lost => self.answer_is_lost(client),
        }
        true
    }
}

/// Clients that leave.
impl Reactor {
    /// A client has closed its side, or has gone altogether. A FIN alone is a half-close: only of an event stream it is a
    /// departure, and who waits is asked.
    fn client_closed(&mut self, client: ClientKey) {
        let is_gone = self.frontend.peer(client) == Some(PeerState::Gone);
        let Some(phase) = self.frontend.phase(client) else { return };
        match phase {
            Phase::Waiting { .. } | Phase::Assigned { .. } | Phase::Finishing { .. } if is_gone => {
                self.client_gone(client);
            }
            // Of a full tunnel nobody reads what a reset may have left. What a Unix peer has sent outlives it; and where
            // the client has been told of the worker's end, its own looks no different from a reset.
            Phase::Tunnel { upstream }
                if is_gone
                    && self.is_tunnel_full(client)
                    && !self.frontend.is_local(client)
                    && !self.backend.has_tunnel_ended(*upstream) =>
            {
                self.client_gone(client);
            }
            Phase::Assigned { upstream } if self.backend.is_event_stream(*upstream) => {
                // Should it be there after all, what it has must not look whole.
                self.frontend.reset_on_close(client);
                self.client_gone(client);
            }
            Phase::Assigned { .. } | Phase::Waiting { wait: Wait::Queued, .. } => self.ask_client(client),
            Phase::Reading
            | Phase::Dispatching
            | Phase::Waiting { wait: Wait::SecondTry | Wait::TimedOut, .. }
            | Phase::Finishing { .. }
            | Phase::Tunnel { .. }
            | Phase::Lingering
            | Phase::Closed => {}
        }
    }

    /// Who waits and has sent a FIN may have closed, or may wait for its answer. One `100 Continue` asks: every client
    /// skips it (RFC 9110 §15.2), and who has closed answers it with a reset.
    pub(super) fn ask_client(&mut self, client: ClientKey) {
        match self.frontend.peer(client) {
            None | Some(PeerState::Open) => return,
            Some(PeerState::HalfClosed) => {}
            Some(PeerState::Gone) => return self.client_gone(client),
        }
        let is_asked = match self.frontend.phase(client) {
            Some(Phase::Waiting { wait: Wait::Queued, .. }) => self.frontend.is_waiting_to_be_asked(client),
            // It waits for another try to connect.
            Some(&Phase::Assigned { upstream }) => match self.backend.unsent_job(upstream) {
                Some(job) => self.frontend.is_to_be_asked(client, job),
                None => false,
            },
            Some(
                Phase::Reading
                | Phase::Dispatching
                | Phase::Waiting { wait: Wait::SecondTry | Wait::TimedOut, .. }
                | Phase::Finishing { .. }
                | Phase::Tunnel { .. }
                | Phase::Lingering
                | Phase::Closed,
            )
            | None => false,
        };
        if is_asked {
            self.send(client, CONTINUE);
        }
    }

    /// Who waits for a worker and is known to be gone waits no longer.
    pub(super) fn forget_if_gone(&mut self, client: ClientKey, event: Readiness) {
        let waits = self.frontend.is_waiting(client, Wait::Queued)
            || self.frontend.is_waiting(client, Wait::SecondTry);
        if waits && PeerState::of(event) == PeerState::Gone {
            self.client_gone(client);
        }
    }

    /// The client has closed its side, and nothing is owed to it.
    fn client_ended(&mut self, client: ClientKey) {
        match self.frontend.tunnel_of(client) {
            Some(upstream) => self.tunnel_client_ended(upstream),
            None => drop(self.frontend.close(client)),
        }
    }

    /// A write to a client has failed: it has gone. What it has sent through a tunnel before is still the worker's.
    pub(super) fn client_takes_no_more(&mut self, client: ClientKey) {
        match self.frontend.tunnel_of(client) {
            Some(upstream) => {
                self.frontend.takes_no_more(client);
                self.backend.release_held_back(upstream, &mut self.io);
                self.io.go_on_with(Target::Client(client));
            }
            None => self.client_gone(client),
        }
    }

    /// A client has gone away, whatever it waited for.
    pub(super) fn client_gone(&mut self, client: ClientKey) {
        match self.frontend.close(client) {
            Some(Phase::Reading) => {
                if let Some(request) = self.frontend.abandon_arriving(client, &mut self.io) {
                    self.log_gone_request(client, request, Times::default());
                }
            }
            Some(Phase::Waiting { job, .. }) => {
                self.balancer.depart(client, self.io.now());
                let times = Times { queue: self.io.now() - job.submitted, ..Times::default() };
                self.log_gone_request(client, job.request, times);
            }
            Some(Phase::Assigned { upstream }) => self.exchange_lost_its_client(upstream, client),
            Some(Phase::Finishing { finished, .. }) => self.log_gone(client, finished, Reason::ClientGone),
            Some(Phase::Tunnel { upstream }) => self.tunnel_lost_its_client(upstream, client),
            Some(Phase::Dispatching | Phase::Lingering | Phase::Closed) | None => {}
        }
    }
}

/// Connections that are let in, or make room.
impl Reactor {
    /// Takes the connections that the kernel has ready, as many as a tick may take.
    pub(super) fn accept(&mut self, index: usize) {
        if self.take_connections(index) {
            self.io.go_on_with(Target::Listener(index));
        }
    }

    /// `true`: the kernel may have more.
    pub(super) fn take_connections(&mut self, index: usize) -> bool {
        use super::io::listen::{Accepted, is_shortage};
        if self.frontend.is_accepting_paused() {
            return false;
        }
        for _ in 0..super::limits::MAX_PER_TICK {
            let is_near_bound = self.frontend.is_near_descriptor_bound(self.admin.connections(), &self.io);
            if is_near_bound && self.frontend.longest_idle(self.io.now()).is_none() {
                self.pause_accepting(&"none that is idle can make room");
                return false;
            }
            match self.frontend.accept(index) {
                Some(Accepted::Peer(stream, peer)) => {
                    if self.frontend.is_no_proxy(index, peer) {
                        self.observer.refused_connection(
                            &peer,
                            &"--trust-proxy does not name it",
                            self.io.now(),
                        );
                        continue;
                    }
                    if is_near_bound {
                        self.close_for_room();
                    }
                    if self.frontend.admit(index, stream, peer, &self.io).is_err() {
                        self.observer.accept_failed();
                    }
                }
                None | Some(Accepted::Nobody) => return false,
                Some(Accepted::GoneAlready) => {}
                Some(Accepted::NotNow(error)) => {
                    if is_shortage(&error) {
                        self.close_for_room();
                    }
                    self.pause_accepting(&error);
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn pause_accepting(&mut self, why: &dyn std::fmt::Display) {
        self.frontend.pause_accepting(why, self.io.now());
        self.observer.accepting_paused();
    }

    /// Closes the connection that has been idle for the longest time.
    pub(super) fn close_for_room(&mut self) {
        /// So many of them may have sent a request in this moment.
        const MAX_LOOKS: usize = 8;
        for _ in 0..MAX_LOOKS {
            let Some(client) = self.frontend.longest_idle(self.io.now()) else { return };
            if self.close_if_idle(client) {
                self.observer.closed_for_room();
                return;
            }
        }
    }

    /// Closes an idle connection, after a last read: a request that has arrived is served. Whether it is closed.
    fn close_if_idle(&mut self, client: ClientKey) -> bool {
        self.read_idle(client);
        self.frontend.close_if_idle(client)
    }

    /// The last read of an idle connection.
    fn read_idle(&mut self, client: ClientKey) {
        self.frontend.disarm(client);
        self.on_client(client, Some(Readiness::READABLE));
    }
}
