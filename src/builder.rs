//! A server in a program of its own, with settings that its user can change.

use crate::worker::{self, IntoResponse, Request};
use crate::{command_line_with, process};
use std::process::ExitCode;

/// A server for a handler: [`run`](crate::run) with defaults of the program's own. Words of the command line and
/// variables of the environment win over them.
///
/// ```no_run
/// use rip_server::{Error, Request, Response, Server};
///
/// fn main() -> std::process::ExitCode {
///     let mut served = 0; // each worker's own
///     Server::new(move |request: &mut Request<'_>| -> Result<Response, Error> {
///         served += 1;
///         Ok(Response::text(format!("{} {served}\n", request.path())))
///     })
///     .workers(4)
///     .http("127.0.0.1:8080")
///     .with("--read-timeout-ms=30000")
///     .run()
/// }
/// ```
#[must_use = "a server serves when it is run"]
pub struct Server<F> {
    handler: F,
    defaults: Vec<String>,
}

impl<F, R> Server<F>
where
    F: FnMut(&mut Request<'_>) -> R + Send + 'static,
    R: IntoResponse,
{
    /// A server that calls `handler` for each request, in each of its workers.
    pub fn new(handler: F) -> Self {
        Server { handler, defaults: Vec::new() }
    }

    /// So many workers; without it one for each CPU.
    pub fn workers(self, count: usize) -> Self {
        self.with(format!("w:{count}"))
    }

    /// Where it listens: `8080`, `127.0.0.1:8080`, `unix:/run/app.sock`. May be said more than once.
    pub fn http(self, at: &str) -> Self {
        self.with(format!("http:{at}"))
    }

    /// Any other word of the command line: `r:1000`, `--max-body=1g`, `--json-logging`. What is wrong with it is said
    /// at the start, as if the user had typed it.
    pub fn with(mut self, argument: impl Into<String>) -> Self {
        self.defaults.push(argument.into());
        self
    }

    /// Serves until it is stopped, as [`run`](crate::run) does.
    pub fn run(self) -> ExitCode {
        match worker::Identity::from_environment() {
            Some(identity) => worker::serve(&identity, self.handler),
            None => command_line_with(&self.defaults, Some(process::own_path()), &[]),
        }
    }
}
