//! Who the client behind trusted proxies is, by the addresses in `X-Forwarded-For`.

use super::field;
use httparse::Header;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An address of the chain.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'b> {
    pub address: IpAddr,
    /// Its text, if the chain has it in the canonical form.
    text: Option<&'b [u8]>,
}

impl Hop<'_> {
    /// Writes the canonical text.
    pub fn push(&self, out: &mut Vec<u8>) {
        match self.text {
            Some(text) => out.extend_from_slice(text),
            // Writing to a Vec cannot fail.
            None => drop(write!(out, "{}", self.address)),
        }
    }
}

/// The client's address: the rightmost one of the chain that is not a trusted proxy's. Everything left of it comes from
/// somebody who is not trusted. If all are trusted, it is the leftmost. An entry that is not an address (`unknown`)
/// ends the search; the client is then the last address before it. `None`: the chain has none, and the client is the
/// peer.
pub fn client<'b>(fields: &[Header<'b>], is_proxy: &dyn Fn(IpAddr) -> bool) -> Option<Hop<'b>> {
    let lines = fields.iter().rev().filter(|header| field::is(header.name, b"x-forwarded-for"));
    let entries = lines.flat_map(|header| field::list(header.value).rev()).filter(|entry| !entry.is_empty());
    let mut client = None;
    for hop in entries.map_while(hop) {
        client = Some(hop);
        if !is_proxy(hop.address) {
            break;
        }
    }
    client
}

/// Parses an address. IPv6 may stand in brackets, and a port may follow, as some load balancers write it.
fn hop(entry: &[u8]) -> Option<Hop<'_>> {
    let text = std::str::from_utf8(entry).ok()?;
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(Hop { address: address.into(), text: Some(entry) });
    }
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse().ok().or_else(with_port).or_else(bare)?;
    // An IPv4-mapped IPv6 address counts as IPv4.
    Some(Hop { address: address.to_canonical(), text: None })
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
        let mut text = Vec::new();
        client(&fields, &is_proxy)?.push(&mut text);
        String::from_utf8(text).ok()
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
