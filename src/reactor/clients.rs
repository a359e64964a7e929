//! The clients' side: accepting, reading, answering, closing.

use super::entry::{ClientDeadline, ClientEntry, Exchange, Job, PeerState, Phase, Times};
use super::listen::{Accepted, Peer, is_shortage};
use super::stream::Io;
use super::token::{Readiness, Target};
use super::{
    ACCEPT_PAUSE, MAX_PER_TICK, MAX_REFUSALS_PER_TICK, READ_BYTES, Reactor, TICK_BYTES, spool_budget,
};
use crate::balancer::Decision;
use crate::conn::Request;
use crate::conn::client::Event;
use crate::conn::read_buffer::PendingBytes;
use crate::http::forward::{ForwardedTrust, Origin};
use crate::http::{Reason, Version};
use crate::keys::ClientKey;
use mio::Interest;
use std::time::Duration;

fn peer_state(event: Readiness) -> PeerState {
    match event {
        Readiness { is_error: true, .. } | Readiness { is_write_closed: true, .. } => PeerState::Gone,
        Readiness { is_read_closed: true, .. } => PeerState::HalfClosed,
        Readiness { .. } => PeerState::Open,
    }
}

impl Reactor {
    /// Takes the connections that the kernel has ready, as many as a turn may take.
    pub(super) fn accept(&mut self, index: usize) {
        if self.take_connections(index) {
            self.ready_list.push(Target::Listener(index));
        }
    }

    /// `true`: the kernel may have more.
    pub(super) fn take_connections(&mut self, index: usize) -> bool {
        if self.accept_again.is_some() {
            return false;
        }
        for _ in 0..MAX_PER_TICK {
            let is_near_bound = self.is_near_descriptor_bound();
            if is_near_bound && self.longest_quiet().is_none() {
                self.pause_accepting(&"none that is quiet can make room");
                return false;
            }
            let Some(listener) = self.listeners.get(index) else { return false };
            match listener.accept() {
                Accepted::Peer(stream, peer) => {
                    if is_near_bound {
                        self.close_for_room();
                    }
                    self.admit(stream, peer);
                }
                Accepted::Nobody => {
                    self.is_short_of_descriptors = false;
                    return false;
                }
                Accepted::GoneAlready => {}
                Accepted::NotNow(error) => {
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

    /// Whether another client could take a descriptor that is needed elsewhere.
    fn is_near_descriptor_bound(&self) -> bool {
        let taken = self.clients.len() + self.spools.files() + self.control.connections.len();
        taken as u64 + self.kept_descriptors >= self.limit.raised()
    }

    fn admit(&mut self, stream: super::stream::Stream, peer: Peer) {
        let (address, ip) = match peer {
            Peer::Ip(ip) => (ip.to_string(), Some(ip)),
            Peer::Unix => ("127.0.0.1".to_owned(), None),
        };
        let is_trusted = !self.config.trust_proxy.is_empty() && self.config.trusts(ip);
        let entry = ClientEntry::new(stream, address.into(), is_trusted, &self.spools);
        let client = ClientKey(self.clients.insert(entry));
        let token = Target::Client(client).token();
        // Registered once for life, which saves an `epoll_ctl` a request: a socket that is watched for writing reports
        // room only after it lacked some.
        let interests = Interest::READABLE | Interest::WRITABLE;
        let stream = &mut self.clients[client.0].stream;
        if let Err(error) = self.poll.registry().register(stream, token, interests) {
            log::warn!("a connection from {} cannot be watched: {error}", self.clients[client.0].address);
            self.metrics.accept_failures += 1;
            return self.kill_client(client);
        }
        self.mark_idle(client);
    }

    /// A connection waits for its next request: long, but at a stop only as long as one may be on its way.
    pub(super) fn mark_idle(&mut self, client: ClientKey) {
        let kind = if self.is_stopping() { ClientDeadline::Grace } else { ClientDeadline::Idle };
        self.client_deadlines.arm(client.0, kind, self.clock.now);
    }

    /// Who makes room near the descriptors' bound: the connection that has been quiet for the longest time. None of
    /// them, where whoever knocks has to wait: somebody who has just come, or just had an answer, may have a request
    /// on its way.
    fn longest_quiet(&self) -> Option<ClientKey> {
        const IDLE_FOR: Duration = Duration::from_millis(100);
        let key = self.client_deadlines.oldest(ClientDeadline::Idle)?;
        let since = self.client_deadlines.due(key)? - self.config.idle_timeout;
        (self.clock.now.duration_since(since) >= IDLE_FOR).then_some(ClientKey(key))
    }

    /// Closes the connection that has been quiet for the longest time.
    pub(super) fn close_for_room(&mut self) {
        /// So many of them may have sent a request in this moment.
        const MAX_LOOKS: usize = 8;
        for _ in 0..MAX_LOOKS {
            let Some(client) = self.longest_quiet() else { return };
            if self.close_if_idle(client) {
                self.metrics.closed_for_room += 1;
                return;
            }
        }
    }

    /// Closes a quiet connection, after a last read: a request that has arrived is served. Whether it is closed.
    fn close_if_idle(&mut self, client: ClientKey) -> bool {
        self.client_deadlines.disarm(client.0);
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.is_readable = true;
        }
        self.read_client(client);
        // Whoever was answered meanwhile, or has begun a request, has another deadline.
        let is_timed = self.client_deadlines.armed(client.0).is_some();
        let is_idle = |entry: &ClientEntry| matches!(entry.phase, Phase::Reading) && entry.conn.is_idle();
        let closes = !is_timed && self.clients.get(client.0).is_some_and(is_idle);
        if closes {
            self.kill_client(client);
        }
        closes
    }

    /// Accepting again at once would only fail again; the backlog keeps whoever comes meanwhile.
    pub(super) fn pause_accepting(&mut self, why: &dyn std::fmt::Display) {
        if !self.is_short_of_descriptors {
            self.is_short_of_descriptors = true;
            log::warn!("accepting pauses until there is room again: {why}");
        }
        self.metrics.accept_pauses += 1;
        self.accept_again = Some(self.clock.now + ACCEPT_PAUSE);
    }

    pub(super) fn client_event(&mut self, client: ClientKey, event: Readiness) {
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        entry.is_readable |= event.is_readable || event.is_read_closed;
        let before = entry.peer;
        entry.peer = before.max(peer_state(event));
        let has_closed = entry.peer != before;
        if event.is_writable && !entry.out.is_read() {
            self.flush_client(client);
        }
        self.read_client(client);
        if has_closed {
            self.client_closed(client);
        }
    }

    /// A client has closed its side, or has gone altogether. A FIN alone is a half-close: only of an event stream it is a
    /// departure, and who waits is asked.
    fn client_closed(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get(client.0) else {
            return;
        };
        let is_gone = entry.peer == PeerState::Gone;
        match &entry.phase {
            Phase::Queued(_)
            | Phase::Retrying(_)
            | Phase::TimedOut(_)
            | Phase::Assigned { .. }
            | Phase::Finishing { .. }
                if is_gone =>
            {
                self.client_gone(client);
            }
            // Its last bytes may still be there to be read; but of a full tunnel nobody reads them.
            Phase::Tunnel { .. } if is_gone && self.is_tunnel_full(client) => self.client_gone(client),
            Phase::Assigned { worker } => {
                let exchange = self.workers.get(worker.0).and_then(|entry| entry.exchange.as_ref());
                if exchange.is_some_and(Exchange::is_event_stream) {
                    // Should it be there after all, what it has must not look whole.
                    entry.stream.reset_on_close();
                    self.client_gone(client);
                } else {
                    self.ask_client(client);
                }
            }
            Phase::Queued(_) => self.ask_client(client),
            Phase::Reading
            | Phase::Retrying(_)
            | Phase::TimedOut(_)
            | Phase::Finishing { .. }
            | Phase::Tunnel { .. }
            | Phase::Lingering
            | Phase::Dead => {}
        }
    }

    /// Who waits and has sent a FIN may have closed, or may wait for its answer. One `100 Continue` asks: every client
    /// skips it (RFC 9110 §15.2), and who has closed answers it with a reset. HTTP/1.0 knows no 1xx.
    pub(super) fn ask_client(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        match entry.peer {
            PeerState::Open => return,
            PeerState::HalfClosed => {}
            PeerState::Gone => return self.client_gone(client),
        }
        let job = match &mut entry.phase {
            Phase::Queued(job) => job,
            // It waits for another try to connect.
            Phase::Assigned { worker } => {
                let exchange = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut());
                match exchange {
                    Some(exchange) if exchange.is_unsent() => &mut exchange.job,
                    Some(_) | None => return,
                }
            }
            Phase::Reading
            | Phase::Retrying(_)
            | Phase::TimedOut(_)
            | Phase::Finishing { .. }
            | Phase::Tunnel { .. }
            | Phase::Lingering
            | Phase::Dead => return,
        };
        let knows_interim = job.request.context.version == Version::Http11;
        if knows_interim
            && !entry.stream.tells_hang_up()
            && !std::mem::replace(&mut job.is_client_asked, true)
        {
            self.send(client, b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// Who waits for a worker and is known to be gone waits no longer.
    pub(super) fn forget_if_gone(&mut self, client: ClientKey, event: Readiness) {
        let phase = self.clients.get(client.0).map(|entry| &entry.phase);
        if peer_state(event) == PeerState::Gone
            && matches!(phase, Some(Phase::Queued(_) | Phase::Retrying(_)))
        {
            self.client_gone(client);
        }
    }

    /// Goes on with a connection that has more to do without a new event.
    pub(super) fn resume_client(&mut self, client: ClientKey) {
        if self.clients.get(client.0).is_some_and(|entry| !entry.out.is_read()) {
            self.flush_client(client);
        }
        self.feed(client, &mut []);
        self.read_client(client);
    }

    pub(super) fn read_client(&mut self, client: ClientKey) {
        let mut scratch = std::mem::take(&mut self.scratch);
        // What is thrown away behind a refusal keeps others waiting for less.
        let is_lingering = |entry: &ClientEntry| matches!(entry.phase, Phase::Lingering);
        let mut budget = match self.clients.get(client.0) {
            Some(entry) if is_lingering(entry) => READ_BYTES,
            Some(_) | None => TICK_BYTES,
        };
        while let Some(entry) = self.clients.get_mut(client.0) {
            if !entry.is_readable || !entry.wants_bytes() || self.is_tunnel_full(client) {
                break;
            }
            if budget == 0 {
                self.ready_list.push(Target::Client(client));
                break;
            }
            let Some(entry) = self.clients.get_mut(client.0) else {
                break;
            };
            let most_bytes = match spool_budget::readable_bytes(entry, &self.spools) {
                0 => {
                    spool_budget::wait_for_file(&mut self.waiting_for_files, client, entry);
                    break;
                }
                bytes => bytes.min(scratch.len()),
            };
            match entry.stream.receive(&mut scratch[..most_bytes]) {
                Io::Bytes(bytes) => {
                    budget = budget.saturating_sub(bytes);
                    self.metrics.received_bytes += bytes as u64;
                    // A short read means drained, which saves a read that would only say so; unless the peer has closed:
                    // then the end is still to be read.
                    entry.is_readable = bytes == most_bytes || entry.peer != PeerState::Open;
                    self.feed(client, &mut scratch[..bytes]);
                }
                Io::Later => entry.is_readable = false,
                Io::End => {
                    entry.is_readable = false;
                    entry.conn.has_ended = true;
                    self.feed(client, &mut []);
                }
                Io::Gone => {
                    self.client_gone(client);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// Hands bytes to the client's machine, and does what comes of them.
    fn feed(&mut self, client: ClientKey, fresh: &mut [u8]) {
        let now = self.clock.now;
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        let mut pending_bytes = PendingBytes::join(entry.conn.read_buffer.take(), fresh);
        while let Some(entry) = self.clients.get_mut(client.0) {
            if !entry.wants_bytes() {
                break;
            }
            let is_proxy = |address| self.config.trusts(Some(address));
            let origin = Origin {
                address: &entry.address,
                trust: if entry.is_trusted {
                    ForwardedTrust::Believed(&is_proxy)
                } else {
                    ForwardedTrust::Ignored
                },
                fresh_id: self.ids.next(),
                start_us: self.clock.unix_us(),
            };
            let buffer = || self.buffers.take();
            let step = entry.conn.advance(
                pending_bytes.remaining(),
                origin,
                self.config.max_body_bytes,
                buffer,
                now,
            );
            let is_over = match step.event {
                Event::More => true,
                Event::Continue => {
                    // A client that has sent its body already needs no leave.
                    if pending_bytes.remaining().len() == step.consumed {
                        self.send(client, b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    false
                }
                Event::Body(range) => {
                    if entry.body.push(&pending_bytes.remaining()[range]).is_err() {
                        self.refuse_arriving(client, Reason::SpoolFull);
                    }
                    false
                }
                Event::Request(request) => {
                    self.submit(client, request);
                    false
                }
                Event::Refused(reason, request) => {
                    self.refuse(client, request, reason, Times::default(), None);
                    false
                }
                Event::Tunnel(range) => {
                    self.tunnel_to_worker(client, &pending_bytes.remaining()[range]);
                    false
                }
                Event::End => {
                    self.client_ended(client);
                    true
                }
            };
            pending_bytes.consume(step.consumed);
            if is_over {
                break;
            }
        }
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        entry.conn.read_buffer.keep(pending_bytes);
        // The head's clock starts with its first byte, even behind a request that was answered just now; the body's
        // with each byte.
        let is_timed = self.client_deadlines.armed(client.0) == Some(ClientDeadline::Receive);
        let has_begun = entry.conn.is_receiving() && !is_timed;
        if matches!(entry.phase, Phase::Reading) && (has_begun || entry.conn.is_in_body()) {
            self.client_deadlines.arm(client.0, ClientDeadline::Receive, now);
        }
    }

    /// The client has closed its side, and nothing is owed to it.
    fn client_ended(&mut self, client: ClientKey) {
        match self.clients.get(client.0).map(|entry| &entry.phase) {
            Some(Phase::Tunnel { .. }) => self.tunnel_client_ended(client),
            Some(_) => self.kill_client(client),
            None => {}
        }
    }

    /// A whole request: answered here, or given to the balancer.
    fn submit(&mut self, client: ClientKey, request: Request) {
        self.client_deadlines.disarm(client.0);
        if let Some(local) = request.local {
            return self.answer_locally(client, request, local);
        }
        self.read_watch();
        if self.has_failed_to_start() {
            return self.refuse_failed_start(client, request, Times::default());
        }
        let (now, deadline) = (self.clock.now, self.queue_deadline());
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        let body = std::mem::replace(&mut entry.body, super::spool::Spool::new(&self.spools));
        let job = Job { request, body, submitted: now, deadline, tries: 1, is_client_asked: false };
        match self.balancer.submit(client, deadline) {
            Decision::Assign { worker } => self.assign(worker, client, job),
            Decision::Enqueue => {
                entry.phase = Phase::Queued(job);
                self.ask_client(client);
            }
            Decision::Reject => self.refuse(client, job.request, Reason::QueueFull, Times::default(), None),
        }
    }

    /// Takes the request of a waiting client out of its phase.
    pub(super) fn take_job(&mut self, client: ClientKey) -> Option<Job> {
        let entry = self.clients.get_mut(client.0)?;
        match std::mem::replace(&mut entry.phase, Phase::Reading) {
            Phase::Queued(job) | Phase::Retrying(job) | Phase::TimedOut(job) => Some(job),
            other => {
                debug_assert!(false, "{client:?} does not wait");
                entry.phase = other;
                None
            }
        }
    }

    /// From now on no worker gets the request. Its answer is written when its turn comes.
    pub(super) fn has_waited_too_long(&mut self, client: ClientKey) {
        let job = self.take_job(client);
        if let (Some(job), Some(entry)) = (job, self.clients.get_mut(client.0)) {
            entry.phase = Phase::TimedOut(job);
            self.timed_out.push_back(client);
        }
    }

    pub(super) fn answer_timed_out(&mut self) {
        for _ in 0..MAX_REFUSALS_PER_TICK {
            let Some(client) = self.timed_out.pop_front() else { break };
            // Some have left meanwhile.
            let still_waits =
                self.clients.get(client.0).is_some_and(|entry| matches!(entry.phase, Phase::TimedOut(_)));
            if still_waits && let Some(job) = self.take_job(client) {
                let times = Times { queue: self.clock.now - job.submitted, ..Times::default() };
                if self.knows_failed_start() {
                    self.refuse_failed_start(client, job.request, times);
                } else {
                    self.refuse(client, job.request, Reason::QueueTimeout, times, None);
                }
            }
        }
    }

    pub(super) fn client_is_due(&mut self, client: ClientKey, kind: ClientDeadline) {
        let Some(entry) = self.clients.get(client.0) else {
            return;
        };
        match kind {
            // It waits for us, and its turn will come.
            ClientDeadline::Receive if entry.waits_for_file && self.spools.lacks_descriptors() => {
                self.refuse_arriving(client, Reason::SpoolFull);
            }
            ClientDeadline::Receive if entry.waits_for_file => {
                self.client_deadlines.arm(client.0, kind, self.clock.now);
            }
            ClientDeadline::Receive => self.refuse_arriving(client, Reason::ClientTimeout),
            ClientDeadline::Linger => self.kill_client(client),
            // Quiet between two requests: no answer and no line.
            ClientDeadline::Idle | ClientDeadline::Grace => drop(self.close_if_idle(client)),
            ClientDeadline::Take => {
                entry.stream.reset_on_close();
                self.client_gone(client);
            }
        }
    }

    /// A client has gone away, whatever it waited for.
    pub(super) fn client_gone(&mut self, client: ClientKey) {
        let now = self.clock.now;
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        let phase = std::mem::replace(&mut entry.phase, Phase::Lingering);
        match phase {
            Phase::Reading => {
                let is_receiving = entry.conn.is_receiving();
                let arriving = is_receiving.then(|| entry.conn.abandon(self.buffers.take(), now)).flatten();
                if let Some(request) = arriving {
                    self.log_gone_request(client, request, Times::default());
                }
            }
            Phase::Queued(job) | Phase::Retrying(job) | Phase::TimedOut(job) => {
                self.balancer.forget(client);
                let times = Times { queue: now - job.submitted, ..Times::default() };
                self.log_gone_request(client, job.request, times);
            }
            Phase::Assigned { worker } => self.exchange_lost_its_client(worker, client),
            Phase::Finishing { finished, .. } => {
                if let Some(finished) = finished {
                    self.log_gone(client, finished, Reason::ClientGone);
                }
            }
            Phase::Tunnel { worker } => self.tunnel_lost_its_client(worker, client),
            Phase::Lingering | Phase::Dead => {}
        }
        self.kill_client(client);
    }

    /// Out of the slab after this batch; the socket closes with it.
    pub(super) fn kill_client(&mut self, client: ClientKey) {
        let Some(entry) = self.clients.get_mut(client.0) else {
            return;
        };
        if !entry.is_dead() {
            entry.phase = Phase::Dead;
            self.client_deadlines.disarm(client.0);
            self.dead_clients.push(client);
        }
    }
}
