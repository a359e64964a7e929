//! The whole server in seeded histories: the real reactor, with all its parts, between scripted sockets, processes
//! and a clock of their own.
//!
//! `RIP_SIMULATIONS=100000 cargo test --lib simulation` plays more; a failure prints its seed and the shortest
//! history that still fails, and `RIP_SEED=<seed>` plays that history alone.
//!
//! `tests/fuzz/fuzz_targets/history.rs` reads bytes as histories, so that a fuzzer can look for paths that no seed has
//! taken; those that it kept are played here again, and `RIP_HISTORY=<file>` plays one of its files alone.
//!
//! - `wire`, `process`, `order` stand where the reactor has sockets, processes and the balancer;
//! - `actions` makes histories; `script` writes requests and answers, `flaws` has what is wrong with some of them, and
//!   `reader` reads them;
//! - `world` has the clients, the workers and the clock; `life` is what these do, each over a `line`, and
//!   `moments` what several do at once; `operators` ask for metrics, status and reloads, and look at the page; `edits`
//!   are of the app;
//! - `oracle` records what was sent; `shadow` checks what clients and workers see, `reasons` what
//!   the log says of it, and `inside` the state of the reactor;
//! - `ends` brings each history to its end;
//! - `scenes` are single histories, step by step, each of which shows one rule;
//! - `rooms` has what unit tests of a single room need beside such sockets and processes.
//!
//! In some histories the listener is shared with another process; a stop then leaves its backlog alone.
//!
//! What only a kernel shows is not in the seeded histories: accepting beyond the descriptors' bound, signals as such, the workers'
//! output, how changed sources are noticed, workers from outside (`w:0`).

mod actions;
pub(crate) mod disk;
mod edits;
mod ends;
mod flaws;
mod fleet;
mod inside;
mod life;
mod line;
mod moments;
mod notes;
mod operators;
mod oracle;
pub(crate) mod order;
mod peers;
pub(crate) mod process;
mod reader;
mod reasons;
#[cfg(test)]
pub(crate) mod rooms;
#[cfg(test)]
mod scenes;
mod script;
mod shadow;
mod templates;
mod told;
pub(crate) mod wire;
mod world;

#[cfg(test)]
pub(crate) use actions::Random;
use actions::{Action, chosen, history};
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use world::World;

/// Of each history; more short ones find more than a few long ones.
const STEPS: usize = 40;
/// Of a history that a fuzzer has chosen; longer ones take long and show little more.
const MAX_CHOSEN_STEPS: usize = 120;
/// A failing history is played so often, at most, on the search for a shorter one; `RIP_TRIES` says otherwise.
const MAX_TRIES: u64 = 3000;

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    /// What happens, told in the report of a failure.
    static STORY: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Adds a line to the story, where one is told.
fn tell(line: impl FnOnce() -> String) {
    STORY.with_borrow_mut(|story| {
        if let Some(story) = story {
            story.push(line());
        }
    });
}

fn play(seed: u64, actions: &[Action]) {
    let mut world = World::new(seed);
    for &action in actions {
        tell(|| format!("{action:?}"));
        world.act(action);
    }
    tell(|| "from here on everything works".to_owned());
    world.settle();
    world.check_answers();
    world.stop();
    world.check_answers();
}

/// Plays the history that `bytes` are read as. Panics where the server breaks its word.
#[cfg(fuzzing)]
pub fn play_chosen(bytes: &[u8]) {
    let (seed, actions) = chosen(bytes, MAX_CHOSEN_STEPS);
    play(seed, &actions);
}

/// Why a history fails, if it does.
fn failure(seed: u64, actions: &[Action]) -> Option<String> {
    let result = panic::catch_unwind(AssertUnwindSafe(|| play(seed, actions)));
    result.err().map(|cause| match (cause.downcast_ref::<String>(), cause.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_owned(),
        (None, None) => "a panic without words".to_owned(),
    })
}

/// What is the same in two failures of one kind: the words before any details, without their numbers.
fn kind(failure: &str) -> String {
    failure.split('{').next().unwrap_or_default().chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

/// The same failure in as few actions as can be found: chunks are left out, then single actions.
fn shrink(seed: u64, first: &str, mut actions: Vec<Action>) -> Vec<Action> {
    let max_tries = number("RIP_TRIES").unwrap_or(MAX_TRIES);
    let mut tries = 0;
    let mut chunk = actions.len().div_ceil(2);
    while chunk > 0 && tries < max_tries {
        let (mut from, before) = (0, actions.len());
        while from < actions.len() && tries < max_tries {
            let to = (from + chunk).min(actions.len());
            let shorter = [&actions[..from], &actions[to..]].concat();
            tries += 1;
            if failure(seed, &shorter).is_some_and(|other| kind(&other) == kind(first)) {
                actions = shorter;
            } else {
                from = to;
            }
        }
        // A pass of single ones that helped is worth another.
        let is_worth_it = chunk == 1 && actions.len() < before;
        chunk = if is_worth_it { 1 } else { chunk / 2 };
    }
    actions
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A panic that is caught here says nothing.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                loud(info);
            }
        }));
    });
    IS_QUIET.set(true);
}

/// Plays one seed; the report of its failure.
fn judge(seed: u64) -> Option<String> {
    judge_actions(seed, history(seed, STEPS), &format!("RIP_SEED={seed}"))
}

fn judge_actions(seed: u64, actions: Vec<Action>, replay: &str) -> Option<String> {
    let first = failure(seed, &actions)?;
    let shortest = shrink(seed, &first, actions.clone());
    STORY.set(Some(Vec::new()));
    let last = failure(seed, &shortest).unwrap_or_default();
    let story = STORY.take().unwrap_or_default();
    Some(format!(
        "seed {seed}: {first}\n{} actions of {} still fail: {last}\n    {}\n{replay} cargo test --lib simulation",
        shortest.len(),
        actions.len(),
        story.join("\n    ")
    ))
}

/// Less than a minute on two cores: `cargo test` has four minutes.
#[cfg(test)]
const DEFAULT_HISTORIES: u64 = 3000;

#[test]
fn every_history_of_the_whole_server_keeps_its_word() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    let seeds = match number("RIP_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RIP_SIMULATIONS").unwrap_or(DEFAULT_HISTORIES),
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let has_failed = Arc::new(AtomicBool::new(false));
    let share = |thread: u64| {
        let (seeds, has_failed) = (seeds.clone(), has_failed.clone());
        move || {
            keep_quiet();
            let mut seeds =
                seeds.filter(|seed| seed % threads == thread).take_while(|_| !has_failed.load(Relaxed));
            let report = seeds.find_map(judge);
            has_failed.fetch_or(report.is_some(), Relaxed);
            report
        }
    };
    let players: Vec<_> = (0..threads).map(|thread| std::thread::spawn(share(thread))).collect();
    let reports: Vec<String> =
        players.into_iter().filter_map(|player| player.join().expect("the player lives")).collect();
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
}

/// What `tests/fuzz/histories.py` has packed: inputs, each behind its length.
#[test]
fn histories_that_a_fuzzer_found_keep_the_servers_word() {
    let histories = match std::env::var("RIP_HISTORY") {
        Ok(file) => vec![std::fs::read(file).expect("a file with a history")],
        Err(_) => unpacked(include_bytes!("../../../tests/fuzz/histories.bin")),
    };
    let player = std::thread::spawn(move || {
        keep_quiet();
        histories.iter().enumerate().find_map(|(number, bytes)| {
            let (seed, actions) = chosen(bytes, MAX_CHOSEN_STEPS);
            let report = judge_actions(seed, actions, "RIP_HISTORY=<file>")?;
            Some(format!("history {number}: {report}"))
        })
    });
    let report = player.join().expect("the player lives");
    assert!(report.is_none(), "{}", report.unwrap_or_default());
}

fn unpacked(mut packed: &[u8]) -> Vec<Vec<u8>> {
    let mut histories = Vec::new();
    while let Some((length, rest)) = packed.split_first_chunk::<2>() {
        let (history, later) = rest.split_at(u16::from_be_bytes(*length).into());
        histories.push(history.to_vec());
        packed = later;
    }
    assert!(!histories.is_empty(), "nothing was packed");
    histories
}
