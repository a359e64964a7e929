//! What an exchange is, and how it begins and ends.

use super::*;
use crate::conn::worker::Outcome;
use crate::reactor::backend::exchange::{Receiving, Sending};

#[test]
fn a_request_goes_out_whole_and_its_answer_comes_back() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("POST /form HTTP/1.1", b"name=value");
    let written = wire.borrow().written.clone();
    assert!(written.starts_with(b"POST /form HTTP/1.1\r\n") && written.ends_with(b"\r\n\r\nname=value"));
    assert!(room.exchange(upstream).is_sent() && !room.exchange(upstream).is_unsent());
    assert!(room.exchange(upstream).is_connection_new && room.exchange(upstream).has_left_the_way_open());
    assert_eq!(room.exchange(upstream).job.body.unread_bytes(), 0);

    let piece = room.hear(upstream, &wire, "HTTP/1.1 201 Made\r\nContent-Length: 5\r\n\r\nhe");
    assert_eq!((piece.client, piece.status, piece.is_of_question), (Some(CLIENT), Some(201), false));
    assert_eq!(room.backend.answer_of(upstream).map(|answer| answer.status), Some(201));
    let piece = room.hear(upstream, &wire, "llo");
    assert_eq!((piece.status, piece.outcome), (None, Outcome::Ended { reusable: true }));
    assert_eq!(room.exchange(upstream).body_bytes, 5);
    assert!(room.backend.end_exchange(upstream, true).is_some());
    assert!(!wire.borrow().is_server_gone, "the next request may follow");
    room.backend.release_upstream(upstream, room.io.now());

    let next = room.begin(WORKER, "GET /next HTTP/1.1", b"");
    assert_eq!(next, upstream, "over the same connection");
    assert!(!room.exchange(next).is_connection_new);
    assert_eq!(room.send(next), Sent::Fine);
    assert!(wire.borrow().written.ends_with(b"\r\n\r\n"));
    assert!(room.backend.end_exchange(next, false).is_some());
    assert!(wire.borrow().is_server_gone, "it may take no other");
}

#[test]
fn a_connection_on_which_a_request_is_not_all_out_serves_no_other() {
    let mut room = Room::new();
    wire::set_capacity(room.path(), 20);
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    assert!(!room.exchange(upstream).has_left_the_way_open());
    assert!(room.backend.end_exchange(upstream, true).is_some());
    assert!(wire.borrow().is_server_gone);
    assert!(room.backend.exchange(upstream).is_none());
}

#[test]
fn a_worker_without_room_gets_the_rest_when_it_has_some() {
    let mut room = Room::new();
    wire::set_capacity(room.path(), 10);
    let (upstream, wire) = room.ask("POST / HTTP/1.1", b"the body");
    assert!(room.backend.is_watched_for_room(upstream));
    assert!(!room.backend.has_more_to_send(upstream), "an event will tell");
    assert!(room.exchange(upstream).is_half_sent());
    let mut all = wire.borrow_mut().take(usize::MAX);
    while room.backend.is_watched_for_room(upstream) {
        assert_eq!(room.send(upstream), Sent::Fine);
        all.extend(wire.borrow_mut().take(usize::MAX));
    }
    assert!(all.ends_with(b"\r\n\r\nthe body"));
    assert!(room.exchange(upstream).is_sent() && !room.exchange(upstream).is_half_sent());
}

#[test]
fn a_body_in_a_file_goes_out_in_as_many_ticks_as_it_takes() {
    let mut room = Room::new();
    // More than one tick's worth behind what lies in memory.
    let body = vec![b'x'; 1000];
    let (upstream, wire) = room.ask("POST / HTTP/1.1", &body);
    assert!(room.io.is_ready(&Target::Upstream(upstream)), "no event will tell");
    assert!(room.backend.has_more_to_send(upstream) && !room.backend.is_watched_for_room(upstream));
    for _ in 0..10 {
        assert_eq!(room.send(upstream), Sent::Fine);
    }
    assert!(room.exchange(upstream).is_sent() && !room.backend.has_more_to_send(upstream));
    assert!(wire.borrow().written.ends_with(&body));
}

#[test]
fn a_worker_that_takes_no_more_may_have_answered() {
    let mut room = Room::new();
    wire::set_capacity(room.path(), 10);
    let (upstream, wire) = room.ask("POST / HTTP/1.1", &[b'x'; 100]);
    wire.borrow_mut().send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
    wire.borrow_mut().close();
    assert_eq!(room.send(upstream), Sent::Fine);
    assert_eq!(room.exchange(upstream).sending(), Sending::Ended);
    assert!(!room.backend.is_watched_for_room(upstream) && !room.exchange(upstream).is_half_sent());
}

/// One exchange in each stage, with what is said of it.
#[test]
fn each_stage_is_told_from_the_others() {
    let mut room = Room::new();
    let (serving, _) = room.ask("GET /serving HTTP/1.1", b"");
    let (stream, wire) = room.ask("GET /stream HTTP/1.1", b"");
    room.hear(stream, &wire, EVENTS);
    let (tunnel, _) = room.tunnel();
    let (reconnecting, _) = room.ask("GET /again HTTP/1.1", b"");
    let exchange = room.backend.take_exchange(reconnecting).expect("it is there");
    room.backend.close(reconnecting);
    room.backend.begin_again(reconnecting, exchange);
    let (awaiting, _) = room.ask("GET /exit HTTP/1.1", b"");
    let now = room.io.now();
    room.backend.await_exit(awaiting, b"0\r\n\r\n", UpstreamDeadline::Exit, now);
    let (earlier, _) = room.ask("GET /earlier HTTP/1.1", b"");
    let about = room.backend.take_exchange(earlier).expect("it is there").job.request;
    let asking = earlier;
    room.backend.close(asking);
    room.backend.begin_asking_idle(asking, about, now, true, &mut room.io);
    let probing = room.backend.next_upstream_of(OTHER).expect("its first");
    room.backend.begin_probe(probing, &mut room.io);

    let backend = &room.backend;
    let all = [serving, stream, tunnel, reconnecting, awaiting, asking, probing];
    let those = |fits: &dyn Fn(UpstreamKey) -> bool| -> Vec<UpstreamKey> {
        all.into_iter().filter(|upstream| fits(*upstream)).collect()
    };
    let of = |fits: &dyn Fn(&Exchange) -> bool| those(&|upstream| fits(room.exchange(upstream)));
    assert_eq!(those(&|upstream| backend.is_question(upstream)), [asking, probing]);
    assert_eq!(of(&Exchange::is_asking_idle), [asking]);
    assert_eq!(of(&Exchange::is_reconnecting), [reconnecting]);
    assert_eq!(those(&|upstream| backend.is_tunnel(upstream)), [tunnel]);
    assert_eq!(of(&|exchange| exchange.tunnel_out().is_some()), [tunnel]);
    assert_eq!(those(&|upstream| backend.is_event_stream(upstream)), [stream]);
    assert_eq!(of(&Exchange::is_stream), [stream, tunnel]);
    assert_eq!(of(&Exchange::is_open_stream), [stream, tunnel]);
    assert_eq!(those(&|upstream| backend.awaited_suffix(upstream).is_some()), [awaiting]);
    assert_eq!(backend.awaited_suffix(awaiting), Some(&b"0\r\n\r\n"[..]));
    assert_eq!(those(&|upstream| backend.answer_of(upstream).is_some()), [stream]);
    assert_eq!(those(&|upstream| backend.is_sending_open(upstream)), [serving, stream, tunnel, awaiting]);
    assert_eq!(of(&Exchange::is_unsent), [reconnecting, asking, probing]);
    let has_client = |upstream| backend.client_of(upstream) == Some(CLIENT);
    assert_eq!(those(&has_client), [serving, stream, tunnel, reconnecting, awaiting]);
    for (upstream, path) in [(serving, "/serving"), (asking, "/earlier"), (probing, "/ready")] {
        assert_eq!(room.exchange(upstream).subject().path(), path.as_bytes());
    }
    let held = |upstream| backend.place(upstream) == Some(PlaceState::Held { wish: WISH });
    assert_eq!(those(&held), all[..6]);
    assert_eq!(backend.place(probing), Some(PlaceState::Unused { since: None }));
    assert_eq!(backend.worker_of(serving), Some(WORKER));
    assert_eq!(backend.worker_of(probing), Some(OTHER));
    assert_eq!(backend.keys().len(), all.len());
    assert_eq!(backend.upstreams_of(OTHER), [probing]);
    assert_eq!(backend.upstreams_of(WORKER).len(), 6);
    assert_eq!(backend.exchanges_of(WORKER).count(), 6);
    assert_eq!(backend.exchanges_of(OTHER).count(), 1);
    assert_eq!((backend.tunnels(), backend.streams()), (1, 0), "no stream has been noted");
    assert_eq!(backend.workers_held_by_streams(), BTreeSet::from([WORKER]));
}

#[test]
fn an_exchange_enters_another_state() {
    let mut room = Room::new();
    let upstream = room.begin(WORKER, "GET / HTTP/1.1", b"");
    let mut exchange = room.backend.take_exchange(upstream).expect("it is there");
    exchange.enter(Stage::Reconnecting);
    assert!(exchange.is_reconnecting());
    exchange.enter(Stage::Serving);
    assert!(matches!(exchange.stage(), Stage::Serving));
}

#[test]
fn a_stream_begins_once_and_may_leave_its_place() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET /events HTTP/1.1", b"");
    let start = room.io.now();
    let now = pass(&mut room.io, ms(30));
    assert!(room.backend.begin_stream(upstream, now).is_none(), "no answer yet");
    room.hear(upstream, &wire, EVENTS);
    let (times, since_first) = room.backend.begin_stream(upstream, now).expect("it is one");
    assert_eq!((times.worker, times.stream, since_first), (ms(30), None, ms(30)));
    assert_eq!(room.exchange(upstream).streaming_since, Some(now));
    assert!(room.backend.begin_stream(upstream, now).is_none(), "a second time");
    assert_eq!((room.backend.streams(), room.backend.tunnels()), (1, 0));
    let times = room.exchange(upstream).times(start + ms(80));
    assert_eq!((times.worker, times.stream), (ms(80), Some(ms(50))));
    assert_eq!(room.backend.workers_held_by_streams().len(), 1);
    room.backend.leave_place(upstream);
    assert_eq!(room.backend.place(upstream), Some(PlaceState::Left));
    assert!(room.backend.workers_held_by_streams().is_empty());

    let (post, wire) = room.ask("POST /computed HTTP/1.1", b"");
    room.hear(post, &wire, EVENTS);
    assert!(room.exchange(post).is_stream() && !room.exchange(post).is_open_stream(), "it ends");
    assert!(room.backend.begin_stream(post, now).is_none());
    let (left, wire) = room.ask("GET /events HTTP/1.1", b"");
    room.hear(left, &wire, EVENTS);
    assert_eq!(room.backend.let_client_go(left, &mut room.io), Some(CLIENT));
    assert!(!room.exchange(left).is_open_stream(), "nobody listens");
    assert_eq!(room.backend.client_of(left), None);
}

#[test]
fn a_busy_answer_is_no_answer() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    let text = "HTTP/1.1 503 B\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n";
    let piece = room.hear(upstream, &wire, text);
    assert!(matches!(piece.outcome, Outcome::Busy { .. }));
    assert!(room.backend.answer_of(upstream).is_none());
}

#[test]
fn a_request_is_sent_again_whole() {
    let mut room = Room::new();
    let (upstream, first) = room.ask("POST /again HTTP/1.1", b"body");
    let exchange = room.backend.take_exchange(upstream).expect("it is there");
    room.backend.close(upstream);
    room.backend.begin_again(upstream, exchange);
    assert!(room.exchange(upstream).is_unsent() && room.exchange(upstream).is_connection_new);
    assert_eq!(room.send(upstream), Sent::Fine);
    assert!(!room.exchange(upstream).is_reconnecting(), "it is served");
    assert_eq!(room.connected().borrow().written, first.borrow().written);
}

#[test]
fn a_question_is_asked_again_whole_and_a_request_is_not() {
    let mut room = Room::new();
    let now = room.io.now();
    let about = job("GET /about HTTP/1.1", b"", &room.io).request;
    let upstream = room.backend.take_upstream(WORKER, WISH).expect("a connection");
    room.backend.begin_asking_idle(upstream, about, now, true, &mut room.io);
    assert_eq!(room.send(upstream), Sent::Fine);
    let first = room.connected();
    let text = String::from_utf8(first.borrow().written.clone()).expect("a head");
    assert!(text.contains("Rip-Probe: idle\r\nX-Request-Id: fresh\r\n"), "{text}");
    assert!(room.read(upstream).is_none());
    first.borrow_mut().send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(room.read(upstream).is_some_and(|piece| piece.is_of_question && piece.client.is_none()));
    room.backend.close(upstream);
    assert!(room.backend.ask_again(upstream));
    assert_eq!(room.send(upstream), Sent::Fine);
    assert_eq!(room.connected().borrow().written, first.borrow().written);
    let requests = room.backend.take_exchange(upstream).expect("it is there").into_requests();
    assert_eq!(
        requests.map(|request| request.path().to_vec()).collect::<Vec<_>>(),
        [&b"/ready"[..], b"/about"]
    );

    let about = job("GET /about HTTP/1.1", b"", &room.io).request;
    room.backend.begin_asking_idle(upstream, about, now, false, &mut room.io);
    let question = &room.exchange(upstream).job.request;
    assert!(!String::from_utf8_lossy(&question.head).contains("Request-Id"), "no handler at all");
    let (other, _) = room.ask("GET / HTTP/1.1", b"");
    assert!(!room.backend.ask_again(other));
}

#[test]
fn what_has_been_sent_says_whether_more_is_to_be() {
    let mut room = Room::new();
    wire::set_capacity(room.path(), 10);
    let (upstream, _) = room.ask("GET / HTTP/1.1", b"");
    for (sending, is_half_sent) in
        [(Sending::Open, true), (Sending::Ending, true), (Sending::NotBegun, false), (Sending::Ended, false)]
    {
        room.backend.exchange_mut(upstream).expect("an exchange").sending = sending;
        assert_eq!(room.exchange(upstream).is_half_sent(), is_half_sent, "{sending:?}");
        assert_eq!(room.backend.is_sending_open(upstream), sending == Sending::Open);
    }
    let unsent = room.begin(WORKER, "GET / HTTP/1.1", b"");
    for sending in [Sending::Open, Sending::Ending] {
        room.backend.exchange_mut(unsent).expect("an exchange").sending = sending;
        assert!(!room.exchange(unsent).is_half_sent(), "none of it is out");
    }
    assert!(room.backend.unsent_job(unsent).is_some());
    assert!(room.backend.unsent_job(upstream).is_none(), "the worker has seen some of it");
    let exchange = room.backend.exchange_mut(upstream).expect("an exchange");
    exchange.head_sent_bytes = exchange.job.request.head.len();
    exchange.sending = Sending::Ended;
    assert!(exchange.is_sent() && !exchange.has_left_the_way_open());
}

#[test]
fn a_copy_for_the_log_leaves_the_request() {
    let mut room = Room::new();
    let (upstream, _) = room.ask("GET /copied HTTP/1.1", b"");
    let copy = room.backend.copy_request(upstream, &mut room.io).expect("a copy");
    assert_eq!(copy.path(), b"/copied");
    assert_eq!(room.exchange(upstream).job.request.path(), b"/copied");
}

#[test]
fn a_request_that_is_called_off_frees_its_worker_unless_that_cools_down() {
    let mut room = Room::new();
    for (deadline, is_free) in [(UpstreamDeadline::Connect, true), (UpstreamDeadline::Cooldown, false)] {
        let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
        let now = room.io.now();
        room.backend.arm(upstream, deadline, now);
        assert_eq!(room.backend.call_off(upstream, &mut room.io), is_free);
        assert!(room.backend.exchange(upstream).is_none() && wire.borrow().is_server_gone);
        assert_eq!(room.backend.armed(upstream), (!is_free).then_some(deadline));
        // Its head's buffer is used again.
        assert!(room.io.take_buffer().capacity() > 0);
    }
    assert!(!room.backend.call_off(UpstreamKey(99), &mut room.io));
}

#[test]
fn an_exchange_that_is_dropped_leaves_nothing() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    let now = room.io.now();
    room.backend.arm_question(upstream, now);
    let head = room.exchange(upstream).job.request.head.as_ptr();
    room.backend.drop_exchange(upstream, &mut room.io);
    assert!(room.backend.exchange(upstream).is_none() && wire.borrow().is_server_gone);
    let buffer = room.io.take_buffer();
    assert_eq!(buffer.as_ptr(), head, "its buffer is used again");
    assert_eq!(room.backend.expire_question(now + ms(1000)), None);
}

#[test]
fn a_worker_is_held_back_while_its_client_is_full() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    wire.borrow_mut().send(b"HTTP/1.1 200 OK\r\n");
    assert!(!room.backend.is_held_back(upstream));
    room.backend.hold_back(upstream, true);
    assert!(room.backend.is_held_back(upstream) && room.read(upstream).is_none());
    room.backend.hold_back(upstream, false);
    assert!(!room.backend.is_held_back(upstream) && room.read(upstream).is_some());
    room.backend.release_held_back(upstream, &mut room.io);
    assert!(!room.io.is_ready(&Target::Upstream(upstream)), "it was not held back");

    for (kind, is_set_anew) in
        [(UpstreamDeadline::Read, true), (UpstreamDeadline::Idle, true), (UpstreamDeadline::Stall, false)]
    {
        room.backend.hold_back(upstream, true);
        let now = room.io.now();
        room.backend.disarm(upstream);
        room.backend.arm(upstream, kind, now);
        let before = room.due_in(upstream).expect("it is armed");
        pass(&mut room.io, ms(20));
        room.backend.release_held_back(upstream, &mut room.io);
        assert!(!room.backend.is_held_back(upstream));
        assert!(room.io.is_ready(&Target::Upstream(upstream)));
        let after = if is_set_anew { before } else { before - ms(20) };
        assert_eq!((room.backend.armed(upstream), room.due_in(upstream)), (Some(kind), Some(after)));
    }
    room.backend.hold_back(upstream, true);
    room.backend.let_client_go(upstream, &mut room.io);
    assert!(!room.backend.is_held_back(upstream), "the rest is read and thrown away");
    room.backend.hold_back(upstream, true);
    room.backend.worker_has_ended(upstream);
    room.backend.hold_back(upstream, true);
    wire.borrow_mut().send(b"HTTP/1.1 200 OK\r\n");
    assert!(
        !room.backend.is_held_back(upstream) && room.read(upstream).is_some(),
        "all that is left is read"
    );
    room.backend.exchange_mut(upstream).expect("an exchange").receiving = Receiving::Ended;
    room.backend.hold_back(upstream, true);
    assert!(!room.backend.is_held_back(upstream), "nothing more comes");
}

#[test]
fn a_read_says_whether_more_may_be_there() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    let mut scratch = [0; 8];
    let mut read = |room: &mut Room, budget: &mut usize| {
        room.backend.receive(upstream, &mut scratch, budget, &mut room.io)
    };
    let mut budget = 20;
    assert_eq!(read(&mut room, &mut budget), None, "nothing is there");
    wire.borrow_mut().send(&[b'x'; 18]);
    assert_eq!(read(&mut room, &mut budget), Some((Received::Bytes(8), false)));
    assert_eq!(budget, 12);
    assert_eq!(read(&mut room, &mut budget), Some((Received::Bytes(8), false)));
    assert_eq!(read(&mut room, &mut budget), Some((Received::Bytes(2), true)), "a short one");
    wire.borrow_mut().send(b"xx");
    room.backend.worker_has_ended(upstream);
    assert_eq!(
        read(&mut room, &mut budget),
        Some((Received::Bytes(2), false)),
        "the end is still to be read"
    );
    assert_eq!(budget, 0);
    assert!(!room.io.is_ready(&Target::Upstream(upstream)));
    assert_eq!(read(&mut room, &mut budget), None);
    assert!(room.io.is_ready(&Target::Upstream(upstream)), "the next tick goes on");
    wire.borrow_mut().take(usize::MAX);
    wire.borrow_mut().close();
    budget = 20;
    assert_eq!(read(&mut room, &mut budget), Some((Received::End, true)));
    wire.borrow_mut().reset();
    assert_eq!(read(&mut room, &mut budget), Some((Received::Gone, true)));
}

#[test]
fn a_head_that_comes_in_pieces_is_read_whole() {
    let mut room = Room::new();
    let (upstream, wire) = room.ask("GET / HTTP/1.1", b"");
    let piece = room.hear(upstream, &wire, "HTTP/1.1 204 None\r\nX-Y");
    assert_eq!((piece.status, piece.outcome), (None, Outcome::Going));
    let piece = room.hear(upstream, &wire, ": z\r\n\r\n");
    assert_eq!((piece.status, piece.outcome), (Some(204), Outcome::Ended { reusable: true }));
}

#[test]
#[should_panic(expected = "an exchange: no way from Probing to Serving")]
fn a_question_does_not_become_a_request() {
    let mut room = Room::new();
    let upstream = room.backend.next_upstream_of(OTHER).expect("its first");
    room.backend.begin_probe(upstream, &mut room.io);
    room.backend.exchange_mut(upstream).expect("a question").enter(Stage::Serving);
}
