//! A worker's connection: made when one is needed.

use super::exchange::{Exchange, Sending, Stage};
use super::link::{Link, Socket};
use super::upstreams::Upstream;
use super::{Backend, UpstreamDeadline};
use crate::keys::UpstreamKey;
use crate::reactor::endpoint::{Endpoint, loopback};
use crate::reactor::io::Io;
use crate::reactor::io::listen::is_shortage;
use crate::reactor::io::stream::{Stream, UnixStream};
use crate::reactor::io::token::Target;
use mio::Interest;
use std::io::{self, ErrorKind};
use std::time::Instant;

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
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            // A full backlog says so (puma/puma#1449).
            ErrorKind::WouldBlock | ErrorKind::Interrupted => NoConnection::Later,
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => NoConnection::Refused,
            _ if is_shortage(error) => NoConnection::Later,
            _ => NoConnection::Failed,
        }
    }
}

impl Backend {
    /// Has an exchange begin on its connection, over a new one where there is none.
    ///
    /// # Errors
    /// Why it cannot; `None`: it is tried again to connect, after a moment.
    pub(super) fn begin_sending(
        &mut self,
        upstream: UpstreamKey,
        endpoint: &Endpoint,
        io: &Io,
    ) -> Result<(), Option<NoConnection>> {
        let now = io.now();
        let entry = self.upstreams.get_mut(upstream).ok_or(None)?;
        if let Err(why) = entry.connect(upstream, endpoint, io) {
            // Who is asked whether it is idle is asked again by a clock of its own.
            let is_asking = entry.exchange.as_ref().is_some_and(Exchange::is_asking_idle);
            if why == NoConnection::Later
                && let Link::Connecting { since, .. } = entry.link
                && !is_asking
                && now.duration_since(since) < self.config.connect_timeout
            {
                self.deadlines.arm(upstream.0, UpstreamDeadline::Connect, now);
                return Err(None);
            }
            entry.close();
            return Err(Some(why));
        }
        let exchange = entry.exchange.as_mut().ok_or(None)?;
        if exchange.is_reconnecting() {
            exchange.enter(Stage::Serving);
        }
        exchange.sending = Sending::Open;
        entry.conn.ask(exchange.job.request.context);
        // Of a worker that is asked whether it is idle the stall's clock runs.
        if !exchange.is_asking_idle() {
            self.deadlines.arm(upstream.0, UpstreamDeadline::Read, now);
        }
        Ok(())
    }

    /// Connects before there is a request. If that fails, it is tried again with the first one.
    pub(crate) fn connect_ahead(&mut self, upstream: UpstreamKey, endpoint: &Endpoint, io: &Io) {
        if let Some(entry) = self.get_mut(upstream)
            && entry.connect(upstream, endpoint, io).is_err()
        {
            entry.close();
        }
    }
}

impl Upstream {
    /// Makes sure that there is a connection.
    ///
    /// # Errors
    /// Why there is none; after [`NoConnection::Later`] it is still wanted.
    fn connect(&mut self, key: UpstreamKey, endpoint: &Endpoint, io: &Io) -> Result<(), NoConnection> {
        let since = match &mut self.link {
            Link::Open(_) => return Ok(()),
            Link::Closed => io.now(),
            Link::Connecting { since, stream } => {
                let since = *since;
                if let Some(stream) = stream.take() {
                    return self.go_on_connecting(since, stream);
                }
                since
            }
        };
        match open_stream(key, endpoint, io) {
            Ok(stream) => self.go_on_connecting(since, stream),
            Err(error) => {
                self.link.enter(Link::Connecting { since, stream: None });
                Err(NoConnection::of(&error))
            }
        }
    }

    fn go_on_connecting(&mut self, since: Instant, stream: Stream) -> Result<(), NoConnection> {
        match stream.is_connected() {
            Ok(true) => {
                self.link.enter(Link::Open(Socket::new(stream)));
                Ok(())
            }
            // Over TCP a full backlog does not say so: the connection comes about when there is room.
            Ok(false) => {
                self.link.enter(Link::Connecting { since, stream: Some(stream) });
                Err(NoConnection::Later)
            }
            Err(error) => {
                self.link.enter(Link::Connecting { since, stream: None });
                Err(NoConnection::of(&error))
            }
        }
    }
}

fn open_stream(key: UpstreamKey, endpoint: &Endpoint, io: &Io) -> io::Result<Stream> {
    let mut stream = match endpoint {
        Endpoint::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        Endpoint::Loopback { port, is_ipv6 } => Stream::connect(loopback(*port, *is_ipv6))?,
    };
    io.registry().register(&mut stream, Target::Upstream(key).token(), Interest::READABLE)?;
    Ok(stream)
}
