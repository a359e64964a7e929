//! Slow, silent and greedy clients, and streams: none holds a worker, grows memory past its bounds, or slows others.

mod support;
mod tools;

#[path = "slow_clients/descriptors.rs"]
mod descriptors;
#[path = "slow_clients/late_workers.rs"]
mod late_workers;
#[path = "slow_clients/readers.rs"]
mod readers;
#[path = "slow_clients/spool.rs"]
mod spool;
#[path = "slow_clients/streams.rs"]
mod streams;
#[path = "slow_clients/timeouts.rs"]
mod timeouts;
