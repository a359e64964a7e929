//! Few descriptors: the oldest quiet connection makes room, and where none is quiet, accepting pauses and goes on.

use crate::support::{Client, RawWorker, Server, Signal, TEST_TIMEOUT, comes_true, test_worker};
use crate::tools::{Gate, asking, kill_9, server_behind, settled_lines, wait_for_load, word_on_stderr};
use std::time::{Duration, Instant};

/// Soft and hard; the server keeps 64 of them free.
const FEW: &str = r#"ulimit -n 128; exec "$@""#;
/// More connections than that.
const MANY: usize = 110;
/// So many at once that descriptors run out in one turn.
const BURST: usize = 150;

fn few_descriptors() -> (Server, RawWorker, Gate) {
    let server = server_behind(FEW, "/bin/true").args(["w:0", "--json"]).start();
    let gate = Gate::default();
    let holding = gate.clone();
    let worker = RawWorker::join(&server, 1, move |request| match request.target.as_str() {
        "/held" => holding.pass(request),
        path => crate::support::Answer::ok(path),
    });
    (server, worker, gate)
}

/// Asks once more on a connection; whether it is still there.
fn still_serves(client: &mut Client) -> bool {
    if client.try_send("GET /again HTTP/1.1\r\nHost: a\r\n\r\n").is_err() {
        return false;
    }
    let Err(broken) = client.read_response_within(TEST_TIMEOUT) else { return true };
    assert_eq!(broken.response.status, 0, "a quiet connection is closed without a word");
    false
}

#[test]
fn near_the_bound_the_connection_that_was_quiet_for_longest_makes_room() {
    let (mut server, _worker, _gate) = few_descriptors();
    let mut clients: Vec<Client> = Vec::new();
    for index in 0..MANY {
        if index == 40 {
            // Not the oldest any more.
            assert!(still_serves(&mut clients[0]));
        }
        let mut client = server.client();
        assert_eq!(client.get("/").status, 200, "client {index}");
        clients.push(client);
    }
    let open: Vec<bool> = clients.iter_mut().map(still_serves).collect();
    let closed = open.iter().filter(|is_open| !**is_open).count();
    // 128 descriptors less 68 that are kept free.
    assert_eq!(closed, MANY - 60, "one for each that came, and none besides");
    // In order of their last request: number 0 comes after number 39.
    let first_open = open.iter().skip(1).position(|is_open| *is_open).expect("some are open") + 1;
    assert!(open[first_open..].iter().all(|is_open| *is_open), "{open:?}");
    assert_eq!(open[0], first_open <= 40, "{open:?}");
    let lines = settled_lines(&mut server);
    assert!(lines.iter().all(|line| line["status"] == 200), "no line for a closed connection");
}

#[test]
fn near_the_bound_a_connection_with_a_request_stays() {
    let (mut server, _worker, gate) = few_descriptors();
    let mut held = asking(&server, "/held");
    wait_for_load(&mut server, 1, 0);
    let mut begun = server.client();
    begun.send("GET /begun HTTP/1.1\r\n");
    let mut later: Vec<Client> = (0..MANY)
        .map(|_| {
            let mut client = server.client();
            assert_eq!(client.get("/server").text(), "ok");
            client
        })
        .collect();
    assert!(!still_serves_server(&mut later[0]), "the oldest quiet one made room");
    gate.open();
    assert_eq!(held.read_response().status, 200);
    begun.send("Host: a\r\n\r\n");
    assert_eq!(begun.read_response().status, 200);
}

#[test]
fn a_burst_beyond_the_bound_loses_no_request() {
    let (server, worker, _gate) = few_descriptors();
    server.signal(Signal::SIGSTOP);
    // The kernel takes them all, with their requests.
    let clients = (0..BURST).map(|_| server.client()).map(|mut client| {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        client
    });
    let clients: Vec<Client> = clients.collect();
    server.signal(Signal::SIGCONT);
    let is_served =
        |mut client: Client| client.read_response_within(TEST_TIMEOUT).is_ok_and(|it| it.status == 200);
    let served = clients.into_iter().map(is_served).filter(|is_served| *is_served).count();
    assert_eq!((served, worker.request_count()), (BURST, BURST));
}

fn still_serves_server(client: &mut Client) -> bool {
    client.try_send("GET /server HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
        && client.read_response_within(TEST_TIMEOUT).is_ok()
}

/// Connections in the middle of a head: not quiet, so none of them may be closed to make room.
fn exhaust(server: &mut Server) -> Vec<Client> {
    let begun = (0..BURST).map(|_| server.client()).map(|mut client| {
        // Whether it was kept is found out later.
        let _ = client.try_send("GET /begun HTTP/1.1\r\n");
        client
    });
    let begun = begun.collect();
    let (mut count, mut since) = (0, Instant::now());
    server.wait_until("nothing moves any more", |server| {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the server lives");
        let now = descriptors.count();
        if now != count {
            (count, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(400)
    });
    begun
}

/// What it has used of the CPU so far, in hundredths of a second.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let behind_name = stat.rsplit(") ").next().unwrap_or_default();
    let words: Vec<u64> = behind_name.split(' ').map(|phrase| phrase.parse().unwrap_or(0)).collect();
    words[11] + words[12]
}

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_by_itself() {
    let (mut server, _worker, _gate) = few_descriptors();
    let mut begun = exhaust(&mut server);
    // One more that waits in the backlog: nothing spins for it. The pause is what is looked at.
    let mut waiting = asking(&server, "/waiting");
    let before = cpu_ticks(server.pid());
    let used = || cpu_ticks(server.pid()) - before;
    assert!(
        !comes_true(Duration::from_secs(1), || used() >= 30),
        "{} hundredths of a second of CPU in a second of waiting",
        used()
    );
    // Those that were accepted are served; as they go, the others are accepted, and nobody is lost.
    for (index, client) in begun.drain(..).enumerate() {
        let mut client = client;
        let remaining = client.try_send("Host: a\r\nConnection: close\r\n\r\n");
        let status = client.read_response_within(TEST_TIMEOUT).map(|response| response.status);
        assert_eq!((remaining.is_ok(), status.ok()), (true, Some(200)), "client {index}");
    }
    assert_eq!(waiting.read_response().status, 200);
    assert_eq!(server.get("/new").status, 200);
}

#[test]
fn without_descriptors_the_verbs_still_answer() {
    let (mut server, _worker, _gate) = few_descriptors();
    let _begun = exhaust(&mut server);
    assert_eq!(server.details()["workers"], 1);
}

#[test]
fn a_verb_that_found_no_descriptor_is_answered_when_there_are_some() {
    let (server, _worker, _gate) = few_descriptors();
    server.signal(Signal::SIGSTOP);
    // All of them are there in one turn, the verb behind them.
    let begun: Vec<Client> = (0..BURST).map(|_| asking(&server, "/")).collect();
    let mut control = Client::connect_unix(&server.control_socket());
    control.send_request("GET", "/status", "", b"");
    server.signal(Signal::SIGCONT);
    assert_eq!(control.read_response().status, 200);
    drop(begun);
}

#[test]
fn a_worker_that_dies_without_descriptors_is_replaced() {
    let mut server = server_behind(FEW, test_worker()).args(["w:1", "--json"]).start();
    let pid: i32 = server.get("/pid").text().parse().expect("a pid");
    let begun = exhaust(&mut server);
    kill_9(pid);
    word_on_stderr(&mut server, &[&pid.to_string(), "SIGKILL"]);
    drop(begun);
    let response = server.get("/pid");
    assert_eq!(response.status, 200, "{}", response.text());
    assert_ne!(response.text(), pid.to_string());
}

/// Under so many descriptors, with the test worker.
fn start_under(descriptors: u64, words: &[&str]) -> crate::support::ServerBuilder {
    let wrapper = format!(r#"ulimit -n {descriptors}; exec "$@""#);
    server_behind(&wrapper, test_worker()).args(words)
}

/// The same to its end.
fn run_under(descriptors: u64, words: &[&str]) -> crate::support::Output {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = std::process::Command::new("sh");
    let shell = format!(r#"ulimit -n {descriptors}; exec "$@""#);
    command.args(["-c", &shell, "sh"]).arg(crate::support::server_program()).arg(test_worker());
    command.args(words).arg("http:127.0.0.1:0").arg("--socket-dir").arg(dir.path().join("s"));
    crate::support::server::output(command)
}

#[test]
fn a_limit_that_is_too_low_is_refused_with_the_number_that_would_do() {
    for (descriptors, workers) in [(20, 1), (40, 4), (100, 40)] {
        let words = format!("w:{workers}");
        let output = run_under(descriptors, &[&words]);
        assert_eq!(output.code, 1, "{}", output.stderr);
        assert_eq!(output.stdout, "");
        let line = output.stderr.trim();
        assert!(!line.contains('\n') && line.contains(&format!("may have {descriptors} ")), "{line}");
        let would_do =
            line.split("ulimit -n ").nth(1).and_then(|remaining| remaining.split(' ').next()?.parse().ok());
        let would_do: u64 = would_do.unwrap_or_else(|| panic!("no number: {line}"));
        // One less would not, and that many do.
        assert_eq!(run_under(would_do - 1, &[&words]).code, 1);
        let mut server = start_under(would_do, &[&words]).start();
        server.wait_for_workers(workers);
        assert_eq!(server.get("/ping").text(), "pong");
        let large = vec![b'x'; 300_000];
        assert_eq!(server.client().post("/sha", &large).status, 200);
    }
}

#[test]
fn many_workers_under_few_descriptors_all_start_and_find_room_for_bodies() {
    const WORKERS: u64 = 40;
    const BODIES: usize = 120;
    let mut server = start_under(256, &["w:40", "--json", "--queue-timeout-ms=60000"]).start();
    server.wait_for_workers(WORKERS);
    let large = vec![b'x'; 200_000];
    let mut clients: Vec<Client> = (0..BODIES)
        .map(|_| {
            let mut client = server.client();
            client
                .send("POST /sha HTTP/1.1\r\nHost: a\r\nContent-Length: 200001\r\nConnection: close\r\n\r\n");
            client
        })
        .collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            let large = &large;
            scope.spawn(move || {
                client.send(large);
                client.send("!");
                assert_eq!(client.read_response().status, 200);
            });
        }
    });
    assert_eq!(server.verb(["reload"]).code, 0, "there is room for successors");
    assert_eq!(server.get("/ping").text(), "pong");
}
