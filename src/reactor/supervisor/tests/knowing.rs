//! What the supervisor knows of each worker, and what exchanges tell it.

use super::*;

const NOBODY: WorkerKey = WorkerKey(99);

#[test]
fn a_worker_boots_until_it_has_joined() {
    let mut room = Room::new("w:1 --fork=never");
    let worker = room.started()[0];
    let supervisor = &room.supervisor;
    assert!(supervisor.is_booting(worker) && !supervisor.is_booting(NOBODY));
    assert!(!supervisor.can_be_asked(worker) && !supervisor.was_ever_healthy());
    assert_eq!(
        supervisor.origin(worker),
        Some(Origin::Slot { slot: 0, version: room.join_of(worker).version })
    );
    assert!(!supervisor.is_external(worker) && !supervisor.is_command(worker) && !supervisor.is_dead(worker));
    assert!(supervisor.is_dead(NOBODY));
    assert_eq!(supervisor.identity(worker), Some((0, room.pid(worker))));
    assert_eq!(supervisor.label(worker), format!("worker 0 (pid {})", room.pid(worker)));
    assert_eq!(supervisor.label(NOBODY), "a worker");
    room.io.move_clock_to(room.io.now() + ms(250));
    room.join(worker);
    assert!(!room.supervisor.is_booting(worker) && room.supervisor.can_be_asked(worker));
    assert!(room.supervisor.was_ever_healthy());
    assert!(logged().contains("joined after 250 ms"));
    room.end(worker, Exit::Code(1));
    assert!(room.supervisor.is_dead(worker) && !room.supervisor.is_booting(worker));
}

#[test]
fn a_worker_takes_as_much_as_it_says_and_is_asked_to() {
    let (mut room, worker, _) = Room::serving("c:2 --max-streams=5");
    let both = Capacity { places: 2, streams: Some(5) };
    assert_eq!(room.supervisor.capacity(worker), both, "no more than it is asked to");
    let external = room.come(3, "/outside.sock", true);
    assert_eq!(room.supervisor.capacity(external), Capacity { places: 1, streams: None });
    assert_eq!(room.supervisor.capacity(NOBODY), Capacity { places: 1, streams: None });
    let mut room = Room::new("w:1 c:4 / -- /bin/sh {socket}");
    let command = room.started()[0];
    assert_eq!(room.supervisor.capacity(command), Capacity { places: 4, streams: None });
    assert!(room.supervisor.is_command(command));
    let now = room.io.now();
    let connects = room.supervisor.admit(command, &mut room.observer, now);
    assert_eq!(connects, Some(false), "only with a request");
    assert!(!room.supervisor.may_be_told(command, false) && room.supervisor.may_be_told(command, true));
    let (mut room, worker, _) = Room::serving("");
    assert_eq!(room.supervisor.admit(worker, &mut room.observer, now), Some(true));
    assert_eq!(room.supervisor.admit(NOBODY, &mut room.observer, now), None);
    assert!(room.supervisor.may_be_told(worker, false) && !room.supervisor.may_be_told(NOBODY, true));
}

#[test]
fn the_fate_of_a_process_is_what_the_kernel_tells() {
    let (mut room, first, second) = Room::serving("");
    assert_eq!(room.supervisor.fate(first), Fate::Lives);
    assert!(!room.supervisor.is_dying(first));
    let pid = room.pid(first);
    process::table(|table| table.end(pid, Exit::Code(3)));
    assert_eq!((room.supervisor.fate(first), room.supervisor.is_ending(first)), (Fate::IsEnding, Some(true)));
    assert!(room.supervisor.is_dying(first));
    room.supervisor.note_exit(first, Exit::Code(3));
    assert_eq!(room.supervisor.fate(first), Fate::Exited(Exit::Code(3)));
    assert!(!room.supervisor.is_dying(first));
    process::table(|table| table.tells_little = true);
    assert_eq!(room.supervisor.fate(second), Fate::Unknown);
    assert_eq!(room.supervisor.fate(NOBODY), Fate::Unknown);
    process::table(|table| table.tells_little = false);
    let stranger = room.come(3, "/outside.sock", false);
    assert_eq!(room.supervisor.is_ending(stranger), None, "its pid may be anybody's here");
}

#[test]
fn whoever_answers_busy_again_and_again_is_given_up() {
    let (mut room, worker, _) = Room::serving("");
    let now = room.io.now();
    for times in 1..=10 {
        assert_eq!(room.supervisor.has_answered_busy(worker), times == 10, "{times}");
    }
    room.supervisor.has_answered(worker, now);
    assert!(!room.supervisor.has_answered_busy(worker), "a whole answer came between");
    for _ in 0..8 {
        room.supervisor.has_answered_busy(worker);
    }
    room.supervisor.note_recovery(worker);
    assert!(!room.supervisor.has_answered_busy(worker));
    assert!(!room.supervisor.has_answered_busy(NOBODY));
    assert_eq!(room.entry(worker).counts.requests, 1);
    room.supervisor.count_request(worker);
    assert_eq!(room.entry(worker).counts.requests, 2);
    room.supervisor.note_reload(worker);
    assert_eq!(room.entry(worker).counts.reloads, 1);
    room.supervisor.note_stuck(worker);
    assert!(room.supervisor.is_stuck(worker) && !room.supervisor.is_stuck(NOBODY));
    room.supervisor.note_recovery(worker);
    assert!(!room.supervisor.is_stuck(worker));
}

#[test]
fn a_worker_that_has_served_its_requests_is_replaced_once() {
    let (mut room, worker, _) = Room::serving("r:4");
    let limit = room.entry(worker).counts.request_limit.expect("it has one");
    let now = room.io.now();
    for served in 1..=limit + 2 {
        room.supervisor.has_answered(worker, now);
        room.supervisor.check_limits(worker, now);
        assert_eq!(room.entry(worker).counts.is_limit_reached, served >= limit, "{served} of {limit}");
        room.perform();
        assert_eq!(room.supervisor.launcher().starts(), usize::from(served >= limit), "{served} of {limit}");
    }
    assert_eq!(room.supervisor.launcher().starts(), 1, "its successor");
    room.supervisor.check_limits(NOBODY, now);
}

#[test]
fn a_worker_that_has_just_ended_does_not_end_the_bound_of_the_others() {
    let (mut room, worker, other) = Room::serving("--max-memory=64M");
    let now = room.io.now();
    room.supervisor.check_limits(worker, now);
    process::table(|table| table.resident_bytes = Some(65 << 20));
    room.supervisor.check_limits(other, now + ms(1000));
    room.perform();
    assert_eq!(room.supervisor.launcher().starts(), 1, "its successor");
}

#[test]
fn that_a_worker_is_too_heavy_is_told_once() {
    let (mut room, worker, _) = Room::serving("--max-memory=64M");
    process::table(|table| table.resident_bytes = Some(65 << 20));
    let now = room.io.now();
    let told = (1..4).map(|seconds| {
        room.supervisor.check_limits(worker, now + ms(1000 * seconds));
        room.perform();
        logged().matches("above --max-memory").count()
    });
    assert_eq!(told.collect::<Vec<_>>(), [1, 0, 0], "while its successor boots");
}

#[test]
fn a_worker_that_is_too_heavy_is_replaced() {
    let (mut room, worker, other) = Room::serving("--max-memory=64M");
    let (pid, now) = (room.pid(worker), room.io.now());
    let weighs = |bytes: u64| process::table(|table| table.resident_bytes = Some(bytes));
    weighs(64 << 20);
    room.supervisor.check_limits(worker, now);
    room.perform();
    assert_eq!(room.supervisor.resident_bytes(worker), Some(64 << 20));
    assert_eq!(room.supervisor.launcher().starts(), 0, "as much as it may");
    weighs((64 << 20) + 1);
    room.supervisor.check_limits(worker, now + ms(999));
    room.perform();
    assert_eq!(room.supervisor.resident_bytes(worker), Some(64 << 20), "looked at once a second");
    room.supervisor.check_limits(worker, now + ms(1000));
    room.perform();
    assert_eq!(room.supervisor.resident_bytes(worker), Some((64 << 20) + 1));
    assert_eq!(room.supervisor.launcher().starts(), 1, "its successor");
    assert!(logged().contains(&format!("worker 0 (pid {pid}): 64 MiB resident, above --max-memory")));
    let external = room.come(3, "/outside.sock", true);
    room.supervisor.check_limits(external, now);
    assert_eq!(room.entry(external).memory.checked, None, "it is not ours to replace");
    process::table(|table| table.resident_bytes = None);
    assert_eq!(room.supervisor.resident_bytes(worker), Some((64 << 20) + 1), "as last looked at");
    room.supervisor.check_limits(other, now + ms(1000));
    assert!(!logged().contains("--max-memory"), "that one has just ended");
    process::table(|table| table.tells_little = true);
    room.supervisor.check_limits(other, now + ms(2000));
    assert!(logged().contains("--max-memory is not in force"));
    weighs(1 << 40);
    room.supervisor.check_limits(other, now + ms(5000));
    assert_eq!(room.entry(other).memory.resident_bytes, None, "it is not looked at any more");
    assert_eq!(room.supervisor.resident_bytes(other), Some(1 << 40), "but it can be asked");
    let (mut room, worker, _) = Room::serving("");
    room.supervisor.check_limits(worker, now);
    assert_eq!(room.entry(worker).memory.checked, None, "there is no bound");
}

#[test]
fn the_address_of_a_command_is_looked_for_until_it_has_joined() {
    let mut room = Room::new("w:1 / -- /bin/sh {port}");
    let worker = room.started()[0];
    let is_ipv6 = |room: &Room| {
        matches!(room.supervisor.endpoint(worker), Some(Endpoint::Loopback { is_ipv6: true, .. }))
    };
    assert!(!is_ipv6(&room));
    room.supervisor.cannot_connect(worker, NoConnection::Later);
    assert!(!is_ipv6(&room));
    room.supervisor.cannot_connect(worker, NoConnection::Refused);
    assert!(is_ipv6(&room));
    let now = room.io.now();
    room.supervisor.probe_answered(worker, now);
    room.perform();
    assert!(!room.supervisor.is_booting(worker));
    room.supervisor.cannot_connect(worker, NoConnection::Refused);
    assert!(is_ipv6(&room), "it is known");
    let limit = room.supervisor.limit();
    assert_eq!((limit.soft, limit.hard), (1024, 4096));
}

#[test]
fn a_refused_connection_is_news_of_one_that_had_joined() {
    let mut room = Room::new("w:2 --fork=never");
    let workers = room.started();
    room.join(workers[0]);
    assert!(!room.supervisor.refuses_connections(workers[1]), "it has not joined");
    assert!(room.supervisor.refuses_connections(workers[0]));
    assert!(room.supervisor.is_dead(workers[0]) && room.supervisor.is_dead(workers[1]));
    assert!(!room.supervisor.refuses_connections(workers[0]), "it is known");
    assert!(!room.supervisor.refuses_connections(NOBODY));
}

#[test]
fn a_join_counts_from_the_slot_that_boots_alone() {
    let mut room = Room::new("w:1 --fork=never");
    let worker = room.started()[0];
    let now = room.io.now();
    let good = room.join_of(worker);
    let elsewhere = Join { sender: Sender { instance: Some("there".into()), worker_id: 0 }, ..good.clone() };
    let later = Join { version: good.version + 1, ..good.clone() };
    let other = Join { socket: "/elsewhere".into(), ..good.clone() };
    for (join, complaint) in [
        (&elsewhere, "worker 0 belongs to the instance 'there', and this one is 'here'".to_owned()),
        (&later, format!("no worker 0 of generation {} is booting", later.version)),
        (&other, format!("worker 0 of generation {} has another socket than '/elsewhere'", good.version)),
    ] {
        assert_eq!(room.supervisor.join(0, join, now), Err(complaint));
        assert!(room.supervisor.is_booting(worker));
    }
    assert_eq!(room.supervisor.join(0, &good, now), Ok(()));
    room.perform();
    assert!(room.supervisor.join(0, &good, now).is_err(), "once");
    assert_eq!(room.entry(worker).talk.abilities, good.abilities);
}

#[test]
fn the_worker_that_speaks_is_the_one_whose_process_it_is() {
    let mut room = Room::new("w:1 --fork=never");
    let old = room.started()[0];
    let sender =
        |instance: Option<&str>, worker_id| Sender { instance: instance.map(str::to_owned), worker_id };
    assert_eq!(room.supervisor.speaker(&sender(None, 0), 5), Err("there is no worker 0".into()), "it boots");
    room.join(old);
    room.pass(ms(10));
    room.reload();
    let new = room.started()[0];
    room.join(new);
    let (old_pid, new_pid) = (room.pid(old), room.pid(new));
    assert_eq!(room.supervisor.speaker(&sender(Some("here"), 0), old_pid), Ok(old));
    assert_eq!(room.supervisor.speaker(&sender(None, 0), new_pid), Ok(new));
    assert_eq!(room.supervisor.speaker(&sender(None, 0), 5), Ok(old), "a child's: the old one leaves");
    assert!(
        room.supervisor.speaker(&sender(Some("there"), 0), old_pid).is_err_and(|why| why.contains("'there'"))
    );
    assert!(room.supervisor.speaker(&sender(None, 1), old_pid).is_err());
    room.end(old, Exit::Code(0));
    assert_eq!(room.supervisor.speaker(&sender(None, 0), 5), Ok(new));
    let mut room = Room::new("w:0");
    let external = room.come(3, "/outside.sock", true);
    assert_eq!(room.supervisor.speaker(&sender(Some("anybody"), 3), 77), Ok(external));
}

#[test]
fn workers_from_outside_are_known_by_their_socket() {
    let (mut room, own, _) = Room::serving("");
    let first = room.come(3, "/a.sock", true);
    let second = room.come(4, "/a.sock", false);
    let other = room.come(5, "/b.sock", true);
    assert!(room.supervisor.is_external(first) && !room.supervisor.is_external(own));
    assert_eq!(room.supervisor.externals_at(Path::new("/a.sock")), [first, second]);
    let own_socket = room.entry(own).endpoint.path().expect("a socket").to_path_buf();
    assert_eq!(room.supervisor.externals_at(&own_socket), []);
    let joins = room.supervisor.external_joins();
    let known: Vec<(u64, &str, Option<i32>)> =
        joins.iter().map(|(join, process)| (join.sender.worker_id, join.socket.as_str(), *process)).collect();
    assert_eq!(known, [(3, "/a.sock", Some(77)), (4, "/a.sock", None), (5, "/b.sock", Some(77))]);
    assert_eq!((joins[0].0.pid, joins[0].0.sender.instance.as_deref()), (77, None));
    let (kept, process) = &joins[0];
    assert!(!kept.speaks_second_version() && process.is_some());
    let mut able = kept.clone();
    able.sender.instance = Some(String::new());
    let now = room.io.now();
    let again = room.supervisor.add_external(6, &able, 77, now);
    let (told, _) = room.entry(again).external_join().expect("it is external");
    assert_eq!(told.sender.instance.as_deref(), Some(""), "it speaks the second version");
    assert!(room.entry(own).external_join().is_none());
    assert!(room.supervisor.forget(first));
    assert!(room.supervisor.is_dead(first) && !room.supervisor.forget(NOBODY));
    assert_eq!(room.supervisor.externals_at(Path::new("/a.sock")), [second, again]);
    assert_eq!(room.supervisor.external_joins().len(), 3);
    assert_eq!(room.remove_closed(), [first]);
    assert!(room.supervisor.get(first).is_none() && room.supervisor.get(other).is_some());
}

#[test]
fn a_start_was_good_if_its_worker_served_or_died_of_what_others_bore() {
    let (mut room, worker, other) = Room::serving("");
    let now = room.io.now();
    assert!(!room.supervisor.has_served(worker));
    assert!(
        room.supervisor.begin_request(worker).is_some() && room.supervisor.begin_request(NOBODY).is_none()
    );
    assert!(!room.supervisor.has_served(worker), "nobody has answered");
    room.supervisor.has_answered(other, now);
    assert!(room.supervisor.has_served(other));
    assert!(!room.supervisor.has_served(worker), "that answer ended when it joined");
    room.supervisor.has_answered(other, now + ms(1));
    assert!(room.supervisor.has_served(worker), "others of the same code serve");
    assert!(!room.supervisor.has_served(NOBODY));
    let (mut room, worker, other) = Room::serving("");
    room.supervisor.has_answered(other, now + ms(5000));
    assert!(!room.supervisor.has_served(worker), "it was never asked");
}

#[test]
fn whoever_leaves_before_it_has_served_is_not_started_at_once() {
    for is_quit in [true, false] {
        for has_served in [true, false] {
            let (mut room, worker, _) = Room::serving("");
            let now = room.io.now();
            if has_served {
                room.supervisor.has_answered(worker, now);
            }
            match is_quit {
                true => room.supervisor.quit(worker, now),
                false => room.supervisor.give_up_on(worker, now),
            }
            room.perform();
            let starts = room.supervisor.launcher().starts();
            assert_eq!(starts, usize::from(has_served), "{is_quit} {has_served}");
            let waiting = room.supervisor.waiting_slots(now);
            let failures: Vec<_> = waiting.iter().map(|slot| slot["failures"].as_u64()).collect();
            let expected = if is_quit { Some(0) } else { Some(1) };
            assert!(has_served || failures.is_empty() || failures == [expected], "{failures:?}");
        }
    }
}

#[test]
fn the_next_deadline_is_the_earliest_of_all() {
    let (mut room, worker, _) = Room::serving("");
    assert_eq!(room.supervisor.next_deadline(), room.supervisor.fleet().next_deadline());
    let pid = room.pid(worker);
    process::table(|table| {
        table.children.push(process::Offspring { group: pid, is_told: false, is_unresponsive: true });
    });
    room.end(worker, Exit::Code(0));
    assert!(logged().contains("processes that it has started still run, and get SIGTERM"));
    let due = room.supervisor.groups.next_deadline().expect("it is to be killed");
    assert!(room.supervisor.next_deadline() <= Some(due));
    assert!(room.supervisor.next_deadline().is_some());
}

#[test]
fn last_words_are_the_last_lines_in_short() {
    let (mut room, worker, _) = Room::serving("");
    let entry = room.supervisor.get_mut(worker).expect("it is there");
    for line in 0..30 {
        entry.remember(format!("line {line}").as_bytes());
    }
    assert_eq!(entry.said.last_words.len(), 24);
    assert_eq!(entry.said.last_words.front().map(String::as_str), Some("line 6"));
    entry.remember(&[b'x'; 600]);
    assert_eq!(entry.said.last_words.back().map(String::len), Some(500));
    assert_eq!(entry.said.last_words.len(), 24);
}

#[test]
fn a_command_has_joined_when_it_answers_on_its_own_port() {
    let mut room = Room::new("w:1 / -- /bin/sh {port}");
    let worker = room.started()[0];
    let address = room.supervisor.endpoint(worker).and_then(Endpoint::address).expect("a port");
    let _listener = std::net::TcpListener::bind(address).expect("it listens");
    assert_eq!(room.supervisor.stranger_on_port(worker), None, "it is ours");
    let now = room.io.now();
    room.supervisor.probe_answered(worker, now);
    room.perform();
    assert!(!room.supervisor.is_booting(worker) && room.signals().is_empty());
}
