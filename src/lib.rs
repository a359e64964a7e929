//! Rip Server runs several copies of a web app as worker processes and puts an HTTP/1.1 front end before them.
//!
//! This crate is for apps in Rust: they carry the server inside themselves. One binary is the front end, the
//! supervisor and the workers. Linux only.
//!
//! ```no_run
//! use rip_server::Response;
//!
//! fn main() -> std::process::ExitCode {
//!     rip_server::run(|request| Response::text(format!("Hello from {}\n", request.path())))
//! }
//! ```
//!
//! Started as `my-app w:4 http:5002`, this is a server with four workers; `my-app status`, `my-app reload` and
//! `my-app stop` talk to it. `my-app --help` lists the flags, and [`Server`] sets defaults for them.
//!
//! A worker serves one request at a time, so a handler may block, and may keep state without a lock. It takes a
//! [`Request`] and returns a [`Response`], some text, or a `Result` of either with any error ([`IntoResponse`]):
//!
//! ```
//! use rip_server::{Error, Request, Response};
//!
//! fn page(request: &mut Request<'_>) -> Result<Response, Error> {
//!     match request.path() {
//!         "/" => Ok(Response::text("welcome\n")),
//!         "/length" => Ok(Response::text(std::fs::metadata("data")?.len().to_string())), // an error is a 500
//!         _ => Err(Error::new(404, "no such page")),
//!     }
//! }
//! # let _: fn(&mut Request<'_>) -> Result<Response, Error> = page;
//! ```
//!
//! # The story of a request
//!
//! 1. A client connects to the front end and sends a request. The front end reads it strictly: what two programs could
//!    read in two ways gets an error, and no worker sees it. The body is collected, in a file where it is large.
//! 2. The whole request goes to the worker that became idle last. While all are busy it waits in a queue; where the
//!    queue is full, or the wait too long, the client gets 503 or 504.
//! 3. The front end sends the request to that worker, a process of the same program, on a Unix socket. There the
//!    handler is called. A panic in it is a 500, not the end of the worker.
//! 4. The answer goes to the client as it comes. What a slow client does not take yet waits in the front end, so the
//!    worker is free with its last byte: for the request that has waited longest.
//! 5. A worker that has crashed, grown too large or served enough requests is replaced. At a reload or a stop, a worker
//!    first answers what it has begun.

#![deny(unreachable_pub)]
#![cfg_attr(not(feature = "internals"), deny(missing_docs))]
// The fuzzer plays the simulator's histories; what only its tests use is left over there.
#![cfg_attr(fuzzing, allow(dead_code, unused_imports))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "rip-server runs on Linux only: it needs epoll, signalfd, inotify and /proc. A container or a virtual machine with Linux would do."
);

mod anonymous_file;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod app;
mod balancer;
mod builder;
mod check;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod client;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod config;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod conn;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod control;
mod deadlines;
mod fleet;
mod handover;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod http;
mod keys;
mod list;
mod names;
mod observe;
mod page;
mod paths;
// The simulator's processes stand in for some of these.
#[cfg_attr(test, allow(dead_code, unused_imports))]
mod process;
mod quarantine;
mod reactor;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod runtime;
mod spelling;
mod states;
#[cfg_attr(not(feature = "internals"), allow(unreachable_pub))]
mod worker;

pub use builder::Server;
pub use worker::{Body, Error, IntoResponse, InvalidHeader, Request, Response};

/// What this project's own fuzzing and tests need. Not part of the crate's face: it changes without notice.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub mod app {
        pub use crate::app::*;
    }
    pub mod client {
        pub use crate::client::*;
    }
    pub mod config {
        pub use crate::config::*;
    }
    pub mod conn {
        pub use crate::conn::*;
    }
    pub mod control {
        pub use crate::control::*;
    }
    pub mod http {
        pub use crate::http::*;
    }
    pub mod runtime {
        pub use crate::runtime::*;
    }
    #[cfg(fuzzing)]
    pub mod simulation {
        pub use crate::reactor::simulation::play_chosen;
    }
    pub mod worker {
        pub use crate::worker::*;
    }
}

use config::{Command, Config, Usage};
use reactor::{Reactor, StartError};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The main function of an app that carries the server: in a process that the server has started it serves with
/// `handler`, in the one that a person has started it is the server. Takes the server's command line without an app
/// path. [`Server`] is the same with settings of the program's own.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     let mut served = 0; // each worker's own
///     rip_server::run(move |request| {
///         served += 1;
///         format!("{} {}: request {served} of this worker\n", request.method, request.path())
///     })
/// }
/// ```
///
/// Its standard output and error go to the server's. What stands behind it in `main` runs in each worker when that ends.
pub fn run<F, R>(handler: F) -> ExitCode
where
    F: FnMut(&mut Request<'_>) -> R + Send + 'static,
    R: IntoResponse,
{
    Server::new(handler).run()
}

/// The program whose command line is read, and what it brings along.
#[doc(hidden)]
pub struct Program {
    /// Arguments of its own, which give way to typed ones.
    defaults: Vec<String>,
    /// Its path, where it is the app itself.
    embedded: Option<PathBuf>,
    /// `c:` may be above one.
    is_concurrent: bool,
    /// Workers for apps that are no programs.
    harnesses: runtime::HarnessFiles,
}

impl Program {
    /// `rip-server` itself.
    pub fn for_any_app() -> Self {
        let harnesses = runtime::HARNESS_FILES;
        Program { defaults: Vec::new(), embedded: None, is_concurrent: true, harnesses }
    }
}

/// Reads the command line and does what it says. For `rip-server` itself and for [`Server`].
#[doc(hidden)]
pub fn command_line(program: Program) -> ExitCode {
    let Program { defaults, embedded, is_concurrent, harnesses } = program;
    let environment = |name: &str| std::env::var(name).ok();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let arguments = config::with_defaults(&defaults, arguments, &environment);
    let command = match config::read(arguments, &environment, embedded.is_some()) {
        Ok(command) => command,
        Err(Usage(complaint)) => {
            reactor::tell_failure(&complaint);
            return complain(&paths::shown(&complaint).to_string(), 2);
        }
    };
    match command {
        Command::CgiWorker => cgi_worker(),
        Command::CgiGuard => {
            process::guard();
            ExitCode::SUCCESS
        }
        Command::Help => print(&config::help()),
        Command::Print(text) => print(&text),
        Command::List { socket_dir, is_given } => match client::list(&socket_dir, is_given) {
            Ok(()) => ExitCode::SUCCESS,
            Err(complaint) => complain(&complaint, 1),
        },
        Command::Version => print(concat!("rip-server ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Ask { verb, place } => match client::carry_out(verb, &place, embedded.as_deref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(complaint) => complain(&complaint, 1),
        },
        Command::Serve(config) | Command::Check(config) if !is_concurrent && config.concurrency > 1 => {
            let complaint = format!(
                "'c:{}' is not for this program, whose handler takes one request at a time; more workers (w:) would do",
                config.concurrency
            );
            complain(&complaint, 2)
        }
        Command::Check(config) => match check::check(Config { harnesses, ..*config }, embedded) {
            Ok(()) => ExitCode::SUCCESS,
            Err(StartError::Usage(complaint)) => complain(&complaint, 2),
            Err(StartError::Trouble(complaint)) => complain(&complaint, 1),
        },
        Command::Serve(config) => {
            let server = reactor::start(Config { harnesses, ..*config }, embedded);
            match server.and_then(Reactor::run) {
                Ok(code) => ExitCode::from(code),
                Err(StartError::Usage(complaint)) => complain(&complaint, 2),
                Err(StartError::Trouble(complaint)) => complain(&complaint, 1),
            }
        }
    }
}

/// A script's event stream is its worker's work until its end.
fn cgi_handler(cgi: worker::cgi::Cgi) -> worker::Handler {
    worker::Handler::one_at_a_time(move |request| cgi.run(request)).without_streams()
}

/// A worker of a CGI app: each request runs the script once.
fn cgi_worker() -> ExitCode {
    match (worker::Identity::from_environment(), worker::cgi::Cgi::from_environment()) {
        (Some(identity), Some(cgi)) => worker::serve(&identity, cgi_handler(cgi)),
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
