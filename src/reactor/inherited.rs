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
