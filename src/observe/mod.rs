//! What operators see: the access log, status, metrics, and what has happened lately.

pub(crate) mod access;
pub(crate) mod counters;
mod exposition;
pub(crate) mod failures;
pub(crate) mod folds;
mod histogram;
pub(crate) mod history;
pub(crate) mod metrics;
pub(crate) mod rolls;
pub(crate) mod status;

use std::time::Duration;

/// A time since 1970 as `2026-03-01T12:00:00.123Z` (RFC 3339).
pub(crate) fn timestamp(unix: Duration) -> String {
    let ms = i64::try_from(unix.as_millis()).unwrap_or_default();
    jiff::Timestamp::from_millisecond(ms).unwrap_or_default().to_string()
}
