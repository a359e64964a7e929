//! A worker on trial: it lies at the bottom of the stack, and gets its share of the requests all the same.

use crate::keys::WorkerKey;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    worker: WorkerKey,
    /// One request in so many.
    every: usize,
    /// Requests that others have had since its last one.
    since: usize,
}

impl Share {
    pub(super) fn new(worker: WorkerKey, every: usize) -> Self {
        Share { worker, every, since: 0 }
    }

    pub(super) fn is_of(&self, worker: WorkerKey) -> bool {
        self.worker == worker
    }

    /// Whose turn it is, if it is that of the worker on trial.
    pub(super) fn due(&self) -> Option<WorkerKey> {
        (self.since + 1 >= self.every).then_some(self.worker)
    }

    /// A worker gets a request.
    pub(super) fn note(&mut self, worker: WorkerKey) {
        self.since = if self.is_of(worker) { 0 } else { self.since.saturating_add(1) };
    }
}
