//! The listeners that the command line asks for: bound, or given by somebody who has them already.

use super::inherited::{Inherited, Service};
use super::io::listen::{self, Listener};
use super::io::socket_access::SocketAccess;
use super::source::StartError;
use crate::config::{Config, Listen};
use crate::paths::MAX_SOCKET_PATH_BYTES;
use std::io;
use std::net::IpAddr;

/// A port that is free in one family may be taken in the other: so many are tried for `localhost` and port 0.
const MAX_FREE_PORTS: usize = 8;

/// Listens in all places of a service.
///
/// # Errors
/// One line about the first place that cannot be listened on.
pub(super) fn listen_on(
    service: Service,
    config: &Config,
    access: Option<SocketAccess>,
    inherited: &mut Inherited,
) -> Result<Vec<Listener>, StartError> {
    let (places, proxied) = match service {
        Service::Http => (&config.listen, config.proxied.as_slice()),
        Service::Metrics => (&config.metrics, [].as_slice()),
        Service::Page => (&config.page, [].as_slice()),
    };
    let mut listeners = Vec::new();
    for (index, at) in places.iter().enumerate() {
        let has_proxy_header = proxied.get(index).copied().unwrap_or(false);
        for mut listener in listen_at(service, at, access, inherited)? {
            listener.expect_proxy_header(has_proxy_header);
            listeners.push(listener);
        }
    }
    Ok(listeners)
}

/// Each listener remembers its place, by which the server after this one asks for it.
fn listen_at(
    service: Service,
    at: &Listen,
    access: Option<SocketAccess>,
    inherited: &mut Inherited,
) -> Result<Vec<Listener>, StartError> {
    let places = [at.to_string(), format!("{at}, IPv6")];
    let is_localhost = matches!(at, Listen::Localhost { .. });
    let mut given = Vec::new();
    for place in &places[..if is_localhost { 2 } else { 1 }] {
        given.extend(inherited.listener(service, at, place).transpose()?);
    }
    let listeners = match (given.is_empty(), at) {
        (false, _) => Ok(given),
        (true, Listen::Localhost { port }) => bind_localhost(*port),
        (true, _) => Listener::bind(at, access).map(|listener| vec![listener]),
    };
    let mut listeners = listeners.map_err(|error| cannot_listen(service.token(), at, &error))?;
    for (listener, place) in listeners.iter_mut().zip(places) {
        listener.remember_place(place);
    }
    Ok(listeners)
}

/// One port on both loopback addresses; on 127.0.0.1 alone where this machine has no IPv6.
fn bind_localhost(port: u16) -> io::Result<Vec<Listener>> {
    let mut tries = if port == 0 { MAX_FREE_PORTS } else { 1 };
    loop {
        let first = Listener::bind_loopback(port)?;
        tries -= 1;
        match first.bind_beside() {
            Ok(second) => return Ok([first].into_iter().chain(second).collect()),
            Err(_) if tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn cannot_listen(token: &str, at: &Listen, error: &io::Error) -> StartError {
    let port = match at {
        Listen::Tcp { port, .. } | Listen::Localhost { port } => Some(*port),
        Listen::Unix(_) | Listen::Descriptor(_) => None,
    };
    let what_to_do = match (error.kind(), port) {
        _ if matches!(at, Listen::Unix(path) if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES) => {
            format!(
                "is too long for a Unix socket ({MAX_SOCKET_PATH_BYTES} bytes fit); a shorter path would do"
            )
        }
        (io::ErrorKind::AddrInUse, Some(port)) => {
            let owner = match listen::owner_of_port(port) {
                Some(pid) => format!(" by pid {pid}"),
                None => String::new(),
            };
            let address = match at {
                Listen::Tcp { address: Some(IpAddr::V6(address)), .. } => format!("[{address}]:"),
                Listen::Tcp { address: Some(IpAddr::V4(address)), .. } => format!("{address}:"),
                Listen::Localhost { .. } => "localhost:".to_owned(),
                _ => String::new(),
            };
            format!("is in use{owner}; {token}:{address}0 would do, and takes one that is free")
        }
        (io::ErrorKind::AddrInUse, None) => format!("{error}; another path would do"),
        (io::ErrorKind::PermissionDenied, Some(port)) if port < 1024 => {
            format!(
                "needs a right that this user lacks (below 1024); {token}:{} would do",
                8000 + port % 1000
            )
        }
        _ => format!("cannot be listened on: {error}"),
    };
    StartError::Trouble(format!("{at} {what_to_do}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Command};
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
    use std::os::unix::net::UnixListener;

    fn config(line: &str) -> Config {
        match config::read(line.split(' ').map(Into::into).collect(), &|_| None, true) {
            Ok(Command::Serve(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn listen(line: &str) -> Result<Vec<Listener>, String> {
        let result = listen_on(Service::Http, &config(line), None, &mut Inherited::default());
        result.map_err(|error| error.to_string())
    }

    fn has_ipv6() -> bool {
        TcpListener::bind("[::1]:0").is_ok()
    }

    #[test]
    fn each_place_is_listened_on_and_remembered() {
        let line = "w:1 http:127.0.0.1:0,proxy http:localhost:0 --trust-proxy=loopback";
        let listeners = listen(line).expect("ports");
        let places: Vec<&str> = listeners.iter().map(Listener::place).collect();
        let all = ["127.0.0.1 port 0", "localhost port 0", "localhost port 0, IPv6"];
        assert_eq!(places, all[..if has_ipv6() { 3 } else { 2 }]);
        let headers: Vec<bool> = listeners.iter().map(Listener::has_proxy_header).collect();
        assert_eq!(headers, [true, false, false][..places.len()]);
        let ports: Vec<_> = listeners[1..].iter().map(Listener::port).collect();
        assert!(ports.iter().all(|port| port.is_some_and(|port| port > 0) && *port == ports[0]), "{ports:?}");
        for (service, line) in [
            (Service::Metrics, "w:1 http:0 metrics:127.0.0.1:0"),
            (Service::Page, "w:1 http:0 page:127.0.0.1:0"),
        ] {
            let listeners =
                listen_on(service, &config(line), None, &mut Inherited::default()).expect("a port");
            assert_eq!((listeners.len(), listeners[0].place()), (1, "127.0.0.1 port 0"));
        }
    }

    #[test]
    fn a_port_that_is_in_use_is_told_with_its_owner_and_one_that_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("its address").port();
        let pid = std::process::id();
        let complaint = |text: &str| listen(&format!("w:1 http:{text}")).map(drop).expect_err("in use");
        assert_eq!(
            complaint(&format!("127.0.0.1:{port}")),
            format!(
                "127.0.0.1 port {port} is in use by pid {pid}; http:127.0.0.1:0 would do, and takes one that is free"
            )
        );
        let localhost = complaint(&format!("localhost:{port}"));
        assert!(localhost.ends_with("http:localhost:0 would do, and takes one that is free"), "{localhost}");
        let in_use = || io::Error::from(io::ErrorKind::AddrInUse);
        let of = |at: &Listen| cannot_listen("page", at, &in_use()).to_string();
        let v6 = of(&Listen::Tcp { address: Some(Ipv6Addr::LOCALHOST.into()), port });
        assert!(v6.ends_with("page:[::1]:0 would do, and takes one that is free"), "{v6}");
        let all = of(&Listen::Tcp { address: None, port });
        assert!(all.ends_with("page:0 would do, and takes one that is free"), "{all}");
        // Nobody listens there.
        drop(taken);
        let free = of(&Listen::Tcp { address: Some(Ipv4Addr::LOCALHOST.into()), port });
        assert!(free.contains("is in use; page:127.0.0.1:0"), "{free}");
    }

    #[test]
    fn localhost_is_one_port_in_both_families_or_none() {
        if !has_ipv6() {
            return;
        }
        let taken = TcpListener::bind("[::1]:0").expect("a port");
        let port = taken.local_addr().expect("its address").port();
        let complaint = bind_localhost(port).map(drop).map_err(|error| error.kind());
        assert_eq!(complaint, Err(io::ErrorKind::AddrInUse));
        assert_eq!(bind_localhost(0).map(|both| both.len()).expect("a free one"), 2);
    }

    #[test]
    fn a_path_that_cannot_be_listened_on_is_told_with_what_would_do() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        let shown = path.display();
        let complaint = || listen(&format!("w:1 http:unix:{}", path.display())).map(drop).expect_err("taken");
        let _taken = UnixListener::bind(&path).expect("a socket");
        assert_eq!(complaint(), format!("'{shown}' is in use; another path would do"));
        let fits = dir.path().join("x".repeat(MAX_SOCKET_PATH_BYTES - 1 - dir.path().as_os_str().len()));
        assert!(listen(&format!("w:1 http:unix:{}", fits.display())).is_ok());
        let error = io::Error::from(io::ErrorKind::InvalidInput);
        let long = cannot_listen("http", &Listen::Unix("x".repeat(MAX_SOCKET_PATH_BYTES + 1).into()), &error);
        assert!(
            long.to_string()
                .ends_with("is too long for a Unix socket (107 bytes fit); a shorter path would do")
        );
        let nowhere = listen("w:1 http:unix:/nonexistent/socket").map(drop).expect_err("no folder");
        assert!(nowhere.contains("cannot be listened on: No such file"), "{nowhere}");
    }

    #[test]
    fn a_port_that_needs_a_right_is_told_with_one_that_does_not() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let of = |port| cannot_listen("http", &Listen::Tcp { address: None, port }, &denied).to_string();
        for (port, other) in [(80, 8080), (443, 8443), (1023, 8023)] {
            assert_eq!(
                of(port),
                format!("port {port} needs a right that this user lacks (below 1024); http:{other} would do")
            );
        }
        assert!(of(1024).contains("cannot be listened on"));
    }

    #[test]
    fn a_socket_that_was_given_is_not_bound_again() {
        let given = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = given.local_addr().expect("its address").to_string();
        let at = "127.0.0.1 port 0".to_owned();
        let offer =
            crate::handover::SocketOffer { service: "http".into(), at, is_given: false, has_file: false };
        let mut inherited = Inherited::handed_over(vec![(offer, given.into())]);
        let config = config("w:1 http:127.0.0.1:0");
        let listeners = listen_on(Service::Http, &config, None, &mut inherited).expect("it is there");
        assert_eq!((listeners.len(), listeners[0].address()), (1, address));
    }
}
