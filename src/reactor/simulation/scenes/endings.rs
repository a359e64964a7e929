//! How answers and tunnels end, and workers that come by themselves, step by step.

use super::requests::{OK, Scene};
use super::said;
use crate::control::{Abilities, Join, Sender};
use crate::process::Exit;
use crate::reactor::simulation::process;
use crate::reactor::simulation::rooms::{logged, ms};
use crate::reactor::simulation::wire::Kind;
use nix::sys::signal::Signal;
use std::time::Duration;

/// An answer whose end is that of its connection.
const ENDLESS: &str = "HTTP/1.1 200 OK\r\n\r\nhello";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const END: &str = "0\r\n\r\n";

#[test]
fn an_answer_that_ends_with_its_connection_is_whole_where_the_worker_lives() {
    let mut scene = Scene::new();
    let client = scene.get("/one");
    scene.answer(ENDLESS);
    let text = said(&client);
    assert!(text.contains("hello") && !text.ends_with(END), "{text}");
    scene.hang_up();
    assert_eq!(said(&client), END);
}

#[test]
fn the_end_of_a_dying_worker_s_answer_hangs_on_its_exit() {
    for (exit, is_whole) in
        [(Exit::Code(0), true), (Exit::Code(1), false), (Exit::Signal(Signal::SIGSEGV), false)]
    {
        let mut scene = Scene::new();
        let client = scene.get("/one");
        scene.answer(ENDLESS);
        said(&client);
        scene.is_ending(exit);
        scene.hang_up();
        assert_eq!(said(&client), "", "its exit is not known yet");
        scene.world.reactor.supervisor.note_ended_children();
        scene.run();
        assert_eq!(said(&client), if is_whole { END } else { "" });
        assert_eq!(client.borrow().is_server_gone, !is_whole, "what was cut does not look whole");
    }
}

#[test]
fn an_exit_that_does_not_come_is_none_where_nothing_tells_and_a_cut_where_the_worker_was_dying() {
    for tells_little in [true, false] {
        let mut scene = Scene::new();
        process::table(|table| table.tells_little = tells_little);
        let client = scene.get("/one");
        scene.answer(ENDLESS);
        said(&client);
        scene.is_ending(Exit::Code(0));
        scene.hang_up();
        assert_eq!(said(&client), "");
        scene.pass(100);
        assert_eq!(said(&client), if tells_little { END } else { "" });
        scene.pass(2000);
        assert_eq!(client.borrow().is_server_gone, !tells_little);
    }
}

#[test]
fn bytes_pass_through_a_tunnel_until_both_sides_end() {
    let mut scene = Scene::new();
    let client = scene.send(UPGRADE);
    assert!(scene.asked().starts_with("GET /ws "));
    scene.answer(SWITCH);
    assert!(said(&client).starts_with("HTTP/1.1 101 "));
    assert_eq!(scene.world.reactor.status_details()["tunnels"], 1);
    client.borrow_mut().send(b"ping");
    scene.run();
    assert_eq!(scene.asked(), "ping");
    scene.answer("pong");
    assert_eq!(said(&client), "pong");
    scene.lines_of_log();
    client.borrow_mut().send(b"last");
    client.borrow_mut().end();
    scene.run();
    let line = scene.lines.last().expect("a connection").clone();
    assert_eq!((said(&line).as_str(), line.borrow().server_has_ended), ("last", true));
    assert!(!client.borrow().server_has_ended, "the worker may go on");
    scene.answer("bye");
    assert_eq!(said(&client), "bye");
    line.borrow_mut().end();
    scene.run();
    assert!(client.borrow().server_has_ended || client.borrow().is_server_gone);
    assert_eq!(scene.world.reactor.status_details()["tunnels"], 0);
    let lines = scene.lines_of_log();
    assert!(lines.len() == 1 && lines[0].to_string().contains("101"), "{lines:?}");
}

#[test]
fn a_tunnel_whose_worker_ends_first_takes_what_its_client_still_says() {
    let mut scene = Scene::new();
    let client = scene.send(UPGRADE);
    scene.asked();
    scene.answer(SWITCH);
    said(&client);
    let line = scene.lines.last().expect("a connection").clone();
    line.borrow_mut().send(b"bye");
    line.borrow_mut().end();
    scene.run();
    assert_eq!((said(&client).as_str(), client.borrow().server_has_ended), ("bye", true));
    client.borrow_mut().send(b"wait");
    scene.run();
    assert_eq!(said(&line), "wait");
    client.borrow_mut().end();
    scene.run();
    assert!(client.borrow().is_server_gone && line.borrow().server_has_ended);
}

#[test]
fn a_tunnel_that_loses_its_client_tells_the_worker_and_has_its_line() {
    let mut scene = Scene::new();
    let client = scene.send(UPGRADE);
    scene.asked();
    scene.answer(SWITCH);
    scene.lines_of_log();
    client.borrow_mut().reset();
    scene.run();
    let line = scene.lines.last().expect("a connection").clone();
    assert!(line.borrow().server_has_ended, "behind the last byte");
    assert_eq!(scene.lines_of_log().len(), 1);
    line.borrow_mut().end();
    scene.run();
    assert_eq!(scene.world.reactor.status_details()["tunnels"], 0);
}

#[test]
fn what_a_tunnel_s_client_has_said_before_it_went_is_the_worker_s() {
    let mut scene = Scene::new();
    let client = scene.send(UPGRADE);
    client.borrow_mut().kind = Kind::Unix;
    scene.asked();
    scene.answer(SWITCH);
    said(&client);
    let line = scene.lines.last().expect("a connection").clone();
    // Heard in one tick, and the worker first: the write to the client fails before its words are read.
    line.borrow_mut().send(b"more");
    client.borrow_mut().send(b"last words");
    client.borrow_mut().close();
    scene.run();
    assert_eq!((said(&line).as_str(), line.borrow().server_has_ended), ("last words", true));
    line.borrow_mut().send(b"for nobody");
    line.borrow_mut().end();
    scene.run();
    assert!(client.borrow().is_server_gone);
    assert_eq!(scene.world.reactor.status_details()["tunnels"], 0);
    assert_eq!(scene.lines_of_log().len(), 1);
}

#[test]
fn a_server_that_ends_cuts_its_tunnels() {
    let mut scene = Scene::new();
    let client = scene.send(UPGRADE);
    scene.asked();
    scene.answer(SWITCH);
    said(&client);
    scene.lines_of_log();
    scene.world.reactor.end_now(1);
    assert_eq!((scene.world.reactor.exit, said(&client).as_str()), (Some(1), ""));
    assert_eq!(scene.lines_of_log().len(), 1);
}

/// What a worker says that comes by itself.
fn join(number: u64, streams: bool) -> Join {
    Join {
        sender: Sender { instance: None, worker_id: number },
        pid: 7,
        socket: format!("/nonexistent/worker-{number}"),
        version: 1,
        abilities: Abilities { drains: true, streams, concurrency: 1 },
    }
}

#[test]
fn a_stream_holds_a_worker_that_can_only_do_one_thing_and_no_other() {
    for streams in [false, true] {
        let mut scene = Scene::of("w:0");
        let join = join(1, streams);
        scene.listen(&join.socket);
        scene.world.reactor.add_external(1, &join, 7);
        let stream = scene.send("GET /events HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n");
        assert!(scene.asked().starts_with("GET /events "));
        scene.answer(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        assert!(said(&stream).starts_with("HTTP/1.1 200 "));
        let details = scene.world.reactor.status_details();
        let state = if streams { "idle" } else { "busy" };
        assert_eq!(details["workerList"][0]["state"], state, "{details}");
        let client = scene.get("/one");
        assert_eq!(scene.lines.iter().any(|line| said(line).starts_with("GET /one ")), streams);
        scene.answer(OK);
        assert_eq!(said(&client).starts_with("HTTP/1.1 200 "), streams);
    }
}

#[test]
fn workers_that_come_by_themselves_serve_until_they_quit() {
    let mut scene = Scene::of("w:0");
    let join = |number| join(number, false);
    for number in [1, 2] {
        let join = join(number);
        scene.listen(&join.socket);
        scene.world.reactor.add_external(number as usize, &join, 7);
    }
    assert_eq!(scene.world.reactor.status_details()["workers"], 2);
    let client = scene.get("/one");
    assert!(scene.lines.iter().any(|line| said(line).starts_with("GET /one ")));
    // Another one under its socket takes its place.
    logged();
    scene.world.reactor.add_external(2, &join(2), 7);
    assert!(logged().contains("another one joins under its socket"));
    let all: Vec<_> = scene.world.reactor.supervisor.serving_workers().collect();
    assert_eq!(scene.world.reactor.status_details()["workers"].as_u64(), Some(all.len() as u64));
    for worker in all {
        scene.world.reactor.part_from_external(worker);
    }
    scene.run();
    for line in &scene.lines.clone() {
        line.borrow_mut().send(OK.as_bytes());
    }
    scene.run();
    assert!(said(&client).starts_with("HTTP/1.1 200 "), "what is at work may end");
    assert_eq!(scene.world.reactor.status_details()["workers"], 0);
    assert!(logged().contains(": gone"));
}

#[test]
fn the_fleet_grows_while_requests_wait_and_shrinks_when_they_do_not() {
    let mut scene = Scene::of("RIP_SHRINK_AFTER_MS=700 w:1..2 --quarantine=off");
    let size = |scene: &Scene| scene.world.reactor.supervisor.fleet().size();
    let first = scene.get("/one");
    assert_eq!(size(&scene), 1);
    let second = scene.get("/two");
    assert_eq!((size(&scene), scene.world.workers.len()), (2, 2));
    scene.join_now();
    for line in &scene.lines.clone() {
        if said(line).starts_with("GET /") {
            line.borrow_mut().send(OK.as_bytes());
        }
    }
    scene.run();
    let texts = [said(&first), said(&second)];
    assert!(texts.iter().any(|text| text.starts_with("HTTP/1.1 200")), "{texts:?}");
    logged();
    scene.pass(5000);
    assert!(logged().contains("retires, not needed for 0 s"));
}

#[test]
fn the_loop_sleeps_until_something_is_due_and_not_while_there_is_more_to_do() {
    let mut scene = Scene::new();
    let _idle = scene.get("/server");
    let reactor = &mut scene.world.reactor;
    let due = reactor.next_deadline().expect("its client is idle");
    assert_eq!(reactor.poll_timeout(), Some(due - reactor.io.now()));
    assert!(reactor.poll_timeout() > Some(Duration::ZERO));
    reactor.io.go_on_with(crate::reactor::io::token::Target::Signals);
    assert_eq!(reactor.poll_timeout(), Some(Duration::ZERO));
    reactor.io.take_ready();
    reactor.supervisor.note_ended_children();
    assert_eq!(reactor.poll_timeout(), Some(Duration::ZERO));
    scene.run();
    assert!(scene.world.reactor.poll_timeout() > Some(ms(0)));
}
