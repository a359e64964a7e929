//! How workers leave: who is told when, what drains beside what, and what is left of a process group.

use crate::load::{self, PATIENT, tell, workers, write_script};
use crate::support::{self, Hold, Server, is_alive, test_worker};
use std::path::Path;
use std::time::Duration;

/// A server of one worker that notes its SIGTERM in the folder, with a request at work in it.
fn with_a_slow_request(notes: &Path, drains: bool) -> Option<(Server, support::Client, i32)> {
    if !load::has_program("python3") {
        crate::support::skip::skip("leaving", "there is no python3");
        return None;
    }
    let app = notes.join("app");
    write_script(&app, include_str!("worker.py"));
    let server = Server::builder(&app).arg("w:1").args(PATIENT).env("NOTES", notes);
    let mut server = server.env("DRAINS", if drains { "1" } else { "0" }).start();
    server.wait_for_workers(1);
    let pid = server.worker_pids()[0];
    let mut client = server.client();
    client.send_request("GET", "/slow", "", b"");
    server.wait_until("it is at work", |_| notes.join("at_work").exists());
    Some((server, client, pid))
}

fn is_told(notes: &Path, pid: i32) -> bool {
    notes.join(format!("told.{pid}")).exists()
}

fn let_go(notes: &Path) {
    std::fs::write(notes.join("go"), "").expect("a file can be written");
}

#[test]
fn a_worker_that_drains_is_told_when_it_is_withdrawn() {
    let notes = tempfile::tempdir().expect("a folder");
    let Some((mut server, mut client, old)) = with_a_slow_request(notes.path(), true) else { return };
    tell(&server, r#"{"op":"retire","workerId":0}"#);
    server.wait_until("SIGTERM", |_| is_told(notes.path(), old));
    assert!(is_alive(old));
    let_go(notes.path());
    assert_eq!(client.read_response().text(), old.to_string(), "what it had at work has its answer");
    server.wait_until("it is gone", |_| !is_alive(old));
}

#[test]
fn a_worker_that_does_not_drain_is_told_when_it_is_idle() {
    let notes = tempfile::tempdir().expect("a folder");
    let Some((mut server, mut client, old)) = with_a_slow_request(notes.path(), false) else { return };
    tell(&server, r#"{"op":"retire","workerId":0}"#);
    server.wait_until("its successor has joined", |server| workers(server).iter().any(|w| w.state == "idle"));
    assert!(load::stays(Duration::from_millis(300), || !is_told(notes.path(), old)));
    let_go(notes.path());
    assert_eq!(client.read_response().text(), old.to_string());
    server.wait_until("SIGTERM", |_| is_told(notes.path(), old));
    server.wait_until("it is gone", |_| !is_alive(old));
}

#[test]
fn a_stop_tells_workers_that_drain_at_once_and_others_when_they_are_idle() {
    for drains in [true, false] {
        let notes = tempfile::tempdir().expect("a folder");
        let Some((mut server, mut client, old)) = with_a_slow_request(notes.path(), drains) else { return };
        server.signal(support::Signal::SIGTERM);
        if drains {
            server.wait_until("SIGTERM", |_| is_told(notes.path(), old));
        } else {
            server.wait_until("it stops", |server| load::has_line(server, "stopping"));
            assert!(load::stays(Duration::from_millis(300), || !is_told(notes.path(), old)));
        }
        let_go(notes.path());
        assert_eq!(client.read_response().text(), old.to_string());
        assert_eq!(server.wait_exit(), 0);
        assert!(!is_alive(old));
    }
}

#[test]
fn workers_with_open_streams_drain_side_by_side_at_a_reload() {
    let mut server = Server::builder(test_worker()).args(["w:6"]).args(PATIENT).start();
    server.wait_for_workers(6);
    let streams: Vec<_> = (0..6)
        .map(|_| {
            let mut client = server.client();
            client.send_request("GET", "/chunks?n=1000000&ms=50", "", b"");
            assert_eq!(client.read_head().status(), Ok(200));
            client
        })
        .collect();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.verb(["reload"]));
        support::wait_until("all six drain", || {
            workers(&server).iter().filter(|worker| worker.state == "leaving").count() == 6
        });
        drop(streams);
        let output = reload.join().expect("the command ends");
        assert_eq!(output.code, 0, "{}", output.stderr);
    });
    assert_eq!(server.details()["needed"]["of"], 6);
    assert_eq!(workers(&server).len(), 6);
}

#[test]
fn a_serial_reload_replaces_one_after_the_other() {
    let mut server = Server::builder(test_worker()).args(["w:3", "--roll=serial"]).args(PATIENT).start();
    server.wait_for_workers(3);
    let hold = Hold::new();
    let mut busy = hold.ask(&server);
    load::wait_for_busy(&mut server, 1);
    let reload = std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.verb(["reload"]));
        while !reload.is_finished() {
            let workers = workers(&server);
            assert!(workers.len() <= 4, "never more than one beside the fleet");
            // The next one waits for this one's end.
            if workers.iter().any(|worker| worker.state == "leaving" && !worker.request.is_empty()) {
                hold.let_go();
            }
        }
        reload.join().expect("the command ends")
    });
    assert_eq!((reload.code, busy.read_response().text()), (0, "held".to_owned()), "{}", reload.stderr);
}

#[test]
fn a_draining_worker_blocks_no_cycle() {
    let mut server = Server::builder(test_worker()).args(["w:2"]).args(PATIENT).start();
    server.wait_for_workers(2);
    let hold = Hold::new();
    let mut client = hold.ask(&server);
    load::wait_for_busy(&mut server, 1);
    for slot in [0, 1] {
        assert_eq!(tell(&server, &format!(r#"{{"op":"retire","workerId":{slot}}}"#)).status, 200);
    }
    server.wait_until("both have their successors", |server| {
        workers(server).iter().filter(|worker| worker.generation == 2 && worker.state == "idle").count() == 2
    });
    assert!(workers(&server).iter().any(|worker| worker.state == "leaving"), "the busy one is still there");
    assert_eq!(server.get("/status").json()["workers"], 2, "who leaves is not counted");
    hold.let_go();
    assert_eq!(client.read_response().text(), "held");
}

#[test]
fn a_successor_takes_its_predecessors_place_in_the_stack() {
    let mut server = Server::builder(test_worker()).args(["w:4"]).args(PATIENT).start();
    server.wait_for_workers(4);
    let slot = |server: &Server| server.get("/slot").text().split(' ').next().map(str::to_owned);
    let hot = slot(&server);
    assert_eq!(server.verb(["reload"]).code, 0);
    assert_eq!(slot(&server), hot);
    let coldest =
        (0..4).map(|slot| slot.to_string()).find(|slot| Some(slot) != hot.as_ref()).expect("another");
    tell(&server, &format!(r#"{{"op":"retire","workerId":{coldest}}}"#));
    server.wait_until("it is replaced", |server| {
        let all = workers(server);
        all.len() == 4 && all.iter().any(|worker| worker.generation == 3 && worker.state == "idle")
    });
    assert_eq!(slot(&server), hot);
}

/// A command that starts the test worker's like and waits for it: as `npm start` does. The child notes its pid.
fn wrapper(dir: &Path, child: &str) -> [String; 4] {
    let place = dir.display();
    let server = format!(
        "python3 -c 'import os,sys,socket
{child}
open(\"{place}/child.\"+str(os.getpid()),\"w\")
s=socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1]); s.listen(100)
while True:
  c,_=s.accept()
  c.recv(65536)
  c.sendall(b\"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: 0\\r\\n\\r\\n\"); c.close()' \"$1\"; echo done"
    );
    ["sh".into(), "-c".into(), server, "sh".into()]
}

fn children_noted(dir: &Path) -> Vec<i32> {
    let files = load::files_in(dir);
    files.iter().filter_map(|name| name.strip_prefix("child.")?.parse().ok()).collect()
}

/// They are no children of the server's, so it does not wait until the kernel is done with them.
fn wait_for_the_end_of_all(dir: &Path) {
    support::wait_until("the end of all", || !children_noted(dir).into_iter().any(is_alive));
}

/// A server of two wrappers, whose children do that at their start.
fn with_wrappers(dir: &Path, child: &str) -> Option<Server> {
    if !load::has_program("python3") {
        crate::support::skip::skip("process groups", "there is no python3");
        return None;
    }
    let server = Server::builder(dir).arg("w:2").args(PATIENT).arg("--").args(wrapper(dir, child));
    let mut server = server.arg("{socket}").start();
    server.wait_for_workers(2);
    Some(server)
}

#[test]
fn nothing_that_a_wrapper_started_outlives_its_worker() {
    let dir = tempfile::tempdir().expect("a folder");
    let Some(mut server) = with_wrappers(dir.path(), "") else { return };
    for _ in 0..2 {
        assert_eq!(server.verb(["reload"]).code, 0);
    }
    server.wait_until("the children of those that were replaced are gone", |_| {
        children_noted(dir.path()).into_iter().filter(|&pid| is_alive(pid)).count() == 2
    });
    // Nor a killed one.
    let killed = server.worker_pids()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(killed), support::Signal::SIGKILL).expect("it lives");
    server.wait_until("it has a successor", |server| {
        server.worker_pids().len() == 2 && !server.worker_pids().contains(&killed)
    });
    server.wait_for_workers(2);
    server.wait_until("its child is gone", |_| {
        children_noted(dir.path()).into_iter().filter(|&pid| is_alive(pid)).count() == 2
    });
    server.signal(support::Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    wait_for_the_end_of_all(dir.path());
    assert_eq!(children_noted(dir.path()).len(), 7);
}

#[test]
fn what_takes_no_notice_of_sigterm_is_killed_a_second_later() {
    let dir = tempfile::tempdir().expect("a folder");
    let unresponsive = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)";
    let Some(mut server) = with_wrappers(dir.path(), unresponsive) else { return };
    assert_eq!(server.verb(["reload"]).code, 0);
    server.wait_until("the old ones are gone", |_| {
        children_noted(dir.path()).into_iter().filter(|&pid| is_alive(pid)).count() == 2
    });
    server.signal(support::Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    wait_for_the_end_of_all(dir.path());
}

#[test]
fn what_a_wrapper_s_child_says_at_its_end_is_heard() {
    const LINES: usize = 300;
    let dir = tempfile::tempdir().expect("a folder");
    // More than once is written, so that a pipe without a reader would break it off.
    let child = format!(
        r#"import signal
def end(*_):
  for step in range({LINES}): os.write(1,b"closing\n")
  os.write(2,b"closed\n"); os._exit(0)
signal.signal(signal.SIGTERM,end)"#
    );
    let Some(mut server) = with_wrappers(dir.path(), &child) else { return };
    assert_eq!(server.verb(["reload"]).code, 0);
    server.signal(support::Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    // Of two that were replaced and two that were stopped, under the names of their workers.
    for worker in 0..2 {
        let is_one = |line: &&String| **line == format!("[worker {worker}] closing");
        server.wait_until("all that they have said", |server| {
            let count = server.stdout_lines().iter().filter(is_one).count();
            count == 2 * LINES
                && server.stderr_text().matches(&format!("[worker {worker}] closed\n")).count() == 2
        });
    }
}
