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

    fn config(line: &str) -> Config {
        match crate::config::read(line.split(' ').map(Into::into).collect(), &|_| None, true) {
            Ok(crate::config::Command::Serve(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_needs_descriptors_for_itself_its_listeners_and_its_workers() {
        // 20 of its own, 8 for a start, and 3 for each worker and for one successor.
        for (line, workers, expected) in [
            ("w:4 http:127.0.0.1:0", 4, 20 + 8 + 15 + 1),
            ("w:4 http:127.0.0.1:0", 0, 20 + 8 + 3 + 1),
            ("w:4 http:127.0.0.1:0 --log-file=/l", 4, 20 + 8 + 15 + 1 + 2),
            ("w:4 http:localhost:0 metrics:127.0.0.1:0", 4, 20 + 8 + 15 + 2 + 1),
            ("w:4 http:127.0.0.1:0 page:127.0.0.1:0", 4, 20 + 8 + 15 + 2),
        ] {
            assert_eq!(needed(&config(line), workers), expected, "{line}");
        }
    }

    #[test]
    fn spare_ones_are_kept_up_to_half_of_what_is_left() {
        let config = config("w:4 http:127.0.0.1:0");
        // 44 are needed; 36 spare ones, and 3 for each worker.
        for (has, expected) in [(1000, 44 + 48), (140, 44 + 48), (138, 44 + 47), (100, 44 + 28), (40, 44)] {
            assert_eq!(kept(&config, 4, has), expected, "{has}");
        }
    }

    #[test]
    fn a_limit_that_leaves_too_few_for_clients_is_refused_with_one_that_would_do() {
        let few = config("w:4 http:127.0.0.1:0");
        assert_eq!(shortage(&few, 4, 60), None);
        assert_eq!(
            shortage(&few, 4, 59).as_deref(),
            Some(
                "this process may have 59 descriptors, and with w:4 it needs 60: ulimit -n 60 (systemd: LimitNOFILE=60), or fewer workers would do"
            )
        );
        let one = shortage(&few, 1, 1).expect("too few");
        assert!(one.ends_with("ulimit -n 51 (systemd: LimitNOFILE=51) would do"), "{one}");
        let limit = |hard| DescriptorLimit { soft: 10, hard };
        assert!(check(&few, limit(60)).is_ok());
        assert!(matches!(check(&few, limit(59)), Err(StartError::Trouble(_))));
    }
}
