//! The cells that do not hold. Whoever makes one hold takes its mark out.

use super::Column;
use Cell::Cannot;
use Column::{Bun, Cgi, Node, NodeHttp, NodePort, Rack, Rust, Uvicorn, Wsgi};

/// How a harness stands to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    Holds,
    /// The runtime can't, for that reason. Tried all the same: one that holds must not be marked.
    Cannot(&'static str),
    /// A fault that is known and is to be mended. There is none for now.
    #[allow(dead_code)]
    Open(&'static str),
}

struct Mark {
    /// The rule's name, or how it begins.
    rule: &'static str,
    columns: &'static [Column],
    cell: Cell,
}

const BLOCKED: Cell = Cannot("a handler that blocks hears nothing until its next write");
const NO_WEBSOCKETS: Cell = Cannot("no WebSockets there");
const SERVERS_HAVE_THEM: Cell = Cannot("a function has none; an exported `http.Server` has them");
const NO_FORK: Cell = Cannot("JavaScript has no fork");
const OWN_PROCESS: Cell = Cannot("each request has a process of its own, which ends with its answer");
const CLOSES: Cell = Cannot("`Bun.serve` closes at once; the server asks until it is idle");
const NO_PIPELINES: Cell = Cannot("`Bun.serve` closes where a request comes before the answer is read");
const FORK_IS_UNSAFE: Cell = Cannot("fork is unsafe in Rust, and whoever calls it has to end the child");

const ONE_AT_A_TIME: Cell = Cannot("`c:` is 1 there");
const STREAMS_HOLD: Cell = Cannot("a stream holds its worker");

const OWN_PARSER: Cell =
    Cannot("the runtime has its own parser, which takes some of it or says another status");

const COMMANDS: &[Column] = &[Uvicorn, NodePort];
const NO_PROTOCOL: Cell = Cannot("a command knows nothing of the worker protocol");
const OWN_ADDRESSES: Cell =
    Cannot("a command reads `X-Forwarded-For` by its own rules; `Rip-Client` has the address as well");
const CLOSES_EARLY: Cell =
    Cannot("uvicorn and Node close at once; a command counts as idle 100 ms after that");
const READS_NO_FURTHER: Cell =
    Cannot("Node itself reads no further on a connection where its app has left a body half-way");
const SENDS_BODIES: Cell = Cannot("uvicorn sends the body that an app gives to a 204");
const CHILDREN_COME_BACK: Cell = Cannot("uvicorn lets a forked child back into its event loop");
const WAITS_FOR_STREAMS: Cell = Cannot("uvicorn and Node wait for open streams; the drain timeout ends them");
const OWN_SIGNALS: Cell =
    Cannot("a command ends on SIGINT; Ctrl-C in the server's terminal does not reach it");
const OWN_METHODS: Cell = Cannot("Node answers 400");
const REPLACED: Cell = Cannot("a program is replaced as a whole");
const FREE_100_MS_LATER: Cell =
    Cannot("it is told at once; a command gets its next request 100 ms after its connection has closed");

const MARKS: &[Mark] = &[
    mark("what no front end sends", &[Bun, NodeHttp, Uvicorn, NodePort], OWN_PARSER),
    mark("an event stream holds no place", &[Wsgi, Rack, Cgi], STREAMS_HOLD),
    mark("an event stream holds no place", COMMANDS, NO_PROTOCOL),
    mark("WebSockets hold no place", &[Wsgi, Node, Rack, Cgi, Rust, NodePort], NO_WEBSOCKETS),
    mark("WebSockets hold no place", &[NodeHttp], SERVERS_HAVE_THEM),
    mark("`c:4`", &[Cgi], ONE_AT_A_TIME),
    mark("`c:4`: a changed entry", &[Rust], REPLACED),
    mark("`c:4`: four", COMMANDS, NO_PROTOCOL),
    mark("`c:4`: an idle probe", COMMANDS, NO_PROTOCOL),
    mark("`c:4`: a changed entry", COMMANDS, REPLACED),
    mark("the join says", COMMANDS, NO_PROTOCOL),
    mark("a second request at once", COMMANDS, NO_PROTOCOL),
    mark("a probe is answered ok", COMMANDS, NO_PROTOCOL),
    mark("an idle probe", COMMANDS, NO_PROTOCOL),
    mark("SIGTERM: says quit", COMMANDS, NO_PROTOCOL),
    mark("the quit says", COMMANDS, NO_PROTOCOL),
    mark("SIGTERM: what is sent before", COMMANDS, NO_PROTOCOL),
    mark("a body that the app reads in part", &[NodePort], READS_NO_FURTHER),
    mark("HEAD, 204 and 304", &[Uvicorn], SENDS_BODIES),
    mark("the app knows its client's address", COMMANDS, OWN_ADDRESSES),
    mark("the client's address is", COMMANDS, OWN_ADDRESSES),
    mark("a half-close does not end", COMMANDS, CLOSES_EARLY),
    mark("a child that", &[NodePort], NO_FORK),
    mark("a child that", &[Uvicorn], CHILDREN_COME_BACK),
    mark("SIGTERM: an event stream", COMMANDS, WAITS_FOR_STREAMS),
    mark("SIGTERM: a WebSocket", &[NodePort], NO_WEBSOCKETS),
    mark("SIGINT", COMMANDS, OWN_SIGNALS),
    mark("a method that nobody knows", &[NodePort], OWN_METHODS),
    mark("an event stream that its client closes", COMMANDS, FREE_100_MS_LATER),
    mark("a request right behind", &[Bun], NO_PIPELINES),
    mark("a half-close does not end", &[Bun], CLOSES),
    mark("a half-close is told", &[Wsgi, Rack, Rust], BLOCKED),
    mark("a silent event stream", &[Wsgi, Rack, Rust], BLOCKED),
    mark("a child that", &[Bun, Node, NodeHttp], NO_FORK),
    mark("a child that", &[Cgi], OWN_PROCESS),
    mark("a child that", &[Rust], FORK_IS_UNSAFE),
    mark("SIGTERM: shutdown hooks", &[Cgi], OWN_PROCESS),
    mark("SIGTERM: a WebSocket", &[Wsgi, Node, Rack, Cgi, Rust], NO_WEBSOCKETS),
    mark("SIGTERM: a WebSocket", &[NodeHttp], SERVERS_HAVE_THEM),
];

const fn mark(rule: &'static str, columns: &'static [Column], cell: Cell) -> Mark {
    Mark { rule, columns, cell }
}

pub fn of(rule: &str, column: Column) -> Cell {
    let is_it = |mark: &&Mark| rule.starts_with(mark.rule) && mark.columns.contains(&column);
    MARKS.iter().find(is_it).map_or(Cell::Holds, |mark| mark.cell)
}

#[test]
fn every_mark_names_a_rule() {
    for mark in MARKS {
        assert!(super::Rule::all().any(|rule| rule.name.starts_with(mark.rule)), "{}", mark.rule);
    }
}
