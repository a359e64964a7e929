//! `--trust-proxy`.

use super::Config;
use std::net::IpAddr;

/// The proxies that are believed when they say who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    All,
    Network { address: IpAddr, prefix_bits: u8 },
}

impl Config {
    /// Whether this peer is a trusted proxy. A Unix peer counts as loopback.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        self.trust_proxy.iter().any(|trust| match (trust, peer) {
            (Trust::All, _) => true,
            (Trust::Network { address, .. }, None) => address.is_loopback(),
            (Trust::Network { address, prefix_bits }, Some(peer)) => in_network(peer, *address, *prefix_bits),
        })
    }
}

fn in_network(peer: IpAddr, network: IpAddr, prefix_bits: u8) -> bool {
    let shared_bits = match (peer.to_canonical(), network.to_canonical()) {
        (IpAddr::V4(peer), IpAddr::V4(network)) => (peer.to_bits() ^ network.to_bits()).leading_zeros(),
        (IpAddr::V6(peer), IpAddr::V6(network)) => (peer.to_bits() ^ network.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    shared_bits >= u32::from(prefix_bits)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    #[test]
    fn trust_is_by_network() {
        let both = config("app --trust-proxy=10.0.0.0/8,loopback");
        let trusts = |address: &str| both.trusts(address.parse().ok());
        assert!(trusts("10.1.2.3") && trusts("127.0.0.1") && trusts("::1") && trusts("::ffff:10.1.2.3"));
        assert!(!trusts("11.0.0.1") && !trusts("2001:db8::1"));
        assert!(both.trusts(None), "a Unix peer counts as loopback");
        for (clothed, peer, is_trusted) in [
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.1.2.3", "::ffff:10.1.2.3", true),
            ("::ffff:10.1.2.3", "10.1.2.4", false),
        ] {
            let config = config(&format!("app --trust-proxy={clothed}"));
            assert_eq!(config.trusts(peer.parse().ok()), is_trusted, "{clothed} {peer}");
        }
    }

    #[test]
    fn networks_are_as_wide_as_their_prefix() {
        for (network, inside, outside) in [
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("10.1.2.0/23", "10.1.3.255", "10.1.4.0"),
            ("128.0.0.0/1", "255.0.0.1", "127.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::"),
            ("2001:db8::/96", "2001:db8::ffff:ffff", "2001:db8::1:0:0"),
            ("::ffff:10.0.0.0/120", "10.0.0.255", "10.0.1.0"),
            ("loopback", "127.255.0.1", "::2"),
            ("0.0.0.0/0", "192.0.2.1", "2001:db8::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
        ] {
            let config = config(&format!("app --trust-proxy={network}"));
            let trusts = |peer: &str| config.trusts(peer.parse().ok());
            assert_eq!((trusts(inside), trusts(outside)), (true, false), "{network}");
        }
        let all = config("app --trust-proxy=all");
        assert!(all.trusts(None) && all.trusts("192.0.2.1".parse().ok()));
        // Neither a prefix of IPv4 addresses nor one of others.
        assert!(!config("app --trust-proxy=::ffff:10.0.0.0/64").trusts("10.0.0.0".parse().ok()));
        assert!(!config("app --trust-proxy=10.0.0.0/8").trusts(None), "a Unix peer counts as loopback");
        assert!(!config("app --trust-proxy=,").trusts("127.0.0.1".parse().ok()));
    }
}
