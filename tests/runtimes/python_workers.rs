//! What a Python worker does at the edges: half-closes, SIGTERM, forks, exceptions that are no Exception, patched
//! standard libraries. Asked on the worker's own socket where the server would hide it.

use super::checks::read_until;
use super::fixture::{Fixture, python};
use super::protocol::worker_socket;
use super::support::{Client, Server, Signal, is_alive, wait_until};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::time::Duration;

const WSGI: &str = "
import asyncio, atexit, os, sys, time

atexit.register(lambda: print('at exit', flush=True))

def gate(name):
    while not os.path.exists(name):
        time.sleep(0.005)

def stream():
    try:
        yield b'first\\n'
        while True:
            time.sleep(0.005)
            yield b'tick\\n'
    finally:
        print('stream ended', flush=True)

def app(environ, start_response):
    path = environ['PATH_INFO']
    kind = 'text/event-stream' if path == '/events' else 'text/plain'
    if path == '/cancelled':
        raise asyncio.CancelledError()
    if path == '/exit':
        sys.exit(3)
    if path == '/interrupt':
        raise KeyboardInterrupt()
    if path == '/fork':
        if os.fork() == 0:
            start_response('200 OK', [])
            gate('child-may-end')
            return [b'from the child']
    if path == '/fork-raises' and os.fork() == 0:
        raise RuntimeError('in the child')
    if path == '/gate':
        print('at work', flush=True)
        gate('gate')
        print('worked', flush=True)
    start_response('200 OK', [('Content-Type', kind)])
    if path == '/events':
        return stream()
    if path == '/client':
        seen = [environ['REMOTE_ADDR'], environ.get('HTTP_RIP_CLIENT', '-')]
        return [' '.join(seen).encode()]
    return [str(os.getpid()).encode()]
";

const ASGI: &str = "
import asyncio, atexit, os, signal, sys, threading, time

atexit.register(lambda: print('at exit', flush=True))

async def flush():
    await asyncio.sleep(0.1)
    print('flushed', flush=True)

async def lifespan(receive, send):
    await receive()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(flush()))
    await send({'type': 'lifespan.startup.complete'})
    await receive()
    print('shut down', flush=True)
    await send({'type': 'lifespan.shutdown.complete'})

async def gate(name):
    while not os.path.exists(name):
        await asyncio.sleep(0.005)

async def socket(scope, receive, send):
    await receive()
    if scope['path'] == '/denied':
        await send({'type': 'websocket.http.response.start', 'status': 401, 'headers': [(b'x-why', b'no')]})
        await send({'type': 'websocket.http.response.body', 'body': b'who are you?'})
        return
    await send({'type': 'websocket.accept'})
    print('closed with', (await receive())['code'], flush=True)

async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        return await lifespan(receive, send)
    if scope['type'] == 'websocket':
        return await socket(scope, receive, send)
    path = scope['path']
    if path == '/exit':
        sys.exit(3)
    if path == '/interrupt':
        raise KeyboardInterrupt()
    if path == '/cancelled':
        raise asyncio.CancelledError()
    if path == '/task-exits':
        asyncio.create_task(exit_soon())
    if path == '/fork' and os.fork() == 0:
        time.sleep(0.05)
        while not os.path.exists('child-may-end'):
            time.sleep(0.005)
    if path == '/fork-raises' and os.fork() == 0:
        raise RuntimeError('in the child')
    if path == '/fork-in-a-thread':
        await asyncio.to_thread(fork)
    if path == '/in-a-thread':
        await asyncio.to_thread(block)
    if path == '/events' or path == '/heard-events':
        head = [(b'content-type', b'text/event-stream')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': head})
        await send({'type': 'http.response.body', 'body': b'first\\n', 'more_body': True})
        try:
            if path == '/events':
                await asyncio.sleep(3600)
            while (await receive())['type'] != 'http.disconnect':
                pass
            await send({'type': 'http.response.body', 'body': b'goodbye\\n', 'more_body': True})
        finally:
            print('stream ended', flush=True)
        return
    if path == '/gate':
        print('at work', flush=True)
        await gate('gate')
        print('worked', flush=True)
    if path == '/stubborn':
        print('at work', flush=True)
        try:
            await gate('gate')
        except asyncio.CancelledError:
            print('cancelled', flush=True)
            await gate('gate')
    body = str(os.getpid()).encode()
    if path == '/client':
        seen = [scope['client'], [value for name, value in scope['headers'] if name == b'rip-client']]
        body = repr(seen).encode()
    if path == '/body':
        message = await receive()
        await gate('gate')
        print('kept', message['body'].decode(), flush=True)
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': body})

async def exit_soon():
    sys.exit(3)

def fork():
    if os.fork() == 0:
        threading.Lock()
        print('in the child', flush=True)

def block():
    print('at work', flush=True)
    while not os.path.exists('gate'):
        time.sleep(0.005)
";

const BOTH: [(&str, &str); 2] = [("wsgi.py", WSGI), ("asgi.py", ASGI)];

pub struct Worker {
    pub fixture: Fixture,
    pub server: Server,
}

impl Worker {
    fn start(file: (&str, &str), arguments: &[&str]) -> Option<Worker> {
        Worker::start_of(&[file], arguments)
    }

    /// Of the app that these files are.
    pub fn start_of(files: &[(&str, &str)], arguments: &[&str]) -> Option<Worker> {
        let fixture = Fixture::empty(&python(&["asyncio"]), "app")?;
        for (name, text) in files {
            fixture.write(name, text);
        }
        let server = fixture.server(None).env("NODE_ENV", "production").args(["w:1", "--no-access-log"]);
        let mut server = server.args(arguments).start();
        server.wait_for_workers(1);
        Some(Worker { fixture, server })
    }

    /// A connection of its own.
    pub fn client(&self) -> Client {
        Client::connect_unix(&worker_socket(&self.server))
    }

    pub fn open(&self, gate: &str) {
        self.fixture.write(gate, "");
    }

    pub fn says(&mut self, words: &str) {
        self.server.wait_until(words, |server| has_said(server, words));
    }

    /// The app's end, by the server's own order of stopping.
    fn stops(mut self) {
        self.server.signal(Signal::SIGTERM);
        assert_eq!(self.server.wait_exit(), 0, "{}", self.server.stderr_text());
        assert!(has_said(&self.server, "at exit"), "{:?}", self.server.stdout_lines());
    }
}

fn has_said(server: &Server, words: &str) -> bool {
    server.stdout_lines().iter().any(|line| line.ends_with(words))
}

fn with_both(arguments: &[&str], check: impl Fn(&mut Worker)) {
    for app in BOTH {
        let Some(mut worker) = Worker::start(app, arguments) else { return };
        println!("{}", app.0);
        check(&mut worker);
    }
}

#[test]
fn a_worker_says_whether_a_handler_runs() {
    with_both(&[], |worker| {
        let mut first = worker.client();
        first.send_request("GET", "/gate", "", b"");
        worker.says("at work");
        let mut prober = worker.client();
        let mut probe = |kind: &str| {
            prober.send_request("GET", "/ready", &format!("Rip-Probe: {kind}\r\n"), b"");
            let answer = prober.read_response();
            (answer.status, answer.header("rip-worker-busy").map(str::to_owned), answer.text())
        };
        assert_eq!(probe("idle"), (503, Some("1".into()), String::new()));
        assert_eq!(probe("1"), (200, None, "ok".into()));
        worker.open("gate");
        assert_eq!(first.read_response().status, 200);
        wait_until("it is idle", || probe("idle") == (200, None, "ok".into()));
    });
}

#[test]
fn a_half_close_cancels_no_handler_and_the_connection_stays_until_it_has_ended() {
    with_both(&[], |worker| {
        let mut client = worker.client();
        client.send_request("GET", "/gate", "", b"");
        worker.says("at work");
        client.half_close();
        assert!(!client.is_closed_within(Duration::from_millis(200)), "its handler is at work");
        worker.open("gate");
        worker.says("worked");
        client.read_until_close();
    });
}

#[test]
fn a_post_whose_client_has_gone_is_carried_out_with_its_body() {
    let Some(mut worker) = Worker::start(BOTH[1], &[]) else { return };
    let mut client = worker.client();
    client.send_request("POST", "/body", "", b"7 apples");
    client.half_close();
    worker.open("gate");
    worker.says("kept 7 apples");
}

#[test]
fn a_silent_event_stream_ends_when_its_client_has_gone() {
    for (path, is_cancelled) in [("/events", true), ("/heard-events", false)] {
        let Some(mut worker) = Worker::start(BOTH[1], &[]) else { return };
        let mut client = worker.client();
        client.send_request("GET", path, "", b"");
        read_until(&mut client, "first");
        client.half_close();
        assert!(client.is_closed_within(Duration::from_secs(10)));
        worker.says("stream ended");
        let traces = worker.server.stderr_text().contains("Traceback");
        assert!(!traces, "{path} {is_cancelled}: {}", worker.server.stderr_text());
    }
}

#[test]
fn a_request_whose_time_is_up_is_cancelled_and_the_next_one_waits_for_its_end() {
    for (path, words) in [("/stubborn", "cancelled"), ("/in-a-thread", "is cancelled: its time is up")] {
        let Some(mut worker) = Worker::start(BOTH[1], &["--read-timeout-ms=200"]) else { return };
        assert_eq!(worker.server.get(path).status, 504, "{path}");
        worker.server.wait_until(words, |server| {
            has_said(server, words) || server.stderr_lines().iter().any(|line| line.ends_with(words))
        });
        let mut next = worker.server.client();
        next.send_request("GET", "/", "", b"");
        let early = next.read_response_within(Duration::from_millis(300));
        assert!(early.is_err(), "{path}: the first one is still at work");
        worker.open("gate");
        assert_eq!(next.read_response().status, 200, "{path}: {}", worker.server.stderr_text());
        assert!(!worker.server.stderr_text().contains("worker_busy"), "{}", worker.server.stderr_text());
    }
}

#[test]
fn a_worker_that_is_told_to_end_finishes_what_it_has_and_runs_its_shutdown() {
    with_both(&[], |worker| {
        let mut client = worker.server.client();
        client.send_request("GET", "/gate", "", b"");
        worker.says("at work");
        let pid = worker.server.worker_pids()[0];
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("a signal");
        let fixture = &worker.fixture;
        worker.server.wait_until("its successor", |server| {
            fixture.write("gate", "");
            server.get("/").text() != pid.to_string()
        });
        assert_eq!(client.read_response().text(), pid.to_string(), "the request in hand");
        worker.says("at exit");
        if worker.fixture.file("asgi.py").exists() {
            worker.says("flushed");
            worker.says("shut down");
        }
        wait_until("its end", || !is_alive(pid));
        assert!(!worker.server.stderr_text().contains("exit code"), "{}", worker.server.stderr_text());
    });
}

#[test]
fn event_streams_and_websockets_are_told_at_once_that_the_worker_leaves() {
    for path in ["/events", "/heard-events"] {
        let Some(mut worker) = Worker::start(BOTH[1], &[]) else { return };
        let mut client = worker.server.client();
        client.send_request("GET", path, "", b"");
        read_until(&mut client, "first");
        kill(Pid::from_raw(worker.server.worker_pids()[0]), Signal::SIGTERM).expect("a signal");
        let whole = client.read_response();
        let end = if path == "/events" { "first\n" } else { "first\ngoodbye\n" };
        assert_eq!(whole.text(), end, "it ends in good order");
        worker.says("stream ended");
        worker.stops();
    }
    let Some(mut worker) = Worker::start(BOTH[0], &[]) else { return };
    let mut client = worker.server.client();
    client.send_request("GET", "/events", "", b"");
    read_until(&mut client, "tick");
    kill(Pid::from_raw(worker.server.worker_pids()[0]), Signal::SIGTERM).expect("a signal");
    assert!(client.read_response().text().ends_with("tick\n"));
    worker.says("stream ended");

    let Some(mut worker) = Worker::start(BOTH[1], &[]) else { return };
    let mut client = worker.server.client();
    client.send_request("GET", "/", UPGRADE, b"");
    assert_eq!(client.read_head().status(), Ok(101));
    kill(Pid::from_raw(worker.server.worker_pids()[0]), Signal::SIGTERM).expect("a signal");
    let frame = client.read_exactly(4);
    assert_eq!((frame[0], u16::from_be_bytes([frame[2], frame[3]])), (0x88, 1012));
    worker.says("closed with 1012");
    drop(client);
    worker.stops();
}

pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn a_websocket_may_be_denied_by_an_answer_of_the_apps_own() {
    let Some(worker) = Worker::start(BOTH[1], &[]) else { return };
    let mut client = worker.server.client();
    client.send_request("GET", "/denied", UPGRADE, b"");
    let denied = client.read_response();
    assert_eq!((denied.status, denied.header("x-why")), (401, Some("no")));
    assert_eq!(denied.text(), "who are you?");
    assert!(!worker.server.stderr_text().contains("failed"), "{}", worker.server.stderr_text());
    assert_eq!(worker.server.get("/").status, 200);
}

#[test]
fn what_is_no_exception_is_a_500_and_no_end_of_the_worker() {
    with_both(&[], |worker| {
        let pid = worker.server.get("/").text();
        for path in ["/cancelled", "/exit", "/interrupt"] {
            assert_eq!(worker.server.get(path).status, 500, "{path}");
        }
        worker.server.get("/task-exits");
        assert_eq!(worker.server.get("/").text(), pid, "{}", worker.server.stderr_text());
    });
}

#[test]
fn a_child_that_a_handler_forked_ends_after_the_apps_code_and_answers_nobody() {
    with_both(&[], |worker| {
        let pid: i32 = worker.server.get("/").text().parse().expect("a pid");
        assert_eq!(worker.server.get("/fork").text(), pid.to_string());
        let children = || {
            let text =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            text.split_whitespace().filter(|child| child.parse().is_ok_and(is_alive)).count()
        };
        assert_eq!(children(), 1, "it is still in the app's code");
        for _ in 0..3 {
            assert_eq!(worker.server.get("/").text(), pid.to_string());
        }
        worker.open("child-may-end");
        wait_until("its end", || children() == 0);
        assert_eq!(worker.server.get("/fork-raises").text(), pid.to_string());
        wait_until("its end", || children() == 0);
        if worker.fixture.file("asgi.py").exists() {
            assert_eq!(worker.server.get("/fork-in-a-thread").text(), pid.to_string());
            worker.says("in the child");
            wait_until("its end", || children() == 0);
        }
        assert_eq!(worker.server.get("/").text(), pid.to_string(), "{}", worker.server.stderr_text());
    });
}

#[test]
fn the_client_is_who_no_trusted_proxy_is() {
    with_both(&["--trust-proxy=loopback,10.0.0.0/8"], |worker| {
        let is_wsgi = worker.fixture.file("wsgi.py").exists();
        for (forwarded, client) in [
            ("", "127.0.0.1"),
            ("X-Forwarded-For: 203.0.113.7, 10.1.2.3\r\nRip-Client: 1.2.3.4\r\n", "203.0.113.7"),
        ] {
            let mut asker = worker.server.client();
            asker.send_request("GET", "/client", forwarded, b"");
            let seen = asker.read_response().text();
            let expected = if is_wsgi { format!("{client} -") } else { format!("[('{client}', 0), []]") };
            assert_eq!(seen, expected);
        }
    });
}
