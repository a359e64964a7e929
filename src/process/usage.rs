//! What processes use, as the kernel counts it.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use std::time::Duration;

/// Resident memory in bytes, as only `/proc` tells.
pub(crate) fn resident_bytes(pid: Pid) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok().filter(|pages| *pages > 0)?;
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
    Some(pages * u64::try_from(page_bytes).ok()?)
}

/// Whether the memory of processes can be read here: of one that has just ended there is nothing to read.
pub(crate) fn tells_memory() -> bool {
    resident_bytes(Pid::this()).is_some()
}

/// A process's share of memory in bytes: what it has alone, and its part of what it shares with others. The kernel walks
/// through all of its pages for that, which takes milliseconds.
pub(crate) fn proportional_bytes(pid: Pid) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// CPU time of this process so far.
pub(crate) fn own_cpu() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let used = usage.user_time() + usage.system_time();
        Duration::from_micros(u64::try_from(used.num_microseconds()).unwrap_or(0))
    })
}

/// How many descriptors this process may have open: the soft limit.
pub(crate) fn max_descriptors() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

/// How many descriptors this process has open.
pub(crate) fn open_descriptors() -> Option<u64> {
    // Since Linux 6.2 the folder's size is their number; before, it was 0.
    let counted = std::fs::metadata("/proc/self/fd").ok()?.len();
    if counted > 0 {
        return Some(counted);
    }
    // One is the folder's own.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}
