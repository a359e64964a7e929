//! What workers print, line by line.

use super::*;
use crate::reactor::io::token::Target;
use crate::reactor::simulation::process::Offspring;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

/// A worker that boots, what it writes its two outputs to, and where they are passed on to.
fn with_outputs() -> (Room, WorkerKey, File, File) {
    let mut room = Room::new("w:1 --fork=never");
    let [stdout, stderr] = LOG_FILES.map(|name| File::create(room.dir.path().join(name)).expect("a file"));
    room.observer = Observer::new(Logs::in_files([stdout, stderr]), false, room.io.now());
    let worker = room.started()[0];
    let (out, stdout) = nix::unistd::pipe().expect("a pipe");
    let (err, stderr) = nix::unistd::pipe().expect("a pipe");
    room.supervisor.add_outputs(worker, [out, err], &room.io);
    let file = |fd: OwnedFd| File::from(fd);
    (room, worker, file(stdout), file(stderr))
}

const LOG_FILES: [&str; 2] = ["stdout", "stderr"];

impl Room {
    /// What is passed on of what the workers have printed: of stdout, and of stderr.
    fn read_pipes(&mut self) -> (String, String) {
        for key in self.supervisor.outputs.keys() {
            self.supervisor.read_pipe(key, &mut self.io, &mut self.observer);
        }
        self.passed_on()
    }

    /// Whether a start that failed has said it.
    fn knows_line(&mut self, line: &str) -> bool {
        let now = self.io.now();
        self.supervisor.outputs.folds.is_repeated(&mut Default::default(), line.as_bytes(), now)
    }

    /// Lines since this was asked last, without the name in front of each.
    fn passed_on(&mut self) -> (String, String) {
        self.observer.flush(self.io.now());
        let [out, err] = LOG_FILES.map(|name| {
            let path = self.dir.path().join(name);
            let text = std::fs::read_to_string(&path).expect("text");
            let file = File::options().write(true).open(&path).expect("a file");
            file.set_len(0).expect("it is cut");
            let text = text.trim_start_matches('\0');
            text.lines()
                .map(|line| line.strip_prefix("[worker 0] ").expect("a name").to_owned() + "\n")
                .collect()
        });
        (out, err)
    }
}

#[test]
fn lines_are_passed_on_when_they_are_whole() {
    let (mut room, worker, mut stdout, mut stderr) = with_outputs();
    stdout.write_all(b"one\ntw").expect("written");
    stderr.write_all(b"warning\n").expect("written");
    assert_eq!(room.read_pipes(), ("one\n".into(), "warning\n".into()));
    stdout.write_all(b"o\n\nthree\nfour").expect("written");
    assert_eq!(room.read_pipes(), ("two\n\nthree\n".into(), String::new()));
    assert_eq!(room.entry(worker).said.last_words, ["warning"], "of stderr alone");
    assert_eq!(room.read_pipes(), (String::new(), String::new()));
    drop(stdout);
    assert_eq!(room.read_pipes().0, "four\n", "an unfinished line is a line");
    assert_eq!(room.supervisor.outputs.keys().len(), 1);
    stderr.write_all(b"the end").expect("written");
    room.supervisor.finish_output(worker, &mut room.io, &mut room.observer);
    assert_eq!(room.passed_on().1, "the end\n");
    assert!(room.supervisor.outputs.keys().is_empty());
    room.supervisor.read_pipe(0, &mut room.io, &mut room.observer);
}

/// It ends, and leaves a child that takes no notice of SIGTERM.
fn leave_a_child(room: &mut Room, worker: WorkerKey) {
    let child = Offspring { group: room.pid(worker), is_told: false, is_unresponsive: true };
    process::table(|table| table.children.push(child));
    room.end(worker, Exit::Signal(Signal::SIGTERM));
}

#[test]
fn what_a_worker_has_left_in_its_group_is_heard_until_nobody_is_left() {
    let (mut room, worker, mut stdout, mut stderr) = with_outputs();
    room.join(worker);
    let now = room.io.now();
    room.supervisor.has_answered(worker, now);
    stdout.write_all(b"its last word").expect("written");
    leave_a_child(&mut room, worker);
    assert_eq!(room.passed_on().0, "its last word\n", "an unfinished line is a line");
    // Its successor has its key.
    assert_eq!(room.remove_closed(), [worker]);
    let next = room.started()[0];
    assert_eq!(next, worker);
    stdout.write_all(b"closing\nthe data").expect("written");
    stderr.write_all(b"a warning\n").expect("written");
    assert_eq!(room.read_pipes(), ("closing\n".into(), "a warning\n".into()));
    assert!(room.entry(next).said.last_words.is_empty(), "the successor has said nothing");
    room.reap_others();
    assert_eq!(room.supervisor.outputs.keys().len(), 2, "somebody is left");
    stdout.write_all(b"base").expect("written");
    process::table(|table| table.children.clear());
    room.reap_others();
    assert_eq!(room.passed_on().0, "the database\n");
    assert!(room.supervisor.outputs.keys().is_empty() && room.supervisor.groups.is_empty());
}

#[test]
fn who_is_waited_for_no_longer_is_heard_no_longer() {
    let (mut room, worker, mut stdout, _stderr) = with_outputs();
    leave_a_child(&mut room, worker);
    let now = room.io.now();
    room.supervisor.expire_groups(now + ms(1000));
    assert!(!room.supervisor.has_ended_children());
    stdout.write_all(b"the end\n").expect("written");
    room.supervisor.expire_groups(now + ms(2000));
    assert!(room.supervisor.has_ended_children(), "so that its outputs are closed in this tick");
    room.reap();
    assert_eq!(room.passed_on().0, "the end\n");
    assert!(room.supervisor.outputs.keys().is_empty() && !room.supervisor.has_ended_children());
}

#[test]
fn a_line_without_an_end_is_cut() {
    const MAX_LINE_BYTES: usize = 8 * 1024;
    let (mut room, _, mut stdout, _stderr) = with_outputs();
    stdout.write_all(&[b'x'; MAX_LINE_BYTES - 1]).expect("written");
    assert_eq!(room.read_pipes().0.len(), 0);
    stdout.write_all(b"x").expect("written");
    assert_eq!(room.read_pipes().0.len(), MAX_LINE_BYTES + 1);
    stdout.write_all(b"y\n").expect("written");
    assert_eq!(room.read_pipes().0, "y\n", "nothing of it is left");
}

#[test]
fn a_chatty_worker_is_read_on_in_the_next_tick() {
    const PIPE_TICK_BYTES: usize = 64 * 1024;
    let (mut room, _, mut stdout, _stderr) = with_outputs();
    let target = |room: &Room| Target::Pipe(room.supervisor.outputs.keys()[0]);
    let text = format!("{}\n", "x".repeat(1023)).repeat(64);
    stdout.write_all(&text.as_bytes()[1..]).expect("written");
    assert_eq!(room.read_pipes().0.len(), PIPE_TICK_BYTES - 1);
    assert!(!room.io.is_ready(&target(&room)));
    stdout.write_all(text.as_bytes()).expect("written");
    assert_eq!(room.read_pipes().0.len(), PIPE_TICK_BYTES);
    assert!(room.io.is_ready(&target(&room)), "no event will tell");
    assert!(!room.io.take_scratch().is_empty(), "it is given back");
}

#[test]
fn what_a_start_that_failed_has_said_is_not_said_again_by_the_next_one() {
    let (mut room, worker, _stdout, mut stderr) = with_outputs();
    stderr.write_all(b"loading\nno such module\n").expect("written");
    assert_eq!(room.read_pipes().1, "loading\nno such module\n");
    room.end(worker, Exit::Code(1));
    room.pass(Duration::from_secs(5));
    let next = room.started()[0];
    let (out, _keeps) = nix::unistd::pipe().expect("a pipe");
    let (err, stderr) = nix::unistd::pipe().expect("a pipe");
    let mut stderr = File::from(stderr);
    room.supervisor.add_outputs(next, [out, err], &room.io);
    stderr.write_all(b"loading\nanother module\n").expect("written");
    room.passed_on();
    assert_eq!(room.read_pipes().1, "another module\n");
    assert_eq!(room.entry(next).said.last_words, ["loading", "another module"], "but it is known");
    room.join(next);
    room.supervisor.count_request(next);
    stderr.write_all(b"loading\n").expect("written");
    assert_eq!(room.read_pipes().1, "loading\n", "of a request");
    room.supervisor.begin_roll();
    assert!(!room.knows_line("loading"), "new code may fail anew");
}

#[test]
fn a_worker_that_has_served_says_nothing_about_starts() {
    let (mut room, worker, _stdout, mut stderr) = with_outputs();
    stderr.write_all(b"loading\n").expect("written");
    room.read_pipes();
    room.join(worker);
    let now = room.io.now();
    room.supervisor.has_answered(worker, now);
    room.end(worker, Exit::Code(1));
    assert!(!room.knows_line("loading"));
}
