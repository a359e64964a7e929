//! Calls that fail when a server stops or is to be replaced.

use crate::can_inject;
use crate::load::{files_in, has_line};
use crate::support::{Faults, Server, Signal, test_worker};

fn start(faults: &Faults, arguments: &[&str]) -> Server {
    let mut server = Server::builder(test_worker()).arg("w:1").args(arguments).start_under(faults);
    server.wait_for_workers(1);
    server
}

#[test]
fn where_a_listener_cannot_refuse_newcomers_it_is_closed_as_ever() {
    if !can_inject("where_a_listener_cannot_refuse_newcomers_it_is_closed_as_ever") {
        return;
    }
    for error in ["EPERM", "EINVAL"] {
        let faults = Faults::new(&format!("any.deafen={error}"));
        let mut server = start(&faults, &[]);
        let mut client = server.client();
        client.send_request("GET", "/ping", "", b"");
        server.signal(Signal::SIGTERM);
        assert_eq!(client.read_response().text(), "pong");
        assert_eq!(server.wait_exit(), 0);
        faults.assert_all_struck();
    }
}

#[test]
fn a_new_server_that_cannot_be_started_is_a_complaint_and_changes_nothing() {
    if !can_inject("a_new_server_that_cannot_be_started_is_a_complaint_and_changes_nothing") {
        return;
    }
    for rule in ["any.pair=EMFILE", "any.fork=EAGAIN", "any.watch=ENOMEM@1"] {
        let faults = Faults::for_later(rule);
        let mut server = start(&faults, &[]);
        let files = files_in(&server.socket_dir());
        // Taken before, since a connection is watched too.
        let mut client = server.client();
        assert_eq!(client.get("/ping").text(), "pong");
        faults.turn_on();
        server.signal(Signal::SIGUSR2);
        server.wait_until("it says why", |server| {
            has_line(server, "SIGUSR2: no upgrade: the new server cannot be started")
        });
        faults.turn_off();
        faults.assert_all_struck();
        assert_eq!(client.get("/ping").text(), "pong", "{rule}");
        assert_eq!(files_in(&server.socket_dir()), files, "{rule}");
        server.signal(Signal::SIGTERM);
        drop(client);
        assert_eq!(server.wait_exit(), 0);
    }
}

#[test]
fn a_pid_file_that_cannot_be_written_is_a_complaint() {
    if !can_inject("a_pid_file_that_cannot_be_written_is_a_complaint") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let pid_file = dir.path().join("pid");
    let faults = Faults::new("any.rename=EACCES");
    let program = Server::builder(test_worker()).arg("w:1").arg("--pid-file").arg(&pid_file).faults(&faults);
    let complaint = program.run();
    assert!(complaint.code == 1 && complaint.stderr.contains("--pid-file"), "{}", complaint.stderr);
    faults.assert_all_struck();
    assert_eq!(files_in(dir.path()), Vec::<String>::new());
}
