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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn parse_with(line: &str, environment: &[(&str, &str)]) -> Result<Command, Usage> {
        let environment: HashMap<String, String> =
            environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        read(
            line.split_whitespace().map(OsString::from).collect(),
            &|name| environment.get(name).cloned(),
            false,
        )
    }

    pub(super) fn config(line: &str) -> Box<Config> {
        match parse_with(line, &[]) {
            Ok(Command::Serve(config)) => config,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn complaint(line: &str) -> String {
        match parse_with(line, &[]) {
            Err(Usage(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn tokens_and_flags_come_in_any_order() {
        let config =
            config("--max-queue 4 w:2..8 --json http:127.0.0.1:80 ./app r:20 --max-body=10k http:unix:/s");
        assert_eq!((config.workers, config.max_requests), (Workers { min: 2, max: 8 }, 20));
        assert_eq!((config.max_queue, config.max_body_bytes, config.json_logging), (4, 10 * 1024, true));
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.place.app, Some(PathBuf::from("./app")));
    }

    #[test]
    fn a_target_names_what_of_a_python_project_is_served() {
        for target in ["shop.wsgi:application", "shop:create_app()", "worker:app"] {
            let config = config(&format!("w:2 ./app {target} http:80"));
            assert_eq!(config.target, Target::parse(target));
            assert_eq!(config.place.app, Some(PathBuf::from("./app")));
        }
        assert_eq!(config("./app").target, None);
    }

    #[test]
    fn a_flag_beats_its_variable_which_beats_the_default() {
        let queue = |line: &str, environment: &[(&str, &str)]| match parse_with(line, environment) {
            Ok(Command::Serve(config)) => config.max_queue,
            other => panic!("{other:?}"),
        };
        assert_eq!(queue("app", &[]), 8192);
        assert_eq!(queue("app", &[("RIP_MAX_QUEUE", "7")]), 7);
        assert_eq!(queue("app --max-queue=3", &[("RIP_MAX_QUEUE", "7")]), 3);
    }

    #[test]
    fn one_request_at_once_unless_said() {
        let concurrency = |line: &str, environment: &[(&str, &str)]| match parse_with(line, environment) {
            Ok(Command::Serve(config)) => (config.concurrency, config.max_streams),
            other => panic!("{other:?}"),
        };
        assert_eq!(concurrency("app", &[]), (1, 1000));
        assert_eq!(concurrency("app", &[("RIP_CONCURRENCY", "8"), ("RIP_MAX_STREAMS", "5")]), (8, 5));
        assert_eq!(concurrency("app c:16 --max-streams=0", &[("RIP_CONCURRENCY", "8")]), (16, 0));
    }

    #[test]
    fn hot_reload_is_for_development_alone_unless_said() {
        let mode = |environment: &[(&str, &str)]| match parse_with("app", environment) {
            Ok(Command::Serve(config)) => config.hot_reload,
            other => panic!("{other:?}"),
        };
        assert_eq!(mode(&[]), HotReload::Module);
        assert_eq!(mode(&[("NODE_ENV", "dev")]), HotReload::Module);
        assert_eq!(mode(&[("NODE_ENV", "production")]), HotReload::None);
        assert_eq!(mode(&[("NODE_ENV", "production"), ("RIP_HOT_RELOAD", "process")]), HotReload::Process);
    }

    #[test]
    fn workers_are_counted_by_cpus() {
        let count = |word: &str| config(&format!("app w:{word}")).workers;
        let cpus = count("auto").max;
        for (word, expected) in [
            ("half", cpus.div_ceil(2)),
            ("1x", cpus),
            ("2x", 2 * cpus),
            ("0.5x", cpus.div_ceil(2)),
            ("1.5x", (3 * cpus).div_ceil(2)),
            ("0.001x", 1),
        ] {
            assert_eq!(count(word), Workers { min: expected, max: expected }, "{word}");
        }
        assert_eq!(count("1..2x"), Workers { min: 1, max: 2 * cpus });
        assert_eq!(count("half..auto"), Workers { min: cpus.div_ceil(2), max: cpus });
    }

    #[test]
    fn rolls_go_side_by_side_unless_said() {
        let roll = |line: &str, environment: &[(&str, &str)]| match parse_with(line, environment) {
            Ok(Command::Serve(config)) => config.roll,
            other => panic!("{other:?}"),
        };
        assert_eq!(roll("app", &[]), RollMode::Side);
        assert_eq!(roll("app --roll=serial", &[]), RollMode::Serial);
        assert_eq!(roll("app", &[("RIP_ROLL", "serial")]), RollMode::Serial);
        assert_eq!(roll("app --roll=side", &[("RIP_ROLL", "serial")]), RollMode::Side);
    }

    #[test]
    fn complaints_name_what_was_given_and_what_would_do() {
        for (line, given, would_do) in [
            ("app --max-qeue=4", "--max-qeue", "--max-queue"),
            ("app --max-queue=many", "many", "a number"),
            ("app --read-timeout-ms=0", "0", "1 to"),
            ("app --hot-reload=often", "often", "none, process or module"),
            ("app --runtime=deno", "deno", "bun or node"),
            ("app --roll=fast", "fast", "side or serial"),
            ("app worker:4", "worker:4", "w:"),
            ("app w:x", "w:x", "w:4"),
            ("app w:-1x", "w:-1x", "w:2x"),
            ("app w:NaNx", "w:NaNx", "w:2x"),
            ("app w:0x", "w:0x", "w:2x"),
            ("app w:infx", "w:infx", "w:2x"),
            ("app w:2x..half", "w:2x..half", "min"),
            ("app w:99999x", "w:99999x", "w:2x"),
            ("app w:4..2", "w:4..2", "min"),
            ("app http:99999", "99999", "http:5002"),
            ("app http:example.com:80", "example.com", "localhost"),
            ("app http:fd:1", "fd:1", "http:fd:3"),
            ("app http:fd:3 metrics:fd:3", "descriptor 3", "once"),
            ("app --trust-proxy=10.0.0.0/64", "10.0.0.0/64", "loopback"),
            ("app --max-body=-1", "-1", "100m"),
            ("app other", "other", "app"),
            ("app shop.wsgi", "shop.wsgi", "rip-server app shop.wsgi:app"),
            ("app main.py", "main.py", "rip-server app/main.py"),
            ("reload app shop:app", "shop:app", "rip-server reload app"),
            ("shop.wsgi:app", "shop.wsgi:app", "rip-server . 'shop.wsgi:app'"),
            ("app a:b d:e", "d:e", "one of them"),
            ("app workers:auto", "workers:auto", "w:4"),
            ("app a:b -- uvicorn", "a:b", "command"),
            ("app w:2 w:3", "w:3", "one of them"),
            ("app r:2 r:3", "r:3", "one of them"),
            ("app c:2 c:3", "c:3", "one of them"),
            ("app c:0", "'0'", "1 to 1024"),
            ("app c:1025", "1025", "1 to 1024"),
            ("app concurrency:4", "concurrency:4", "c:16"),
            ("app r:2,3", "r:2,3", "r:10000,3600s"),
            ("app r:2,0s", "r:2,0s", "r:10000,3600s"),
            ("app r:60s", "r:60s", "r:10000,3600s"),
            ("app W:4", "W:4", "w:4"),
            ("app metrics:foo", "metrics:foo", "metrics:9090"),
            ("app --socket-mode=8 http:unix:/s", "'8'", "660"),
            ("app --socket-mode=1777 http:unix:/s", "1777", "660"),
            ("app --socket-mode=060 http:unix:/s", "060", "660"),
            ("app --socket-mode=+66 http:unix:/s", "+66", "660"),
            ("app --socket-mode=660", "--socket-mode", "http:unix:"),
            ("app --socket-group=web http:80", "--socket-group", "http:unix:"),
            ("app http:localhost:80 http:127.0.0.1:80", "localhost port 80", "127.0.0.1"),
            ("app http:80,proxy", "http:80,proxy", "--trust-proxy=10.0.0.0/8"),
            ("app http:80,prxy --trust-proxy=all", "80,prxy", "http:5002"),
            ("app metrics:80,proxy --trust-proxy=all", "80,proxy", "metrics:9090"),
            ("app http:80 http:80,proxy --trust-proxy=all", "port 80", "once"),
            ("app http:80 metrics:80", "port 80", "once"),
            ("app page:foo", "page:foo", "page:5003"),
            ("app page:127.0.0.1:90 metrics:127.0.0.1:90", "port 90", "once"),
            ("app pages:5003", "pages:5003", "page:5003"),
            ("app --page-host=shop.internal", "--page-host", "page:5003"),
            ("app page:5003 --page-host=http://shop", "http://shop", "shop.internal"),
            ("app --json=yes", "yes", "--json alone"),
            ("app --max-queue=3 --max-queue=4", "--max-queue", "twice"),
            ("app --max-queue", "--max-queue", "--max-queue=<N>"),
            ("app --variant=a/b", "a/b", "letters"),
            ("completions", "bash, zsh, fish", "rip-server completions bash"),
            ("list app", "app", "too many"),
            ("status app --check --json", "--check", "--json"),
            ("status app --failures --check", "--failures", "--check"),
            ("statu app", "statu", "rip-server status app"),
            ("Status app", "Status", "rip-server status app"),
            ("app reload", "reload", "rip-server reload app"),
            ("chekc app", "chekc", "rip-server check app"),
            ("check app --check", "--check", "unknown"),
            ("", "app", "rip-server ./my-app"),
        ] {
            let text = complaint(line);
            assert!(text.contains(given) && text.contains(would_do), "{line}: {text}");
            assert!(!text.contains('\n'), "{line}: {text}");
        }
    }

    #[test]
    fn timeouts_of_zero_are_out_of_range_but_the_queues() {
        assert_eq!(config("app --queue-timeout-ms=0").queue_timeout, Duration::ZERO);
        for flag in ["connect", "read", "client", "idle", "boot", "drain"] {
            complaint(&format!("app --{flag}-timeout-ms=0"));
        }
    }

    #[test]
    fn a_command_takes_everything_behind_the_two_dashes() {
        let config = config("app w:1 -- uvicorn --uds {socket} w:9");
        assert_eq!(config.workers, Workers { min: 1, max: 1 });
        let words = ["uvicorn", "--uds", "{socket}", "w:9"];
        assert_eq!(config.command, Some(words.iter().map(OsString::from).collect()));
    }

    #[test]
    fn a_command_listens_on_a_socket_or_on_a_port() {
        assert!(config("app -- next start -p {port}").command_takes_port());
        assert!(config("app -- env PORT={port} node server.js").command_takes_port());
        assert!(!config("app -- uvicorn --uds {socket}").command_takes_port());
        assert!(complaint("app -- run {socket} {port}").contains("one of them"));
    }

    #[test]
    fn verbs_take_the_app_and_where_its_sockets_lie() {
        match parse_with("reload app --socket-dir=/s --variant=blue", &[]) {
            Ok(Command::Ask { verb: Verb::Reload { canary: None }, place }) => {
                assert_eq!((place.socket_dir, place.variant.as_str()), (PathBuf::from("/s"), "blue"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(parse_with("--stop app", &[]), Ok(Command::Ask { verb: Verb::Stop, .. })));
        assert!(complaint("reload app --max-queue=4").contains("--max-queue"));
    }

    #[test]
    fn what_would_be_passed_over_in_silence_is_a_complaint() {
        assert!(complaint("status app --json --watch").contains("--watch"));
        assert!(complaint("reload app -- uvicorn").contains("verb"));
        let embedded = ["--", "uvicorn"].map(OsString::from).to_vec();
        assert!(matches!(read(embedded, &|_| None, true), Err(Usage(text)) if text.contains("no command")));
    }
}
