//! Python apps that do what they may not: none of it gets to another client, nor takes the worker along.

use super::checks::read_until;
use super::python_workers::Worker;

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
