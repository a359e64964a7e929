//! Listeners, and who is let in.

use super::Frontend;
use super::client::{Client, ClientDeadline};
use super::phase::Phase;
use crate::keys::ClientKey;
use crate::reactor::io::Io;
use crate::reactor::io::listen::{Accepted, Listener, Peer};
use crate::reactor::io::stream::Stream;
use crate::reactor::io::token::Target;
use mio::Interest;
use std::io;
use std::time::{Duration, Instant};

/// Accepting pauses for so long when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Acceptor {
    listeners: Vec<Listener>,
    paused_until: Option<Instant>,
    is_short_of_descriptors: bool,
    /// So many are kept free of clients.
    kept_descriptors: u64,
}

impl Acceptor {
    pub(super) fn new(listeners: Vec<Listener>, kept_descriptors: u64) -> Self {
        Acceptor { listeners, paused_until: None, is_short_of_descriptors: false, kept_descriptors }
    }

    pub(super) fn is_listening(&self) -> bool {
        !self.listeners.is_empty()
    }

    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
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

    /// Whether another client could take a descriptor that is needed elsewhere, beside those that `others` have.
    pub(crate) fn is_near_descriptor_bound(&self, others: usize, io: &Io) -> bool {
        let taken = self.clients.len() + io.spools().files() + others;
        taken as u64 + self.acceptor.kept_descriptors >= io.descriptors()
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// The kernel does not watch it; it is closed.
    pub(crate) fn admit(&mut self, stream: Stream, peer: Peer, io: &Io) -> Result<(), io::Error> {
        let (address, ip) = match peer {
            Peer::Ip(ip) => (ip.to_string(), Some(ip)),
            Peer::Unix => ("127.0.0.1".to_owned(), None),
        };
        let is_trusted = !self.config.trust_proxy.is_empty() && self.config.trusts(ip);
        let entry = Client::new(stream, address.into(), is_trusted, io.spools());
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
        self.mark_idle(client, io.now());
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

    /// An idle connection is about to be closed: it is read once more, since a request that has arrived is served.
    pub(crate) fn look_once_more(&mut self, client: ClientKey) {
        self.deadlines.disarm(client.0);
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.is_readable = true;
        }
    }

    /// Closes it if it is idle still; whoever was answered meanwhile, or has begun a request, has another deadline.
    pub(crate) fn close_if_idle(&mut self, client: ClientKey) -> bool {
        let is_timed = self.deadlines.armed(client.0).is_some();
        let is_idle = |entry: &Client| matches!(entry.phase, Phase::Reading) && entry.conn.is_idle();
        let closes = !is_timed && self.clients.get(client.0).is_some_and(is_idle);
        if closes {
            self.close(client);
        }
        closes
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

    /// No new connection finds a way in; those that have are accepted still.
    pub(crate) fn close_paths(&mut self) {
        self.acceptor.paused_until = None;
        for listener in &self.acceptor.listeners {
            listener.close_path();
        }
    }

    pub(crate) fn stop_listening(&mut self) {
        self.acceptor.listeners.clear();
    }
}
