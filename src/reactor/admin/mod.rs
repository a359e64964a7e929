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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Command};
    use mio::{Events, Poll};
    use std::net::TcpStream;
    use std::time::Duration;

    fn admin(metrics: Vec<Listener>, page: Vec<Listener>) -> Admin {
        let line = ["w:1", "http:0", "page:0", "--page-host=server.example"].map(Into::into);
        match config::read(line.into(), &|_| None, true) {
            Ok(Command::Serve(config)) => Admin::new(Vec::new(), metrics, page, Rc::new(*config)),
            other => panic!("{other:?}"),
        }
    }

    fn bind() -> Listener {
        Listener::bind_loopback(0).expect("a port")
    }

    #[test]
    fn listeners_are_watched_from_the_beginning_to_the_end() {
        let mut admin = admin(vec![bind()], vec![bind(), bind()]);
        assert_eq!((admin.metrics_listeners().len(), admin.page_listeners().len()), (1, 2));
        assert_eq!(admin.handed_listeners().count(), 3);
        assert!(
            admin.page_hosts().allow(b"server.example:8080") && !admin.page_hosts().allow(b"other.example")
        );
        assert_eq!((admin.control_listeners(), admin.connections()), (0, 0));
        admin.add_listener(bind());
        assert_eq!(admin.control_listeners(), 1);

        let mut poll = Poll::new().expect("epoll");
        let mut events = Events::with_capacity(4);
        admin.begin_listening(poll.registry()).expect("watched");
        // Others hold them as well, and so they live on.
        let page: Vec<Listener> = admin
            .page_listeners()
            .iter()
            .map(|listener| {
                let fd = listener.descriptor().try_clone_to_owned().expect("another handle");
                Listener::adopt(fd, crate::reactor::io::listen::Holders::Shared).expect("adopted")
            })
            .collect();
        let ports = [&admin.metrics_listeners()[0], &admin.page_listeners()[1]].map(Listener::port);
        let targets = [Target::MetricsListener(0), Target::PageListener(1)];
        for (port, target) in ports.into_iter().zip(targets) {
            let _client = TcpStream::connect(("127.0.0.1", port.expect("a port"))).expect("connected");
            poll.poll(&mut events, Some(Duration::from_secs(10))).expect("polled");
            assert_eq!(events.iter().map(|event| event.token()).collect::<Vec<_>>(), [target.token()]);
        }
        admin.stop_listening(poll.registry());
        assert_eq!(admin.handed_listeners().count(), 0);
        let port = page[0].port().expect("a port");
        let _client = TcpStream::connect(("127.0.0.1", port)).expect("it lives on");
        poll.poll(&mut events, Some(Duration::ZERO)).expect("polled");
        assert!(events.is_empty(), "the next server's");
    }
}
