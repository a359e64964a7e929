//! The backend alone, over scripted connections to workers.

mod connections;
mod deadlines;
mod exchanges;
mod tunnels;

use super::exchange::Exchange;
use super::*;
use crate::conn::read_buffer::PendingBytes;
use crate::reactor::crossing::Received;
use crate::reactor::endpoint::Endpoint;
use crate::reactor::io::token::Target;
use crate::reactor::simulation::rooms::{config, io, job, ms, pass};
use crate::reactor::simulation::wire::{self, Shared};
use std::path::PathBuf;

const WISH: Wish = Wish::Answer;
const CLIENT: ClientKey = ClientKey(7);
const WORKER: WorkerKey = WorkerKey(0);
const OTHER: WorkerKey = WorkerKey(1);

/// Short timeouts that differ.
const TIMEOUTS: &str =
    "--read-timeout-ms=500 --idle-timeout-ms=3000 --drain-timeout-ms=1700 --connect-timeout-ms=40";

/// A backend with two workers, of which the first one listens.
struct Room {
    backend: Backend,
    io: Io,
    endpoint: Endpoint,
}

impl Room {
    fn new() -> Self {
        let path = PathBuf::from("/nonexistent/worker");
        wire::listen_at(&path);
        let mut backend = Backend::new(config(TIMEOUTS));
        backend.add(WORKER);
        backend.add(OTHER);
        Room { backend, io: io(), endpoint: Endpoint::Unix(path) }
    }

    fn path(&self) -> &std::path::Path {
        self.endpoint.path().expect("a socket")
    }

    /// A request begins on a connection to that worker.
    fn begin(&mut self, worker: WorkerKey, line: &str, body: &[u8]) -> UpstreamKey {
        let upstream = self.backend.take_upstream(worker, WISH).expect("a connection");
        self.backend.begin(upstream, CLIENT, job(line, body, &self.io), self.io.now());
        upstream
    }

    fn send(&mut self, upstream: UpstreamKey) -> Sent {
        self.backend.send(upstream, &self.endpoint, &mut self.io)
    }

    /// A request is sent, and the worker's end of its connection.
    fn ask(&mut self, line: &str, body: &[u8]) -> (UpstreamKey, Shared) {
        let upstream = self.begin(WORKER, line, body);
        assert_eq!(self.send(upstream), Sent::Fine);
        (upstream, self.connected())
    }

    /// The worker's end of the connection that was made last.
    fn connected(&self) -> Shared {
        wire::accept_at(self.path()).pop().expect("a new connection")
    }

    /// Reads once what the worker has said.
    fn read(&mut self, upstream: UpstreamKey) -> Option<Piece> {
        let mut scratch = [0; 64];
        let mut budget = 64;
        let (received, _) = self.backend.receive(upstream, &mut scratch, &mut budget, &mut self.io)?;
        let Received::Bytes(bytes) = received else { return None };
        let mut pending: PendingBytes<'_> = self.backend.pending(upstream, &mut scratch[..bytes])?;
        let piece = self.backend.advance(upstream, &mut pending, &mut Vec::new(), &self.io)?;
        pending.consume(piece.consumed);
        self.backend.keep(upstream, pending);
        Some(piece)
    }

    /// The worker says something, which is read.
    fn hear(&mut self, upstream: UpstreamKey, wire: &Shared, text: &str) -> Piece {
        wire.borrow_mut().send(text.as_bytes());
        self.read(upstream).expect("something to read")
    }

    /// A request over which a tunnel was opened.
    fn tunnel(&mut self) -> (UpstreamKey, Shared) {
        let (upstream, wire) = self.ask("GET /tunnel HTTP/1.1", b"");
        self.backend.upgrade(upstream, &self.io);
        (upstream, wire)
    }

    fn exchange(&self, upstream: UpstreamKey) -> &Exchange {
        self.backend.exchange(upstream).expect("an exchange")
    }

    fn due_in(&self, upstream: UpstreamKey) -> Option<Duration> {
        self.backend.deadlines.due(upstream.0).map(|due| due - self.io.now())
    }
}

const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
