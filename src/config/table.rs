//! The table of flags: name, kind, range and default of the value, environment variable, help.

use std::fmt::Write;
use std::ops::RangeInclusive;

/// A day: a longer timeout is a mistake.
pub(super) const MAX_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Its environment variable; empty: none.
    pub(super) env: &'static str,
    pub(super) help: &'static str,
}

/// A flag's value, and its default.
pub(super) enum Kind {
    Switch,
    /// `--help` and `--version`, which are commands of their own.
    Question,
    Number {
        default: u64,
        range: RangeInclusive<u64>,
    },
    Milliseconds {
        default: u64,
        least: u64,
    },
    /// Bytes, with k, m, g.
    Size {
        default: u64,
    },
    /// One of these words. `default`: for a person.
    Choice {
        words: &'static [&'static str],
        default: &'static str,
    },
    /// Anything else: its placeholder in the help, and the default as text.
    Text {
        shown: &'static str,
        default: &'static str,
    },
}

impl Flag {
    /// The placeholder of its value in the help; empty for a switch.
    pub(super) fn shown(&self) -> &'static str {
        match self.kind {
            Kind::Switch | Kind::Question => "",
            Kind::Number { .. } | Kind::Milliseconds { .. } => "<N>",
            Kind::Size { .. } => "<size>",
            Kind::Choice { .. } => "<word>",
            Kind::Text { shown, .. } => shown,
        }
    }

    /// The default as text.
    pub(super) fn default_text(&self) -> String {
        match self.kind {
            Kind::Switch => "off".into(),
            Kind::Question => String::new(),
            Kind::Number { default, .. } | Kind::Milliseconds { default, .. } => default.to_string(),
            Kind::Size { default } => size_text(default),
            Kind::Choice { default, .. } | Kind::Text { default, .. } => default.into(),
        }
    }
}

/// As a person would type it: `100m`.
fn size_text(bytes: u64) -> String {
    let units = [(30, "g"), (20, "m"), (10, "k")];
    match units.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

const fn flag(name: &'static str, kind: Kind, env: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, env, help }
}

const fn number(default: u64, range: RangeInclusive<u64>) -> Kind {
    Kind::Number { default, range }
}

const fn milliseconds(default: u64, least: u64) -> Kind {
    Kind::Milliseconds { default, least }
}

const fn size(default: u64) -> Kind {
    Kind::Size { default }
}

const fn choice(words: &'static [&'static str], default: &'static str) -> Kind {
    Kind::Choice { words, default }
}

const fn text(shown: &'static str, default: &'static str) -> Kind {
    Kind::Text { shown, default }
}

pub(super) const FLAGS: &[Flag] = &[
    flag(
        "--hot-reload",
        choice(&["none", "process", "module"], "module in development, else none"),
        "RIP_HOT_RELOAD",
        "none, process or module",
    ),
    flag(
        "--max-reloads",
        number(10, 0..=u64::MAX),
        "RIP_MAX_RELOADS",
        "module reloads before a worker is replaced",
    ),
    flag("--max-queue", number(8192, 0..=1_000_000), "RIP_MAX_QUEUE", "requests that may wait; more get 503"),
    flag(
        "--queue-timeout-ms",
        milliseconds(2000, 0),
        "RIP_QUEUE_TIMEOUT_MS",
        "the longest wait for a worker, then 504",
    ),
    flag(
        "--queue",
        choice(&["adaptive", "fifo"], "adaptive"),
        "RIP_QUEUE",
        "fifo: waiting requests are served in order; adaptive: in a lasting overload newest first",
    ),
    flag("--connect-timeout-ms", milliseconds(200, 1), "RIP_CONNECT_TIMEOUT_MS", "to connect to a worker"),
    flag(
        "--read-timeout-ms",
        milliseconds(5000, 1),
        "RIP_READ_TIMEOUT_MS",
        "between two bytes of an answer, then 504",
    ),
    flag(
        "--client-timeout-ms",
        milliseconds(10_000, 1),
        "RIP_CLIENT_TIMEOUT_MS",
        "a whole head; each next byte of a body",
    ),
    flag(
        "--idle-timeout-ms",
        milliseconds(60_000, 1),
        "RIP_IDLE_TIMEOUT_MS",
        "an idle connection; a client that reads nothing",
    ),
    flag(
        "--boot-timeout-ms",
        milliseconds(30_000, 1),
        "RIP_BOOT_TIMEOUT_MS",
        "from a worker's start to its join",
    ),
    flag(
        "--drain-timeout-ms",
        milliseconds(30_000, 1),
        "RIP_DRAIN_TIMEOUT_MS",
        "to finish what is under way, at a stop",
    ),
    flag(
        "--roll",
        choice(&["side", "serial"], "side"),
        "RIP_ROLL",
        "side or serial: old workers of a reload drain side by side, or one after the other",
    ),
    flag(
        "--quarantine",
        text("<N|off>", "2"),
        "RIP_QUARANTINE",
        "a request in which so many workers died within a minute gets 503",
    ),
    flag(
        "--fork",
        choice(&["auto", "always", "never"], "auto; never with --hot-reload=module"),
        "RIP_FORK",
        "whether Python and Ruby workers are forked from a template that has loaded the app: auto (where that is safe), always or never",
    ),
    flag(
        "--warm",
        text("<path>", "none"),
        "",
        "a page that the template asks its app for before its first fork: what that loads is shared",
    ),
    flag("--max-body", size(100 << 20), "RIP_MAX_BODY", "the largest request body; more gets 413"),
    flag(
        "--max-spool",
        size(10 << 30),
        "RIP_MAX_SPOOL",
        "temporary disk (TMPDIR) for waiting bodies and answers, all together",
    ),
    flag(
        "--max-streams",
        number(1000, 0..=super::MAX_STREAMS),
        "RIP_MAX_STREAMS",
        "open event streams and WebSockets for each worker; more get 503",
    ),
    flag(
        "--max-memory",
        size(0),
        "RIP_MAX_MEMORY",
        "a worker whose resident memory is above it after an answer is replaced; 0: never",
    ),
    flag(
        "--trust-proxy",
        text("<list>", "nobody"),
        "RIP_TRUST_PROXY",
        "whose X-Forwarded-* are believed: addresses, networks, loopback, all",
    ),
    flag(
        "--json-logging",
        Kind::Switch,
        "",
        "access lines as JSON on stdout, all else on stderr (also --json)",
    ),
    flag("--json", Kind::Switch, "", "the same"),
    flag("--no-access-log", Kind::Switch, "", "no access lines"),
    flag(
        "--log-file",
        text("<path>", "none: stdout"),
        "",
        "takes what would go to stdout; SIGUSR1 opens it anew",
    ),
    flag(
        "--page-host",
        text("<names>", "none"),
        "",
        "host names under which the operators' page is shown, beside addresses and localhost: shop.internal,shop",
    ),
    flag(
        "--pid-file",
        text("<path>", "none"),
        "RIP_PID_FILE",
        "the server's pid; an upgrade writes the new one",
    ),
    flag("--variant", text("<name>", "server2"), "RIP_VARIANT", "tells two servers of one app apart"),
    flag("--socket-prefix", text("<prefix>", "rip_<variant>_<app>"), "", "names of the sockets"),
    flag(
        "--socket-dir",
        text("<dir>", "$XDG_RUNTIME_DIR/rip, else /tmp/rip-<uid>"),
        "RIP_SOCKET_DIR",
        "where the sockets lie",
    ),
    flag("--socket-mode", text("<octal>", "as the umask says"), "", "permissions of Unix listeners: 660"),
    flag(
        "--socket-group",
        text("<group>", "none"),
        "",
        "the group of Unix listeners, by name or number; alone it means mode 660",
    ),
    flag(
        "--preload",
        text("<module>", "what the app's bunfig.toml says"),
        "",
        "loaded before the app by Bun (--preload) or Node (--import); may be repeated",
    ),
    flag(
        "--runtime",
        choice(&["bun", "node"], "bun where it is installed"),
        "RIP_RUNTIME",
        "what runs a JavaScript app: bun or node",
    ),
    flag(
        "--env-file",
        text("<path>", "none"),
        "",
        "NAME=value lines for the workers; the real environment wins",
    ),
    flag("--cgi-pass-auth", Kind::Switch, "RIP_CGI_PASS_AUTH", "CGI scripts get HTTP_AUTHORIZATION"),
    flag("--help", Kind::Question, "", "this text"),
    flag("--version", Kind::Question, "", "the version"),
];

/// The flag of that name.
pub(super) fn known(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The variable that stands for a flag.
pub(super) fn environment_name(name: &str) -> Option<&'static str> {
    known(name).map(|flag| flag.env).filter(|env| !env.is_empty())
}

/// What the program prints for `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "rip-server: an app, N copies of it as workers, and an HTTP/1.1 front end before them\n\n\
         rip-server <app-path> [<module>:<app>] [w:<N|auto|half|2x|min..max>] [c:<N>] [r:<N>[,<S>s]] [http:<[addr:]port|unix:path>] [flags] [-- command…]\n\
         rip-server status|reload|upgrade|stop [<app-path>]   (status also with --json, --watch, --failures or --check, reload with --canary=<N|Ns>)\n\
         rip-server check [<app-path>] […]   (boots one worker with these words, asks it, says what it found)\n\
         rip-server list|completions <shell>|man   (--help behind a verb tells more)\n\n\
         \u{20} <module>:<app>  what of a Python project is served: shop.wsgi:application, 'shop:create_app()'   [found by looking]\n\
         \u{20} w:<N>    workers: a number, auto (one for each CPU), half or 2x of that, min..max (grows while requests wait), 0 (others join)\n\
         \u{20} c:<N>    requests at once for each worker, 1 to 1024   [1]   RIP_CONCURRENCY\n\
         \u{20} r:<N>    at most about N requests a worker, then a successor; 0 = never   [10000]\n\
         \u{20} r:<N>,<S>s  the same, and after about S seconds   [no age]\n\
         \u{20} http:<>  where to listen: a port, address:port, unix:path, fd:N (a socket that it inherits); may be repeated   [what systemd gives, else 5002, all addresses]\n\
         \u{20} http:<>,proxy  the same, for proxies that say first who has connected (PROXY protocol, of --trust-proxy)\n\
         \u{20} metrics:<>  Prometheus text over HTTP: a port, address:port, unix:path   [none]\n\
         \u{20} page:<>  a page for operators: a port of loopback, address:port, unix:path   [none]\n\n",
    );
    for flag in FLAGS {
        let default = match flag.default_text() {
            none if none.is_empty() => none,
            default => format!("   [{default}]"),
        };
        let env = if flag.env.is_empty() { String::new() } else { format!("   {}", flag.env) };
        let name = format!("{} {}", flag.name, flag.shown());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<27} {}{default}{env}", flag.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_one_of_the_values_that_its_flag_takes() {
        for flag in FLAGS {
            let is_fitting = match &flag.kind {
                Kind::Number { default, range } => range.contains(default),
                Kind::Milliseconds { default, least } => (*least..=MAX_MS).contains(default),
                Kind::Choice { words, default } => words.iter().any(|word| default.contains(word)),
                _ => true,
            };
            assert!(is_fitting, "{}", flag.name);
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_typed() {
        let sizes = [0, 1000, 1 << 10, 100 << 20, 10 << 30, (1 << 30) + (1 << 20)];
        assert_eq!(sizes.map(size_text), ["0", "1000", "1k", "100m", "10g", "1025m"]);
    }

    #[test]
    fn the_help_has_a_line_for_each_flag() {
        let help = help();
        for (name, parts) in [
            ("--max-queue", &["  --max-queue <N> ", "   [8192]", "   RIP_MAX_QUEUE"][..]),
            ("--read-timeout-ms", &["<N>", "[5000]", "RIP_READ_TIMEOUT_MS"]),
            ("--max-body", &["<size>", "[100m]", "RIP_MAX_BODY"]),
            ("--max-spool", &["[10g]"]),
            ("--queue", &["<word>", "[adaptive]"]),
            ("--env-file", &["<path>", "[none]"]),
            ("--no-access-log", &["[off]"]),
        ] {
            let line = help.lines().find(|line| line.trim_start().split(' ').next() == Some(name));
            let line = line.expect(name);
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        }
        for flag in FLAGS {
            let line = help.lines().find(|line| line.trim_start().split(' ').next() == Some(flag.name));
            let line = line.expect(flag.name);
            assert!(line.contains(flag.help) && line.ends_with(flag.env), "{line}");
            assert!(!line.contains("[]") && !line.ends_with(' '), "{line}");
        }
        let version = help.lines().find(|line| line.contains("--version")).expect("a line");
        assert!(version.ends_with("the version"), "{version}");
    }

    #[test]
    fn a_flag_is_known_by_its_whole_name() {
        assert!(known("--max-queue").is_some_and(|flag| flag.env == "RIP_MAX_QUEUE"));
        assert!(known("--max").is_none() && known("max-queue").is_none());
        assert_eq!(environment_name("--max-queue"), Some("RIP_MAX_QUEUE"));
        assert_eq!((environment_name("--env-file"), environment_name("--none")), (None, None));
    }
}
