//! Checks a Host: it must be `host [":" port]` of RFC 3986, and valid in the URL Standard too, since apps put it into
//! `new URL(…)`, which throws otherwise.

use super::{MAX_HOST_BYTES, reason::Bad};
use std::net::Ipv6Addr;

/// Accepts a name or an address and an optional port; no user information, and not nothing (RFC 9110 §4.2.1).
///
/// # Errors
/// [`Bad::Host`], [`Bad::HostTooLong`].
pub fn check(host: &[u8]) -> Result<(), Bad> {
    if host.len() > MAX_HOST_BYTES {
        return Err(Bad::HostTooLong);
    }
    let is_fit = if let Some(remaining) = host.strip_prefix(b"[") {
        remaining
            .iter()
            .position(|&byte| byte == b']')
            .is_some_and(|end| is_ipv6(&remaining[..end]) && is_port(&remaining[end + 1..]))
    } else {
        check_name(host)
    };
    if is_fit { Ok(()) } else { Err(Bad::Host) }
}

/// What a byte is in a registered name (`reg-name`), which is a name and not an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Unreserved or a sub-delimiter.
    Plain,
    /// Begins an escape of two hexadecimal digits.
    Escape,
    Other,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => Class::Plain,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => Class::Plain,
            b'%' => Class::Escape,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

/// A name and perhaps a port.
fn check_name(host: &[u8]) -> bool {
    let end = host.iter().position(|&byte| CLASSES[usize::from(byte)] != Class::Plain).unwrap_or(host.len());
    let (name, remaining) = host.split_at(end);
    if remaining.first() != Some(&b'%') {
        return !name.is_empty() && is_port(remaining) && is_name_or_ipv4(name);
    }
    // Escapes in a name are rare, so they may cost more.
    let end = host.iter().position(|&byte| byte == b':').unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    unescape(name).is_some_and(|name| is_name_or_ipv4(&name)) && is_port(port)
}

/// Decodes escapes. `None` if one is malformed or stands for a byte that a host cannot have. Names beyond ASCII are
/// refused: whether one is valid depends on the version of Unicode's tables, so it has to come as `xn--…`.
fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(name.len());
    let mut remaining = name;
    while let [byte, behind @ ..] = remaining {
        remaining = behind;
        plain.push(match (CLASSES[usize::from(*byte)], behind) {
            (Class::Plain, _) => *byte,
            (Class::Escape, [high, low, behind @ ..]) => {
                remaining = behind;
                let digit = |&byte: &u8| char::from(byte).to_digit(16);
                let byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
                // What is allowed unescaped, and the few bytes that have another meaning in a URL.
                let is_fit =
                    CLASSES[usize::from(byte)] == Class::Plain || matches!(byte, b'"' | b'`' | b'{' | b'}');
                is_fit.then_some(byte)?
            }
            (Class::Escape | Class::Other, _) => return None,
        });
    }
    Some(plain)
}

/// A name whose last part is a number must be an IPv4 address.
fn is_name_or_ipv4(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".").filter(|name| !name.is_empty()).unwrap_or(name);
    let last = name.iter().rposition(|&byte| byte == b'.').map_or(name, |dot| &name[dot + 1..]);
    // A number begins with a digit, and the last part of most names does not.
    let ends_in_number = last.first().is_some_and(u8::is_ascii_digit)
        && (last.iter().all(u8::is_ascii_digit) || ipv4_number(last).is_some());
    !ends_in_number || is_ipv4(name)
}

/// One to four numbers; the last may stand for several bytes (`127.1`), as in `inet_aton`.
fn is_ipv4(address: &[u8]) -> bool {
    let (mut parts, mut last) = (0u32, 0);
    for part in address.split(|&byte| byte == b'.') {
        let Some(number) = ipv4_number(part) else { return false };
        if parts == 4 || last > 255 {
            return false;
        }
        (parts, last) = (parts + 1, number);
    }
    last < 1 << (8 * (5 - parts))
}

/// Decimal, octal with a leading 0, hexadecimal with 0x. Numbers that no IPv4 address can contain become one value.
fn ipv4_number(part: &[u8]) -> Option<u64> {
    let (digits, radix) = match part {
        [b'0', b'x' | b'X', digits @ ..] => (digits, 16),
        [b'0', digits @ ..] => (digits, 8),
        [] => return None,
        digits => (digits, 10),
    };
    digits.iter().try_fold(0u64, |number, &byte| {
        let digit = char::from(byte).to_digit(radix)?;
        Some((number * u64::from(radix) + u64::from(digit)).min(1 << 32))
    })
}

/// Without a zone, which has a meaning on one machine only.
fn is_ipv6(address: &[u8]) -> bool {
    std::str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Accepts nothing, or a colon and an optional number.
fn is_port(port: &[u8]) -> bool {
    let [b':', digits @ ..] = port else { return port.is_empty() };
    let number = digits.iter().try_fold(0u32, |number, &byte| {
        byte.is_ascii_digit().then(|| (number * 10 + u32::from(byte - b'0')).min(1 << 16))
    });
    number.is_some_and(|number| number <= u32::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[&str] = &[
        "a",
        "A.Example",
        "a:80",
        "a:",
        "a:0",
        "a:65535",
        "a:00080",
        "a.example.",
        "a.example.:80",
        "xn--bcher-kva.example",
        "my_host",
        "a-b",
        "-",
        "~a!$&'()*+,;=",
        "1a",
        "a1",
        "1.a",
        "0x",
        "1.2.3.4",
        "1.2.3.4:5002",
        "1.2.3.4.",
        "127.1",
        "0x7f.1",
        "0",
        "4294967295",
        "1.16777215",
        "1.2.65535",
        "017700000001",
        "0.0.0.0",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::1]:5002",
        "[::1]:",
        "[2001:DB8::1]",
        "[::ffff:1.2.3.4]",
        "[1:2:3:4:5:6:7:8]",
        "%41",
        "a%2Eb",
        "a%2eb:80",
        "%31.2.3.4",
        "a%5F",
        "a..b",
        ".a",
        "a.-",
        "1.2.3.a",
        "a.0x1g",
        "a.1a",
        "1.0x",
    ];
    const BAD: &[&str] = &[
        "",
        ":80",
        "a:65536",
        "a:99999",
        "a:999999999999999999999",
        "a:b",
        "a:-1",
        "a:+1",
        "a: 1",
        "a:80:80",
        "a::80",
        "%",
        "%z",
        "%zz",
        "a%",
        "a%4",
        "a%zz.b",
        "a%00",
        "a%20b",
        "a%2fb",
        "a%3a80",
        "a%40b",
        "a%25",
        "a%5b",
        "%C3%A9",
        "%ff",
        "a:%38",
        "%3a80",
        "%31.2.3.4.5",
        "256.1.1.1",
        "1.2.3.256",
        "1.2.3.4.5",
        "1.2.3.4.5.",
        "1..2",
        ".1",
        "1.2.3.08",
        "09",
        "08.1",
        "a.1",
        "a.b.0x1",
        "a.0",
        "4294967296",
        "1.16777216",
        "0x100000000",
        "1.2.3.0xg.1",
        "99999999999999999999999",
        "[",
        "[]",
        "[]:80",
        "[zzz]",
        "[::1",
        "::1",
        "[::1]a",
        "[::1]:a",
        "[::1]:65536",
        "[:::1]",
        "[1:2:3:4:5:6:7]",
        "[1:2:3:4:5:6:7:8:9]",
        "[::1%25eth0]",
        "[fe80::1%eth0]",
        "[v1.a]",
        "[::1.2.3]",
        "[::1.2.3.256]",
        "[::01.2.3.4]",
        "[12345::]",
        "[1.2.3.4]",
        "a]",
        "]",
        "a@b",
        "a b",
        "a/b",
        "a\\b",
        "a?b",
        "a#b",
        "a|b",
        "a^b",
        "a<b",
        "a>b",
        "a\"b",
        "a`b",
        "a{b",
        "\u{e9}",
        "a\tb",
    ];

    #[test]
    fn hosts_are_hosts() {
        for good in GOOD {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in BAD {
            assert_eq!(check(bad.as_bytes()), Err(Bad::Host), "{bad}");
        }
        assert_eq!(check(&[b'a'; MAX_HOST_BYTES]), Ok(()));
        assert_eq!(check(&[b'a'; MAX_HOST_BYTES + 1]), Err(Bad::HostTooLong));
    }
}
