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
        if self.told.is_some_and(|told| now.duration_since(told) < ONE_LINE_EVERY) {
            self.untold += 1;
            return;
        }
        self.told = Some(now);
        let others = match std::mem::take(&mut self.untold) {
            0 => String::new(),
            others => format!(" ({others} others since the last such line)"),
        };
        log::warn!("a connection from {peer} is closed: {why}{others}");
    }
}
