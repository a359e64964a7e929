//! Completions for shells: verbs, their own flags, and the flags of a start.

use super::{OwnFlag, SHELLS, VERBS, VerbRow, place_flags};
use crate::config::Usage;
use crate::config::table::{FLAGS, Flag, Kind};
use std::fmt::Write;

/// # Errors
/// There are none for that shell.
pub(in crate::config) fn completions(shell: Option<&str>) -> Result<String, Usage> {
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

/// Of `check` they are those of a start.
fn verbs_with_own_flags() -> impl Iterator<Item = &'static VerbRow> {
    VERBS.iter().filter(|verb| verb.name != "check")
}

fn names(verbs: impl Iterator<Item = &'static VerbRow>) -> String {
    verbs.map(|verb| verb.name).collect::<Vec<_>>().join(" ")
}

/// As it is typed: with a `=` where a value follows.
fn typed(name: &str, shown: &str) -> String {
    if shown.is_empty() { name.to_owned() } else { format!("{name}=") }
}

fn bash() -> String {
    let start: Vec<String> = FLAGS.iter().map(|flag| typed(flag.name, flag.shown())).collect();
    let (mut values, mut flags) = (String::new(), String::new());
    for flag in FLAGS {
        if let Kind::Choice { words, .. } = &flag.kind {
            // Writing to a String cannot fail.
            let _ = writeln!(
                values,
                "    {}=*) COMPREPLY=($(compgen -W '{}' -- \"${{word#*=}}\")); return;;",
                flag.name,
                words.join(" ")
            );
        }
    }
    for verb in verbs_with_own_flags() {
        let own = verb.flags.iter().map(|flag| typed(flag.name, flag.shown));
        let place = place_flags(verb).map(|flag| typed(flag.name, flag.shown()));
        let all: Vec<String> = own.chain(place).chain(["--help".to_owned()]).collect();
        let _ = writeln!(flags, "    {}) flags='{}';;", verb.name, all.join(" "));
    }
    format!(
        "# bash completion of rip-server: source <(rip-server completions bash)\n\
         _rip_server() {{\n  \
           local word=\"${{COMP_WORDS[COMP_CWORD]}}\" flags='{}'\n  \
           # With = among the word breaks, a value is a word of its own.\n  \
           if [ \"$word\" = = ]; then word=\"${{COMP_WORDS[COMP_CWORD-1]}}=\"\n  \
           elif [ \"$COMP_CWORD\" -gt 1 ] && [ \"${{COMP_WORDS[COMP_CWORD-1]}}\" = = ]; then\n    \
             word=\"${{COMP_WORDS[COMP_CWORD-2]}}=$word\"\n  \
           fi\n  \
           case \"${{COMP_WORDS[1]}}\" in\n{flags}  esac\n  \
           case \"$word\" in\n{values}    \
             --*=*) COMPREPLY=($(compgen -f -- \"${{word#*=}}\")); compopt -o filenames; return;;\n    \
             -*) COMPREPLY=($(compgen -W \"$flags\" -- \"$word\"))\n        \
                 if [ \"${{#COMPREPLY[@]}}\" != 1 ] || [[ \"${{COMPREPLY[0]}}\" = *= ]]; then compopt -o nospace; fi\n        \
                 return;;\n  \
           esac\n  \
           if [ \"$COMP_CWORD\" -gt 1 ]; then\n    \
             case \"${{COMP_WORDS[1]}}\" in\n      \
               completions) COMPREPLY=($(compgen -W '{}' -- \"$word\")); return;;\n      \
               list|man) COMPREPLY=(); return;;\n    \
             esac\n  \
           fi\n  \
           COMPREPLY=($(compgen -f -- \"$word\")); compopt -o filenames\n  \
           if [ \"$COMP_CWORD\" = 1 ]; then COMPREPLY+=($(compgen -W '{}' -- \"$word\")); fi\n\
         }}\n\
         complete -F _rip_server rip-server\n",
        start.join(" "),
        SHELLS.join(" "),
        names(VERBS.iter()),
    )
}

/// One argument of `_arguments`.
fn zsh_argument(name: &str, shown: &str, help: &str, value: &str) -> String {
    // What would end the description, or the name of the value.
    let help = help.replace('\\', "").replace('[', "(").replace(']', ")").replace('\'', "'\\''");
    format!("'{}[{help}]{value}'", typed(name, shown))
}

fn zsh_flag(flag: &Flag) -> String {
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
    zsh_argument(flag.name, flag.shown(), flag.help, &value)
}

fn zsh_own(flag: &OwnFlag) -> String {
    let value = if flag.shown.is_empty() { "" } else { ":value:" };
    zsh_argument(flag.name, flag.shown, flag.help, value)
}

fn zsh() -> String {
    let mut cases = String::new();
    for verb in verbs_with_own_flags() {
        let own = verb.flags.iter().map(zsh_own).chain(place_flags(verb).map(zsh_flag));
        let behind = match verb.name {
            "completions" => format!("'2:shell:({})'", SHELLS.join(" ")),
            _ if verb.asks_server() => "'2:app:_files'".to_owned(),
            _ => String::new(),
        };
        let all: Vec<String> =
            own.chain(["'--help[its help]'".to_owned(), "'1:verb:'".to_owned(), behind]).collect();
        let _ = writeln!(cases, "    {}) _arguments {}; return;;", verb.name, all.join(" \\\n      "));
    }
    let flags: Vec<String> = FLAGS.iter().map(zsh_flag).collect();
    let verb = |verb: &VerbRow| format!("'{}:{}'", verb.name, verb.brief().replace('\'', "'\\''"));
    let verbs: Vec<String> = VERBS.iter().map(verb).collect();
    format!(
        "#compdef rip-server\n\
         # zsh completion of rip-server: rip-server completions zsh > a folder of $fpath/_rip-server\n\
         _rip_server() {{\n  \
           if (( CURRENT > 2 )); then case \"$words[2]\" in\n{cases}  esac; fi\n  \
           _arguments \\\n    {} \\\n    \
             '1:app or verb:_rip_server_first' \\\n    \
             '*:app:_files'\n\
         }}\n\
         _rip_server_first() {{\n  local -a verbs=({})\n  _describe verb verbs\n  _files\n}}\n\
         _rip_server \"$@\"\n",
        flags.join(" \\\n    "),
        verbs.join(" "),
    )
}

/// A text for fish, in quotes.
fn fish_text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn fish_flag(text: &mut String, condition: &str, flag: &Flag) {
    let value = match &flag.kind {
        Kind::Switch | Kind::Question => String::new(),
        Kind::Choice { words, .. } => format!(" -x -a '{}'", words.join(" ")),
        Kind::Text { shown, .. } if shown.contains("path") || shown.contains("dir") => " -r -F".to_owned(),
        Kind::Number { .. } | Kind::Milliseconds { .. } | Kind::Size { .. } | Kind::Text { .. } => {
            " -x".to_owned()
        }
    };
    fish_row(text, condition, flag.name, &value, flag.help);
}

fn fish_row(text: &mut String, condition: &str, name: &str, value: &str, help: &str) {
    let (name, help) = (name.trim_start_matches('-'), fish_text(help));
    let _ = writeln!(text, "complete -c rip-server -n '{condition}' -l {name}{value} -d {help}");
}

fn fish() -> String {
    let mut text = String::from(
        "# fish completion of rip-server: rip-server completions fish > ~/.config/fish/completions/rip-server.fish\n\
         function __rip_server_verb\n  \
           set -l words (commandline -opc)\n  \
           test (count $words) -gt 1; and contains -- $words[2] $argv\n\
         end\n",
    );
    for verb in VERBS {
        let (name, brief) = (verb.name, fish_text(verb.brief()));
        let _ = writeln!(text, "complete -c rip-server -n __fish_use_subcommand -a {name} -d {brief}");
    }
    let shells = SHELLS.join(" ");
    let _ = writeln!(text, "complete -c rip-server -n '__rip_server_verb completions' -f -a '{shells}'");
    text.push_str("complete -c rip-server -n '__rip_server_verb list man' -f\n");
    for verb in verbs_with_own_flags() {
        let condition = format!("__rip_server_verb {}", verb.name);
        for flag in verb.flags {
            let value = if flag.shown.is_empty() { "" } else { " -x" };
            fish_row(&mut text, &condition, flag.name, value, flag.help);
        }
        for flag in place_flags(verb) {
            fish_flag(&mut text, &condition, flag);
        }
    }
    let start = format!("not __rip_server_verb {}", names(verbs_with_own_flags()));
    for flag in FLAGS {
        fish_flag(&mut text, &start, flag);
    }
    text
}
