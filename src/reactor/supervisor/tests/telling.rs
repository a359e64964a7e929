//! What is told of workers.

use super::*;
use serde_json::{Value, json};

#[test]
fn who_serves_is_who_has_joined_and_is_well() {
    let mut room = Room::new("w:3 --fork=never");
    let workers = room.started();
    let of_it = |room: &Room| room.supervisor.serving_workers().collect::<Vec<_>>();
    assert_eq!(of_it(&room), []);
    room.join(workers[0]);
    room.join(workers[1]);
    assert_eq!((of_it(&room), room.supervisor.serving()), (workers[..2].to_vec(), 2));
    let external = room.come(7, "/outside.sock", true);
    assert_eq!(of_it(&room), [workers[0], workers[1], external]);
    assert_eq!(room.supervisor.keys().len(), 4);
    room.supervisor.note_stuck(workers[0]);
    assert_eq!(of_it(&room), [workers[1], external]);
    room.supervisor.refuses_connections(workers[1]);
    room.supervisor.forget(external);
    assert_eq!(of_it(&room), []);
}

#[test]
fn a_workers_state_is_one_word() {
    let mut room = Room::new("w:2 --fork=never");
    let workers = room.started();
    let states = |room: &Room, worker| {
        (room.supervisor.state_of(worker, true), room.supervisor.state_of(worker, false))
    };
    assert_eq!(states(&room, workers[0]), ("booting", "booting"));
    room.join(workers[0]);
    assert_eq!(states(&room, workers[0]), ("idle", "busy"));
    room.supervisor.note_stuck(workers[0]);
    assert_eq!(states(&room, workers[0]), ("stuck", "stuck"));
    assert_eq!(states(&room, WorkerKey(99)), ("gone", "gone"));
    let external = room.come(7, "/outside.sock", true);
    assert_eq!(states(&room, external), ("idle", "busy"));
    room.join(workers[1]);
    let now = room.io.now();
    room.supervisor.fleet_mut().stop(now + ms(100), now);
    room.perform();
    assert_eq!(states(&room, workers[1]), ("leaving", "leaving"));
}

#[test]
fn the_details_of_a_worker_are_what_it_is_and_has_done() {
    let (mut room, first, second) = Room::serving("");
    let (pid, version) = (room.pid(second), room.join_of(second).version);
    process::table(|table| table.resident_bytes = Some(4096));
    for _ in 0..3 {
        room.supervisor.count_request(second);
    }
    room.supervisor.note_reload(second);
    let now = pass(&mut room.io, ms(2500));
    let mut details = room.supervisor.details(second, true, Some("GET /".into()), now);
    let expected = json!({
        "slot": 1, "generation": version, "pid": pid, "forked": false, "state": "idle", "request": "GET /",
        "requests": 3, "reloads": 1, "rssBytes": 4096, "pssBytes": null, "ageSeconds": 2, "lastExit": null,
    });
    assert_eq!(details, expected);
    room.supervisor.has_answered(first, now);
    room.end(first, Exit::Code(7));
    let successor = room.started()[0];
    details = room.supervisor.details(successor, true, Some("GET /".into()), room.io.now());
    assert_eq!((&details["request"], &details["lastExit"]), (&Value::Null, &json!("exit code 7")));
    assert_eq!(details["state"], "booting");
    assert_eq!(room.supervisor.details(WorkerKey(99), true, None, now), Value::Null);
}

#[test]
fn workers_are_told_slot_by_slot_and_the_oldest_first() {
    let (mut room, first, second) = Room::serving("");
    room.pass(ms(10));
    room.reload();
    let successor = room.started()[0];
    assert_eq!(room.supervisor.keys_by_slot(), [first, successor, second]);
    for worker in [first, successor, second] {
        let details = room.supervisor.details(worker, true, None, room.io.now());
        assert_eq!(details["generation"], room.join_of(worker).version);
    }
    assert!(room.join_of(successor).version > room.join_of(first).version);
    let program = room.dir.path().join("app/.venv/bin/python3");
    assert_eq!(room.supervisor.program(), program.to_str());
    room.come(0, "/outside.sock", true);
    assert_eq!(room.supervisor.program(), program.to_str(), "what others run is not known");
}

#[test]
fn a_slot_that_waits_is_told_with_its_failures() {
    let mut room = Room::new("w:1 --fork=never");
    let worker = room.started()[0];
    assert!(room.supervisor.waiting_slots(room.io.now()).is_empty());
    room.end(worker, Exit::Code(2));
    let slots = room.supervisor.waiting_slots(room.io.now());
    let wait_ms = slots[0]["nextStartMs"].as_u64().expect("a number");
    assert_eq!((&slots[0]["slot"], &slots[0]["failures"]), (&json!(0), &json!(1)));
    assert_eq!(slots[0]["lastExit"], "exit code 2");
    let due = room.supervisor.fleet().next_deadline().expect("the next start");
    assert_eq!(u128::from(wait_ms), (due - room.io.now()).as_millis());
}

#[test]
fn the_release_is_told_with_what_would_come() {
    let (room, ..) = Room::serving("");
    let entry = room.dir.path().join("app/app.py");
    let name = entry.to_str().expect("a path").to_owned();
    assert_eq!(room.supervisor.release(), (name.clone(), false));
    assert_eq!(room.supervisor.next_release(), None);
    std::fs::write(&entry, "app = another\n").expect("written");
    assert_eq!(room.supervisor.release(), (name.clone(), true));
    std::fs::remove_file(&entry).expect("removed");
    assert!(room.supervisor.next_release().is_some_and(|why| why.contains("app")));
    let (mut room, ..) = Room::serving("--hot-reload=module");
    let entry = room.dir.path().join("app/app.py");
    std::fs::write(&entry, "app = another\n").expect("written");
    assert!(!room.supervisor.release().1, "the workers take it over themselves");
    room.supervisor.launcher = {
        let names = room.supervisor.launcher.names.clone();
        let source = Source::Path { path: "/nonexistent/app".into(), wanted: crate::app::Wanted::Entry };
        let harnesses = Harnesses::at(room.dir.path().join("harness"), &[]);
        let limit = room.supervisor.limit();
        Launcher::new(source, None, names, harnesses, "here".into(), limit, None)
    };
    let (complaint, has_changed) = room.supervisor.release();
    assert!(complaint.contains("/nonexistent/app") && !has_changed, "{complaint}");
}

#[test]
fn memory_is_weighed_one_process_after_the_other() {
    let (mut room, first, second) = Room::serving("");
    let now = room.io.now();
    assert!(room.supervisor.has_to_weigh(now));
    room.supervisor.weigh_next(now);
    assert!(room.supervisor.has_to_weigh(now), "the second one");
    room.supervisor.weigh_next(now);
    assert!(!room.supervisor.has_to_weigh(now) && !room.supervisor.has_to_weigh(now + ms(9999)));
    for worker in [first, second] {
        let told = process::proportional_bytes(Pid::from_raw(room.pid(worker)));
        assert_eq!(room.entry(worker).memory.proportional_bytes, told);
    }
    assert!([first, second].iter().any(|worker| room.entry(*worker).memory.proportional_bytes.is_some()));
    assert!(room.supervisor.has_to_weigh(now + ms(10_000)));
    room.supervisor.refuses_connections(first);
    room.supervisor.refuses_connections(second);
    assert!(!room.supervisor.has_to_weigh(now + ms(10_000)), "the dead weigh nothing");
    room.supervisor.weigh_next(now + ms(10_000));
}

#[test]
fn resident_memory_is_told_by_slot() {
    let (mut room, first, _) = Room::serving("");
    assert!(room.supervisor.resident_by_slot().is_empty(), "nothing tells");
    process::table(|table| table.resident_bytes = Some(100));
    assert_eq!(room.supervisor.resident_by_slot(), [(0, 100), (1, 100)]);
    room.reload();
    room.started();
    assert_eq!(room.supervisor.resident_by_slot(), [(0, 200), (1, 100)], "two generations");
    room.end(first, Exit::Code(0));
    assert_eq!(room.supervisor.resident_by_slot(), [(0, 100), (1, 100)]);
    let now = room.io.now();
    for number in 0..256 {
        room.come(number, "/outside.sock", true);
        let count = room.supervisor.workers().len();
        assert_eq!(room.supervisor.resident_by_slot().is_empty(), count > 256, "{count} workers");
    }
    assert!(now <= room.io.now());
}

#[test]
fn a_roll_ends_with_a_sentence() {
    let (mut room, first, _) = Room::serving("--boot-timeout-ms=2000");
    let pid = room.pid(first);
    let end = |room: &mut Room, end| {
        let result = room.supervisor.end_roll(end);
        (result, logged())
    };
    let (result, told) = end(&mut room, RollEnd::Done { replaced: 1 });
    assert_eq!((result, told.contains("reload: 1 worker replaced")), (Ok(1), true));
    let (result, told) = end(&mut room, RollEnd::Done { replaced: 2 });
    assert_eq!((result, told.contains("reload: 2 workers replaced")), (Ok(2), true));
    let (result, told) = end(&mut room, RollEnd::Unstable { slot: 1 });
    let why = result.expect_err("a failure");
    assert!(why.contains("the new workers of slot 1 ended again and again") && told.contains(&why));
    assert_eq!(end(&mut room, RollEnd::Stopping).0, Err("the server is stopping".into()));

    let failed = |worker| RollEnd::Failed { slot: 0, worker };
    let could_not = "the successor of worker 0 could not be started: ";
    assert_eq!(end(&mut room, failed(None)).0, Err(format!("{could_not}the reason is in the log")));
    room.supervisor.history.last_spawn_error = Some("no memory".into());
    assert_eq!(end(&mut room, failed(None)).0, Err(format!("{could_not}no memory")));
    let successor = format!("the successor of worker 0 (pid {pid})");
    let go_on = "the old workers go on";
    let told = |room: &mut Room| end_of(room, failed(Some(first)));
    assert_eq!(told(&mut room), format!("{successor} failed; {go_on}"));
    room.supervisor.note_exit(first, Exit::Code(1));
    assert_eq!(told(&mut room), format!("{successor} ended before it had served: exit code 1; {go_on}"));
    let entry = room.supervisor.get_mut(first).expect("it is there");
    entry.joined = None;
    entry.remember(b"Error: one");
    entry.remember(b"two");
    assert_eq!(
        told(&mut room),
        format!("{successor} ended before it had joined: exit code 1; {go_on}\n  Error: one\n  two")
    );
    room.supervisor.note_exit(first, Exit::Signal(Signal::SIGKILL));
    let by_another = format!("{successor} ended before it had joined: SIGKILL; {go_on}");
    assert!(told(&mut room).starts_with(&by_another));
    room.supervisor.get_mut(first).expect("it is there").process.was_late = true;
    assert!(told(&mut room).starts_with(&format!("{successor} did not join within 2000 ms; {go_on}")));
    room.supervisor.get_mut(first).expect("it is there").process.exec_failure = Some("no such file".into());
    let program = room.entry(first).process.program.clone();
    assert_eq!(told(&mut room), format!("{could_not}'{program}': no such file"));
}

#[test]
fn a_successor_that_somebody_else_has_killed_was_not_late() {
    for (is_late, how) in
        [(true, "did not join within 2000 ms"), (false, "ended before it had joined: SIGKILL")]
    {
        let (mut room, ..) = Room::serving("--boot-timeout-ms=2000");
        room.reload();
        let successor = room.started()[0];
        room.pass(ms(if is_late { 2000 } else { 100 }));
        room.end(successor, Exit::Signal(Signal::SIGKILL));
        let why = room.rolls[0].clone().expect_err("a failure");
        assert!(why.contains(how), "{why}");
    }
}

fn end_of(room: &mut Room, end: RollEnd) -> String {
    room.supervisor.end_roll(end).expect_err("a failure")
}

#[test]
fn a_trial_that_failed_says_how() {
    let (mut room, first, _) = Room::serving("");
    let told = |room: &mut Room, failure| {
        let why = end_of(room, RollEnd::NotTaken { slot: 0, worker: first, failure });
        assert!(logged().contains(&format!("reload undone: {why}")));
        why
    };
    let on_trial = |what: &str| format!("on trial the new worker 0 {what}; the old release goes on");
    assert_eq!(told(&mut room, TrialFailure::Left), on_trial("left by itself"));
    assert_eq!(told(&mut room, TrialFailure::Stuck), on_trial("got stuck"));
    assert_eq!(told(&mut room, TrialFailure::Ended), on_trial("ended"));
    room.supervisor.note_exit(first, Exit::Code(1));
    assert_eq!(told(&mut room, TrialFailure::Ended), on_trial("ended: exit code 1"));
    let tally = |failed, answers| {
        let mut tally = crate::fleet::Tally::default();
        (tally.failed, tally.answers) = (failed, answers);
        tally
    };
    let errors = TrialFailure::Errors { own: tally(3, 4), others: tally(1, 50) };
    assert_eq!(told(&mut room, errors), on_trial("failed at 3 of 4 requests, and the old ones at 1 of 50"));
}

#[test]
fn what_a_roll_brought_is_the_release_when_all_have_it_and_forgotten_when_it_failed() {
    let (mut room, first, second) = Room::serving("");
    let entry = room.dir.path().join("app/app.py");
    std::fs::write(&entry, "app = another\n").expect("written");
    room.reload();
    assert!(room.supervisor.release().1, "the old one is served");
    for old in [first, second] {
        let successor = room.started()[0];
        room.join(successor);
        room.end(old, Exit::Code(0));
    }
    assert_eq!(room.rolls, [Ok(2)]);
    assert!(!room.supervisor.release().1);
    std::fs::remove_file(&entry).expect("removed");
    room.reload();
    assert!(room.rolls[1].is_err());
    let releases = room.supervisor.launcher.releases();
    assert!(releases.app(crate::fleet::Release::New).is_ok(), "as before");
}
