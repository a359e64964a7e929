//! SIGTTIN and SIGTTOU: one worker more or fewer until the next start.

use crate::load::{Load, PATIENT, wait_for_busy, workers};
use crate::support::{Hold, Server, Signal, test_worker};

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
