//! Single scenes of the whole server: what signals, operators and the servers before and after this one bring about.

mod endings;
mod renewals;
mod requests;
mod upgrades;

use super::rooms::{keep_log, logged, ms};
use super::wire::{Kind, Shared, Wire};
use super::world::World;
use crate::config::HotReload;
use crate::control::Message as ControlMessage;
use crate::reactor::admin::connections::ControlPeer;
use crate::reactor::source::Source;
use crate::reactor::stage::Stage;
use crate::reactor::stopping::StopCause;
use nix::sys::signal::Signal;
use std::rc::Rc;
use std::time::Duration;

const OWN: ControlPeer = ControlPeer::Process { pid: 1 };

/// A world with these settings and short timeouts, whose workers are this program and serve.
fn world_of(words: &str) -> World {
    let words = format!(
        "{words} http:0 page:0 --max-queue=4 --queue-timeout-ms=300 --connect-timeout-ms=40 --read-timeout-ms=500 \
         --client-timeout-ms=900 --idle-timeout-ms=3000 --boot-timeout-ms=2000 --drain-timeout-ms=1700 \
         --socket-dir=/nonexistent --json-logging --hot-reload=none"
    );
    let fits = |world: &World| {
        let (reactor, is_shared) = (&world.reactor, world.door.borrow().is_shared);
        let is_embedded = matches!(reactor.supervisor.launcher().source(), Source::Embedded { .. });
        is_embedded && !is_shared && reactor.supervisor.fleet().serving() == reactor.config.workers.min
    };
    (0..100).map(|seed| World::with(&words, seed)).find(fits).expect("most are like that")
}

fn world() -> World {
    world_of("w:1")
}

impl World {
    fn signal(&mut self, signal: Signal) {
        self.reactor.take_signal(signal as u32);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.reactor.io.move_clock_to(self.now);
    }

    /// Somebody asks that; the connection, when the server has nothing left to do.
    fn ask(&mut self, peer: ControlPeer, text: &str) -> Shared {
        let wire = Wire::new(Kind::Unix, 1 << 20);
        self.watch_operator(wire.clone(), peer);
        wire.borrow_mut().send(text.as_bytes());
        self.controls.push(wire.clone());
        self.remaining();
        wire
    }

    fn order(&mut self, message: &ControlMessage) -> Shared {
        let body = message.to_json();
        let length = body.len();
        self.ask(OWN, &format!("POST /control HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}"))
    }
}

fn said(wire: &Shared) -> String {
    String::from_utf8_lossy(&wire.borrow_mut().take(usize::MAX)).into_owned()
}

fn status(wire: &Shared) -> String {
    said(wire).split(' ').nth(1).unwrap_or("nothing").to_owned()
}

#[test]
fn a_first_signal_drains_and_a_second_one_ends_but_not_its_echo() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut world = world();
        keep_log();
        world.signal(signal);
        assert!(matches!(world.reactor.stage, Stage::Draining { .. } | Stage::Leaving { .. }));
        assert!(logged().contains(&format!("{signal}: stopping; 0 at work, 0 waiting")));
        world.pass(ms(19));
        world.signal(signal);
        assert_eq!(world.reactor.exit, None, "the same one, to the process and to its group");
        world.pass(ms(1));
        world.signal(signal);
        assert_eq!(world.reactor.exit, Some(1));
        assert!(logged().contains(&format!("{signal} once more: ending at once")));
    }
}

#[test]
fn a_command_and_a_signal_are_two_and_only_the_second_signal_ends() {
    let mut world = world();
    keep_log();
    world.reactor.begin_stop(StopCause::Command);
    assert!(logged().contains("asked by a command: stopping"));
    world.pass(ms(100));
    world.reactor.begin_stop(StopCause::Command);
    assert!(logged().contains("asked by a command once more: waits for the end"));
    world.signal(Signal::SIGTERM);
    assert!(logged().contains("SIGTERM: stopping already; a second signal would end at once"));
    assert_eq!(world.reactor.exit, None);
    world.pass(ms(100));
    world.signal(Signal::SIGINT);
    assert_eq!(world.reactor.exit, Some(1));
}

#[test]
fn a_hang_up_reloads_or_stops_or_does_nothing_by_the_settings() {
    let with = |hot_reload| {
        let mut world = world();
        let mut config = super::rooms::config("w:1 http:0");
        Rc::get_mut(&mut config).expect("nobody else has it").hot_reload = hot_reload;
        world.reactor.config = config;
        world
    };
    let mut world = with(HotReload::None);
    keep_log();
    world.signal(Signal::SIGHUP);
    assert!(logged().contains("SIGHUP: nothing to do (--hot-reload=process would reload)"));
    assert!(!world.reactor.supervisor.fleet().is_rolling() && !world.reactor.is_stopping());

    let mut world = with(HotReload::Process);
    world.signal(Signal::SIGHUP);
    assert!(world.reactor.supervisor.fleet().is_rolling() && !world.reactor.is_stopping());

    let mut world = with(HotReload::Module);
    world.signal(Signal::SIGHUP);
    assert!(world.reactor.is_stopping(), "the terminal is gone");

    let mut world = with(HotReload::Process);
    let (_far, _child) = world.begin_succession();
    world.signal(Signal::SIGHUP);
    assert!(world.reactor.host.owes_reload && !world.reactor.supervisor.fleet().is_rolling());
    world.reactor.abort_upgrade();
    assert!(!world.reactor.host.owes_reload && world.reactor.supervisor.fleet().is_rolling());
}

#[test]
fn the_fleet_is_made_larger_and_smaller_by_signals() {
    let mut world = world();
    keep_log();
    let size = |world: &World| {
        let fleet = world.reactor.supervisor.fleet();
        (fleet.min_workers(), fleet.max_workers())
    };
    world.signal(Signal::SIGTTIN);
    assert_eq!(size(&world), (2, 2));
    assert!(logged().contains("SIGTTIN: w:2 until the next start"));
    world.signal(Signal::SIGTTOU);
    assert_eq!(size(&world), (1, 1));
    world.signal(Signal::SIGTTOU);
    assert_eq!(size(&world), (1, 1));
    assert!(logged().contains("SIGTTOU: nothing to do (one worker is the fewest)"));
    world.signal(Signal::SIGTERM);
    world.signal(Signal::SIGTTIN);
    assert!(logged().contains("SIGTTIN: nothing to do (the server is stopping)"));
    let mut config = super::rooms::config("w:1 http:0");
    Rc::get_mut(&mut config).expect("nobody else has it").workers.max = 0;
    world.reactor.config = config;
    world.signal(Signal::SIGTTOU);
    assert!(logged().contains("SIGTTOU: nothing to do (w:0 starts no workers)"));

    let mut world = world_of("w:1..2");
    world.signal(Signal::SIGTTIN);
    assert!(logged().contains("SIGTTIN: w:2..3 until the next start"));
}

#[test]
fn other_signals_say_that_there_is_nothing_to_do() {
    let mut world = world();
    keep_log();
    world.signal(Signal::SIGUSR1);
    assert!(logged().contains("SIGUSR1: nothing to do (a --log-file would be opened anew)"));
    world.signal(Signal::SIGWINCH);
    assert!(logged().contains("SIGWINCH: nothing to do"));
    world.reactor.take_signal(999);
    assert!(logged().contains("signal 999: nothing to do"));
    assert!(!world.reactor.supervisor.has_ended_children());
    world.signal(Signal::SIGCHLD);
    assert!(world.reactor.supervisor.has_ended_children());
}

#[test]
fn who_may_ask_what_is_told_by_the_status_of_the_answer() {
    let peers = [OWN, ControlPeer::Root, ControlPeer::Stranger, ControlPeer::Scraper, ControlPeer::Viewer];
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let quit = r#"{"op":"quit","workerId":77}"#;
    for (request, expected) in [
        (get("/server"), ["200", "200", "403", "404", "421"]),
        (get("/metrics"), ["200", "200", "403", "200", "404"]),
        (get("/status"), ["200", "200", "403", "404", "421"]),
        (get("/"), ["404", "404", "403", "404", "200"]),
        (post("/control", "what?"), ["400", "400", "403", "404", "404"]),
        (post("/worker", quit), ["400", "403", "403", "404", "404"]),
        (post("/other", "{}"), ["404", "404", "403", "404", "404"]),
    ] {
        let mut world = world();
        let heard = peers.map(|peer| status(&world.ask(peer, &request)));
        assert_eq!(heard, expected, "{request}");
    }
}

#[test]
fn operators_orders_are_followed_or_refused_with_the_reason() {
    let mut world = world();
    let (_far, mut child) = world.begin_succession();
    let answer = said(&world.order(&ControlMessage::Reload(None)));
    assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains("brings new workers"), "{answer}");
    let answer = said(&world.order(&ControlMessage::Upgrade));
    assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains("an upgrade is under way"), "{answer}");
    child.kill().and_then(|()| child.wait()).expect("its end");
    world.reactor.host.successor = None;

    let follower = world.order(&ControlMessage::Reload(None));
    assert!(world.reactor.supervisor.fleet().is_rolling());
    assert!(said(&follower).starts_with("HTTP/1.1 200 "));
    let stopper = world.order(&ControlMessage::Stop);
    assert!(said(&stopper).ends_with("{\"ok\":true}\n") && !stopper.borrow().is_server_gone);
    assert!(world.reactor.is_stopping());
}

#[test]
fn the_summary_and_the_details_tell_how_the_server_stands() {
    let mut world = world();
    let (code, line) = world.reactor.status_summary();
    assert_eq!(code, 200);
    assert!(
        line.starts_with("{\"status\":\"healthy\",\"app\":\"app\",\"workers\":1,\"ports\":{\"http\":null}"),
        "{line}"
    );
    world.pass(ms(3000));
    let details = world.reactor.status_details();
    for (name, value) in [
        ("workers", serde_json::json!(1)),
        ("clients", serde_json::json!(0)),
        ("uptime", serde_json::json!((world.now - world.reactor.io.started()).as_secs())),
        ("needed", serde_json::json!({"workers": 0, "of": 1})),
        ("upgrading", serde_json::json!(false)),
        ("quarantine", serde_json::json!([])),
        ("viewers", serde_json::json!(0)),
    ] {
        assert_eq!(details[name], value, "{name}");
    }
    let worker = &details["workerList"][0];
    assert_eq!((&worker["atWork"], &worker["streams"], &worker["stack"]), (&0.into(), &0.into(), &0.into()));
    let metrics = world.reactor.metrics_text();
    for line in ["rip_workers{state=\"idle\"} 1", "rip_workers{state=\"busy\"} 0", "rip_workers_needed 0"] {
        assert!(metrics.lines().any(|other| other == line), "{line} in {metrics}");
    }
}
