//! Rip Server: an app, N copies of it as worker processes, and an HTTP/1.1 front end before them.
//!
//! An app in Rust carries the server inside itself. One binary is front end, supervisor and workers:
//!
//! ```no_run
//! use rip_server::Response;
//!
//! fn main() -> std::process::ExitCode {
//!     rip_server::run(|request| Response::text(format!("Hello from {}\n", request.path())))
//! }
//! ```
//!
//! # The story of a request
//!
//! 1. [`reactor`] reads bytes from a client and hands them to [`conn::Client`], which finds whole requests in them
//!    with the strict eyes of [`http`]. The head is serialised for the worker as it is read, the body is put aside.
//! 2. A whole request is submitted to the [`balancer`]: the worker on top of the idle stack takes it, or it waits in
//!    the queue, or is refused.
//! 3. The reactor writes it to the worker's connection, and hands what comes back to [`conn::Worker`], which says
//!    what the client gets of it and when the answer has ended. What the client does not take at once waits.
//! 4. With the answer's last byte the worker is free: for the request that has waited longest, else for the top of
//!    the stack.
//! 5. The [`fleet`] says which workers should exist; the reactor starts, signals and reaps them.
//!
//! The rooms that decide are pure: they take bytes, events and the time, and give values back. Only the reactor has
//! sockets, the clock and processes.

pub mod anonymous_file;
pub mod app;
pub mod balancer;
mod builder;
pub mod client;
pub mod config;
pub mod conn;
pub mod control;
pub mod deadlines;
pub mod fleet;
pub mod http;
pub mod keys;
pub mod list;
pub mod names;
pub mod observe;
pub mod paths;
pub mod process;
pub mod reactor;
pub mod runtime;
mod spelling;
mod states;
pub mod worker;

pub use builder::Server;
pub use worker::{Error, IntoResponse, InvalidHeader, Request, Response};

use config::{Command, Config, Usage};
use reactor::StartError;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The main function of an app that carries the server: in a process that the server has started it serves with
/// `handler`, in the one that a person has started it is the server. Takes the server's command line without an app
/// path. [`Server`] is the same with settings of the program's own.
///
/// Its standard output and error go to the server's. What stands behind it in `main` runs in each worker when that ends.
pub fn run<F, R>(handler: F) -> ExitCode
where
    F: FnMut(&mut Request<'_>) -> R + Send + 'static,
    R: IntoResponse,
{
    Server::new(handler).run()
}

/// The command line of `rip-server` itself.
pub fn command_line() -> ExitCode {
    command_line_with(&[], None, runtime::HARNESS_FILES)
}

/// A command line with arguments of the program's own, which give way to typed ones. `embedded`: this program is the
/// app. `harnesses`: for apps that are no programs.
fn command_line_with(
    defaults: &[String],
    embedded: Option<PathBuf>,
    harnesses: &'static [(&'static str, &'static str)],
) -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let arguments = config::with_defaults(defaults, arguments, &environment);
    let command = match config::read(arguments, &environment, embedded.is_some()) {
        Ok(command) => command,
        Err(Usage(complaint)) => return complain(&paths::shown(&complaint).to_string(), 2),
    };
    match command {
        Command::CgiWorker => cgi_worker(),
        Command::CgiGuard => {
            process::guard();
            ExitCode::SUCCESS
        }
        Command::Help => print(&config::help()),
        Command::Version => print(concat!("rip-server ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Ask { verb, place } => match client::carry_out(verb, &place, embedded.as_deref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(complaint) => complain(&complaint, 1),
        },
        Command::Serve(config) => match reactor::serve(Config { harnesses, ..*config }, embedded) {
            Ok(code) => ExitCode::from(code),
            Err(StartError::Usage(complaint)) => complain(&complaint, 2),
            Err(StartError::Trouble(complaint)) => complain(&complaint, 1),
        },
    }
}

/// A worker of a CGI app: each request runs the script once.
fn cgi_worker() -> ExitCode {
    match (worker::Identity::from_environment(), worker::cgi::Cgi::from_environment()) {
        (Some(identity), Some(cgi)) => worker::serve(&identity, move |request| cgi.run(request)),
        _ => complain("cgi-worker is started by the server; rip-server ./index.cgi would do", 2),
    }
}

fn complain(complaint: &str, code: u8) -> ExitCode {
    use std::io::Write;
    // A closed stderr is no reason for another complaint.
    let _ = writeln!(std::io::stderr(), "rip-server: {complaint}");
    ExitCode::from(code)
}

fn print(text: &str) -> ExitCode {
    match client::print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => complain(&complaint, 1),
    }
}
