//! `rip-server status`: the table, and the same as JSON.

use super::{busy, busy_with};
use crate::load::{Gate, play_in_time};
use crate::support::{Answer, Hold, RawWorker, Server, test_worker, wait_until};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const COLUMNS: [&str; 9] = ["slot", "gen", "pid", "state", "requests", "reloads", "rss", "age", "last exit"];
/// Longer than any test needs.
const LONG_MS: u64 = 60_000;

/// The table: lines above it, and a row a worker.
struct Table {
    text: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn of(server: &Server) -> Table {
        let output = server.verb(["status"]);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{}", output.stdout);
        Table::parse(output.stdout)
    }

    fn parse(text: String) -> Table {
        let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with("slot"));
        let header: Vec<char> =
            lines.next().unwrap_or_else(|| panic!("no header:\n{text}")).chars().collect();
        let header: String = header.into_iter().collect();
        // Columns stand below each other, so a cell begins where its title does.
        let starts: Vec<usize> = COLUMNS
            .iter()
            .map(|title| header.find(title).unwrap_or_else(|| panic!("no column {title}:\n{text}")))
            .collect();
        assert!(starts.is_sorted(), "the columns' order:\n{text}");
        let rows = lines.map(|line| cells(line, &starts)).collect();
        Table { rows, text }
    }

    fn info(&self, slot: &str, generation: &str) -> Option<&[String]> {
        self.rows.iter().find(|info| info[0] == slot && info[1] == generation).map(Vec::as_slice)
    }

    fn cell(&self, slot: &str, generation: &str, title: &str) -> &str {
        let column = COLUMNS.iter().position(|other| *other == title).expect("a column");
        let info = self.info(slot, generation);
        &info.unwrap_or_else(|| panic!("no row {slot} of generation {generation}:\n{}", self.text))[column]
    }

    fn has_line(&self, words: &str) -> bool {
        self.text.lines().any(|line| line.contains(words))
    }
}

fn cells(line: &str, starts: &[usize]) -> Vec<String> {
    let letters: Vec<char> = line.chars().collect();
    let cell = |from: usize, to: usize| -> String {
        letters.iter().take(to).skip(from).collect::<String>().trim().to_owned()
    };
    let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
    starts.iter().zip(ends).map(|(from, to)| cell(*from, to)).collect()
}

#[test]
fn the_table_tells_of_the_app_and_of_each_worker() {
    let mut server = Server::with_test_worker(&["w:2"]);
    server.wait_for_workers(2);
    let mut client = server.client();
    for _ in 0..3 {
        assert_eq!(client.get("/ping").status, 200);
    }
    let _busy = busy(&mut server);
    let table = Table::of(&server);
    let first = table.text.lines().next().expect("a line");
    for words in ["test-worker", "healthy", "up ", &format!("pid {}", server.pid())] {
        assert!(first.contains(words), "'{words}' is missing: {first}");
    }
    assert!(table.has_line(&test_worker().display().to_string()), "the release:\n{}", table.text);
    assert!(table.has_line(&server.address().to_string()), "the listener:\n{}", table.text);
    for words in ["0 now", "at the deepest", "at the longest", "needed 1 of 2 in the last minute"] {
        assert!(table.has_line(words), "'{words}' is missing:\n{}", table.text);
    }
    assert_eq!(table.rows.len(), 2, "{}", table.text);
    // The last one to join is on top of the stack, and had everything.
    let (busy, idle) = match table.cell("0", "1", "state").starts_with("busy") {
        true => ("0", "1"),
        false => ("1", "0"),
    };
    let state = table.cell(busy, "1", "state");
    let words: Vec<&str> = state.split(' ').collect();
    assert!(matches!(words[..], ["busy", time, "GET", "/sleep"] if time.ends_with('s')), "{state}");
    assert_eq!(table.cell(idle, "1", "state"), "idle");
    assert_eq!(table.cell(idle, "1", "requests"), "0");
    let pids = server.worker_pids();
    for slot in ["0", "1"] {
        assert!(pids.contains(&table.cell(slot, "1", "pid").parse().expect("a pid")), "{}", table.text);
        assert!(table.cell(slot, "1", "rss").ends_with('M'), "{}", table.text);
        assert!(table.cell(slot, "1", "age").ends_with('s'), "{}", table.text);
        assert_eq!(table.cell(slot, "1", "last exit"), "-");
    }
}

#[test]
fn the_table_counts_requests_and_tells_the_last_exit() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let mut client = server.client();
    for _ in 0..5 {
        assert_eq!(client.get("/ping").status, 200);
    }
    assert_eq!(Table::of(&server).cell("0", "1", "requests"), "5");
    // Not tried again, since a POST may have had its effect.
    let victim = server.worker_pids();
    assert_eq!(server.client().post("/die", b"").status, 502);
    server.wait_until("another worker", |server| {
        let pids = server.worker_pids();
        pids.len() == 1 && pids != victim
    });
    let table = Table::of(&server);
    assert_eq!(table.rows.len(), 1, "{}", table.text);
    let info = &table.rows[0];
    assert_eq!((info[4].as_str(), info[8].as_str()), ("0", "SIGKILL"), "{}", table.text);
}

#[test]
fn a_worker_that_boots_is_seen_booting() {
    let gate = Gate::new();
    gate.hold();
    let mut server = Server::builder(gate.app()).arg("w:1").start();
    server.wait_until("the worker's start", |_| !gate.starts().is_empty());
    let table = Table::of(&server);
    assert_eq!(table.cell("0", "1", "state"), "booting");
    assert!(table.text.lines().next().is_some_and(|line| line.contains("starting")), "{}", table.text);
    gate.let_go();
    server.wait_for_workers(1);
    let table = Table::of(&server);
    assert_eq!(table.cell("0", "1", "state"), "idle");
    assert!(table.text.lines().next().is_some_and(|line| line.contains("healthy")), "{}", table.text);
}

#[test]
fn a_worker_that_finishes_while_its_successor_serves_is_seen_leaving() {
    let mut server = Server::with_test_worker(&["w:1", "--read-timeout-ms=60000"]);
    server.wait_for_workers(1);
    let _busy = busy(&mut server);
    assert_eq!(server.control("POST", "/control", r#"{"op":"retire","workerId":0}"#).status, 200);
    server.wait_until("its successor", |server| {
        let table = Table::of(server);
        table.rows.len() == 2 && table.rows.iter().any(|info| info[3] == "idle")
    });
    let table = Table::of(&server);
    let leaving: Vec<&Vec<String>> =
        table.rows.iter().filter(|info| info[1] == "1" && info[3].starts_with("leaving")).collect();
    assert!(matches!(leaving[..], [info] if info[3].ends_with("GET /sleep")), "{}", table.text);
}

#[test]
fn a_worker_whose_answer_does_not_end_is_seen_stuck() {
    // It gets SIGTERM then, and a second later SIGKILL; a machine may be too slow to see it between.
    play_in_time("a stuck worker in the table", || {
        let mut server =
            Server::with_test_worker(&["w:1", "--read-timeout-ms=100", "--drain-timeout-ms=100"]);
        server.wait_for_workers(1);
        let mut client = server.client();
        client.send_request("GET", &format!("/sleep?ms={LONG_MS}"), "", b"");
        let mut is_stuck = false;
        server.wait_until("it is stuck, or gone by now", |server| {
            let table = Table::of(server);
            is_stuck = table.info("0", "1").is_some_and(|info| info[3].starts_with("stuck"));
            is_stuck || table.info("0", "1").is_none()
        });
        is_stuck.then_some(())
    });
}

#[test]
fn a_server_whose_workers_all_hang_says_so_until_one_is_free() {
    let server = Server::without_workers(&["--read-timeout-ms=100", "--json"]);
    let goes_on = Arc::new(AtomicBool::new(false));
    let workers = [1, 2].map(|id| {
        let goes_on = goes_on.clone();
        RawWorker::join(&server, id, move |request| {
            wait_until("it may answer", || request.target != "/hang" || goes_on.load(Ordering::Relaxed));
            Answer::ok("")
        })
    });
    let summary = || {
        let response = server.get("/status");
        (response.status, response.json()["status"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(server.get("/hang").status, 504);
    assert_eq!(summary(), (200, "healthy".into()), "the other one is free");
    assert_eq!(server.get("/hang").status, 504);
    assert_eq!(summary(), (503, "hung".into()));
    assert_eq!((server.details()["status"].as_str(), server.get("/server").status), (Some("hung"), 200));
    goes_on.store(true, Ordering::Relaxed);
    wait_until("a worker is free again", || summary() == (200, "healthy".into()));
    drop(workers);
}

#[test]
fn what_waited_is_told_when_it_is_over() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let hold = Hold::new();
    let mut busy = busy_with(&mut server, &hold.target());
    let mut waiting = server.client();
    waiting.send_request("GET", "/ping", "", b"");
    server.wait_until("one waits", |server| server.details()["queue"]["now"] == 1);
    assert!(Table::of(&server).has_line("1 now, 1 at the deepest"));
    hold.let_go();
    assert_eq!((busy.read_response().status, waiting.read_response().status), (200, 200));
    let table = Table::of(&server);
    assert!(table.has_line("0 now, 1 at the deepest"), "{}", table.text);
    assert!(!table.has_line("deepest, 0 ms"), "it has waited:\n{}", table.text);
}

#[test]
fn json_says_the_same_as_the_control_socket() {
    let mut server = Server::with_test_worker(&["w:2"]);
    server.wait_for_workers(2);
    let output = server.verb(["status", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert_eq!(output.stdout.matches('\n').count(), 1, "one line: {}", output.stdout);
    let (mut said, mut reported): (Value, Value) =
        (serde_json::from_str(&output.stdout).expect("JSON"), server.details());
    assert_eq!(
        (&said["app"], &said["status"], &said["workers"]),
        (&"test-worker".into(), &"healthy".into(), &2.into())
    );
    for worker in said["workerList"].as_array().expect("a list") {
        for key in [
            "slot",
            "generation",
            "pid",
            "state",
            "requests",
            "reloads",
            "rssBytes",
            "pssBytes",
            "ageSeconds",
        ] {
            assert!(!worker[key].is_null(), "{key}: {worker}");
        }
        assert!(worker.as_object().is_some_and(|worker| worker.contains_key("lastExit")), "{worker}");
    }
    // What may change between two looks.
    for value in [&mut said, &mut reported] {
        value["uptime"] = 0.into();
        value["time"] = 0.into();
        for worker in value["workerList"].as_array_mut().expect("a list") {
            worker["ageSeconds"] = 0.into();
            worker["rssBytes"] = 0.into();
            worker["pssBytes"] = 0.into();
        }
    }
    assert_eq!(said, reported);
}

#[test]
fn the_depth_of_the_stack_tells_how_many_workers_were_needed() {
    let mut server = Server::with_test_worker(&["w:3"]);
    server.wait_for_workers(3);
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let mut client = server.client();
            client.send_request("GET", &format!("/sleep?ms={LONG_MS}"), "", b"");
            client
        })
        .collect();
    server.wait_until("two at work", |server| server.details()["needed"]["workers"] == 2);
    assert!(Table::of(&server).has_line("needed 2 of 3 in the last minute"));
    drop(clients);
}

#[test]
fn worker_that_rests_after_a_busy_answer_counts_as_busy() {
    let server = Server::without_workers(&[]);
    let busy = "HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n";
    let _worker = RawWorker::join(&server, 1, move |_| Answer::bytes(busy));
    // The rest is short, so a slow machine may miss one.
    wait_until("a look while it rests", || {
        assert_eq!(server.get("/").status, 503);
        let worker = &server.details()["workerList"][0];
        worker["state"] == "busy" && worker["request"].is_null()
    });
    wait_until("it has rested", || server.details()["workerList"][0]["state"] == "idle");
}
