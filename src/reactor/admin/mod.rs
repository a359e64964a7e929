//! Operators: the control socket, where workers join and leave and the command line's verbs ask, and the metrics
//! listeners. What is asked for is done by the reactor.

pub(super) mod connections;
pub(super) mod socket;

use super::io::listen::Listener;
use super::limits::LINGER;
use crate::config::Config;
use crate::deadlines::Deadlines;
use connections::{Connections, ControlDeadline};
use std::rc::Rc;
use std::time::Instant;

pub(super) struct Admin {
    listener: Listener,
    metrics_listeners: Vec<Listener>,
    connections: Connections,
    deadlines: Deadlines<ControlDeadline>,
    config: Rc<Config>,
}

impl Admin {
    pub(super) fn new(listener: Listener, metrics_listeners: Vec<Listener>, config: Rc<Config>) -> Self {
        Admin {
            listener,
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

    pub(super) fn metrics_listeners(&self) -> &[Listener] {
        &self.metrics_listeners
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
