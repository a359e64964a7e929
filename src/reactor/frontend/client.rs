//! One client's connection.

use super::phase::Phase;
use crate::config::Config;
use crate::conn;
use crate::deadlines::deadline_kinds;
use crate::http::proxy_header::Source;
use crate::reactor::crossing::Delivery;
use crate::reactor::io::listen::Peer;
use crate::reactor::io::spool::{Spool, SpoolBudget};
use crate::reactor::io::stream::{Stream, Transfer};
use crate::reactor::io::token::Readiness;
use std::io::IoSlice;
use std::rc::Rc;

deadline_kinds! {
    /// What a client's connection waits for.
    pub(crate) enum ClientDeadline {
        /// A next request.
        Idle,
        /// That the client takes a byte of its answer.
        Take,
        /// The whole head, or the next byte of a body.
        Receive,
        /// The end of a client that was refused.
        Linger,
        /// At a stop: a request that may be on its way; behind the FIN, the client's end.
        Grace,
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(super) stream: Stream,
    pub(super) address: Box<str>,
    pub(super) is_trusted: bool,
    pub(super) conn: conn::Client,
    /// The body of the request that is being read.
    pub(super) body: Spool,
    /// What the client has not taken yet.
    pub(super) out: Spool,
    pub(super) phase: Phase,
    /// The kernel may hold more bytes.
    pub(super) is_readable: bool,
    pub(super) peer: PeerState,
    /// It stands in the list of those who wait for a tick that may make files.
    pub(super) waits_for_file: bool,
}

/// What the kernel has told of a client's end of the connection, read or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PeerState {
    Open,
    /// It has sent its FIN: a short read does not mean that there is no more.
    HalfClosed,
    /// It has reset the connection, or (a Unix peer) closed it altogether.
    Gone,
}

impl PeerState {
    pub(crate) fn of(event: Readiness) -> Self {
        match event {
            Readiness { is_error: true, .. } | Readiness { is_write_closed: true, .. } => PeerState::Gone,
            Readiness { is_read_closed: true, .. } => PeerState::HalfClosed,
            Readiness { .. } => PeerState::Open,
        }
    }
}

impl Client {
    pub(super) fn new(
        stream: Stream,
        peer: Peer,
        conn: conn::Client,
        config: &Config,
        budget: &Rc<SpoolBudget>,
    ) -> Self {
        let (address, is_trusted) = introduce(peer, config);
        Client {
            stream,
            address,
            is_trusted,
            conn,
            body: Spool::new(budget),
            out: Spool::new(budget),
            phase: Phase::Reading,
            is_readable: false,
            peer: PeerState::Open,
            waits_for_file: false,
        }
    }

    /// Its proxy has said who has connected to it. Whether that one is believed hangs on its own address.
    pub(super) fn is_from(&mut self, source: Source, config: &Config) {
        let peer = match source {
            Source::Connection => return,
            Source::Ip(address) => Peer::Ip(address),
            Source::Unix => Peer::Unix,
        };
        (self.address, self.is_trusted) = introduce(peer, config);
    }

    /// Whether bytes that come now can be used.
    pub(super) fn wants_bytes(&self) -> bool {
        matches!(self.phase, Phase::Reading | Phase::Tunnel { .. } | Phase::Lingering)
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// It has gone, and what it has sent through a tunnel before is still being read.
    fn is_deaf(&self) -> bool {
        matches!(self.phase, Phase::Tunnel { .. }) && self.peer == PeerState::Gone && self.out.is_read()
    }

    /// Sends what can be sent at once, and keeps the rest.
    pub(super) fn deliver(&mut self, parts: [&[u8]; 3]) -> Delivery {
        let all: usize = parts.iter().map(|part| part.len()).sum();
        if self.is_deaf() {
            return Delivery::Sent;
        }
        if all == 0 {
            return self.undelivered();
        }
        let mut sent = 0;
        if self.out.is_read() {
            let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
            let mut used = 0;
            for part in parts.iter().filter(|part| !part.is_empty()) {
                slices[used] = IoSlice::new(part);
                used += 1;
            }
            match self.stream.send(&slices[..used]) {
                Transfer::Bytes(bytes) => sent = bytes,
                Transfer::Later => {}
                Transfer::End | Transfer::Gone | Transfer::Reset => return Delivery::Gone,
            }
            if sent == all {
                return Delivery::Sent;
            }
        }
        for part in parts {
            let skipped = sent.min(part.len());
            sent -= skipped;
            self.out.push_all(&part[skipped..]);
        }
        Delivery::Waits { is_full: self.out.is_at_bound() }
    }

    /// Whether earlier bytes still wait.
    pub(super) fn undelivered(&self) -> Delivery {
        if self.out.is_read() { Delivery::Sent } else { Delivery::Waits { is_full: self.out.is_at_bound() } }
    }
}

/// The address that log and worker get of a peer, and whether its word about who is behind it is believed.
fn introduce(peer: Peer, config: &Config) -> (Box<str>, bool) {
    let (address, ip) = match peer {
        Peer::Ip(ip) => (ip.to_string(), Some(ip)),
        Peer::Unix => ("127.0.0.1".to_owned(), None),
    };
    (address.into(), !config.trust_proxy.is_empty() && config.trusts(ip))
}
