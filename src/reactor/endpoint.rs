//! Where a worker listens.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::{Path, PathBuf};

/// Where a worker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    Unix(PathBuf),
    /// A command's `{port}`. Whether it listens on 127.0.0.1 or only on ::1 is found out.
    Loopback {
        port: u16,
        is_ipv6: bool,
    },
}

impl Endpoint {
    /// The socket's file, if it is one.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Loopback { .. } => None,
        }
    }

    /// The address, if it has a port.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match *self {
            Endpoint::Unix(_) => None,
            Endpoint::Loopback { port, is_ipv6 } => Some(loopback(port, is_ipv6)),
        }
    }

    /// Some servers take `localhost` for ::1 alone.
    pub(super) fn try_other_address(&mut self) {
        match self {
            Endpoint::Unix(_) => {}
            Endpoint::Loopback { is_ipv6, .. } => *is_ipv6 = !*is_ipv6,
        }
    }

    /// The last user of the file is gone.
    pub(super) fn remove_file(&self) {
        if let Some(path) = self.path() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where a server of this machine may listen that was told nothing but a port.
pub(super) fn loopback(port: u16, is_ipv6: bool) -> SocketAddr {
    if is_ipv6 {
        SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0).into()
    } else {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_listens_at_a_path_or_on_a_port_in_one_of_two_families() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        std::fs::write(&path, "").expect("a file");
        let mut unix = Endpoint::Unix(path.clone());
        unix.try_other_address();
        assert_eq!((unix.path(), unix.address()), (Some(path.as_path()), None));
        unix.remove_file();
        assert!(!path.exists());

        let mut port = Endpoint::Loopback { port: 80, is_ipv6: false };
        let address = |port: &Endpoint| port.address().expect("it has one").to_string();
        assert_eq!((port.path(), address(&port).as_str()), (None, "127.0.0.1:80"));
        port.try_other_address();
        assert_eq!(address(&port), "[::1]:80");
        port.try_other_address();
        assert_eq!(address(&port), "127.0.0.1:80");
    }
}
