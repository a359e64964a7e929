//! The poll loop: the one place with sockets, the clock and processes. It reads and writes for the machines in
//! `conn`, asks `balancer` who meets whom and `fleet` who should exist, and does what they say.
//!
//! The [`tick::Reactor`] is made of rooms. Each owns its fields; what crosses from one to another is a value (`crossing`,
//! and what a room's methods give back), and only the reactor passes it on:
//!
//! | room | owns |
//! |---|---|
//! | `io` | the poll, the clock, buffers, the bounds on spooled bytes, the list of those who have more to do |
//! | `observer` | logs, figures |
//! | `frontend` | listeners, clients, what waits for them and what they wait for |
//! | `backend` | connections to workers, the exchanges on them |
//! | `supervisor` | worker processes, the fleet's plan for them, their output, the app's sources |
//! | `admin` | the control socket, the metrics listeners and those of the operators' page |
//! | `host` | what the server and its surroundings tell each other |
//!
//! A request's way: `tick` hears of an event and has `requests` read it and dispatch it; `exchanges` sends it to a worker,
//! passes the answer on, and has `answers` see to its end. `places` gives what has come free to the next. `failures` has what is done when a worker fails, `departures`
//! when a client has left, `questions` finds out whether a handler has ended, `tunnels` passes bytes after a 101.
//! `workers` does what the fleet says, `renewing` has requests wait for new code, `stopping` is the end.
//!
//! From `main` to a byte that a worker reads: `command_line` (where `start` opens all sockets), `Reactor::run`, `tick`,
//! `on_client` (where `Frontend::receive` and `Frontend::advance` give what has come), `dispatch` (where the balancer
//! decides), `assign`, `Backend::send`. What states a client, an exchange and its connection pass through on that way is in
//! `docs/lifecycle.md`.

mod admin;
mod answers;
mod backend;
mod crossing;
mod departures;
mod descriptors;
mod endpoint;
mod exchanges;
mod failures;
mod frontend;
mod host;
mod inherited;
mod io;
mod limits;
mod listening;
mod observer;
mod operators;
mod page;
mod places;
mod preview;
mod quarantine;
mod questions;
mod renewing;
mod requests;
mod signalled;
#[cfg(any(test, fuzzing))]
pub(crate) mod simulation;
mod socket_dir;
mod source;
mod stage;
mod start;
mod status;
mod stopping;
mod supervisor;
mod tick;
mod tunnels;
mod upgrading;
mod workers;

pub(crate) use host::handed::tell_failure;
pub(crate) use preview::preview;
pub(crate) use source::StartError;
pub(crate) use start::start;
pub(crate) use tick::Reactor;

#[cfg(any(test, fuzzing))]
pub(crate) use {backend::exchange::EXCHANGE, backend::link::LINK, frontend::phase::CLIENT};
