//! What arrives on a client's connection.

use super::Frontend;
use super::client::{Client, ClientDeadline, PeerState};
use super::files::readable_bytes;
use super::phase::Phase;
use crate::conn::Request;
use crate::conn::client::Event;
use crate::conn::read_buffer::PendingBytes;
use crate::http::Reason;
use crate::http::forward::{ForwardedTrust, Origin};
use crate::http::proxy_header::Fault;
use crate::keys::ClientKey;
use crate::reactor::crossing::Received;
use crate::reactor::io::stream::Transfer;
use crate::reactor::io::token::Target;
use crate::reactor::io::{Io, Stamp};
use crate::reactor::limits::{READ_BYTES, TICK_BYTES};

/// What a client's bytes amount to.
#[derive(Debug)]
pub(crate) enum FromClient {
    /// A whole request.
    Request(Request),
    /// To be answered with this reason; nothing that follows is a request.
    Refused(Reason, Request),
    /// It waits for leave to send its body, and has sent none of it.
    AsksForLeave,
    /// There is no room for its body.
    NoRoom,
    /// So many of the pending bytes are for the other end of its tunnel.
    Tunnel(usize),
    /// Its proxy was to say who has connected to it, and has not: nothing on this connection can be believed. `None`: it
    /// has ended in the middle.
    NoProxyHeader(Option<Fault>),
    /// Nothing more will come, and nothing is owed.
    End,
}

impl Frontend {
    /// How much may be read of it in one tick. What is thrown away behind a refusal keeps others waiting for less.
    pub(crate) fn read_budget(&self, client: ClientKey) -> usize {
        let is_lingering = |entry: &Client| matches!(entry.phase, Phase::Lingering);
        if self.clients.get(client.0).is_some_and(is_lingering) { READ_BYTES } else { TICK_BYTES }
    }

    /// One read. `None`: nothing is there, or nothing can be used, or the tick's budget is used up.
    pub(crate) fn receive(
        &mut self,
        client: ClientKey,
        scratch: &mut [u8],
        budget: &mut usize,
        io: &mut Io,
    ) -> Option<Received> {
        let entry = self.clients.get_mut(client.0)?;
        if !entry.is_readable || !entry.wants_bytes() {
            return None;
        }
        if *budget == 0 {
            io.go_on_with(Target::Client(client));
            return None;
        }
        let most_bytes = match readable_bytes(entry, io.spools()) {
            0 => {
                self.files.wait(client, entry);
                return None;
            }
            bytes => bytes.min(scratch.len()),
        };
        match entry.stream.receive(&mut scratch[..most_bytes]) {
            Transfer::Bytes(bytes) => {
                *budget = budget.saturating_sub(bytes);
                // A short read means drained, which saves a read that would only say so; unless the peer has closed:
                // then the end is still to be read.
                entry.is_readable = bytes == most_bytes || entry.peer != PeerState::Open;
                Some(Received::Bytes(bytes))
            }
            Transfer::Later => {
                entry.is_readable = false;
                None
            }
            Transfer::End => {
                entry.is_readable = false;
                entry.conn.has_ended = true;
                Some(Received::End)
            }
            Transfer::Gone | Transfer::Reset => Some(Received::Gone),
        }
    }

    /// What is not used up of its bytes, the fresh ones behind the kept ones.
    pub(crate) fn pending<'a>(&mut self, client: ClientKey, fresh: &'a mut [u8]) -> Option<PendingBytes<'a>> {
        let entry = self.clients.get_mut(client.0)?;
        Some(PendingBytes::join(entry.conn.read_buffer.take(), fresh))
    }

    /// The next step of a client's machine, up to something that is not the frontend's to do.
    pub(crate) fn advance(
        &mut self,
        client: ClientKey,
        bytes: &mut PendingBytes<'_>,
        io: &mut Io,
    ) -> Option<FromClient> {
        let now = io.now();
        let entry = self.clients.get_mut(client.0)?;
        let is_proxy = |address| self.config.trusts(Some(address));
        while entry.wants_bytes() {
            let Stamp { fresh_id, start_us, buffers } = io.stamp();
            let origin = Origin {
                address: &entry.address,
                trust: if entry.is_trusted {
                    ForwardedTrust::Believed(&is_proxy)
                } else {
                    ForwardedTrust::Ignored
                },
                fresh_id,
                start_us,
            };
            let buffer = || buffers.take();
            let step = entry.conn.advance(bytes.remaining(), origin, self.config.max_body_bytes, buffer, now);
            let event = match step.event {
                Event::More => {
                    bytes.consume(step.consumed);
                    return None;
                }
                Event::ProxyHeader(source) => {
                    entry.is_from(source, &self.config);
                    // As if it had connected just now.
                    self.deadlines.arm(client.0, self.idle_kind, now);
                    None
                }
                Event::NoProxyHeader(fault) => return Some(FromClient::NoProxyHeader(fault)),
                Event::Tunnel(range) => return Some(FromClient::Tunnel(range.len())),
                Event::Body(range) => match entry.body.push(&bytes.remaining()[range]) {
                    Ok(()) => None,
                    Err(_) => Some(FromClient::NoRoom),
                },
                // A client that has sent its body already needs no leave.
                Event::Continue if bytes.remaining().len() == step.consumed => Some(FromClient::AsksForLeave),
                Event::Continue => None,
                Event::Request(request) => {
                    entry.phase.enter(Phase::Dispatching);
                    self.deadlines.disarm(client.0);
                    Some(FromClient::Request(request))
                }
                Event::Refused(reason, request) => Some(FromClient::Refused(reason, request)),
                Event::End => Some(FromClient::End),
            };
            bytes.consume(step.consumed);
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Keeps what is not used up. The head's clock starts with its first byte, even behind a request that was answered
    /// just now; the body's with each byte.
    pub(crate) fn keep(&mut self, client: ClientKey, bytes: PendingBytes<'_>, io: &Io) {
        let Some(entry) = self.clients.get_mut(client.0) else { return };
        entry.conn.read_buffer.keep(bytes);
        let is_timed = self.deadlines.armed(client.0) == Some(ClientDeadline::Receive);
        let has_begun = entry.conn.is_receiving() && !is_timed;
        if matches!(entry.phase, Phase::Reading) && (has_begun || entry.conn.is_in_body()) {
            self.deadlines.arm(client.0, ClientDeadline::Receive, io.now());
        }
    }
}
