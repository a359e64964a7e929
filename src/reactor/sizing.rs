//! How many workers load needs, and what they weigh: growth while requests wait, retirement from the bottom of the
//! stack, the depth that was used, resident memory.

use super::entry::Origin;
use super::{Reactor, process};
use crate::fleet::RetireReason;
use crate::keys::WorkerKey;
use std::time::{Duration, Instant};

/// The depth of the stack is told for so long a window.
const WINDOW: Duration = Duration::from_secs(60);
/// Memory is looked at no more often than that, since each look opens a file.
const WEIGH_EVERY: Duration = Duration::from_secs(1);

/// How deep the stack was used, window by window.
#[derive(Debug)]
pub struct Depth {
    /// The window's end.
    until: Instant,
    last: usize,
    /// The most slots that there were in the last window and in this one.
    last_size: usize,
    size: usize,
}

impl Depth {
    pub fn new(now: Instant) -> Self {
        Depth { until: now + WINDOW, last: 0, last_size: 0, size: 0 }
    }
}

impl Reactor {
    /// Looks whether the fleet should grow or shrink. Costs nothing where its size is fixed.
    pub(super) fn resize(&mut self) {
        let now = self.clock.now;
        self.turn_window(now);
        if self.config.workers.max == self.config.workers.min {
            return;
        }
        if self.balancer.waiting() > 0
            && !self.waits_for_new_code()
            && self.fleet.size() < self.config.workers.max
        {
            self.fleet.grow(now);
        }
        if let Some(due) = self.next_shrink()
            && due <= now
            && let Some((worker, _)) = self.balancer.bottom()
            && self.fleet.shrink(worker, now)
        {
            let unneeded_s = self.config.shrink_after.as_secs();
            log::info!("{}: retires, not needed for {unneeded_s} s", self.label(worker));
        }
    }

    /// When the worker at the bottom of the stack will not have been needed for long enough. Not asked for while that
    /// one may not go: whatever changes that brings a turn of the loop.
    pub(super) fn next_shrink(&self) -> Option<Instant> {
        let is_fixed = self.config.workers.max == self.config.workers.min;
        if is_fixed {
            return None;
        }
        let (_, since) = self.balancer.bottom().filter(|(worker, _)| self.fleet.may_shrink(*worker))?;
        Some(since + self.config.shrink_after)
    }

    fn turn_window(&mut self, now: Instant) {
        let size = self.fleet.size().max(self.depth.size);
        self.depth.size = size;
        if now < self.depth.until {
            return;
        }
        let needed = self.balancer.take_deepest();
        if needed != self.depth.last {
            log::info!("needed {needed} of {size} workers in the last minute");
        }
        self.depth = Depth { until: now + WINDOW, last: needed, last_size: size, size: self.fleet.size() };
    }

    /// The most workers that were at work at once within the last minute or two.
    pub(super) fn needed_workers(&self) -> usize {
        self.balancer.deepest().max(self.depth.last)
    }

    /// Of how many, within the same time: a fleet that has shrunk since then was larger.
    pub(super) fn needed_of(&self) -> usize {
        self.fleet.size().max(self.depth.size).max(self.depth.last_size)
    }

    /// Has a worker replaced that has grown too heavy. Looked at after an answer.
    pub(super) fn check_rss(&mut self, worker: WorkerKey) {
        let (most_bytes, now) = (self.config.max_memory_bytes, self.clock.now);
        if most_bytes == 0 {
            return;
        }
        let Some(entry) = self.workers.get_mut(worker.0) else {
            return;
        };
        let was_just_weighed = entry.rss_checked.is_some_and(|at| now.duration_since(at) < WEIGH_EVERY);
        if was_just_weighed || !matches!(entry.origin, Origin::Slot { .. }) {
            return;
        }
        entry.rss_checked = Some(now);
        match process::resident_bytes(entry.pid) {
            Some(bytes) => {
                entry.resident_bytes = Some(bytes);
                if bytes > most_bytes {
                    log::info!("{}: {} MiB resident, above --max-memory", self.label(worker), bytes >> 20);
                    self.fleet.retire(worker, RetireReason::Memory, now);
                }
            }
            None => {
                log::warn!("--max-memory is not in force: /proc does not tell the memory of a process here");
                self.config.max_memory_bytes = 0;
            }
        }
    }
}
