//! What the simulator sees of the connections to workers.

use super::exchange::{Exchange, Sending};
use super::{Backend, Upstream, UpstreamDeadline};
use crate::deadlines::Deadlines;
use crate::keys::{UpstreamKey, WorkerKey};

impl Backend {
    pub fn upstreams(&self) -> impl Iterator<Item = (UpstreamKey, &Upstream)> {
        self.upstreams.iter().map(|(key, entry)| (UpstreamKey(key), entry))
    }

    pub fn deadlines(&self) -> &Deadlines<UpstreamDeadline> {
        &self.deadlines
    }
}

impl Upstream {
    pub fn worker(&self) -> WorkerKey {
        self.worker
    }

    pub fn exchange(&self) -> Option<&Exchange> {
        self.exchange.as_ref()
    }

    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }
}

impl Exchange {
    pub fn sending(&self) -> Sending {
        self.sending
    }
}
