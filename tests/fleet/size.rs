//! SIGTTIN and SIGTTOU: one worker more or fewer until the next start.

use crate::load::{Gate, Load, PATIENT, wait_for_busy, workers};
use crate::support::{Hold, Server, Signal, test_worker};
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// The server has so many workers, and all of them serve.
fn wait_for_size(server: &mut Server, count: usize) {
    server.wait_until(&format!("{count} workers"), |server| {
        let workers = workers(server);
        let serving =
            workers.iter().filter(|worker| worker.state == "idle" || worker.state == "busy").count();
        serving == count && workers.len() == count
    });
}

#[test]
fn ttin_starts_one_worker_more_and_ttou_ends_one_and_no_request_is_lost() {
    let mut server = Server::builder(test_worker()).arg("w:2").args(PATIENT).start();
    server.wait_for_workers(2);
    let load = Load::start(&server, "/ping");
    for size in [3, 4] {
        server.signal(Signal::SIGTTIN);
        wait_for_size(&mut server, size);
    }
    for size in [3, 2, 1] {
        server.signal(Signal::SIGTTOU);
        wait_for_size(&mut server, size);
    }
    load.end();
    let words = server.stderr_text();
    assert!(words.contains("SIGTTIN: w:4 until the next start"), "{words}");
    assert!(words.contains("SIGTTOU: w:1 until the next start"), "{words}");
    server.signal(Signal::SIGTTOU);
    server.wait_until("the refusal", |server| server.stderr_text().contains("one worker is the fewest"));
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn ttou_lets_a_busy_worker_finish_what_it_has() {
    let mut server = Server::builder(test_worker()).arg("w:2").args(PATIENT).start();
    server.wait_for_workers(2);
    let hold = Hold::new();
    let clients = [hold.ask(&server), hold.ask(&server)];
    wait_for_busy(&mut server, 2);
    server.signal(Signal::SIGTTOU);
    server.wait_until("the words", |server| server.stderr_text().contains("SIGTTOU: w:1 until"));
    hold.let_go();
    for mut client in clients {
        assert_eq!(client.read_response().text(), "held");
    }
    wait_for_size(&mut server, 1);
}

#[test]
fn ttou_takes_a_slot_that_cannot_start_and_leaves_who_serves() {
    let gate = Gate::new();
    let mut server = Server::builder(gate.app()).arg("w:2").args(PATIENT).start();
    server.wait_for_workers(2);
    gate.break_build();
    let pids: Vec<i32> = workers(&server).iter().map(|worker| worker.pid).collect();
    kill(Pid::from_raw(pids[1]), Signal::SIGKILL).expect("it lives");
    server.wait_until("the wait", |server| server.stderr_text().contains("the next start is in"));
    // Between two starts nobody is in it; while somebody boots there, that one's end is waited for.
    server.signal(Signal::SIGTTOU);
    server.wait_until("the size", |server| {
        let details = server.details();
        details["waitingSlots"] == serde_json::json!([]) && workers(server).len() == 1
    });
    assert_eq!(workers(&server)[0].pid, pids[0]);
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn ttou_while_a_worker_boots_waits_for_it() {
    let gate = Gate::new();
    let mut server = Server::builder(gate.app()).arg("w:1").args(PATIENT).start();
    server.wait_for_workers(1);
    gate.hold();
    server.signal(Signal::SIGTTIN);
    server.wait_until("the start", |server| workers(server).len() == 2);
    server.signal(Signal::SIGTTOU);
    server.wait_until("the words", |server| server.stderr_text().contains("SIGTTOU: w:1 until"));
    assert_eq!(server.get("/ping").text(), "pong");
    assert_eq!(server.details()["status"], "healthy");
    gate.let_go();
    wait_for_size(&mut server, 1);
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn bounds_of_a_fleet_that_grows_move_both() {
    let mut server = Server::builder(test_worker()).arg("w:2..3").args(PATIENT).start();
    server.wait_for_workers(2);
    server.signal(Signal::SIGTTIN);
    server.wait_until("the words", |server| server.stderr_text().contains("SIGTTIN: w:3..4 until"));
    wait_for_size(&mut server, 3);
    server.signal(Signal::SIGTTOU);
    server.wait_until("the words", |server| server.stderr_text().contains("SIGTTOU: w:2..3 until"));
    wait_for_size(&mut server, 2);
}

#[test]
fn a_server_without_workers_of_its_own_has_no_size_to_change() {
    let mut server = Server::without_workers(&[]);
    server.signal(Signal::SIGTTIN);
    server.wait_until("the words", |server| {
        server.stderr_text().contains("SIGTTIN: nothing to do (w:0 starts")
    });
}
