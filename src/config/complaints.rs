//! Errors about words that are valid by themselves, but not together.

use super::{Config, Listen, Usage, Verb};
use crate::app::Target;
use crate::paths::quoted;
use crate::spelling::near_miss;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Refuses a second token of a kind: otherwise the last one would silently win.
pub(super) fn once(is_given: &mut bool, token: &str, argument: &str) -> Result<(), Usage> {
    match std::mem::replace(is_given, true) {
        false => Ok(()),
        true => {
            Err(Usage(format!("'{argument}' is there, and {token} was given before; one of them would do")))
        }
    }
}

/// The complaint about a second free word: another app, or a verb that is misspelt or comes after its app.
pub(super) fn one_app_too_many(app: &str, extra: &str) -> Usage {
    let verbs = || Verb::ALL.into_iter().map(Verb::code).chain(["check"]);
    if verbs().any(|verb| verb == extra) {
        return Usage(format!(
            "'{extra}' stands behind its app; rip-server {extra} {} would do",
            quoted(app)
        ));
    }
    const TOKENS: [&str; 6] = ["w", "c", "r", "http", "metrics", "page"];
    let token = extra.split_once('=').filter(|(name, _)| TOKENS.contains(name));
    if let Some((name, value)) = token {
        return Usage(format!("'{extra}' is no token; {name}:{value} would do"));
    }
    if extra.ends_with(".py") {
        let file = quoted(&Path::new(app).join(extra));
        return Usage(format!("'{extra}' is one app too many; rip-server {file} was perhaps meant"));
    }
    let is_module = extra.contains('.') || Path::new(app).join(format!("{extra}.py")).is_file();
    if is_module && Target::parse(&format!("{extra}:app")).is_some() {
        return Usage(format!(
            "'{extra}' is one app too many; rip-server {} {extra}:app was perhaps meant",
            quoted(app)
        ));
    }
    match near_miss(&app.to_ascii_lowercase(), verbs()) {
        Some(verb) => {
            Usage(format!("unknown verb '{app}'; rip-server {verb} {} was perhaps meant", quoted(extra)))
        }
        None => Usage(format!("'{extra}' is one app too many; '{app}' is the app already")),
    }
}

/// Refuses the same address twice: the second listener would find it in use by the first.
pub(super) fn check_places<'a>(places: impl Iterator<Item = &'a Listen>) -> Result<(), Usage> {
    let mut seen: Vec<&Listen> = Vec::new();
    for place in places {
        let is_any = matches!(place, Listen::Tcp { port: 0, .. } | Listen::Localhost { port: 0 });
        if let (Listen::Localhost { port }, Some(other)) | (Listen::Tcp { port, .. }, Some(other)) =
            (place, seen.iter().find(|other| is_same_loopback(place, other)))
            && *port != 0
        {
            return Err(Usage(format!("{place} and {other} are one place; one of them would do")));
        }
        if !is_any && seen.contains(&place) {
            return Err(Usage(format!("{place} is given twice; each place may be listened on once")));
        }
        seen.push(place);
    }
    Ok(())
}

/// `localhost` is both loopback addresses.
fn is_same_loopback(one: &Listen, other: &Listen) -> bool {
    match (one, other) {
        (Listen::Localhost { port }, Listen::Tcp { address: Some(address), port: other })
        | (Listen::Tcp { address: Some(address), port: other }, Listen::Localhost { port }) => {
            let is_loopback = *address == Ipv4Addr::LOCALHOST || *address == Ipv6Addr::LOCALHOST;
            port == other && is_loopback
        }
        _ => false,
    }
}

/// Whoever may say who has connected must be named.
pub(super) fn check_proxied(config: &Config) -> Result<(), Usage> {
    let mut proxied = config.listen.iter().zip(&config.proxied).filter(|(_, is_proxied)| **is_proxied);
    match proxied.next() {
        Some((at, _)) if config.trust_proxy.is_empty() => {
            let place = match at {
                Listen::Tcp { address: None, port } => port.to_string(),
                Listen::Tcp { address: Some(address), port } => SocketAddr::new(*address, *port).to_string(),
                Listen::Localhost { port } => format!("localhost:{port}"),
                Listen::Unix(path) => format!("unix:{}", path.display()),
                Listen::Descriptor(fd) => format!("fd:{fd}"),
            };
            Err(Usage(format!(
                "http:{place},proxy is there, and no --trust-proxy that says whose PROXY protocol is believed; --trust-proxy=10.0.0.0/8, or loopback, would do"
            )))
        }
        Some(_) | None => Ok(()),
    }
}

/// Permissions are those of Unix listeners alone.
pub(super) fn check_socket_access(config: &Config) -> Result<(), Usage> {
    let mut places = config.listen.iter().chain(&config.metrics).chain(&config.page);
    let flag = match (&config.socket_mode, &config.socket_group) {
        (Some(_), _) => "--socket-mode",
        (None, Some(_)) => "--socket-group",
        (None, None) => return Ok(()),
    };
    match places.any(|at| matches!(at, Listen::Unix(_))) {
        true => Ok(()),
        false => Err(Usage(format!(
            "{flag} is there, and no listener that it could be for; http:unix:/run/app/http.sock would be one"
        ))),
    }
}
