//! Listeners, and who is let in.

use super::Frontend;
use super::client::{Client, ClientDeadline};
use super::phase::Phase;
use crate::conn;
use crate::keys::ClientKey;
use crate::reactor::io::Io;
use crate::reactor::io::listen::{Accepted, Listener, OnTheWay, Peer};
use crate::reactor::io::stream::Stream;
use crate::reactor::io::token::Target;
use mio::event::Source;
use mio::{Interest, Registry};
use std::io;
use std::time::{Duration, Instant};

/// Accepting pauses for so long when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A handshake that has begun when newcomers are refused completes within a round trip: so long is waited for it where
/// all clients are on this machine,
const LOCAL_HANDSHAKE: Duration = Duration::from_millis(5);
/// and so long where they are not. (Of clients 50 ms away none was lost.)
const HANDSHAKE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Acceptor {
    listeners: Vec<Listener>,
    paused_until: Option<Instant>,
    is_short_of_descriptors: bool,
    /// So many are kept free of clients.
    kept_descriptors: u64,
    /// Newcomers are refused; those on their way are accepted until then, and then the listeners are closed.
    closes: Option<Instant>,
}

#[cfg(test)]
impl Acceptor {
    pub(super) fn is_short(&self) -> bool {
        self.is_short_of_descriptors
    }

    pub(super) fn add(&mut self, listener: Listener) {
        self.listeners.push(listener);
    }
}

impl Acceptor {
    pub(super) fn new(listeners: Vec<Listener>, kept_descriptors: u64) -> Self {
        Acceptor {
            listeners,
            paused_until: None,
            is_short_of_descriptors: false,
            kept_descriptors,
            closes: None,
        }
    }

    pub(super) fn is_listening(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// When something is to be done by the clock. A pause is waited for before anything is closed.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.paused_until.or(self.closes)
    }
}

impl Frontend {
    pub(crate) fn listeners(&self) -> &[Listener] {
        &self.acceptor.listeners
    }

    /// So many descriptors are kept free of clients from now on.
    pub(crate) fn keep_descriptors(&mut self, count: u64) {
        self.acceptor.kept_descriptors = count;
    }

    pub(crate) fn is_accepting_paused(&self) -> bool {
        self.acceptor.paused_until.is_some()
    }

    /// The next connection that the kernel has ready; `None`: there is no such listener any more.
    pub(crate) fn accept(&mut self, index: usize) -> Option<Accepted> {
        let accepted = self.acceptor.listeners.get(index)?.accept();
        if matches!(accepted, Accepted::Nobody) {
            self.acceptor.is_short_of_descriptors = false;
        }
        Some(accepted)
    }

    /// Whether those who connect to this listener are proxies, who say first who has connected to them.
    fn has_proxy_header(&self, index: usize) -> bool {
        self.acceptor.listeners.get(index).is_some_and(Listener::has_proxy_header)
    }

    /// Whether this peer may not say who has connected to it, and would have to.
    pub(crate) fn is_no_proxy(&self, index: usize, peer: Peer) -> bool {
        let ip = match peer {
            Peer::Ip(ip) => Some(ip),
            Peer::Unix => None,
        };
        self.has_proxy_header(index) && !self.config.trusts(ip)
    }

    /// The connection's proxy has not said yet who has connected to it.
    pub(crate) fn awaits_proxy_header(&self, client: ClientKey) -> bool {
        self.clients.get(client.0).is_some_and(|entry| entry.conn.awaits_proxy_header())
    }

    /// Whether another client could take a descriptor that is needed elsewhere, beside those that `others` have.
    pub(crate) fn is_near_descriptor_bound(&self, others: usize, io: &Io) -> bool {
        let taken = self.clients.len() + io.spools().files() + others;
        taken as u64 + self.acceptor.kept_descriptors >= io.descriptors()
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// The kernel does not watch it; it is closed.
    pub(crate) fn admit(
        &mut self,
        index: usize,
        stream: Stream,
        peer: Peer,
        io: &Io,
    ) -> Result<(), io::Error> {
        let has_proxy_header = self.has_proxy_header(index);
        let conn = if has_proxy_header { conn::Client::with_proxy_header() } else { conn::Client::default() };
        let entry = Client::new(stream, peer, conn, &self.config, io.spools());
        let client = ClientKey(self.clients.insert(entry));
        let token = Target::Client(client).token();
        // Registered once for life, which saves an `epoll_ctl` a request: a socket that is watched for writing reports
        // room only after it lacked some.
        let interests = Interest::READABLE | Interest::WRITABLE;
        let entry = &mut self.clients[client.0];
        if let Err(error) = io.registry().register(&mut entry.stream, token, interests) {
            log::warn!("a connection from {} cannot be watched: {error}", entry.address);
            self.close(client);
            return Err(error);
        }
        match has_proxy_header {
            true => self.arm_receive(client, io.now()),
            false => self.mark_idle(client, io.now()),
        }
        Ok(())
    }

    /// A connection waits for its next request.
    pub(super) fn mark_idle(&mut self, client: ClientKey, now: Instant) {
        self.deadlines.arm(client.0, self.idle_kind, now);
    }

    /// Who makes room near the descriptors' bound: the connection that has been idle for the longest time. None of
    /// them, where whoever knocks has to wait: somebody who has just come, or just had an answer, may have a request
    /// on its way.
    pub(crate) fn longest_idle(&self, now: Instant) -> Option<ClientKey> {
        const IDLE_FOR: Duration = Duration::from_millis(100);
        let key = self.deadlines.oldest(ClientDeadline::Idle)?;
        let since = self.deadlines.due(key)? - self.config.idle_timeout;
        (now.duration_since(since) >= IDLE_FOR).then_some(ClientKey(key))
    }

    /// Closes it if it is idle still; whoever was answered meanwhile, or has begun a request, has another deadline.
    pub(crate) fn close_if_idle(&mut self, client: ClientKey) -> bool {
        let closes = self.is_idle_for_good(client);
        if closes {
            self.close(client);
        }
        closes
    }

    /// At a stop: ends it if it is idle still, and lingers, so that a request that comes now is met by an end, and not
    /// by a reset.
    pub(crate) fn part_if_idle(&mut self, client: ClientKey, now: Instant) {
        if self.is_idle_for_good(client)
            && let Some(entry) = self.clients.get_mut(client.0)
        {
            entry.stream.shutdown_write();
            entry.conn.linger();
            entry.phase.enter(Phase::Lingering);
            self.deadlines.arm(client.0, ClientDeadline::Grace, now);
        }
    }

    /// It has no deadline, so it was not answered meanwhile, and nothing of a request has come.
    fn is_idle_for_good(&self, client: ClientKey) -> bool {
        let is_timed = self.deadlines.armed(client.0).is_some();
        let is_idle = |entry: &Client| matches!(entry.phase, Phase::Reading) && entry.conn.is_idle();
        !is_timed && self.clients.get(client.0).is_some_and(is_idle)
    }

    /// Accepting again at once would only fail again; the backlog keeps whoever comes meanwhile.
    pub(crate) fn pause_accepting(&mut self, why: &dyn std::fmt::Display, now: Instant) {
        if !self.acceptor.is_short_of_descriptors {
            self.acceptor.is_short_of_descriptors = true;
            log::warn!("accepting pauses until there is room again: {why}");
        }
        self.acceptor.paused_until = Some(now + ACCEPT_PAUSE);
    }

    /// Whether a pause is over now.
    pub(crate) fn end_pause(&mut self, now: Instant) -> bool {
        self.acceptor.paused_until.take_if(|until| *until <= now).is_some()
    }

    /// The end of listening begins: newcomers are refused, and those who have connected, or are about to, are accepted
    /// still. A socket that somebody else holds as well is left as it is, with everybody who waits in its backlog.
    pub(crate) fn begin_closing(&mut self, io: &Io) {
        self.acceptor.paused_until = None;
        self.part_from_shared(io.registry());
        let wait = |listener: &Listener| match listener.refuse_newcomers() {
            OnTheWay::Nobody => Duration::ZERO,
            OnTheWay::Somebody if listener.is_local() => LOCAL_HANDSHAKE,
            OnTheWay::Somebody => HANDSHAKE,
        };
        let longest = self.acceptor.listeners.iter().map(wait).max().unwrap_or_default();
        self.acceptor.closes = Some(io.now() + longest);
    }

    /// The listeners are watched from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn begin_listening(&mut self, registry: &Registry) -> io::Result<()> {
        for (index, listener) in self.acceptor.listeners.iter_mut().enumerate() {
            listener.register(registry, Target::Listener(index).token(), Interest::READABLE)?;
        }
        Ok(())
    }

    pub(crate) fn listeners_mut(&mut self) -> &mut [Listener] {
        &mut self.acceptor.listeners
    }

    /// Closes the sockets that others hold as well.
    fn part_from_shared(&mut self, registry: &Registry) {
        let (shared, own): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.acceptor.listeners).into_iter().partition(Listener::is_shared);
        for mut listener in shared {
            // Before the close, since the socket lives on, and with it its place in `epoll`.
            let _ = listener.deregister(registry);
        }
        self.acceptor.listeners = own;
        for (index, listener) in self.acceptor.listeners.iter_mut().enumerate() {
            // One that is not watched any more is looked at when it is closed.
            let _ = listener.reregister(registry, Target::Listener(index).token(), Interest::READABLE);
        }
    }

    /// Whether the listeners are to be closed now.
    pub(crate) fn closes_now(&self, now: Instant) -> bool {
        self.acceptor.closes.is_some_and(|at| at <= now) && self.acceptor.paused_until.is_none()
    }

    pub(crate) fn stop_listening(&mut self) {
        self.acceptor.closes = None;
        self.acceptor.listeners.clear();
    }
}
