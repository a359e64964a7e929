//! A worker's connection: made when one is needed.

use super::exchange::{Exchange, Stage};
use super::{Backend, UpstreamDeadline};
use crate::conn;
use crate::keys::UpstreamKey;
use crate::reactor::endpoint::{Endpoint, loopback};
use crate::reactor::io::Io;
use crate::reactor::io::listen::is_shortage;
use crate::reactor::io::stream::{Stream, UnixStream};
use crate::reactor::io::token::Target;
use mio::Interest;
use std::io::{self, ErrorKind};

/// Why a worker has no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoConnection {
    /// Its backlog is full, or this side lacks something that comes back, a descriptor say.
    Later,
    /// Nobody listens on its socket.
    Refused,
    /// This side may not, or cannot at all.
    Failed,
}

impl NoConnection {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            // A full backlog says so (puma/puma#1449).
            ErrorKind::WouldBlock | ErrorKind::Interrupted => NoConnection::Later,
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => NoConnection::Refused,
            _ if is_shortage(error) => NoConnection::Later,
            _ => NoConnection::Failed,
        }
    }
}

/// What came of starting an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Started {
    /// Its request is to be sent.
    Connected,
    /// It is tried again to connect, after a moment.
    Waits,
    Failed(NoConnection),
}

impl Backend {
    /// Has an exchange begin on its connection, over a new one where there is none.
    pub(crate) fn start(&mut self, upstream: UpstreamKey, endpoint: &Endpoint, io: &Io) -> Started {
        let now = io.now();
        match self.connect(upstream, endpoint, io) {
            Ok(()) => {}
            Err(NoConnection::Later) => {
                let connect_timeout = self.config.connect_timeout;
                let Some(entry) = self.get_mut(upstream) else { return Started::Waits };
                let since = *entry.connecting_since.get_or_insert(now);
                // Who is asked whether it is idle is asked again by a clock of its own.
                let is_asking = entry.exchange.as_ref().is_some_and(Exchange::is_asking_idle);
                if !is_asking && now.duration_since(since) < connect_timeout {
                    self.arm(upstream, UpstreamDeadline::Connect, now);
                    return Started::Waits;
                }
                entry.connecting_since = None;
                entry.stream = None;
                return Started::Failed(NoConnection::Later);
            }
            Err(why) => return Started::Failed(why),
        }
        let Some(entry) = self.upstreams.get_mut(upstream) else { return Started::Connected };
        entry.connecting_since = None;
        let Some(exchange) = &mut entry.exchange else { return Started::Connected };
        if exchange.is_reconnecting() {
            exchange.enter(Stage::Serving);
        }
        entry.conn.ask(exchange.job.request.context);
        // Of a worker that is asked whether it is idle the stall's clock runs.
        if !exchange.is_asking_idle() {
            self.deadlines.arm(upstream.0, UpstreamDeadline::Read, now);
        }
        Started::Connected
    }

    /// Makes sure that there is a connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn connect(
        &mut self,
        upstream: UpstreamKey,
        endpoint: &Endpoint,
        io: &Io,
    ) -> Result<(), NoConnection> {
        let result = self.try_connect(upstream, endpoint, io);
        if result.is_err_and(|why| why != NoConnection::Later)
            && let Some(entry) = self.get_mut(upstream)
        {
            entry.stream = None;
        }
        result
    }

    fn try_connect(
        &mut self,
        upstream: UpstreamKey,
        endpoint: &Endpoint,
        io: &Io,
    ) -> Result<(), NoConnection> {
        let Some(entry) = self.get_mut(upstream) else {
            return Err(NoConnection::Failed);
        };
        if entry.connecting_since.is_some()
            && let Some(stream) = &entry.stream
        {
            return match stream.is_connected() {
                Ok(true) => Ok(()),
                Ok(false) => Err(NoConnection::Later),
                Err(error) => Err(NoConnection::of(&error)),
            };
        }
        if entry.stream.is_some() {
            return Ok(());
        }
        let stream = match endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Endpoint::Loopback { port, is_ipv6 } => Stream::connect(loopback(*port, *is_ipv6)),
        };
        let mut stream = stream.map_err(|error| NoConnection::of(&error))?;
        // Not for writing: a Unix socket that is watched for room reports each time that its peer reads.
        let token = Target::Upstream(upstream).token();
        io.registry()
            .register(&mut stream, token, Interest::READABLE)
            .map_err(|error| NoConnection::of(&error))?;
        let is_connected = stream.is_connected();
        entry.stream = Some(stream);
        entry.is_closing = false;
        entry.is_watched_for_room = false;
        entry.conn = conn::Worker::default();
        match is_connected {
            Ok(true) => Ok(()),
            // Over TCP a full backlog does not say so: the connection comes about when there is room.
            Ok(false) => Err(NoConnection::Later),
            Err(error) => Err(NoConnection::of(&error)),
        }
    }
}
