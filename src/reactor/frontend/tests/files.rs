//! Clients that wait for a file of their spool's.

use super::*;
use crate::reactor::simulation::disk::{self, Disk};

/// As much as goes to a file.
const LARGE: [u8; 600] = [b'x'; 600];

/// A client whose answer goes on, and whose spool has to have a file: this tick's file is another's.
fn waits_for_file(room: &mut Room) -> ClientKey {
    let (client, wire) = room.assign();
    wire.borrow_mut().set_capacity(0);
    // The first one stands in memory.
    let part: [&[u8]; 3] = [&[b'x'; 400], b"", b""];
    let delivery = room.frontend.pass_on(client, part, false, &room.io);
    assert_eq!(delivery, Delivery::Waits { is_full: false });
    room.frontend.pass_on(client, part, false, &room.io);
    client
}

/// The tick's one file is made.
fn use_up_tick(room: &mut Room) {
    let mut spool = Spool::new(room.io.spools());
    spool.push_all(&LARGE);
    assert!(room.io.spools().is_tick_over());
}

/// A client whose body has to have a file: this tick's file is another's.
fn sends_large_body(room: &mut Room) -> (ClientKey, Shared) {
    let (client, wire) = room.arrive();
    assert!(room.hear(client, &wire, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n").is_none());
    use_up_tick(room);
    room.frontend.clients[client.0].body.push(&LARGE).expect("it waits in memory");
    (client, wire)
}

#[test]
fn who_waits_for_a_file_gets_one_in_the_next_tick_first_come_first_served() {
    let mut room = Room::new();
    use_up_tick(&mut room);
    let first = waits_for_file(&mut room);
    let second = waits_for_file(&mut room);
    assert!(room.frontend.waits_for_file(first) && room.frontend.waits_for_file(second));
    assert!(room.frontend.has_work());
    assert!(!room.frontend.lacks_files(&room.io), "there will be descriptors");
    let now = room.io.now();
    assert!(room.frontend.may_look_for_files(now));
    assert_eq!(room.frontend.next_for_file(&room.io), None, "the tick is over");
    room.io.spools().end_tick(now);
    assert_eq!(room.frontend.next_for_file(&room.io), Some(FileTurn::Answer(first)));
    assert!(!room.frontend.waits_for_file(first));
    assert!(room.frontend.has_room_for_answer(first), "it has its file");
    assert!(room.io.spools().is_tick_over());
    assert_eq!(room.frontend.next_for_file(&room.io), None);
    room.io.spools().end_tick(now);
    let third = waits_for_file(&mut room);
    assert!(!room.frontend.waits_for_file(third), "there was one for it");
    assert!(!room.frontend.has_room_for_answer(second), "none is left");
    assert!(room.frontend.waits_for_file(second));
    room.io.spools().end_tick(now);
    assert_eq!(room.frontend.next_for_file(&room.io), Some(FileTurn::Answer(second)));
    assert!(!room.frontend.has_room_for_answer(NOBODY) && !room.frontend.waits_for_file(NOBODY));
}

#[test]
fn who_has_gone_or_is_done_needs_no_file() {
    let mut room = Room::new();
    use_up_tick(&mut room);
    let gone = waits_for_file(&mut room);
    let closed = waits_for_file(&mut room);
    let next = waits_for_file(&mut room);
    room.frontend.close(gone);
    room.frontend.remove_closed();
    room.frontend.close(closed);
    room.io.spools().end_tick(room.io.now());
    assert_eq!(room.frontend.next_for_file(&room.io), Some(FileTurn::Answer(next)));
    assert_eq!(room.frontend.next_for_file(&room.io), None);
    assert!(!room.frontend.has_work());
}

#[test]
fn a_body_that_needs_a_file_is_not_read_before_there_is_one() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n";
    assert!(room.hear(client, &wire, head).is_none());
    for _ in 0..5 {
        assert!(room.hear(client, &wire, &"x".repeat(100)).is_none());
    }
    use_up_tick(&mut room);
    wire.borrow_mut().send(&[b'x'; 100]);
    room.note(client, Readiness::READABLE);
    let mut scratch = [0; 64];
    let mut budget = 256;
    // What fits into memory is read still.
    let received = room.frontend.receive(client, &mut scratch, &mut budget, &mut room.io);
    assert_eq!(received, Some(Received::Bytes(12)));
    let mut pending = room.frontend.pending(client, &mut scratch[..12]).expect("it is there");
    assert!(room.frontend.advance(client, &mut pending, &mut room.io).is_none());
    room.frontend.keep(client, pending, &room.io);
    assert_eq!(room.frontend.receive(client, &mut scratch, &mut budget, &mut room.io), None);
    assert!(room.frontend.waits_for_file(client));
    assert!(!room.frontend.clients[client.0].is_listened_to());
    room.io.spools().end_tick(room.io.now());
    assert_eq!(room.frontend.next_for_file(&room.io), Some(FileTurn::Body(client)));
    let received = room.frontend.receive(client, &mut scratch, &mut budget, &mut room.io);
    assert_eq!(received, Some(Received::Bytes(64)));
}

#[test]
fn a_body_without_room_is_refused() {
    let mut room = Room::new();
    let (client, wire) = sends_large_body(&mut room);
    assert!(room.frontend.clients[client.0].body.has_tail());
    wire.borrow_mut().send(b"x");
    assert!(room.read(client).is_none() && room.frontend.waits_for_file(client));
    disk::set(Disk::Full);
    room.io.spools().end_tick(room.io.now());
    assert_eq!(room.frontend.next_for_file(&room.io), Some(FileTurn::NoRoom(client)));
    disk::set(Disk::Works);
    let (other, wire) = room.arrive();
    disk::set(Disk::Full);
    room.io.spools().end_tick(room.io.now());
    assert!(room.hear(other, &wire, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n").is_none());
    let mut last = None;
    for _ in 0..6 {
        last = last.or(room.hear(other, &wire, &"x".repeat(100)));
    }
    assert!(matches!(last, Some(FromClient::NoRoom)));
    disk::set(Disk::Works);
}

#[test]
fn a_body_that_has_just_found_its_room_goes_on() {
    let mut room = Room::new();
    let (client, wire) = sends_large_body(&mut room);
    wire.borrow_mut().send(b"x");
    assert!(room.read(client).is_none() && room.frontend.waits_for_file(client));
    room.io.spools().end_tick(room.io.now());
    assert_eq!(room.frontend.next_for_file(&room.io), Some(FileTurn::Body(client)), "however full it is");
    assert!(!room.frontend.clients[client.0].body.has_tail());
}

#[test]
fn without_descriptors_files_are_looked_for_again_after_a_while() {
    let mut room = Room::new();
    assert!(!room.frontend.lacks_files(&room.io));
    disk::set(Disk::NoDescriptors);
    let client = waits_for_file(&mut room);
    assert!(room.frontend.waits_for_file(client) && room.io.spools().lacks_descriptors());
    assert!(room.frontend.lacks_files(&room.io));
    let now = room.io.now();
    assert!(!room.frontend.has_work(), "not before a while");
    room.frontend.disarm(client);
    assert_eq!(room.frontend.next_deadline(), Some(now + ms(20)));
    assert!(!room.frontend.may_look_for_files(now + ms(19)));
    assert!(room.frontend.may_look_for_files(now + ms(20)));
    assert!(room.frontend.has_work() && room.frontend.next_deadline().is_none());
    disk::set(Disk::Works);
    room.io.spools().end_tick(now);
    assert_eq!(room.frontend.next_for_file(&room.io), Some(FileTurn::Answer(client)));
    assert!(room.frontend.has_room_for_answer(client));
    assert!(!room.frontend.lacks_files(&room.io), "there are some again");
    assert!(room.frontend.lacks_files(&room.io) || room.frontend.next_deadline().is_none());
}

#[test]
fn what_a_client_has_taken_is_forgotten_file_by_file() {
    let mut room = Room::new();
    let (client, wire) = room.assign();
    wire.borrow_mut().set_capacity(0);
    // As much as one file holds, and the beginning of another.
    room.frontend.deliver(client, [&vec![b'x'; 1 << 20], b"", b""]);
    room.io.spools().end_tick(room.io.now());
    room.frontend.deliver(client, [b"behind", b"", b""]);
    assert_eq!(room.io.spools().files(), 2);
    set_room(&wire, (1 << 20) + 1);
    while !matches!(room.frontend.flush(client, &mut room.io), Flushed::Nothing) {}
    assert!(!room.io.spools().has_leaving_files());
    room.frontend.forget_taken(client);
    room.frontend.forget_taken(NOBODY);
    assert!(room.io.spools().has_leaving_files(), "the first one is read to its end");
    set_room(&wire, usize::MAX >> 1);
    while !matches!(room.frontend.flush(client, &mut room.io), Flushed::All) {}
    assert!(wire.borrow().written.ends_with(b"xbehind"));
}

#[test]
fn so_much_is_read_of_a_client_as_its_spool_has_room_for() {
    let mut room = Room::new();
    let (head, _) = room.arrive();
    let (body, wire) = room.arrive();
    assert!(
        room.hear(body, &wire, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\nhello").is_none()
    );
    let (tunnel, _) = room.assign();
    room.frontend.upgrade(tunnel, UPSTREAM);
    let read = |room: &Room, client: ClientKey| {
        super::super::files::readable_bytes(&room.frontend.clients[client.0], room.io.spools())
    };
    for client in [head, body, tunnel] {
        assert_eq!(read(&room, client), usize::MAX);
    }
    use_up_tick(&mut room);
    assert_eq!(read(&room, head), 16 * 1024, "a small request needs no file");
    assert_eq!(read(&room, body), 512 - 5);
    assert_eq!(read(&room, tunnel), usize::MAX);
    room.frontend.clients[body.0].body.push(&LARGE).expect("it waits in memory");
    room.io.spools().end_tick(room.io.now());
    assert_eq!(read(&room, body), 0, "it has to have a file first");
    assert_eq!(read(&room, head), usize::MAX);
}
