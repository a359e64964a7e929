//! What the server and its surroundings tell each other.

pub(super) mod notifier;

use notifier::Notifier;
use std::time::Instant;

pub(super) struct Host {
    pub(super) notifier: Notifier,
}

impl Host {
    pub(super) fn new(notifier: Notifier) -> Self {
        Host { notifier }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.notifier.next_deadline()
    }
}
