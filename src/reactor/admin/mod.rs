//! Operators: the control socket, where workers join and leave and the command line's verbs ask, and the metrics
//! listeners. What is asked for is done by the reactor.

pub(super) mod connections;
pub(super) mod socket;

use super::io::listen::Listener;
use super::io::token::Target;
use super::limits::LINGER;
use crate::config::Config;
use crate::deadlines::Deadlines;
use connections::{Connections, ControlDeadline};
use mio::event::Source;
use mio::{Interest, Registry};
use std::io;
use std::rc::Rc;
use std::time::Instant;

pub(super) struct Admin {
    /// This run's own, and behind it the one that verbs use once this is the server of that name.
    listeners: Vec<Listener>,
    metrics_listeners: Vec<Listener>,
    connections: Connections,
    deadlines: Deadlines<ControlDeadline>,
    config: Rc<Config>,
}

impl Admin {
    pub(super) fn new(
        listeners: Vec<Listener>,
        metrics_listeners: Vec<Listener>,
        config: Rc<Config>,
    ) -> Self {
        Admin {
            listeners,
            metrics_listeners,
            connections: Connections::default(),
            deadlines: Deadlines::new(|kind| match kind {
                ControlDeadline::Idle | ControlDeadline::Take => config.idle_timeout,
                ControlDeadline::Receive => config.client_timeout,
                ControlDeadline::Linger => LINGER,
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

    pub(super) fn metrics_listeners_mut(&mut self) -> &mut [Listener] {
        &mut self.metrics_listeners
    }

    /// The metrics listeners are watched from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn begin_listening(&mut self, registry: &Registry) -> io::Result<()> {
        for (index, listener) in self.metrics_listeners.iter_mut().enumerate() {
            listener.register(registry, Target::MetricsListener(index).token(), Interest::READABLE)?;
        }
        Ok(())
    }

    /// The metrics listeners are the next server's.
    pub(super) fn stop_listening_for_scrapers(&mut self, registry: &Registry) {
        for mut listener in self.metrics_listeners.drain(..) {
            // Before the close, since the socket lives on, and with it its place in `epoll`.
            let _ = listener.deregister(registry);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &connections::Connection)> {
        self.connections.iter()
    }

    #[cfg(test)]
    pub(super) fn is_timed(&self, key: usize) -> bool {
        self.deadlines.armed(key).is_some()
    }
}
