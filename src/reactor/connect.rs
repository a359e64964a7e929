//! A worker's connection: made when one is needed, and closed.

use super::Reactor;
use super::entry::{Endpoint, Sending};
use super::listen::is_shortage;
use super::ports;
use super::stream::{Stream, UnixStream};
use super::token::Target;
use crate::keys::WorkerKey;
use mio::Interest;
use std::io::{self, ErrorKind};

/// Why a worker has no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoConnection {
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

impl Reactor {
    /// Makes sure that the worker has a connection.
    ///
    /// # Errors
    /// Why it has none.
    pub(super) fn connect(&mut self, worker: WorkerKey) -> Result<(), NoConnection> {
        let result = self.try_connect(worker);
        if result.is_err_and(|why| why != NoConnection::Later)
            && let Some(entry) = self.workers.get_mut(worker.0)
        {
            entry.stream = None;
            if !entry.has_joined {
                entry.endpoint.try_other_address();
            }
        }
        result
    }

    fn try_connect(&mut self, worker: WorkerKey) -> Result<(), NoConnection> {
        let Some(entry) = self.workers.get_mut(worker.0) else {
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
        let stream = match &entry.endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Endpoint::Loopback { port, is_ipv6 } => Stream::connect(ports::loopback(*port, *is_ipv6)),
        };
        let mut stream = stream.map_err(|error| NoConnection::of(&error))?;
        // Not for writing: a Unix socket that is watched for room reports each time that its peer reads.
        let token = Target::Worker(worker).token();
        self.poll
            .registry()
            .register(&mut stream, token, Interest::READABLE)
            .map_err(|error| NoConnection::of(&error))?;
        let is_connected = stream.is_connected();
        entry.stream = Some(stream);
        entry.is_closing = false;
        entry.is_watched_for_room = false;
        entry.conn = crate::conn::Worker::default();
        match is_connected {
            Ok(true) => Ok(()),
            // Over TCP a full backlog does not say so: the connection comes about when there is room.
            Ok(false) => Err(NoConnection::Later),
            Err(error) => Err(NoConnection::of(&error)),
        }
    }

    pub(super) fn close_connection(&mut self, worker: WorkerKey) {
        if let Some(entry) = self.workers.get_mut(worker.0) {
            entry.stream = None;
            entry.conn = crate::conn::Worker::default();
            entry.is_closing = false;
        }
    }

    /// Tells the worker that nobody waits: it reads the end of its connection, at once.
    pub(super) fn shut_down_for_sending(&mut self, worker: WorkerKey) {
        if let Some(entry) = self.workers.get_mut(worker.0)
            && let Some(stream) = &entry.stream
        {
            stream.shutdown_write();
            if let Some(exchange) = &mut entry.exchange {
                // Such a connection serves no second request.
                exchange.sending = Sending::Ended;
            }
        }
    }

    /// The same behind the last byte that is still to be sent.
    pub(super) fn end_sending(&mut self, worker: WorkerKey) {
        let exchange = self.workers.get_mut(worker.0).and_then(|entry| entry.exchange.as_mut());
        if let Some(exchange) = exchange.filter(|exchange| exchange.sending == Sending::Open) {
            exchange.sending = Sending::Ending;
            self.send_request(worker);
        }
    }
}
