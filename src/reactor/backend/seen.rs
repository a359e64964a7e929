//! What the simulator sees of the connections to workers.

use super::exchange::{Exchange, Sending};
use super::upstreams::Upstream;
use super::{Backend, PlaceState, UpstreamDeadline};
use crate::deadlines::Deadlines;
use crate::keys::{UpstreamKey, WorkerKey};

impl Backend {
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = (UpstreamKey, &Upstream)> {
        self.upstreams.iter()
    }

    #[cfg(test)]
    pub(crate) fn next_deadline_of_sweep(&self) -> Option<std::time::Instant> {
        self.upstreams.next_sweep()
    }

    pub(crate) fn deadlines(&self) -> &Deadlines<UpstreamDeadline> {
        &self.deadlines
    }
}

impl Upstream {
    pub(crate) fn worker(&self) -> WorkerKey {
        self.worker
    }

    pub(crate) fn place(&self) -> PlaceState {
        self.place
    }

    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        self.exchange.as_ref()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.link.open().is_some()
    }
}

impl Exchange {
    pub(crate) fn sending(&self) -> Sending {
        self.sending
    }
}
