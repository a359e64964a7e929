//! How deep the stack of workers is used, and of how many.

use std::time::{Duration, Instant};

/// The depth of the stack is told for so long a window.
const WINDOW: Duration = Duration::from_secs(60);

/// How deep the stack was used, window by window.
#[derive(Debug)]
pub(crate) struct Depth {
    /// The window's end.
    until: Instant,
    last: usize,
    /// The most slots that there were in the last window and in this one.
    last_size: usize,
    size: usize,
}

impl Depth {
    pub(crate) fn new(now: Instant) -> Self {
        Depth { until: now + WINDOW, last: 0, last_size: 0, size: 0 }
    }

    /// The fleet has that size now. `take_deepest` gives how deep the stack was used since it was asked last.
    pub(crate) fn note(&mut self, size_now: usize, take_deepest: impl FnOnce() -> usize, now: Instant) {
        let size = size_now.max(self.size);
        self.size = size;
        if now < self.until {
            return;
        }
        let needed = take_deepest().min(size);
        if needed != self.last {
            log::info!("needed {needed} of {size} workers in the last minute");
        }
        *self = Depth { until: now + WINDOW, last: needed, last_size: size, size: size_now };
    }

    /// The most workers that were at work at once within the last minute or two; `deepest`: in this window. A successor
    /// that takes over is let in before the old worker is withdrawn, and they are one.
    pub(crate) fn needed(&self, deepest: usize, size_now: usize) -> usize {
        deepest.max(self.last).min(self.needed_of(size_now))
    }

    /// Of how many, within the same time: a fleet that has shrunk since then was larger.
    pub(crate) fn needed_of(&self, size_now: usize) -> usize {
        size_now.max(self.size).max(self.last_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_needed_and_of_how_many_is_told_of_the_last_minute_and_of_this_one() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut depth = Depth::new(start);
        depth.note(4, || panic!("the minute is not over"), at(59));
        assert_eq!((depth.needed(2, 3), depth.needed_of(3)), (2, 4));
        depth.note(3, || 2, at(60));
        assert_eq!((depth.needed(1, 1), depth.needed_of(1)), (2, 4));
        depth.note(1, || panic!("nor is the next one"), at(119));
        assert_eq!((depth.needed(3, 1), depth.needed_of(1)), (3, 4));
        depth.note(1, || 1, at(120));
        assert_eq!((depth.needed(0, 1), depth.needed_of(1)), (1, 3));
        assert_eq!((depth.needed(7, 8), depth.needed_of(8)), (7, 8), "of now");
        assert_eq!(depth.needed(9, 8), 8, "a successor and the worker before it are one");
    }
}
