//! Loopback ports for commands that cannot listen on a Unix socket (`{port}`).

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;

/// Below are the ports that people give to servers by hand.
const FIRST_PORT: u16 = 10_240;
/// What Linux takes for outgoing connections where nobody has said otherwise (`ip_local_port_range`).
const EPHEMERAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// Hands out ports, each another one for as long as there are others: the worker that was given one has not bound it yet
/// when the next worker asks.
#[derive(Debug)]
pub(super) struct Ports {
    /// Ports of this range may be taken by any outgoing connection at any time.
    ephemeral: RangeInclusive<u16>,
    last: u16,
}

impl Ports {
    /// `seed` has two servers begin at different places.
    pub(super) fn new(seed: u64) -> Self {
        let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let ephemeral = ephemeral.ok().and_then(|text| parse_range(&text)).unwrap_or(EPHEMERAL_PORTS);
        let span = u64::from(u16::MAX - FIRST_PORT) + 1;
        Ports { ephemeral, last: FIRST_PORT + (seed % span) as u16 }
    }

    /// A port that nobody listens on.
    ///
    /// # Errors
    /// A line for people: every port is taken, or ephemeral.
    pub(super) fn take(&mut self) -> Result<u16, String> {
        self.take_if(is_free)
    }

    fn take_if(&mut self, is_free: impl Fn(u16) -> bool) -> Result<u16, String> {
        for _ in FIRST_PORT..=u16::MAX {
            self.last = if self.last == u16::MAX { FIRST_PORT } else { self.last + 1 };
            if !self.ephemeral.contains(&self.last) && is_free(self.last) {
                return Ok(self.last);
            }
        }
        let (first, last) = (self.ephemeral.start(), self.ephemeral.end());
        Err(format!(
            "no loopback port from {FIRST_PORT} up is free outside {first}-{last}, which outgoing connections take; \
             a narrower net.ipv4.ip_local_port_range would do"
        ))
    }
}

/// The kernel's `first last`.
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// Whether a server could listen on the port, on any address. Nobody can connect meanwhile: it is bound, not listened on.
fn is_free(port: u16) -> bool {
    let probe = || {
        let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        let address = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
        bind(fd.as_raw_fd(), &address)
    };
    match probe() {
        Ok(()) => true,
        Err(Errno::EADDRINUSE | Errno::EACCES) => false,
        // Without IPv6; std listens, which is as short as it can be.
        Err(_) => TcpListener::bind(("0.0.0.0", port)).is_ok(),
    }
}

/// The user who listens on a loopback address, as only `/proc` tells; `None` if it does not, or nobody does.
pub(super) fn listener_uid(address: SocketAddr) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text: String = tables.iter().filter_map(|table| std::fs::read_to_string(table).ok()).collect();
    uid_in(&text, address)
}

/// Finds the listener in the kernel's tables: the one on that very address before the one on all addresses.
fn uid_in(tables: &str, address: SocketAddr) -> Option<u32> {
    const LISTENING: &str = "0A";
    let host = match address {
        SocketAddr::V4(address) => hexadecimal(&address.ip().octets()),
        SocketAddr::V6(address) => hexadecimal(&address.ip().octets()),
    };
    let port = format!("{:04X}", address.port());
    let listeners = tables.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (local_host, local_port) = words.get(1)?.split_once(':')?;
        let is_it = *words.get(3)? == LISTENING
            && local_port == port
            && (local_host == host || local_host.bytes().all(|digit| digit == b'0'));
        is_it.then_some((local_host == host, words.get(7)?.parse().ok()?))
    });
    listeners.max_by_key(|(is_exact, _)| *is_exact).map(|(_, uid)| uid)
}

/// As the kernel prints addresses: words of 32 bits in the machine's order.
fn hexadecimal(octets: &[u8]) -> String {
    let group = |bytes: &[u8]| bytes.iter().fold(0, |group, byte| group << 8 | u32::from(*byte));
    octets.chunks(4).map(|bytes| format!("{:08X}", group(bytes).to_be())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::endpoint::loopback;

    #[test]
    fn each_port_is_another_one_outside_the_ephemeral_range() {
        let mut ports = Ports { ephemeral: 32_768..=60_999, last: 32_766 };
        assert_eq!(ports.take_if(|_| true), Ok(32_767));
        assert_eq!(ports.take_if(|_| true), Ok(61_000));
        assert_eq!(ports.take_if(|port| port != 61_001), Ok(61_002));
        ports.last = u16::MAX;
        assert_eq!(ports.take_if(|_| true), Ok(FIRST_PORT));
    }

    #[test]
    fn where_every_port_is_ephemeral_or_taken_it_is_said_what_would_do() {
        let mut ports = Ports { ephemeral: 1024..=65_535, last: FIRST_PORT };
        assert!(ports.take_if(|_| true).is_err_and(|error| error.contains("ip_local_port_range")));
        let mut ports = Ports { ephemeral: 32_768..=60_999, last: FIRST_PORT };
        assert!(ports.take_if(|_| false).is_err());
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        assert!(!is_free(address.port()));
        assert_eq!(listener_uid(address), Some(nix::unistd::geteuid().as_raw()));
    }

    #[test]
    fn the_user_of_a_listener_is_in_the_kernels_tables() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  0 1 1 0 100\n";
        let any = "   1: 00000000000000000000000000000000:1F90 00:0 0A 0:0 00:0 0  33  0 2 1 0 100\n";
        let connected = "   2: 0100007F:1F90 0100007F:9999 01 0:0 00:0 0  7  0 3 1 0 100\n";
        let loopback_v4 = loopback(8080, false);
        assert_eq!(uid_in(&format!("{connected}{any}{v4}"), loopback_v4), Some(1000));
        assert_eq!(uid_in(&format!("{connected}{any}"), loopback(8080, true)), Some(33));
        assert_eq!(uid_in(connected, loopback_v4), None);
        assert_eq!(uid_in(v4, loopback(8081, false)), None);
        let v6 = " 0: 00000000000000000000000001000000:1F90 0:0 0A 0:0 00:0 0  5  0 2 1 0 100\n";
        assert_eq!(uid_in(v6, loopback(8080, true)), Some(5));
    }

    #[test]
    fn two_servers_begin_at_different_places_of_the_whole_range() {
        let span = u64::from(u16::MAX - FIRST_PORT) + 1;
        for (seed, last) in [(0, FIRST_PORT), (1, FIRST_PORT + 1), (span - 1, u16::MAX), (span, FIRST_PORT)] {
            assert_eq!(Ports::new(seed).last, last, "{seed}");
        }
    }

    #[test]
    fn ports_go_round_past_the_taken_ones_as_a_plain_walk_does() {
        let ephemeral = 20_000..=50_000;
        let is_free = |port: u16| !port.is_multiple_of(3);
        let all: Vec<u16> =
            (FIRST_PORT..=u16::MAX).filter(|port| is_free(*port) && !ephemeral.contains(port)).collect();
        let mut ports = Ports { ephemeral, last: u16::MAX };
        for port in all.iter().chain(&all) {
            assert_eq!(ports.take_if(is_free), Ok(*port));
        }
    }

    #[test]
    fn the_kernels_range_is_two_numbers() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32_768..=60_999));
        for text in ["", "1", "1 x", "x 1", "70000 1"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_port_that_nobody_listens_on_is_free() {
        // Another process may take one in between.
        let is_left_free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
            let address = listener.local_addr().expect("its address");
            drop(listener);
            is_free(address.port()) && listener_uid(address).is_none()
        };
        assert!((0..20).any(|_| is_left_free()));
    }

    #[test]
    fn of_two_listeners_the_one_on_that_very_address_counts() {
        let any = " 0: 00000000:1F90 0:0 0A 0:0 00:0 0  33  0 2 1 0 100\n";
        let own = " 1: 0100007F:1F90 0:0 0A 0:0 00:0 0  1000  0 2 1 0 100\n";
        let other = " 2: 0200007F:1F90 0:0 0A 0:0 00:0 0  7  0 2 1 0 100\n";
        for table in [format!("{any}{own}{other}"), format!("{other}{own}{any}")] {
            assert_eq!(uid_in(&table, loopback(8080, false)), Some(1000));
        }
        assert_eq!(uid_in(other, loopback(8080, false)), None);
        assert_eq!(uid_in(&format!("{other}{any}"), loopback(8080, false)), Some(33));
    }
}
