//! Whole command lines: what they come to, and what is said of wrong ones.

use super::*;
use crate::control::{CanaryPlan, TrialLength};
use std::collections::HashMap;

mod values;

fn parse_with(line: &str, environment: &[(&str, &str)]) -> Result<Command, Usage> {
    let environment: HashMap<String, String> =
        environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    read(line.split_whitespace().map(OsString::from).collect(), &|name| environment.get(name).cloned(), false)
}

pub(super) fn config(line: &str) -> Box<Config> {
    match parse_with(line, &[]) {
        Ok(Command::Serve(config)) => config,
        other => panic!("{line}: {other:?}"),
    }
}

pub(super) fn complaint(line: &str) -> String {
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
        ("app http:fd:2", "fd:2", "http:fd:3"),
        ("app http:unix:", "unix:", "http:unix:/path"),
        ("app http:65536", "65536", "http:5002"),
        ("app http:fd:3 metrics:fd:3", "descriptor 3", "once"),
        ("app --trust-proxy=10.0.0.0/64", "10.0.0.0/64", "loopback"),
        ("app --max-body=-1", "-1", "100m"),
        ("app --max-body=m", "'m'", "100m"),
        ("app --max-body=17179869184g", "17179869184g", "100m"),
        ("app --quarantine=0", "'0'", "1 to 100, or off"),
        ("app --quarantine=101", "101", "1 to 100, or off"),
        ("app --read-timeout-ms=86400001", "86400001", "1 to 86400000"),
        ("app --max-queue=1000001", "1000001", "0 to 1000000"),
        ("app --max-reloads=many", "many", "0 up"),
        ("app r:2,31622401s", "31622401s", "r:10000,3600s"),
        ("app w:4097", "4097", "w:4"),
        ("app w:0..2", "w:0..2", "min"),
        ("app -", "'-'", "'app' is the app"),
        ("app -x", "-x", "--help"),
        ("app x:y --trust-proxy=10.0.0.0/33", "10.0.0.0/33", "loopback"),
        ("app --socket-mode=06000 http:unix:/s", "06000", "660"),
        ("app --socket-mode=77 http:unix:/s", "'77'", "660"),
        ("app --socket-mode=00660 http:unix:/s", "00660", "660"),
        ("app --socket-mode=+660 http:unix:/s", "+660", "660"),
        ("app --socket-mode=6o0 http:unix:/s", "6o0", "660"),
        ("app --page-host=shop", "shop", "page:5003"),
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
        ("app http:localhost:80 http:[::1]:80", "localhost port 80", "::1"),
        ("app http:127.0.0.1:80 metrics:localhost:80", "localhost port 80", "127.0.0.1"),
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
        ("completions bash zsh", "bash", "too many"),
        ("man app", "man", "'man' is the app"),
        ("cgi-worker app", "app", "too many"),
        ("cgi-guard app", "app", "too many"),
        ("list app", "app", "too many"),
        ("list --variant", "--variant", "--variant=<name>"),
        ("reload app --canary-errors=5", "--canary-errors", "--canary=500"),
        ("reload app --canary", "--canary", "--canary=500 or --canary=30s"),
        ("reload app --canary=49", "'49'", "50 to 1000000"),
        ("reload app --canary=1000001", "1000001", "50 to 1000000"),
        ("reload app --canary=0s", "'0s'", "1s to 3600s"),
        ("reload app --canary=3601s", "3601s", "1s to 3600s"),
        ("reload app --canary=500 --canary-errors=101", "101", "0 to 100"),
        ("stop app other", "other", "too many"),
        ("status app --watch --check", "--check", "--watch"),
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

#[test]
fn the_program_is_asked_about_itself() {
    for line in ["--help", "-h", "help", "app --help", "app w:2 -h", "--help --version"] {
        assert!(matches!(parse_with(line, &[]), Ok(Command::Help)), "{line}");
    }
    for line in ["--version", "-V", "app --version"] {
        assert!(matches!(parse_with(line, &[]), Ok(Command::Version)), "{line}");
    }
    for (line, beginning) in [
        ("status --help", "rip-server status"),
        ("reload app -h", "rip-server reload"),
        ("man", ".TH RIP-SERVER"),
        ("completions bash", "# bash"),
        ("completions fish", "# fish"),
    ] {
        let printed = parse_with(line, &[]);
        assert!(
            matches!(&printed, Ok(Command::Print(text)) if text.starts_with(beginning)),
            "{line}: {printed:?}"
        );
    }
    // `help` with anything behind it is an app.
    assert!(matches!(parse_with("help w:2", &[]), Ok(Command::Serve(_))));
    assert!(matches!(parse_with("cgi-worker", &[]), Ok(Command::CgiWorker)));
    assert!(matches!(parse_with("cgi-guard", &[]), Ok(Command::CgiGuard)));
}

#[test]
fn verbs_take_flags_of_their_own() {
    let asked = |line: &str| match parse_with(line, &[]) {
        Ok(Command::Ask { verb, place }) => (verb, place.app),
        other => panic!("{line}: {other:?}"),
    };
    let status = |json, watch, check, failures| Verb::Status { json, watch, check, failures };
    let reload =
        |length, max_errors_percent| Verb::Reload { canary: Some(CanaryPlan { length, max_errors_percent }) };
    for (line, verb) in [
        ("status app", status(false, false, false, false)),
        ("status app --json", status(true, false, false, false)),
        ("status app --watch", status(false, true, false, false)),
        ("status app --check", status(false, false, true, false)),
        ("status app --failures --watch", status(false, true, false, true)),
        ("reload app --canary=50", reload(TrialLength::Requests(50), 5)),
        ("reload app --canary=1000000 --canary-errors=0", reload(TrialLength::Requests(1_000_000), 0)),
        (
            "reload app --canary=1s --canary-errors=100",
            reload(TrialLength::Time(Duration::from_secs(1)), 100),
        ),
        ("reload app --canary=3600s", reload(TrialLength::Time(Duration::from_secs(3600)), 5)),
        ("upgrade app", Verb::Upgrade),
    ] {
        assert_eq!(asked(line), (verb, Some("app".into())), "{line}");
    }
    assert_eq!(asked("stop").1, Some(".".into()));
    let checked = |line: &str| match parse_with(line, &[]) {
        Ok(Command::Check(config)) => config.place.app,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!((checked("check"), checked("check --max-queue=3")), (Some(".".into()), Some(".".into())));
    assert_eq!(checked("check ./app --max-queue=3"), Some("./app".into()));
    let listed = |line: &str| match parse_with(line, &[]) {
        Ok(Command::List { socket_dir, is_given }) => (socket_dir, is_given),
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(listed("list --socket-dir=/s"), (PathBuf::from("/s"), true));
    assert!(!listed("list").1);
    assert!(!listed("list --variant=x").1);
}

#[test]
fn a_program_that_is_its_own_app_takes_no_app_and_no_command() {
    let embedded = |line: &str| read(line.split_whitespace().map(OsString::from).collect(), &|_| None, true);
    assert!(matches!(embedded("w:2"), Ok(Command::Serve(config)) if config.place.app.is_none()));
    assert!(matches!(embedded("check"), Ok(Command::Check(config)) if config.place.app.is_none()));
    assert!(matches!(embedded("reload"), Ok(Command::Ask { place, .. }) if place.app.is_none()));
    for (line, complaint) in [
        ("./app", "this program is the app"),
        ("shop:app", "unknown token 'shop:app'"),
        ("reload app", "'app' is one word too many"),
        ("w:2 -- uvicorn", "runs no command"),
    ] {
        let text = embedded(line).err().map(|error| error.0).unwrap_or_default();
        assert!(text.contains(complaint), "{line}: {text}");
    }
}

#[test]
fn an_app_may_have_a_colon_in_its_path() {
    assert_eq!(config("./my:app w:2").place.app, Some(PathBuf::from("./my:app")));
    assert_eq!(config("w:2 my/x:1").place.app, Some(PathBuf::from("my/x:1")));
}

#[test]
fn what_is_not_text_is_a_complaint() {
    use std::os::unix::ffi::OsStringExt;
    let bad = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for (words, complaint) in [
        (vec![bad(b"app\xff")], "a word of the command line is not valid UTF-8"),
        (vec![bad(b"man"), bad(b"\xff")], "a word of the command line is not valid UTF-8"),
        (vec![bad(b"app"), bad(b"--variant"), bad(b"\xff")], "--variant has a value that is not valid UTF-8"),
    ] {
        let text = read(words, &|_| None, false).err().map(|error| error.0);
        assert_eq!(text.as_deref(), Some(complaint));
    }
}
