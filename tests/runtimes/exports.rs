//! What a JavaScript entry may export, and what a handler may count on.

use super::fixture::{Fixture, Needs, bun, node};
use super::support::{Client, Server};

/// An app of one file, in production.
pub fn start(needs: &Needs, entry: &str, text: &str, arguments: &[&str]) -> Option<(Fixture, Server)> {
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
