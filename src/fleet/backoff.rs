//! How long a slot waits before it is tried again.

use std::time::{Duration, Instant};

/// The first wait after a crash.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait: a fixed app is up again half a minute later at the worst.
const LONGEST: Duration = Duration::from_secs(30);
/// A worker that lived for so long did not fail at its start.
pub const SOUND_LIFE: Duration = Duration::from_secs(10);

/// Failures in a row, and the wait that follows from them: 100 ms, 200 ms, 400 ms … 30 s, for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn failures(self) -> u32 {
        self.failures
    }

    /// Counts a failure; when to try again.
    pub fn fail(&mut self, now: Instant) -> Instant {
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        now + wait
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let waits_ms: Vec<u128> = (0..11).map(|_| (backoff.fail(now) - now).as_millis()).collect();
        assert_eq!(waits_ms, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    }
}
