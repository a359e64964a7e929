//! What a JavaScript entry may export, and what a handler may count on.

use super::fixture::{Fixture, Needs, bun, node};
use super::support::{Client, Server, TEST_TIMEOUT, Trouble, comes_true};

/// An app of one file, in production.
fn start(needs: &Needs, entry: &str, text: &str, arguments: &[&str]) -> Option<(Fixture, Server)> {
    let fixture = Fixture::empty(needs, "app")?;
    fixture.write(entry, text);
    let mut server = fixture.server(None).arg("w:1").args(arguments).start();
    server.wait_for_workers(1);
    Some((fixture, server))
}

fn answers(needs: &Needs, text: &str, expected: &[(&str, u16, &str)]) {
    let Some((_fixture, server)) = start(needs, "index.mjs", text, &[]) else { return };
    for &(path, status, body) in expected {
        let response = server.get(path);
        let text = response.text();
        assert_eq!((response.status, text.as_str()), (status, body), "{path}\n{}", server.stderr_text());
    }
}

fn answers_everywhere(text: &str, body: &str) {
    for needs in [bun(&[]), node(&[])] {
        answers(&needs, text, &[("/", 200, body)]);
    }
}

#[test]
fn functions_of_two_parameters_say_by_the_second_what_they_take() {
    answers_everywhere("export default (req, res) => { res.end('hello') }\n", "hello");
    answers_everywhere(
        "export default function (a, out) { out.writeHead(200); out.end('hello') }\n",
        "hello",
    );
    let fetch = "export default (request, context) => new Response(typeof context.requestIP)\n";
    answers_everywhere(fetch, "function");
    answers_everywhere(
        "export default async (request, { requestIP }) => new Response(requestIP(request).address)\n",
        "127.0.0.1",
    );
}

#[test]
fn an_http_server_that_does_not_listen_is_served() {
    let text = "import http from 'node:http'\n
export default http.createServer((req, res) => res.end(`hello ${req.socket.remoteAddress}`))\n";
    answers_everywhere(text, "hello 127.0.0.1");
    // What its listener returns counts, as a function's: the exception is this request's.
    let text = "import http from 'node:http'
export default http.createServer(async (req, res) => {
  if (req.url === '/fail') throw new Error('told to fail')
  res.end(`${process.pid}`)
})\n";
    for needs in [bun(&[]), node(&[])] {
        let Some((_fixture, server)) = start(&needs, "index.mjs", text, &[]) else { return };
        let pid = server.get("/").text();
        assert_eq!(server.get("/fail").status, 500, "{}", server.stderr_text());
        assert_eq!(server.get("/").text(), pid);
    }
}

#[test]
fn a_promise_of_an_app_is_waited_for() {
    let text = "const app = { fetch: () => new Response('hello') }
export default new Promise((resolve) => setTimeout(resolve, 20, app))\n";
    answers_everywhere(text, "hello");
}

#[test]
fn fastify_is_made_ready_served_and_closed() {
    let text = "import Fastify from 'fastify'
const app = Fastify()
app.addHook('onClose', async () => {
  await new Promise((resolve) => setTimeout(resolve, 50))
  console.log('closed')
})
app.get('/', async (request) => `hello ${request.ip}`)
export default app\n";
    for needs in [bun(&["fastify"]), node(&["fastify"])] {
        let Some((_fixture, mut server)) = start(&needs, "index.mjs", text, &[]) else { return };
        assert_eq!(server.get("/").text(), "hello 127.0.0.1", "{}", server.stderr_text());
        assert_eq!(server.verb(["stop"]).code, 0);
        server.wait_until("its hook", |server| {
            server.stdout_lines().iter().any(|line| line.contains("closed"))
        });
    }
}

#[test]
fn what_bun_serve_knows_of_an_export_is_honoured() {
    let text = "export default {
  routes: {
    '/static': new Response('static'),
    '/users/:id': (request) => new Response(`user ${request.params.id}`),
    '/methods': { GET: () => new Response('got'), POST: () => new Response('posted') },
    '/boom': () => { throw new Error('boom') },
    '/*': new Response('everything else'),
  },
  error: (error) => new Response(`mine: ${error.message}`, { status: 500 }),
}\n";
    let expected = [
        ("/static", 200, "static"),
        ("/users/7", 200, "user 7"),
        ("/methods", 200, "got"),
        ("/boom", 500, "mine: boom"),
        ("/ready", 200, "everything else"),
    ];
    answers(&bun(&[]), text, &expected);
}

#[test]
fn bun_serves_pages_that_are_imported() {
    let Some(fixture) = Fixture::empty(&bun(&[]), "app") else { return };
    fixture.write("index.ts", "import page from './page.html'\nexport default { routes: { '/*': page } }\n");
    fixture.write("page.html", "<!doctype html><h1>hello</h1><script src='./page.ts'></script>\n");
    fixture.write("page.ts", "console.log('typed' as string)\n");
    let mut server = fixture.server(None).arg("w:1").start();
    server.wait_for_workers(1);
    let page = server.get("/anywhere").text();
    assert!(page.contains("<h1>hello</h1>"), "{page}\n{}", server.stderr_text());
    let script =
        page.split_once("src=\"").and_then(|(_, remaining)| remaining.split('"').next()).expect("a script");
    assert!(server.get(script).text().contains("console.log(\"typed\")"));
}

#[test]
fn the_platforms_classes_are_the_constructors_of_what_the_app_gets_and_makes() {
    let text = "export default (request) => new Response(String([
  new Response().constructor === Response,
  Response.json({}).constructor === Response,
  request.constructor === Request,
  request.clone().constructor === Request,
  request.headers.constructor === Headers,
  new Response() instanceof Response,
].every(Boolean)))\n";
    answers_everywhere(text, "true");
}

#[test]
fn require_main_is_never_the_entry_but_in_its_place() {
    let text = "const path = require('node:path')
module.exports = () => new Response([require.main === module, path.basename(require.main.filename)].join())\n";
    for needs in [bun(&[]), node(&[])] {
        let Some((_fixture, server)) = start(&needs, "index.cjs", text, &[]) else { return };
        assert_eq!(server.get("/").text(), "false,index.cjs", "{}", server.stderr_text());
    }
}

#[test]
fn exceptions_that_nobody_caught_are_the_apps_own_where_it_has_a_handler() {
    let fetch = "() => { setTimeout(() => { throw new Error('later') }); Promise.reject(new Error('too')); \
                 return new Response(String(process.pid)) }";
    let own = "process.on('uncaughtException', (error) => console.log('mine:', error.message))\n";
    for needs in [bun(&[]), node(&[])] {
        let text = format!("{own}export default {fetch}\n");
        let Some((_fixture, mut server)) = start(&needs, "index.mjs", &text, &[]) else { return };
        let pid = server.get("/").text();
        let has =
            |server: &mut Server, what: &str| server.stdout_lines().iter().any(|line| line.contains(what));
        server.wait_until("both", |server| has(server, "mine: later") && has(server, "mine: too"));
        assert_eq!(server.get("/").text(), pid, "{}", server.stderr_text());
    }
}

/// The contract suite tries async handlers; these are the other ways to write one.
#[test]
fn handlers_of_sigterm_that_end_the_process_or_were_preloaded_are_waited_for() {
    let later = "new Promise((resolve) => setTimeout(resolve, 300)).then(() => console.log('flushed'))";
    let exits = format!("process.once('SIGTERM', () => {{ {later}.finally(() => process.exit(0)) }})\n");
    let returns = format!("process.on('SIGTERM', () => {later})\n");
    let app = "export default () => new Response('hello')\n";
    for needs in [bun(&[]), node(&[])] {
        for (preloaded, text) in [("", exits.clone() + app), (returns.as_str(), app.to_owned())] {
            let Some(fixture) = Fixture::empty(&needs, "app") else { return };
            fixture.write("index.mjs", &text);
            fixture.write("first.mjs", preloaded);
            let mut server = fixture.server(None).args(["w:1", "--preload=./first.mjs"]).start();
            server.wait_for_workers(1);
            assert_eq!(server.get("/").text(), "hello");
            assert_eq!(server.verb(["stop"]).code, 0);
            let has_flushed =
                |server: &mut Server| server.stdout_lines().iter().any(|line| line.contains("flushed"));
            server.wait_until("the end of its work", has_flushed);
        }
    }
}

#[test]
fn an_entry_that_listens_by_itself_is_told_how_it_would_be_served() {
    let text = "import http from 'node:http'
http.createServer((req, res) => res.end('hello')).listen(process.env.PORT || 0)\n";
    let Some(fixture) = Fixture::empty(&node(&[]), "app") else { return };
    fixture.write("index.mjs", text);
    let mut server = fixture.server(None).arg("w:1").start();
    assert_eq!(server.wait_exit(), 1);
    server.wait_until("the advice", |server| server.stderr_text().contains("PORT={socket}"));
    let said = server.stderr_text();
    let advice = said.split_once("-- env ").expect("a command").1.lines().next().expect("a line");
    let words: Vec<&str> = advice.split(' ').collect();
    assert_eq!(words, ["PORT={socket}", "node", "index.mjs"], "{said}");
    // It works as it was said.
    let mut server = fixture.server(None).args(["w:1", "--", "env"]).args(words).start();
    server.wait_for_workers(1);
    assert_eq!(server.get("/").text(), "hello");
}

const STREAM: &str = "export default () => new Response(new ReadableStream({
  async pull(controller) {
    await new Promise((resolve) => setTimeout(resolve, 5))
    controller.enqueue(new TextEncoder().encode('tick '))
  },
}))\n";

#[test]
fn a_client_that_leaves_a_stream_leaves_no_word_of_it() {
    for needs in [bun(&[]), node(&[])] {
        let Some((_fixture, server)) = start(&needs, "index.mjs", STREAM, &[]) else { return };
        for _ in 0..5 {
            let mut client = server.client();
            client.send_request("GET", "/", "", b"");
            super::checks::read_until(&mut client, "tick");
            client.reset();
        }
        // Served behind them all, so what they left was said before it.
        let mut client = server.client();
        client.send_request("GET", "/", "", b"");
        super::checks::read_until(&mut client, "tick");
        client.reset();
        assert_eq!(server.verb(["stop"]).code, 0);
        let said = server.stderr_text();
        assert!(!said.contains("Error"), "{said}");
    }
}

// ---- the Rip language ----

/// Behaves as the language's compiler: a loader of Bun's for its files, errors that know how to be a page, and an API
/// that registers a handler where a server runs it.
const COMPILER: &str = "import { plugin } from 'bun'
class CompileError extends Error {
  format() { return `error: ${this.message}` }
  formatHTML() { return `<div class='compile-error'>${this.message}</div>` }
}
plugin({
  name: 'language',
  setup(build) {
    build.onLoad({ filter: /\\.rip$/ }, async ({ path }) => {
      const source = await Bun.file(path).text()
      if (source.includes('<<<')) throw new CompileError('unexpected <<<')
      return { contents: source.replaceAll('->', '=>'), loader: 'js' }
    })
  },
})
";

const API: &str = "const routes = []
export const get = (path, handler) => routes.push([path, handler])
export const start = () => {
  if (process.env.WORKER_ID === undefined && process.env.SOCKET_PATH === undefined) throw new Error('no server')
  globalThis.__ripHandler = (request) => {
    const { pathname } = new URL(request.url)
    const found = routes.find(([path]) => path === pathname)
    return found ? found[1](request) : new Response('none', { status: 404 })
  }
  return globalThis.__ripHandler
}
";

/// A folder with the compiler and the API, and the app's server in development.
fn language(entry: &str) -> Option<(Fixture, Server)> {
    let fixture = Fixture::empty(&bun(&[]), "app")?;
    fixture.write("compiler.ts", COMPILER);
    fixture.write("bunfig.toml", "preload = ['./compiler.ts']\n");
    fixture.write("api.js", API);
    fixture.write("index.rip", entry);
    let mut server = fixture.server(None).env("NODE_ENV", "").arg("w:1").start();
    server.wait_for_workers(1);
    Some((fixture, server))
}

#[test]
fn an_app_of_the_rip_languages_api_is_served_and_may_return_any_value() {
    let entry = "import { get, start } from './api.js'
get('/text', () -> 'hello')
get('/number', () -> 42)
get('/object', () -> ({ ok: true }))
get('/response', () -> new Response('made', { status: 201 }))
get('/function', () -> (request) -> new Response('asked again'))
start()\n";
    let Some((fixture, server)) = language(entry) else { return };
    for (path, status, body) in [
        ("/text", 200, "hello"),
        ("/number", 200, "42"),
        ("/object", 200, "{\"ok\":true}"),
        ("/response", 201, "made"),
        ("/function", 200, "asked again"),
        ("/none", 404, "none"),
    ] {
        let response = server.get(path);
        assert_eq!((response.status, response.text().as_str()), (status, body), "{}", server.stderr_text());
    }
    // Its routes are registered in the process, so an edit takes a new one.
    fixture.write("index.rip", &entry.replace("'hello'", "'edited'"));
    super::support::wait_until("the edit", || server.get("/text").text() == "edited");
}

#[test]
fn a_default_export_of_the_rip_language_may_return_text() {
    let Some((_fixture, server)) = language("export default (request) -> 'hello'\n") else { return };
    assert_eq!(server.get("/").text(), "hello", "{}", server.stderr_text());
}

#[test]
fn an_error_of_the_compilers_is_its_own_page_in_development_until_it_is_mended() {
    let Some((fixture, server)) = language("export default () -> <<<\n") else { return };
    let mut client = server.client();
    client.send_request("GET", "/", "Accept: text/html\r\n", b"");
    let page = client.read_response();
    assert_eq!(page.status, 500);
    assert!(page.text().contains("<div class='compile-error'>unexpected <<<</div>"), "{}", page.text());
    assert_eq!(server.get("/").text(), "error: unexpected <<<\n");
    fixture.write("index.rip", "export default () -> 'mended'\n");
    super::support::wait_until("the edit", || server.get("/").text() == "mended");
}

#[test]
fn what_the_compiler_says_of_an_edit_is_for_browsers_and_all_others_get_the_last_good_handler() {
    let entries = [
        "export default () -> 'hello'\n",
        "import { get, start } from './api.js'\nget('/', () -> 'hello')\nstart()\n",
    ];
    for entry in entries {
        let Some((fixture, server)) = language(entry) else { return };
        assert_eq!(server.get("/").text(), "hello", "{}", server.stderr_text());
        fixture.write("index.rip", "export default () -> <<<\n");
        let mut client = server.client();
        super::support::wait_until("the page", || {
            client.send_request("GET", "/", "Accept: text/html\r\n", b"");
            client.read_response().text().contains("compile-error")
        });
        assert_eq!(server.get("/").text(), "hello");
        fixture.write("index.rip", &entry.replace("hello", "mended"));
        super::support::wait_until("the edit", || server.get("/").text() == "mended");
    }
}

#[test]
fn an_edit_of_static_routes_shows_without_a_handler_that_is_asked() {
    let source = |phrase: &str| format!("export default {{ routes: {{ '/': new Response('{phrase}') }} }}\n");
    let Some(fixture) = Fixture::empty(&bun(&[]), "app") else { return };
    fixture.write("index.ts", &source("one"));
    let mut server = fixture.server(None).env("NODE_ENV", "").arg("w:1").start();
    server.wait_for_workers(1);
    assert_eq!(server.get("/").text(), "one");
    fixture.write("index.ts", &source("two"));
    super::support::wait_until("the edit", || server.get("/").text() == "two");
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// An echo over a WebSocket of an exported `http.Server`, without a library.
const SOCKETS: &str = "import http from 'node:http'
import { createHash } from 'node:crypto'
const server = http.createServer((req, res) => res.end('plain'))
server.on('upgrade', (req, socket) => {
  const key = req.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
  const accept = createHash('sha1').update(key).digest('base64')
  socket.write(`HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Accept: ${accept}\\r\\n\\r\\n`)
  socket.on('data', (frame) => frame[0] === 0x88 ? socket.end() : socket.write(Buffer.from([0x81, 2, frame[6], frame[7]])))
})
export default server\n";

#[test]
fn node_serves_the_websockets_of_an_exported_server_and_closes_them_when_it_leaves() {
    let Some((_fixture, server)) = start(&node(&[]), "index.mjs", SOCKETS, &[]) else { return };
    assert_eq!(server.get("/").text(), "plain");
    let mut client = server.client();
    client.send_request("GET", "/", HANDSHAKE, b"");
    let head = client.read_head();
    assert_eq!(head.status(), Ok(101));
    client.send([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    assert_eq!(client.read_exactly(4), [0x81, 2, b'h', b'i']);
    // Requests go on beside it.
    let mut other = Client::connect_unix(&super::protocol::worker_socket(&server));
    assert_eq!(other.get("/").text(), "plain");
    let pid = server.worker_pids()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), super::support::Signal::SIGTERM)
        .expect("a signal");
    assert_eq!(client.read_exactly(4), [0x88, 2, 0x03, 0xf4]);
    client.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]);
    client.read_until_close();
}

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
