//! Verbs for a person at a terminal: the current folder as the app, `list`, `status --check`, completions and the page
//! for man.

use crate::support::server::output;
use crate::support::skip::{note, skip};
use crate::support::{Output, Server, run, server_program, test_worker};
use std::path::Path;
use std::process::Command;

fn verb(words: &[&str], dir: &Path, sockets: &Path) -> Output {
    let mut command = Command::new(server_program());
    command.args(words).current_dir(dir).env("PWD", dir).env("RIP_SOCKET_DIR", sockets);
    output(command)
}

/// An app in a folder of its own.
fn app() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("shop").tempdir().expect("a temporary folder");
    std::fs::copy(test_worker(), dir.path().join("index")).expect("the app");
    dir
}

#[test]
fn the_current_folder_is_the_app_of_a_verb_without_a_path() {
    let dir = app();
    let mut server = Server::builder(dir.path()).arg("w:1").start();
    server.wait_for_workers(1);
    let sockets = server.socket_dir();
    let check = verb(&["status", "--check"], dir.path(), &sockets);
    assert_eq!((check.code, check.stdout), (0, format!("{}: healthy, workers=1\n", server.app())));
    let list = verb(
        &["list", "--socket-dir", &sockets.to_string_lossy()],
        Path::new("/"),
        Path::new("/nonexistent"),
    );
    let expected =
        [server.app(), &server.pid().to_string(), "healthy", "1", &server.listeners()[0]].map(str::to_owned);
    let lines: Vec<Vec<String>> =
        list.stdout.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    assert_eq!(lines.len(), 2, "{}", list.stdout);
    assert_eq!(lines[1][..5], expected, "{}", list.stdout);
    let stop = verb(&["stop"], dir.path(), &sockets);
    assert_eq!((stop.code, stop.stdout), (0, format!("{}: stopped\n", server.app())));
    let check = verb(&["status", "--check"], dir.path(), &sockets);
    assert!(check.code == 1 && check.stderr.contains("no server for"), "{}", check.stderr);
    assert_eq!(verb(&["list"], dir.path(), &sockets).code, 0);
}

#[test]
fn status_check_fails_while_no_worker_serves() {
    let server = Server::without_workers(&[]);
    let check = server.verb(["status", "--check"]);
    assert!(check.code == 1 && check.stderr.contains("is starting, workers=0"), "{}", check.stderr);
}

#[test]
fn each_verb_has_a_help_of_its_own() {
    for (name, word) in [
        ("status", "--check"),
        ("reload", "--canary"),
        ("stop", "--variant"),
        ("list", "running servers"),
        ("check", "boots one worker"),
        ("completions", "bash|zsh|fish"),
        ("man", "man(1)"),
    ] {
        let help = run([name, "--help"]);
        assert_eq!(help.code, 0);
        assert!(
            help.stdout.starts_with(&format!("rip-server {name} ")) && help.stdout.contains(word),
            "{}",
            help.stdout
        );
    }
}

#[test]
fn completions_and_the_page_have_every_flag() {
    let help = run(["--help"]).stdout;
    let flags = help.lines().filter_map(|line| line.strip_prefix("  --")?.split(' ').next());
    let flags: Vec<&str> = flags.collect();
    assert!(flags.len() > 20, "{flags:?}");
    for shell in ["bash", "zsh", "fish"] {
        let text = run(["completions", shell]).stdout;
        for flag in &flags {
            let written = if shell == "fish" { format!("-l {flag}") } else { format!("--{flag}") };
            assert!(text.contains(&written), "{shell}: {flag}");
        }
    }
    let page = run(["man"]).stdout.replace("\\-", "-");
    for flag in &flags {
        assert!(page.contains(&format!("\n.B --{flag}")), "{flag}");
    }
}

/// What bash offers behind these words, the last of which is completed.
fn offered(words: &[&str]) -> Option<Vec<String>> {
    let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let script = format!(
        "compopt() {{ :; }}; source <({} completions bash); COMP_WORDS=({list}); COMP_CWORD={}; _rip_server; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        server_program().display(),
        words.len() - 1
    );
    let output = Command::new("bash").args(["-c", &script]).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn bash_completes_verbs_flags_and_their_words() {
    let Some(verbs) = offered(&["rip-server", "sta"]) else { return note("bash", "there is none") };
    assert_eq!(verbs, ["status"]);
    let offers = |words: &[&str]| offered(words).unwrap_or_default();
    assert_eq!(offers(&["rip-server", "app", "--max-q"]), ["--max-queue="]);
    assert_eq!(offers(&["rip-server", "app", "--roll", "=", "s"]), ["side", "serial"]);
    assert_eq!(offers(&["rip-server", "app", "--hot-reload", "="]), ["none", "process", "module"]);
    assert_eq!(offers(&["rip-server", "completions", ""]), ["bash", "zsh", "fish"]);
}

#[test]
fn bash_offers_behind_a_verb_what_is_its_own() {
    let Some(flags) = offered(&["rip-server", "status", "--"]) else { return note("bash", "there is none") };
    assert_eq!(
        flags,
        [
            "--json",
            "--watch",
            "--failures",
            "--check",
            "--variant=",
            "--socket-prefix=",
            "--socket-dir=",
            "--help"
        ]
    );
    assert_eq!(offered(&["rip-server", "list", ""]).unwrap_or_default(), [""]);
    assert_eq!(offered(&["rip-server", "check", ".", "--max-q"]).unwrap_or_default(), ["--max-queue="]);
}

/// What a shell says to a script, which finds the completions in `$1`; `None`: there is no such shell.
fn said_by(shell: &str, script: &str) -> Option<Vec<String>> {
    if Command::new(shell).args(["-c", ":"]).output().is_err() {
        skip(&format!("completions for {shell}"), &format!("there is no {shell}"));
        return None;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("_rip-server");
    std::fs::write(&path, run(["completions", shell]).stdout).expect("a file");
    let mut command = Command::new(shell);
    let no_settings = if shell == "zsh" { "-f" } else { "--no-config" };
    command.arg(no_settings).args(["-c", script]).arg("zsh").arg(&path).current_dir(dir.path());
    let output = output(command);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    Some(output.stdout.lines().map(str::to_owned).collect())
}

#[test]
fn fish_offers_verbs_and_what_is_a_verbs_own() {
    let first = |line: &String| line.split('\t').next().unwrap_or_default().to_owned();
    let offers = |words: &str| -> Option<Vec<String>> {
        let lines = said_by("fish", &format!("source $argv[2]; complete -C '{words}'"))?;
        Some(lines.iter().map(first).collect())
    };
    let Some(verbs) = offers("rip-server sta") else { return };
    assert_eq!(verbs, ["status"]);
    for (words, expected) in [
        ("rip-server completions ", &["bash", "fish", "zsh"][..]),
        ("rip-server reload --can", &["--canary", "--canary-errors"]),
        ("rip-server status --wa", &["--watch"]),
        ("rip-server . --warm", &["--warm"]),
        ("rip-server . --roll=", &["--roll=serial", "--roll=side"]),
        ("rip-server list ", &[]),
    ] {
        assert_eq!(offers(words).unwrap_or_default(), expected, "{words}");
    }
}

#[test]
fn zsh_offers_verbs_and_what_is_a_verbs_own() {
    let arguments = |words: &str| -> Option<Vec<String>> {
        let script = format!(
            "words=({words}); CURRENT=$#words; _arguments() {{ print -rl -- \"$@\" }}; source $1; unfunction _rip_server"
        );
        said_by("zsh", &script)
    };
    let Some(status) = arguments("rip-server status ''") else { return };
    assert!(status.contains(&"--watch[draws it each second]".to_owned()), "{status:?}");
    assert!(status.contains(&"2:app:_files".to_owned()) && !status.join(" ").contains("--max-queue"));
    let start = arguments("rip-server . ''").unwrap_or_default();
    assert!(start.iter().any(|argument| argument.starts_with("--max-queue=[")), "{start:?}");
    let shells = arguments("rip-server completions ''").unwrap_or_default();
    assert!(shells.contains(&"2:shell:(bash zsh fish)".to_owned()), "{shells:?}");
}
