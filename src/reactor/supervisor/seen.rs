//! What the simulator sees of the workers.

use super::Supervisor;
use super::worker::Worker;
use crate::keys::WorkerKey;
use slab::Slab;

impl Supervisor {
    pub fn workers(&self) -> &Slab<Worker> {
        &self.workers
    }

    pub fn pid(&self, worker: WorkerKey) -> Option<i32> {
        self.get(worker).map(Worker::pid_number)
    }

    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }
}

impl Worker {
    pub fn pid_number(&self) -> i32 {
        self.process.pid.as_raw()
    }

    pub fn joins(&self) -> bool {
        self.has_joined()
    }

    pub fn has_ended(&self) -> bool {
        self.exit().is_some()
    }

    pub fn is_withheld(&self) -> bool {
        self.is_withheld
    }

    pub fn is_stuck(&self) -> bool {
        self.is_stuck
    }
}
