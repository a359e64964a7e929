//! What goes to a worker.

use super::exchange::Sending;
use super::link::Link;
use super::{Backend, NoConnection};
use crate::http::Reason;
use crate::keys::UpstreamKey;
use crate::reactor::endpoint::Endpoint;
use crate::reactor::io::Io;
use crate::reactor::io::spool::{Broken, Written};
use crate::reactor::io::stream::{Transfer, attempt};
use crate::reactor::io::token::Target;
use crate::reactor::limits::TICK_BYTES;
use mio::Interest;
use std::io::{IoSlice, Write};

/// What came of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is out, or waits for room.
    Fine,
    /// It is tried again to connect, after a moment.
    Waits,
    NotConnected(NoConnection),
    /// The rest cannot be given to the worker, which is not to blame.
    Trouble(Reason),
    /// A tunnel's way to its worker is shut.
    TunnelShut,
}

impl Backend {
    /// Writes as much of the request as the worker takes, over a new connection where there is none.
    pub(crate) fn send(&mut self, upstream: UpstreamKey, endpoint: &Endpoint, io: &mut Io) -> Sent {
        if self.exchange(upstream).is_some_and(|exchange| exchange.sending == Sending::NotBegun) {
            match self.begin_sending(upstream, endpoint, io) {
                Ok(()) => {}
                Err(None) => return Sent::Waits,
                Err(Some(why)) => return Sent::NotConnected(why),
            }
        }
        let Some(entry) = self.get_mut(upstream) else { return Sent::Fine };
        let (Link::Open(socket), Some(exchange)) = (&mut entry.link, &mut entry.exchange) else {
            return Sent::Fine;
        };
        let stream = &mut socket.stream;
        let mut is_full = false;
        let mut trouble = None;
        let mut failed = None;
        while !exchange.is_sent() && exchange.sending != Sending::Ended && !is_full {
            let head = &exchange.job.request.head[exchange.head_sent_bytes..];
            let body = exchange.job.body.memory();
            if head.is_empty() && body.is_empty() {
                match exchange.job.body.write_to(stream, TICK_BYTES) {
                    Ok(Written::All) => {}
                    Ok(Written::PeerIsFull) => is_full = true,
                    Ok(Written::BudgetSpent) => {
                        io.go_on_with(Target::Upstream(upstream));
                        break;
                    }
                    Err(broken @ (Broken::Peer | Broken::Reset)) => {
                        exchange.sending = Sending::Ended;
                        failed = Some(broken == Broken::Reset);
                    }
                    Err(Broken::Spool) => {
                        exchange.sending = Sending::Ended;
                        trouble = Some(Reason::SpoolFull);
                    }
                }
                continue;
            }
            let sent = attempt(|| match (head, body) {
                (head, []) => stream.write(head),
                (head, body) => stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]),
            });
            match sent {
                Transfer::Bytes(bytes) => {
                    let of_head = bytes.min(head.len());
                    exchange.head_sent_bytes += of_head;
                    exchange.job.body.consume(bytes - of_head);
                }
                Transfer::Later => is_full = true,
                // Whatever it has answered is still to be read: a refusal may stand there.
                broken @ (Transfer::End | Transfer::Gone | Transfer::Reset) => {
                    exchange.sending = Sending::Ended;
                    failed = Some(broken == Transfer::Reset);
                }
            }
        }
        if !is_full
            && exchange.sending != Sending::Ended
            && let Some(out) = exchange.tunnel_out_mut()
        {
            match out.write_to(stream, TICK_BYTES) {
                Ok(Written::All) => out.clear(),
                Ok(Written::PeerIsFull) => is_full = true,
                Ok(Written::BudgetSpent) => io.go_on_with(Target::Upstream(upstream)),
                Err(Broken::Peer | Broken::Reset | Broken::Spool) => exchange.sending = Sending::Ended,
            }
        }
        if exchange.sending == Sending::Ending
            && exchange.is_sent()
            && exchange.tunnel_out().is_none_or(|out| out.is_read())
        {
            stream.shutdown_write();
            exchange.sending = Sending::Ended;
        }
        if let Some(is_reset) = failed {
            socket.note_failed_write(is_reset);
        }
        let stream = &mut socket.stream;
        let is_tunnel_shut = exchange.sending == Sending::Ended && exchange.is_tunnel();
        if is_full != socket.is_watched_for_room {
            socket.is_watched_for_room = is_full;
            let interests =
                if is_full { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let token = Target::Upstream(upstream).token();
            if io.registry().reregister(stream, token, interests).is_err() {
                trouble = trouble.or(Some(Reason::ConnectFailed));
            }
        }
        match trouble {
            Some(reason) => Sent::Trouble(reason),
            None if is_tunnel_shut => Sent::TunnelShut,
            None => Sent::Fine,
        }
    }

    /// Tells the worker that nobody waits: it reads the end of its connection, at once.
    pub(crate) fn shut_down_sending(&mut self, upstream: UpstreamKey) {
        if let Some(entry) = self.get_mut(upstream)
            && let Some(socket) = entry.link.open()
        {
            socket.stream.shutdown_write();
            if let Some(exchange) = &mut entry.exchange {
                // Such a connection serves no second request.
                exchange.sending = Sending::Ended;
            }
        }
    }

    /// The same behind the last byte that is still to be sent. `true`: it is to be sent now.
    pub(crate) fn end_sending(&mut self, upstream: UpstreamKey) -> bool {
        let exchange = self.exchange_mut(upstream).filter(|exchange| exchange.sending == Sending::Open);
        exchange.map(|exchange| exchange.sending = Sending::Ending).is_some()
    }

    /// Whether more may be sent to the worker.
    pub(crate) fn is_sending_open(&self, upstream: UpstreamKey) -> bool {
        self.exchange(upstream).is_some_and(|exchange| exchange.sending == Sending::Open)
    }
}
