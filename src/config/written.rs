//! What the program writes of itself from the flags' one list: completions for shells, a page for `man`, the help of a
//! verb.

mod completions;
#[cfg(test)]
mod tests;

pub(super) use completions::completions;

use super::table::{FLAGS, Flag};
use std::fmt::Write;

/// A verb, what is behind it, its own flags, and what it does.
struct VerbRow {
    name: &'static str,
    behind: &'static str,
    flags: &'static [OwnFlag],
    about: &'static str,
}

/// A flag of one verb alone; `shown` is empty where it takes no value.
struct OwnFlag {
    name: &'static str,
    shown: &'static str,
    help: &'static str,
}

const fn own(name: &'static str, shown: &'static str, help: &'static str) -> OwnFlag {
    OwnFlag { name, shown, help }
}

/// The flags by which a verb finds its server.
const PLACE: [&str; 3] = ["--variant", "--socket-prefix", "--socket-dir"];
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

const VERBS: &[VerbRow] = &[
    VerbRow {
        name: "status",
        behind: "[<app-path>]",
        flags: &[
            own("--json", "", "everything that is known, as JSON"),
            own("--watch", "", "draws it each second"),
            own("--failures", "", "what has failed lately; with --watch what fails from now on, a line each"),
            own("--check", "", "one line; exits with 1 unless it is healthy"),
        ],
        about: "shows the server and its workers",
    },
    VerbRow {
        name: "reload",
        behind: "[<app-path>]",
        flags: &[
            own("--canary", "<N|Ns>", "the first new worker is on trial for so many answers, or seconds"),
            own("--canary-errors", "<percent>", "of them may fail"),
        ],
        about: "replaces all workers, one by one, without losing a request; exits with 1 if the new code does not start",
    },
    VerbRow {
        name: "upgrade",
        behind: "[<app-path>]",
        flags: &[],
        about: "replaces the server by a new one of the binary at its path, on the same sockets, and loses nobody",
    },
    VerbRow {
        name: "stop",
        behind: "[<app-path>]",
        flags: &[],
        about: "finishes what is running, ends the server, and returns when its process is gone",
    },
    VerbRow { name: "list", behind: "", flags: &[], about: "lists the running servers of this user" },
    VerbRow {
        name: "check",
        behind: "[<app-path>] [what a start would have…]",
        flags: &[],
        about: "boots one worker and asks it for its first page; reads all that a start would read, and does not touch a server of that app that runs; exits with 1 if the app fails, with 2 if the words are wrong",
    },
    VerbRow {
        name: "completions",
        behind: "bash|zsh|fish",
        flags: &[],
        about: "writes what the shell needs to complete verbs and flags",
    },
    VerbRow { name: "man", behind: "", flags: &[], about: "writes a page for man(1)" },
];

impl VerbRow {
    /// It asks a server, which is found by the app's name.
    fn asks_server(&self) -> bool {
        self.behind == "[<app-path>]"
    }

    /// Its first clause.
    fn brief(&self) -> &'static str {
        self.about.split(';').next().unwrap_or_default()
    }
}

/// Flags of the table by which a verb finds its server, or servers.
fn place_flags(verb: &VerbRow) -> impl Iterator<Item = &'static Flag> + use<> {
    let (asks, lists) = (verb.asks_server(), verb.name == "list");
    let is_its = move |name: &str| asks && PLACE.contains(&name) || lists && name == "--socket-dir";
    FLAGS.iter().filter(move |flag| is_its(flag.name))
}

/// The help of a verb; `None`: there is no such verb.
pub(super) fn verb_help(name: &str) -> Option<String> {
    let verb = VERBS.iter().find(|verb| verb.name == name)?;
    let mut text = format!("rip-server {} {}\n\n  {}.\n", verb.name, verb.behind, verb.about);
    if verb.name == "check" {
        text.push_str("  Without a path the app is the current folder. Tokens and flags are those of a start; where it would listen\n  does not matter.\n");
    } else if verb.asks_server() {
        text.push_str("  Without a path the app is the current folder. The server is found by its app's name, so give the\n  same --variant, --socket-prefix and --socket-dir as it got.\n");
    }
    text.push('\n');
    let own = verb.flags.iter().map(|flag| (flag.name, flag.shown, flag.help));
    for (name, shown, help) in own.chain(place_flags(verb).map(|flag| (flag.name, flag.shown(), flag.help))) {
        let name = if shown.is_empty() { name.to_owned() } else { format!("{name}={shown}") };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<26} {help}");
    }
    Some(text)
}

/// As roff takes it: no line begins with a dot or a quote, a dash is one.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// A page of section 1.
pub(super) fn man() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let help = super::table::help();
    let mut page = format!(
        ".TH RIP-SERVER 1 \"\" \"rip-server {version}\" \"User Commands\"\n.SH NAME\n\
         rip-server \\- an app, N copies of it as workers, and an HTTP/1.1 front end before them\n.SH SYNOPSIS\n"
    );
    let synopsis = help.lines().filter(|line| line.starts_with("rip-server ")).map(roff);
    page.push_str(&synopsis.collect::<Vec<_>>().join("\n.br\n"));
    page.push_str("\n.SH TOKENS\n");
    let tokens = help.lines().filter(|line| line.starts_with("  ") && !line.starts_with("  --"));
    for (name, about) in tokens.filter_map(|line| line.trim_start().split_once("  ")) {
        let _ = writeln!(page, ".TP\n.B {}\n{}", roff(name), roff(about.trim_start()));
    }
    page.push_str(".SH VERBS\n");
    for verb in VERBS {
        let _ = writeln!(page, ".TP\n.B {} {}\n{}", verb.name, roff(verb.behind), roff(verb.about));
        for flag in verb.flags {
            let equals = if flag.shown.is_empty() { "" } else { "=" };
            let (name, shown) = (roff(flag.name), roff(flag.shown));
            let _ = writeln!(page, ".br\n{name}{equals}{shown}: {}", roff(flag.help));
        }
    }
    page.push_str(".SH OPTIONS\n");
    for flag in FLAGS {
        let (name, shown) = (roff(flag.name), roff(flag.shown()));
        let _ = writeln!(page, ".TP\n.B {name}{}{shown}", if shown.is_empty() { "" } else { "=" });
        let _ = writeln!(page, "{}", roff(flag.help));
        let default = flag.default_text();
        if !default.is_empty() {
            let _ = writeln!(page, "Default: {}.", roff(&default));
        }
        if !flag.env.is_empty() {
            let _ = writeln!(page, "Variable: {}.", flag.env);
        }
    }
    page.push_str(
        ".SH EXIT STATUS\n0: a clean end; 1: trouble at run time; 2: a mistake on the command line.\n",
    );
    page
}
