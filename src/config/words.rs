//! Parses single words of the command line: numbers, sizes, addresses.

use super::{Listen, MAX_CONCURRENCY, MAX_WORKERS, Trust, Usage, Workers};
use crate::control::MAX_TRIAL_SECONDS;
use crate::control::TrialLength;
use nix::libc;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// A whole number within `range`.
pub(super) fn number(name: &str, argument: &str, range: RangeInclusive<u64>) -> Result<u64, Usage> {
    let complaint = || {
        let upper = match *range.end() {
            u64::MAX => String::from("up"),
            end => format!("to {end}"),
        };
        Usage(format!("{name} takes a number from {} {upper}, not '{argument}'", range.start()))
    };
    argument.parse().ok().filter(|number| range.contains(number)).ok_or_else(complaint)
}

/// One of `words`.
pub(super) fn choice(
    name: &str,
    argument: &str,
    words: &'static [&'static str],
) -> Result<&'static str, Usage> {
    words.iter().find(|word| **word == argument).copied().ok_or_else(|| {
        let takes = match words {
            [first @ .., last] => format!("{} or {last}", first.join(", ")),
            [] => String::new(),
        };
        Usage(format!("{name} takes {takes}, not '{argument}'"))
    })
}

/// Permissions of a socket, in octal. Its owner may connect: the next start would take it for somebody else's otherwise.
pub(super) fn mode(name: &str, argument: &str) -> Result<u32, Usage> {
    const OWNER: u32 = 0o600;
    let is_octal = (3..=4).contains(&argument.len()) && argument.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(argument, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    mode.filter(|mode| mode & OWNER == OWNER).ok_or_else(|| {
        Usage(format!(
            "{name} takes permissions in octal that let the owner in, as 660 or 600, not '{argument}'"
        ))
    })
}

/// How many deaths it takes; `off` is 0.
pub(super) fn quarantine(name: &str, argument: &str) -> Result<u32, Usage> {
    /// More than so many workers that die of one request is no protection.
    const MAX_DEATHS: u32 = 100;
    let deaths = argument.parse().ok().filter(|deaths| (1..=MAX_DEATHS).contains(deaths));
    match (argument, deaths) {
        ("off", _) => Ok(0),
        (_, Some(deaths)) => Ok(deaths),
        (_, None) => {
            Err(Usage(format!("{name} takes a number from 1 to {MAX_DEATHS}, or off, not '{argument}'")))
        }
    }
}

/// How long a new release is on trial: so many requests, or seconds.
pub(super) fn trial(argument: &str) -> Result<TrialLength, Usage> {
    /// Fewer answers say nothing, and more take too long.
    const REQUESTS: RangeInclusive<u64> = 50..=1_000_000;
    let (digits, is_time) = match argument.strip_suffix('s') {
        Some(digits) => (digits, true),
        None => (argument, false),
    };
    let range = if is_time { 1..=MAX_TRIAL_SECONDS } else { REQUESTS };
    match digits.parse().ok().filter(|number| range.contains(number)) {
        Some(seconds) if is_time => Ok(TrialLength::Time(Duration::from_secs(seconds))),
        Some(count) => Ok(TrialLength::Requests(count)),
        None => Err(Usage(format!(
            "--canary takes a number of requests from {} to {}, or of seconds from 1s to {MAX_TRIAL_SECONDS}s, not '{argument}'",
            REQUESTS.start(),
            REQUESTS.end()
        ))),
    }
}

/// Bytes, or with k, m, g for powers of 1024.
pub(super) fn size(name: &str, argument: &str) -> Result<u64, Usage> {
    let complaint =
        || Usage(format!("{name} takes a number of bytes, or with k, m or g as in 100m, not '{argument}'"));
    let lower = argument.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (lower.as_str(), 0),
    };
    let number: u64 = digits.parse().map_err(|_| complaint())?;
    number.checked_mul(1 << shift).ok_or_else(complaint)
}

/// What stands behind `w:`: a count (a number, `auto`, `half`, `2x`), or `min..max` of two.
pub(super) fn workers(argument: &str) -> Result<Workers, Usage> {
    let complaint =
        |what: &str| Usage(format!("'w:{argument}' {what}; w:4, w:auto, w:half, w:2x or w:2..8 would do"));
    let count = |text: &str| -> Result<usize, Usage> {
        let count = match text {
            "auto" => cpus().max,
            "half" => multiple(0.5),
            _ => match text.strip_suffix('x').map(str::parse) {
                Some(Ok(times)) if times > 0.0 => multiple(times),
                Some(_) => return Err(complaint("is no multiple of the CPUs")),
                None => text.parse().map_err(|_| complaint("is no number of workers"))?,
            },
        };
        if count > MAX_WORKERS {
            return Err(complaint(&format!("is more than {MAX_WORKERS} workers")));
        }
        Ok(count)
    };
    match argument.split_once("..") {
        None => count(argument).map(|count| Workers { min: count, max: count }),
        Some((min, max)) => {
            let workers = Workers { min: count(min)?, max: count(max)? };
            if workers.min == 0 || workers.min > workers.max {
                return Err(complaint("needs a min of at least 1 and no larger than its max"));
            }
            Ok(workers)
        }
    }
}

/// So many times the CPUs, rounded up to a whole worker.
fn multiple(times: f64) -> usize {
    ((cpus().max as f64 * times).ceil() as usize).max(1)
}

/// Requests at once for each worker.
pub(super) fn concurrency(name: &str, argument: &str) -> Result<usize, Usage> {
    Ok(number(name, argument, 1..=MAX_CONCURRENCY as u64)? as usize)
}

/// The longest age: a year, beyond which it is a mistake.
const MAX_AGE_S: u64 = 366 * 24 * 60 * 60;

/// What stands behind `r:`: requests, and perhaps seconds: `10000`, `10000,3600s`.
pub(super) fn lifetime(argument: &str) -> Result<(u64, Option<Duration>), Usage> {
    let complaint = |what: &str| Usage(format!("'r:{argument}' {what}; r:10000 or r:10000,3600s would do"));
    let (requests, age) = match argument.split_once(',') {
        Some((requests, age)) => (requests, Some(age)),
        None => (argument, None),
    };
    let requests = requests.parse().map_err(|_| complaint("needs a number of requests from 0 up"))?;
    let seconds = |age: &str| age.strip_suffix('s')?.parse().ok().filter(|age| (1..=MAX_AGE_S).contains(age));
    let age = match age {
        Some(age) => Some(seconds(age).ok_or_else(|| complaint("has no age from 1s to a year"))?),
        None => None,
    };
    Ok((requests, age.map(Duration::from_secs)))
}

/// The number of CPUs that this process may use, by affinity and the cgroup's quota. The host may have more.
pub(super) fn cpus() -> Workers {
    let count = std::thread::available_parallelism().map_or(1, |count| count.get()).min(MAX_WORKERS);
    Workers { min: count, max: count }
}

/// What stands behind `http:`, `metrics:` and `page:`.
pub(super) fn listen(token: &str, argument: &str) -> Result<Listen, Usage> {
    let port = match token {
        "metrics" => 9090,
        "page" => 5003,
        _ => 5002,
    };
    let would_do = match argument.starts_with("fd:") {
        true => format!("{token}:fd:3 would do, if that is a listening socket"),
        false => format!("{token}:{port}, {token}:127.0.0.1:{port} or {token}:unix:/path would do"),
    };
    let complaint = |what: &str| Usage(format!("'{token}:{argument}' {what}; {would_do}"));
    if let Some(path) = argument.strip_prefix("unix:") {
        if path.is_empty() {
            return Err(complaint("names no path"));
        }
        return Ok(Listen::Unix(path.into()));
    }
    if let Some(number) = argument.strip_prefix("fd:") {
        let fd = number.parse().ok().filter(|fd| *fd > libc::STDERR_FILENO);
        return fd.map(Listen::Descriptor).ok_or_else(|| complaint("names no descriptor from 3 up"));
    }
    let (address, port) = match argument.rsplit_once(':') {
        None => (None, argument),
        Some((address, port)) => (Some(address), port),
    };
    let port = port.parse().map_err(|_| complaint("has no port from 0 to 65535"))?;
    let address = match address {
        // Who has not said otherwise shows it to nobody else.
        None if token == "page" => return Ok(Listen::Localhost { port }),
        None | Some("" | "*") => None,
        Some("localhost") => return Ok(Listen::Localhost { port }),
        Some(text) => {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            let address = bare.parse().map_err(|_| complaint("has no numeric address and no localhost"))?;
            Some(address)
        }
    };
    Ok(Listen::Tcp { address, port })
}

/// The prefix of IPv4-mapped IPv6 addresses (`::ffff:192.0.2.1`) in bits.
const MAPPED_BITS: u8 = 96;

/// `addr|cidr|loopback|all,…`
pub(super) fn trust(name: &str, argument: &str) -> Result<Vec<Trust>, Usage> {
    let mut all = Vec::new();
    for part in argument.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "all" => all.push(Trust::All),
            "loopback" => {
                all.push(Trust::Network { address: Ipv4Addr::new(127, 0, 0, 0).into(), prefix_bits: 8 });
                all.push(Trust::Network { address: Ipv6Addr::LOCALHOST.into(), prefix_bits: 128 });
            }
            _ => {
                let complaint = || {
                    Usage(format!(
                        "{name} takes addresses, networks as 10.0.0.0/8, loopback or all, not '{part}'"
                    ))
                };
                let (address, bits) = match part.split_once('/') {
                    Some((address, bits)) => (address, Some(bits)),
                    None => (part, None),
                };
                let address: IpAddr = address.parse().map_err(|_| complaint())?;
                let most = if address.is_ipv4() { 32 } else { 128 };
                let prefix_bits = match bits {
                    None => most,
                    Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(complaint)?,
                };
                all.push(match address {
                    // Peers are compared by their own family, so an IPv4-mapped network becomes an IPv4 one.
                    IpAddr::V6(clothed) if prefix_bits >= MAPPED_BITS => match clothed.to_ipv4_mapped() {
                        Some(bare) => {
                            Trust::Network { address: bare.into(), prefix_bits: prefix_bits - MAPPED_BITS }
                        }
                        None => Trust::Network { address, prefix_bits },
                    },
                    _ => Trust::Network { address, prefix_bits },
                });
            }
        }
    }
    Ok(all)
}
