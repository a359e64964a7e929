//! After a 101: bytes for the worker, and the ends of both ways.

use super::exchange::{Exchange, Receiving, Sending, Stage};
use super::{Backend, UpstreamDeadline};
use crate::keys::UpstreamKey;
use crate::reactor::io::Io;
use crate::reactor::io::spool::Spool;
use crate::reactor::io::token::Target;
use std::time::Instant;

/// What a tunnel holds of what the worker has not taken; more is left with the client.
const MAX_WAITING_BYTES: u64 = 64 * 1024;

impl Backend {
    /// After a 101.
    pub(crate) fn upgrade(&mut self, upstream: UpstreamKey, io: &Io) {
        if let Some(exchange) = self.exchange_mut(upstream) {
            exchange.enter(Stage::Tunnel { out: Box::new(Spool::new(io.spools())) });
            self.deadlines.arm(upstream.0, UpstreamDeadline::Idle, io.now());
        }
    }

    /// Bytes for a tunnel's worker. Its client is not read while much of this waits, so what finds no room on disk is
    /// little.
    pub(crate) fn push_to_tunnel(&mut self, upstream: UpstreamKey, bytes: &[u8], now: Instant) -> bool {
        let Some(out) = self.exchange_mut(upstream).and_then(Exchange::tunnel_out_mut) else { return false };
        out.push_all(bytes);
        self.deadlines.arm(upstream.0, UpstreamDeadline::Idle, now);
        true
    }

    /// The worker does not keep up, so the client is not read.
    pub(crate) fn is_tunnel_full(&self, upstream: UpstreamKey) -> bool {
        let out = self.exchange(upstream).and_then(Exchange::tunnel_out);
        out.is_some_and(|out| out.unread_bytes() >= MAX_WAITING_BYTES)
    }

    /// There is room in a tunnel again: its client may be read.
    pub(crate) fn resume_tunnels_client(&self, upstream: UpstreamKey, io: &mut Io) {
        if let Some(exchange) = self.exchange(upstream)
            && let (Some(out), Some(client)) = (exchange.tunnel_out(), exchange.client)
            && out.unread_bytes() < MAX_WAITING_BYTES
        {
            io.go_on_with(Target::Client(client));
        }
    }

    /// A tunnel's worker has sent its last byte.
    pub(crate) fn end_receiving(&mut self, upstream: UpstreamKey) {
        if let Some(exchange) = self.exchange_mut(upstream).filter(|exchange| exchange.is_tunnel()) {
            exchange.receiving = Receiving::Ended;
        }
    }

    /// Whether a tunnel's worker has sent its last byte.
    pub(crate) fn has_tunnel_ended(&self, upstream: UpstreamKey) -> bool {
        self.exchange(upstream).is_some_and(Exchange::has_tunnel_ended)
    }

    /// Whether nothing more is to pass. Without a client, a worker that cannot be asked is not waited for: it answers busy
    /// if its handler still runs.
    pub(crate) fn is_tunnel_over(&self, upstream: UpstreamKey, can_be_asked: bool) -> bool {
        self.exchange(upstream).filter(|exchange| exchange.is_tunnel()).is_some_and(|exchange| {
            let is_awaited = exchange.client.is_some() || can_be_asked;
            exchange.sending == Sending::Ended && (exchange.has_tunnel_ended() || !is_awaited)
        })
    }
}
