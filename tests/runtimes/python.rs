//! Python: WSGI and ASGI.

use super::checks::{App, Exceptions, app};
use super::fixture::{Fixture, python};
use super::support::{Server, Signal};
use std::time::Duration;

#[test]
fn python_serves_a_bare_wsgi_app() {
    app("wsgi", python(&["sys"])).check();
}

#[test]
fn python_serves_flask() {
    App { exceptions: Exceptions::Framework, ..app("flask", python(&["flask"])) }.check();
}

#[test]
fn python_serves_django() {
    App { exceptions: Exceptions::Framework, ..app("django", python(&["django"])) }.check();
}

#[test]
fn python_serves_a_bare_asgi_app() {
    app("asgi", python(&["asyncio"])).check();
}

#[test]
fn python_serves_fastapi() {
    App { exceptions: Exceptions::Passed, ..app("fastapi", python(&["fastapi"])) }.check();
}

#[test]
fn python_serves_starlette() {
    App { exceptions: Exceptions::Passed, ..app("starlette", python(&["starlette"])) }.check();
}

#[test]
fn a_plain_function_of_fastapi_is_waited_for_in_its_thread_and_its_children_end() {
    let Some(fixture) = Fixture::empty(&python(&["fastapi"]), "app") else { return };
    let app = "
import os, time
from fastapi import FastAPI
app = FastAPI()
@app.get('/gate')
def gate():
    while not os.path.exists('gate'):
        time.sleep(0.005)
@app.get('/fork')
def fork():
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
@app.get('/')
def index():
    return 'hello'
";
    fixture.write("main.py", app);
    let server = fixture.server(None).env("NODE_ENV", "production").args(["w:1", "--read-timeout-ms=3000"]);
    let mut server = server.start();
    server.wait_for_workers(1);
    assert_eq!(server.get("/fork").text(), "0");
    assert_eq!(server.get("/gate").status, 504);
    server.wait_until("the end of its time", |server| server.stderr_text().contains("its time is up"));
    let mut next = server.client();
    next.send_request("GET", "/", "", b"");
    assert!(next.read_response_within(Duration::from_millis(300)).is_err(), "the thread is at work");
    fixture.write("gate", "");
    assert_eq!(next.read_response().text(), "\"hello\"");
}

#[test]
fn an_app_that_patches_the_standard_library_is_served() {
    for (needs, patch) in [
        (python(&["gevent"]), "from gevent import monkey; monkey.patch_all()\nimport gevent\n"),
        (python(&["eventlet"]), "import eventlet; eventlet.monkey_patch()\n"),
    ] {
        let Some(fixture) = Fixture::empty(&needs, "app") else { continue };
        let app = "
import socket, threading, time
beats = []
def beat():
    while True:
        beats.append(1)
        time.sleep(0.01)
threading.Thread(target=beat, daemon=True).start()
def app(environ, start_response):
    time.sleep(0.01)
    body = environ['wsgi.input'].read()
    start_response('200 OK', [])
    return [b'%d %d' % (len(body), len(beats))]
";
        fixture.write("app.py", &format!("{patch}{app}"));
        let mut server = fixture.server(None).arg("w:1").env("NODE_ENV", "production").start();
        server.wait_for_workers(1);
        let ask = |server: &Server| server.client().post("/", &[7; 300_000]).text();
        let beats = |server: &Server| {
            let text = ask(server);
            let (length, beats) = text.split_once(' ').expect(&text);
            assert_eq!(length, "300000");
            beats.parse::<usize>().expect("a number")
        };
        let before = beats(&server);
        server.wait_until("what the app has started runs between requests", |server| {
            beats(server) > before + 20
        });
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait_exit(), 0, "{}", server.stderr_text());
    }
}

#[test]
fn the_cache_of_compiled_modules_is_used_where_nothing_is_watched() {
    for (node_env, is_written) in [("production", true), ("development", false)] {
        let Some(fixture) = Fixture::empty(&python(&["sys"]), "app") else { return };
        fixture.write("part.py", "word = b'hello'\n");
        fixture.write(
            "app.py",
            "from part import word\ndef app(environ, start_response):\n    start_response('200 OK', [])\n    return [word]\n",
        );
        let server = fixture.server(None).arg("w:1").env("NODE_ENV", node_env);
        let mut server = server.without_env("PYTHONDONTWRITEBYTECODE").start();
        server.wait_for_workers(1);
        assert_eq!(fixture.file("__pycache__").is_dir(), is_written, "{node_env}");
    }
}
