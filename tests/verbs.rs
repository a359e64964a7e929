//! Verbs that say what is so, signals that end nothing by accident, and starts that hurt nobody.

mod support;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::server::{Output, output};
use support::{Client, Server, Signal, is_alive, server_program, skip, test_worker, wait_until};

/// Some user that is neither root nor who runs the tests.
const STRANGER: u32 = 54_321;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("rip").tempdir().expect("a temporary folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    dir
}

/// The program, in an environment that does not depend on who runs the tests.
fn program() -> Command {
    let mut command = Command::new(server_program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RIP_") {
            command.env_remove(name);
        }
    }
    for name in ["PORT", "XDG_RUNTIME_DIR", "RUST_LOG", "PWD"] {
        command.env_remove(name);
    }
    command.env("NODE_ENV", "production");
    command
}

/// A server that is started by hand; ended with SIGKILL when it is dropped.
struct ByHand {
    child: Child,
    first_line: String,
}

impl ByHand {
    fn start(mut command: Command) -> ByHand {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let mut first_line = String::new();
        stdout.read_line(&mut first_line).expect("stdout can be read");
        if first_line.is_empty() {
            let mut text = String::new();
            stderr.read_to_string(&mut text).expect("stderr can be read");
            panic!("the server ended: {text}");
        }
        // Both are read on, so that nothing it says stops it.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        ByHand { child, first_line }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sockets(dir: &Path) -> String {
    format!("--socket-dir={}", dir.join("s").display())
}

fn serve(app: &Path, dir: &Path, words: &[&str]) -> Command {
    let mut command = program();
    command.arg(app).args(["w:1", "http:127.0.0.1:0"]).arg(sockets(dir)).args(words);
    command
}

fn verb(verb: &str, app: &Path, dir: &Path) -> Command {
    let mut command = program();
    command.arg(verb).arg(app).arg(sockets(dir));
    command
}

fn says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    for phrase in words {
        assert!(output.stderr.contains(phrase), "'{phrase}' is missing: {output:?}");
    }
    assert!(!output.stdout.contains("stopped") || code == 0, "{output:?}");
}

/// The command that a complaint advises, as a shell takes it.
fn advice(text: &str) -> Command {
    let words = text.split_once("; rip-server ").expect("a command is named").1;
    let words = words.split(" would").next().unwrap_or_default();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec {} {words}", server_program().display())]);
    command.env("NODE_ENV", "production").env_remove("XDG_RUNTIME_DIR");
    command
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn is_busy(server: &Server) -> bool {
    server.details()["workerList"][0]["state"] == "busy"
}

#[test]
fn a_second_stop_joins_the_wait() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let mut client = server.client();
    client.send_request("GET", "/sleep?ms=900", "", b"");
    server.wait_until("it is at work", |server| is_busy(server));
    let stops: Vec<Output> = std::thread::scope(|scope| {
        let stops = [0, 1, 2].map(|_| scope.spawn(|| server.verb(["stop"])));
        stops.into_iter().map(|stop| stop.join().expect("no panic")).collect()
    });
    for stop in stops {
        assert_eq!((stop.code, stop.stdout.as_str()), (0, "test-worker: stopped\n"), "{stop:?}");
    }
    assert!(!is_alive(server.pid()), "they return when it is gone");
    assert_eq!(client.read_response().text(), "slept");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn a_stop_and_a_signal_are_no_second_signal() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let mut client = server.client();
    client.send_request("GET", "/sleep?ms=700", "", b"");
    server.wait_until("it is at work", |server| is_busy(server));
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| server.verb(["--stop"]));
        wait_until("it stops", || server.stderr_text().contains("stopping"));
        server.signal(Signal::SIGTERM);
        assert_eq!(stop.join().expect("no panic").code, 0);
    });
    assert_eq!(client.read_response().text(), "slept");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn a_server_that_does_not_answer_is_named_by_every_verb() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    server.signal(Signal::SIGSTOP);
    let silence = "does not answer within 5 s";
    let who = format!("(pid {})", server.pid());
    std::thread::scope(|scope| {
        let verbs = [&["status"][..], &["status", "--json"], &["reload"], &["stop"], &["--stop"]];
        let server = &server;
        let verbs = verbs.map(|words| scope.spawn(move || server.verb(words)));
        for output in verbs.map(|verb| verb.join().expect("no panic")) {
            says(&output, 1, &[silence, &who]);
        }
    });
    server.signal(Signal::SIGCONT);
}

#[test]
fn a_start_beside_a_server_that_does_not_answer_is_refused() {
    let server = Server::with_test_worker(&["w:1"]);
    server.signal(Signal::SIGSTOP);
    let second = server.verb(["w:1", "http:127.0.0.1:0"]);
    says(&second, 1, &["is served already", "does not answer", &format!("(pid {})", server.pid())]);
    server.signal(Signal::SIGCONT);
}

#[test]
fn verbs_of_another_user_say_whose_the_server_is() {
    if !is_root() {
        return skip::note("another user", "only root can be one");
    }
    let server = Server::with_test_worker(&["w:1"]);
    fs::set_permissions(server.dir(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    for phrase in ["status", "reload", "stop", "--stop"] {
        let mut command = verb(phrase, &test_worker(), server.dir());
        command.uid(STRANGER).gid(STRANGER);
        says(&output(command), 1, &["user 0", "test-worker"]);
    }
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn verbs_of_root_are_obeyed_and_its_joins_are_not() {
    if !is_root() {
        return skip::note("root", "only root can be root");
    }
    let dir = folder();
    chown(dir.path(), Some(STRANGER), Some(STRANGER)).expect("root may");
    let app = dir.path().join("app");
    fs::write(&app, format!("#!/bin/sh\nexec {}\n", test_worker().display())).expect("a script");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut command = serve(&app, dir.path(), &[]);
    command.uid(STRANGER).gid(STRANGER).current_dir(dir.path());
    let mut server = ByHand::start(command);
    let healthy = || output(verb("status", &app, dir.path()));
    wait_until("root is told that it is healthy", || healthy().stdout.contains("healthy"));
    let control = dir.path().join("s/rip_server2_app.ctl.sock");
    for op in [r#"{"op":"quit","workerId":0}"#, r#"{"op":"retire","workerId":0}"#] {
        let mut client = Client::connect_unix(&control);
        client.send_request("POST", "/worker", "", op.as_bytes());
        let response = client.read_response();
        assert_eq!(response.status, 403, "{op}");
        assert!(response.text().contains(&format!("user {STRANGER}")), "{}", response.text());
    }
    assert_eq!(Client::connect_unix(&control).get("/metrics").status, 200);
    let reload = output(verb("reload", &app, dir.path()));
    assert_eq!(reload.code, 0, "{reload:?}");
    let stop = output(verb("stop", &app, dir.path()));
    assert_eq!((stop.code, stop.stdout.as_str()), (0, "app: stopped\n"), "{stop:?}");
    assert_eq!(server.child.wait().expect("a child").code(), Some(0));
}

#[test]
fn another_user_at_an_open_socket_is_refused_with_the_owners_name() {
    if !is_root() {
        return skip::note("another user", "only root can be one");
    }
    let server = Server::with_test_worker(&["w:1"]);
    // Somebody has opened what the server keeps closed.
    for (path, mode) in [(server.dir().to_path_buf(), 0o755), (server.socket_dir(), 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    fs::set_permissions(server.control_socket(), fs::Permissions::from_mode(0o666)).expect("it is ours");
    for phrase in ["status", "reload", "stop"] {
        let mut command = verb(phrase, &test_worker(), server.dir());
        command.uid(STRANGER).gid(STRANGER);
        says(&output(command), 1, &["refuses", "user 0"]);
    }
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn signals_of_no_meaning_end_nothing_and_are_logged() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let signals = [
        Signal::SIGUSR1,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGSTKFLT,
        Signal::SIGXCPU,
        Signal::SIGPIPE,
    ];
    for signal in signals {
        server.signal(signal);
        // Ignored, as in every program of Rust's.
        let is_silent = signal == Signal::SIGPIPE;
        server.wait_until(signal.as_str(), |server| {
            is_silent || server.stderr_text().contains(&format!("{}: nothing to do", signal.as_str()))
        });
    }
    // A real-time signal.
    let sent = Command::new("sh").args(["-c", &format!("kill -40 {}", server.pid())]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    server.wait_until("signal 40", |server| server.stderr_text().contains("signal 40: nothing to do"));
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn sigquit_drains() {
    let mut server = Server::with_test_worker(&["w:1"]);
    server.wait_for_workers(1);
    let mut client = server.client();
    client.send_request("GET", "/sleep?ms=300", "", b"");
    server.wait_until("it is at work", |server| is_busy(server));
    server.signal(Signal::SIGQUIT);
    assert_eq!(client.read_response().text(), "slept");
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn what_was_ignored_at_the_start_stays_ignored() {
    let dir = folder();
    let wrapper = dir.path().join("nohup");
    let text = format!("#!/bin/sh\ntrap '' HUP INT\nexec {} \"$@\"\n", server_program().display());
    fs::write(&wrapper, text).expect("a script");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("executable");
    let server = Server::carried_by(wrapper).arg(test_worker()).args(["w:1", "--hot-reload=module"]);
    let mut server = server.start();
    server.wait_for_workers(1);
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGINT);
    server.signal(Signal::SIGUSR1);
    server.wait_until("it has heard the last", |server| server.stderr_text().contains("SIGUSR1"));
    assert_eq!(server.get("/ping").text(), "pong");
    assert!(!server.stderr_text().contains("SIGHUP"), "{}", server.stderr_text());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn children_are_heard_of_though_sigchld_was_ignored_at_the_start() {
    let dir = folder();
    let wrapper = dir.path().join("deaf");
    let text = format!("#!/bin/bash\ntrap '' CHLD\nexec {} \"$@\"\n", server_program().display());
    fs::write(&wrapper, text).expect("a script");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut server = Server::carried_by(wrapper).arg(test_worker()).arg("w:1").start();
    server.wait_for_workers(1);
    let first = server.worker_pids()[0];
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("it lives");
    server.wait_until("another one serves", |server| {
        server.worker_pids().first().is_some_and(|pid| *pid != first)
    });
    assert_eq!(server.get("/ping").text(), "pong");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn python_app(dir: &Path) -> Option<PathBuf> {
    let has_python = Command::new("python3").arg("--version").output().is_ok();
    if !has_python {
        skip::skip("a Python app", "there is no python3");
        return None;
    }
    let app = dir.join("shop");
    fs::create_dir(&app).expect("a folder");
    let text = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hi']\n";
    fs::write(app.join("app.py"), text).expect("an app");
    Some(app)
}

#[test]
fn a_mistaken_second_start_touches_nothing_of_the_first() {
    let dir = folder();
    let Some(app) = python_app(dir.path()) else { return };
    let first = ByHand::start(serve(&app, dir.path(), &["--variant=blue"]));
    let sockets = dir.path().join("s");
    let harness =
        || files(&sockets).into_iter().filter(|name| name.ends_with(".harness")).collect::<Vec<_>>();
    assert_eq!(harness().len(), 1, "{:?}", files(&sockets));
    let worker = sockets.join(&harness()[0]).join("main.py");
    let before = fs::metadata(&worker).expect("a harness").modified().expect("a time");
    let second = output(serve(&app, dir.path(), &["--variant=blue"]));
    says(&second, 1, &["is served already", &format!("pid {}", first.pid())]);
    assert_eq!(harness().len(), 1);
    assert_eq!(fs::metadata(&worker).expect("still there").modified().expect("a time"), before);
    // What it advises does what it says.
    let stop = output(advice(&second.stderr));
    assert_eq!((stop.code, stop.stdout.as_str()), (0, "shop: stopped\n"), "{stop:?}");
    assert_eq!(files(&sockets), [""; 0]);
}

#[test]
fn a_refused_start_leaves_nothing_behind() {
    let dir = folder();
    let Some(app) = python_app(dir.path()) else { return };
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = format!("http:{}", holder.local_addr().expect("an address"));
    says(&output(serve(&app, dir.path(), &[&port])), 1, &["in use"]);
    assert_eq!(files(&dir.path().join("s")), [""; 0]);
}

#[test]
fn what_a_killed_server_has_left_is_swept_at_the_next_start() {
    let dir = folder();
    let Some(app) = python_app(dir.path()) else { return };
    let sockets = dir.path().join("s");
    drop(ByHand::start(serve(&app, dir.path(), &[])));
    let left = files(&sockets);
    assert!(left.iter().any(|name| name.ends_with(".harness")), "SIGKILL leaves it: {left:?}");
    let next = ByHand::start(serve(&app, dir.path(), &[]));
    let harnesses: Vec<String> =
        files(&sockets).into_iter().filter(|name| name.ends_with(".harness")).collect();
    assert_eq!(harnesses.len(), 1);
    assert!(!left.contains(&harnesses[0]), "its own, of another run");
    assert_eq!(output(verb("stop", &app, dir.path())).code, 0);
    drop(next);
    assert_eq!(files(&sockets), [""; 0]);
}

#[test]
fn of_many_starts_at_once_one_serves() {
    let dir = folder();
    let app = test_worker();
    let mut starts: Vec<Child> = (0..6)
        .map(|_| {
            let mut command = serve(&app, dir.path(), &[]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("the server can be started")
        })
        .collect();
    let mut is_running = |child: &mut Child| child.try_wait().expect("a child").is_none();
    wait_until("five are refused", || {
        starts.iter_mut().filter_map(|child| is_running(child).then_some(())).count() == 1
    });
    let served = output(verb("status", &app, dir.path()));
    assert_eq!(served.code, 0, "{served:?}");
    assert_eq!(output(verb("stop", &app, dir.path())).code, 0);
    wait_until("the last has ended", || !starts.iter_mut().any(&mut is_running));
    assert_eq!(files(&dir.path().join("s")), [""; 0]);
}

#[test]
fn a_start_waits_for_one_that_is_about_to_end() {
    let dir = folder();
    fs::create_dir(dir.path().join("s")).expect("a folder");
    fs::set_permissions(dir.path().join("s"), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let path = dir.path().join("s/rip_server2_test-worker.lock");
    let file = fs::File::create(&path).expect("a lock file");
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("nobody has it");
    let ends = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(lock);
    });
    let server = ByHand::start(serve(&test_worker(), dir.path(), &[]));
    assert!(server.first_line.contains("app=test-worker"));
    ends.join().expect("no panic");
}

#[test]
fn a_unix_socket_of_another_user_is_not_taken_over() {
    if !is_root() {
        return skip::note("another user", "only root can be one");
    }
    let dir = folder();
    let own = dir.path().join("own");
    fs::create_dir(&own).expect("a folder");
    chown(&own, Some(STRANGER), Some(STRANGER)).expect("root may");
    let at = own.join("http.sock");
    let _live = UnixListener::bind(&at).expect("a socket");
    fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let app = dir.path().join("app");
    fs::write(&app, "#!/bin/sh\nexec sleep 100\n").expect("a script");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut command = program();
    command.arg(&app).arg("w:1").arg(format!("http:unix:{}", at.display())).arg(sockets(&own));
    command.uid(STRANGER).gid(STRANGER).current_dir("/");
    says(&output(command), 1, &["in use", "user 0"]);
    assert!(at.exists());
}

#[test]
fn what_lies_at_a_sockets_path_is_called_what_it_is() {
    let dir = folder();
    let path = dir.path().join("there");
    let refuse = || {
        let mut command = program();
        command.arg(test_worker()).arg(format!("http:unix:{}", path.display())).arg(sockets(dir.path()));
        output(command)
    };
    fs::write(&path, "text").expect("a file");
    says(&refuse(), 1, &["is a plain file", "another path would do"]);
    assert_eq!(fs::read_to_string(&path).expect("still there"), "text");
    fs::remove_file(&path).expect("it is ours");
    fs::create_dir(&path).expect("a folder");
    says(&refuse(), 1, &["is a folder"]);
    fs::remove_dir(&path).expect("it is ours");
    symlink("/nowhere", &path).expect("a symlink");
    says(&refuse(), 1, &["is a symlink"]);
    fs::remove_file(&path).expect("it is ours");
    let datagrams = UnixDatagram::bind(&path).expect("a socket");
    says(&refuse(), 1, &["in use"]);
    drop(datagrams);
}

#[test]
fn a_server_removes_no_socket_that_has_taken_the_place_of_its_own() {
    let dir = folder();
    let at = dir.path().join("http.sock");
    let mut server =
        Server::builder(test_worker()).arg("w:1").http(&format!("unix:{}", at.display())).start();
    fs::remove_file(&at).expect("somebody removes it");
    let _other = UnixListener::bind(&at).expect("and listens there");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert!(at.exists(), "it is the other one's");
}

/// A release whose workers say its name.
fn write_release(dir: &Path, name: &str) {
    fs::create_dir_all(dir.join(name)).expect("a folder");
    let index = dir.join(name).join("index");
    let text = format!("#!/bin/sh\nTEST_RELEASE={name} exec {}\n", test_worker().display());
    fs::write(&index, text).expect("a script");
    fs::set_permissions(&index, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[test]
fn stop_and_reload_are_for_the_typed_path_and_not_for_another_of_its_name() {
    let dir = folder();
    write_release(&dir.path().join("one"), "shop");
    write_release(&dir.path().join("two"), "shop");
    symlink("one", dir.path().join("link")).expect("a symlink");
    let server = ByHand::start(serve(&dir.path().join("one/shop"), dir.path(), &[]));
    for word in ["stop", "reload"] {
        let other = output(verb(word, &dir.path().join("two/shop"), dir.path()));
        says(&other, 1, &["one/shop', not '", "two/shop'", "--variant", "--socket-dir"]);
    }
    let by_link = output(verb("reload", &dir.path().join("link/shop"), dir.path()));
    assert_eq!(by_link.code, 0, "{by_link:?}");
    // Nothing is there: then it is the name that counts.
    let by_name = output(verb("stop", &dir.path().join("nothing/shop"), dir.path()));
    assert_eq!(by_name.code, 0, "{by_name:?}");
    drop(server);
}

#[test]
fn a_start_inside_a_link_is_of_the_link() {
    let dir = folder();
    let shop = dir.path().join("shop");
    for name in ["one", "two"] {
        write_release(&shop, name);
    }
    symlink("one", shop.join("current")).expect("a symlink");
    let mut command = program();
    // As a shell does it.
    command.current_dir(shop.join("current")).env("PWD", shop.join("current"));
    command.arg(".").args(["w:1", "http:127.0.0.1:0"]).arg(sockets(dir.path()));
    let server = ByHand::start(command);
    assert!(server.first_line.contains("app=shop "), "{}", server.first_line);
    let at = server.first_line.split("http=").nth(1).and_then(|remaining| remaining.split(' ').next());
    let at = at.expect("an address").parse().expect("an address");
    let release = || {
        let text = Client::connect(at).get("/env").text();
        text.lines().find_map(|line| line.strip_prefix("TEST_RELEASE=").map(str::to_owned))
    };
    wait_until("it serves", || release().as_deref() == Some("one"));
    symlink("two", shop.join("next")).expect("a symlink");
    fs::rename(shop.join("next"), shop.join("current")).expect("it replaces the old one");
    let reload = output(verb("reload", &shop.join("current"), dir.path()));
    assert_eq!(reload.code, 0, "{reload:?}");
    assert_eq!(release().as_deref(), Some("two"));
    // A PWD that lies is not believed.
    let mut command = program();
    command.current_dir(shop.join("two")).env("PWD", shop.join("one"));
    command.args(["status", "."]).arg(sockets(dir.path()));
    says(&output(command), 1, &["no server for 'two'"]);
}

#[test]
fn advice_about_length_says_what_is_long_and_helps() {
    let dir = folder();
    let long = dir.path().join("a".repeat(110));
    fs::write(&long, format!("#!/bin/sh\nexec {}\n", test_worker().display())).expect("a script");
    fs::set_permissions(&long, fs::Permissions::from_mode(0o755)).expect("executable");
    let refused = output(serve(&long, dir.path(), &[]));
    says(&refused, 2, &["the name is what is long", "--socket-prefix=app"]);
    let _server = ByHand::start(serve(&long, dir.path(), &["--socket-prefix=app"]));
    let deep = dir.path().join("b".repeat(80));
    let mut command = program();
    command.arg(test_worker()).arg(format!("--socket-dir={}", deep.display()));
    says(&output(command), 2, &["the folder is what is long", "--socket-dir=/tmp/rip-"]);
}

#[test]
fn a_line_break_in_a_path_breaks_no_line() {
    let dir = folder();
    let app = dir.path().join("two\nlines");
    let lines = |output: &Output| output.stderr.lines().count();
    let missing = output(serve(&app, dir.path(), &[]));
    assert_eq!((missing.code, lines(&missing)), (2, 1), "{missing:?}");
    fs::create_dir(&app).expect("a folder");
    let empty = output(serve(&app, dir.path(), &[]));
    assert_eq!((empty.code, lines(&empty)), (2, 1), "{empty:?}");
    write_release(dir.path(), "two\nlines");
    let first = ByHand::start(serve(&app, dir.path(), &[]));
    let second = output(serve(&app, dir.path(), &[]));
    assert_eq!((second.code, lines(&second)), (1, 1), "{second:?}");
    assert_eq!(output(advice(&second.stderr)).code, 0, "{second:?}");
    drop(first);
    let wrong = output({
        let mut command = program();
        command.args(["--no\nflag", "a"]);
        command
    });
    assert_eq!((wrong.code, lines(&wrong)), (2, 1), "{wrong:?}");
}
