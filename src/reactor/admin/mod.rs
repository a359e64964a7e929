//! Operators: the control socket, where workers join and leave and the command line's verbs ask, the metrics listeners,
//! and those of the operators' page. What is asked for is done by the reactor.

pub(super) mod connections;
pub(super) mod socket;

use super::io::listen::Listener;
use super::io::token::Target;
use super::limits::LINGER;
use crate::config::Config;
use crate::deadlines::{Deadlines, earliest};
use crate::page::HostNames;
use connections::{Connections, ControlDeadline, STALLED_AFTER, Viewers};
use mio::event::Source;
use mio::{Interest, Registry};
use std::io;
use std::rc::Rc;
use std::time::Instant;

pub(super) struct Admin {
    /// This run's own, and behind it the one that verbs use once this is the server of that name.
    listeners: Vec<Listener>,
    metrics_listeners: Vec<Listener>,
    page_listeners: Vec<Listener>,
    /// Under which the page is shown.
    page_hosts: HostNames,
    connections: Connections,
    viewers: Viewers,
    deadlines: Deadlines<ControlDeadline>,
    config: Rc<Config>,
}

impl Admin {
    pub(super) fn new(
        listeners: Vec<Listener>,
        metrics_listeners: Vec<Listener>,
        page_listeners: Vec<Listener>,
        config: Rc<Config>,
    ) -> Self {
        Admin {
            listeners,
            metrics_listeners,
            page_listeners,
            page_hosts: HostNames::new(config.page_hosts.clone()),
            connections: Connections::default(),
            viewers: Viewers::default(),
            deadlines: Deadlines::new(|kind| match kind {
                ControlDeadline::Idle | ControlDeadline::Take => config.idle_timeout,
                ControlDeadline::Receive => config.client_timeout,
                ControlDeadline::Linger => LINGER,
                ControlDeadline::View => STALLED_AFTER,
            }),
            config,
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn has_ready(&self) -> bool {
        self.connections.has_ready()
    }

    /// How many control sockets are listened on.
    pub(super) fn control_listeners(&self) -> usize {
        self.listeners.len()
    }

    pub(super) fn metrics_listeners(&self) -> &[Listener] {
        &self.metrics_listeners
    }

    /// The control socket that verbs use is this server's too.
    pub(super) fn add_listener(&mut self, listener: Listener) {
        self.listeners.push(listener);
    }

    pub(super) fn page_listeners(&self) -> &[Listener] {
        &self.page_listeners
    }

    pub(super) fn page_hosts(&self) -> &HostNames {
        &self.page_hosts
    }

    /// Those that go from one server to the next.
    pub(super) fn handed_listeners(&mut self) -> impl Iterator<Item = &mut Listener> {
        self.metrics_listeners.iter_mut().chain(&mut self.page_listeners)
    }

    /// The listeners for metrics and for the page are watched from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn begin_listening(&mut self, registry: &Registry) -> io::Result<()> {
        for (index, listener) in self.metrics_listeners.iter_mut().enumerate() {
            listener.register(registry, Target::MetricsListener(index).token(), Interest::READABLE)?;
        }
        for (index, listener) in self.page_listeners.iter_mut().enumerate() {
            listener.register(registry, Target::PageListener(index).token(), Interest::READABLE)?;
        }
        Ok(())
    }

    /// The listeners for metrics and for the page are the next server's. Who looks at the page goes there too.
    pub(super) fn stop_listening(&mut self, registry: &Registry) {
        self.close_viewers();
        for mut listener in self.metrics_listeners.drain(..).chain(self.page_listeners.drain(..)) {
            // Before the close, since the socket lives on, and with it its place in `epoll`.
            let _ = listener.deregister(registry);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        earliest([self.deadlines.next(), self.viewers.next_event()])
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &connections::Connection)> {
        self.connections.iter()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_timed(&self, key: usize) -> bool {
        self.deadlines.armed(key).is_some()
    }
}
