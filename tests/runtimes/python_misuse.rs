//! Python apps that do what they may not: none of it gets to another client, nor takes the worker along.

use super::checks::read_until;
use super::python_workers::Worker;
use super::support::{Signal, is_alive, wait_until};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::time::Duration;

const WSGI: &str = "
import os, threading, time

def gate(name):
    while not os.path.exists(name):
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

def app(environ, start_response):
    path = environ['PATH_INFO']
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
    return [environ.get('HTTP_COOKIE', '-').encode()]
";

const ASGI: &str = "
import asyncio, os, time

def gate():
    print('at work', flush=True)
    while not os.path.exists('gate'):
        time.sleep(0.005)

async def answer(send, text):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': text.encode()})

async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        raise RuntimeError()
    path = scope['path']
    if path == '/stream-in-a-thread':
        head = [(b'content-type', b'text/event-stream')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': head})
        await send({'type': 'http.response.body', 'body': b'first', 'more_body': True})
        return await asyncio.to_thread(gate)
    await answer(send, str(os.getpid()))
";

fn with_asgi(arguments: &[&str], check: impl Fn(&mut Worker)) {
    if let Some(mut worker) = Worker::start(("asgi.py", ASGI), arguments) {
        check(&mut worker);
    }
}

fn with_wsgi(check: impl Fn(&mut Worker)) {
    for places in ["c:1", "c:4"] {
        let Some(mut worker) = Worker::start(("wsgi.py", WSGI), &[places]) else { return };
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
