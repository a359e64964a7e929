//! Who the client behind trusted proxies is, by the addresses in `X-Forwarded-For`.

use super::field;
use httparse::Header;
use std::net::{IpAddr, SocketAddr};

/// The rightmost address of the chain that no trusted proxy has: what stands left of it was said by somebody whom nobody
/// vouches for. Where all are trusted, the leftmost. An entry that is no address (`unknown`) ends the search too, with
/// the last one before it. `None`: the chain names nobody, and the client is who has connected.
pub fn client(fields: &[Header<'_>], is_proxy: &dyn Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let lines = fields.iter().rev().filter(|header| field::is(header.name, b"x-forwarded-for"));
    let entries = lines.flat_map(|header| field::list(header.value).rev()).filter(|entry| !entry.is_empty());
    let mut client = None;
    for address in entries.map_while(address) {
        client = Some(address);
        if !is_proxy(address) {
            break;
        }
    }
    client
}

/// An address, IPv6 perhaps in brackets, and perhaps a port behind it, as some load balancers write it.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    // An IPv4 address in IPv6 clothes counts as IPv4.
    text.parse().ok().or_else(with_port).or_else(bare).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_of(lines: &[&str]) -> Option<String> {
        let fields: Vec<Header<'_>> = lines
            .iter()
            .map(|line| Header { name: "X-Forwarded-For", value: line.as_bytes() })
            .chain([Header { name: "X-Other", value: b"192.0.2.99" }])
            .collect();
        let is_proxy = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets()[0] == 10,
            IpAddr::V6(address) => address.is_loopback(),
        };
        client(&fields, &is_proxy).map(|address| address.to_string())
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_proxys() {
        for (lines, expected) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["192.0.2.1, 10.0.0.1"], "192.0.2.1"),
            (&["6.6.6.6, 192.0.2.1, 10.0.0.2,10.0.0.1"], "192.0.2.1"),
            (&["6.6.6.6", "192.0.2.1, ::1", " 10.0.0.1 "], "192.0.2.1"),
            (&["6.6.6.6, 192.0.2.1, , 10.0.0.1,"], "192.0.2.1"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["192.0.2.1:4711"], "192.0.2.1"),
            (&["2001:DB8:0::1"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["[2001:db8::1]:4711"], "2001:db8::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, ::ffff:10.0.0.1"], "192.0.2.1"),
        ] {
            assert_eq!(client_of(lines).as_deref(), Some(expected), "{lines:?}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        assert_eq!(client_of(&["192.0.2.1, unknown, 10.0.0.1"]).as_deref(), Some("10.0.0.1"));
        for nobody in [
            "",
            "unknown",
            ",",
            "192.0.2.1, _hidden",
            "1.2.3",
            "192.0.2.1 10.0.0.1",
            "fe80::1%eth0",
            "\u{e9}",
        ] {
            assert_eq!(client_of(&[nobody]), None, "{nobody}");
        }
        assert_eq!(client_of(&[]), None);
    }
}
