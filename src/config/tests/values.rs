//! What single words come to: defaults, ranges, places, choices.

use super::*;

#[test]
fn who_says_nothing_gets_the_documented_defaults() {
    let config = config("app");
    assert_eq!((config.max_requests, config.max_age, config.max_reloads), (10_000, None, 10));
    assert_eq!((config.max_queue, config.max_streams, config.quarantine), (8192, 1000, 2));
    assert_eq!(
        (config.max_body_bytes, config.max_spool_bytes, config.max_memory_bytes),
        (104_857_600, 10_737_418_240, 0)
    );
    let ms = [
        (config.queue_timeout, 2000),
        (config.connect_timeout, 200),
        (config.read_timeout, 5000),
        (config.client_timeout, 10_000),
        (config.idle_timeout, 60_000),
        (config.boot_timeout, 30_000),
        (config.drain_timeout, 30_000),
        (config.shrink_after, 60_000),
    ];
    for (timeout, ms) in ms {
        assert_eq!(timeout, Duration::from_millis(ms));
    }
    assert_eq!(config.queue_rule, QueueRule::Adaptive);
    assert_eq!(
        (config.javascript, config.listen),
        (JavaScript::Any, [Listen::Tcp { address: None, port: 5002 }].into())
    );
    assert!(config.access_log && !config.json_logging && !config.cgi_pass_auth && !config.keep_trying);
    assert_eq!((config.spool_dir, config.place.variant), (PathBuf::from("/tmp"), "server2".to_owned()));
}

#[test]
fn values_may_fill_their_ranges() {
    let age = |word: &str| config(&format!("app r:5,{word}")).max_age.map(|age| age.as_secs());
    assert_eq!((age("1s"), age("31622400s")), (Some(1), Some(366 * 24 * 60 * 60)));
    assert_eq!(config("app --read-timeout-ms=86400000").read_timeout, Duration::from_secs(24 * 60 * 60));
    let quarantine = |word: &str| config(&format!("app --quarantine={word}")).quarantine;
    assert_eq!(["1", "100", "off"].map(quarantine), [1, 100, 0]);
    let body = |word: &str| config(&format!("app --max-body={word}")).max_body_bytes;
    assert_eq!(["7", "7k", "7M", "7g"].map(body), [7, 7 << 10, 7 << 20, 7 << 30]);
    assert_eq!(config("app w:4096").workers, Workers { min: 4096, max: 4096 });
    assert_eq!(config("app w:3..3").workers, Workers { min: 3, max: 3 });
    assert_eq!(config("app w:0").workers, Workers { min: 0, max: 0 });
    assert_eq!(config("app c:1024").concurrency, 1024);
    let mode = |word: &str| config(&format!("app --socket-mode={word} http:unix:/s")).socket_mode;
    assert_eq!(["600", "0660", "777"].map(mode), [Some(0o600), Some(0o660), Some(0o777)]);
    assert_eq!(config("app --socket-group=web page:unix:/s").socket_group.as_deref(), Some("web"));
}

#[test]
fn places_are_ports_addresses_paths_or_descriptors() {
    let listen = |word: &str| config(&format!("app {word} --trust-proxy=all")).listen;
    let tcp = |address: &str, port| Listen::Tcp { address: address.parse().ok(), port };
    for (word, place) in [
        ("http:0", tcp("", 0)),
        ("http:65535", tcp("", 65535)),
        ("http:*:80", tcp("", 80)),
        ("http::80", tcp("", 80)),
        ("http:[::1]:80", tcp("::1", 80)),
        ("http:::1:80", tcp("::1", 80)),
        ("http:10.0.0.1:80,proxy", tcp("10.0.0.1", 80)),
        ("http:localhost:80", Listen::Localhost { port: 80 }),
        ("http:unix:/a:b", Listen::Unix("/a:b".into())),
        ("http:fd:3", Listen::Descriptor(3)),
    ] {
        assert_eq!(listen(word), [place], "{word}");
    }
    // The same port of another address is another place; port 0 is any port.
    for places in [
        "http:localhost:80 http:127.0.0.1:81",
        "http:localhost:80 http:10.0.0.1:80",
        "http:127.0.0.1:80 http:[::1]:80",
        "http:localhost:0 http:127.0.0.1:0",
        "http:0 http:0",
    ] {
        assert_eq!(listen(places).len(), 2, "{places}");
    }
    let proxied = config("app http:80,proxy http:81 --trust-proxy=all").proxied;
    assert_eq!(proxied, [true, false]);
    for (place, shown) in [
        ("10.0.0.1:80", "http:10.0.0.1:80,proxy"),
        ("[::1]:80", "http:[::1]:80,proxy"),
        ("localhost:80", "http:localhost:80,proxy"),
        ("unix:/s", "http:unix:/s,proxy"),
        ("fd:3", "http:fd:3,proxy"),
    ] {
        let text = complaint(&format!("app http:{place},proxy"));
        assert!(text.starts_with(&format!("{shown} is there")), "{text}");
    }
}

#[test]
fn switches_are_flags_and_some_are_variables() {
    let with = |line: &str, environment: &[(&str, &str)]| match parse_with(line, environment) {
        Ok(Command::Serve(config)) => config,
        other => panic!("{line}: {other:?}"),
    };
    for line in ["app --json", "app --json-logging", "app --json --json-logging"] {
        assert!(config(line).json_logging, "{line}");
    }
    assert!(!config("app --no-access-log").access_log);
    assert!(config("app --cgi-pass-auth").cgi_pass_auth);
    for (value, is_on) in [("1", true), ("0", false), ("", false)] {
        assert_eq!(with("app", &[("RIP_CGI_PASS_AUTH", value)]).cgi_pass_auth, is_on, "{value}");
        assert_eq!(with("app", &[("RIP_KEEP_TRYING", value)]).keep_trying, is_on, "{value}");
    }
    assert!(with("app --cgi-pass-auth", &[("RIP_CGI_PASS_AUTH", "0")]).cgi_pass_auth);
    let spool_dir = |value: &str| with("app", &[("TMPDIR", value)]).spool_dir;
    assert_eq!((spool_dir("/big"), spool_dir("")), (PathBuf::from("/big"), PathBuf::from("/tmp")));
    let socket_dir = |value: &str| with("app", &[("XDG_RUNTIME_DIR", value)]).place.socket_dir;
    assert_eq!(socket_dir("/run/user/1"), PathBuf::from("/run/user/1/rip"));
    assert!(socket_dir("").starts_with("/tmp"));
    let port = |value: &str| with("app", &[("PORT", value)]).listen;
    assert_eq!(port("80"), [Listen::Tcp { address: None, port: 80 }]);
    assert_eq!(port(""), [Listen::Tcp { address: None, port: 5002 }]);
    // A variable that is empty says nothing.
    assert_eq!(with("app", &[("RIP_MAX_QUEUE", ""), ("RIP_CONCURRENCY", "")]).max_queue, 8192);
}

#[test]
fn the_word_for_a_choice_is_its_name() {
    for (word, mode) in
        [("none", HotReload::None), ("process", HotReload::Process), ("module", HotReload::Module)]
    {
        let config = config(&format!("app --hot-reload={word}"));
        assert_eq!((config.hot_reload, mode.code()), (mode, word));
    }
    for (word, fork) in [("auto", Fork::Auto), ("always", Fork::Always), ("never", Fork::Never)] {
        let config = config(&format!("app --hot-reload=none --fork={word}"));
        assert_eq!((config.fork, fork.code()), (fork, word));
        assert_eq!(config.plan(1).forks, fork != Fork::Never);
    }
    for (word, runtime) in [("bun", JavaScript::Bun), ("node", JavaScript::Node)] {
        assert_eq!(config(&format!("app --runtime={word}")).javascript, runtime);
    }
    for (word, rule) in [("fifo", QueueRule::Fifo), ("adaptive", QueueRule::Adaptive)] {
        assert_eq!(config(&format!("app --queue={word}")).queue_rule, rule);
    }
    for verb in Verb::ALL {
        let asked = parse_with(&format!("{} app", verb.code()), &[]);
        assert!(
            matches!(asked, Ok(Command::Ask { verb: other, .. }) if other == verb),
            "{verb:?}: {asked:?}"
        );
    }
    assert_eq!(Verb::ALL.map(Verb::code), ["status", "reload", "upgrade", "stop"]);
}
