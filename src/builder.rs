//! A server in a program of its own, with settings that its user can change.

use crate::worker::{self, Handler, IntoResponse, Request};
use crate::{Program, command_line, process};
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
pub struct Server {
    handler: Handler,
    defaults: Vec<String>,
}

impl Server {
    /// A server that calls `handler` for each request, in each of its workers: for one at a time, so it may keep state.
    pub fn new<F, R>(handler: F) -> Self
    where
        F: FnMut(&mut Request<'_>) -> R + Send + 'static,
        R: IntoResponse,
    {
        Server { handler: Handler::one_at_a_time(handler), defaults: Vec::new() }
    }

    /// A server whose workers may call `handler` for several requests at once, each in a thread: as many as `c:<N>` on
    /// the command line says, or [`Server::concurrency`]. For handlers that wait for something, such as a database.
    ///
    /// ```no_run
    /// use rip_server::{Request, Server};
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// fn main() -> std::process::ExitCode {
    ///     let served = AtomicU64::new(0); // each worker's own, and shared by its threads
    ///     Server::concurrent(move |_: &mut Request<'_>| {
    ///         std::thread::sleep(std::time::Duration::from_millis(50));
    ///         format!("{}\n", served.fetch_add(1, Ordering::Relaxed) + 1)
    ///     })
    ///     .concurrency(16)
    ///     .run()
    /// }
    /// ```
    pub fn concurrent<F, R>(handler: F) -> Self
    where
        F: Fn(&mut Request<'_>) -> R + Send + Sync + 'static,
        R: IntoResponse,
    {
        Server { handler: Handler::concurrent(handler), defaults: Vec::new() }
    }

    /// So many workers; without it one for each CPU.
    pub fn workers(self, count: usize) -> Self {
        self.with(format!("w:{count}"))
    }

    /// So many requests at once for each worker; without it one. Above one it takes a handler for several:
    /// [`Server::concurrent`].
    pub fn concurrency(self, count: usize) -> Self {
        self.with(format!("c:{count}"))
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
            None => {
                let is_concurrent = self.handler.is_concurrent();
                let embedded = Some(process::own_path());
                command_line(Program { defaults: self.defaults, embedded, is_concurrent, harnesses: &[] })
            }
        }
    }
}
