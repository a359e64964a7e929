//! Starts: what they run, and what became of them.

use super::*;
use crate::app::Runtime;
use crate::process::Answer;
use nix::errno::Errno;

fn answer(answer: Answer) {
    process::table(|table| table.answers.push_back(answer));
}

#[test]
fn a_start_is_answered_once() {
    let mut room = Room::new("w:1 --fork=never");
    assert_eq!(room.supervisor.launcher().starts(), 1);
    let version = room.supervisor.fleet().generation();
    let worker = room.started()[0];
    assert_eq!(room.supervisor.launcher().starts(), 0);
    assert_eq!(room.supervisor.workers().len(), 1, "it was told of twice");
    assert!(
        logged().contains(&format!("worker 0 (pid {}): started, generation {version}", room.pid(worker)))
    );
    assert_eq!(room.metric("starts"), 1);
    assert!(room.supervisor.has_ended_children(), "its end may have been told before");
    let entry = room.entry(worker);
    assert!(!entry.process.is_fork && entry.process.start_id.is_some());
    assert!(entry.process.program.ends_with("python3"), "{}", entry.process.program);
    let name = format!("{}.here.0.{version}.sock", room.supervisor.launcher().names().prefix);
    assert_eq!(entry.endpoint.path(), Some(&*room.dir.path().join(name)));
}

#[test]
fn a_successor_says_whom_it_follows() {
    let (mut room, ..) = Room::serving("");
    room.reload();
    room.started();
    assert!(logged().contains(", successor after reload"));
    assert_eq!(room.metric("starts"), 3);
}

#[test]
fn a_socket_that_lies_there_is_removed_before_a_start() {
    let (mut room, first, _) = Room::serving("");
    let version = room.join_of(first).version + 1;
    let prefix = room.supervisor.launcher().names().prefix.clone();
    let stale = room.dir.path().join(format!("{prefix}.here.0.{version}.sock"));
    std::fs::write(&stale, "").expect("written");
    room.reload();
    assert!(!stale.exists());
}

#[test]
fn a_start_that_the_kernel_refuses_is_told_and_tried_again() {
    let mut room = Room::new("w:1 --fork=never");
    process::table(|table| table.answers.clear());
    answer(Answer::Failed { id: 1, error: Errno::EAGAIN });
    assert_eq!(room.started(), []);
    let told = logged();
    assert!(told.contains("worker 0: cannot be started: '") && told.contains(Errno::EAGAIN.desc()), "{told}");
    assert_eq!((room.metric("start failures"), room.supervisor.launcher().starts()), (1, 0));
    assert!(room.supervisor.has_failure());
    assert!(room.supervisor.last_failure().contains(Errno::EAGAIN.desc()));
    let slots = room.supervisor.waiting_slots(room.io.now());
    assert_eq!(slots[0]["failures"], 1);
    room.pass(Duration::from_secs(5));
    assert_eq!(room.supervisor.launcher().starts(), 1, "the next try");
}

#[test]
fn a_start_that_fails_at_once_is_one_too() {
    let mut room = Room::new("w:1 --fork=never");
    room.started();
    // The first of two fails without an answer.
    process::table(|table| table.failing_spawns = 1);
    let now = room.io.now();
    room.supervisor.fleet_mut().change_size(crate::fleet::Resize::More, now);
    room.perform();
    assert_eq!(room.metric("start failures"), 1);
    std::fs::remove_file(room.dir.path().join("app/app.py")).expect("removed");
    let worker = room.supervisor.keys()[0];
    room.join(worker);
    logged();
    room.reload();
    assert_eq!(room.metric("start failures"), 2);
    assert!(
        room.rolls[0]
            .as_ref()
            .is_err_and(|why| why.contains("the successor of worker 0 could not be started"))
    );
}

#[test]
fn a_process_that_cannot_become_the_program_says_why() {
    let mut room = Room::new("w:1 --fork=never");
    let worker = room.started()[0];
    let start_id = room.entry(worker).process.start_id.expect("a number");
    answer(Answer::NotRun { id: start_id + 1, error: Errno::EACCES });
    assert_eq!(room.started(), []);
    assert_eq!(room.entry(worker).process.exec_failure, None, "another one's");
    answer(Answer::NotRun { id: start_id, error: Errno::ENOENT });
    assert_eq!(room.started(), []);
    assert_eq!(room.entry(worker).process.exec_failure.as_deref(), Some(Errno::ENOENT.desc()));
    room.end(worker, Exit::Code(127));
    let told = logged();
    assert!(told.contains("cannot be started: '") && told.contains(Errno::ENOENT.desc()), "{told}");
    assert_eq!((room.metric("start failures"), room.metric("boot failures")), (1, 1));
    let deaths = room.observer.failures().deaths();
    assert_eq!(deaths[0]["exit"], format!("cannot be started: {}", Errno::ENOENT.desc()));
}

#[test]
fn with_the_spawner_all_starts_fail_that_have_no_answer() {
    let mut room = Room::new("w:3 --fork=never");
    process::table(|table| table.answers.clear());
    answer(Answer::SpawnerDied);
    assert_eq!(room.started(), []);
    assert_eq!(room.metric("start failures"), 3);
    assert!(logged().contains("the process that starts workers has died"));
    let mut room = Room::new("w:1");
    process::table(|table| table.answers.clear());
    answer(Answer::SpawnerDied);
    assert_eq!(room.started(), []);
    assert_eq!(room.supervisor.launcher().templates(), 0);
    assert!(logged().contains("the template cannot be started: the process that starts workers has died"));
}

#[test]
fn the_first_version_of_the_protocol_names_no_instance() {
    let room = Room::new("w:1 --fork=never");
    let sender = |instance: Option<&str>| Sender { instance: instance.map(str::to_owned), worker_id: 3 };
    let launcher = room.supervisor.launcher();
    assert_eq!(launcher.check_instance(&sender(None)), Ok(()));
    assert_eq!(launcher.check_instance(&sender(Some("here"))), Ok(()));
    let complaint = launcher.check_instance(&sender(Some("a\nb"))).expect_err("another's");
    assert_eq!(complaint, "worker 3 belongs to the instance 'a\\nb', and this one is 'here'");
    assert!(launcher.lock().is_none(), "nobody holds the name here");
    assert_eq!(launcher.source().path(), room.dir.path().join("app"));
    assert_eq!(launcher.instance(), "here");
}

#[test]
fn the_name_is_this_servers_until_it_is_handed_over() {
    use crate::reactor::socket_dir::NameLock;
    for (is_handed, is_taken) in [(false, false), (true, false), (true, true)] {
        let mut room = Room::new("w:0");
        let names = room.supervisor.launcher().names().clone();
        let lock = NameLock::take(&names).expect("it is free");
        let harnesses = Harnesses::at(room.dir.path().join("harness"), &[]);
        let source = room.supervisor.launcher().source().clone();
        let limit = room.supervisor.limit();
        let launcher =
            Launcher::new(source, None, names.clone(), harnesses, "here".into(), limit, Some(lock));
        room.supervisor.launcher = launcher;
        assert!(room.supervisor.launcher().lock().is_some());
        if is_handed {
            room.supervisor.launcher_mut().hand_over_name();
        }
        if is_taken {
            room.supervisor.launcher_mut().take_over_name();
        }
        drop(room.supervisor);
        assert_eq!(names.lock().exists(), is_handed && !is_taken, "{is_handed} {is_taken}");
    }
}

#[test]
fn harnesses_are_written_only_where_nobody_else_may_write() {
    let mut room = Room::new("w:0");
    let at = room.dir.path().join("harness");
    let set_mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(room.dir.path(), mode).expect("it is ours");
    };
    let launcher = &mut room.supervisor.launcher;
    launcher.harnesses = Harnesses::at(at.clone(), &[("main.py", "pass")]);
    set_mode(0o777);
    let complaint = launcher.provide_harnesses(Runtime::Python).expect_err("it is open");
    assert!(complaint.contains("is open to others") && !at.exists(), "{complaint}");
    set_mode(0o700);
    for _ in 0..2 {
        assert_eq!(launcher.provide_harnesses(Runtime::Python), Ok(()));
        std::fs::remove_file(at.join("main.py")).expect("it was written");
    }
    set_mode(0o777);
    assert!(launcher.provide_harnesses(Runtime::Python).is_err(), "somebody else may have made it");
}

#[test]
fn each_command_gets_a_port_of_its_own() {
    let mut room = Room::new("w:2 / -- /bin/sh {port}");
    let workers = room.started();
    let ports: Vec<u16> = workers
        .iter()
        .filter_map(|worker| room.supervisor.endpoint(*worker)?.address())
        .map(|address| address.port())
        .collect();
    assert_eq!(ports.len(), 2);
    assert!(ports[0] != ports[1] && ports.iter().all(|port| *port >= 10_240), "{ports:?}");
    assert!(workers.iter().all(|worker| room.supervisor.is_command(*worker)));
}
