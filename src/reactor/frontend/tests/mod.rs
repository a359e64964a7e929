//! The frontend alone, over scripted connections of clients.

mod accepting;
mod answering;
mod files;
mod reading;

use super::*;
use crate::reactor::crossing::{Delivery, Finished, Received, Then, Times};
use crate::reactor::io::listen::{Accepted, Holders, Peer};
use crate::reactor::io::stream::Stream;
use crate::reactor::io::token::Target;
use crate::reactor::simulation::rooms::{config, io, job, ms, pass};
use crate::reactor::simulation::wire::{Door, Kind, Shared, UnixListener, UnixStream, Wire};
use std::cell::RefCell;
use std::net::IpAddr;
use std::time::Duration;

const UPSTREAM: UpstreamKey = UpstreamKey(5);
const NOBODY: ClientKey = ClientKey(99);

/// Short timeouts that differ.
const TIMEOUTS: &str = "--client-timeout-ms=900 --idle-timeout-ms=3000";

/// A frontend with one listener, at whose door clients knock.
struct Room {
    frontend: Frontend,
    io: Io,
    door: Rc<RefCell<Door>>,
}

impl Room {
    fn new() -> Self {
        Room::with("", Holders::Own)
    }

    fn with(words: &str, holders: Holders) -> Self {
        let door = Rc::new(RefCell::new(Door::default()));
        let mut listener = Listener::scripted(UnixListener::at(&door), holders);
        listener.expect_proxy_header(words.contains(",proxy"));
        let frontend = Frontend::new(vec![listener], 10, config(&format!("{TIMEOUTS} {words}")));
        Room { frontend, io: io(), door }
    }

    fn arrive_as(&mut self, kind: Kind, peer: Peer) -> (ClientKey, Shared) {
        let wire = Wire::new(kind, usize::MAX);
        let stream = Stream::Unix(UnixStream::of(wire.clone()));
        self.frontend.admit(0, stream, peer, &self.io).expect("it is watched");
        let token = wire.borrow().token.expect("it is watched");
        match Target::of(token) {
            Some(Target::Client(client)) => (client, wire),
            other => panic!("{other:?}"),
        }
    }

    fn arrive(&mut self) -> (ClientKey, Shared) {
        self.arrive_as(Kind::Tcp, Peer::Ip(IpAddr::from([192, 0, 2, 7])))
    }

    /// What the kernel tells of a client.
    fn note(&mut self, client: ClientKey, event: Readiness) -> Option<bool> {
        self.frontend.note(client, event)
    }

    /// One read of a client that may have sent something, and what that amounts to.
    fn read(&mut self, client: ClientKey) -> Option<FromClient> {
        self.note(client, Readiness::READABLE);
        let mut scratch = [0; 128];
        let mut budget = 128;
        let received = self.frontend.receive(client, &mut scratch, &mut budget, &mut self.io)?;
        let bytes = match received {
            Received::Bytes(bytes) => bytes,
            Received::End => 0,
            Received::Gone => return None,
        };
        let mut pending = self.frontend.pending(client, &mut scratch[..bytes])?;
        let event = self.frontend.advance(client, &mut pending, &mut self.io);
        self.frontend.keep(client, pending, &self.io);
        event
    }

    fn hear(&mut self, client: ClientKey, wire: &Shared, text: &str) -> Option<FromClient> {
        wire.borrow_mut().send(text.as_bytes());
        self.read(client)
    }

    /// A client with a whole request, which is being dispatched.
    fn ask(&mut self) -> (ClientKey, Shared, Job) {
        let (client, wire) = self.arrive();
        let job = self.ask_again(client, &wire);
        (client, wire, job)
    }

    fn ask_again(&mut self, client: ClientKey, wire: &Shared) -> Job {
        match self.hear(client, wire, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") {
            Some(FromClient::Request(request)) => {
                let deadline = self.io.now() + ms(300);
                self.frontend.job(client, request, deadline, &self.io).expect("a job")
            }
            other => panic!("{other:?}"),
        }
    }

    /// A client whose request is with a worker.
    fn assign(&mut self) -> (ClientKey, Shared) {
        let (client, wire, _) = self.ask();
        self.frontend.assign(client, UPSTREAM);
        (client, wire)
    }

    fn due_in(&self, client: ClientKey) -> Option<Duration> {
        self.frontend.deadlines.due(client.0).map(|due| due - self.io.now())
    }

    fn armed(&self, client: ClientKey) -> Option<ClientDeadline> {
        self.frontend.deadlines.armed(client.0)
    }

    fn is_ready(&self, client: ClientKey) -> bool {
        self.io.is_ready(&Target::Client(client))
    }

    fn finished(&self) -> Finished {
        Finished {
            request: job("GET /finished HTTP/1.1", b"", &self.io).request,
            answer: crate::conn::worker::Answer::local(200, "text/plain", true),
            reason: None,
            body_bytes: 0,
            times: Times::default(),
            worker: None,
        }
    }
}

/// So much more fits between the server and its client.
fn set_room(wire: &Shared, bytes: usize) {
    let mut wire = wire.borrow_mut();
    let taken = wire.from_server.len();
    wire.set_capacity(taken + bytes);
}

/// A client in each phase, and what is said of it.
#[test]
fn each_phase_is_told_from_the_others() {
    let mut room = Room::new();
    let (reading, _) = room.arrive();
    let (dispatching, _, _) = room.ask();
    let (queued, _, job) = room.ask();
    room.frontend.enqueue(queued, job);
    let (second, _, job) = room.ask();
    room.frontend.assign(second, UPSTREAM);
    room.frontend.try_next_tick(second, job);
    let (late, _, job) = room.ask();
    room.frontend.enqueue(late, job);
    room.frontend.has_waited_too_long(late);
    let (assigned, _) = room.assign();
    let (tunnel, _) = room.assign();
    assert!(room.frontend.upgrade(tunnel, UpstreamKey(6)));
    let (closed, _) = room.arrive();
    assert!(room.frontend.close(closed).is_some());

    let frontend = &room.frontend;
    let all = [reading, dispatching, queued, second, late, assigned, tunnel, closed];
    let those = |fits: &dyn Fn(ClientKey) -> bool| -> Vec<ClientKey> {
        all.into_iter().filter(|client| fits(*client)).collect()
    };
    assert_eq!(those(&|client| frontend.is_waiting(client, Wait::Queued)), [queued]);
    assert_eq!(those(&|client| frontend.is_waiting(client, Wait::SecondTry)), [second]);
    assert_eq!(those(&|client| frontend.is_waiting(client, Wait::TimedOut)), [late]);
    assert_eq!(frontend.queued().collect::<Vec<_>>(), [queued]);
    assert_eq!(those(&|client| frontend.upstream_of(client) == Some(UPSTREAM)), [assigned]);
    assert_eq!(those(&|client| frontend.upstream_of(client).is_some()), [assigned, tunnel]);
    assert_eq!(those(&|client| frontend.tunnel_of(client).is_some()), [tunnel]);
    assert_eq!(frontend.tunnel_of(tunnel), Some(UpstreamKey(6)));
    assert_eq!(those(&|client| frontend.clients[client.0].wants_bytes()), [reading, tunnel]);
    assert_eq!(those(&|client| frontend.clients[client.0].is_closed()), [closed]);
    assert_eq!((frontend.connections(), frontend.keys().len()), (all.len(), all.len()));
    assert_eq!(frontend.address(reading), b"192.0.2.7");
    assert_eq!(frontend.address(NOBODY), b"");
    assert!(frontend.has_work() && frontend.has_timed_out() && !frontend.is_empty());
    assert!(room.frontend.end_wait(queued).is_some());
    assert!(matches!(room.frontend.phase(queued), Some(Phase::Dispatching)));
    room.frontend.assign(queued, UPSTREAM);
    room.frontend.take_back(queued);
    assert!(matches!(room.frontend.phase(queued), Some(Phase::Dispatching)));

    assert_eq!(room.frontend.next_timed_out(), Some(late));
    assert!(!room.frontend.has_timed_out() && room.frontend.has_work());
    assert_eq!(room.frontend.take_second_tries(), [second]);
    assert!(!room.frontend.has_work());
    for client in room.frontend.keys() {
        room.frontend.close(client);
    }
    assert!(room.frontend.is_empty() && room.frontend.connections() == all.len());
    room.frontend.remove_closed();
    assert_eq!(room.frontend.connections(), 0);
}

#[test]
fn a_worker_may_be_asked_once_more_while_somebody_listens_or_has_no_answer_yet() {
    let mut room = Room::new();
    assert!(room.frontend.may_bring_requests(), "newcomers");
    room.frontend.stop_listening();
    assert!(!room.frontend.may_bring_requests());
    let (client, wire) = room.arrive();
    assert!(room.frontend.may_bring_requests());
    let job = room.ask_again(client, &wire);
    assert!(room.frontend.may_bring_requests());
    room.frontend.enqueue(client, job);
    assert!(room.frontend.may_bring_requests());
    room.frontend.end_wait(client);
    room.frontend.assign(client, UPSTREAM);
    assert!(!room.frontend.may_bring_requests(), "a worker has it");
}

#[test]
fn what_the_kernel_tells_of_a_clients_end_only_grows() {
    let told = |is_read_closed, is_write_closed, is_error| Readiness {
        is_read_closed,
        is_write_closed,
        is_error,
        ..Readiness::default()
    };
    let mut room = Room::new();
    let (client, _) = room.arrive();
    assert_eq!(room.note(client, Readiness::READABLE), Some(false));
    assert_eq!(room.frontend.peer(client), Some(PeerState::Open));
    assert!(room.frontend.clients[client.0].is_readable);
    room.frontend.clients[client.0].is_readable = false;
    assert_eq!(room.note(client, Readiness { is_writable: true, ..Readiness::default() }), Some(false));
    assert!(!room.frontend.clients[client.0].is_readable, "room is nothing to read");
    assert_eq!(room.note(client, told(true, false, false)), Some(true));
    assert_eq!(room.frontend.peer(client), Some(PeerState::HalfClosed));
    assert!(room.frontend.clients[client.0].is_readable, "its end is to be read");
    assert_eq!(room.note(client, told(true, false, false)), Some(false), "nothing new");
    assert_eq!(room.note(client, told(true, true, false)), Some(true));
    assert_eq!(room.frontend.peer(client), Some(PeerState::Gone));
    assert_eq!(room.note(client, told(true, false, false)), Some(false));
    assert_eq!(room.frontend.peer(client), Some(PeerState::Gone), "it does not come back");
    assert_eq!(PeerState::of(told(false, false, true)), PeerState::Gone);
    assert_eq!(room.note(NOBODY, Readiness::READABLE), None);
}

#[test]
fn a_client_is_asked_once_whether_it_is_there_where_nothing_tells() {
    let mut room = Room::new();
    let (tcp, _, mut tcp_job) = room.ask();
    let (unix, _) = room.arrive_as(Kind::Unix, Peer::Unix);
    let mut old = job("GET / HTTP/1.0", b"", &room.io);
    let mut new = job("GET / HTTP/1.1", b"", &room.io);
    assert!(!room.frontend.is_to_be_asked(tcp, &mut old), "HTTP/1.0 knows no 100");
    assert!(!room.frontend.is_to_be_asked(unix, &mut new), "the kernel tells");
    assert!(!new.is_client_asked && !old.is_client_asked);
    assert!(!room.frontend.is_to_be_asked(NOBODY, &mut new));
    assert!(room.frontend.is_to_be_asked(tcp, &mut tcp_job));
    assert!(tcp_job.is_client_asked && !room.frontend.is_to_be_asked(tcp, &mut tcp_job), "once");

    assert!(!room.frontend.is_waiting_to_be_asked(tcp), "it does not wait");
    tcp_job.is_client_asked = false;
    room.frontend.enqueue(tcp, tcp_job);
    assert!(room.frontend.is_waiting_to_be_asked(tcp));
    assert!(!room.frontend.is_waiting_to_be_asked(tcp), "once");
    let (old, wire) = room.arrive();
    let Some(FromClient::Request(request)) = room.hear(old, &wire, "GET / HTTP/1.0\r\n\r\n") else {
        panic!("no request")
    };
    let now = room.io.now();
    let job = room.frontend.job(old, request, now, &room.io).expect("a job");
    room.frontend.enqueue(old, job);
    assert!(!room.frontend.is_waiting_to_be_asked(old));
    let (unix, wire) = room.arrive_as(Kind::Unix, Peer::Unix);
    let job = room.ask_again(unix, &wire);
    room.frontend.enqueue(unix, job);
    assert!(!room.frontend.is_waiting_to_be_asked(unix));
    assert!(!room.frontend.is_waiting_to_be_asked(NOBODY));
}

#[test]
fn a_client_is_closed_once_and_leaves_with_the_tick() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    assert!(room.armed(client).is_some());
    assert!(matches!(room.frontend.close(client), Some(Phase::Reading)));
    assert_eq!(room.armed(client), None);
    assert!(room.frontend.close(client).is_none(), "it was closed already");
    assert!(!wire.borrow().is_server_gone, "its key may be met in this batch");
    room.frontend.arm_receive(client, room.io.now());
    room.frontend.remove_closed();
    assert!(wire.borrow().is_server_gone && room.frontend.next_deadline().is_none());
    let (client, wire) = room.arrive();
    room.frontend.shut_down(client);
    assert!(wire.borrow().server_has_ended && !wire.borrow().server_resets);
    room.frontend.reset_on_close(client);
    assert!(wire.borrow().server_resets);
}

#[test]
fn a_request_that_is_given_up_is_known_by_its_first_line() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    assert!(room.hear(client, &wire, "POST /half HTTP/1.1\r\nHo").is_none());
    let request = room.frontend.abandon_arriving(client, &mut room.io).expect("it was arriving");
    assert_eq!((request.method(), request.path()), (&b"POST"[..], &b"/half"[..]));
    let (idle, _) = room.arrive();
    assert!(room.frontend.abandon_arriving(idle, &mut room.io).is_none());
    assert!(room.frontend.clients[idle.0].conn.is_idle(), "between two requests nothing is given up");
    let (client, wire) = room.arrive();
    room.hear(client, &wire, "GET /late HTTP/1.1\r\n");
    let request = room.frontend.abandon(client, &mut room.io).expect("it was arriving");
    assert_eq!(request.path(), b"/late");
    assert!(room.frontend.abandon(NOBODY, &mut room.io).is_none());
}

#[test]
fn at_a_stop_idle_clients_get_a_moment() {
    let mut room = Room::new();
    let (idle, _) = room.arrive();
    let (receiving, wire) = room.arrive();
    room.hear(receiving, &wire, "GET /");
    assert_eq!((room.armed(idle), room.due_in(idle)), (Some(ClientDeadline::Idle), Some(ms(3000))));
    assert_eq!(
        (room.armed(receiving), room.due_in(receiving)),
        (Some(ClientDeadline::Receive), Some(ms(900)))
    );
    let now = pass(&mut room.io, ms(100));
    room.frontend.begin_stop(now);
    assert_eq!((room.armed(idle), room.due_in(idle)), (Some(ClientDeadline::Grace), Some(ms(1000))));
    assert_eq!(room.armed(receiving), Some(ClientDeadline::Receive), "its request goes on");
    let (late, _) = room.arrive();
    assert_eq!(room.armed(late), Some(ClientDeadline::Grace));
    assert_eq!(room.frontend.next_deadline(), Some(now + ms(800)));
    assert_eq!(room.frontend.expire(now + ms(799)), None);
    assert_eq!(room.frontend.expire(now + ms(800)), Some((receiving, ClientDeadline::Receive)));
    room.frontend.disarm(idle);
    assert_eq!(room.armed(idle), None);
}

#[test]
#[should_panic(expected = "a client: no way from Closed to Reading")]
fn nobody_comes_back_from_the_end() {
    Phase::Closed.enter(Phase::Reading);
}
