//! How long a slot waits before it is tried again.

use std::time::Duration;

/// The first wait after a failure. Also the shortest time between two starts in a slot whose workers quit without
/// having served: that is no failure, but must not become a loop.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait: a fixed app is up again half a minute later at the worst.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A worker that lived for so long did not fail at its start, whether or not it was asked anything.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Failures in a row, and the wait that follows from them: 100 ms, 200 ms, 400 ms … 30 s, for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    /// The wait that was last told: each is told once.
    reported: Option<Duration>,
}

impl Backoff {
    pub(super) fn failures(self) -> u32 {
        self.failures
    }

    /// Counts a failure; how long to wait until the next try.
    pub(super) fn fail(&mut self) -> Duration {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// `true`: this wait has not been told yet. The longest one comes again and again.
    pub(super) fn is_news(&mut self, wait: Duration) -> bool {
        self.reported.replace(wait) != Some(wait)
    }

    pub(super) fn reset(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let waits_ms: Vec<u128> = (0..11).map(|_| backoff.fail().as_millis()).collect();
        assert_eq!(waits_ms, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    }

    #[test]
    fn each_wait_is_told_once() {
        let mut backoff = Backoff::default();
        let news: Vec<bool> = (0..11)
            .map(|_| {
                let wait = backoff.fail();
                backoff.is_news(wait)
            })
            .collect();
        assert_eq!(news, [[true; 10].as_slice(), &[false]].concat());
    }
}
