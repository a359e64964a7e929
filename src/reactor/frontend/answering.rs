//! What goes to a client, and what follows when it has all of it.

use super::Frontend;
use super::client::{ClientDeadline, PeerState};
use super::phase::Phase;
use crate::keys::ClientKey;
use crate::reactor::crossing::{Delivery, Finished, Then};
use crate::reactor::io::Io;
use crate::reactor::io::spool::{Broken, Written};
use crate::reactor::io::token::Target;
use crate::reactor::limits::TICK_BYTES;

/// What came of writing what waits for a client.
#[derive(Debug)]
pub(crate) enum Flushed {
    /// It has all of it.
    All,
    /// It has taken some.
    Some,
    /// It takes nothing now.
    Nothing,
    /// It has gone.
    Gone,
    /// What waited cannot be read back.
    Lost,
}

/// What a client comes to behind an answer. Small beside a [`Phase`], which has room for a request.
#[derive(Clone, Copy)]
enum After {
    Reading,
    Lingering,
    Closed,
}

impl After {
    fn phase(self) -> Phase {
        match self {
            After::Reading => Phase::Reading,
            After::Lingering => Phase::Lingering,
            After::Closed => Phase::Closed,
        }
    }
}

impl Frontend {
    /// Sends what can be sent at once, and keeps the rest.
    pub(crate) fn deliver(&mut self, client: ClientKey, parts: [&[u8]; 3]) -> Delivery {
        match self.clients.get_mut(client.0) {
            Some(entry) => entry.deliver(parts),
            None => Delivery::Gone,
        }
    }

    /// A piece of an answer that goes on, or ends with it. Nobody is there any more: then nothing is to be done.
    pub(crate) fn pass_on(
        &mut self,
        client: ClientKey,
        parts: [&[u8]; 3],
        is_last: bool,
        io: &Io,
    ) -> Delivery {
        let Some(entry) = self.clients.get_mut(client.0) else { return Delivery::Sent };
        let delivery = entry.deliver(parts);
        if let Delivery::Waits { is_full } = delivery {
            if is_full && io.spools().is_tick_over() {
                self.files.wait(client, entry);
            }
            if !is_last {
                self.deadlines.arm(client.0, ClientDeadline::Take, io.now());
            }
        }
        delivery
    }

    /// A client of a tunnel has gone: it is read to its end, and gets nothing more.
    pub(crate) fn takes_no_more(&mut self, client: ClientKey) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.peer = PeerState::Gone;
            entry.is_readable = true;
            entry.out.clear();
            self.deadlines.disarm(client.0);
        }
    }

    /// Whether earlier bytes still wait for a client.
    pub(crate) fn undelivered(&self, client: ClientKey) -> Delivery {
        self.clients.get(client.0).map_or(Delivery::Sent, |entry| entry.undelivered())
    }

    /// A whole answer of the server's own, so nobody reads the request's body.
    pub(crate) fn answer(&mut self, client: ClientKey, bytes: &[u8]) -> Delivery {
        let Some(entry) = self.clients.get_mut(client.0) else { return Delivery::Gone };
        entry.body.clear();
        entry.deliver([bytes, b"", b""])
    }

    /// All of an answer is there, and the client has not taken it.
    pub(crate) fn await_taking(&mut self, client: ClientKey, finished: Finished, then: Then, io: &Io) {
        if let Some(entry) = self.clients.get_mut(client.0) {
            entry.phase.enter(Phase::Finishing { finished, then });
            self.deadlines.arm(client.0, ClientDeadline::Take, io.now());
        }
    }

    /// The client has all of its answer.
    pub(crate) fn answered(&mut self, client: ClientKey, then: Then, io: &mut Io) {
        if let Some(next) = self.after_answer(client, then, io)
            && let Some(entry) = self.clients.get_mut(client.0)
        {
            entry.phase.enter(next.phase());
        }
    }

    /// What a client whose answer is out comes to, all but its phase, which is given.
    fn after_answer(&mut self, client: ClientKey, then: Then, io: &mut Io) -> Option<After> {
        let entry = self.clients.get_mut(client.0).filter(|entry| !entry.is_closed())?;
        match then {
            Then::Keep => {
                let has_more =
                    !entry.conn.read_buffer.is_empty() || entry.is_readable || entry.conn.has_ended;
                entry.conn.answered();
                self.mark_idle(client, io.now());
                if has_more {
                    io.go_on_with(Target::Client(client));
                }
                Some(After::Reading)
            }
            // What it may still send would be answered with a reset, which takes away what it has not read (RFC 9112 §9.6).
            Then::Close if !entry.conn.has_ended => {
                entry.stream.shutdown_write();
                entry.conn.linger();
                self.deadlines.arm(client.0, ClientDeadline::Linger, io.now());
                io.go_on_with(Target::Client(client));
                Some(After::Lingering)
            }
            Then::Close => {
                self.about_to_close(client);
                Some(After::Closed)
            }
            Then::Cut { reset } => {
                if reset {
                    entry.stream.reset_on_close();
                }
                self.about_to_close(client);
                Some(After::Closed)
            }
        }
    }

    /// Everything that waited is out. Gives the request whose answer that was, if all of it is there.
    pub(crate) fn taken(&mut self, client: ClientKey, io: &mut Io) -> Option<Finished> {
        let Phase::Finishing { then, .. } = self.clients.get(client.0)?.phase else { return None };
        let next = self.after_answer(client, then, io)?;
        match self.clients.get_mut(client.0)?.phase.leave_for(next.phase()) {
            Phase::Finishing { finished, .. } => Some(finished),
            _ => None,
        }
    }

    /// Writes what waits for the client, now that there is room.
    pub(crate) fn flush(&mut self, client: ClientKey, io: &mut Io) -> Flushed {
        let Some(entry) = self.clients.get_mut(client.0) else { return Flushed::Nothing };
        let before = entry.out.unread_bytes();
        match entry.out.write_to(&mut entry.stream, TICK_BYTES) {
            Ok(Written::All) => {
                entry.out.clear();
                Flushed::All
            }
            Ok(written) => {
                if written == Written::BudgetSpent {
                    io.go_on_with(Target::Client(client));
                }
                if entry.out.unread_bytes() == before {
                    return Flushed::Nothing;
                }
                self.deadlines.arm(client.0, ClientDeadline::Take, io.now());
                Flushed::Some
            }
            Err(Broken::Peer | Broken::Reset) => Flushed::Gone,
            Err(Broken::Spool) => Flushed::Lost,
        }
    }
}
