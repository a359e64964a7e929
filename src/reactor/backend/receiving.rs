//! What comes from a worker.

use super::Backend;
use super::UpstreamDeadline;
use super::exchange::Receiving;
use super::link::Ending;
use crate::conn::read_buffer::PendingBytes;
use crate::conn::worker::{Outcome, Step};
use crate::keys::{ClientKey, UpstreamKey};
use crate::reactor::crossing::Received;
use crate::reactor::io::Io;
use crate::reactor::io::stream::{Transfer, attempt};
use crate::reactor::io::token::Target;
use std::io::Read;
use std::ops::Range;

/// What one look at a worker's bytes amounts to. For the client: what was written to the prefix, then `data` of the
/// pending bytes, then `suffix`.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Who gets it; `None`: nobody.
    pub client: Option<ClientKey>,
    pub consumed: usize,
    pub data: Range<usize>,
    pub suffix: &'static [u8],
    /// The final head's status, in the piece that has it.
    pub status: Option<u16>,
    pub outcome: Outcome,
    /// It answers a question of the server's own.
    pub is_of_question: bool,
}

impl Backend {
    /// One read; `true`: the kernel has no more. `None`: nothing is there, or the worker is held back, or the budget is
    /// used up.
    pub(crate) fn receive(
        &mut self,
        upstream: UpstreamKey,
        scratch: &mut [u8],
        budget: &mut usize,
        io: &mut Io,
    ) -> Option<(Received, bool)> {
        let entry = self.get_mut(upstream)?;
        if entry.exchange.as_ref().is_some_and(|exchange| !exchange.is_read()) {
            return None;
        }
        let socket = entry.link.open_mut()?;
        if *budget == 0 {
            io.go_on_with(Target::Upstream(upstream));
            return None;
        }
        match attempt(|| socket.stream.read(scratch)) {
            Transfer::Bytes(bytes) => {
                *budget = budget.saturating_sub(bytes);
                Some((Received::Bytes(bytes), bytes < scratch.len() && !socket.is_closing))
            }
            Transfer::Later => None,
            Transfer::End => match socket.ending {
                Ending::Reset => Some((Received::Gone, true)),
                // The event that is on its way tells whether it is a reset that the last `sendfile` has met.
                Ending::Untold
                    if socket.stream.loses_by_a_reset()
                        && entry.exchange.as_ref().is_some_and(|exchange| exchange.unsent_bytes() > 0) =>
                {
                    None
                }
                Ending::Orderly | Ending::Untold => Some((Received::End, true)),
            },
            Transfer::Gone | Transfer::Reset => Some((Received::Gone, true)),
        }
    }

    /// What is not used up of its bytes, the fresh ones behind the kept ones.
    pub(crate) fn pending<'a>(
        &mut self,
        upstream: UpstreamKey,
        fresh: &'a mut [u8],
    ) -> Option<PendingBytes<'a>> {
        let entry = self.get_mut(upstream)?;
        Some(PendingBytes::join(entry.conn.read_buffer.take(), fresh))
    }

    /// Looks at a worker's bytes. `prefix` gets what goes to the client before the data.
    pub(crate) fn advance(
        &mut self,
        upstream: UpstreamKey,
        bytes: &mut PendingBytes<'_>,
        prefix: &mut Vec<u8>,
        io: &Io,
    ) -> Option<Piece> {
        let entry = self.get_mut(upstream)?;
        let Step { consumed, data, suffix, answer, outcome } =
            entry.conn.receive(bytes.remaining(), io.date_line(), prefix);
        let status = answer.map(|answer| answer.status);
        let mut client = None;
        let mut is_of_question = false;
        if let Some(exchange) = &mut entry.exchange {
            if answer.is_some() && !matches!(outcome, Outcome::Busy { .. }) {
                exchange.answer = answer;
            }
            exchange.body_bytes += data.len() as u64;
            client = exchange.client;
            is_of_question = exchange.is_question();
        }
        Some(Piece { client, consumed, data, suffix, status, outcome, is_of_question })
    }

    /// Keeps what is not used up.
    pub(crate) fn keep(&mut self, upstream: UpstreamKey, bytes: PendingBytes<'_>) {
        if let Some(entry) = self.get_mut(upstream) {
            entry.conn.read_buffer.keep(bytes);
        }
    }

    /// The client has not taken all: whether the worker is held back.
    pub(crate) fn hold_back(&mut self, upstream: UpstreamKey, is_full: bool) {
        if let Some(exchange) = self.exchange_mut(upstream)
            && matches!(exchange.receiving, Receiving::Open | Receiving::HeldBack)
        {
            exchange.receiving = if is_full { Receiving::HeldBack } else { Receiving::Open };
        }
    }

    /// There is room again for what a worker says. Its time starts anew: it could not write.
    pub(crate) fn release_held_back(&mut self, upstream: UpstreamKey, io: &mut Io) {
        let Some(exchange) = self.exchange_mut(upstream).filter(|exchange| exchange.is_held_back()) else {
            return;
        };
        exchange.receiving = Receiving::Open;
        io.go_on_with(Target::Upstream(upstream));
        if let Some(kind @ (UpstreamDeadline::Read | UpstreamDeadline::Idle)) = self.armed(upstream) {
            self.arm(upstream, kind, io.now());
        }
    }
}
