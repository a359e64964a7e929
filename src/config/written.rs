//! What the program writes of itself from the flags' one list: completions for shells, a page for `man`, the help of a
//! verb.

use super::Usage;
use super::table::{FLAGS, Flag, Kind};
use std::fmt::Write;

/// A verb, what is behind it, its flags, and what it does.
struct VerbRow {
    name: &'static str,
    behind: &'static str,
    flags: &'static [&'static str],
    about: &'static str,
}

/// The flags by which a verb finds its server.
const PLACE: [&str; 3] = ["--variant", "--socket-prefix", "--socket-dir"];
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

const VERBS: &[VerbRow] = &[
    VerbRow {
        name: "status",
        behind: "[<app-path>]",
        flags: &["--json", "--watch", "--check"],
        about: "shows the server and its workers; --watch draws it each second; --check exits with 1 unless it is healthy",
    },
    VerbRow {
        name: "reload",
        behind: "[<app-path>]",
        flags: &["--canary", "--canary-errors"],
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
        name: "completions",
        behind: "bash|zsh|fish",
        flags: &[],
        about: "writes what the shell needs to complete verbs and flags",
    },
    VerbRow { name: "man", behind: "", flags: &[], about: "writes a page for man(1)" },
];

/// The help of a verb; `None`: there is no such verb.
pub(super) fn verb_help(name: &str) -> Option<String> {
    let verb = VERBS.iter().find(|verb| verb.name == name)?;
    let mut text = format!("rip-server {} {}\n\n  {}.\n", verb.name, verb.behind, verb.about);
    if verb.behind.starts_with("[<app") {
        text.push_str("  Without a path the app is the current folder. The server is found by its app's name, so give the\n  same --variant, --socket-prefix and --socket-dir as it got.\n");
    }
    let flags = verb.flags.iter().copied().chain(PLACE.into_iter().filter(|_| takes_place(verb)));
    text.push('\n');
    for flag in flags {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {flag}");
    }
    Some(text)
}

fn takes_place(verb: &VerbRow) -> bool {
    verb.behind.starts_with("[<app")
}

/// # Errors
/// There are none for that shell.
pub(super) fn completions(shell: Option<&str>) -> Result<String, Usage> {
    match shell {
        Some("bash") => Ok(bash()),
        Some("zsh") => Ok(zsh()),
        Some("fish") => Ok(fish()),
        other => Err(Usage(format!(
            "there are completions for {}, not for '{}'; rip-server completions bash would do",
            SHELLS.join(", "),
            other.unwrap_or_default()
        ))),
    }
}

/// As it is typed: with a `=` where a value follows.
fn typed(flag: &Flag) -> String {
    if flag.shown().is_empty() { flag.name.to_owned() } else { format!("{}=", flag.name) }
}

fn verb_names() -> String {
    VERBS.iter().map(|verb| verb.name).collect::<Vec<_>>().join(" ")
}

fn bash() -> String {
    let flags: Vec<String> = FLAGS.iter().map(typed).collect();
    let mut cases = String::new();
    for flag in FLAGS {
        if let Kind::Choice { words, .. } = &flag.kind {
            let _ = writeln!(
                cases,
                "    {}=*) COMPREPLY=($(compgen -W '{}' -- \"${{word#*=}}\")); return;;",
                flag.name,
                words.join(" ")
            );
        }
    }
    format!(
        "# bash completion of rip-server: source <(rip-server completions bash)\n\
         _rip_server() {{\n  \
           local word=\"${{COMP_WORDS[COMP_CWORD]}}\"\n  \
           # With = among the word breaks, a value is a word of its own.\n  \
           if [ \"$word\" = = ]; then word=\"${{COMP_WORDS[COMP_CWORD-1]}}=\"\n  \
           elif [ \"$COMP_CWORD\" -gt 1 ] && [ \"${{COMP_WORDS[COMP_CWORD-1]}}\" = = ]; then\n    \
             word=\"${{COMP_WORDS[COMP_CWORD-2]}}=$word\"\n  \
           fi\n  \
           case \"$word\" in\n{cases}    \
             -*) COMPREPLY=($(compgen -W '{}' -- \"$word\")); compopt -o nospace; return;;\n  \
           esac\n  \
           COMPREPLY=($(compgen -f -- \"$word\")); compopt -o filenames\n  \
           if [ \"$COMP_CWORD\" = 1 ]; then COMPREPLY+=($(compgen -W '{}' -- \"$word\")); fi\n  \
           if [ \"${{COMP_WORDS[1]}}\" = completions ]; then COMPREPLY=($(compgen -W '{}' -- \"$word\")); fi\n\
         }}\n\
         complete -F _rip_server rip-server\n",
        flags.join(" "),
        verb_names(),
        SHELLS.join(" "),
    )
}

/// Without what a shell would read in a quoted text.
fn plain(text: &str) -> String {
    text.replace(['\'', '[', ']', '`', '\\'], "").replace(':', " -")
}

fn zsh() -> String {
    let mut lines = String::new();
    for flag in FLAGS {
        let value = match &flag.kind {
            Kind::Switch | Kind::Question => String::new(),
            Kind::Choice { words, .. } => format!(":value:({})", words.join(" ")),
            Kind::Text { shown, .. } if shown.contains("path") || shown.contains("dir") => {
                ":value:_files".to_owned()
            }
            Kind::Number { .. } | Kind::Milliseconds { .. } | Kind::Size { .. } | Kind::Text { .. } => {
                ":value:".to_owned()
            }
        };
        let _ = writeln!(lines, "    '{}[{}]{value}' \\", typed(flag), plain(flag.help));
    }
    format!(
        "#compdef rip-server\n\
         # zsh completion of rip-server: rip-server completions zsh > a folder of $fpath/_rip-server\n\
         _rip_server() {{\n  \
           _arguments \\\n{lines}    \
             '1:app or verb:_rip_server_first' \\\n    \
             '*:app:_files'\n\
         }}\n\
         _rip_server_first() {{\n  compadd {}\n  _files\n}}\n\
         _rip_server \"$@\"\n",
        verb_names()
    )
}

fn fish() -> String {
    let mut text = String::from(
        "# fish completion of rip-server: rip-server completions fish > ~/.config/fish/completions/rip-server.fish\n",
    );
    for verb in VERBS {
        let (name, about) = (verb.name, plain(verb.about));
        let _ = writeln!(text, "complete -c rip-server -n __fish_use_subcommand -a {name} -d '{about}'");
    }
    let shells = SHELLS.join(" ");
    let _ = writeln!(
        text,
        "complete -c rip-server -n '__fish_seen_subcommand_from completions' -f -a '{shells}'"
    );
    for flag in FLAGS {
        let value = match &flag.kind {
            Kind::Switch | Kind::Question => String::new(),
            Kind::Choice { words, .. } => format!(" -x -a '{}'", words.join(" ")),
            Kind::Number { .. } | Kind::Milliseconds { .. } | Kind::Size { .. } | Kind::Text { .. } => {
                " -r".to_owned()
            }
        };
        let name = flag.name.trim_start_matches('-');
        let _ = writeln!(text, "complete -c rip-server -l {name}{value} -d '{}'", plain(flag.help));
    }
    text
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
