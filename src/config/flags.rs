//! How raw words become a [`Config`].

mod verbs;

use super::table::{FLAGS, Kind, MAX_MS, environment_name, known};
use super::written;
use super::{
    Command, Config, HotReload, JavaScript, Listen, ServerId, Usage, Verb, activation, complaints, page,
    words,
};
use crate::app::{self, Target};
use crate::balancer::QueueRule;
use crate::fleet::RollMode;
use crate::paths::{self, quoted};
use crate::spelling::near_miss;
use pico_args::Arguments;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How the server starts the built-in worker of a CGI app.
pub const CGI_WORKER: &str = "cgi-worker";
/// How a CGI worker starts the process that ends its scripts if it is killed.
pub const CGI_GUARD: &str = "cgi-guard";

/// One death may have any cause; a second one within a minute has that request.
const DEFAULT_QUARANTINE: u32 = 2;

/// Values of tokens, which are no names in Python: behind a misspelt token (`wrokers:auto`) they make no target.
const TOKEN_VALUES: [&str; 3] = ["auto", "localhost", "none"];

/// The words as they were given, sorted into tokens, flags and the command.
pub(super) struct Raw {
    flags: Arguments,
    command: Option<Vec<OsString>>,
}

impl Raw {
    pub(super) fn split(mut arguments: Vec<OsString>) -> Result<Self, Usage> {
        let dashes = arguments.iter().position(|argument| argument == "--");
        let command = dashes.map(|at| arguments.split_off(at).split_off(1));
        if command.as_ref().is_some_and(Vec::is_empty) {
            return Err(Usage(
                "'--' is there, but no command behind it; -- uvicorn --uds {socket} app:app would do".into(),
            ));
        }
        let has =
            |place: &str| command.iter().flatten().any(|argument| argument.to_string_lossy().contains(place));
        if has("{socket}") && has("{port}") {
            return Err(Usage(
                "the command has both {socket} and {port}; its server listens in one place, so one of them would do".into(),
            ));
        }
        Ok(Raw { flags: Arguments::from_vec(arguments), command })
    }

    pub(super) fn resolve(
        mut self,
        environment: &dyn Fn(&str) -> Option<String>,
        carries_app: bool,
    ) -> Result<Command, Usage> {
        let words = self.flags.clone().finish();
        let first = words.first().and_then(|word| word.to_str()).unwrap_or_default().to_owned();
        if self.flags.contains("--help") || self.flags.contains("-h") || self.asks_for_help() {
            return Ok(written::verb_help(&first).map_or(Command::Help, Command::Print));
        }
        match (first.as_str(), words.get(1).and_then(|word| word.to_str())) {
            ("completions", shell) if words.len() <= 2 => {
                return written::completions(shell).map(Command::Print);
            }
            ("man", None) if words.len() == 1 => return Ok(Command::Print(written::man())),
            _ => {}
        }
        if self.flags.contains("--version") || self.flags.contains("-V") {
            return Ok(Command::Version);
        }
        let mut reader = Reader { flags: self.flags, environment };
        let place = reader.place()?;
        let wants_stop = reader.flags.contains("--stop");
        if carries_app && self.command.is_some() {
            return Err(Usage("'--' has no place here: this program is the app, and runs no command".into()));
        }
        if wants_stop {
            return reader.ask(Verb::Stop, place, carries_app);
        }
        reader.check_switches()?;
        if first == "list" {
            return reader.list(place);
        }
        if first == "check" {
            return reader.check(place, self.command, carries_app);
        }
        match reader.verb()? {
            Some(internal @ (Command::CgiWorker | Command::CgiGuard)) => Ok(internal),
            Some(Command::Ask { .. }) if self.command.is_some() => {
                Err(Usage("'--' has no place behind a verb: the server has its command already".into()))
            }
            Some(Command::Ask { verb, .. }) => reader.ask(verb, place, carries_app),
            _ => reader.serve(place, self.command, carries_app),
        }
    }

    /// `rip-server help`, where no app of that name is meant.
    fn asks_for_help(&self) -> bool {
        let words = self.flags.clone().finish();
        words.len() == 1 && words[0] == "help" && !std::path::Path::new("help").exists()
    }
}

/// A value, and the flag or variable that gave it.
pub(super) struct Word {
    pub(super) name: &'static str,
    pub(super) text: String,
}

pub(super) struct Reader<'a> {
    flags: Arguments,
    environment: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn place(&mut self) -> Result<ServerId, Usage> {
        let socket_dir = self.text("--socket-dir")?.map(|dir| paths::absolute(dir.as_ref()));
        let variant = self.plain("--variant")?;
        let socket_prefix = self.plain("--socket-prefix")?;
        let dir = socket_dir.as_ref().map(|dir| ("--socket-dir", quoted(dir)));
        let names = [("--variant", &variant), ("--socket-prefix", &socket_prefix)];
        let names = names.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        Ok(ServerId {
            app: None,
            given: names.chain(dir).map(|(name, value)| format!("{name}={value}")).collect(),
            socket_dir: socket_dir.unwrap_or_else(|| default_socket_dir(self.environment)),
            variant: variant.unwrap_or_else(|| "server2".into()),
            socket_prefix,
        })
    }

    fn serve(
        mut self,
        mut place: ServerId,
        command: Option<Vec<OsString>>,
        carries_app: bool,
    ) -> Result<Command, Usage> {
        let node_env = (self.environment)("NODE_ENV").unwrap_or_default();
        let is_development = matches!(node_env.as_str(), "" | "dev" | "development");
        let hot_reload = match self.choice("--hot-reload")? {
            Some("process") => HotReload::Process,
            Some("module") => HotReload::Module,
            None if is_development => HotReload::Module,
            Some(_) | None => HotReload::None,
        };
        let javascript = match self.choice("--runtime")? {
            Some("bun") => JavaScript::Bun,
            Some(_) => JavaScript::Node,
            None => JavaScript::Any,
        };
        // Made absolute: workers start in another folder than the one in which it was typed.
        let env_file = self.text("--env-file")?.map(|path| paths::absolute(path.as_ref()));
        let log_file = self.text("--log-file")?.map(|path| paths::absolute(path.as_ref()));
        let roll = match self.choice("--roll")? {
            Some("serial") => RollMode::Serial,
            Some(_) | None => RollMode::Side,
        };
        let queue_rule = match self.choice("--queue")? {
            Some("fifo") => QueueRule::Fifo,
            Some(_) | None => QueueRule::Adaptive,
        };
        let (fork, warm) = self.fork(hot_reload)?;
        let mut config = Config {
            place: place.clone(),
            command,
            target: None,
            workers: words::cpus(),
            concurrency: 1,
            max_streams: self.number("--max-streams")? as usize,
            max_requests: 10_000,
            max_age: None,
            listen: Vec::new(),
            proxied: Vec::new(),
            socket_mode: self
                .argument("--socket-mode")?
                .map(|mode| words::mode(mode.name, &mode.text))
                .transpose()?,
            socket_group: self.text("--socket-group")?,
            metrics: Vec::new(),
            page: Vec::new(),
            page_hosts: match self.argument("--page-host")? {
                Some(argument) => page::host_names(argument.name, &argument.text)?,
                None => Vec::new(),
            },
            max_reloads: self.number("--max-reloads")?,
            hot_reload,
            is_development,
            max_queue: self.number("--max-queue")? as usize,
            queue_rule,
            queue_timeout: self.milliseconds("--queue-timeout-ms")?,
            connect_timeout: self.milliseconds("--connect-timeout-ms")?,
            read_timeout: self.milliseconds("--read-timeout-ms")?,
            client_timeout: self.milliseconds("--client-timeout-ms")?,
            idle_timeout: self.milliseconds("--idle-timeout-ms")?,
            boot_timeout: self.milliseconds("--boot-timeout-ms")?,
            drain_timeout: self.milliseconds("--drain-timeout-ms")?,
            json_logging: self.flags.contains("--json-logging") | self.flags.contains("--json"),
            log_file,
            access_log: !self.flags.contains("--no-access-log"),
            max_body_bytes: self.size("--max-body")?,
            max_spool_bytes: self.size("--max-spool")?,
            max_memory_bytes: self.size("--max-memory")?,
            shrink_after: Duration::from_millis(words::number(
                "RIP_SHRINK_AFTER_MS",
                &(self.environment)("RIP_SHRINK_AFTER_MS").unwrap_or("60000".into()),
                1..=MAX_MS,
            )?),
            trust_proxy: match self.argument("--trust-proxy")? {
                Some(argument) => words::trust(argument.name, &argument.text)?,
                None => Vec::new(),
            },
            fork,
            warm,
            preload: self.flags.values_from_str("--preload").map_err(|error| Usage(error.to_string()))?,
            javascript,
            cgi_pass_auth: self.flags.contains("--cgi-pass-auth")
                || (self.environment)("RIP_CGI_PASS_AUTH").is_some_and(|value| value == "1"),
            env_file,
            roll,
            quarantine: match self.argument("--quarantine")? {
                Some(argument) => words::quarantine(argument.name, &argument.text)?,
                None => DEFAULT_QUARANTINE,
            },
            keep_trying: (self.environment)("RIP_KEEP_TRYING").is_some_and(|value| value == "1"),
            pid_file: self.text("--pid-file")?.map(|path| paths::absolute(path.as_ref())),
            harnesses: &[],
            spool_dir: (self.environment)("TMPDIR")
                .filter(|dir| !dir.is_empty())
                .unwrap_or("/tmp".into())
                .into(),
        };
        let (mut has_workers, mut has_concurrency) = (false, false);
        let (mut has_requests, mut has_target) = (false, false);
        if let Some(count) = (self.environment)("RIP_CONCURRENCY").filter(|count| !count.is_empty()) {
            config.concurrency = words::concurrency("RIP_CONCURRENCY", &count)?;
        }
        for argument in self.remaining("is given twice")? {
            match argument.split_once(':') {
                Some(("w", count)) => {
                    config.workers = words::workers(count)?;
                    complaints::once(&mut has_workers, "w:", &argument)?;
                }
                Some(("c", count)) => {
                    config.concurrency = words::concurrency("c:", count)?;
                    complaints::once(&mut has_concurrency, "c:", &argument)?;
                }
                Some(("r", limits)) => {
                    (config.max_requests, config.max_age) = words::lifetime(limits)?;
                    complaints::once(&mut has_requests, "r:", &argument)?;
                }
                Some(("http", place)) => {
                    let bare = place.strip_suffix(",proxy");
                    config.listen.push(words::listen("http", bare.unwrap_or(place))?);
                    config.proxied.push(bare.is_some());
                }
                Some(("metrics", address)) => config.metrics.push(words::listen("metrics", address)?),
                Some(("page", address)) => config.page.push(words::listen("page", address)?),
                Some((_, what))
                    if Target::parse(&argument).is_some()
                        && !carries_app
                        && !TOKEN_VALUES.contains(&what) =>
                {
                    complaints::once(&mut has_target, "a target", &argument)?;
                    config.target = Target::parse(&argument);
                }
                Some((token, _)) if !argument.contains('/') && !std::path::Path::new(&argument).exists() => {
                    let meant = near_miss(
                        &token.to_ascii_lowercase(),
                        [
                            "w",
                            "c",
                            "r",
                            "http",
                            "metrics",
                            "page",
                            "workers",
                            "worker",
                            "concurrency",
                            "port",
                        ]
                        .into_iter(),
                    );
                    let meant = match meant {
                        Some("workers" | "worker" | "w") => "w:4",
                        Some("c" | "concurrency") => "c:16",
                        Some("r") => "r:10000",
                        Some("metrics") => "metrics:9090",
                        Some("page") => "page:5003",
                        Some(_) | None => "http:5002",
                    };
                    return Err(Usage(format!(
                        "unknown token '{argument}'; w:, c:, r:, http:, metrics: and page: are known ({meant}?)"
                    )));
                }
                _ if carries_app => {
                    return Err(Usage(format!("'{argument}' is one word too many: this program is the app")));
                }
                _ => match &place.app {
                    None => place.app = Some(argument.into()),
                    Some(app) => return Err(complaints::one_app_too_many(&app.to_string_lossy(), &argument)),
                },
            }
        }
        if let (Some(target), Some(_)) = (&config.target, &config.command) {
            return Err(Usage(format!(
                "'{target}' has no place beside a command, which names its app itself"
            )));
        }
        if place.app.is_none() && !carries_app {
            if let Some(target) = &config.target {
                return Err(Usage(format!(
                    "'{target}' is there, but no folder; rip-server . '{target}' would do"
                )));
            }
            return Err(Usage(
                "no app given; rip-server ./my-app w:4 http:5002 would do (--help tells more)".into(),
            ));
        }
        let given = activation::sockets(self.environment, std::process::id())?;
        if let (Some(typed), false) = (config.listen.first(), given.http.is_empty()) {
            return Err(Usage(format!(
                "http: is typed for {typed}, and sockets are given (LISTEN_FDS); one of them would do"
            )));
        }
        config.listen.extend(given.http);
        config.metrics.extend(given.metrics);
        config.page.extend(given.page);
        if config.listen.is_empty() {
            let port = match (self.environment)("PORT").filter(|port| !port.is_empty()) {
                Some(port) => words::number("PORT", &port, 0..=65535)? as u16,
                None => 5002,
            };
            config.listen.push(Listen::Tcp { address: None, port });
        }
        complaints::check_proxied(&config)?;
        complaints::check_socket_access(&config)?;
        page::check(&config)?;
        complaints::check_places(config.listen.iter().chain(&config.metrics).chain(&config.page))?;
        config.place = place;
        Ok(Command::Serve(Box::new(config)))
    }

    /// A switch takes no value: `--json=1` would otherwise be reported as an unknown flag.
    fn check_switches(&self) -> Result<(), Usage> {
        let words = self.flags.clone().finish();
        let with_value = words.iter().filter_map(|argument| argument.to_str()?.split_once('='));
        let is_switch = |name: &str| known(name).is_some_and(|flag| flag.shown().is_empty());
        match with_value.into_iter().find(|(name, _)| is_switch(name)) {
            Some((name, value)) => {
                Err(Usage(format!("{name} takes no value, not even '{value}'; {name} alone would do")))
            }
            None => Ok(()),
        }
    }

    /// The words that are left when all known flags are taken. An unknown flag among them is an error. `why_not`: what
    /// is wrong with a flag that is known.
    fn remaining(&mut self, why_not: &str) -> Result<Vec<String>, Usage> {
        let remaining = std::mem::replace(&mut self.flags, Arguments::from_vec(Vec::new())).finish();
        let mut words = Vec::new();
        for argument in remaining {
            let Ok(argument) = argument.into_string() else {
                return Err(Usage("a word of the command line is not valid UTF-8".into()));
            };
            if argument.starts_with('-') && argument != "-" {
                return Err(left_over(&argument, why_not));
            }
            words.push(argument);
        }
        Ok(words)
    }

    /// The value of a flag or else of its variable, with its name for complaints.
    pub(super) fn argument(&mut self, name: &'static str) -> Result<Option<Word>, Usage> {
        let row = known(name);
        debug_assert!(row.is_some(), "{name} is not in the table");
        let given: Option<String> = self.flags.opt_value_from_str(name).map_err(|error| match error {
            pico_args::Error::NonUtf8Argument => Usage(format!("{name} has a value that is not valid UTF-8")),
            _ => Usage(format!("{name} needs a value: {name}={}", row.map_or("", |flag| flag.shown()))),
        })?;
        if let Some(text) = given {
            return Ok(Some(Word { name, text }));
        }
        let Some(variable) = environment_name(name) else { return Ok(None) };
        let text = (self.environment)(variable).filter(|text| !text.is_empty());
        Ok(text.map(|text| Word { name: variable, text }))
    }

    fn text(&mut self, name: &'static str) -> Result<Option<String>, Usage> {
        Ok(self.argument(name)?.map(|argument| argument.text))
    }

    /// A part of a socket's name.
    fn plain(&mut self, name: &'static str) -> Result<Option<String>, Usage> {
        match self.argument(name)? {
            Some(argument) if !argument.text.chars().all(app::is_plain) => {
                let Word { name, text } = argument;
                Err(Usage(format!(
                    "{name} takes letters, digits, dots, dashes and underscores, not '{text}'"
                )))
            }
            argument => Ok(argument.map(|argument| argument.text)),
        }
    }

    fn number(&mut self, name: &'static str) -> Result<u64, Usage> {
        let (default, range) = match known(name).map(|flag| &flag.kind) {
            Some(Kind::Number { default, range }) => (*default, range.clone()),
            Some(Kind::Milliseconds { default, least }) => (*default, *least..=MAX_MS),
            _ => return Err(no_row(name)),
        };
        self.argument(name)?
            .map_or(Ok(default), |argument| words::number(argument.name, &argument.text, range))
    }

    fn milliseconds(&mut self, name: &'static str) -> Result<Duration, Usage> {
        self.number(name).map(Duration::from_millis)
    }

    fn size(&mut self, name: &'static str) -> Result<u64, Usage> {
        let Some(Kind::Size { default }) = known(name).map(|flag| &flag.kind) else {
            return Err(no_row(name));
        };
        self.argument(name)?.map_or(Ok(*default), |argument| words::size(argument.name, &argument.text))
    }

    /// One of the words in the flag's row; `None`: its default.
    pub(super) fn choice(&mut self, name: &'static str) -> Result<Option<&'static str>, Usage> {
        let Some(Kind::Choice { words, .. }) = known(name).map(|flag| &flag.kind) else {
            return Err(no_row(name));
        };
        self.argument(name)?.map(|argument| words::choice(argument.name, &argument.text, words)).transpose()
    }
}

/// A bug in this program. Every start reads every flag, so tests find it.
fn no_row(name: &str) -> Usage {
    Usage(format!("{name} has no row of that kind in the table of flags; please report this"))
}

/// The complaint about a flag that is left over. `why_not` is what is wrong with it, if a flag has that name.
fn left_over(argument: &str, why_not: &str) -> Usage {
    let name = argument.split('=').next().unwrap_or(argument);
    if known(name).is_some() {
        return Usage(format!("{name} {why_not}"));
    }
    match near_miss(name, FLAGS.iter().map(|flag| flag.name)) {
        Some(meant) => Usage(format!("unknown flag {name}; {meant} was perhaps meant")),
        None => Usage(format!("unknown flag {name}; rip-server --help lists the flags")),
    }
}

fn default_socket_dir(environment: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match environment("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("rip"),
        None => format!("/tmp/rip-{}", nix::unistd::getuid()).into(),
    }
}
