//! The contract suite: every rule of the worker's side of the protocol, over every harness.
//!
//! Rules are rows (`rules.rs`, `endings.rs`, `several.rs`, `attacks.rs`, `served.rs`), harnesses are columns, and a cell
//! that does not hold has its reason in `marks.rs`. One column: `cargo test --test runtimes contract::bun`. With
//! `-- --nocapture` each cell says how it went. `RIP_CONTRACT=busy` runs only the rules whose name has that word in it.

mod attacks;
mod endings;
mod marks;
mod rules;
mod served;
mod several;
mod table;
mod worker;

use super::fixture::{Fixture, Needs, bun, node, python, ruby};
use super::support::{Server, test_worker};
use marks::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;
use worker::Worker;

/// Whose rules are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Wsgi,
    Asgi,
    Bun,
    /// `(Request) → Response`
    Node,
    /// `(req, res)`
    NodeHttp,
    Rack,
    Cgi,
    Rust,
    /// The ASGI app behind uvicorn, a command on `{socket}`.
    Uvicorn,
    /// The `(req, res)` app behind a server of its own, a command on `{port}`.
    NodePort,
}

impl Column {
    pub const ALL: [Column; 10] = [
        Column::Wsgi,
        Column::Asgi,
        Column::Bun,
        Column::Node,
        Column::NodeHttp,
        Column::Rack,
        Column::Cgi,
        Column::Rust,
        Column::Uvicorn,
        Column::NodePort,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Column::Wsgi => "WSGI",
            Column::Asgi => "ASGI",
            Column::Bun => "Bun",
            Column::Node => "Node",
            Column::NodeHttp => "Node `(req, res)`",
            Column::Rack => "Rack",
            Column::Cgi => "CGI",
            Column::Rust => "Rust",
            Column::Uvicorn => "uvicorn `{socket}`",
            Column::NodePort => "Node `{port}`",
        }
    }

    /// What is behind `--`, for a server that knows nothing of the worker protocol.
    pub fn command(self) -> Option<&'static [&'static str]> {
        match self {
            Column::Uvicorn => {
                Some(&["uvicorn", "--no-access-log", "--http", "h11", "--uds", "{socket}", "asgi:app"])
            }
            Column::NodePort => Some(&["node", "server.mjs", "{port}"]),
            _ => None,
        }
    }

    fn needs(self) -> Needs {
        match self {
            Column::Wsgi | Column::Asgi => python(&["sys"]),
            Column::Bun => bun(&[]),
            Column::Node | Column::NodeHttp | Column::NodePort => node(&[]),
            Column::Rack => ruby(&["rack"]),
            Column::Cgi | Column::Rust => Needs::programs(&[]),
            Column::Uvicorn => Needs { programs: &["uvicorn"], ..python(&["uvicorn", "websockets"]) },
        }
    }

    /// The app's entry, in a copy of its folder; a command's is the folder.
    fn entry(self, fixture: &Fixture) -> PathBuf {
        match self {
            Column::Wsgi => fixture.file("wsgi.py"),
            Column::Asgi => fixture.file("asgi.py"),
            Column::Bun | Column::Node => fixture.file("index.mjs"),
            Column::NodeHttp => fixture.file("handler.mjs"),
            Column::Rack => fixture.file("config.ru"),
            Column::Cgi => fixture.file("index.sh"),
            Column::Rust => test_worker(),
            Column::Uvicorn | Column::NodePort => fixture.app_dir().to_path_buf(),
        }
    }

    /// Exceptions that its handlers may end with.
    pub fn exceptions(self) -> &'static [&'static str] {
        match self {
            Column::Wsgi | Column::Asgi => &["error", "exit", "interrupt", "cancelled", "own", "generator"],
            Column::Bun | Column::Node | Column::NodeHttp => {
                &["error", "string", "null", "undefined", "object"]
            }
            Column::Rack => {
                &["error", "exit", "abort", "interrupt", "signal", "memory", "throw", "own", "stack"]
            }
            Column::Cgi => &["error", "kill"],
            Column::Rust => &["panic", "own"],
            // The rest is between the app and its server.
            Column::Uvicorn | Column::NodePort => &["error"],
        }
    }

    /// The same in the middle of an answer.
    pub fn late_exceptions(self) -> &'static [&'static str] {
        match self {
            Column::Rust => &["panic", "own", "error"],
            // A script's exit code says nothing: that of its last command, often a test's.
            Column::Cgi => &["kill"],
            _ => self.exceptions(),
        }
    }
}

/// One row.
pub struct Rule {
    pub name: &'static str,
    check: Check,
}

enum Check {
    /// On a worker that all such rules share.
    Shared(fn(&Worker<'_>)),
    /// On a worker of its own, which may end.
    Fresh(fn(&mut Worker<'_>)),
    /// On a worker that takes several requests at once, which all such rules share.
    Several(fn(&Worker<'_>)),
    /// On such a worker of its own.
    FreshSeveral(fn(&mut Worker<'_>)),
    /// Through the real server, which all such rules share.
    Served(fn(&mut Served<'_>)),
}

/// The app behind the real server, with one worker.
pub struct Served<'a> {
    pub column: Column,
    pub fixture: &'a Fixture,
    pub server: Server,
    poll_timeout: Duration,
}

impl Rule {
    const fn shared(name: &'static str, check: fn(&Worker<'_>)) -> Rule {
        Rule { name, check: Check::Shared(check) }
    }

    const fn fresh(name: &'static str, check: fn(&mut Worker<'_>)) -> Rule {
        Rule { name, check: Check::Fresh(check) }
    }

    const fn several(name: &'static str, check: fn(&Worker<'_>)) -> Rule {
        Rule { name, check: Check::Several(check) }
    }

    const fn fresh_several(name: &'static str, check: fn(&mut Worker<'_>)) -> Rule {
        Rule { name, check: Check::FreshSeveral(check) }
    }

    const fn served(name: &'static str, check: fn(&mut Served<'_>)) -> Rule {
        Rule { name, check: Check::Served(check) }
    }

    fn all() -> impl Iterator<Item = &'static Rule> {
        let alone = rules::RULES.iter().chain(endings::RULES).chain(several::RULES);
        alone.chain(attacks::RULES).chain(served::RULES)
    }
}

/// Every rule over one harness. All that fail are told at the end.
fn check(column: Column) {
    let Some(fixture) = Fixture::copy_of(&column.needs(), "tests/apps/contract") else { return };
    let only = std::env::var("RIP_CONTRACT").unwrap_or_default();
    let (mut shared, mut several, mut served, mut wrong) = (None, None, None, Vec::new());
    for rule in Rule::all().filter(|rule| rule.name.contains(&only)) {
        let cell = marks::of(rule.name, column);
        let outcome = match rule.check {
            Check::Shared(check) => {
                let worker = shared.take().unwrap_or_else(|| Worker::start(column, &fixture));
                let (outcome, worker) = attempt(worker, cell, |worker| check(worker));
                // What a broken rule leaves behind must not break the next one.
                shared = outcome.is_ok().then_some(worker);
                outcome
            }
            Check::Several(check) => {
                let worker = several.take().unwrap_or_else(|| Worker::start_several(column, &fixture));
                let (outcome, worker) = attempt(worker, cell, |worker| check(worker));
                several = outcome.is_ok().then_some(worker);
                outcome
            }
            Check::FreshSeveral(check) => attempt(Worker::start_several(column, &fixture), cell, check).0,
            Check::Fresh(check) => attempt(Worker::start(column, &fixture), cell, check).0,
            Check::Served(check) => {
                let mut place = served.take().unwrap_or_else(|| Served::start(column, &fixture));
                place.expects(cell);
                let outcome = caught(|| check(&mut place));
                served = outcome.is_ok().then_some(place);
                outcome
            }
        };
        if let Some(fault) = judged(rule, column, cell, outcome) {
            wrong.push(fault);
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", column.title(), wrong.join("\n"));
}

/// Says how it went; what is wrong with that.
fn judged(rule: &Rule, column: Column, cell: Cell, outcome: Result<(), String>) -> Option<String> {
    let reported = format!("{}: {}", column.title(), rule.name);
    match (cell, outcome) {
        (Cell::Holds, Ok(())) => println!("{reported}: holds"),
        (Cell::Cannot(reason), Err(_)) => println!("{reported}: cannot: {reason}"),
        (Cell::Open(fault), Err(why)) => {
            println!("{reported}: OPEN ({fault}): {}", why.lines().next().unwrap_or_default());
        }
        // Known, and somebody is at it: no failure either way.
        (Cell::Open(_), Ok(())) => println!("{reported}: HOLDS NOW, its mark can go from marks.rs"),
        (Cell::Holds, Err(why)) => return Some(format!("{}: {why}", rule.name)),
        (Cell::Cannot(reason), Ok(())) => {
            return Some(format!("{}: it holds, and is marked as what cannot: {reason}", rule.name));
        }
    }
    None
}

fn attempt<'a>(
    mut worker: Worker<'a>,
    cell: Cell,
    check: impl FnOnce(&mut Worker<'a>),
) -> (Result<(), String>, Worker<'a>) {
    worker.expects(cell);
    let outcome = caught(|| check(&mut worker));
    (outcome.map_err(|why| format!("{why}\n{}", worker.words())), worker)
}

/// What it panics with.
fn caught(check: impl FnOnce()) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(check)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

#[test]
fn wsgi() {
    check(Column::Wsgi);
}

#[test]
fn asgi() {
    check(Column::Asgi);
}

#[test]
fn bun_fetch() {
    check(Column::Bun);
}

#[test]
fn node_fetch() {
    check(Column::Node);
}

#[test]
fn node_req_res() {
    check(Column::NodeHttp);
}

#[test]
fn rack() {
    check(Column::Rack);
}

#[test]
fn cgi() {
    check(Column::Cgi);
}

#[test]
fn rust() {
    check(Column::Rust);
}

#[test]
fn uvicorn_on_a_socket() {
    check(Column::Uvicorn);
}

#[test]
fn node_on_a_port() {
    check(Column::NodePort);
}
