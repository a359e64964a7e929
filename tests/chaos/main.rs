//! Everything at once on one fleet: clients of all kinds, workers that die, hang, leak and lie, kills from outside,
//! reloads of good and of broken builds. At the end each request is accounted for.
//!
//! `RIP_SEED=<n>` repeats the choice of actions (not their moments). The long one:
//! `RIP_CHAOS_SECONDS=600 cargo test --test chaos -- --ignored --nocapture`

mod ask;
mod audit;
mod calm;
mod clients;
#[path = "../support/load.rs"]
mod load;
#[path = "../worker/noise.rs"]
mod noise;
mod random;
#[path = "../support/mod.rs"]
mod support;
#[path = "../tools/mod.rs"]
mod tools;
mod trouble;

use ask::{Ask, Outcome};
use audit::Evidence;
use clients::{CREW, Player, Style};
use load::{Event, Gate};
use random::Random;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};
use support::{Server, wait_until};
use trouble::{DRAIN_TIMEOUT, READ_TIMEOUT, Report, measure_stalls, operate, vandalise};

const WORKERS_AT_REST: usize = 3;
/// The client that looks before and after.
const ONLOOKER: usize = 99;
/// No reload is begun so short before the end, since it may take long.
const LAST_RELOAD_BEFORE: Duration = Duration::from_secs(4);
/// In such a time everything happens.
const LONG: Duration = Duration::from_secs(300);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seed() -> u64 {
    let clock = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    number("RIP_SEED").unwrap_or(clock % 1_000_000)
}

#[test]
fn in_chaos_each_request_gets_one_right_answer_and_nothing_is_left_behind() {
    storm(seed(), Duration::from_secs(18));
}

#[test]
#[ignore = "ten minutes, or RIP_CHAOS_SECONDS"]
fn in_a_long_chaos_the_same_holds() {
    storm(seed(), Duration::from_secs(number("RIP_CHAOS_SECONDS").unwrap_or(600)));
}

/// All of it, for so long.
fn storm(seed: u64, time: Duration) {
    println!("chaos of {} s: RIP_SEED={seed}", time.as_secs());
    // One of two kinds of server, since one that watches its entry ends at a SIGHUP.
    let watches = seed % 2 == 1;
    // And half of both have workers that take several requests at once.
    let at_once = if seed % 4 < 2 { 1 } else { 3 };
    let gate = Gate::new();
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = Server::builder(gate.app())
        .args([format!("w:{WORKERS_AT_REST}..5"), format!("c:{at_once}")])
        .args(["r:150", "--json", "--max-queue=8"])
        .arg(format!("--read-timeout-ms={}", READ_TIMEOUT.as_millis()))
        .arg(format!("--drain-timeout-ms={}", DRAIN_TIMEOUT.as_millis()))
        .args(["--queue-timeout-ms=4000", "--max-memory=40m", "--max-body=20m"])
        .arg(if watches { "--hot-reload=module" } else { "--hot-reload=process" })
        .env("RIP_SHRINK_AFTER_MS", "1000")
        .env("TEST_CHAOS_DIR", dir.path())
        .start();
    server.wait_for_workers(WORKERS_AT_REST as u64);

    let mut onlooker = Player::new(server.address(), seed, ONLOOKER, Style::Keeper);
    let (before, mut faults) = calm::look(&mut server, (WORKERS_AT_REST, at_once), &mut onlooker, None);
    let until = Instant::now() + time;
    let (players, report, worst_stall) = run(&server, &gate, watches, seed, until);
    if server.has_exited() {
        faults.extend(report.faults);
        fail(seed, &server, &[faults, vec!["the server has ended".to_owned()]].concat());
    }
    let (after, more) = calm::look(&mut server, (WORKERS_AT_REST, at_once), &mut onlooker, Some(&before));
    faults.extend(more);
    faults.extend(before.faults_after(&after));
    println!("{before:?}\n{after:?}\nworst stall {worst_stall:?}, {:?}", report.counts);

    let mut asks = Vec::new();
    for player in players.into_iter().chain([onlooker]) {
        asks.extend(player.asks);
        faults.extend(player.faults);
    }
    faults.extend(report.faults.iter().cloned());
    wait_until("the log is written", || {
        let lines = tools::lines_of(&server, &asks.last().expect("the onlooker asked").path());
        !lines.is_empty()
    });
    let reasons = reasons_of_successors(&server);
    println!("successors after {reasons:?}");
    if time >= LONG {
        let missing = ["memory", "requests", "asked", "reload"].map(|why| (why, reasons.get(why)));
        faults.extend(
            missing.iter().filter(|(_, count)| count.is_none()).map(|(why, _)| format!("no '{why}'")),
        );
    }
    let evidence = Evidence::gather(&server, dir.path(), &report, worst_stall);
    faults.extend(account(&asks, &evidence, &server));
    faults.extend(evidence.faults_of_reloads(&report.failed_reloads));
    faults.extend(calm::faults_of_metrics(&server, &evidence));
    faults.extend(calm::faults_of_the_end(&mut server));
    if !faults.is_empty() {
        fail(seed, &server, &faults);
    }
}

/// Why workers were replaced, and how often.
fn reasons_of_successors(server: &Server) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for event in load::events(server) {
        if let Event::Started { why: Some(why), .. } = event {
            *reasons.entry(why).or_default() += 1;
        }
    }
    reasons
}

fn fail(seed: u64, server: &Server, faults: &[String]) -> ! {
    let stderr = server.stderr_lines();
    let tail = stderr[stderr.len().saturating_sub(60)..].join("\n");
    let shown = faults[..faults.len().min(15)].join("\n\n");
    panic!("RIP_SEED={seed}: {} faults:\n\n{shown}\n\nthe end of stderr:\n{tail}", faults.len());
}

/// The storm itself.
fn run(
    server: &Server,
    gate: &Gate,
    watches: bool,
    seed: u64,
    until: Instant,
) -> (Vec<Player>, Report, Duration) {
    std::thread::scope(|scope| {
        let crew = CREW.iter().enumerate().map(|(number, &style)| {
            let mut player = Player::new(server.address(), seed, number, style);
            scope.spawn(move || {
                player.play(until);
                player
            })
        });
        let crew: Vec<_> = crew.collect();
        let vandal = scope.spawn(|| vandalise(server, Random::new(seed, 1000), until));
        let operator = scope
            .spawn(|| operate(server, gate, watches, Random::new(seed, 1001), until - LAST_RELOAD_BEFORE));
        let stalls = scope.spawn(|| measure_stalls(until));
        let players = crew.into_iter().map(|thread| thread.join().expect("a client does not panic"));
        let players = players.collect();
        let mut report = Report::default();
        for thread in [vandal, operator] {
            match thread.join() {
                Ok(other) => report.merge(other),
                // Its reason was printed.
                Err(_) => report.faults.push("the control socket does not answer".to_owned()),
            }
        }
        (players, report, stalls.join().expect("a clock does not panic"))
    })
}

/// What does not add up, each with all that is known about it.
fn account(asks: &[Ask], evidence: &Evidence, server: &Server) -> Vec<String> {
    let mut faults = Vec::new();
    for (ask, fault) in asks.iter().filter_map(|ask| Some((ask, evidence.fault(ask)?))) {
        let words: Vec<String> =
            server.stderr_lines().into_iter().filter(|line| line.contains(&ask.path())).collect();
        let (lines, begun) = (evidence.lines_of(ask), evidence.begun(ask));
        let note = &ask.note;
        faults.push(format!(
            "{fault} ({note})\n  {ask:?}\n  begun {begun}\n  log {lines:?}\n  stderr {words:#?}"
        ));
    }
    let strangers = evidence.strangers(asks);
    if !strangers.is_empty() {
        faults.push(format!("lines of no request: {strangers:?}"));
    }
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for ask in asks {
        let outcome = match &ask.outcome {
            Outcome::Answered { status, .. } | Outcome::Refused { status } => status.to_string(),
            Outcome::Cut { status, .. } => format!("{status}, cut"),
            Outcome::Nothing(trouble) => format!("{trouble:?}"),
            Outcome::Left { .. } => "left".into(),
            Outcome::Unanswered => "unanswered".into(),
        };
        *counts.entry((ask.deed.name(), outcome)).or_default() += 1;
    }
    println!("{} requests, {} retried: {counts:?}", asks.len(), evidence.retries());
    // Else there was no test.
    for deed in ["plain", "slow", "body", "stream", "tunnel", "busy-once"] {
        let wanted = if deed == "tunnel" { "101" } else { "200" };
        if !counts.contains_key(&(deed.to_owned(), wanted.to_owned())) {
            faults.push(format!("no '{deed}' was answered"));
        }
    }
    faults
}
