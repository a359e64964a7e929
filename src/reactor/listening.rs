//! The listeners that the command line asks for: bound, or given by somebody who has them already.

use super::inherited::{Inherited, Service};
use super::io::listen::{self, Listener, MAX_PATH_BYTES};
use super::io::socket_access::SocketAccess;
use super::source::StartError;
use crate::config::{Config, Listen};
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
        _ if matches!(at, Listen::Unix(path) if path.as_os_str().len() > MAX_PATH_BYTES) => {
            format!("is too long for a Unix socket ({MAX_PATH_BYTES} bytes fit); a shorter path would do")
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
