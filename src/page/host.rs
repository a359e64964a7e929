//! Under which host the page is shown. A stranger's name can be made to lead to any address (DNS rebinding): a page of
//! his in an operator's browser could then read this one as its own. An address and `localhost` lead nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The names that were given (`--page-host`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostNames(Vec<String>);

impl HostNames {
    pub(crate) fn new(names: Vec<String>) -> Self {
        HostNames(names)
    }

    /// Whether the page is shown under this host, which may have a port.
    pub(crate) fn allow(&self, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else { return false };
        if let Some(inner) = host.strip_prefix('[') {
            return inner.split_once(']').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
        }
        let name = host.split(':').next().unwrap_or_default();
        let is_given = |given: &String| given.eq_ignore_ascii_case(name);
        name.parse::<Ipv4Addr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.0.iter().any(is_given)
    }
}

/// Whether a name can be given: letters, digits, dots and dashes; an address needs none.
pub(crate) fn is_name(name: &str) -> bool {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-');
    (1..=253).contains(&name.len()) && name.chars().all(is_plain) && name.parse::<IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_given_names_are_allowed() {
        let names = HostNames::new(vec!["shop.internal".into()]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:5003",
            "192.0.2.7:80",
            "[::1]:5003",
            "[2001:db8::1]",
            "localhost",
            "LocalHost:80",
            "shop.internal",
            "Shop.Internal:5003",
        ] {
            assert!(names.allow(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:127.0.0.1",
            "localhost.",
            "shop.internal.evil",
            "xshop.internal",
            "127.1",
            "2130706433",
            "[evil]",
            "[::1",
            "\u{ff}",
        ] {
            assert!(!names.allow(host.as_bytes()), "{host}");
        }
        assert!(!HostNames::default().allow(b"shop.internal"));
    }

    #[test]
    fn a_name_is_plain() {
        for (name, expected) in
            [("a", true), ("shop.internal", true), ("a-1", true), ("", false), ("a:80", false)]
        {
            assert_eq!(is_name(name), expected, "{name}");
        }
        assert!(!is_name("10.0.0.1") && !is_name("http://a") && !is_name(&"a".repeat(254)));
    }
}
