//! What arrives on a client's connection.

use super::*;

fn receive(room: &mut Room, client: ClientKey, budget: &mut usize) -> Option<Received> {
    let mut scratch = [0; 8];
    room.frontend.receive(client, &mut scratch, budget, &mut room.io)
}

#[test]
fn a_read_says_whether_more_may_be_there() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    let is_readable = |room: &Room| room.frontend.clients[client.0].is_readable;
    let mut budget = 20;
    wire.borrow_mut().send(&[b'x'; 18]);
    assert_eq!(receive(&mut room, client, &mut budget), None, "nobody has told of it");
    room.note(client, Readiness::READABLE);
    assert_eq!(receive(&mut room, client, &mut budget), Some(Received::Bytes(8)));
    assert!(is_readable(&room) && budget == 12);
    assert_eq!(receive(&mut room, client, &mut budget), Some(Received::Bytes(8)));
    assert_eq!(receive(&mut room, client, &mut budget), Some(Received::Bytes(2)));
    assert!(!is_readable(&room), "a short read");
    wire.borrow_mut().send(b"xx");
    room.note(client, Readiness { is_read_closed: true, ..Readiness::READABLE });
    assert_eq!(receive(&mut room, client, &mut budget), Some(Received::Bytes(2)));
    assert!(is_readable(&room), "its end is still to be read");
    assert!(!room.is_ready(client));
    assert_eq!(receive(&mut room, client, &mut budget), None);
    assert!(room.is_ready(client), "the tick's budget is used up");
    budget = 20;
    assert_eq!(receive(&mut room, client, &mut budget), None, "the end has not come");
    assert!(!is_readable(&room));
    wire.borrow_mut().end();
    room.note(client, Readiness::READABLE);
    assert_eq!(receive(&mut room, client, &mut budget), Some(Received::End));
    assert!(!is_readable(&room) && room.frontend.clients[client.0].conn.has_ended);
    wire.borrow_mut().reset();
    room.note(client, Readiness::READABLE);
    assert_eq!(receive(&mut room, client, &mut budget), Some(Received::Gone));
    let (assigned, wire) = room.assign();
    wire.borrow_mut().send(b"x");
    room.note(assigned, Readiness::READABLE);
    assert_eq!(receive(&mut room, assigned, &mut budget), None, "nothing can be used now");
    assert_eq!(receive(&mut room, NOBODY, &mut budget), None);
}

#[test]
fn less_is_read_of_what_is_thrown_away() {
    let mut room = Room::new();
    let (client, _) = room.arrive();
    assert_eq!(room.frontend.read_budget(client), 256);
    room.frontend.disarm(client);
    let now = room.io.now();
    room.frontend.part_if_idle(client, now);
    assert_eq!(room.frontend.read_budget(client), 64);
}

#[test]
fn a_requests_clock_starts_with_its_first_byte() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    pass(&mut room.io, ms(10));
    assert!(room.hear(client, &wire, "POST / HTTP/1.1\r\n").is_none());
    assert_eq!((room.armed(client), room.due_in(client)), (Some(ClientDeadline::Receive), Some(ms(900))));
    pass(&mut room.io, ms(10));
    assert!(room.hear(client, &wire, "Host: a\r\n").is_none());
    assert_eq!(room.due_in(client), Some(ms(890)), "a head has one time");
    pass(&mut room.io, ms(10));
    assert!(room.hear(client, &wire, "Content-Length: 6\r\n\r\nabc").is_none());
    assert_eq!(room.due_in(client), Some(ms(900)), "a body has it anew with each byte");
    pass(&mut room.io, ms(10));
    assert!(room.hear(client, &wire, "d").is_none());
    assert_eq!(room.due_in(client), Some(ms(900)));
    let Some(FromClient::Request(request)) = room.hear(client, &wire, "ef") else { panic!("no request") };
    assert_eq!(room.armed(client), None);
    assert!(matches!(room.frontend.phase(client), Some(Phase::Dispatching)));
    let (now, deadline) = (room.io.now(), room.io.now() + ms(300));
    let job = room.frontend.job(client, request, deadline, &room.io).expect("a job");
    assert_eq!((job.body.len(), job.submitted, job.deadline, job.tries), (6, now, deadline, 1));
    assert!(!job.is_client_asked);
    assert_eq!(room.frontend.clients[client.0].body.len(), 0);
    assert!(room.frontend.address(client) == b"192.0.2.7");
}

#[test]
fn what_follows_a_request_waits_for_its_answer() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    let text = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let Some(FromClient::Request(first)) = room.hear(client, &wire, text) else { panic!("no request") };
    assert_eq!(first.path(), b"/1");
    assert_eq!(room.armed(client), None, "the second one's head is not waited for");
    room.frontend.assign(client, UPSTREAM);
    room.frontend.answered(client, Then::Keep, &mut room.io);
    let mut pending = room.frontend.pending(client, &mut []).expect("it is there");
    let event = room.frontend.advance(client, &mut pending, &mut room.io);
    let Some(FromClient::Request(second)) = event else { panic!("no request") };
    assert_eq!(second.path(), b"/2");
}

#[test]
fn leave_to_send_a_body_is_asked_for_where_none_of_it_came() {
    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    assert!(matches!(room.hear(client, &wire, HEAD), Some(FromClient::AsksForLeave)));
    assert!(matches!(room.hear(client, &wire, "abc"), Some(FromClient::Request(_))));
    let (client, wire) = room.arrive();
    assert!(matches!(room.hear(client, &wire, &format!("{HEAD}abc")), Some(FromClient::Request(_))));
}

#[test]
fn a_refusal_an_end_and_a_tunnels_bytes_are_told() {
    let mut room = Room::new();
    let (client, wire) = room.arrive();
    let Some(FromClient::Refused(reason, request)) = room.hear(client, &wire, "GET /x HTTP/1.1\r\n\r\n")
    else {
        panic!("no refusal")
    };
    assert_eq!((reason.status(), request.path()), (400, &b"/x"[..]));
    let (client, wire) = room.arrive();
    wire.borrow_mut().end();
    assert!(matches!(room.read(client), Some(FromClient::End)));
    let (client, wire) = room.assign();
    room.frontend.upgrade(client, UPSTREAM);
    assert!(matches!(room.hear(client, &wire, "bytes"), Some(FromClient::Tunnel(5))));
    assert!(!room.frontend.upgrade(NOBODY, UPSTREAM));
}
