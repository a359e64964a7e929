//! Connections to workers: which there are, and when each is made and closed.

use super::*;
use crate::reactor::backend::link::{LINK, Link, State};
use crate::reactor::endpoint::loopback;
use crate::reactor::io::stream::Stream;
use crate::reactor::io::token::Readiness;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};

#[test]
fn why_there_is_no_connection_follows_from_the_kernels_error() {
    let errno = |errno: nix::errno::Errno| io::Error::from(errno);
    use nix::errno::Errno::*;
    for (error, why) in [
        (ErrorKind::WouldBlock.into(), NoConnection::Later),
        (ErrorKind::Interrupted.into(), NoConnection::Later),
        (errno(EMFILE), NoConnection::Later),
        (errno(ENOMEM), NoConnection::Later),
        (errno(ECONNREFUSED), NoConnection::Refused),
        (errno(ENOENT), NoConnection::Refused),
        (errno(EACCES), NoConnection::Failed),
        (errno(ENOTSOCK), NoConnection::Failed),
    ] {
        assert_eq!(NoConnection::of(&error), why, "{error}");
    }
}

#[test]
fn a_worker_that_nobody_hears_is_known_at_once() {
    let mut room = Room::new();
    wire::leave(room.path());
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    assert_eq!(room.send(upstream), Sent::NotConnected(NoConnection::Refused));
    assert_eq!(room.backend.armed(upstream), None);
    room.backend.connect_ahead(upstream, &room.endpoint.clone(), &room.io);
    assert!(matches!(room.backend.get(upstream).expect("it is there").link, Link::Closed));
}

#[test]
fn a_full_backlog_is_tried_until_the_connect_timeout() {
    let mut room = Room::new();
    wire::set_backlog(room.path(), true);
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    for waited in 0..8 {
        assert_eq!(room.send(upstream), Sent::Waits, "after {} ms", 5 * waited);
        assert_eq!(room.backend.armed(upstream), Some(UpstreamDeadline::Connect));
        let now = pass(&mut room.io, ms(5));
        assert_eq!(room.backend.expire(now), Some((upstream, UpstreamDeadline::Connect)));
    }
    assert_eq!(room.send(upstream), Sent::NotConnected(NoConnection::Later), "it has had its 40 ms");
    assert!(matches!(room.backend.get(upstream).expect("it is there").link, Link::Closed));
    // The time begins anew, and there is room now.
    assert_eq!(room.send(upstream), Sent::Waits);
    wire::set_backlog(room.path(), false);
    assert_eq!(room.send(upstream), Sent::Fine);
    assert_eq!(room.backend.armed(upstream), Some(UpstreamDeadline::Read), "its answer is waited for");
    assert!(room.exchange(upstream).is_sent());
}

#[test]
fn a_question_at_a_full_backlog_waits_for_its_own_clock() {
    let mut room = Room::new();
    wire::set_backlog(room.path(), true);
    let about = job("GET /about HTTP/1.1", b"", &room.io).request;
    let upstream = room.backend.take_upstream(WORKER, WISH).expect("a connection");
    let now = room.io.now();
    room.backend.begin_asking_idle(upstream, about, now, true, &mut room.io);
    assert_eq!(room.send(upstream), Sent::NotConnected(NoConnection::Later));
    assert_eq!(room.backend.armed(upstream), Some(UpstreamDeadline::Stall));
    wire::set_backlog(room.path(), false);
    assert_eq!(room.send(upstream), Sent::Fine);
    assert_eq!(room.backend.armed(upstream), Some(UpstreamDeadline::Stall), "the stall's clock runs on");
}

#[test]
fn a_connection_made_ahead_is_used_by_the_first_request() {
    let mut room = Room::new();
    let upstream = room.backend.next_upstream_of(WORKER).expect("its first");
    room.backend.connect_ahead(upstream, &room.endpoint.clone(), &room.io);
    let wire = room.connected();
    let (used, _) = {
        let used = room.begin(WORKER, "GET / HTTP/1.1", b"");
        (used, room.send(used))
    };
    assert_eq!(used, upstream);
    assert!(!room.exchange(used).is_connection_new && !wire.borrow().written.is_empty());
    assert!(wire::accept_at(room.path()).is_empty(), "no other was made");
}

#[test]
fn over_tcp_a_port_is_refused_or_connected() {
    let mut room = Room::new();
    let listener = TcpListener::bind(loopback(0, false)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    room.endpoint = Endpoint::Loopback { port, is_ipv6: false };
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    let deadline = Instant::now() + Duration::from_secs(5);
    while room.send(upstream) == Sent::Waits && Instant::now() < deadline {}
    assert!(room.exchange(upstream).is_sent());
    drop(listener);
    let other = room.begin(OTHER, "GET / HTTP/1.1", b"");
    let mut sent = room.send(other);
    while sent == Sent::Waits && Instant::now() < deadline {
        sent = room.send(other);
    }
    assert_eq!(sent, Sent::NotConnected(NoConnection::Refused));
}

/// A listener whose backlog is full, and those in it.
fn full_listener() -> (OwnedFd, u16, Vec<Stream>) {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
    listen(&fd, Backlog::new(0).expect("a backlog")).expect("it listens");
    let port = getsockname::<SockaddrIn>(fd.as_raw_fd()).expect("its address").port();
    let mut waiting = Vec::new();
    while waiting.len() < 8 {
        waiting.push(Stream::connect(loopback(port, false)).expect("it is under way"));
    }
    (fd, port, waiting)
}

#[test]
fn over_tcp_a_connection_under_way_is_waited_for() {
    let mut room = Room::new();
    let (_listener, port, _waiting) = full_listener();
    room.endpoint = Endpoint::Loopback { port, is_ipv6: false };
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    assert_eq!(room.send(upstream), Sent::Waits);
    let stream_of = |room: &Room| match &room.backend.get(upstream).expect("it is there").link {
        Link::Connecting { stream: Some(Stream::Tcp(stream)), .. } => stream.as_raw_fd(),
        other => panic!("{other:?}"),
    };
    let first = stream_of(&room);
    pass(&mut room.io, ms(5));
    assert_eq!(room.send(upstream), Sent::Waits);
    assert_eq!(stream_of(&room), first, "the same one");
    assert!(room.backend.note(upstream, Readiness::READABLE));
    assert_eq!(stream_of(&room), first);
    for event in [
        Readiness { is_error: true, ..Readiness::default() },
        Readiness { is_read_closed: true, ..Readiness::default() },
    ] {
        assert!(room.backend.note(upstream, event));
        let link = &room.backend.get(upstream).expect("it is there").link;
        assert!(matches!(link, Link::Connecting { stream: None, .. }), "another is tried: {link:?}");
        assert_eq!(room.send(upstream), Sent::Waits);
        stream_of(&room);
    }
    pass(&mut room.io, ms(36));
    assert_eq!(room.send(upstream), Sent::NotConnected(NoConnection::Later), "its 40 ms are over");
}

#[test]
fn an_event_tells_that_the_worker_sends_no_more() {
    let mut room = Room::new();
    let (upstream, _) = room.ask("GET / HTTP/1.1", b"");
    let is_closing = |room: &mut Room| {
        room.backend.get_mut(upstream).and_then(|entry| entry.link.open_mut()).expect("open").is_closing
    };
    assert!(room.backend.note(upstream, Readiness::READABLE));
    assert!(!is_closing(&mut room));
    assert!(room.backend.note(upstream, Readiness { is_read_closed: true, ..Readiness::default() }));
    assert!(is_closing(&mut room));
    assert!(room.backend.note(upstream, Readiness::READABLE));
    assert!(is_closing(&mut room), "and stays so");
    assert!(!room.backend.note(UpstreamKey(99), Readiness::READABLE), "nobody's");
    room.backend.close(upstream);
    assert!(room.backend.note(upstream, Readiness::READABLE));
}

#[test]
fn a_link_knows_its_state() {
    let states: Vec<State> = LINK.iter().map(|row| row.state).collect();
    assert_eq!(states, [State::Closed, State::Connecting, State::Open]);
    let mut room = Room::new();
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    let is_open = |room: &Room| room.backend.get(upstream).expect("it is there").is_connected();
    assert!(!is_open(&room));
    room.send(upstream);
    assert!(is_open(&room));
    room.backend.close(upstream);
    assert!(!is_open(&room));
}

#[test]
fn connections_without_work_are_closed_and_the_others_stay() {
    let mut room = Room::new();
    let (busy, at_work) = room.ask("GET /1 HTTP/1.1", b"");
    let (idle, unused) = room.ask("GET /2 HTTP/1.1", b"");
    let now = room.io.now();
    assert!(room.backend.end_exchange(idle, true).is_some());
    room.backend.arm(idle, UpstreamDeadline::Cooldown, now);
    room.backend.arm(busy, UpstreamDeadline::Read, now);
    room.backend.end_cooldowns(WORKER);
    assert_eq!((room.backend.armed(idle), room.backend.armed(busy)), (None, Some(UpstreamDeadline::Read)));
    room.backend.close_unused(OTHER);
    assert!(!unused.borrow().is_server_gone);
    room.backend.close_unused(WORKER);
    assert!(unused.borrow().is_server_gone && !at_work.borrow().is_server_gone);
}

#[test]
fn a_worker_with_an_answer_that_has_no_deadline_is_stuck() {
    let mut room = Room::new();
    let (first, _) = room.ask("GET /1 HTTP/1.1", b"");
    let (second, _) = room.ask("GET /2 HTTP/1.1", b"");
    let now = room.io.now();
    let both = |room: &Room| (room.backend.is_any_stuck(WORKER), room.backend.has_others_at_work(WORKER));
    room.backend.arm(first, UpstreamDeadline::Stall, now);
    room.backend.arm(second, UpstreamDeadline::Stall, now);
    assert_eq!(both(&room), (false, true));
    room.backend.disarm(second);
    assert_eq!(both(&room), (true, true));
    room.backend.disarm(first);
    assert_eq!(both(&room), (true, false));
    assert!(!room.backend.is_any_stuck(OTHER) && !room.backend.has_others_at_work(OTHER));
    for upstream in [first, second] {
        room.backend.take_exchange(upstream);
    }
    assert_eq!(both(&room), (false, false), "it has nothing at work");
    room.backend.arm(first, UpstreamDeadline::Cooldown, now);
    assert_eq!(both(&room), (false, false));
}

#[test]
fn a_crash_counts_the_requests_at_work_for_a_second() {
    let mut room = Room::new();
    let (first, _) = room.ask("GET /1 HTTP/1.1", b"");
    room.ask("GET /2 HTTP/1.1", b"");
    let probe = room.backend.take_upstream(WORKER, WISH).expect("a connection");
    room.backend.begin_probe(probe, &mut room.io);
    let now = room.io.now();
    let with = |room: &Room, worker, at| room.backend.crashed_with(worker, at);
    assert_eq!(with(&room, WORKER, now), 0);
    room.backend.note_crash(WORKER, now);
    assert_eq!((with(&room, WORKER, now), with(&room, OTHER, now)), (2, 0));
    room.backend.take_exchange(first);
    room.backend.note_crash(WORKER, now + ms(500));
    assert_eq!(with(&room, WORKER, now + ms(999)), 2, "the same crash");
    assert_eq!(with(&room, WORKER, now + ms(1000)), 0);
    room.backend.note_crash(WORKER, now + ms(1000));
    assert_eq!(with(&room, WORKER, now + ms(1000)), 1);
    room.backend.remove(OTHER);
    assert_eq!(with(&room, WORKER, now + ms(1000)), 1);
    room.backend.remove(WORKER);
    assert_eq!(with(&room, WORKER, now + ms(1000)), 0);
}

#[test]
fn a_worker_that_is_removed_leaves_nothing() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    let now = room.io.now();
    room.backend.arm_question(upstream, now);
    room.backend.remove(WORKER);
    assert!(wire.borrow().is_server_gone);
    assert_eq!(room.backend.keys().len(), 1, "the other's");
    assert_eq!(room.backend.next_deadline(), None);
    assert_eq!(room.backend.take_upstream(OTHER, WISH), room.backend.upstreams_of(OTHER).pop());
}

#[test]
fn connections_end_for_their_clients_as_well() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    room.backend.close_clients();
    room.hear(upstream, &wire, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(room.backend.answer_of(upstream).is_some_and(|answer| !answer.keep_alive));
    let end = room.backend.end_connection(upstream, false);
    assert_eq!(end, Some(End::Idle));
}

/// What a plain list says of the connections: random requests come and go, and a minute is a long time.
#[test]
fn unused_connections_are_kept_as_a_plain_list_says() {
    const UNNEEDED_AFTER: Duration = Duration::from_secs(60);
    let mut room = Room::new();
    let start = room.io.now();
    // The oldest first, with the moment since when each is unused.
    let mut unused: Vec<(UpstreamKey, Option<Instant>)> =
        vec![(room.backend.next_upstream_of(WORKER).expect("its first"), None)];
    let mut held: Vec<UpstreamKey> = Vec::new();
    let mut wires: BTreeMap<UpstreamKey, Shared> = BTreeMap::new();
    let mut draws = 12_345u64;
    let mut draw = |bound: u64| {
        draws = draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draws >> 33) % bound
    };
    let mut closed = 0;
    for _ in 0..3000 {
        let now = pass(&mut room.io, Duration::from_secs(draw(8)));
        match draw(5) {
            0 | 1 if held.len() < 6 => {
                let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
                match unused.pop() {
                    Some((last, _)) => assert_eq!(upstream, last, "the one used last"),
                    None => assert!(!held.contains(&upstream), "a new one"),
                }
                assert_eq!(room.send(upstream), Sent::Fine);
                wires.extend(wire::accept_at(room.path()).pop().map(|wire| (upstream, wire)));
                room.hear(upstream, &wires[&upstream], "HTTP/1.1 204 None\r\n\r\n");
                held.push(upstream);
            }
            2 | 3 if !held.is_empty() => {
                let upstream = held.swap_remove(draw(held.len() as u64) as usize);
                let is_kept = draw(4) > 0;
                assert!(room.backend.end_exchange(upstream, is_kept).is_some());
                let place = room.backend.release_upstream(upstream, now);
                assert_eq!(place, Some(PlaceState::Held { wish: WISH }));
                let again = room.backend.release_upstream(upstream, now);
                // One that is not connected is of no use beside others.
                if is_kept || unused.is_empty() {
                    unused.push((upstream, Some(now)));
                    assert_eq!(again, Some(PlaceState::Unused { since: Some(now) }));
                } else {
                    closed += 1;
                    assert_eq!(again, Some(PlaceState::Closed));
                }
            }
            _ => {
                let is_due = room.backend.next_deadline_of_sweep().is_some_and(|at| at <= now);
                room.backend.sweep(now);
                if is_due {
                    let last = unused.len().saturating_sub(1);
                    let old = |(_, since): &&(UpstreamKey, Option<Instant>)| {
                        since.is_some_and(|since| since + UNNEEDED_AFTER <= now)
                    };
                    let count = unused[..last].iter().take_while(old).count();
                    closed += count;
                    unused.drain(..count);
                }
            }
        }
        room.backend.remove_closed();
        assert_eq!(room.backend.next_upstream_of(WORKER), unused.last().map(|(upstream, _)| *upstream));
        assert_eq!(room.backend.upstreams_of(WORKER).len(), unused.len() + held.len());
        let is_looked_at = room.backend.next_deadline_of_sweep().is_some();
        assert!(is_looked_at || unused.len() <= 1, "somebody is to look whether they are needed");
    }
    assert!(closed > 50 && room.io.now() > start + Duration::from_secs(3600), "{closed} were closed");
}

#[test]
fn a_look_at_unneeded_connections_comes_a_minute_after_there_are_several() {
    let mut room = Room::new();
    let (first, first_wire) = room.ask("GET /1 HTTP/1.1", b"");
    let (second, second_wire) = room.ask("GET /2 HTTP/1.1", b"");
    let start = room.io.now();
    for upstream in [first, second] {
        room.backend.end_exchange(upstream, true);
        room.backend.disarm(upstream);
    }
    room.backend.release_upstream(first, start);
    assert_eq!(room.backend.next_deadline_of_sweep(), None, "one alone stays");
    let later = pass(&mut room.io, Duration::from_secs(1));
    room.backend.release_upstream(second, later);
    let due = later + Duration::from_secs(60);
    assert_eq!(room.backend.next_deadline(), Some(due));
    room.backend.sweep(due - ms(1));
    assert!(!first_wire.borrow().is_server_gone);
    room.backend.sweep(due);
    assert!(first_wire.borrow().is_server_gone, "it has not been needed");
    assert!(!second_wire.borrow().is_server_gone, "the last one stays");
    assert_eq!(room.backend.place(first), Some(PlaceState::Closed));
    assert_eq!(room.backend.release_upstream(first, due), Some(PlaceState::Closed));
    room.backend.arm(first, UpstreamDeadline::Read, due);
    room.backend.arm_question(first, due);
    room.backend.remove_closed();
    assert_eq!(room.backend.place(first), None);
    assert_eq!(room.backend.next_deadline(), None, "nothing is left to look at");
}

#[test]
fn unneeded_connections_are_looked_for_while_any_worker_has_several() {
    let mut room = Room::new();
    let now = room.io.now();
    for worker in [WORKER, OTHER] {
        let both = [room.begin(worker, "GET /1 HTTP/1.1", b""), room.begin(worker, "GET /2 HTTP/1.1", b"")];
        for upstream in both {
            assert_eq!(room.send(upstream), Sent::Fine);
            room.backend.end_exchange(upstream, true);
            room.backend.release_upstream(upstream, now);
        }
    }
    assert!(room.backend.next_deadline_of_sweep().is_some());
    room.backend.remove(OTHER);
    assert!(room.backend.next_deadline_of_sweep().is_some(), "the first one has several");
    room.backend.remove(WORKER);
    assert!(room.backend.next_deadline_of_sweep().is_none());
}
