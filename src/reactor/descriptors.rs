//! How many descriptors a server needs, and how many it keeps from its clients.

use super::source::StartError;
use crate::config::{Config, Listen};
use crate::process::DescriptorLimit;

/// Standard streams and the log's own for two of them, epoll, signals, the lock, two control sockets, the watch, lines
/// to the servers before and after this one, and what is opened for a moment: a folder, files of `/proc`.
const OWN: u64 = 20;
/// The log file, and the new one while it is opened anew.
const LOG_FILE: u64 = 2;
/// Standard output and error, and a connection.
const PER_WORKER: u64 = 3;
/// While a worker is started: both ends of two pipes and of the socket to the process that starts it; two of another
/// start that waits for its turn.
const PER_START: u64 = 8;
/// For spool files and operators' connections.
const SPARE: u64 = 36;
/// For clients, spool files and operators together. With fewer it would start, and hardly serve anybody.
const MIN_LEFT: u64 = 16;

/// What a worker's own program takes beside a connection for each request and each stream: its files, its database.
const OF_WORKERS_APP: u64 = 256;

/// The limit for workers that may hold streams, and how many streams fit: its soft part is raised for them, as far as the
/// hard one goes.
pub(super) fn for_streams(
    max_streams: usize,
    concurrency: usize,
    limit: DescriptorLimit,
) -> (DescriptorLimit, usize) {
    let beside = concurrency as u64 + OF_WORKERS_APP;
    let wanted = max_streams as u64 + beside;
    let soft = limit.soft.max(wanted.min(limit.hard));
    let fitting = usize::try_from(soft.saturating_sub(beside)).unwrap_or(usize::MAX);
    (DescriptorLimit { soft, ..limit }, max_streams.min(fitting))
}

/// What the server and its workers take, one successor included.
fn needed(config: &Config, workers: usize) -> u64 {
    let places = config.listen.iter().chain(&config.metrics).chain(&config.page);
    let sockets = |at: &Listen| if matches!(at, Listen::Localhost { .. }) { 2 } else { 1 };
    let listeners: u64 = places.map(sockets).sum();
    let log_file = if config.log_file.is_some() { LOG_FILE } else { 0 };
    OWN + log_file + listeners + PER_WORKER * (workers as u64 + 1) + PER_START
}

/// How many are kept free of clients: what is needed, and spare ones, also for the other successors of a roll, up to half
/// of what is left.
pub(super) fn kept(config: &Config, workers: usize, has: u64) -> u64 {
    let needed = needed(config, workers);
    let left = has.saturating_sub(needed);
    needed + (SPARE + PER_WORKER * workers as u64).min(left / 2)
}

/// # Errors
/// The limit is too low for so many workers.
pub(super) fn check(config: &Config, limit: DescriptorLimit) -> Result<(), StartError> {
    match shortage(config, config.workers.max, limit.raised()) {
        None => Ok(()),
        Some(complaint) => Err(StartError::Trouble(complaint)),
    }
}

/// What would do for so many workers, where `has` is too low.
pub(super) fn shortage(config: &Config, workers: usize, has: u64) -> Option<String> {
    let wants = needed(config, workers) + MIN_LEFT;
    let fewer = if workers > 1 { ", or fewer workers" } else { "" };
    let complaint = || {
        format!(
            "this process may have {has} descriptors, and with w:{workers} it needs {wants}: \
             ulimit -n {wants} (systemd: LimitNOFILE={wants}){fewer} would do"
        )
    };
    (has < wants).then(complaint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_raise_a_workers_soft_limit_as_far_as_the_hard_one_goes() {
        let limit = |soft, hard| DescriptorLimit { soft, hard };
        for (before, soft, streams) in [
            (limit(1024, 1 << 20), 1257, 1000),
            (limit(65_536, 1 << 20), 65_536, 1000),
            (limit(1024, 1024), 1024, 767),
            (limit(64, 64), 64, 0),
        ] {
            let (after, fitting) = for_streams(1000, 1, before);
            assert_eq!((after.soft, after.hard, fitting), (soft, before.hard, streams), "{before:?}");
        }
    }
}
