//! Listening sockets that the server does not bind: it was started with them.

use super::io::listen::{Holders, Listener};
use super::source::StartError;
use crate::config::{Config, Listen};
use crate::handover::SocketOffer;
use crate::process;
use nix::errno::Errno;
use std::io;
use std::os::fd::OwnedFd;

/// What is served on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Http,
    Metrics,
    Page,
}

impl Service {
    /// The token that asks for it.
    pub(super) fn token(self) -> &'static str {
        match self {
            Service::Http => "http",
            Service::Metrics => "metrics",
            Service::Page => "page",
        }
    }
}

/// The sockets, each with where it was asked for.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    sockets: Vec<Offer>,
}

/// A socket that is there, and how it is to be used.
#[derive(Debug)]
struct Offer {
    service: &'static str,
    /// As messages name it.
    at: String,
    fd: OwnedFd,
    holders: Holders,
}

impl Inherited {
    /// Takes the descriptors that the command line and the environment name. To be called before anything is opened,
    /// which could get a number that is not given after all.
    ///
    /// # Errors
    /// One of them is not open.
    pub(super) fn take(config: &Config) -> Result<Self, StartError> {
        let http = config.listen.iter().map(|at| (Service::Http, at));
        let metrics = config.metrics.iter().map(|at| (Service::Metrics, at));
        let all = http.chain(metrics).chain(config.page.iter().map(|at| (Service::Page, at)));
        let mut sockets = Vec::new();
        for (service, at) in all {
            if let Listen::Descriptor(fd) = at {
                let fd = process::inherited_descriptor(*fd);
                sockets.push(Offer {
                    service: service.token(),
                    at: at.to_string(),
                    fd: fd.map_err(|error| cannot_be_used(service, at, &error))?,
                    holders: Holders::Shared,
                });
            }
        }
        Ok(Inherited { sockets })
    }

    /// Those of the server before this one.
    pub(super) fn handed_over(sockets: Vec<(SocketOffer, OwnedFd)>) -> Self {
        let offer = |(offer, fd): (SocketOffer, OwnedFd)| {
            let holders = if offer.is_given { Holders::Shared } else { Holders::Handed };
            let services = [Service::Http, Service::Metrics, Service::Page].map(Service::token);
            let service = services.into_iter().find(|token| *token == offer.service)?;
            Some(Offer { service, at: offer.at, fd, holders })
        };
        Inherited { sockets: sockets.into_iter().filter_map(offer).collect() }
    }

    /// The listener that was given for a place of `at`, if one was.
    ///
    /// # Errors
    /// It is no listening socket.
    pub(super) fn listener(
        &mut self,
        service: Service,
        at: &Listen,
        place: &str,
    ) -> Option<Result<Listener, StartError>> {
        let is_it = |offer: &Offer| offer.service == service.token() && offer.at == place;
        let index = self.sockets.iter().position(is_it)?;
        let Offer { fd, holders, .. } = self.sockets.remove(index);
        Some(Listener::adopt(fd, holders).map_err(|error| cannot_be_used(service, at, &error)))
    }
}

fn cannot_be_used(service: Service, at: &Listen, error: &io::Error) -> StartError {
    let what = match error.kind() {
        io::ErrorKind::InvalidInput => error.to_string(),
        _ if error.raw_os_error() == Some(Errno::EBADF as i32) => "is not open".to_owned(),
        _ => format!("cannot be used: {error}"),
    };
    let token = service.token();
    StartError::Usage(format!("{at} {what}; a listening stream socket would do, or {token}:<port>"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::fd::IntoRawFd;

    fn listener() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").expect("a port").into()
    }

    fn offer(service: &str, at: &str, is_given: bool) -> SocketOffer {
        SocketOffer { service: service.into(), at: at.into(), is_given, has_file: false }
    }

    const AT: Listen = Listen::Localhost { port: 0 };

    #[test]
    fn a_socket_is_found_by_its_service_and_its_place_once() {
        let mut inherited = Inherited::handed_over(vec![
            (offer("http", "a", false), listener()),
            (offer("metrics", "a", true), listener()),
            (offer("page", "b", true), listener()),
            (offer("dance", "a", true), listener()),
        ]);
        assert_eq!(inherited.sockets.len(), 3, "no service has that name");
        assert!(inherited.listener(Service::Http, &AT, "b").is_none());
        let mut take = |service, place| {
            let taken = inherited.listener(service, &AT, place);
            taken.map(|listener| listener.map_err(|error| error.to_string()).expect("a listener"))
        };
        let http = take(Service::Http, "a").expect("it is there");
        assert!(http.is_shared() && !http.is_given(), "the server before this one lets go of it");
        assert!(take(Service::Http, "a").is_none());
        assert!(take(Service::Metrics, "a").expect("it is there").is_given());
        assert!(take(Service::Page, "b").expect("it is there").is_given());
    }

    fn config(fd: i32) -> Config {
        let line = ["w:1".to_owned(), format!("http:fd:{fd}")].map(Into::into);
        match crate::config::read(line.into(), &|_| None, true) {
            Ok(crate::config::Command::Serve(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_descriptor_of_the_command_line_is_taken_if_it_is_a_listening_socket() {
        let complaint = |result: Result<Listener, StartError>| match result {
            Err(StartError::Usage(text)) => text,
            other => panic!("{other:?}"),
        };
        let fd = listener().into_raw_fd();
        let mut inherited = Inherited::take(&config(fd)).expect("it is open");
        let (at, place) = (Listen::Descriptor(fd), format!("descriptor {fd}"));
        let taken = inherited.listener(Service::Http, &at, &place).expect("it is there");
        assert!(taken.expect("a listener").is_given());

        let fd = File::open("/dev/null").expect("a file").into_raw_fd();
        let mut inherited = Inherited::take(&config(fd)).expect("it is open");
        let (at, place) = (Listen::Descriptor(fd), format!("descriptor {fd}"));
        let taken = inherited.listener(Service::Http, &at, &place).expect("it is there");
        let expected =
            format!("descriptor {fd} is no socket; a listening stream socket would do, or http:<port>");
        assert_eq!(complaint(taken), expected);

        let closed = Inherited::take(&config(1_000_000)).map(drop).expect_err("it is not open");
        assert_eq!(
            closed.to_string(),
            "descriptor 1000000 is not open; a listening stream socket would do, or http:<port>"
        );
        let other = cannot_be_used(Service::Page, &AT, &Errno::ENOMEM.into()).to_string();
        assert!(
            other.starts_with("localhost port 0 cannot be used: ") && other.ends_with("page:<port>"),
            "{other}"
        );
        assert_eq!(
            [Service::Http, Service::Metrics, Service::Page].map(Service::token),
            ["http", "metrics", "page"]
        );
    }
}
