//! Templates: what they say, and what becomes of what they were asked for.

use super::*;
use crate::fleet::TemplateId;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::AsRawFd;

impl Room {
    /// The template that was started last says something.
    fn say(&mut self, text: &str) -> Vec<WorkerKey> {
        process::table(|table| {
            let line = &table.templates.last().expect("a template").line;
            send(line.as_raw_fd(), text.as_bytes(), MsgFlags::MSG_NOSIGNAL).expect("it is said");
        });
        self.started()
    }

    /// The numbers of the workers that it was asked for.
    fn orders(&self) -> Vec<String> {
        process::table(|table| {
            let line = &table.templates.last().expect("a template").line;
            let mut orders = Vec::new();
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = recv(line.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                orders.push(text.split('\0').next().unwrap_or_default().to_owned());
            }
            orders
        })
    }

    fn template(&self) -> (WorkerKey, TemplateId) {
        let found = self.supervisor.workers().iter().find_map(|(key, entry)| match entry.origin {
            Origin::Template { id } => Some((WorkerKey(key), id)),
            Origin::Slot { .. } | Origin::Outside { .. } => None,
        });
        found.expect("a template")
    }
}

#[test]
fn a_template_that_has_loaded_the_app_forks_the_workers() {
    let mut room = Room::new("w:2 --fork=auto");
    assert_eq!((room.supervisor.launcher().templates(), room.supervisor.launcher().starts()), (1, 0));
    assert_eq!(room.started(), []);
    let (template, id) = room.template();
    let pid = room.pid(template);
    assert_eq!(room.supervisor.label(template), format!("template (pid {pid})"));
    assert!(room.entry(template).process.program.ends_with("python3"));
    assert!(room.entry(template).process.start_id.is_some());
    assert!(room.supervisor.template_entry(id).is_some_and(|entry| entry.pid_number() == pid));
    assert_eq!(room.supervisor.origin(template).map(Origin::worker_id), Some(0));
    assert!(!room.supervisor.is_external(template) && room.supervisor.keys().is_empty());
    let later = room.io.now() + ms(70);
    room.io.move_clock_to(later);
    assert_eq!(room.say("ready"), []);
    assert!(logged().contains(&format!("template (pid {pid}): has loaded the app after 70 ms")));
    let orders = room.orders();
    assert_eq!(orders.len(), 2);
    assert_eq!(room.supervisor.launcher().starts(), 2);
    process::table(|table| table.resident_bytes = Some(4096));
    let told = room.supervisor.templates(later + ms(3000));
    assert_eq!((told.len(), &told[0]["pid"], &told[0]["ageSeconds"]), (1, &pid.into(), &3.into()));
    assert_eq!(told[0]["rssBytes"], 4096);

    let workers = room.say(&format!("forked {} 2000001", orders[0]));
    assert_eq!((workers.len(), room.supervisor.launcher().starts()), (1, 1));
    assert!(room.entry(workers[0]).process.is_fork && room.entry(workers[0]).process.start_id.is_none());
    assert!(logged().contains("worker 0 (pid 2000001): forked, generation"));
    assert_eq!(room.say(&format!("forked {} 2000002", orders[0])), [], "once");
    assert_eq!(room.say("failed 99 why not"), [], "nobody asked");
    assert_eq!(room.metric("start failures"), 0);
    assert_eq!(room.say(&format!("failed {} no memory", orders[1])), []);
    assert!(logged().contains("worker 1: cannot be started: its template cannot fork: no memory"));
    assert_eq!((room.metric("start failures"), room.supervisor.launcher().starts()), (1, 0));
    let details = room.supervisor.details(workers[0], true, None, later);
    assert_eq!(details["forked"], true);
    assert!(room.supervisor.resident_by_slot() == [(0, 4096)], "none of the template's");
    assert!(!room.supervisor.is_gone());
}

#[test]
fn an_app_that_is_not_to_be_forked_has_its_workers_started_one_by_one() {
    let mut room = Room::new("w:1 --fork=auto");
    room.started();
    let (template, _) = room.template();
    assert_eq!(room.say("refused a thread runs"), []);
    assert!(logged().contains("workers are not forked, and start one by one: a thread runs"));
    let workers = room.started();
    assert!(workers.len() == 1 && !room.entry(workers[0]).process.is_fork);
    logged();
    room.end(template, Exit::Code(0));
    let told = logged();
    assert!(told.contains("exit code 0 after 0 ms") && !told.contains("WARN"), "{told}");
    assert_eq!(room.supervisor.launcher().templates(), 0);
    assert_eq!(room.remove_closed(), [template]);
}

#[test]
fn with_a_template_die_the_starts_that_it_has_not_named() {
    let mut room = Room::new("w:2 --fork=auto");
    room.started();
    let (template, _) = room.template();
    room.say("ready");
    assert_eq!(room.supervisor.launcher().starts(), 2);
    logged();
    room.end(template, Exit::Signal(Signal::SIGSEGV));
    let told = logged();
    assert!(told.contains("WARN template (pid") && told.contains("SIGSEGV after 0 ms"), "{told}");
    assert!(told.contains("worker 0: cannot be started: its template has died"));
    assert_eq!(room.metric("start failures"), 2);
    assert!(room.supervisor.templates(room.io.now()).is_empty());
}

#[test]
fn what_a_template_has_said_is_forgotten_with_it() {
    let mut room = Room::new("w:2 --fork=auto");
    room.started();
    room.say("ready");
    let orders = room.orders();
    process::table(|table| {
        let line = &table.templates.last().expect("a template").line;
        for text in [format!("forked {} 2000001", orders[0]), "refused a thread runs".to_owned()] {
            send(line.as_raw_fd(), text.as_bytes(), MsgFlags::MSG_NOSIGNAL).expect("it is said");
        }
    });
    let first = room.supervisor.next_started(&room.io, &mut room.observer).expect("the first one");
    assert_eq!(room.pid(first), 2_000_001);
    let (template, _) = room.template();
    room.end(template, Exit::Code(1));
    assert_eq!(room.supervisor.next_started(&room.io, &mut room.observer), None);
    let told = logged();
    assert!(told.contains("worker 1: cannot be started: its template has died"), "{told}");
    assert!(!told.contains("a thread runs"), "{told}");
}

#[test]
fn a_template_that_is_not_needed_before_it_is_there_is_killed_when_it_is() {
    let mut room = Room::new("w:1 --fork=auto");
    let now = room.io.now();
    room.supervisor.fleet_mut().stop(now + ms(100), now);
    room.perform();
    assert_eq!((room.supervisor.launcher().templates(), room.supervisor.launcher().starts()), (0, 1));
    assert!(!room.supervisor.is_gone());
    assert_eq!(room.started(), []);
    let (template, _) = room.template();
    let pid = room.pid(template);
    assert_eq!(room.signals(), [(pid, true)]);
    assert_eq!(room.supervisor.launcher().starts(), 0);
    assert!(!room.supervisor.is_gone(), "it lives");
    room.end(template, Exit::Signal(Signal::SIGKILL));
    assert!(room.supervisor.is_gone());
}

#[test]
fn a_template_that_cannot_be_started_is_told() {
    let mut room = Room::new("w:1 --fork=auto");
    process::table(|table| {
        table.answers.clear();
        table.answers.push_back(crate::process::Answer::Failed { id: 1, error: nix::errno::Errno::EAGAIN });
    });
    assert_eq!(room.started(), []);
    let told = logged();
    assert!(told.contains("the template cannot be started: "), "{told}");
    assert_eq!((room.metric("start failures"), room.supervisor.launcher().templates()), (1, 0));
    assert!(room.supervisor.history.last_spawn_error.is_some());
    assert!(room.supervisor.launcher.templates.doomed.is_empty(), "it will not be there");
}

#[test]
fn answers_about_other_starts_are_none_of_a_templates() {
    use crate::process::Answer;
    let answer = |answer| process::table(|table| table.answers.push_back(answer));
    let mut room = Room::new("w:1 --fork=auto");
    process::table(|table| table.answers.clear());
    answer(Answer::Failed { id: 99, error: nix::errno::Errno::EAGAIN });
    answer(Answer::Started { id: 99, pid: Pid::from_raw(2_000_001) });
    assert_eq!(room.started(), []);
    assert_eq!((room.metric("start failures"), room.supervisor.workers().len()), (0, 0));
    let now = room.io.now();
    room.supervisor.fleet_mut().stop(now + ms(100), now);
    room.perform();
    assert_eq!(room.supervisor.launcher().starts(), 1, "it is ended as soon as it is there");
    answer(Answer::Failed { id: 1, error: nix::errno::Errno::EAGAIN });
    assert_eq!(room.started(), []);
    assert!(room.supervisor.launcher().starts() == 0 && room.supervisor.is_gone());
}

#[test]
fn a_template_that_takes_too_long_is_killed_and_named() {
    let mut room = Room::new("w:1 --fork=auto --boot-timeout-ms=2000");
    room.started();
    let (template, _) = room.template();
    let pid = room.pid(template);
    room.pass(ms(2000));
    let told = logged();
    assert!(told.contains("the template has not loaded the app within --boot-timeout-ms=2000"), "{told}");
    assert_eq!(room.signals(), [(pid, true)]);
    assert_eq!(room.supervisor.launcher().templates(), 0);

    let mut room = Room::new("w:1 --fork=auto --boot-timeout-ms=2000");
    room.started();
    room.say("ready");
    room.pass(ms(2000));
    let told = logged();
    assert!(told.contains("the template has not answered within --boot-timeout-ms=2000"), "{told}");
    assert!(told.contains("worker 0: cannot be started: its template was ended"), "{told}");
}

#[test]
fn a_template_of_new_code_that_fails_ends_the_roll_with_a_sentence() {
    let mut room = Room::new("w:1 --fork=auto --boot-timeout-ms=2000");
    let could_not = "the template of the new code could not be started: ";
    let end = |room: &mut Room, id| {
        room.supervisor.end_roll(RollEnd::TemplateFailed { template: id }).expect_err("a failure")
    };
    assert_eq!(end(&mut room, TemplateId(99)), format!("{could_not}the reason is in the log"));
    room.supervisor.history.last_spawn_error = Some("no memory".into());
    assert_eq!(end(&mut room, TemplateId(99)), format!("{could_not}no memory"));
    room.started();
    let (template, id) = room.template();
    let name = format!("the template of the new code (pid {})", room.pid(template));
    let go_on = "the old workers go on";
    assert_eq!(end(&mut room, id), format!("{name} did not load it within 2000 ms; {go_on}"));
    room.supervisor.history.unresponsive_template = Some(id);
    assert_eq!(end(&mut room, id), format!("{name} did not answer within 2000 ms; {go_on}"));
    room.supervisor.get_mut(template).expect("it is there").remember(b"SyntaxError");
    room.supervisor.note_exit(template, Exit::Code(1));
    assert_eq!(
        end(&mut room, id),
        format!("{name} ended before a worker had joined: exit code 1; {go_on}\n  SyntaxError")
    );
    room.supervisor.get_mut(template).expect("it is there").process.exec_failure =
        Some("no such file".into());
    let program = room.entry(template).process.program.clone();
    assert_eq!(end(&mut room, id), format!("{could_not}'{program}': no such file"));
    logged();
    room.supervisor.worker_is_gone(template, Exit::Code(127), &room.io, &mut room.observer);
    assert!(logged().contains(&format!("cannot be started: '{program}': no such file")));
    assert_eq!(room.metric("start failures"), 1);
}

#[test]
fn with_the_spawner_a_template_of_new_code_fails_that_is_not_there() {
    let mut room = Room::new("w:1 --fork=auto");
    room.started();
    room.say("ready");
    let order = room.orders()[0].clone();
    let worker = room.say(&format!("forked {order} 2000001"))[0];
    room.join(worker);
    room.reload();
    assert_eq!(room.supervisor.launcher().templates(), 2);
    process::table(|table| {
        table.answers.clear();
        table.answers.push_back(crate::process::Answer::SpawnerDied);
    });
    room.started();
    assert_eq!(room.supervisor.launcher().templates(), 1, "the old one");
    let why = room.rolls[0].clone().expect_err("a failure");
    assert!(why.contains("the process that starts workers has died"), "{why}");
}

#[test]
fn runtimes_that_cannot_fork_have_no_template() {
    for words in ["w:1 --fork=never", "w:1 / -- /bin/sh {socket}"] {
        let room = Room::new(words);
        let launcher = room.supervisor.launcher();
        assert_eq!((launcher.templates(), launcher.starts()), (0, 1), "{words}");
    }
}
