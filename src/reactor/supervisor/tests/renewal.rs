//! New code in development.

use super::*;
use crate::reactor::supervisor::Renewed;

/// Two workers, and an app whose sources are watched.
fn watched() -> (Room, WorkerKey, WorkerKey) {
    let (mut room, first, second) = Room::serving("--hot-reload=module --boot-timeout-ms=2000");
    room.supervisor.start_watch(&room.io);
    assert!(room.supervisor.waits_for_edits());
    (room, first, second)
}

impl Room {
    fn write(&mut self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("app").join(name), text).expect("written");
    }

    /// Whether requests are to wait for what has changed.
    fn read_watch(&mut self) -> bool {
        self.supervisor.read_watch(&self.io)
    }

    /// What comes of changes that have settled by now.
    fn settle(&mut self) -> Option<Renewed> {
        let now = pass(&mut self.io, ms(30));
        self.supervisor.settle_changes(now)
    }
}

const REPLACE: Option<Renewed> = Some(Renewed::Replace { is_slowed: false });

#[test]
fn only_an_app_in_module_mode_is_watched() {
    for words in ["w:1 --hot-reload=none", "w:1 --hot-reload=process", "w:0 --hot-reload=module"] {
        let mut room = Room::new(words);
        room.supervisor.start_watch(&room.io);
        assert!(!room.supervisor.waits_for_edits(), "{words}");
        assert!(!room.read_watch() && room.settle().is_none());
    }
}

#[test]
fn a_source_that_changes_has_the_workers_replaced_when_all_is_written() {
    let (mut room, ..) = watched();
    assert!(!room.read_watch() && !room.supervisor.awaits_new_code());
    room.write("part.py", "one");
    assert!(room.read_watch());
    assert!(room.supervisor.awaits_new_code());
    assert_eq!(room.supervisor.renewal_deadline(), Some(room.io.now() + ms(30)));
    assert!(room.supervisor.next_deadline() <= room.supervisor.renewal_deadline());
    let now = room.io.now();
    assert_eq!(room.supervisor.settle_changes(now), None, "more may come");
    assert_eq!(room.settle(), REPLACE);
    assert!(logged().contains("hot reload: part.py has changed; the workers are replaced"));
    assert!(!room.supervisor.awaits_new_code() && room.settle().is_none());
    room.write("a.py", "two");
    room.write("b.py", "two");
    assert!(room.read_watch());
    assert_eq!(room.settle(), REPLACE);
    assert!(logged().contains("hot reload: a.py has changed (and 1 more); the workers are replaced"));
    room.write("part.py", "one");
    assert!(!room.read_watch(), "the same as before");
}

#[test]
fn the_entry_is_taken_over_by_the_workers_unless_some_lack_the_last_code() {
    let (mut room, first, _) = watched();
    room.write("app.py", "app = 2\n");
    assert!(!room.read_watch());
    assert_eq!(room.settle(), Some(Renewed::Nothing));
    assert!(room.supervisor.end_renewal(false), "the last replacement failed");
    room.write("app.py", "app = 3\n");
    assert!(room.read_watch());
    assert_eq!(room.settle(), REPLACE);
    assert!(room.supervisor.end_renewal(true));
    room.write("app.py", "app = 4\n");
    assert!(!room.read_watch());
    assert_eq!(room.settle(), Some(Renewed::Nothing));
    room.end(first, Exit::Code(1));
    room.write("app.py", "app = 5\n");
    assert!(room.read_watch(), "one is not there");
    assert!(!room.supervisor.end_renewal(true), "more has changed");
    assert_eq!(room.settle(), REPLACE);
}

#[test]
fn an_app_that_changes_its_sources_in_a_loop_is_slowed_down() {
    let (mut room, ..) = watched();
    for round in 1..=6 {
        room.write("part.py", &round.to_string());
        assert!(room.read_watch());
        assert_eq!(room.settle(), Some(Renewed::Replace { is_slowed: round == 6 }), "{round}");
        assert_eq!(logged().contains("part.py changes again and again"), round == 6);
    }
    room.write("part.py", "7");
    assert!(!room.read_watch(), "nobody waits for that");
    let now = pass(&mut room.io, ms(970));
    assert_eq!(room.supervisor.settle_changes(now), None);
    assert_eq!(room.settle(), Some(Renewed::Replace { is_slowed: true }));
}

#[test]
fn a_folder_that_goes_and_comes_back_counts() {
    let (mut room, ..) = watched();
    let app = room.dir.path().join("app");
    let away = room.dir.path().join("away");
    std::fs::rename(&app, &away).expect("moved");
    assert!(!room.read_watch(), "there is no new code");
    assert!(room.supervisor.waits_for_edits());
    std::fs::create_dir(&app).expect("made");
    assert!(!room.read_watch());
    room.write("app.py", "app = 2\n");
    assert!(room.read_watch(), "it has come back");
    assert_eq!(room.settle(), REPLACE);
    let told = logged();
    assert!(told.contains(&format!("hot reload: {} has changed", app.display())), "{told}");
    assert!(!told.contains("go unseen"), "{told}");
}

#[test]
fn what_cannot_be_watched_is_told_once() {
    let (mut room, ..) = watched();
    let limit = crate::reactor::supervisor::watch::Limit::Folders;
    room.supervisor.use_watch(Err(limit));
    assert!(!room.supervisor.waits_for_edits());
    let told = logged();
    assert!(told.contains("go unseen: more than 100 folders are not watched"), "{told}");
    room.supervisor.use_watch(Err(limit));
    assert!(logged().is_empty());
    room.supervisor.start_watch(&room.io);
    assert!(room.supervisor.waits_for_edits());
}

#[test]
fn folders_beyond_the_bound_go_unseen_and_that_is_told() {
    let (mut room, ..) = Room::serving("--hot-reload=module");
    for number in 0..100 {
        std::fs::create_dir(room.dir.path().join("app").join(number.to_string())).expect("made");
    }
    room.supervisor.start_watch(&room.io);
    assert!(logged().contains("go unseen: more than 100 folders"));
    assert!(room.supervisor.waits_for_edits(), "the others are seen");
    room.supervisor.start_watch(&room.io);
    assert!(logged().is_empty(), "it sees the same app");
}

#[test]
fn while_requests_wait_for_new_code_nobody_with_the_old_one_is_asked() {
    let (mut room, first, second) = watched();
    let external = room.come(7, "/outside.sock", true);
    let start = room.io.now();
    assert!(!room.supervisor.waits_for_new_code() && room.supervisor.hold_until().is_none());
    assert!(room.supervisor.end_hold().is_empty());
    let now = pass(&mut room.io, ms(10));
    assert_eq!(room.supervisor.hold(now), [first, second], "none from outside");
    assert!(room.supervisor.waits_for_new_code() && !room.entry(external).is_withheld());
    assert_eq!(room.supervisor.hold_until(), Some(now + ms(2000)));
    assert!(room.supervisor.awaits_new_code());
    assert_eq!(room.supervisor.hold(now), [], "they are withheld already");
    assert!(!room.supervisor.is_withheld_at_once(external) && room.supervisor.is_withheld_at_once(first));
    assert_eq!(room.supervisor.end_hold(), [first, second], "the new code has not come");
    assert!(!room.supervisor.waits_for_new_code());
    assert!(room.supervisor.end_withholding(first) && !room.entry(first).is_withheld());
    assert!(!room.supervisor.is_withheld_at_once(first), "nobody waits");
    let pid = room.pid(second);
    process::table(|table| table.end(pid, Exit::Code(0)));
    assert!(!room.supervisor.end_withholding(second), "its end is about to be heard");
    process::table(|table| table.tells_little = true);
    assert!(room.supervisor.end_withholding(second), "nothing tells");
    assert!(start < now);
}

#[test]
fn who_has_the_newest_code_goes_on_and_who_is_older_does_not() {
    let (mut room, first, second) = watched();
    let now = pass(&mut room.io, ms(10));
    room.supervisor.hold(now);
    pass(&mut room.io, ms(10));
    room.reload();
    let successor = room.started()[0];
    room.join(successor);
    assert!(!room.supervisor.is_withheld_at_once(successor), "it was started behind the change");
    let later = pass(&mut room.io, ms(10));
    assert_eq!(room.supervisor.hold(later), [successor], "another change");
    assert_eq!(room.supervisor.end_hold(), [successor], "beside it nobody is asked who is older");
    assert!(room.entry(second).is_withheld());
    room.supervisor.hold(later);
    room.end(successor, Exit::Code(1));
    let left = room.supervisor.end_hold();
    assert!(left.contains(&second) && !left.contains(&successor), "there is nobody else: {left:?} {first:?}");
}

#[test]
fn a_worker_that_was_started_at_the_change_has_the_new_code() {
    let (mut room, ..) = watched();
    let before = room.io.now();
    room.reload();
    let successor = room.started()[0];
    room.supervisor.hold(before);
    room.join(successor);
    assert!(!room.supervisor.is_withheld_at_once(successor));
    room.supervisor.hold(before + ms(1));
    assert!(room.supervisor.is_withheld_at_once(successor), "a moment too early");
}

#[test]
fn a_worker_that_is_stuck_dead_or_on_its_way_out_is_not_withheld() {
    let (mut room, first, second) = watched();
    let now = room.io.now();
    room.supervisor.refuses_connections(first);
    assert_eq!(room.supervisor.hold(now), [second]);
    let (mut room, first, second) = watched();
    room.supervisor.fleet_mut().stuck(first, false, now);
    assert_eq!(room.supervisor.hold(now), [second]);
    let (mut room, _, second) = watched();
    room.supervisor.fleet_mut().quit(second, Ending::Served, now);
    assert!(!room.supervisor.hold(now).contains(&second));
    let mut room = Room::new("w:1 --hot-reload=module");
    room.started();
    assert_eq!(room.supervisor.hold(now), [], "it has not joined");
}

#[test]
fn an_app_that_does_not_start_says_why_until_it_does() {
    let mut room = Room::new("w:1 --hot-reload=module");
    let worker = room.started()[0];
    room.supervisor.start_watch(&room.io);
    assert!(!room.supervisor.has_failed_to_start() && !room.supervisor.knows_failed_start());
    assert_eq!(room.supervisor.last_failure(), "");
    assert!(room.supervisor.failed_start_text().contains("The server's log says why."));
    for line in ["Traceback", "  ImportError: none", "  at line 3", "Python v3"] {
        room.supervisor.get_mut(worker).expect("it is there").remember(line.as_bytes());
    }
    let pid = room.pid(worker);
    room.end(worker, Exit::Code(1));
    assert!(room.supervisor.has_failed_to_start() && room.supervisor.knows_failed_start());
    assert!(room.supervisor.has_failure());
    let how = format!("worker 0 (pid {pid}): exit code 1 after 0 ms, before it had joined");
    assert_eq!(room.supervisor.last_failure(), format!(" (the last: {how}: ImportError: none)"));
    let text = room.supervisor.failed_start_text();
    assert!(
        text.starts_with("The app 'app' does not start.\n\n") && text.contains("  Python v3\n"),
        "{text}"
    );
    let now = room.io.now();
    room.supervisor.hold(now);
    assert!(!room.supervisor.has_failed_to_start(), "new code is on its way");
    room.supervisor.end_hold();
    room.pass(Duration::from_secs(5));
    let next = room.started()[0];
    assert!(!room.supervisor.has_failed_to_start(), "somebody is about to serve");
    room.join(next);
    room.supervisor.is_withheld_at_once(next);
    assert!(!room.supervisor.has_failure() && !room.supervisor.knows_failed_start());
    room.supervisor.renewal.note_failure("how".to_owned());
    assert_eq!(room.supervisor.last_failure(), " (the last: how)");
    assert!(!room.supervisor.has_failed_to_start() && !room.supervisor.knows_failed_start(), "it serves");
    room.supervisor.renewal.note_failure("how\n  one\n  two\n".to_owned());
    assert_eq!(room.supervisor.last_failure(), " (the last: how: two)");
}

#[test]
fn in_production_and_without_a_watch_strangers_are_told_less() {
    let mut room = Room::new("w:1 --fork=never NODE_ENV=production");
    let worker = room.started()[0];
    room.end(worker, Exit::Code(1));
    assert!(room.supervisor.has_failure());
    assert!(!room.supervisor.has_failed_to_start() && !room.supervisor.knows_failed_start());
    let text = room.supervisor.failed_start_text();
    assert!(text.contains("The server's log says why.") && !text.contains("exit code"), "{text}");
}
