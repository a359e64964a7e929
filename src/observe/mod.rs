//! What operators see: the access log, status, metrics.

pub mod access;
pub mod folds;
pub mod metrics;
pub mod status;
