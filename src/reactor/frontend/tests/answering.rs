//! What goes to a client, and what follows.

use super::*;

#[test]
fn what_a_client_does_not_take_waits_for_it_in_order() {
    let mut room = Room::new();
    let (client, wire) = room.assign();
    assert_eq!(room.frontend.deliver(client, [b"", b"", b""]), Delivery::Sent);
    assert_eq!(room.frontend.deliver(client, [b"head ", b"", b"body "]), Delivery::Sent);
    set_room(&wire, 6);
    assert_eq!(
        room.frontend.deliver(client, [b"one ", b"two ", b"three "]),
        Delivery::Waits { is_full: false }
    );
    assert!(room.frontend.has_undelivered(client));
    assert_eq!(room.frontend.undelivered(client), Delivery::Waits { is_full: false });
    wire.borrow_mut().set_capacity(usize::MAX);
    assert_eq!(
        room.frontend.deliver(client, [b"four", b"", b""]),
        Delivery::Waits { is_full: false },
        "behind what waits"
    );
    assert!(matches!(room.frontend.flush(client, &mut room.io), Flushed::All));
    assert_eq!(wire.borrow().written, b"head body one two three four");
    assert!(!room.frontend.has_undelivered(client));
    assert_eq!(room.frontend.undelivered(client), Delivery::Sent);
    assert_eq!(room.frontend.clients[client.0].out.len(), 0, "it is forgotten");
    wire.borrow_mut().reset();
    assert_eq!(room.frontend.deliver(client, [b"x", b"", b""]), Delivery::Gone);
    assert_eq!(room.frontend.deliver(NOBODY, [b"x", b"", b""]), Delivery::Gone);
    assert_eq!(room.frontend.undelivered(NOBODY), Delivery::Sent);
}

#[test]
fn a_client_that_takes_nothing_of_an_answer_has_a_deadline_while_that_goes_on() {
    let mut room = Room::new();
    let (client, wire) = room.assign();
    let part: [&[u8]; 3] = [b"some", b"", b""];
    assert_eq!(room.frontend.pass_on(client, part, false, &room.io), Delivery::Sent);
    assert_eq!(room.armed(client), None);
    wire.borrow_mut().set_capacity(0);
    assert_eq!(room.frontend.pass_on(client, part, true, &room.io), Delivery::Waits { is_full: false });
    assert_eq!(room.armed(client), None, "what follows has its own");
    assert_eq!(room.frontend.pass_on(client, part, false, &room.io), Delivery::Waits { is_full: false });
    assert_eq!((room.armed(client), room.due_in(client)), (Some(ClientDeadline::Take), Some(ms(3000))));
    assert!(!room.frontend.waits_for_file(client));
    assert_eq!(room.frontend.pass_on(NOBODY, part, false, &room.io), Delivery::Sent);
}

#[test]
fn an_answer_of_the_servers_own_forgets_the_body() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    room.hear(client, &wire, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(room.frontend.clients[client.0].body.len(), 5);
    assert_eq!(room.frontend.answer(client, b"HTTP/1.1 413 Too Large\r\n\r\n"), Delivery::Sent);
    assert_eq!(room.frontend.clients[client.0].body.len(), 0);
    assert_eq!(wire.borrow().written, b"HTTP/1.1 413 Too Large\r\n\r\n");
    assert_eq!(room.frontend.answer(NOBODY, b"x"), Delivery::Gone);
}

#[test]
fn behind_an_answer_comes_the_next_request_or_the_end() {
    let mut room = Room::new();
    let (keep, _) = room.assign();
    room.frontend.answered(keep, Then::Keep, &mut room.io);
    assert!(matches!(room.frontend.phase(keep), Some(Phase::Reading)));
    assert_eq!(room.armed(keep), Some(ClientDeadline::Idle));
    assert!(!room.is_ready(keep), "an event will tell");

    // Each of these has it read on at once: kept bytes, bytes in the kernel, its end.
    for which in 0..3 {
        let (client, wire) = room.arrive();
        let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let behind = if which == 0 { "GET" } else { "" };
        assert!(matches!(room.hear(client, &wire, &format!("{text}{behind}")), Some(FromClient::Request(_))));
        room.frontend.assign(client, UPSTREAM);
        room.frontend.clients[client.0].is_readable = which == 1;
        room.frontend.clients[client.0].conn.has_ended = which == 2;
        room.frontend.answered(client, Then::Keep, &mut room.io);
        assert!(room.is_ready(client), "{which}");
    }

    let (close, wire) = room.assign();
    room.frontend.answered(close, Then::Close, &mut room.io);
    assert!(matches!(room.frontend.phase(close), Some(Phase::Lingering)));
    assert!(wire.borrow().server_has_ended && !wire.borrow().is_server_gone, "it may still send");
    for reset in [false, true] {
        let (cut, wire) = room.assign();
        room.frontend.answered(cut, Then::Cut { reset }, &mut room.io);
        assert!(matches!(room.frontend.phase(cut), Some(Phase::Closed)));
        assert_eq!(wire.borrow().server_resets, reset);
        room.frontend.answered(cut, Then::Keep, &mut room.io);
        assert!(matches!(room.frontend.phase(cut), Some(Phase::Closed)), "it stays closed");
    }
}

#[test]
fn a_client_that_may_still_send_is_given_time_behind_its_last_answer() {
    // Whatever lies there by now, but not where its end has been read.
    for (is_kept, is_readable, has_ended, lingers) in [
        (true, false, false, true),
        (false, true, false, true),
        (false, false, false, true),
        (true, true, true, false),
    ] {
        let mut room = Room::new();
        let (client, wire) = room.arrive();
        let behind = if is_kept { "GET" } else { "" };
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n\r\n{behind}");
        assert!(matches!(room.hear(client, &wire, &text), Some(FromClient::Request(_))));
        room.frontend.assign(client, UPSTREAM);
        room.frontend.clients[client.0].is_readable = is_readable;
        room.frontend.clients[client.0].conn.has_ended = has_ended;
        room.frontend.answered(client, Then::Close, &mut room.io);
        let is_lingering = matches!(room.frontend.phase(client), Some(Phase::Lingering));
        assert_eq!(is_lingering, lingers, "{is_kept} {is_readable} {has_ended}");
        assert_eq!(wire.borrow().server_has_ended, lingers);
        assert_eq!(room.is_ready(client), lingers);
        let due = (room.armed(client), room.due_in(client));
        assert_eq!(due, if lingers { (Some(ClientDeadline::Linger), Some(ms(2000))) } else { (None, None) });
    }
}

#[test]
fn a_request_is_logged_when_its_client_has_all_of_the_answer() {
    let mut room = Room::new();
    let (client, wire) = room.assign();
    wire.borrow_mut().set_capacity(0);
    room.frontend.deliver(client, [b"an answer", b"", b""]);
    let finished = room.finished();
    room.frontend.await_taking(client, finished, Then::Keep, &room.io);
    assert!(matches!(room.frontend.phase(client), Some(Phase::Finishing { .. })));
    assert_eq!((room.armed(client), room.due_in(client)), (Some(ClientDeadline::Take), Some(ms(3000))));
    pass(&mut room.io, ms(10));
    assert!(matches!(room.frontend.flush(client, &mut room.io), Flushed::Nothing));
    assert_eq!(room.due_in(client), Some(ms(2990)), "it has taken nothing");
    set_room(&wire, 3);
    assert!(matches!(room.frontend.flush(client, &mut room.io), Flushed::Some));
    assert_eq!(room.due_in(client), Some(ms(3000)), "it has taken some");
    assert!(!room.is_ready(client), "an event will tell");
    wire.borrow_mut().set_capacity(usize::MAX);
    assert!(matches!(room.frontend.flush(client, &mut room.io), Flushed::All));
    let finished = room.frontend.taken(client, &mut room.io).expect("its request");
    assert_eq!(finished.request.path(), b"/finished");
    assert!(matches!(room.frontend.phase(client), Some(Phase::Reading)));
    assert!(room.frontend.taken(client, &mut room.io).is_none(), "once");
    let (assigned, _) = room.assign();
    assert!(room.frontend.taken(assigned, &mut room.io).is_none(), "its answer goes on");
}

#[test]
fn a_fast_client_gets_so_much_in_a_tick() {
    let mut room = Room::new();
    let (client, wire) = room.assign();
    wire.borrow_mut().set_capacity(0);
    assert_eq!(room.frontend.deliver(client, [&[b'x'; 900], b"", b""]), Delivery::Waits { is_full: true });
    assert_eq!(room.frontend.undelivered(client), Delivery::Waits { is_full: true });
    wire.borrow_mut().set_capacity(usize::MAX);
    assert!(matches!(room.frontend.flush(client, &mut room.io), Flushed::Some));
    assert!(room.is_ready(client), "no event will tell");
    let mut flushes = 1;
    while !matches!(room.frontend.flush(client, &mut room.io), Flushed::All) {
        flushes += 1;
        assert!(flushes < 10);
    }
    assert_eq!(wire.borrow().written.len(), 900);
    wire.borrow_mut().set_capacity(0);
    room.frontend.deliver(client, [b"last", b"", b""]);
    wire.borrow_mut().reset();
    assert!(matches!(room.frontend.flush(client, &mut room.io), Flushed::Gone));
    assert!(matches!(room.frontend.flush(NOBODY, &mut room.io), Flushed::Nothing));
}
