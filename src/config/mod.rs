//! The command line and the environment: raw words in, one validated [`Config`] out. A flag beats its environment
//! variable, which beats the default.

pub mod activation;
mod complaints;
mod defaults;
pub mod env_file;
mod flags;
mod fork;
mod page;
mod table;
#[cfg(test)]
mod tests;
mod trust;
mod verb;
mod words;
mod written;

pub use defaults::with_defaults;
pub use flags::{CGI_GUARD, CGI_WORKER};
pub use table::help;
pub use trust::Trust;
pub use verb::{ServerId, Verb};

use crate::app::Target;
use crate::balancer::QueueRule;
use crate::fleet::{Plan, RollMode};
use crate::paths::shown;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// The most workers: each costs a process, and the stack of idle ones is no deeper than that.
pub const MAX_WORKERS: usize = 4096;
/// The most requests at once for each worker: beyond it more workers serve better than more at once.
pub const MAX_CONCURRENCY: usize = 1024;
/// The most event streams and tunnels for each worker: each costs two descriptors here and one in the worker.
pub const MAX_STREAMS: u64 = 1_000_000;

/// A complaint about the command line, in one line.
#[derive(Debug, PartialEq, Eq)]
pub struct Usage(pub String);

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    Serve(Box<Config>),
    /// One worker is started and asked as such a server would.
    Check(Box<Config>),
    /// A verb for the server of that app.
    Ask {
        verb: Verb,
        place: ServerId,
    },
    /// The running servers of this user; by name, where a folder was given.
    List {
        socket_dir: PathBuf,
        is_given: bool,
    },
    /// A text that the program has of itself.
    Print(String),
    Help,
    Version,
    /// The built-in worker of a CGI app. Only the server starts it.
    CgiWorker,
    /// The process that ends the scripts of a CGI worker that was killed.
    CgiGuard,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `None`: all addresses.
    Tcp {
        address: Option<IpAddr>,
        port: u16,
    },
    /// Both loopback addresses.
    Localhost {
        port: u16,
    },
    Unix(PathBuf),
    /// A listening socket that the server was started with.
    Descriptor(RawFd),
}

/// As a complaint names it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp { address: None, port } => write!(f, "port {port}"),
            Listen::Tcp { address: Some(address), port } => write!(f, "{address} port {port}"),
            Listen::Localhost { port } => write!(f, "localhost port {port}"),
            Listen::Unix(path) => write!(f, "'{}'", shown(&path)),
            Listen::Descriptor(fd) => write!(f, "descriptor {fd}"),
        }
    }
}

/// What runs a JavaScript app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JavaScript {
    /// Bun where it is installed, else Node.
    Any,
    Bun,
    Node,
}

/// Whether workers are forked from a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// Where the template sees that it is safe.
    Auto,
    /// Whatever it sees.
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotReload {
    None,
    Process,
    Module,
}

impl HotReload {
    pub const fn code(self) -> &'static str {
        match self {
            HotReload::None => "none",
            HotReload::Process => "process",
            HotReload::Module => "module",
        }
    }
}

impl Fork {
    pub const fn code(self) -> &'static str {
        match self {
            Fork::Auto => "auto",
            Fork::Always => "always",
            Fork::Never => "never",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    pub min: usize,
    pub max: usize,
}

/// Everything that the server is told before it starts.
#[derive(Debug)]
pub struct Config {
    pub place: ServerId,
    /// `-- command {socket} …`, or `{port}`
    pub command: Option<Vec<OsString>>,
    /// `pkg.mod:attr`
    pub target: Option<Target>,
    pub workers: Workers,
    /// Requests at once for each worker.
    pub concurrency: usize,
    /// Event streams and tunnels for each worker that hold no place of its concurrency.
    pub max_streams: usize,
    pub max_requests: u64,
    pub max_age: Option<Duration>,
    pub listen: Vec<Listen>,
    /// Of each, whether proxies connect there that say first who has connected to them (the PROXY protocol).
    pub proxied: Vec<bool>,
    /// Permissions of Unix listeners, and the group whose members they are for.
    pub socket_mode: Option<u32>,
    pub socket_group: Option<String>,
    pub metrics: Vec<Listen>,
    /// Where the operators' page is shown, and under which names beside addresses.
    pub page: Vec<Listen>,
    pub page_hosts: Vec<String>,
    pub max_reloads: u64,
    pub hot_reload: HotReload,
    /// By `NODE_ENV`: clients may see what a worker said last.
    pub is_development: bool,
    pub max_queue: usize,
    pub(crate) queue_rule: QueueRule,
    pub queue_timeout: Duration,
    pub connect_timeout: Duration,
    pub read_timeout: Duration,
    pub client_timeout: Duration,
    pub idle_timeout: Duration,
    pub boot_timeout: Duration,
    pub drain_timeout: Duration,
    pub json_logging: bool,
    /// CGI scripts get the credentials of their requests.
    pub cgi_pass_auth: bool,
    pub access_log: bool,
    /// Gets what stdout would get.
    pub log_file: Option<PathBuf>,
    pub max_body_bytes: u64,
    pub max_memory_bytes: u64,
    /// A worker of a fleet that may shrink retires when it was not needed for so long.
    pub shrink_after: Duration,
    pub trust_proxy: Vec<Trust>,
    pub preload: Vec<String>,
    pub fork: Fork,
    /// What a template asks its app for before its first fork.
    pub warm: Option<String>,
    pub javascript: JavaScript,
    /// Variables for workers that are not in the server's own environment.
    pub env_file: Option<PathBuf>,
    pub(crate) roll: RollMode,
    /// A request in which so many workers have died is refused; 0: never.
    pub quarantine: u32,
    pub keep_trying: bool,
    /// Where the server's pid is written.
    pub pid_file: Option<PathBuf>,
    pub spool_dir: PathBuf,
    /// Names and texts of the files that workers need beside an app that is no program. A program that is its own app
    /// has none, which keeps it small.
    pub harnesses: &'static [(&'static str, &'static str)],
    /// Temporary disk of all spools together.
    pub max_spool_bytes: u64,
}

impl Config {
    /// Whether each worker of a command listens on a port, not on a Unix socket.
    pub fn command_takes_port(&self) -> bool {
        self.command.iter().flatten().any(|argument| argument.to_string_lossy().contains("{port}"))
    }

    /// What the fleet needs of it.
    pub(crate) fn plan(&self, seed: u64) -> Plan {
        Plan {
            min_workers: self.workers.min,
            max_workers: self.workers.max,
            max_requests: self.max_requests,
            max_age: self.max_age,
            boot_timeout: self.boot_timeout,
            drain_timeout: self.drain_timeout,
            roll: self.roll,
            forks: self.fork != Fork::Never,
            keep_trying: self.keep_trying,
            seed,
        }
    }
}

/// Reads the command line. `carries_app`: the program is an app with the server in it, so no path is asked for.
///
/// # Errors
/// [`Usage`]: what was given, what is wrong with it, what would do.
pub fn read(
    arguments: Vec<OsString>,
    environment: &dyn Fn(&str) -> Option<String>,
    carries_app: bool,
) -> Result<Command, Usage> {
    flags::Raw::split(arguments)?.resolve(environment, carries_app)
}
