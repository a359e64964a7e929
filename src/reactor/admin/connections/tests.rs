//! Operators' connections over scripted sockets: what they ask, are told, wait for, and how many there may be.

mod bounds;
mod followers;

use super::*;
use crate::config::{self, Command, Config};
use crate::process::DescriptorLimit;
use crate::reactor::io::listen::{Holders, Listener};
use crate::reactor::limits::LINGER;
use crate::reactor::observer::{Logs, Observer};
use crate::reactor::simulation::wire::{Door, Kind, Shared, UnixListener, UnixStream, Wire};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const OWN: ControlPeer = ControlPeer::Process { pid: 42 };
const ASK: &[u8] = b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n";
const LAST_ASK: &[u8] = b"GET /status HTTP/1.0\r\n\r\n";

struct Office {
    admin: Admin,
    io: Io,
    observer: Observer,
}

fn config() -> Config {
    let line = "w:1 http:0 --idle-timeout-ms=3000 --client-timeout-ms=900";
    match config::read(line.split(' ').map(Into::into).collect(), &|_| None, true) {
        Ok(Command::Serve(config)) => *config,
        other => panic!("{other:?}"),
    }
}

impl Office {
    fn with(descriptors: u64, control: Vec<Listener>, metrics: Vec<Listener>, page: Vec<Listener>) -> Self {
        let limit = DescriptorLimit { soft: 256, hard: descriptors };
        let io = Io::new(mio::Poll::new().expect("epoll"), limit, std::env::temp_dir(), 1);
        let observer = Observer::new(Logs::kept(), false, io.now());
        Office { admin: Admin::new(control, metrics, page, Rc::new(config())), io, observer }
    }

    fn new() -> Self {
        Office::with(4096, Vec::new(), Vec::new(), Vec::new())
    }

    /// Somebody has connected, who takes so much at once.
    fn connect(&mut self, peer: ControlPeer, room_bytes: usize) -> (usize, Shared) {
        let wire = Wire::new(Kind::Unix, room_bytes);
        let stream = Stream::Unix(UnixStream::of(wire.clone()));
        self.admin.watch(stream, peer, &self.io, &mut self.observer);
        let token = wire.borrow().token.expect("it is watched");
        let Some(Target::Control(key)) = Target::of(token) else { panic!("{token:?}") };
        (key, wire)
    }

    /// The kernel tells what has happened on that wire; what is asked is given back.
    fn tell(&mut self, wire: &Shared) -> Vec<Ask> {
        let told = wire.borrow_mut().tell();
        if let Some((_, token, readiness)) = told
            && let Some(Target::Control(key)) = Target::of(token)
        {
            self.admin.note(key, readiness);
        }
        self.work()
    }

    /// Steps until nobody has anything to do, or one has asked.
    fn work(&mut self) -> Vec<Ask> {
        let mut asks = Vec::new();
        for _ in 0..5000 {
            let Some(key) = self.admin.next_ready() else { return asks };
            if let Some(ask) = self.admin.advance(key, &self.io) {
                self.admin.respond(ask.key, &ask.request, 200, &json!({"n": ask.body.len()}), &self.io);
                self.admin.flush(ask.key, &self.io);
                asks.push(ask);
            }
        }
        panic!("it does not come to rest");
    }

    fn armed(&self, key: usize) -> Option<(ControlDeadline, Duration)> {
        let due = self.admin.deadlines.due(key)?;
        Some((self.admin.deadlines.armed(key)?, due - self.io.now()))
    }

    fn phase(&self, key: usize) -> Phase {
        self.admin.connections.slab[key].phase
    }

    /// Moves the made-up clock.
    fn pass(&mut self, ms: u64) {
        self.io.move_clock_to(self.io.now() + Duration::from_millis(ms));
    }

    /// A request that has been read, of a connection that waits for its answer.
    fn asked(&mut self, peer: ControlPeer, room_bytes: usize, bytes: &[u8]) -> (Ask, Shared) {
        let (key, wire) = self.connect(peer, room_bytes);
        wire.borrow_mut().send(bytes);
        self.admin.note(key, Readiness::READABLE);
        while let Some(key) = self.admin.next_ready() {
            if let Some(ask) = self.admin.advance(key, &self.io) {
                return (ask, wire);
            }
        }
        panic!("nothing was asked")
    }
}

/// All that the server has said and nobody has taken yet.
fn said(wire: &Shared) -> String {
    String::from_utf8(wire.borrow_mut().take(usize::MAX)).expect("text")
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn requests_come_in_pieces_and_one_behind_the_other() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10_000);
    let body = "x".repeat(500);
    let request = format!("POST /control HTTP/1.1\r\nHost: h\r\nContent-Length: 500\r\n\r\n{body}");
    for piece in request.as_bytes().chunks(100) {
        assert_eq!(said(&wire), "");
        wire.borrow_mut().send(piece);
        let asks = office.tell(&wire);
        let Some(ask) = asks.first() else { continue };
        assert_eq!((ask.key, ask.peer, ask.arrived), (key, OWN, office.io.now()));
        assert_eq!((ask.request.method(), ask.request.path()), (&b"POST"[..], &b"/control"[..]));
        assert_eq!(ask.body, body.as_bytes());
    }
    let answer = said(&wire);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"n\":500}\n"), "{answer}");
    // Three at once, of which the last one has no body left from the first.
    wire.borrow_mut().send(&[ASK, request.as_bytes(), ASK].concat());
    let asks = office.tell(&wire);
    assert_eq!(asks.iter().map(|ask| ask.body.len()).collect::<Vec<_>>(), [0, 500, 0]);
    assert_eq!(said(&wire).matches("HTTP/1.1 200").count(), 3);
    assert_eq!(office.phase(key), Phase::Reading);
    assert!(!office.admin.has_ready());
}

#[test]
fn one_step_is_one_read_and_one_request_at_most() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut().send(&[b'A'; 200]);
    office.admin.note(key, Readiness::READABLE);
    for left in [136, 72, 8] {
        assert_eq!((office.admin.steps(), office.admin.next_ready()), (1, Some(key)));
        assert!(office.admin.advance(key, &office.io).is_none());
        assert_eq!((wire.borrow().to_server.len(), office.admin.has_ready()), (left, true));
    }
    assert_eq!(office.admin.next_ready(), Some(key));
    assert!(office.admin.advance(key, &office.io).is_none());
    assert!(!office.admin.has_ready(), "a short read means drained");
    assert_eq!((office.admin.steps(), office.admin.next_ready()), (0, None));
    for _ in 0..3 {
        let (key, _) = office.connect(OWN, 10);
        office.admin.note(key, Readiness::READABLE);
        office.admin.note(key, Readiness::READABLE);
    }
    assert_eq!(
        (office.admin.steps(), office.admin.connections.ready.len()),
        (2, 3),
        "each stands there once"
    );
}

#[test]
fn a_body_that_is_no_message_is_refused_and_its_rest_is_read_for_a_moment() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10_000);
    let most = "x".repeat(64 * 1024);
    wire.borrow_mut().send(b"POST /control HTTP/1.1\r\nHost: h\r\nContent-Length: 65536\r\n\r\n");
    wire.borrow_mut().send(most.as_bytes());
    assert_eq!(office.tell(&wire).first().map(|ask| ask.body.len()), Some(65_536));
    said(&wire);
    wire.borrow_mut().send(b"POST /control HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n");
    assert!(office.tell(&wire).is_empty());
    let answer = said(&wire);
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"ok\":false"), "{answer}");
    assert_eq!(
        (office.phase(key), office.armed(key)),
        (Phase::Lingering, Some((ControlDeadline::Linger, LINGER)))
    );
    wire.borrow_mut().send(most.as_bytes());
    assert!(office.tell(&wire).is_empty() && wire.borrow().to_server.is_empty());
    wire.borrow_mut().end();
    office.tell(&wire);
    assert_eq!(office.phase(key), Phase::Closed);
}

#[test]
fn whoever_asks_for_leave_gets_it() {
    let mut office = Office::new();
    let (_, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut()
        .send(b"POST /control HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    office.tell(&wire);
    assert_eq!(said(&wire), "HTTP/1.1 100 Continue\r\n\r\n");
    wire.borrow_mut().send(b"{}");
    assert_eq!(office.tell(&wire).len(), 1);
}

#[test]
fn each_wait_has_its_deadline() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10);
    assert_eq!(office.armed(key), Some((ControlDeadline::Idle, seconds(3))));
    assert_eq!(office.admin.next_deadline(), Some(office.io.now() + seconds(3)));
    assert!(office.admin.is_timed(key));
    wire.borrow_mut().send(&ASK[..20]);
    office.tell(&wire);
    let receive = Some((ControlDeadline::Receive, Duration::from_millis(900)));
    assert_eq!(office.armed(key), receive);
    office.pass(100);
    wire.borrow_mut().send(&ASK[20..30]);
    office.tell(&wire);
    let later = Some((ControlDeadline::Receive, Duration::from_millis(800)));
    assert_eq!(office.armed(key), later, "for the whole head");
    wire.borrow_mut().send(&ASK[30..]);
    office.tell(&wire);
    let take = Some((ControlDeadline::Take, seconds(3)));
    assert_eq!((office.armed(key), office.phase(key)), (take, Phase::Answering(Then::Keep)));
    office.pass(1000);
    office.admin.flush(key, &office.io);
    assert_eq!(office.armed(key), Some((ControlDeadline::Take, seconds(2))), "nothing was taken");
    wire.borrow_mut().take(5);
    office.tell(&wire);
    assert_eq!(office.armed(key), take, "a byte is enough");
    while office.phase(key) != Phase::Reading {
        wire.borrow_mut().take(10);
        office.tell(&wire);
    }
    assert_eq!(office.armed(key), Some((ControlDeadline::Idle, seconds(3))));
    assert_eq!(office.admin.connections.slab[key].out.capacity(), 0, "nothing of it is kept");
    // Each byte of a body gets its time.
    wire.borrow_mut().send(b"POST /control HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n");
    office.tell(&wire);
    office.pass(500);
    wire.borrow_mut().send(b"{");
    office.tell(&wire);
    assert_eq!(office.armed(key), receive);
    office.pass(900);
    assert_eq!(office.admin.expire(office.io.now()), Some((key, ControlDeadline::Receive)));
    assert_eq!(office.admin.expire(office.io.now()), None);
}

#[test]
fn a_request_that_does_not_arrive_is_refused_and_a_connection_without_one_is_closed() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut().send(&ASK[..20]);
    office.tell(&wire);
    office.admin.refuse_arriving(key, &office.io);
    let answer = said(&wire);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("too long to arrive"), "{answer}");
    let (key, wire) = office.connect(OWN, 10_000);
    office.admin.refuse_arriving(key, &office.io);
    assert_eq!((said(&wire).as_str(), office.phase(key)), ("", Phase::Closed));
}

#[test]
fn an_idle_connection_is_looked_at_once_more_before_its_close() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10_000);
    // Its event is on its way.
    wire.borrow_mut().send(ASK);
    office.admin.deadlines.disarm(key);
    office.admin.look_once_more(key);
    assert!(office.admin.advance(key, &office.io).is_some());
    let (key, _wire) = office.connect(OWN, 10_000);
    office.admin.close_if_idle(key);
    assert_eq!(office.phase(key), Phase::Reading, "it has a deadline");
    office.admin.deadlines.disarm(key);
    office.admin.look_once_more(key);
    assert!(office.admin.advance(key, &office.io).is_none());
    office.admin.close_if_idle(key);
    assert_eq!(office.phase(key), Phase::Closed);
    let (key, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut().send(&ASK[..20]);
    office.tell(&wire);
    office.admin.deadlines.disarm(key);
    office.admin.close_if_idle(key);
    assert_eq!(office.phase(key), Phase::Reading, "a request is arriving");
}

#[test]
fn a_peer_that_ends_has_its_answers_and_then_the_end() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut().send(ASK);
    wire.borrow_mut().end();
    assert_eq!(office.tell(&wire).len(), 1);
    assert!(said(&wire).starts_with("HTTP/1.1 200"));
    assert_eq!((office.phase(key), office.armed(key)), (Phase::Closed, None));
    let (key, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut().reset();
    office.tell(&wire);
    assert_eq!(office.phase(key), Phase::Closed);
    let (key, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut().send(LAST_ASK);
    assert_eq!(office.tell(&wire).len(), 1);
    assert!(said(&wire).starts_with("HTTP/1.1 200"));
    assert_eq!(office.phase(key), Phase::Closed, "HTTP/1.0 ends with its answer");
    let (key, wire) = office.connect(OWN, 10_000);
    wire.borrow_mut().send(&[LAST_ASK, b"and more"].concat());
    office.tell(&wire);
    assert!(wire.borrow().server_has_ended);
    assert_eq!(office.phase(key), Phase::Lingering, "a close would throw the answer away");
}

#[test]
fn a_peer_that_goes_within_its_answer_is_closed() {
    let mut office = Office::new();
    let (key, wire) = office.connect(OWN, 10);
    wire.borrow_mut().send(ASK);
    office.tell(&wire);
    wire.borrow_mut().close();
    office.tell(&wire);
    assert_eq!(office.phase(key), Phase::Closed);
}

#[test]
fn closed_connections_leave_after_the_batch_and_let_others_in() {
    let door = Rc::new(RefCell::new(Door::default()));
    let listeners = vec![
        Listener::scripted(UnixListener::at(&door), Holders::Own),
        Listener::scripted(UnixListener::default(), Holders::Own),
    ];
    let mut office = Office::with(4096, listeners, Vec::new(), Vec::new());
    let (key, _wire) = office.connect(OWN, 10);
    office.admin.close(key);
    office.admin.close(key);
    assert_eq!((office.admin.connections(), office.admin.connections.closed.len()), (1, 1));
    office.admin.connections.mark_ready(key);
    assert!(!office.admin.has_ready());
    office.admin.connections.is_full = true;
    office.admin.remove_closed(&mut office.io);
    assert_eq!(office.admin.connections(), 0);
    assert_eq!(office.io.take_ready(), [Target::ControlListener(0), Target::ControlListener(1)]);
    let (key, _wire) = office.connect(OWN, 10);
    office.admin.close(key);
    office.admin.remove_closed(&mut office.io);
    assert!(!office.io.has_ready(), "nobody waits");
}

#[test]
fn a_question_is_asked_again_while_its_connection_is_there() {
    let mut office = Office::new();
    let (ask, _wire) = office.asked(OWN, 10_000, ASK);
    let key = ask.key;
    office.admin.postpone(ask);
    assert_eq!(office.phase(key), Phase::AwaitsAnswer);
    assert!(office.admin.has_ready() && !office.admin.connections.slab[key].waits_for_peer());
    let asks = office.admin.take_postponed();
    assert_eq!((asks.len(), office.phase(key), office.admin.has_ready()), (1, Phase::Reading, false));
    office.admin.postpone(asks.into_iter().next().expect("one"));
    // Its key is another's by the next tick.
    office.admin.close(key);
    office.admin.remove_closed(&mut office.io);
    let (other, _wire) = office.connect(OWN, 10);
    assert_eq!(other, key);
    assert!(office.admin.take_postponed().is_empty());
}

#[test]
fn fields_of_an_answer_stand_in_its_head() {
    let mut office = Office::new();
    let (ask, wire) = office.asked(OWN, 10_000, ASK);
    let fields = (206, "text/html", "X-Field: 1\r\n");
    office.admin.respond_with_fields(ask.key, &ask.request, fields, b"body", &office.io);
    office.admin.flush(ask.key, &office.io);
    let answer = said(&wire);
    assert!(answer.starts_with("HTTP/1.1 206 ") && answer.ends_with("\r\n\r\nbody"), "{answer}");
    for part in ["Content-Type: text/html\r\n", "X-Field: 1\r\n", "Date: "] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    let value: Value = json!({"a": 1});
    let (ask, wire) = office.asked(OWN, 10_000, b"HEAD /status HTTP/1.1\r\nHost: h\r\n\r\n");
    office.admin.respond(ask.key, &ask.request, 200, &value, &office.io);
    office.admin.flush(ask.key, &office.io);
    assert!(said(&wire).ends_with("\r\n\r\n"), "a HEAD has no body");
}
