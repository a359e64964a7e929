//! JavaScript apps that leave, destroy or break their answers: none of it gets to another client, nor holds the worker.

use super::exports::start;
use super::fixture::{Needs, bun, node};
use super::support::{Client, Server, TEST_TIMEOUT, Trouble, comes_true};

/// Each path destroys its answer in another way; a pipeline does it whose source fails.
const DESTROYERS: &str = "import fs from 'node:fs'
import { pipeline } from 'node:stream'
export default (req, res) => {
  if (req.url === '/at-once') return void res.destroy()
  if (req.url === '/later') return void setTimeout(() => res.destroy(), 10)
  if (req.url === '/pipeline') return void pipeline(fs.createReadStream('/nonexistent'), res, () => {})
  if (req.url === '/in-the-middle') {
    res.write('half')
    return void setTimeout(() => res.destroy(), 10)
  }
  if (req.url === '/socket-end') return void setTimeout(() => req.socket.end(), 10)
  if (req.url === '/socket-destroy') return void setTimeout(() => req.socket.destroy(new Error('own')), 10)
  if (req.url === '/works-on') return new Promise((resolve) => {
    res.destroy()
    globalThis.works = true
    setTimeout(() => { globalThis.works = false; resolve() }, 150)
  })
  res.end(globalThis.works ? 'two at once' : 'fine')
}\n";

fn a_destroyed_answer_frees_its_worker(needs: &Needs, more: &[&str]) {
    let Some((_fixture, server)) = start(needs, "index.mjs", DESTROYERS, &["--queue-timeout-ms=4000"]) else {
        return;
    };
    let paths = ["/at-once", "/later", "/pipeline", "/in-the-middle", "/works-on"];
    for &path in paths.iter().chain(more) {
        let mut client = server.client();
        client.send_request("POST", path, "Content-Length: 0\r\n", b"");
        match path {
            "/in-the-middle" => {
                assert_eq!(client.read_head().status(), Ok(200));
                let (rest, _) = client.read_until_close();
                assert!(!rest.ends_with(b"0\r\n\r\n"), "{path}: a cut looks whole");
            }
            _ => assert_eq!(client.read_response().status, 502, "{path}"),
        }
        assert_eq!(server.get("/").text(), "fine", "after {path}: {}", server.stderr_text());
    }
}

#[test]
fn an_answer_that_its_handler_destroys_frees_its_worker_under_bun() {
    a_destroyed_answer_frees_its_worker(&bun(&[]), &[]);
}

#[test]
fn an_answer_that_its_handler_destroys_frees_its_worker_under_node() {
    a_destroyed_answer_frees_its_worker(&node(&[]), &["/socket-end", "/socket-destroy"]);
}

/// Ways to leave a body half-read, each with its status. `raw-body` and `co-body` do what `halt` does, and a pipe whose
/// writer fails is unpiped.
const HALF_READ: &str = "import { createWriteStream } from 'node:fs'
import { pipeline, Writable } from 'node:stream'
const full = () => new Writable({ write: (chunk, encoding, done) => done(new Error('full')) })
const ways = {
  halt: (req, end) => req.once('data', () => { req.unpipe(); req.pause(); end() }),
  late: (req, end) => req.once('data', () => { req.pause(); setTimeout(end, 5) }),
  paused: (req, end) => req.on('data', () => { req.pause(); end() }),
  readable: (req, end) => req.on('readable', () => { req.read(10); end() }),
  pipe: (req, end) => { req.pipe(createWriteStream('/nowhere/at/all').on('error', end)) },
  pipeline: (req, end) => { pipeline(req, full(), end) },
  stop: async (req, end) => { for await (const piece of req) break; end() },
  destroy: (req, end) => req.once('data', () => { end(); req.destroy() }),
  destroyLater: (req, end, res) => req.once('data', () => { res.on('finish', () => req.destroy()); end() }),
  goOn: (req, end) => { end(); req.on('data', () => {}) },
}
process.on('exit', () => console.log('ended in order'))
export default (req, res) => {
  const way = ways[req.url.slice(1)]
  const end = () => res.writableEnded || res.writeHead(413).end('too much')
  return way ? way(req, end, res) : res.end(`${process.pid}`)
}\n";
/// What comes with the head, what a connection holds though nobody reads it, and what it does not hold.
const HALF_READ_BYTES: [usize; 5] = [2_000, 105_000, 150_000, 220_000, 2_000_000];

#[test]
fn a_body_that_is_read_in_part_holds_neither_the_next_request_nor_its_worker() {
    let ways =
        ["halt", "late", "paused", "readable", "pipe", "pipeline", "stop", "destroy", "destroyLater", "goOn"];
    for (needs, c) in [(bun(&[]), "c:1"), (node(&[]), "c:1"), (bun(&[]), "c:4"), (node(&[]), "c:4")] {
        let Some((_fixture, mut server)) = start(&needs, "index.mjs", HALF_READ, &[c]) else { return };
        let pid = server.get("/").text();
        let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the worker runs").count();
        let mut before = 0;
        for (at, way) in ways.iter().chain(&ways).enumerate() {
            // Some stay from the first time: what reads and writes files has its own.
            if at == ways.len() {
                before = descriptors();
            }
            for size in HALF_READ_BYTES {
                let mut client = server.client();
                // Of what is too much the rest may be refused.
                let _ = client
                    .try_send(format!("POST /{way} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"));
                let _ = client.try_send(vec![7; size]);
                let answer = client.read_response();
                assert_eq!(answer.status, 413, "{way}, {size} bytes: {}", server.stderr_text());
                let next = server.get("/");
                assert_eq!((next.status, next.text()), (200, pid.clone()), "{way}, behind {size} bytes");
            }
        }
        let kept = || descriptors() <= before;
        assert!(comes_true(TEST_TIMEOUT, kept), "{before} descriptors at first, then {}", descriptors());
        assert_eq!(server.verb(["stop"]).code, 0);
        server.wait_until("its end", |server| {
            server.stdout_lines().iter().any(|line| line.contains("ended in order"))
        });
        let log = server.stderr_text();
        assert!(!log.contains("warn: worker"), "{log}");
    }
}

#[test]
fn a_refused_upgrade_takes_no_request_along() {
    let text = "import http from 'node:http'
const server = http.createServer((req, res) => res.end('hello'))
const refusal = 'HTTP/1.1 401 Unauthorized\\r\\nContent-Length: 2\\r\\n\\r\\nno'
server.on('upgrade', (req, socket) => {
  if (req.url === '/end') socket.end(refusal)
  else socket.write(req.url === '/bytes' ? Buffer.from(refusal) : refusal)
})
export default server\n";
    let handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for needs in [bun(&[]), node(&[])] {
        let Some((_fixture, server)) = start(&needs, "index.mjs", text, &[]) else { return };
        for path in ["/write", "/bytes", "/end"] {
            for _ in 0..3 {
                let mut client = server.client();
                client.send_request("GET", path, handshake, b"");
                let answer = client.read_response();
                assert_eq!((answer.status, answer.text().as_str()), (401, "no"), "{path}");
                let next = server.get("/");
                assert_eq!((next.status, next.text().as_str()), (200, "hello"), "behind {path}");
            }
        }
        assert_eq!(server.verb(["stop"]).code, 0);
        let log = server.stderr_text();
        assert!(!log.contains("warn: worker"), "{log}");
    }
}

/// Each path writes more or less than it has promised, or something that only looks so.
const PROMISES: &str = "import fs from 'node:fs'
import { Writable } from 'node:stream'
const evil = 'HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nEVIL'
export default (req, res) => {
  const promise = (length) => res.writeHead(200, { 'content-type': 'text/plain', 'content-length': length })
  switch (req.url) {
    case '/late': promise(5).write('hello'); return void setTimeout(() => res.end(evil), 100)
    case '/late-write': promise(5).write(Buffer.from('hello')); return void setTimeout(() => { res.write(evil); res.write(evil); res.end(evil) }, 100)
    case '/long-in-pieces': promise(5).write('hello'); res.write(evil); return void res.end()
    case '/long': promise('5'); res.write('hel'); return void setTimeout(() => res.end('lo' + evil), 10)
    case '/long-at-once': res.setHeader('Content-Length', 5); return void res.end('hello' + evil)
    case '/letters': promise(5); return void res.end('h\u{e9}llo')
    case '/short': promise(9); return void res.end('hello')
    case '/short-later': promise(9).write('hello'); return void setTimeout(() => res.end(), 10)
    case '/empty': res.setHeader('Content-Length', '9'); return void res.end()
    case '/none': res.setHeader('Content-Length', 0); return void res.end()
    case '/whole': res.setHeader('Content-Length', '6'); res.write('h\u{e9}', 'utf8'); res.write('6c6c', 'hex'); return void res.end('o', () => {})
    case '/listed': res.writeHead(200, ['Content-Length', '5']); return void res.end('hello')
    case '/pipe': promise(fs.statSync('index.mjs').size); return void fs.createReadStream('index.mjs').pipe(res)
    case '/204': return void res.writeHead(204).end()
    case '/304': return void res.writeHead(304, { 'content-length': 9 }).end()
    case '/head': promise(9); return void res.end()
    case '/head-with-body': promise(9); return void res.end('all of it')
  }
  res.end('fine')
}\n";

fn next_is_fine(server: &Server, path: &str) {
    for _ in 0..3 {
        let next = server.get("/");
        let said = (next.status, next.text());
        assert_eq!(said, (200, "fine".into()), "behind {path}: {}", server.stderr_text());
    }
}

#[test]
fn an_answer_longer_or_shorter_than_its_content_length_is_cut_and_leaves_nothing_for_the_next_client() {
    for (needs, c) in [(bun(&[]), "c:1"), (node(&[]), "c:1"), (bun(&[]), "c:4"), (node(&[]), "c:4")] {
        let Some((_fixture, mut server)) = start(&needs, "index.mjs", PROMISES, &[c]) else { return };
        for path in ["/late", "/late-write"] {
            let answer = server.get(path);
            assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{path}");
            let next = server.client().post("/", b"which is not sent again");
            let said = (next.status, next.text());
            assert_eq!(said, (200, "fine".into()), "behind {path}: {}", server.stderr_text());
            next_is_fine(&server, path);
            server
                .wait_until("what is wrong", |server| server.stderr_text().contains(&format!("GET {path}")));
        }
        for path in ["/long", "/long-at-once", "/letters", "/short", "/short-later", "/empty"] {
            let mut client = server.client();
            client.send_request("GET", path, "", b"");
            match client.read_response_within(TEST_TIMEOUT) {
                Ok(answer) => assert_eq!(answer.status, 502, "{path} looks whole"),
                Err(broken) => assert_ne!(broken.trouble, Trouble::TimedOut, "{path} hangs"),
            }
            next_is_fine(&server, path);
        }
        // Under Bun the first piece is out, and with it all that was promised, before the second one shows the fault.
        let answer = server.get("/long-in-pieces");
        assert!(answer.status == 502 || answer.text() == "hello", "{}", answer.text());
        next_is_fine(&server, "/long-in-pieces");
        let file = PROMISES.to_owned();
        for (path, text) in [("/none", ""), ("/whole", "h\u{e9}llo"), ("/listed", "hello"), ("/pipe", &file)]
        {
            let answer = server.get(path);
            assert_eq!((answer.status, answer.text().as_str()), (200, text), "{path}");
        }
        for (path, status) in [("/204", 204), ("/304", 304)] {
            assert_eq!(server.get(path).status, status);
            next_is_fine(&server, path);
        }
        for path in ["/head", "/head-with-body"] {
            let mut client = server.client();
            client.send_request("HEAD", path, "", b"");
            let answer = client.read_response_to_head();
            assert_eq!((answer.status, answer.header("content-length")), (200, Some("9")), "{path}");
            next_is_fine(&server, path);
        }
    }
}

/// Keeps a request behind its answer, and reads it when the next one asks for that.
const READ_LATE: &str = "let kept
const count = async (stream) => { let bytes = 0; for await (const part of stream) bytes += part.length; return bytes }
const ways = {
  text: async ({ request }) => (await request.text()).length,
  json: async ({ request }) => (await request.json()).length,
  arrayBuffer: async ({ request }) => (await request.arrayBuffer()).byteLength,
  blob: async ({ request }) => (await request.blob()).size,
  body: ({ request }) => count(request.body),
  taken: ({ stream }) => count(stream),
}
export default async (request) => {
  const way = new URL(request.url).pathname.slice(1)
  if (request.method === 'POST') {
    kept = { request, stream: way === 'taken' ? request.body : undefined }
    return new Response('accepted', { status: 202 })
  }
  return new Response(await ways[way](kept).then((bytes) => `${bytes} bytes`, (error) => error.name))
}\n";
const LATE_BYTES: usize = 200_000;

#[test]
fn a_body_that_is_read_behind_the_answer_is_whole_or_an_abort_error() {
    let Some((_fixture, server)) = start(&node(&[]), "index.mjs", READ_LATE, &[]) else { return };
    let body = format!("\"{}\"", "x".repeat(LATE_BYTES - 2));
    let mut client = Client::connect_unix(&super::protocol::worker_socket(&server));
    for way in ["text", "json", "arrayBuffer", "blob", "body", "taken"] {
        let head = format!("POST /{way} HTTP/1.1\r\nHost: a\r\nContent-Length: {LATE_BYTES}\r\n\r\n");
        for at_first in [0, 1000, 100_000] {
            client.send(&head);
            client.send(&body[..at_first]);
            assert_eq!(client.read_response().status, 202);
            client.send(&body[at_first..]);
            assert_eq!(client.get(&format!("/{way}")).text(), "AbortError", "{way} behind {at_first} bytes");
        }
        client.send(format!("POST /{way} HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n\"late\""));
        assert_eq!(client.read_response().status, 202);
        let whole = if way == "json" { "4 bytes" } else { "6 bytes" };
        assert_eq!(client.get(&format!("/{way}")).text(), whole, "{way}");
    }
}

#[test]
fn an_answer_with_a_status_below_200_is_a_500_at_once() {
    let text = "export default async (req, res) => {
  const [path, status] = req.url.split('?')
  if (path === '/head') return res.writeHead(status).end('x')
  if (path === '/number') return res.writeHead(Number(status), { 'x-a': 'b' }).end('x')
  if (path === '/code') return (res.statusCode = Number(status), res.end('x'))
  if (path === '/later') return void setTimeout(() => res.writeHead(Number(status)).end('x'), 10)
  res.writeEarlyHints({ link: '</a>; rel=preload' })
  res.end('fine')
}\n";
    for needs in [bun(&[]), node(&[])] {
        let Some((_fixture, mut server)) = start(&needs, "index.mjs", text, &[]) else { return };
        for path in ["/head", "/number", "/code"] {
            for status in [100, 101, 103, 199] {
                let target = format!("{path}?{status}");
                assert_eq!(server.get(&target).status, 500, "{target}: {}", server.stderr_text());
                let words = format!("an answer can’t have status {status}");
                server.wait_until(&words, |server| server.stderr_text().contains(&words));
                assert_eq!(server.get("/").text(), "fine", "behind {target}");
            }
        }
        assert_eq!(server.get("/later?103").status, 500, "{}", server.stderr_text());
        server.wait_until("its successor", |server| server.get("/").text() == "fine");
    }
}
