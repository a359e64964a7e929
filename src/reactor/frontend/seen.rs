//! What the simulator sees of the clients.

use super::Frontend;
use super::client::{Client, ClientDeadline};
use super::phase::Phase;
use crate::conn;
use crate::deadlines::Deadlines;
use crate::reactor::io::spool::Spool;
use slab::Slab;

impl Frontend {
    pub(crate) fn clients(&self) -> &Slab<Client> {
        &self.clients
    }

    pub(crate) fn deadlines(&self) -> &Deadlines<ClientDeadline> {
        &self.deadlines
    }
}

impl Client {
    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(crate) fn conn(&self) -> &conn::Client {
        &self.conn
    }

    pub(crate) fn out(&self) -> &Spool {
        &self.out
    }

    pub(crate) fn body(&self) -> &Spool {
        &self.body
    }

    /// Bytes that come now can be used.
    pub(crate) fn is_listened_to(&self) -> bool {
        self.wants_bytes() && !self.waits_for_file
    }
}
