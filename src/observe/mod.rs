//! What operators see: the access log, status, metrics.

pub(crate) mod access;
pub(crate) mod counters;
pub(crate) mod folds;
pub(crate) mod metrics;
pub(crate) mod status;
