//! The program's texts about itself: help of verbs, the page for `man`, completions.

use super::*;
use crate::config::table::Kind;

const PLACE_FLAGS: &str = "--variant= --socket-prefix= --socket-dir= --help";

#[test]
fn the_help_of_a_verb_names_its_flags_and_how_its_server_is_found() {
    let flags = |name: &str| {
        let text = verb_help(name).expect(name);
        assert!(text.starts_with(&format!("rip-server {name}")), "{text}");
        let lines = text.lines().filter_map(|line| line.strip_prefix("  --"));
        let flags = lines.map(|line| line.split(' ').next().unwrap_or_default().to_owned());
        (
            flags.collect::<Vec<_>>().join(" "),
            text.contains("Without a path"),
            text.contains("found by its app's name"),
        )
    };
    const PLACE: &str = "variant=<name> socket-prefix=<prefix> socket-dir=<dir>";
    for (name, own, path, by_name) in [
        ("status", format!("json watch failures check {PLACE}"), true, true),
        ("reload", format!("canary=<N|Ns> canary-errors=<percent> {PLACE}"), true, true),
        ("upgrade", PLACE.to_owned(), true, true),
        ("stop", PLACE.to_owned(), true, true),
        ("list", "socket-dir=<dir>".to_owned(), false, false),
        ("check", String::new(), true, false),
        ("completions", String::new(), false, false),
        ("man", String::new(), false, false),
    ] {
        assert_eq!(flags(name), (own, path, by_name), "{name}");
    }
    assert_eq!((verb_help("start"), verb_help("")), (None, None));
}

#[test]
fn the_page_for_man_has_all_tokens_verbs_and_flags() {
    let page = man();
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    assert_eq!(sections, ["NAME", "SYNOPSIS", "TOKENS", "VERBS", "OPTIONS", "EXIT STATUS"]);
    let section = |name: &str| {
        let (_, behind) = page.split_once(&format!(".SH {name}\n")).expect(name);
        behind.split("\n.SH").next().unwrap_or_default()
    };
    let names = |text: &str| {
        let names = text.lines().filter_map(|line| line.strip_prefix(".B "));
        names.map(|name| name.replace("\\-", "-")).collect::<Vec<_>>()
    };
    let tokens = names(section("TOKENS")).join(" ");
    assert_eq!(
        tokens,
        "<module>:<app> w:<N> c:<N> r:<N> r:<N>,<S>s http:<> http:<>,proxy metrics:<> page:<>"
    );
    let verbs = names(section("VERBS"));
    assert!(verbs.iter().zip(VERBS).all(|(line, verb)| line.starts_with(verb.name)), "{verbs:?}");
    assert_eq!((verbs.len(), names(section("OPTIONS")).len()), (VERBS.len(), FLAGS.len()));
    for text in [
        "rip\\-server list|completions <shell>|man",
        ".B \\-\\-max\\-queue=<N>\nrequests that may wait; more get 503\nDefault: 8192.\nVariable: RIP_MAX_QUEUE.\n",
        ".B \\-\\-env\\-file=<path>\nNAME=value lines for the workers; the real environment wins\nDefault: none.\n.TP",
        ".B \\-\\-version\nthe version\n.SH",
        ".br\n\\-\\-canary=<N|Ns>: the first",
        ".br\n\\-\\-watch: draws it",
    ] {
        assert!(page.contains(text), "{text} is not in {page}");
    }
}

#[test]
fn no_text_is_taken_for_a_command_of_roff() {
    assert_eq!(roff("a-b\\c"), "a\\-b\\ec");
    assert_eq!((roff(".TH"), roff("'x"), roff("a.b")), ("\\&.TH".into(), "\\&'x".into(), "a.b".into()));
}

#[test]
fn shells_are_those_that_are_named() {
    for shell in SHELLS {
        assert!(completions(Some(shell)).is_ok_and(|script| script.contains(shell)), "{shell}");
    }
    for other in [None, Some("sh"), Some("Bash")] {
        assert!(completions(other).is_err_and(|error| error.0.contains("bash, zsh, fish")), "{other:?}");
    }
}

fn script(shell: &str) -> String {
    completions(Some(shell)).expect(shell)
}

/// Whether what is typed behind it is the name of a file.
fn takes_file(flag: &Flag) -> bool {
    matches!(flag.kind, Kind::Text { shown: "<path>" | "<dir>", .. })
}

#[test]
fn bash_offers_flags_values_and_verbs() {
    let bash = script("bash");
    let start: Vec<String> = FLAGS
        .iter()
        .map(|flag| format!("{}{}", flag.name, if flag.shown().is_empty() { "" } else { "=" }))
        .collect();
    assert!(bash.contains(&format!(" flags='{}'\n", start.join(" "))), "{bash}");
    for row in [
        &format!("    status) flags='--json --watch --failures --check {PLACE_FLAGS}';;\n"),
        &format!("    reload) flags='--canary= --canary-errors= {PLACE_FLAGS}';;\n"),
        &format!("    stop) flags='{PLACE_FLAGS}';;\n"),
        "    list) flags='--socket-dir= --help';;\n",
        "    man) flags='--help';;\n",
        "--hot-reload=*) COMPREPLY=($(compgen -W 'none process module' ",
        "(compgen -W 'status reload upgrade stop list check completions man' ",
        "completions) COMPREPLY=($(compgen -W 'bash zsh fish' ",
    ] {
        assert!(bash.contains(row), "{row} is not in {bash}");
    }
    assert!(!bash.contains("    check) flags="), "{bash}");
}

#[test]
fn zsh_offers_flags_values_and_verbs() {
    let zsh = script("zsh");
    for flag in FLAGS {
        let value = match &flag.kind {
            Kind::Switch | Kind::Question => "'".to_owned(),
            Kind::Choice { words, .. } => format!(":value:({})'", words.join(" ")),
            _ if takes_file(flag) => ":value:_files'".to_owned(),
            _ => ":value:'".to_owned(),
        };
        let equals = if flag.shown().is_empty() { "" } else { "=" };
        let start = format!("    '{}{equals}[", flag.name);
        let row = zsh.lines().rfind(|line| line.starts_with(&start)).expect(flag.name);
        assert!(row.ends_with(&format!("]{value} \\")), "{row}");
    }
    for row in [
        "    status) _arguments '--json[everything that is known, as JSON]' \\\n",
        "    reload) _arguments '--canary=[the first new worker is on trial for so many answers, or seconds]:value:' \\\n",
        "'--help[its help]' \\\n      '1:verb:' \\\n      '2:app:_files'; return;;\n    reload)",
        "'--help[its help]' \\\n      '1:verb:' \\\n      ; return;;\n    completions)",
        "    completions) _arguments '--help[its help]' \\\n      '1:verb:' \\\n      '2:shell:(bash zsh fish)'; return;;\n",
        "'status:shows the server and its workers' 'reload:",
        "'check:boots one worker and asks it for its first page' ",
        "'--pid-file=[the server'\\''s pid; an upgrade writes the new one]:value:_files' ",
    ] {
        assert!(zsh.contains(row), "{row} is not in {zsh}");
    }
    assert!(!zsh.contains("    check) _arguments"), "{zsh}");
}

#[test]
fn fish_offers_flags_values_and_verbs() {
    let fish = script("fish");
    const START: &str = "complete -c rip-server -n 'not __rip_server_verb status reload upgrade stop list completions man' -l ";
    for flag in FLAGS {
        let value = match &flag.kind {
            Kind::Switch | Kind::Question => String::new(),
            Kind::Choice { words, .. } => format!(" -x -a '{}'", words.join(" ")),
            _ if takes_file(flag) => " -r -F".to_owned(),
            _ => " -x".to_owned(),
        };
        let row = format!("{START}{}{value} -d '", flag.name.trim_start_matches('-'));
        assert!(fish.contains(&row), "{row} is not in {fish}");
    }
    for row in [
        "complete -c rip-server -n __fish_use_subcommand -a status -d 'shows the server and its workers'\n",
        "complete -c rip-server -n '__rip_server_verb completions' -f -a 'bash zsh fish'\n",
        "complete -c rip-server -n '__rip_server_verb status' -l watch -d 'draws it each second'\n",
        "complete -c rip-server -n '__rip_server_verb reload' -l canary -x -d '",
        "complete -c rip-server -n '__rip_server_verb stop' -l socket-dir -r -F -d '",
        "complete -c rip-server -n '__rip_server_verb list' -l socket-dir -r -F -d '",
        "-l pid-file -r -F -d 'the server\\'s pid; an upgrade writes the new one'\n",
    ] {
        assert!(fish.contains(row), "{row} is not in {fish}");
    }
    assert!(
        !fish.contains("'__rip_server_verb check'") && !fish.contains("__rip_server_verb list' -l variant")
    );
}
