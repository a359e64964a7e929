//! The PROXY protocol, versions 1 and 2: what a proxy says in front of a connection's first byte about who has connected
//! to it (haproxy.org, proxy-protocol.txt). Pure: bytes in, an address out.
//!
//! ```text
//! PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n              version 1: a line
//! \r\n\r\n\0\r\nQUIT\n 21 11 00 0c <addresses> <extensions>    version 2: a signature, and lengths
//! ```
//!
//! Strict: what is not a header from its first byte on is refused at that byte, since behind it anybody could say
//! anything. Extensions (TLVs) of version 2 are skipped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest header of version 1, with its line end.
pub const MAX_V1_BYTES: usize = 107;
/// The longest header of version 2: proxies send 16 to 232 bytes of addresses, and some extensions.
pub const MAX_V2_BYTES: usize = 536;

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_FIXED_BYTES: usize = 16;

/// Who has connected to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The proxy itself (`LOCAL`: its health checks), or somebody that it does not know: the connection's own address
    /// holds.
    Connection,
    /// IPv4 in IPv6 clothes is undressed.
    Ip(IpAddr),
    /// A Unix socket of the proxy's machine.
    Unix,
}

/// What the bytes amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// A beginning of a header.
    Partial,
    /// A header of so many bytes; what follows is the client's.
    Whole { source: Source, bytes: usize },
}

/// Why it is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It begins otherwise: with a request, say.
    Missing,
    TooLong,
    /// Version 1: the line is not as it must be.
    Line,
    /// Version 2: a version, command or family that there is not, or none for streams.
    Kind,
    /// Version 2: shorter than its addresses.
    Addresses,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Missing => "it does not begin with a PROXY protocol header",
            Fault::TooLong => "its PROXY protocol header is too long",
            Fault::Line => "its PROXY protocol line cannot be read",
            Fault::Kind => "its PROXY protocol header is of an unknown kind",
            Fault::Addresses => "its PROXY protocol header is too short for its addresses",
        })
    }
}

/// Looks at all bytes of a connection so far.
///
/// # Errors
/// Why they are no header, at the first byte that says so.
pub fn scan(bytes: &[u8]) -> Result<Scan, Fault> {
    let agrees = |beginning: &[u8]| bytes.iter().zip(beginning).all(|(one, other)| one == other);
    match () {
        () if agrees(V1_PREFIX) => scan_line(bytes),
        () if agrees(V2_SIGNATURE) => scan_binary(bytes),
        () => Err(Fault::Missing),
    }
}

fn scan_line(bytes: &[u8]) -> Result<Scan, Fault> {
    let within = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    match within.iter().position(|&byte| byte == b'\n' || byte == 0) {
        Some(end) if bytes[..=end].ends_with(b"\r\n") => {
            let line = std::str::from_utf8(&bytes[..end - 1]).map_err(|_| Fault::Line)?;
            if !line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
                return Err(Fault::Line);
            }
            Ok(Scan::Whole { source: source_of_line(line).ok_or(Fault::Line)?, bytes: end + 1 })
        }
        Some(_) => Err(Fault::Line),
        None if bytes.len() >= MAX_V1_BYTES => Err(Fault::TooLong),
        None => Ok(Scan::Partial),
    }
}

/// `PROXY TCP4 <source> <destination> <source port> <destination port>`, or `PROXY UNKNOWN` with anything behind it.
fn source_of_line(line: &str) -> Option<Source> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(Source::Connection);
    }
    let (source, destination) = (words.next()?, words.next()?);
    let is_port = |word: &str| {
        let is_plain = word == "0" || !word.starts_with(['0', '+']);
        is_plain && word.parse::<u16>().is_ok()
    };
    let has_ports = is_port(words.next()?) && is_port(words.next()?) && words.next().is_none();
    let source: IpAddr = match family {
        "TCP4" => {
            destination.parse::<Ipv4Addr>().ok()?;
            source.parse::<Ipv4Addr>().ok()?.into()
        }
        "TCP6" => {
            destination.parse::<Ipv6Addr>().ok()?;
            source.parse::<Ipv6Addr>().ok()?.into()
        }
        _ => return None,
    };
    has_ports.then_some(Source::Ip(source.to_canonical()))
}

fn scan_binary(bytes: &[u8]) -> Result<Scan, Fault> {
    let [.., command, family, high, low] = match bytes.first_chunk::<V2_FIXED_BYTES>() {
        Some(fixed) => *fixed,
        None => {
            let is_known = bytes.get(V2_SIGNATURE.len()).is_none_or(|command| matches!(command, 0x20 | 0x21));
            return if is_known { Ok(Scan::Partial) } else { Err(Fault::Kind) };
        }
    };
    let length = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    let family = match (command, family) {
        // The proxy's own connection, whatever family it names.
        (0x20, _) | (0x21, 0x00) => None,
        (0x21, 0x11) => Some(Family::Ipv4),
        (0x21, 0x21) => Some(Family::Ipv6),
        (0x21, 0x31) => Some(Family::Unix),
        _ => return Err(Fault::Kind),
    };
    if length > MAX_V2_BYTES {
        return Err(Fault::TooLong);
    }
    if family.is_some_and(|family| length < V2_FIXED_BYTES + family.addresses_bytes()) {
        return Err(Fault::Addresses);
    }
    let Some(addresses) = bytes.get(V2_FIXED_BYTES..length) else { return Ok(Scan::Partial) };
    let source = match family {
        None => Some(Source::Connection),
        Some(Family::Ipv4) => addresses.first_chunk::<4>().map(|bits| Source::Ip(IpAddr::from(*bits))),
        Some(Family::Ipv6) => {
            addresses.first_chunk::<16>().map(|bits| Source::Ip(IpAddr::from(*bits).to_canonical()))
        }
        Some(Family::Unix) => Some(Source::Unix),
    };
    Ok(Scan::Whole { source: source.ok_or(Fault::Addresses)?, bytes: length })
}

#[derive(Clone, Copy)]
enum Family {
    Ipv4,
    Ipv6,
    Unix,
}

impl Family {
    /// Both addresses, and their ports.
    fn addresses_bytes(self) -> usize {
        match self {
            Family::Ipv4 => 12,
            Family::Ipv6 => 36,
            Family::Unix => 216,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, behind: &[u8]) -> Vec<u8> {
        let length = u16::try_from(behind.len()).expect("short").to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, behind].concat()
    }

    fn source(header: &[u8]) -> Source {
        let with_more = [header, b"GET / HTTP/1.1\r\n"].concat();
        for end in 0..header.len() {
            assert_eq!(scan(&header[..end]), Ok(Scan::Partial), "{end} bytes of {header:?}");
        }
        assert_eq!(scan(&with_more), scan(header));
        match scan(header) {
            Ok(Scan::Whole { source, bytes }) if bytes == header.len() => source,
            other => panic!("{header:?}: {other:?}"),
        }
    }

    fn ip(text: &str) -> Source {
        Source::Ip(text.parse().expect("an address"))
    }

    #[test]
    fn lines_of_version_1_name_the_client() {
        let longest = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535";
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443", ip("192.0.2.7")),
            ("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535", ip("0.0.0.0")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 56324 443", ip("2001:db8::7")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2", ip("192.0.2.7")),
            ("PROXY UNKNOWN", Source::Connection),
            (longest, Source::Connection),
        ] {
            assert_eq!(source(format!("{line}\r\n").as_bytes()), expected, "{line}");
        }
        let line = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1_BYTES - 16));
        assert_eq!((line.len(), source(line.as_bytes())), (MAX_V1_BYTES, Source::Connection));
    }

    #[test]
    fn headers_of_version_2_name_the_client() {
        let ipv4 = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];
        let mut ipv6 = [0; 36];
        ipv6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().expect("an address").octets());
        assert_eq!(source(&v2(0x21, 0x11, &ipv4)), ip("192.0.2.7"));
        assert_eq!(source(&v2(0x21, 0x21, &ipv6)), ip("2001:db8::7"));
        ipv6[..16].copy_from_slice(&Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets());
        assert_eq!(source(&v2(0x21, 0x21, &ipv6)), ip("192.0.2.7"));
        assert_eq!(source(&v2(0x21, 0x31, &[0; 216])), Source::Unix);
        // With extensions, up to the bound.
        let with_more = [&ipv4[..], &[0xaa; MAX_V2_BYTES - V2_FIXED_BYTES - 12]].concat();
        assert_eq!(source(&v2(0x21, 0x11, &with_more)), ip("192.0.2.7"));
        for (command, family, behind) in [(0x20, 0x00, &[][..]), (0x20, 0x11, &ipv4), (0x21, 0x00, &[1, 2])] {
            assert_eq!(source(&v2(command, family, behind)), Source::Connection);
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_the_byte_that_says_so() {
        for (bytes, fault) in [
            (&b"GET / HTTP/1.1\r\n"[..], Fault::Missing),
            (b"P0", Fault::Missing),
            (b"\r\n\r\n\0\r\nQUIP", Fault::Missing),
            (b"\x16\x03\x01", Fault::Missing),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", Fault::Line),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", Fault::Line),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", Fault::Line),
            (b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n", Fault::Line),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", Fault::Line),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", Fault::Line),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", Fault::Line),
            (b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", Fault::Line),
            (b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", Fault::Line),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n", Fault::Line),
            (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", Fault::Line),
            (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", Fault::Line),
            (b"PROXY \r\n", Fault::Line),
            (b"PROXY UNKNOWN\xff\r\n", Fault::Line),
            (b"PROXY UNKNOWN\0", Fault::Line),
            (&[b'x'; 107].map(|byte| byte), Fault::Missing),
        ] {
            assert_eq!(scan(bytes), Err(fault), "{:?}", String::from_utf8_lossy(bytes));
        }
        let long = [V1_PREFIX, &[b'x'; MAX_V1_BYTES]].concat();
        assert_eq!(scan(&long[..MAX_V1_BYTES]), Err(Fault::TooLong));
        assert_eq!(scan(&long[..MAX_V1_BYTES - 1]), Ok(Scan::Partial));
        for (command, family, length, fault) in [
            (0x11, 0x11, 12, Fault::Kind),
            (0x22, 0x11, 12, Fault::Kind),
            (0x21, 0x12, 12, Fault::Kind),
            (0x21, 0x41, 12, Fault::Kind),
            (0x21, 0x11, 11, Fault::Addresses),
            (0x21, 0x21, 35, Fault::Addresses),
            (0x21, 0x31, 215, Fault::Addresses),
            (0x21, 0x11, MAX_V2_BYTES - V2_FIXED_BYTES + 1, Fault::TooLong),
            (0x20, 0x00, 65535, Fault::TooLong),
        ] {
            let header = v2(command, family, &vec![0; length]);
            // Known by its fixed part.
            assert_eq!(scan(&header[..V2_FIXED_BYTES]), Err(fault), "{command:x} {family:x} {length}");
        }
    }

    #[test]
    fn the_log_says_what_is_wrong_with_a_header() {
        for (fault, cause) in [
            (Fault::Missing, "does not begin"),
            (Fault::TooLong, "too long"),
            (Fault::Line, "line cannot be read"),
            (Fault::Kind, "unknown kind"),
            (Fault::Addresses, "too short for its addresses"),
        ] {
            let text = fault.to_string();
            assert!(text.contains("PROXY protocol") && text.contains(cause), "{text}");
        }
    }
}
