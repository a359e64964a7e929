//! Python apps that do what they may not: none of it gets to another client, nor takes the worker along.

use super::checks::read_until;
use super::python_workers::{UPGRADE, Worker};
use super::support::{Signal, is_alive, wait_until};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::time::Duration;

const WSGI: &str = "
import os, threading, time
from failing import fail_on

def gate(name):
    deadline = time.monotonic() + 60
    while not os.path.exists(name):
        if time.monotonic() > deadline:
            raise TimeoutError(f'no file {name}')
        time.sleep(0.005)

def read_late(body):
    try:
        while True:
            data = body.read1(1000)
            if not data:
                print('the late reader has all', flush=True)
                return
            if data.strip(b'b'):
                print('the late reader got', data.strip(b'b'), flush=True)
    except OSError as error:
        print('the late reader gets', error, flush=True)

def write_late(write):
    gate('late')
    try:
        write(b'EVIL')
        print('the late writer is heard', flush=True)
    except Exception:
        print('the late writer is refused', flush=True)

def endless():
    try:
        while True:
            yield b'tick '
            time.sleep(0.005)
    finally:
        print('the stream has ended', flush=True)

def app(environ, start_response):
    path = environ['PATH_INFO']
    if path.startswith('/stderr'):
        fail_on(path)
    if path == '/made-up':
        start_response(environ['QUERY_STRING'] + ' Made up', [])
        return [b'body']
    if path == '/name':
        start_response('200 OK', [(environ['QUERY_STRING'], 'value')])
        return [b'body']
    if path == '/text':
        start_response('200 OK', [('Content-Length', '4')])
        return iter(['text'])
    write = start_response('200 OK', [('Content-Type', 'text/plain')])
    if path == '/read-late':
        threading.Thread(target=read_late, args=[environ['wsgi.input']], daemon=True).start()
        return [b'ok']
    if path == '/write-late':
        write(b'first')
        threading.Thread(target=write_late, args=[write], daemon=True).start()
        return []
    if path == '/slow':
        write(b'one ')
        gate('slow')
        return [b'two']
    if path == '/endless':
        return endless()
    return [environ.get('HTTP_COOKIE', '-').encode()]
";

/// For both.
const FAILING: (&str, &str) = (
    "failing.py",
    "
import os, sys

class Closed:
    def write(self, text):
        raise RuntimeError('it is closed')
    flush = write

def fail_on(path):
    if path == '/stderr-is-strict':
        sys.stderr = open('log', 'a', encoding='utf-8', errors='strict')
    elif path == '/stderr-is-full':
        sys.stderr = open('/dev/full', 'w', buffering=1)
    elif path == '/stderr-is-closed':
        sys.stderr = open('log', 'a')
        sys.stderr.close()
    elif path == '/stderr-fails':
        sys.stderr = Closed()
    elif path == '/stderr-is-nothing':
        sys.stderr = object()
    raise ValueError('no name is \\udcff: ' + path)
",
);

const ASGI: &str = "
import asyncio, os, time
from failing import fail_on

def gate():
    print('at work', flush=True)
    deadline = time.monotonic() + 60
    while not os.path.exists('gate'):
        if time.monotonic() > deadline:
            raise TimeoutError('no file gate')
        time.sleep(0.005)

async def answer(send, text):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': text.encode()})

async def endless(send, message):
    try:
        while True:
            await send(message)
            await asyncio.sleep(0.005)
    finally:
        print('the stream has ended', flush=True)

async def opened():
    print('at work', flush=True)
    deadline = time.monotonic() + 60
    while not os.path.exists('gate'):
        if time.monotonic() > deadline:
            raise TimeoutError('no file gate')
        await asyncio.sleep(0.005)

async def socket(scope, receive, send):
    await receive()
    await send({'type': 'websocket.accept'})
    if scope['path'] == '/endless':
        return await endless(send, {'type': 'websocket.send', 'text': 'tick'})
    await opened()
    size = 0
    while (message := await receive())['type'] == 'websocket.receive':
        size += len(message['bytes'])
    print('read', size, flush=True)

async def app(scope, receive, send):
    if scope['type'] == 'websocket':
        return await socket(scope, receive, send)
    if scope['type'] == 'lifespan':
        raise RuntimeError()
    path = scope['path']
    if path == '/stream-in-a-thread':
        head = [(b'content-type', b'text/event-stream')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': head})
        await send({'type': 'http.response.body', 'body': b'first', 'more_body': True})
        return await asyncio.to_thread(gate)
    if path.startswith('/stderr'):
        fail_on(path)
    if path == '/name':
        head = [(scope['query_string'], b'value')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': head})
        return await send({'type': 'http.response.body', 'body': b'body'})
    if path == '/text':
        head = [(b'content-length', b'4')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': head})
        return await send({'type': 'http.response.body', 'body': 'text'})
    if path == '/cancel-all':
        for task in asyncio.all_tasks():
            task.cancel()
    if path == '/made-up':
        status = int(scope['query_string'])
        await send({'type': 'http.response.start', 'status': status, 'headers': []})
        return await send({'type': 'http.response.body', 'body': b'body'})
    if path == '/endless':
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await endless(send, {'type': 'http.response.body', 'body': b'tick ', 'more_body': True})
    if path == '/silent':
        print('at work', flush=True)
        await asyncio.sleep(3600)
    if path == '/reads':
        await opened()
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message['body']), message['more_body']
        print('read', size, flush=True)
    await answer(send, str(os.getpid()))
";

fn with_asgi(arguments: &[&str], check: impl Fn(&mut Worker)) {
    if let Some(mut worker) = Worker::start_of(&[("asgi.py", ASGI), FAILING], arguments) {
        check(&mut worker);
    }
}

fn with_wsgi(check: impl Fn(&mut Worker)) {
    for places in ["c:1", "c:4"] {
        let Some(mut worker) = Worker::start_of(&[("wsgi.py", WSGI), FAILING], &[places]) else { return };
        println!("{places}");
        check(&mut worker);
    }
}

#[test]
fn a_thread_that_reads_on_behind_the_answer_gets_nothing_of_the_next_request() {
    with_wsgi(|worker| {
        let mut client = worker.client();
        client.send("POST /read-late HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
        client.send(vec![b'b'; 100_000]);
        assert_eq!(client.read_response().text(), "ok");
        client.send(vec![b'b'; 900_000]);
        for number in 0..20 {
            client.send_request("GET", "/", &format!("Cookie: secret={number}\r\n"), b"");
            assert_eq!(client.read_response().text(), format!("secret={number}"));
        }
        worker.says("the late reader gets the answer has ended, and its request's body with it");
        let said = worker.server.stdout_lines();
        assert!(!said.iter().any(|line| line.contains("late reader got")), "{said:?}");
    });
}

#[test]
fn what_is_written_behind_the_answers_end_gets_into_no_other_answer() {
    with_wsgi(|worker| {
        let mut client = worker.client();
        assert_eq!(client.get("/write-late").text(), "first");
        client.send_request("GET", "/slow", "", b"");
        read_until(&mut client, "one");
        worker.open("late");
        worker.says("the late writer is refused");
        worker.open("slow");
        assert_eq!(client.read_response().text(), "one two");
    });
}

#[test]
fn a_stream_that_is_told_twice_of_its_end_ends_with_its_thread() {
    with_asgi(&[], |worker| {
        let pid = worker.server.worker_pids()[0];
        let mut client = worker.client();
        client.send_request("GET", "/stream-in-a-thread", "", b"");
        read_until(&mut client, "first");
        worker.says("at work");
        client.half_close();
        assert!(!client.is_closed_within(Duration::from_millis(200)), "its thread is at work");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("a signal");
        assert!(!client.is_closed_within(Duration::from_millis(200)), "its thread is at work");
        worker.open("gate");
        assert!(client.is_closed_within(Duration::from_secs(10)));
        wait_until("the worker's end", || !is_alive(pid));
        assert!(!worker.server.stderr_text().contains("drain"), "{}", worker.server.stderr_text());
    });
}

/// More than a worker reads ahead of its app, and less than that with what the kernel holds.
const UNREAD_BYTES: usize = 400_000;

#[test]
fn an_upload_that_nobody_reads_hides_no_client_that_leaves() {
    with_wsgi(|worker| {
        let mut client = worker.client();
        client.send_request("POST", "/endless", "", &[b'b'; 100_000]);
        read_until(&mut client, "tick");
        client.half_close();
        worker.says("the stream has ended");
    });
    with_asgi(&["--read-timeout-ms=300"], |worker| {
        let mut client = worker.client();
        client.send_request("POST", "/endless", "", &[b'b'; UNREAD_BYTES]);
        read_until(&mut client, "tick");
        client.half_close();
        worker.says("the stream has ended");
        client.read_until_close();
        // What gets a 504 is cancelled.
        assert_eq!(worker.server.client().post("/silent", &[b'b'; 4 * UNREAD_BYTES]).status, 504);
        worker
            .server
            .wait_until("its cancellation", |server| server.stderr_text().contains("its time is up"));
        assert_eq!(worker.server.get("/").status, 200);
    });
}

#[test]
fn an_app_that_reads_its_upload_late_gets_it_whole_though_its_client_has_left() {
    with_asgi(&[], |worker| {
        let mut client = worker.client();
        client.send_request("POST", "/reads", "", &[b'b'; UNREAD_BYTES]);
        worker.says("at work");
        client.half_close();
        assert!(!client.is_closed_within(Duration::from_millis(300)), "the app is at work");
        worker.open("gate");
        worker.says(&format!("read {UNREAD_BYTES}"));
    });
}

/// A binary message of zeros, under a mask of zeros.
fn message(bytes: u64) -> Vec<u8> {
    let head = [&[0x82, 0x80 | 127][..], &bytes.to_be_bytes(), &[0; 4]].concat();
    [head, vec![0; bytes as usize]].concat()
}

#[test]
fn a_websocket_whose_messages_are_not_read_ends_with_its_client() {
    for path in ["/endless", "/reads"] {
        with_asgi(&[], |worker| {
            let mut client = worker.client();
            client.send_request("GET", path, UPGRADE, b"");
            assert_eq!(client.read_head().status(), Ok(101));
            for _ in 0..4 {
                client.send(message(100_000));
            }
            client.half_close();
            if path == "/endless" {
                worker.says("the stream has ended");
            } else {
                assert!(!client.is_closed_within(Duration::from_millis(300)), "the app is at work");
                worker.open("gate");
                worker.says("read 400000");
            }
        });
    }
}

#[test]
fn a_stderr_that_fails_makes_of_one_exception_no_lost_worker() {
    let check = |worker: &mut Worker| {
        let pid = worker.server.worker_pids()[0];
        let kinds = ["strict", "full", "closed", "nothing"].map(|kind| format!("/stderr-is-{kind}"));
        for path in kinds.iter().map(String::as_str).chain(["/stderr-fails"]) {
            assert_eq!(worker.server.get(path).status, 500, "{path}");
            let words = format!("ValueError: no name is \\udcff: {path}");
            worker.server.wait_until(&words, |server| server.stderr_text().contains(&words));
            assert_eq!(worker.server.get("/").status, 200, "{path}");
        }
        assert_eq!(worker.server.worker_pids(), [pid], "{}", worker.server.stderr_text());
    };
    with_wsgi(check);
    with_asgi(&[], check);
}

#[test]
fn a_status_that_ends_no_answer_is_a_500_with_a_line_in_the_log() {
    let check = |worker: &mut Worker| {
        for status in [100, 101, 103, 199, 20] {
            assert_eq!(worker.server.get(&format!("/made-up?{status}")).status, 500, "{status}");
            let words = "is no status of a final answer";
            worker.server.wait_until(words, |server| {
                server
                    .stderr_lines()
                    .iter()
                    .any(|line| line.contains(&status.to_string()) && line.ends_with(words))
            });
        }
        assert_eq!(worker.server.get("/made-up?299").text(), "body");
    };
    with_wsgi(check);
    with_asgi(&[], check);
}

#[test]
fn a_body_of_text_and_a_header_whose_name_is_none_are_a_500() {
    let check = |worker: &mut Worker| {
        for path in ["/text", "/name?a:b", "/name?", "/name?a(b)"] {
            assert_eq!(worker.server.get(path).status, 500, "{path}");
        }
        assert_eq!(worker.server.get("/name?x-name").header("x-name"), Some("value"));
    };
    with_wsgi(check);
    with_asgi(&[], check);
}

#[test]
fn a_handler_that_cancels_all_tasks_has_its_worker_replaced_in_good_order() {
    with_asgi(&[], |worker| {
        let pid = worker.server.get("/").text();
        assert_eq!(worker.server.get("/cancel-all").text(), pid);
        worker.server.wait_until("its successor", |server| {
            let answer = server.get("/");
            answer.status == 200 && answer.text() != pid
        });
        let pid = pid.parse().expect("a pid");
        wait_until("its end", || !is_alive(pid));
        assert!(!worker.server.stderr_text().contains("exit code"), "{}", worker.server.stderr_text());
    });
}
