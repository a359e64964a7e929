//! Workers that end: what is said of it, what is counted, and what becomes of what they leave.

use super::*;
use crate::reactor::simulation::process::Offspring;

#[test]
fn a_worker_is_told_to_end_and_killed_with_what_it_started() {
    let (mut room, first, second) = Room::serving("");
    let pids = (room.pid(first), room.pid(second));
    assert!(!room.supervisor.was_told_to_end(first));
    room.supervisor.terminate(first);
    assert_eq!(room.signals(), [(pids.0, false)]);
    room.supervisor.kill(second, false);
    assert_eq!(room.signals(), [(pids.1, true)]);
    assert!(
        logged().contains(&format!("worker 1 (pid {}): SIGKILL: SIGTERM has not ended it in time", pids.1))
    );
    let now = room.io.now();
    room.supervisor.fleet_mut().stop(now + ms(100), now);
    let others = room.perform();
    assert!(others.contains(&Action::Withdraw { worker: first }), "{others:?}");
    room.supervisor.fleet_mut().idle(first, now);
    room.perform();
    assert!(room.supervisor.was_told_to_end(first) && !room.supervisor.was_told_to_end(second));
    assert_eq!(room.signals(), [(pids.0, false)]);
    assert!(room.supervisor.was_told_to_end(WorkerKey(99)));
}

#[test]
fn a_worker_that_is_not_there_in_time_is_killed_for_what_it_did_not_do() {
    for (words, what) in [
        ("w:1 --fork=never", "it did not join within --boot-timeout-ms=2000".to_owned()),
        (
            "w:1 / -- /bin/sh {socket}",
            "it did not answer on {socket} within --boot-timeout-ms=2000".to_owned(),
        ),
        ("w:1 / -- /bin/sh {port}", "it did not answer on {port} (".to_owned()),
    ] {
        let mut room = Room::new(&format!("--boot-timeout-ms=2000 {words}"));
        let worker = room.started()[0];
        room.supervisor.kill(worker, false);
        assert!(logged().contains(&what), "{what}");
        room.supervisor.kill(worker, true);
        assert!(logged().contains("SIGTERM has not ended it in time"), "at a stop nobody waits for joins");
    }
}

#[test]
fn how_a_worker_has_ended_is_said_with_what_it_did() {
    let told = |requests: u64, exit: Exit| {
        let (mut room, worker, _) = Room::serving("");
        let pid = room.pid(worker);
        let later = room.io.now() + ms(40);
        room.io.move_clock_to(later);
        for _ in 0..requests {
            room.supervisor.count_request(worker);
        }
        logged();
        room.end(worker, exit);
        let line = logged().lines().find(|line| line.contains(&format!("(pid {pid}): "))).map(str::to_owned);
        let crashes = room.metric("crashes");
        (line.expect("a line").split("): ").last().unwrap_or_default().to_owned(), crashes)
    };
    assert_eq!(told(0, Exit::Code(0)), ("ended after 0 requests and 40 ms".to_owned(), 0));
    assert_eq!(told(1, Exit::Code(0)), ("ended after 1 request and 40 ms".to_owned(), 0));
    assert_eq!(told(2, Exit::Code(3)), ("exit code 3 after 2 requests and 40 ms".to_owned(), 1));
    let killed = Exit::Signal(Signal::SIGTERM);
    assert_eq!(told(2, killed).0, "SIGTERM after 2 requests and 40 ms", "nobody has told it to");
}

#[test]
fn who_was_told_to_end_does_so_in_order() {
    for (exit, line) in [
        (Exit::Code(0), "ended after 0 requests"),
        (Exit::Signal(Signal::SIGTERM), "ended by SIGTERM after 0 requests"),
        (Exit::Code(1), "exit code 1 after 0 requests"),
    ] {
        let (mut room, worker, _) = Room::serving("");
        let now = room.io.now();
        room.supervisor.fleet_mut().stop(now + ms(100), now);
        room.perform();
        room.supervisor.fleet_mut().idle(worker, now);
        room.perform();
        let socket = room.entry(worker).endpoint.path().expect("a socket").to_path_buf();
        std::fs::write(&socket, "").expect("written");
        logged();
        room.end(worker, exit);
        assert!(logged().contains(line), "{line}");
        assert_eq!((room.metric("crashes"), room.metric("boot failures")), (0, 0));
        assert!(!socket.exists(), "its socket goes with it");
        assert_eq!(room.remove_closed(), [worker]);
        assert!(room.supervisor.get(worker).is_none());
        assert!(!room.supervisor.has_failure());
    }
}

#[test]
fn who_ends_before_it_has_joined_has_failed_to_boot() {
    let mut room = Room::new("w:1 --fork=never");
    let worker = room.started()[0];
    let pid = room.pid(worker);
    room.supervisor.get_mut(worker).expect("it is there").remember(b"ImportError: none");
    room.end(worker, Exit::Code(1));
    let line = format!("worker 0 (pid {pid}): exit code 1 after 0 ms, before it had joined");
    assert!(logged().contains(&line));
    assert_eq!((room.metric("crashes"), room.metric("boot failures")), (0, 1));
    assert!(room.supervisor.has_failure());
    assert_eq!(
        room.supervisor.last_failure(),
        format!(" (the last: {line}: ImportError: none)"),
        "with its last words"
    );
    assert_eq!(room.supervisor.waiting_slots(room.io.now())[0]["lastExit"], "exit code 1");
    let deaths = room.observer.failures().deaths();
    assert_eq!(deaths[0]["exit"], "exit code 1", "{deaths}");

    // Not in time: it was killed.
    let mut room = Room::new("w:1 --fork=never --boot-timeout-ms=2000");
    let worker = room.started()[0];
    room.pass(ms(2000));
    room.pass(ms(1000));
    room.end(worker, Exit::Signal(Signal::SIGKILL));
    assert_eq!((room.metric("crashes"), room.metric("boot failures")), (0, 1));
    // A clean end is one too, of a worker that was to serve.
    let mut room = Room::new("w:1 --fork=never");
    let worker = room.started()[0];
    room.end(worker, Exit::Code(0));
    assert_eq!(room.metric("boot failures"), 1);
    assert!(room.supervisor.has_failure());
    assert!(logged().contains("exit code 0 after 0 ms, before it had joined"));
    assert_eq!(room.observer.failures().deaths()[0]["exit"], "exit code 0");
}

#[test]
fn a_crash_is_a_failure_and_a_clean_end_by_itself_is_none() {
    for (exit, is_kept) in [(Exit::Signal(Signal::SIGSEGV), true), (Exit::Code(0), false)] {
        let (mut room, worker, _) = Room::serving("");
        room.end(worker, exit);
        let deaths = room.observer.failures().deaths();
        assert_eq!(deaths.as_array().map(Vec::len), Some(usize::from(is_kept)), "{exit}");
        assert_eq!(room.metric("crashes"), u64::from(is_kept), "{exit}");
        assert!(!room.supervisor.has_failure(), "its start was none");
    }
}

#[test]
fn lines_of_an_earlier_failure_are_counted() {
    for (lines, words) in [
        (0, "before it had joined"),
        (1, "it said 1 line of an earlier failure again"),
        (2, "it said 2 lines of"),
    ] {
        let mut room = Room::new("w:1 --fork=never");
        let worker = room.started()[0];
        room.supervisor.get_mut(worker).expect("it is there").said.boot_output.folded = lines;
        room.end(worker, Exit::Code(1));
        let told = logged();
        assert!(told.contains(words) && told.contains("earlier failure") == (lines > 0), "{lines}: {told}");
    }
}

#[test]
fn ended_children_are_looked_for_when_the_kernel_says_so() {
    let (mut room, first, second) = Room::serving("");
    room.reap();
    assert!(!room.supervisor.has_ended_children());
    room.supervisor.note_ended_children();
    assert!(room.supervisor.has_ended_children());
    let pid = room.pid(first);
    process::table(|table| table.end(pid, Exit::Code(1)));
    assert_eq!(room.supervisor.ended_workers(), [(first, Exit::Code(1))]);
    assert!(!room.supervisor.has_ended_children());
    room.supervisor.note_exit(first, Exit::Code(1));
    assert_eq!(room.supervisor.ended_workers(), [], "once");
    room.reap_others();
    assert!(!room.supervisor.has_ended_children(), "it is known");
    let pid = room.pid(second);
    process::table(|table| {
        table.ended.clear();
        table.end(pid, Exit::Code(1));
    });
    room.reap_others();
    assert!(room.supervisor.has_ended_children(), "it has ended a moment ago");
}

#[test]
fn orphans_are_reaped_but_not_before_starts_are_told() {
    let (mut room, worker, _) = Room::serving("");
    let ended = || process::table(|table| table.ended.len());
    process::table(|table| table.ended.push_back((5, Exit::Code(0))));
    room.reap_others();
    assert_eq!(ended(), 0);
    assert!(logged().contains("reaped the orphan 5: exit code 0"));
    room.reload();
    assert_eq!(room.supervisor.launcher().starts(), 1);
    process::table(|table| table.ended.push_back((5, Exit::Code(0))));
    room.reap_others();
    assert_eq!(ended(), 1, "it may be a worker whose start has not been told");
    room.started();
    room.reap_others();
    assert_eq!(ended(), 0);

    let pid = room.pid(worker);
    let child = Offspring { group: pid, is_told: false, is_unresponsive: true };
    process::table(|table| table.children.push(child));
    room.end(worker, Exit::Code(0));
    process::table(|table| table.ended.push_back((5, Exit::Code(0))));
    room.reap_others();
    assert_eq!(ended(), 2, "the leader of a group stands before it");
    let now = room.io.now();
    assert!(!room.supervisor.is_gone());
    room.supervisor.expire_groups(now + ms(1000));
    room.supervisor.expire_groups(now + ms(2000));
    room.reap_others();
    assert_eq!(ended(), 0);
}

#[test]
fn no_worker_outlives_the_server() {
    let (mut room, first, second) = Room::serving("");
    let (pids, external) = ((room.pid(first), room.pid(second)), room.come(3, "/outside.sock", true));
    let socket = room.entry(first).endpoint.path().expect("a socket").to_path_buf();
    std::fs::write(&socket, "").expect("written");
    let ended = room.pid(second);
    process::table(|table| table.end(ended, Exit::Code(0)));
    room.supervisor.note_exit(second, Exit::Code(0));
    room.signals();
    room.supervisor.kill_all();
    assert_eq!(room.signals(), [(pids.0, true)], "not those that are not there, or not ours");
    assert!(!socket.exists() && room.supervisor.get(external).is_some());
}

#[test]
fn a_template_that_is_not_there_yet_is_somebody() {
    let mut room = Room::new("w:1 --fork=auto");
    let now = room.io.now();
    room.supervisor.fleet_mut().stop(now + ms(100), now);
    assert!(room.supervisor.fleet().is_gone() && room.supervisor.launcher().starts() == 0);
    assert!(!room.supervisor.is_gone(), "it is still to be ended");
}

#[test]
fn the_fleet_is_gone_when_nobody_is_left_and_nobody_will_come() {
    let mut room = Room::new("w:1 --fork=never");
    assert!(!room.supervisor.is_gone());
    let now = room.io.now();
    room.supervisor.fleet_mut().stop(now + ms(100), now);
    room.perform();
    assert!(!room.supervisor.is_gone(), "a start is on its way");
    let worker = room.started()[0];
    assert!(!room.supervisor.is_gone());
    room.end(worker, Exit::Signal(Signal::SIGTERM));
    assert!(room.supervisor.is_gone());
}

#[test]
fn a_worker_that_is_killed_behind_its_sigterm_has_not_failed_to_boot() {
    let (mut room, worker, _) = Room::serving("");
    let pid = room.pid(worker);
    let now = room.io.now();
    room.supervisor.fleet_mut().stop(now + ms(5000), now);
    room.perform();
    room.supervisor.fleet_mut().idle(worker, now);
    room.perform();
    room.signals();
    let mut told = Vec::new();
    for _ in 0..10 {
        room.pass(ms(1000));
        told.extend(room.signals());
    }
    assert!(told.contains(&(pid, true)), "it has had its time: {told:?}");
    room.end(worker, Exit::Signal(Signal::SIGKILL));
    assert_eq!((room.metric("crashes"), room.metric("boot failures")), (0, 0));
    assert!(!room.supervisor.has_failure());
}
