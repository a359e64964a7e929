//! Who is let in on the control socket, on the metrics listeners and on those of the page.

use super::viewers::MAX_VIEWERS;
use super::{
    Connection, ControlDeadline, ControlPeer, MAX_CONTROL, MAX_PAGE_CONNECTIONS, MAX_SCRAPERS, Phase,
    VIEWER_SEND_BUFFER_BYTES,
};
use crate::conn;
use crate::reactor::admin::Admin;
use crate::reactor::io::Io;
use crate::reactor::io::listen::Accepted;
use crate::reactor::io::stream::Stream;
use crate::reactor::io::token::Target;
use crate::reactor::limits::MAX_PER_TICK;
use crate::reactor::observer::Observer;
use mio::Interest;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use std::io;
use std::time::{Duration, Instant};

impl Admin {
    /// Takes the connections that the kernel has ready on one of the control sockets, as many as a tick may take: verbs
    /// keep no worker from its join.
    pub(crate) fn accept_control(
        &mut self,
        index: usize,
        io: &mut Io,
        observer: &mut Observer,
    ) -> Result<(), io::Error> {
        for _ in 0..MAX_PER_TICK {
            let is_at_bound = self.connections.is_at_bound(share_of_descriptors(8, MAX_CONTROL, io));
            let idle = if is_at_bound { self.connections.idle_control() } else { None };
            let idle = idle.filter(|key| self.has_been_idle(*key, io));
            if is_at_bound && idle.is_none() {
                // Looked at again when one of them is closed, and each has a deadline.
                self.connections.is_full = true;
                return Ok(());
            }
            let Some(listener) = self.listeners.get(index) else { return Ok(()) };
            let stream = match listener.accept() {
                Accepted::Peer(stream, _) => stream,
                Accepted::Nobody => return Ok(()),
                Accepted::GoneAlready => continue,
                Accepted::NotNow(error) => return Err(error),
            };
            if let Some(idle) = idle {
                self.close(idle);
            }
            let own_user = nix::unistd::geteuid().as_raw();
            let peer = match getsockopt(&stream, sockopt::PeerCredentials) {
                Ok(peer) if peer.uid() == own_user => ControlPeer::Process { pid: peer.pid() },
                Ok(peer) if peer.uid() == 0 => ControlPeer::Root,
                Ok(peer) => {
                    log::warn!("the control socket: user {} is refused", peer.uid());
                    ControlPeer::Stranger
                }
                Err(error) => {
                    log::warn!("the control socket: an unknown user is refused: {error}");
                    ControlPeer::Stranger
                }
            };
            self.watch(stream, peer, io, observer);
            self.connections.has_newcomers = true;
        }
        io.go_on_with(Target::ControlListener(index));
        Ok(())
    }

    /// Whoever has just come is about to say something.
    fn has_been_idle(&self, key: usize, io: &Io) -> bool {
        const IDLE_FOR: Duration = Duration::from_millis(100);
        let due = self.deadlines.due(key);
        due.is_some_and(|due| io.now() + self.config.idle_timeout >= due + IDLE_FOR)
    }

    /// Takes connections of those who ask for metrics alone.
    pub(crate) fn accept_scraper(
        &mut self,
        index: usize,
        io: &mut Io,
        observer: &mut Observer,
    ) -> Result<(), io::Error> {
        for _ in 0..MAX_PER_TICK {
            let Some(listener) = self.metrics_listeners.get(index) else { return Ok(()) };
            let stream = match listener.accept() {
                Accepted::Peer(stream, _) => stream,
                Accepted::Nobody => return Ok(()),
                Accepted::GoneAlready => continue,
                Accepted::NotNow(error) => return Err(error),
            };
            let bound = share_of_descriptors(16, MAX_SCRAPERS, io);
            if let Some(key) = self.connections.one_to_close(ControlPeer::Scraper, bound) {
                self.close(key);
            }
            self.watch(stream, ControlPeer::Scraper, io, observer);
        }
        io.go_on_with(Target::MetricsListener(index));
        Ok(())
    }

    /// Takes connections of those who look at the page.
    pub(crate) fn accept_viewer(
        &mut self,
        index: usize,
        io: &mut Io,
        observer: &mut Observer,
    ) -> Result<(), io::Error> {
        for _ in 0..MAX_PER_TICK {
            let Some(listener) = self.page_listeners.get(index) else { return Ok(()) };
            let stream = match listener.accept() {
                Accepted::Peer(stream, _) => stream,
                Accepted::Nobody => return Ok(()),
                Accepted::GoneAlready => continue,
                Accepted::NotNow(error) => return Err(error),
            };
            let bound = share_of_descriptors(16, MAX_PAGE_CONNECTIONS, io);
            if let Some(key) = self.connections.one_to_close(ControlPeer::Viewer, bound) {
                self.close(key);
            }
            // If that fails, the kernel keeps more of what a viewer does not take.
            let _ = setsockopt(&stream, sockopt::SndBuf, &VIEWER_SEND_BUFFER_BYTES);
            self.watch(stream, ControlPeer::Viewer, io, observer);
        }
        io.go_on_with(Target::PageListener(index));
        Ok(())
    }

    /// How many may look at the page at once.
    pub(crate) fn max_viewers(&self, io: &Io) -> usize {
        MAX_VIEWERS.min(share_of_descriptors(32, MAX_VIEWERS, io))
    }

    /// Whether a deadline of the fleet's is put off for one tick: the join that it waits for may lie in a connection that
    /// has just been accepted, where the server could not run for a while.
    pub(crate) fn puts_off(&mut self, due: Instant) -> bool {
        std::mem::take(&mut self.connections.has_newcomers)
            && self.connections.put_off.replace(due) != Some(due)
    }

    pub(crate) fn watch(&mut self, mut stream: Stream, peer: ControlPeer, io: &Io, observer: &mut Observer) {
        self.connections.accepted += 1;
        let number = self.connections.accepted;
        let entry = self.connections.slab.vacant_entry();
        let key = entry.key();
        let interests = Interest::READABLE | Interest::WRITABLE;
        if io.registry().register(&mut stream, Target::Control(key).token(), interests).is_err() {
            observer.accept_failed();
            return;
        }
        entry.insert(Connection {
            stream,
            conn: conn::Client::default(),
            body: Vec::new(),
            out: Vec::new(),
            phase: Phase::Reading,
            peer,
            is_ready: false,
            is_readable: false,
            is_closing: false,
            has_hung_up: false,
            number,
        });
        self.deadlines.arm(key, ControlDeadline::Idle, io.now());
    }
}

/// Where descriptors are few, operators' connections have no more than a share of them.
pub(super) fn share_of_descriptors(share: u64, most: usize, io: &Io) -> usize {
    usize::try_from(io.descriptors() / share).map_or(most, |bound| bound.clamp(2, most))
}
