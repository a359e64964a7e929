//! Connections that are closed before their first request.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Anybody who reaches the port can cause such a line, as often as he likes.
const ONE_LINE_EVERY: Duration = Duration::from_secs(1);

/// Tells of them, a line a second at most.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: Option<Instant>,
    untold: u64,
}

impl Refusals {
    pub(super) fn note(&mut self, peer: &dyn Display, why: &dyn Display, now: Instant) {
        if let Some(line) = self.line(peer, why, now) {
            log::warn!("{line}");
        }
    }

    fn line(&mut self, peer: &dyn Display, why: &dyn Display, now: Instant) -> Option<String> {
        if self.told.is_some_and(|told| now.duration_since(told) < ONE_LINE_EVERY) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        let others = match std::mem::take(&mut self.untold) {
            0 => String::new(),
            others => format!(" ({others} others since the last such line)"),
        };
        Some(format!("a connection from {peer} is closed: {why}{others}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_says_how_many_others_there_were() {
        let start = Instant::now();
        let mut refusals = Refusals::default();
        let mut line = |ms: u64| refusals.line(&"::1", &"full", start + Duration::from_millis(ms));
        let plain = "a connection from ::1 is closed: full";
        assert_eq!(line(0).as_deref(), Some(plain));
        assert_eq!((line(1), line(999)), (None, None));
        assert_eq!(line(1000), Some(format!("{plain} (2 others since the last such line)")));
        assert_eq!(line(2000).as_deref(), Some(plain), "nobody beside it");
    }
}
