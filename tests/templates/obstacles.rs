//! Apps that are not to be forked: they are served all the same, and one line says why.

use super::fixture::{Fixture, ruby};
use super::{PYTHON, are_all_forked, start, template_pids};
use crate::support;

/// The app, and what the line says of it.
const PYTHON_APPS: [(&str, &str); 6] = [
    (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='ticker', daemon=True).start()",
        "the thread 'ticker' runs",
    ),
    (
        "import socket\nlistener = socket.create_server(('127.0.0.1', 0))\npair = socket.create_connection(listener.getsockname())",
        "is a connection to 127.0.0.1 port",
    ),
    ("import select\npoller = select.epoll()", "is of the kind eventpoll"),
    ("import os\npipe = os.pipe()", "is a pipe"),
    ("log = open('app.log', 'w')", "app.log', is open for writing"),
    ("import fcntl\nlocked = open(__file__)\nfcntl.flock(locked, fcntl.LOCK_SH)", "app.py', is locked"),
];

const SERVES: &str = r#"
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"well"]
"#;

#[test]
fn what_a_fork_would_share_is_named_and_workers_start_one_by_one() {
    for (text, line) in PYTHON_APPS {
        let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
        fixture.write("app.py", &[text, "\n", SERVES].concat());
        let mut server = start(&fixture, &["w:2"]);
        server.wait_for_workers(2);
        assert_eq!(server.get("/").text(), "well");
        let said = server.stderr_text();
        let is_it = |said: &&str| said.contains("workers are not forked") && said.contains(line);
        assert_eq!(said.lines().filter(is_it).count(), 1, "{line}\n{said}");
        server.wait_until("the template's end", |server| template_pids(server).is_empty());
        assert!(!are_all_forked(&server, 2));
        assert_eq!(server.verb(["reload"]).code, 0);
    }
}

#[test]
fn fork_always_does_not_look_and_never_has_no_template() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", &["pipe = __import__('os').pipe()\n", SERVES].concat());
    let mut server = start(&fixture, &["w:2", "--fork=always"]);
    server.wait_for_workers(2);
    assert!(are_all_forked(&server, 2), "{}", server.stderr_text());
    drop(server);
    let mut server = start(&fixture, &["w:2", "--fork=never"]);
    server.wait_for_workers(2);
    assert!(template_pids(&server).is_empty() && !are_all_forked(&server, 2));
}

#[test]
fn an_app_that_needs_its_workers_number_while_it_is_loaded_is_served() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", &["ID = __import__('os').environ['WORKER_ID']\n", SERVES].concat());
    let mut server = start(&fixture, &["w:2"]);
    server.wait_for_workers(2);
    assert_eq!(server.get("/").text(), "well");
    assert_eq!(server.verb(["reload"]).code, 0, "{}", server.stderr_text());
}

#[test]
fn a_rack_app_with_a_thread_is_not_forked() {
    let Some(fixture) = Fixture::empty(&ruby(&["rack"]), "app") else { return };
    let app = "Thread.new { sleep }.name = 'ticker'\nrun ->(_) { [200, {}, ['well']] }\n";
    fixture.write("config.ru", app);
    let mut server = start(&fixture, &["w:2"]);
    server.wait_for_workers(2);
    assert_eq!(server.get("/").text(), "well");
    assert!(server.stderr_text().contains("the thread 'ticker' runs"), "{}", server.stderr_text());
    assert!(!are_all_forked(&server, 2));
}

#[test]
fn flags_of_templates_are_refused_where_they_would_do_nothing() {
    let Some(fixture) = Fixture::empty(&PYTHON, "app") else { return };
    fixture.write("app.py", SERVES);
    let app = fixture.file("app.py").to_string_lossy().into_owned();
    for (arguments, said) in [
        (vec![app.as_str(), "--preload=x"], "--fork=auto"),
        (vec![app.as_str(), "--fork=always", "--hot-reload=module"], "--hot-reload=none"),
        (vec![app.as_str(), "--fork=never", "--warm=/"], "--warm"),
        (vec![app.as_str(), "--warm=x"], "--warm=/"),
        (vec!["/bin/true", "--fork=always"], "Python and Ruby"),
    ] {
        let output = support::run(&arguments);
        assert!(output.code == 2 && output.stderr.contains(said), "{arguments:?}: {}", output.stderr);
    }
}
