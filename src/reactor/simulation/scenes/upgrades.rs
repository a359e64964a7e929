//! An upgrade, step by step: what the old server and the new one do as the other one speaks and ends.

use super::{OWN, said, world};
use crate::handover::{Incoming, Message, Outgoing};
use crate::reactor::host::handed::Begin;
use crate::reactor::host::line::{Heard, Line};
use crate::reactor::host::{Predecessor, Successor};
use crate::reactor::simulation::rooms::{keep_log, logged, ms};
use crate::reactor::simulation::world::World;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

#[test]
fn an_upgrade_is_refused_with_the_reason() {
    let mut world = world();
    keep_log();
    if std::process::id() != 1 && std::env::var_os("INVOCATION_ID").is_none() {
        assert_eq!(world.reactor.why_no_upgrade(), None);
    }
    let refused = |world: &mut World, why: &str| {
        let refusal = world.reactor.begin_upgrade().expect_err("not now");
        assert!(refusal.starts_with(why), "{refusal}");
        world.signal(Signal::SIGUSR2);
        assert!(logged().contains(&format!("SIGUSR2: no upgrade: {why}")));
    };
    let (_far, mut child) = world.begin_succession();
    refused(&mut world, "an upgrade is under way");
    world.reactor.host.successor = None;
    child.kill().and_then(|()| child.wait()).expect("its end");
    let _far = world.begin_following(false);
    refused(&mut world, "an upgrade is under way");
    let _far = world.begin_following(true);
    refused(&mut world, "the server before this one still finishes its requests");
    world.reactor.host.predecessor = None;
    world.reactor.supervisor.fleet_mut().reload(None, world.now);
    refused(&mut world, "a reload is under way");
    world.signal(Signal::SIGTERM);
    refused(&mut world, "the server is stopping");
}

/// The old server's side.
impl World {
    /// A new server is started, which is a process that sleeps.
    pub(super) fn begin_succession(&mut self) -> (Line, Child) {
        let child = Command::new("sleep").arg("1000").spawn().expect("a process");
        let (near, far) = Line::pair().expect("a pair");
        let machine = Outgoing::begin(ms(1000), self.now);
        let pid = Pid::from_raw(child.id().cast_signed());
        self.reactor.host.successor = Some(Successor::new(pid, near, machine));
        (far, child)
    }

    /// The new server says that.
    fn hears(&mut self, far: &Line, message: Message) {
        far.say(&message, None).expect("said");
        self.reactor.on_successor();
    }
}

/// The next thing that was said to it.
fn next(far: &mut Line) -> Option<Message> {
    match far.hear() {
        Heard::Message(message, _) => message,
        Heard::Nothing | Heard::End => None,
    }
}

fn ended_by(child: &mut Child) -> Option<i32> {
    child.wait().expect("its end").signal()
}

#[test]
fn a_new_server_is_offered_all_that_it_needs() {
    let mut world = world();
    let (near, mut far) = Line::pair().expect("a pair");
    world.reactor.frontend.listeners_mut()[0].remember_place("port 0".into());
    world.reactor.offer_everything(&near).expect("said");
    let Heard::Message(Some(Message::Socket(offer)), Some(_)) = far.hear() else { panic!("a socket") };
    assert_eq!((offer.service.as_str(), offer.at.as_str(), offer.is_given), ("http", "port 0", false));
    assert_eq!(next(&mut far), Some(Message::Lock));
    let generation = world.reactor.supervisor.fleet().generation();
    assert_eq!(next(&mut far), Some(Message::Begin { serving: 1, size: 1, generation }));
    assert_eq!(next(&mut far), None);
}

#[test]
fn a_new_server_that_is_ready_is_told_to_serve_and_this_one_drains_behind_that() {
    let mut world = world();
    let (mut far, mut child) = world.begin_succession();
    let pid = child.id();
    let follower = world.ask(OWN, "GET /server HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(said(&follower).ends_with("ok"));
    // What only a server that serves may say.
    world.hears(&far, Message::Stop);
    world.hears(&far, Message::End);
    assert!(world.reactor.exit.is_none() && !world.reactor.is_stopping());
    world.hears(&far, Message::Named { instance: "5e55".into() });
    assert_eq!(world.reactor.host.successor.as_ref().and_then(|it| it.instance.as_deref()), Some("5e55"));
    world.hears(&far, Message::Serving { now: 1, of: 1 });
    world.reactor.host.notifier.take_kept();
    world.hears(&far, Message::Ready);
    assert_eq!(next(&mut far), Some(Message::Go));
    assert_eq!(world.reactor.host.notifier.take_kept(), [format!("MAINPID={pid}")]);
    assert!(!world.reactor.is_stopping());
    world.reactor.host.owes_reload = true;
    world.hears(&far, Message::Taken);
    assert!(
        world.reactor.is_stopping()
            && world.reactor.host.successor.as_ref().is_some_and(|it| it.has_taken_over)
    );
    assert!(world.reactor.frontend.listeners().iter().all(|listener| listener.is_given()));
    assert_eq!(next(&mut far), Some(Message::Released));
    let Some(Message::Report { clients: 0, workers: 1, metrics }) = next(&mut far) else {
        panic!("a report")
    };
    assert!(metrics.contains("rip_"));
    assert_eq!(ended_by(&mut child), Some(Signal::SIGHUP as i32), "the reload that it owed");
    // A report a second.
    world.reactor.expire_upgrade();
    assert_eq!(next(&mut far), None);
    world.pass(ms(1000));
    world.reactor.expire_upgrade();
    assert!(matches!(next(&mut far), Some(Message::Report { .. })));
    world.hears(&far, Message::End);
    assert_eq!(world.reactor.exit, Some(0), "the new one ends at once, and this one with it");
}

#[test]
fn a_new_server_that_stops_takes_this_one_with_it() {
    let mut world = world();
    keep_log();
    let (far, mut child) = world.begin_succession();
    world.hears(&far, Message::Ready);
    world.hears(&far, Message::Taken);
    logged();
    world.hears(&far, Message::Stop);
    assert!(logged().contains("asked by a command once more"));
    child.kill().and_then(|()| child.wait()).expect("its end");
}

#[test]
fn a_new_server_that_fails_is_killed_and_this_one_goes_on() {
    let goes_on = "upgrade failed, and this server goes on";
    type Fails = fn(&mut World, Line);
    let fail: [(Fails, &str); 4] = [
        (|world, far| world.hears(&far, Message::Failed { reason: "no room".into() }), goes_on),
        // It has closed its end, and lives.
        (
            |world, far| {
                drop(far);
                world.reactor.on_successor();
            },
            goes_on,
        ),
        (
            |world, _far| {
                world.pass(ms(6000));
                world.reactor.expire_upgrade();
            },
            goes_on,
        ),
        // The stop that follows is another's.
        (|world, _far| world.reactor.abort_upgrade(), "upgrade given up: the server stops"),
    ];
    for (fail, words) in fail {
        let mut world = world();
        keep_log();
        let (far, mut child) = world.begin_succession();
        world.reactor.expire_upgrade();
        assert!(world.reactor.host.is_upgrading(), "it has time");
        fail(&mut world, far);
        assert!(logged().contains(words));
        assert!(!world.reactor.host.is_upgrading() && world.reactor.host.is_clearing_up());
        assert!(!world.reactor.is_stopping());
        assert_eq!(ended_by(&mut child), Some(Signal::SIGKILL as i32));
    }
}

#[test]
fn systemd_hears_that_this_server_goes_on_where_it_had_heard_of_another() {
    let mut world = world();
    let (far, mut child) = world.begin_succession();
    world.hears(&far, Message::Ready);
    world.reactor.host.notifier.take_kept();
    world.hears(&far, Message::Failed { reason: "no name".into() });
    assert_eq!(world.reactor.host.notifier.take_kept(), [format!("MAINPID={}", std::process::id())]);
    ended_by(&mut child);
}

#[test]
fn a_new_server_that_ends_is_reaped() {
    let mut world = world();
    keep_log();
    let (_far, mut child) = world.begin_succession();
    world.reactor.reap_successor();
    assert!(world.reactor.host.successor.is_some(), "it lives");
    child.kill().expect("killed");
    while world.reactor.host.successor.is_some() {
        world.reactor.reap_successor();
        std::thread::yield_now();
    }
    assert!(logged().contains("before it was ready; its own words are in the log"));
}

/// The new server's side.
impl World {
    /// This server follows another one, whose end of the line is given back.
    fn begin_following(&mut self, is_serving: bool) -> Line {
        let (near, far) = Line::pair().expect("a pair");
        let mut machine = Incoming::new(1);
        if is_serving {
            machine.note_serving(1);
            machine.on_message(&Message::Go);
        }
        let begin = Begin::default();
        self.reactor.host.predecessor =
            Some(Predecessor { line: near, machine, begin, clients: 0, workers: 0 });
        far
    }
}

#[test]
fn a_server_that_follows_says_how_many_workers_serve_and_fails_where_it_cannot_take_over() {
    let mut world = world();
    keep_log();
    let mut far = world.begin_following(false);
    world.reactor.note_readiness();
    assert_eq!(next(&mut far), Some(Message::Serving { now: 1, of: 1 }));
    assert_eq!(next(&mut far), Some(Message::Ready));
    far.say(
        &Message::Report {
            clients: 3,
            workers: 2,
            metrics: "# TYPE rip_retries_total counter\nrip_retries_total 5\n".into(),
        },
        None,
    )
    .expect("said");
    world.reactor.on_predecessor();
    assert_eq!(world.reactor.host.predecessor_details(), serde_json::json!({"clients": 3, "workers": 2}));
    assert!(world.reactor.metrics_text().contains("rip_retries_total 5\n"), "what it has counted goes on");
    // Its folder is none.
    far.say(&Message::Go, None).expect("said");
    world.reactor.on_predecessor();
    let Some(Message::Failed { reason }) = next(&mut far) else { panic!("it cannot take over") };
    assert!(reason.contains("cannot be made"), "{reason}");
    assert_eq!(world.reactor.exit, Some(1));
}

#[test]
fn the_end_of_the_server_before_is_that_of_one_that_waits_and_no_matter_to_one_that_serves() {
    let mut world = world();
    keep_log();
    drop(world.begin_following(true));
    assert_eq!(world.reactor.host.predecessor_details()["clients"], 0);
    world.reactor.on_predecessor();
    assert!(world.reactor.host.predecessor.is_none() && world.reactor.exit.is_none());
    assert!(logged().contains("upgrade: the server before this one has ended"));
    assert_eq!(world.reactor.host.predecessor_details(), serde_json::Value::Null);
    drop(world.begin_following(false));
    world.reactor.on_predecessor();
    assert_eq!(world.reactor.exit, Some(1));
    assert!(logged().contains("upgrade: the server before this one has gone"));
}

#[test]
fn a_stop_takes_the_server_before_with_it() {
    let mut world = world();
    let mut far = world.begin_following(true);
    world.signal(Signal::SIGTERM);
    assert_eq!(next(&mut far), Some(Message::Stop));
    world.reactor.end_now(1);
    assert_eq!(next(&mut far), Some(Message::End));
    let mut world = self::world();
    let mut far = world.begin_following(false);
    world.reactor.end_now(1);
    assert_eq!(next(&mut far), None, "that one goes on");
}
