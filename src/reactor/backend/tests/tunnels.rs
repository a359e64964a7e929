//! Tunnels: bytes for the worker, and the ends of both ways.

use super::*;
use crate::reactor::backend::exchange::Sending;

#[test]
fn bytes_of_a_tunnel_go_to_its_worker_in_their_order() {
    let mut room = Room::new();
    let (upstream, wire) = room.tunnel();
    assert_eq!(room.backend.armed(upstream), Some(UpstreamDeadline::Idle));
    let head_bytes = wire.borrow().written.len();
    let now = pass(&mut room.io, ms(100));
    assert!(room.backend.push_to_tunnel(upstream, b"one ", now));
    assert_eq!(room.due_in(upstream), Some(ms(3000)), "it is not idle");
    assert!(room.exchange(upstream).is_half_sent());
    assert!(room.backend.push_to_tunnel(upstream, b"two", now));
    assert_eq!(room.send(upstream), Sent::Fine);
    assert_eq!(&wire.borrow().written[head_bytes..], b"one two");
    assert!(!room.exchange(upstream).is_half_sent());
    assert_eq!(room.exchange(upstream).tunnel_out().map(|out| out.len()), Some(0), "and is forgotten");
    let (request, _) = room.ask("GET / HTTP/1.1", b"");
    assert!(!room.backend.push_to_tunnel(request, b"x", now), "no tunnel");
}

#[test]
fn a_tunnels_client_is_not_read_while_its_worker_does_not_keep_up() {
    const MAX_WAITING_BYTES: usize = 64 * 1024;
    let mut room = Room::new();
    let (upstream, wire) = room.tunnel();
    let now = room.io.now();
    assert!(!room.backend.is_tunnel_full(upstream));
    room.backend.push_to_tunnel(upstream, &vec![b'x'; MAX_WAITING_BYTES - 1], now);
    assert!(!room.backend.is_tunnel_full(upstream));
    room.backend.resume_tunnels_client(upstream, &mut room.io);
    assert!(room.io.is_ready(&Target::Client(CLIENT)));
    room.io.take_ready();
    room.backend.push_to_tunnel(upstream, b"x", now);
    assert!(room.backend.is_tunnel_full(upstream));
    room.backend.resume_tunnels_client(upstream, &mut room.io);
    assert!(!room.io.is_ready(&Target::Client(CLIENT)));
    assert_eq!(room.send(upstream), Sent::Fine);
    assert!(!room.backend.is_tunnel_full(upstream), "a tick's worth is out");
    assert!(room.io.is_ready(&Target::Upstream(upstream)), "more goes out in the next");
    assert!(!room.backend.is_watched_for_room(upstream));
    wire.borrow_mut().set_capacity(0);
    assert_eq!(room.send(upstream), Sent::Fine);
    assert!(room.backend.is_watched_for_room(upstream), "an event will tell");
}

#[test]
fn a_tunnel_is_over_when_both_ways_are() {
    let mut room = Room::new();
    let (upstream, wire) = room.tunnel();
    let now = room.io.now();
    assert_eq!(room.backend.tunnels(), 1);
    assert!(!room.backend.has_tunnel_ended(upstream));
    room.backend.push_to_tunnel(upstream, b"last", now);
    assert!(room.backend.end_sending(upstream), "behind the last byte");
    assert!(!room.backend.end_sending(upstream), "once");
    assert!(!wire.borrow().server_has_ended);
    assert_eq!(room.send(upstream), Sent::TunnelShut);
    assert!(wire.borrow().server_has_ended && wire.borrow().written.ends_with(b"last"));
    assert!(!room.backend.is_tunnel_over(upstream, true));
    assert!(!room.backend.is_tunnel_over(upstream, false), "its client waits");
    room.backend.end_receiving(upstream);
    assert!(room.backend.has_tunnel_ended(upstream) && room.read(upstream).is_none());
    assert!(room.backend.is_tunnel_over(upstream, true));

    let (left, _) = room.tunnel();
    room.backend.let_client_go(left, &mut room.io);
    assert_eq!(room.backend.tunnels(), 1, "the first one");
    assert!(!room.backend.is_tunnel_over(left, false), "its way to the worker is open");
    room.backend.shut_down_sending(left);
    assert_eq!(room.exchange(left).sending(), Sending::Ended);
    assert!(room.backend.is_tunnel_over(left, false), "nobody waits, and it cannot be asked");
    assert!(!room.backend.is_tunnel_over(left, true));
    let (request, _) = room.ask("GET / HTTP/1.1", b"");
    room.backend.end_receiving(request);
    assert!(!room.backend.has_tunnel_ended(request), "no tunnel");
    room.backend.shut_down_sending(request);
    assert!(!room.backend.is_tunnel_over(request, false));
}

#[test]
fn a_tunnels_way_is_shut_behind_what_the_worker_takes() {
    let mut room = Room::new();
    let (upstream, wire) = room.tunnel();
    let now = room.io.now();
    wire.borrow_mut().take(usize::MAX);
    wire.borrow_mut().set_capacity(2);
    room.backend.push_to_tunnel(upstream, b"four", now);
    room.backend.end_sending(upstream);
    assert_eq!(room.send(upstream), Sent::Fine, "some of it waits");
    assert!(!wire.borrow().server_has_ended && room.exchange(upstream).is_half_sent());
    wire.borrow_mut().take(usize::MAX);
    assert_eq!(room.send(upstream), Sent::TunnelShut);
    assert!(wire.borrow().server_has_ended);
    let (gone, wire) = room.tunnel();
    wire.borrow_mut().close();
    room.backend.push_to_tunnel(gone, b"lost", now);
    assert_eq!(room.send(gone), Sent::TunnelShut, "the worker takes no more");
}

#[test]
fn a_worker_is_told_that_nobody_waits() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    room.backend.shut_down_sending(upstream);
    assert!(wire.borrow().server_has_ended && !wire.borrow().is_server_gone);
    assert!(!room.exchange(upstream).has_left_the_way_open(), "it serves no second request");
    assert!(!room.backend.is_sending_open(upstream));
}
