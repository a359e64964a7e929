//! What the simulator sees of the workers.

use super::Supervisor;
use super::worker::Worker;
use crate::fleet::Phase;
use crate::keys::WorkerKey;
use slab::Slab;

impl Supervisor {
    pub(crate) fn workers(&self) -> &Slab<Worker> {
        &self.workers
    }

    pub(crate) fn pid(&self, worker: WorkerKey) -> Option<i32> {
        self.get(worker).map(Worker::pid_number)
    }

    /// It boots, and nobody has told it to end.
    pub(crate) fn waits_for_join(&self, worker: WorkerKey) -> bool {
        let is_booting = matches!(self.phase_of(worker), Some(Phase::Booting { .. }));
        is_booting && self.is_booting(worker)
    }

    pub(crate) fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }
}

impl Worker {
    pub(crate) fn pid_number(&self) -> i32 {
        self.process.pid.as_raw()
    }

    pub(crate) fn is_command(&self) -> bool {
        self.is_command
    }

    pub(crate) fn is_template(&self) -> bool {
        self.origin.is_template()
    }

    pub(crate) fn joins(&self) -> bool {
        self.has_joined()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.exit().is_some()
    }

    pub(crate) fn is_withheld(&self) -> bool {
        self.is_withheld
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck
    }
}
