//! Listeners, and who is let in.

use super::*;

fn knock(room: &Room) -> Shared {
    let wire = Wire::new(Kind::Tcp, usize::MAX);
    room.door.borrow_mut().waiting.push_back(wire.clone());
    wire
}

#[test]
fn whoever_knocks_is_accepted_in_the_order_of_coming() {
    let mut room = Room::new();
    let first = knock(&room);
    knock(&room);
    let Some(Accepted::Peer(stream, peer)) = room.frontend.accept(0) else { panic!("nobody") };
    assert!(matches!(peer, Peer::Unix));
    room.frontend.admit(0, stream, peer, &room.io).expect("it is watched");
    assert!(first.borrow().token.is_some());
    assert!(matches!(room.frontend.accept(0), Some(Accepted::Peer(..))));
    assert!(matches!(room.frontend.accept(0), Some(Accepted::Nobody)));
    assert!(room.frontend.accept(1).is_none(), "there is no such listener");
    assert_eq!(room.frontend.listeners().len(), 1);
    assert_eq!(room.frontend.listeners_mut().len(), 1);
}

#[test]
fn a_newcomer_is_idle_and_watched_for_both_ways() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    assert_eq!(room.armed(client), Some(ClientDeadline::Idle));
    wire.borrow_mut().set_capacity(0);
    wire.borrow_mut().set_capacity(10);
    wire.borrow_mut().send(b"x");
    let (_, _, told) = wire.borrow_mut().tell().expect("an event");
    assert!(told.is_readable && told.is_writable);
}

#[test]
fn who_is_a_proxy_and_who_may_speak_as_one() {
    let local = Peer::Ip(IpAddr::from([127, 0, 0, 1]));
    let stranger = Peer::Ip(IpAddr::from([192, 0, 2, 7]));
    let mut plain = Room::with("--trust-proxy=loopback", Holders::Own);
    assert!(!plain.frontend.is_no_proxy(0, stranger), "nobody has to speak as one");
    let (client, _) = plain.arrive_as(Kind::Tcp, local);
    assert!(!plain.frontend.awaits_proxy_header(client));
    assert!(plain.frontend.clients[client.0].is_trusted);
    let (client, _) = plain.arrive();
    assert!(!plain.frontend.clients[client.0].is_trusted);
    let (unix, _) = plain.arrive_as(Kind::Unix, Peer::Unix);
    assert_eq!(plain.frontend.address(unix), b"127.0.0.1");
    assert!(plain.frontend.clients[unix.0].is_trusted);
    let mut none = Room::new();
    let (client, _) = none.arrive_as(Kind::Tcp, local);
    assert!(!none.frontend.clients[client.0].is_trusted, "nobody is");

    let mut room = Room::with("http:0,proxy --trust-proxy=loopback", Holders::Own);
    assert!(room.frontend.is_no_proxy(0, stranger));
    assert!(!room.frontend.is_no_proxy(0, local) && !room.frontend.is_no_proxy(0, Peer::Unix));
    assert!(!room.frontend.is_no_proxy(1, stranger), "no such listener");
    let (client, wire) = room.arrive_as(Kind::Tcp, local);
    assert!(room.frontend.awaits_proxy_header(client));
    assert_eq!(room.armed(client), Some(ClientDeadline::Receive), "the header's time runs");
    assert!(room.hear(client, &wire, "PROXY TCP4 198.51.100.1 192.0.2.1 5000 80\r\n").is_none());
    assert!(!room.frontend.awaits_proxy_header(client));
    assert_eq!(room.frontend.address(client), b"198.51.100.1");
    assert!(!room.frontend.clients[client.0].is_trusted, "who is behind it is no proxy");
    assert_eq!(room.armed(client), Some(ClientDeadline::Idle), "as if it had connected just now");
    for (text, address) in
        [("PROXY TCP4 127.0.0.2 192.0.2.1 5000 80\r\n", "127.0.0.2"), ("PROXY UNKNOWN\r\n", "127.0.0.1")]
    {
        let (client, wire) = room.arrive_as(Kind::Tcp, local);
        assert!(room.hear(client, &wire, text).is_none());
        assert_eq!(room.frontend.address(client), address.as_bytes(), "{text}");
        assert!(room.frontend.clients[client.0].is_trusted, "{text}");
    }
    let (client, wire) = room.arrive_as(Kind::Tcp, local);
    assert!(matches!(room.hear(client, &wire, "GET / HTTP/1.1\r\n"), Some(FromClient::NoProxyHeader(_))));
}

#[test]
fn descriptors_are_kept_free_of_clients() {
    let mut room = Room::new();
    let all = room.io.descriptors();
    room.arrive();
    room.arrive();
    // Two clients, and a spool file.
    let (client, _) = room.assign();
    room.frontend.clients[client.0].out.push_all(&[b'x'; 600]);
    assert_eq!(room.io.spools().files(), 1);
    room.frontend.keep_descriptors(all - 3 - 1 - 5);
    assert!(!room.frontend.is_near_descriptor_bound(4, &room.io));
    assert!(room.frontend.is_near_descriptor_bound(5, &room.io));
    room.frontend.keep_descriptors(all - 3 - 1 - 4);
    assert!(room.frontend.is_near_descriptor_bound(4, &room.io));
}

#[test]
fn the_one_idle_for_the_longest_time_makes_room() {
    let mut room = Room::new();
    assert_eq!(room.frontend.longest_idle(room.io.now()), None);
    let (first, wire) = room.arrive();
    pass(&mut room.io, ms(50));
    let (second, _) = room.arrive();
    let now = pass(&mut room.io, ms(49));
    assert_eq!(room.frontend.longest_idle(now), None, "its request may be on its way");
    let now = pass(&mut room.io, ms(1));
    assert_eq!(room.frontend.longest_idle(now), Some(first));
    room.hear(first, &wire, "GET /");
    assert_eq!(room.frontend.longest_idle(now), None, "it is not idle any more");
    assert_eq!(room.frontend.longest_idle(now + ms(50)), Some(second));
}

#[test]
fn only_who_is_idle_still_is_closed_for_that() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    assert!(!room.frontend.close_if_idle(client), "its time runs");
    room.frontend.disarm(client);
    assert!(room.frontend.close_if_idle(client));
    assert!(!room.frontend.close_if_idle(client), "it is closed already");
    room.frontend.remove_closed();
    assert!(wire.borrow().is_server_gone);
    let (receiving, wire) = room.arrive();
    room.hear(receiving, &wire, "GET /");
    room.frontend.disarm(receiving);
    assert!(!room.frontend.close_if_idle(receiving), "a request has begun");
    let (assigned, _) = room.assign();
    assert!(!room.frontend.close_if_idle(assigned));
    let now = room.io.now();
    for client in [receiving, assigned] {
        room.frontend.part_if_idle(client, now);
        assert!(room.armed(client).is_none());
    }
    let (idle, wire) = room.arrive();
    room.frontend.part_if_idle(idle, now);
    assert!(!wire.borrow().server_has_ended, "its time runs");
    room.frontend.disarm(idle);
    room.frontend.part_if_idle(idle, now);
    assert!(wire.borrow().server_has_ended && !wire.borrow().is_server_gone);
    assert!(matches!(room.frontend.phase(idle), Some(Phase::Lingering)));
    assert!(room.frontend.clients[idle.0].conn.is_lingering());
    assert_eq!(room.armed(idle), Some(ClientDeadline::Grace));
}

#[test]
fn accepting_pauses_where_descriptors_run_out() {
    let mut room = Room::new();
    let now = room.io.now();
    assert!(!room.frontend.is_accepting_paused() && room.frontend.next_deadline().is_none());
    room.frontend.pause_accepting(&"no descriptors", now);
    assert!(room.frontend.is_accepting_paused() && room.frontend.acceptor.is_short());
    assert_eq!(room.frontend.next_deadline(), Some(now + ms(100)));
    assert!(!room.frontend.end_pause(now + ms(99)) && room.frontend.is_accepting_paused());
    assert!(room.frontend.end_pause(now + ms(100)) && !room.frontend.is_accepting_paused());
    assert!(!room.frontend.end_pause(now + ms(200)), "once");
    room.frontend.pause_accepting(&"no descriptors", now);
    knock(&room);
    room.frontend.accept(0);
    assert!(room.frontend.acceptor.is_short(), "it has not caught up");
    room.frontend.accept(0);
    assert!(!room.frontend.acceptor.is_short(), "everybody is in, so the next shortage is news");
}

#[test]
fn listeners_close_when_those_on_their_way_are_in() {
    let mut room = Room::new();
    room.frontend.begin_listening(room.io.registry()).expect("it is watched");
    let now = room.io.now();
    assert!(!room.frontend.closes_now(now + Duration::from_secs(60)), "nobody stops");
    room.frontend.pause_accepting(&"no descriptors", now);
    room.frontend.begin_closing(&room.io);
    assert!(!room.frontend.is_accepting_paused() && room.door.borrow().is_deaf);
    assert_eq!(room.frontend.next_deadline(), Some(now + ms(5)), "all are on this machine");
    assert!(!room.frontend.closes_now(now + ms(4)));
    assert!(room.frontend.closes_now(now + ms(5)));
    room.frontend.pause_accepting(&"no descriptors", now);
    assert!(!room.frontend.closes_now(now + ms(5)), "whoever waits is accepted first");
    assert!(room.frontend.end_pause(now + ms(100)));
    assert!(!room.door.borrow().is_closed);
    room.frontend.stop_listening();
    assert!(room.door.borrow().is_closed && room.frontend.next_deadline().is_none());
    assert!(room.frontend.listeners().is_empty());
}

#[test]
fn a_socket_that_somebody_else_holds_is_left_to_them() {
    for holders in [Holders::Shared, Holders::Handed] {
        let mut room = Room::with("", holders);
        let door = Rc::new(RefCell::new(Door::default()));
        let own = Listener::scripted(UnixListener::at(&door), Holders::Own);
        room.frontend.acceptor.add(own);
        room.frontend.begin_closing(&room.io);
        assert!(room.door.borrow().is_closed && !room.door.borrow().is_deaf, "{holders:?}");
        assert!(door.borrow().is_deaf && !door.borrow().is_closed, "our own");
        assert_eq!(room.frontend.listeners().len(), 1);
    }
    let mut room = Room::with("", Holders::Shared);
    let now = room.io.now();
    room.frontend.begin_closing(&room.io);
    assert!(room.frontend.closes_now(now), "there is nothing to wait for");
}

#[test]
fn the_kernel_tells_of_whoever_connects_once_it_is_listened_for() {
    let mut room = Room::new();
    room.frontend.stop_listening();
    room.frontend.acceptor.add(Listener::bind_loopback(0).expect("a port"));
    let port = room.frontend.listeners()[0].port().expect("a port");
    room.frontend.begin_listening(room.io.registry()).expect("it is watched");
    let _client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let mut events = mio::Events::with_capacity(4);
    room.io.wait(&mut events, Some(Duration::from_secs(10))).expect("epoll");
    let told: Vec<_> = events.iter().filter_map(|event| Target::of(event.token())).collect();
    assert_eq!(told, [Target::Listener(0)]);
    let Some(Accepted::Peer(_, Peer::Ip(address))) = room.frontend.accept(0) else { panic!("nobody") };
    assert!(address.is_loopback());
}

#[test]
fn handshakes_from_elsewhere_have_more_time_than_those_of_this_machine() {
    let close = |listener: Listener| {
        let mut room = Room::new();
        room.frontend.stop_listening();
        room.frontend.acceptor.add(listener);
        room.frontend.begin_closing(&room.io);
        room.frontend.next_deadline().expect("they are to be closed") - room.io.now()
    };
    let everywhere = crate::config::Listen::Tcp { address: Some(IpAddr::from([0, 0, 0, 0])), port: 0 };
    let there = close(Listener::bind(&everywhere, None).expect("a port"));
    let here = close(Listener::bind_loopback(0).expect("a port"));
    // Who may not turn newcomers away waits for nobody.
    assert!([(ms(100), ms(5)), (ms(0), ms(0))].contains(&(there, here)), "{there:?} {here:?}");
}
