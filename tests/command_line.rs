//! The command line of the real binary: words, exit codes, where it listens, who is there already, the verbs.

mod support;
mod tools;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::server::output;
use support::{Client, Output, Server, Signal, run, server_program, test_worker, wait_until};

/// The server's command in an empty environment, but for where its sockets lie.
fn command(dir: &Path) -> Command {
    let mut command = Command::new(server_program());
    command.env_clear().env("NODE_ENV", "production").env("RIP_SOCKET_DIR", dir.join("s"));
    // The machine may be slow.
    command.env("RIP_QUEUE_TIMEOUT_MS", "60000");
    command
}

/// A server whose words are the test's own. Killed when it is dropped.
struct ByHand {
    child: Child,
    first_line: String,
}

impl ByHand {
    fn start(mut command: Command, dir: &Path) -> ByHand {
        let (path, words) = (dir.join("stdout"), dir.join("stderr"));
        let file = |path: &Path| std::fs::File::create(path).expect("a file");
        let child = command.stdin(Stdio::null()).stdout(file(&path)).stderr(file(&words)).spawn();
        let mut server =
            ByHand { child: child.expect("the server can be started"), first_line: String::new() };
        wait_until("the line at the start", || {
            let text = std::fs::read_to_string(&path).expect("the file");
            let exit = server.child.try_wait().expect("a child can be waited for");
            assert_eq!(
                exit,
                None,
                "the server ended: {}",
                std::fs::read_to_string(&words).unwrap_or_default()
            );
            text.split_once('\n').map(|(line, _)| server.first_line = line.to_owned()).is_some()
        });
        server
    }

    fn listeners(&self) -> Vec<&str> {
        self.first_line.split(' ').filter_map(|phrase| phrase.strip_prefix("http=")).collect()
    }

    fn port(&self) -> u16 {
        let port = self.listeners()[0].rsplit(':').next().and_then(|port| port.parse().ok());
        port.unwrap_or_else(|| panic!("no port in {}", self.first_line))
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder")
}

/// A folder of that name whose entry is the test worker.
fn app_in(parent: &Path, name: &str) -> PathBuf {
    let app = parent.join(name);
    std::fs::create_dir_all(&app).expect("a folder");
    symlink(test_worker(), app.join("index")).expect("a symlink");
    app
}

/// What a refusal looks like: this exit code, nothing on stdout, one line on stderr with these words in it.
#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!((output.code, output.stdout.as_str()), (code, ""), "{}", output.stderr);
    assert_eq!(output.stderr.matches('\n').count(), 1, "one line: {}", output.stderr);
    assert!(output.stderr.starts_with("rip-server: "), "{}", output.stderr);
    for phrase in words {
        assert!(output.stderr.contains(phrase), "'{phrase}' is missing: {}", output.stderr);
    }
}

#[test]
fn wrong_words_are_named_with_what_would_do() {
    let worker = test_worker();
    let app = worker.to_str().expect("a path in UTF-8");
    for (words, given, would_do) in [
        (&[app, "--no-such-thing"][..], "--no-such-thing", "--help"),
        (&[app, "--max-qeue=4"], "--max-qeue", "--max-queue"),
        (&[app, "--queue-timeout=4"], "--queue-timeout", "--queue-timeout-ms"),
        (&[app, "-x"], "-x", "--help"),
        (&[app, "--watch"], "--watch", "--help"),
        (&[app, "workers:4"], "workers:4", "w:4"),
        (&[app, "https:5002"], "https:5002", "http:"),
        (&[app, "port:5002"], "port:5002", "http:5002"),
        (&[app, "w:"], "w:", "w:4"),
        (&[app, "w=2"], "w=2", "w:2 would do"),
        (&[app, "w:many"], "w:many", "w:auto"),
        (&[app, "w:5000"], "w:5000", "4096"),
        (&[app, "w:4..2"], "w:4..2", "w:2..8"),
        (&[app, "r:-1"], "-1", "a number"),
        (&[app, "http:65536"], "65536", "http:5002"),
        (&[app, "http:example.com:80"], "example.com", "localhost"),
        (&[app, "--max-queue=many"], "many", "a number"),
        (&[app, "--max-queue=-1"], "-1", "a number from 0"),
        (&[app, "--read-timeout-ms=0"], "'0'", "from 1"),
        (&[app, "--client-timeout-ms", "0"], "'0'", "from 1"),
        (&[app, "--drain-timeout-ms=99999999999999999999"], "99999999999999999999", "from 1 to"),
        (&[app, "--max-body=lots"], "lots", "100m"),
        (&[app, "--hot-reload=often"], "often", "none, process or module"),
        (&[app, "--trust-proxy=10.0.0.0/64"], "10.0.0.0/64", "loopback"),
        (&[app, "--max-queue"], "--max-queue", "--max-queue=<N>"),
        (&[app, "--max-queue=4", "--max-queue=5"], "--max-queue", "twice"),
        (&[app, "--"], "--", "{socket}"),
        (&[app, "/bin/true"], "/bin/true", app),
        (&[], "no app", "rip-server ./my-app"),
        (&["reload", app, "--max-queue=4"], "--max-queue", "no place"),
    ] {
        assert_refused(&run(words), 2, &[given, would_do]);
    }
}

#[test]
fn a_wrong_variable_is_named() {
    let dir = folder();
    let mut command = command(dir.path());
    command.arg(test_worker()).arg("http:127.0.0.1:0").env("RIP_MAX_QUEUE", "many");
    assert_refused(&output(command), 2, &["RIP_MAX_QUEUE", "many", "a number"]);
}

#[test]
fn a_path_without_an_app_says_what_would_do() {
    let dir = folder();
    let (empty, plain) = (dir.path().join("empty"), dir.path().join("notes.txt"));
    std::fs::create_dir(&empty).expect("a folder");
    std::fs::write(&plain, "no program").expect("a file");
    assert_refused(&run(["/no/such/app"]), 2, &["/no/such/app", "no such file"]);
    assert_refused(&run([&empty]), 2, &["empty", "index.ts", "app.py", "config.ru", "index.cgi", "{socket}"]);
    assert_refused(&run([&plain]), 2, &["notes.txt", "chmod +x"]);
    assert_refused(&run([empty.join("none")]), 2, &["none", "no such file"]);
}

#[test]
fn help_and_version_go_to_stdout() {
    for phrase in ["--help", "-h"] {
        let help = run([phrase]);
        assert_eq!((help.code, help.stderr.as_str()), (0, ""));
        for token in ["w:<N", "r:<N>", "http:<", "metrics:<", "page:<", "status|reload|upgrade|stop"] {
            assert!(help.stdout.contains(token), "{token} is missing:\n{}", help.stdout);
        }
    }
    let version = run(["--version"]);
    let expected = concat!("rip-server ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!((version.code, version.stdout.as_str(), version.stderr.as_str()), (0, expected, ""));
}

/// The flag that a text begins with.
fn flag_of(text: &str) -> Option<&str> {
    let end = text.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-'));
    text.starts_with("--").then(|| &text[..end.unwrap_or(text.len())]).filter(|flag| flag.len() > 2)
}

#[test]
fn help_and_the_reference_have_the_same_flags() {
    let help = run(["--help"]).stdout;
    let in_help: BTreeSet<&str> = help.lines().filter_map(|line| flag_of(line.trim_start())).collect();
    let rows = include_str!("../docs/command-line.md").lines().filter(|line| line.starts_with("| `--"));
    let cells: Vec<&str> = rows.filter_map(|info| info.strip_prefix("| ")?.split(" | ").next()).collect();
    let in_table: BTreeSet<&str> =
        cells.iter().flat_map(|cell| cell.split('`')).filter_map(flag_of).collect();
    let first_of_rows: BTreeSet<&str> = cells.iter().filter_map(|cell| flag_of(&cell[1..])).collect();
    let missing: Vec<_> = in_help.difference(&in_table).chain(first_of_rows.difference(&in_help)).collect();
    assert!(missing.is_empty(), "in one of them only: {missing:?}");
    assert!(in_help.len() > 20, "{in_help:?}");
}

/// A flag's variable and default as `--help` has them: `… help   [default]   VARIABLE`.
fn variable_and_default(line: &str) -> (&str, &str) {
    let parts: Vec<&str> = line.split("   ").map(str::trim).filter(|part| !part.is_empty()).collect();
    let default = parts.iter().find_map(|part| part.strip_prefix('[')?.strip_suffix(']'));
    (parts.iter().find(|part| part.starts_with("RIP_")).unwrap_or(&""), default.unwrap_or_default())
}

#[test]
fn help_and_the_reference_have_the_same_variables_and_defaults() {
    let help = run(["--help"]).stdout;
    let rows = include_str!("../docs/command-line.md").lines().filter(|line| line.starts_with("| `--"));
    let mut compared = 0;
    for row in rows {
        let row = row.replace("\\|", "/").replace('`', "");
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [flag, _, variable, default] = cells[..] else { panic!("four cells: {row}") };
        let Some(name) = flag_of(flag) else { continue };
        let is_it = |line: &&str| flag_of(line.trim_start()) == Some(name);
        let line = help.lines().find(is_it).unwrap_or_else(|| panic!("{name} is not in --help"));
        let variable = variable.split('=').next().unwrap_or_default();
        let expected = (variable.to_owned(), default.to_lowercase());
        let (variable, default) = variable_and_default(line);
        assert_eq!((variable.to_owned(), default.to_lowercase()), expected, "{name}: {line}");
        compared += 1;
    }
    assert!(compared > 20, "{compared} rows");
}

#[test]
fn port_0_is_told_in_the_line_at_the_start() {
    let server = Server::builder(test_worker()).arg("w:2").start();
    let address = server.address();
    assert_ne!(address.port(), 0);
    let expected = format!("rip-server: app=test-worker http={address} workers=2");
    assert_eq!(server.stdout_lines().first(), Some(&expected));
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn a_port_alone_means_all_addresses() {
    let server = Server::builder(test_worker()).arg("w:1").http("0").start();
    let port = server.address().port();
    let mut places = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        places.push((Ipv6Addr::LOCALHOST, port).into());
    }
    for place in places {
        assert_eq!(Client::connect(place).get("/ping").text(), "pong", "{place}");
    }
}

#[test]
fn several_listeners_serve_side_by_side() {
    let dir = folder();
    let path = dir.path().join("front.sock");
    let unix = format!("unix:{}", path.display());
    let mut server =
        Server::builder(test_worker()).arg("w:1").http("127.0.0.1:0").http(&unix).http("127.0.0.1:0").start();
    let listeners = server.listeners().to_vec();
    assert_eq!((listeners.len(), listeners[1].as_str()), (3, unix.as_str()));
    assert_ne!(listeners[0], listeners[2]);
    for at in [&listeners[0], &listeners[2]] {
        let address = at.parse().expect("an address");
        assert_eq!(Client::connect(address).get("/ping").text(), "pong");
    }
    assert_eq!(Client::connect_unix(&path).get("/ping").text(), "pong");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert!(!path.exists(), "the socket is left behind");
}

#[test]
fn the_variable_port_counts_unless_a_token_says_otherwise() {
    let dir = folder();
    let mut by_variable = command(dir.path());
    by_variable.arg(test_worker()).arg("w:1").env("PORT", "0");
    let by_variable = ByHand::start(by_variable, dir.path());
    assert_ne!(by_variable.port(), 5002);
    let mut client = Client::connect((Ipv4Addr::LOCALHOST, by_variable.port()).into());
    assert_eq!(client.get("/ping").text(), "pong");
    // Its port is taken, so only the token's can be listened on.
    let port = by_variable.port().to_string();
    let by_token = Server::builder(test_worker()).arg("w:1").env("PORT", port).start();
    assert_ne!(by_token.address().port(), by_variable.port());
    let dir = folder();
    let mut wrong = command(dir.path());
    wrong.arg(test_worker()).env("PORT", "http");
    assert_refused(&output(wrong), 2, &["PORT", "http"]);
}

#[test]
fn what_cannot_be_printed_is_trouble() {
    for words in [&["--help"][..], &["--version"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let mut command = std::process::Command::new(support::server_program());
        let output = command.args(words).stdout(full).output().expect("the server can be started");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("standard output cannot be written to"), "{stderr}");
    }
}

#[test]
fn a_port_in_use_names_who_holds_it() {
    let holder = Server::builder(test_worker()).arg("w:1").start();
    let (port, pid) = (holder.address().port(), holder.pid());
    let worker = test_worker();
    let app = worker.to_str().expect("a path in UTF-8");
    let refused = run([app, "w:1", &format!("http:127.0.0.1:{port}")]);
    assert_refused(&refused, 1, &[&port.to_string(), "in use", &format!("pid {pid}"), "http:"]);
    assert_eq!(holder.get("/ping").text(), "pong");
}

#[test]
fn a_place_that_cannot_be_listened_on_is_trouble() {
    let worker = test_worker();
    let app = worker.to_str().expect("a path in UTF-8");
    let dir = folder();
    let taken = dir.path().join("taken");
    std::fs::write(&taken, "somebody's file").expect("a file");
    let taken = taken.to_str().expect("a path in UTF-8");
    // An address that is kept for documentation, so it is nobody's.
    assert_refused(&run([app, "http:192.0.2.1:5002"]), 1, &["192.0.2.1", "5002"]);
    assert_refused(&run([app, "http:unix:/no/such/folder/a.sock"]), 1, &["/no/such/folder/a.sock"]);
    assert_refused(&run([app, &format!("http:unix:{taken}")]), 1, &[taken, "is a plain file"]);
    assert_eq!(std::fs::read_to_string(taken).expect("still there"), "somebody's file");
}

#[test]
fn a_second_server_of_an_app_gives_way_to_the_first() {
    let first = Server::builder(test_worker()).arg("w:1").start();
    let second = first.verb(["http:127.0.0.1:0", "w:1"]);
    assert_refused(&second, 1, &["test-worker", "already", &format!("pid {}", first.pid()), "stop"]);
    assert_eq!(first.get("/ping").text(), "pong");
    assert_eq!(first.verb(["status"]).code, 0, "its control socket is still there");
}

#[test]
fn another_app_of_the_same_name_needs_a_variant() {
    let dir = folder();
    let (first, second) = (app_in(dir.path(), "a/shop"), app_in(dir.path(), "b/shop"));
    let start = |app: &Path, words: &[&str]| {
        let mut command = command(dir.path());
        command.arg(app).args(["w:1", "http:127.0.0.1:0"]).args(words);
        command
    };
    let holder = ByHand::start(start(&first, &[]), dir.path());
    let path = first.to_str().expect("a path in UTF-8");
    assert_refused(&output(start(&second, &[])), 1, &["shop", path, "--variant"]);
    let other = ByHand::start(start(&second, &["--variant=blue"]), dir.path());
    for server in [&holder, &other] {
        let mut client = Client::connect((Ipv4Addr::LOCALHOST, server.port()).into());
        assert_eq!(client.get("/ping").text(), "pong", "{}", server.first_line);
    }
    assert!(output(verb(dir.path(), "stop", &second, &["--variant=blue"])).code == 0);
    assert_eq!(output(verb(dir.path(), "status", &first, &[])).code, 0, "the other one goes on");
}

fn verb(dir: &Path, verb: &str, app: &Path, words: &[&str]) -> Command {
    let mut command = command(dir);
    command.arg(verb).arg(app).args(words);
    command
}

#[test]
fn sockets_of_a_killed_server_are_no_obstacle() {
    let dir = folder();
    let start = || {
        let mut command = command(dir.path());
        command.arg(test_worker()).args(["w:1", "http:127.0.0.1:0"]);
        command
    };
    drop(ByHand::start(start(), dir.path()));
    assert!(dir.path().join("s/rip_server2_test-worker.ctl.sock").exists(), "SIGKILL leaves it");
    let restarted = ByHand::start(start(), dir.path());
    let mut client = Client::connect((Ipv4Addr::LOCALHOST, restarted.port()).into());
    assert_eq!(client.get("/ping").text(), "pong");
}

#[test]
fn the_socket_folder_is_made_and_has_to_be_the_users_own() {
    let dir = folder();
    let start = |sockets: &Path| {
        let mut command = command(dir.path());
        command.arg(test_worker()).args(["w:1", "http:127.0.0.1:0", "--socket-dir"]).arg(sockets);
        command
    };
    let made = dir.path().join("deep/er");
    drop(ByHand::start(start(&made), dir.path()));
    assert_eq!(made.metadata().expect("it was made").permissions().mode() & 0o777, 0o700);

    let (open, link, file) = (dir.path().join("open"), dir.path().join("link"), dir.path().join("file"));
    std::fs::DirBuilder::new().mode(0o700).create(&open).expect("a folder");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    symlink(&made, &link).expect("a symlink");
    std::fs::write(&file, "").expect("a file");
    assert_refused(&output(start(&open)), 1, &["open", "755", "--socket-dir"]);
    assert_refused(&output(start(&link)), 1, &["link", "not a folder"]);
    assert_refused(&output(start(&file)), 1, &["file", "not a folder"]);
    assert_refused(&output(start(Path::new("/proc/none"))), 1, &["/proc/none", "--socket-dir"]);
    // A Unix socket's path has room for 107 bytes.
    let long = dir.path().join("l".repeat(90));
    assert_refused(&output(start(&long)), 2, &["too long", "107", "--socket-dir"]);
}

#[test]
fn a_verb_without_a_server_is_trouble() {
    let dir = folder();
    let worker = test_worker();
    for phrase in ["status", "reload", "stop"] {
        let refused = output(verb(dir.path(), phrase, &worker, &[]));
        assert_refused(&refused, 1, &["no server", "test-worker", "--variant"]);
    }
    let mut flag = command(dir.path());
    flag.arg("--stop").arg(&worker);
    assert_refused(&output(flag), 1, &["no server", "test-worker"]);
}

#[test]
fn verbs_find_a_server_from_any_folder() {
    let dir = folder();
    let app = app_in(dir.path(), "shop");
    let elsewhere = dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    let mut start = command(dir.path());
    start.arg("./shop").args(["w:1", "http:127.0.0.1:0"]).current_dir(dir.path());
    let mut server = ByHand::start(start, dir.path());
    let ask = |phrase: &str, app: &str, from: &Path| {
        let mut command = verb(dir.path(), phrase, Path::new(app), &[]);
        command.current_dir(from);
        output(command)
    };
    wait_until("the worker has joined", || ask("status", "../shop", &elsewhere).stdout.contains("healthy"));
    // The line at the start comes before the workers.
    let mut client = Client::connect((Ipv4Addr::LOCALHOST, server.port()).into());
    assert_eq!(client.get("/ping").text(), "pong");
    for (path, from) in [("../shop", elsewhere.as_path()), (".", &app), ("shop/", dir.path())] {
        let status = ask("status", path, from);
        assert_eq!((status.code, status.stderr.as_str()), (0, ""), "{path}");
        assert!(status.stdout.contains("shop") && status.stdout.contains("healthy"), "{}", status.stdout);
    }
    let reload = ask("reload", "../shop", &elsewhere);
    assert_eq!(
        (reload.code, reload.stdout.as_str()),
        (0, "shop: 1 of 1 workers replaced\n"),
        "{}",
        reload.stderr
    );
    let stop = ask("stop", app.to_str().expect("a path in UTF-8"), Path::new("/"));
    assert_eq!((stop.code, stop.stderr.as_str()), (0, ""));
    // `stop` returns when the server is gone.
    wait_until("the server's end", || server.child.try_wait().is_ok_and(|exit| exit.is_some()));
    assert_refused(&ask("status", "../shop", &elsewhere), 1, &["no server", "shop"]);
}

#[test]
fn localhost_is_both_loopback_addresses_at_one_port() {
    let mut server = Server::builder(test_worker()).arg("w:1").http("localhost:0").start();
    server.wait_for_workers(1);
    let listeners: Vec<SocketAddr> =
        server.listeners().iter().map(|at| at.parse().expect("an address")).collect();
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        assert_eq!(listeners.len(), 1);
        return support::skip::note("IPv6", "this machine has none");
    }
    assert_eq!(listeners.iter().map(|at| at.ip().is_ipv6()).collect::<Vec<_>>(), [false, true]);
    assert_eq!(listeners[0].port(), listeners[1].port());
    for at in listeners {
        assert!(at.ip().is_loopback());
        assert_eq!(Client::connect(at).get("/ping").text(), "pong");
    }
}
