//! A rolling restart: every slot replaced, one at a time, and stopped by the first successor that fails.

use super::slot::{Front, Why};
use super::{Action, Fleet};
use crate::keys::WorkerKey;
use std::collections::VecDeque;
use std::time::Instant;

/// How a rolling restart ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollEnd {
    Done {
        replaced: usize,
    },
    /// The successor in that slot died or did not join in time (`None`: could not even be started). The old
    /// workers go on.
    Failed {
        slot: usize,
        worker: Option<WorkerKey>,
    },
    /// The server is stopping.
    Stopping,
}

#[derive(Debug)]
pub(super) struct Roll {
    pending: VecDeque<usize>,
    replaced: usize,
    of: usize,
    /// The slot that is being replaced for this roll.
    pub(super) current: Option<usize>,
    /// Another reload came: start over when the slot at hand is done.
    pub(super) again: bool,
}

impl Fleet {
    pub(super) fn start_roll(&mut self, now: Instant) {
        let open = |(index, slot): (usize, &mut super::Slot)| {
            if let Front::Empty { retry_at } = &mut slot.front {
                // New code may well mend what made the old one fail.
                *retry_at = now;
                slot.backoff.reset();
            }
            (slot.front != Front::Closed).then_some(index)
        };
        let pending: VecDeque<usize> = self.slots.iter_mut().enumerate().filter_map(open).collect();
        self.roll = Some(Roll { replaced: 0, of: pending.len(), pending, current: None, again: false });
    }

    /// Takes up the next slot of the roll, or ends it.
    pub(super) fn continue_roll(&mut self, now: Instant) {
        if self.roll.as_ref().is_some_and(|roll| roll.again) {
            self.start_roll(now);
        }
        let Some(roll) = &mut self.roll else { return };
        // A slot whose worker boots right now, or is being replaced for another reason, may have the old code: others
        // first.
        for _ in 0..roll.pending.len() {
            let Some(index) = roll.pending.pop_front() else {
                break;
            };
            match self.slots[index].front {
                Front::Closed => roll.of -= 1,
                _ if self.slots[index].may_be_replaced() => {
                    roll.current = Some(index);
                    self.lane = Some(index);
                    return self.start_successor(index, Why::Reload);
                }
                Front::Empty { .. } => {
                    roll.current = Some(index);
                    self.lane = Some(index);
                    self.slots[index].front = Front::Spawning;
                    return self.spawn(index, Some(Why::Reload));
                }
                Front::Spawning | Front::Held(_) => roll.pending.push_back(index),
            }
        }
        if roll.pending.is_empty() {
            let replaced = roll.replaced;
            self.end_roll(RollEnd::Done { replaced });
        }
    }

    pub(super) fn roll_replaced(&mut self, index: usize) {
        if let Some(roll) = &mut self.roll
            && roll.current == Some(index)
        {
            roll.current = None;
            roll.replaced += 1;
            self.actions.push_back(Action::RollProgress { replaced: roll.replaced, of: roll.of });
        }
    }

    pub(super) fn end_roll(&mut self, end: RollEnd) {
        if self.roll.take().is_some() {
            self.actions.push_back(Action::RollEnded(end));
        }
    }
}
