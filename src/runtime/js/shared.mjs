// What the Node and the Bun harness share: the app and its hot reload, the words with the server's
// control socket, what becomes of an exception, and `(req, res)` apps, which both run over node:http.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import http from 'node:http'
import { createRequire } from 'node:module'
import { inspect } from 'node:util'
import { pathToFileURL } from 'node:url'

const { env } = process
const entry = env.RIP_APP_ENTRY
const isBun = 'Bun' in globalThis
const loaded = createRequire(import.meta.url).cache
const LOOK_EVERY_MS = 100
const LEAVE_LOOK_MS = 10

export const socketPath = env.SOCKET_PATH
export const BUSY = { 'Rip-Worker-Busy': '1', 'Content-Type': 'text/plain' }
export const worker = {
  app: undefined, // { fetch, websocket } or { listener }
  current: undefined, // the request under way, with its fail(error)
}

// The signal goes to the server too, and it is the server that ends its workers.
process.on('SIGINT', () => {})

// ---- the server's control socket ----

function tell(op, more) {
  const body = JSON.stringify({ op, workerId: Number(env.WORKER_ID), ...more })
  return new Promise((resolve) => {
    const failed = (error) => resolve({ ok: false, error: error.message })
    http.request({
      socketPath: env.RIP_CONTROL_SOCKET, path: '/worker', method: 'POST', agent: false,
      headers: { Host: 'localhost', 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) },
    }, async (response) => {
      let text = ''
      try {
        for await (const chunk of response) text += chunk
        resolve(JSON.parse(text))
      } catch {
        resolve({ ok: false, error: text || `status ${response.statusCode}` })
      }
    }).on('error', failed).end(body)
  })
}

// Joins, and from then on leaves on SIGTERM: after the server's ok no new request comes, and `quiet()`
// says when the last one is served. Without an ok there is no server left to close the connections.
export async function join(quiet, idle = () => !worker.current) {
  const answer = await tell('join', { pid: process.pid, socket: socketPath, version: Number(env.RIP_VERSION) })
  if (!answer.ok) giveUp(`the server refused worker ${env.WORKER_ID}: ${answer.error ?? JSON.stringify(answer)}`)
  let leaving
  process.on('SIGTERM', () => {
    leaving ??= tell('quit').then(({ ok }) => {
      // On a timer, so that bytes that were sent before the ok are read first.
      setInterval(() => (ok ? quiet() : idle()) && process.exit(0), LEAVE_LOOK_MS)
    })
  })
  // What nobody caught belongs to the request under way, if there is one. It is answered, and a
  // fresh process takes over, as nobody knows what state this one is in.
  for (const event of ['uncaughtException', 'unhandledRejection']) {
    process.on(event, (error) => {
      if (isAbort(error)) return console.error(error) // a wait that was given up breaks nothing
      if (worker.current) worker.current.fail(error)
      else console.error(error)
      retire()
    })
  }
}

let retiring = false
function retire() {
  if (!retiring) tell('retire')
  retiring = true
}

function giveUp(...why) {
  console.error('rip-server:', ...why)
  process.exit(1)
}

// ---- the app ----

let loads = 0
let reloads = 0
let looked = 0
let seen

// Nanoseconds, size and inode: an edit within the same second counts, and so does a rename over the
// entry or a symlink that moved.
function look() {
  const { mtimeNs, size, ino, dev } = fs.statSync(entry, { bigint: true })
  return `${mtimeNs} ${size} ${ino} ${dev}`
}

async function load() {
  const file = fs.realpathSync(entry)
  // An ES module is loaded anew under a new name, CommonJS when the old one is forgotten.
  delete loaded[file]
  const query = loads++ ? `?v=${loads}` : ''
  return pick(await import(pathToFileURL(file).href + query))
}

function pick(module) {
  let app = module.default
  if (app?.__esModule === true) app = app.default ?? app // compiled to CommonJS by TypeScript or Babel
  if (typeof app?.fetch === 'function') {
    // An itty-router has any property that it is asked for.
    return { fetch: (...args) => app.fetch(...args), websocket: Object.hasOwn(app, 'websocket') ? app.websocket : undefined }
  }
  if (typeof app?.callback === 'function') {
    const listener = app.callback() // Koa, which lets an answer hang that fails after its head is out
    app.on?.('error', (error, context) => error.headerSent && context?.res.destroy())
    return { listener }
  }
  if (typeof app === 'function') {
    // Express and Connect are functions with `handle`. Other functions say by their arity what they
    // take; under Bun they don't, as `(request, server)` is a fetch handler there.
    const listens = typeof app.handle === 'function' || (!isBun && app.length >= 2)
    return listens ? { listener: app } : { fetch: app, websocket: module.websocket }
  }
  if (typeof module.fetch === 'function') return { fetch: module.fetch, websocket: module.websocket }
  // Bun takes a file that it has no loader for as an asset: its default export is a path.
  if (typeof app === 'string' && entry.endsWith('.rip')) throw NO_COMPILER
  throw 'it exports no handler. What would do: `export default (request) => new Response(…)`, an object with '
    + '`fetch`, a function named `fetch`, or an Express, Connect or Koa app'
}

const NO_COMPILER = 'nothing here compiles .rip. Name the compiler with --preload=<module>'
  + (isBun ? ', or as `preload` in a bunfig.toml in the app’s folder' : ', or install Bun')

// What a person needs to see. Of an ES module Node keeps the line of a syntax error to itself, but its
// --check tells.
function explain(error) {
  if (error?.code === 'ERR_UNKNOWN_FILE_EXTENSION') {
    if (entry.endsWith('.rip')) return NO_COMPILER
    return `Node ${process.version} can’t run this kind of file. Install Bun, or name a loader with --preload=<module>`
  }
  if (!isBun && error instanceof SyntaxError && !String(error.stack).includes(entry)) {
    const input = fs.readFileSync(entry)
    const { stderr } = spawnSync(process.execPath, ['--input-type=module', '--check', '-'], { input, encoding: 'utf8' })
    const [, where] = stderr?.match(/^\[stdin\](:.*?SyntaxError: .*?)\n/s) ?? []
    if (where) return entry + where
  }
  return error
}

export async function loadFirst() {
  try {
    seen = look()
    worker.app = await load()
  } catch (error) {
    giveUp(`can’t load ${entry}:`, explain(error))
  }
}

// Looks whether the entry has changed. Returns a promise only when the request has to wait for it.
export function reload(swapped) {
  if (env.RIP_HOT_RELOAD !== 'module' || performance.now() - looked < LOOK_EVERY_MS) return
  looked = performance.now()
  try {
    const now = look()
    if (now === seen) return
    seen = now
  } catch {
    return // an editor is about to put the new one there
  }
  return load().then((app) => {
    tell('reloaded')
    if (++reloads === Number(env.RIP_MAX_RELOADS)) retire() // 0: never
    // Fetch and (req, res) apps need different servers under them: that takes a new process.
    if (!app.fetch !== !worker.app.fetch) return retire()
    worker.app = app
    swapped?.()
  }).catch((error) => {
    console.error(`rip-server: ${entry} is broken, the last good one goes on:`, explain(error))
  })
}

// ---- exceptions ----

// Prints the trace under the request's id; returns the body of the 500 and its content type. Only
// where NODE_ENV says development in so many words does the client see more than that.
export function failure(error, method, url, header) {
  const path = url.replace(/^https?:\/\/[^/]*|\?.*$/gs, '')
  console.error(`[${header('x-request-id') ?? '-'}] ${method} ${path}:`, error)
  if (env.NODE_ENV !== 'development' && env.NODE_ENV !== 'dev') return ['Internal Server Error\n', 'text/plain']
  const text = inspect(error)
  if (!header('accept')?.includes('text/html')) return [text + '\n', 'text/plain; charset=utf-8']
  const safe = text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt()};`)
  return [`<!doctype html><meta charset="utf-8"><title>500</title><h1>500</h1><pre>${safe}</pre>\n`, 'text/html; charset=utf-8']
}

export function notAResponse(value) {
  return new TypeError(`the handler returned ${inspect(value, { depth: 0 })}, which is no Response`)
}

// The client is gone and the handler said no more than that: nobody needs to read it.
export const isAbort = (error) => error?.name === 'AbortError'

// ---- (req, res) apps ----

// Bytes that no URL has as they are: frameworks decode percents, and Node would give them Latin-1.
export const percents = (target) =>
  target.replace(/[\x80-\xff]/g, (c) => '%' + c.charCodeAt().toString(16).toUpperCase())

async function listener(req, res) {
  if (req.url === '/ready' && req.headers['rip-probe']) return res.end('ok')
  if (worker.current) return res.writeHead(503, BUSY).end('busy\n')
  const mine = worker.current = { fail: next }
  let over = false
  res.on('close', () => {
    over = true
    if (worker.current === mine) worker.current = undefined
  })
  req.url = percents(req.url)

  // Express and Connect hand on what they did not serve. Their own last word would show the trace
  // to the client wherever NODE_ENV is not `production`.
  function next(error) {
    const given = error?.status ?? error?.statusCode
    if (over && isAbort(error)) return
    let status = 500, body, type = 'text/plain; charset=utf-8'
    if (!error) [status, body] = [404, `Cannot ${req.method} ${req.url.replace(/\?.*/s, '')}\n`]
    else if (given >= 400 && given < 500) [status, body] = [given, http.STATUS_CODES[given] + '\n']
    else [body, type] = failure(error, req.method, req.url, (name) => req.headers[name])
    if (res.headersSent) return res.writableEnded || res.destroy() // a cut must not look like an end
    for (const name of res.getHeaderNames()) res.removeHeader(name)
    res.writeHead(status, { ...error?.headers, 'Content-Type': type, 'Content-Length': Buffer.byteLength(body) }).end(body)
  }

  try {
    await reload()
    await worker.app.listener(req, res, next)
  } catch (error) {
    next(error)
  }
}

// Node writes a head and a text that follows it in one piece, in UTF-8: that garbles the bytes past
// ASCII in header values, which are Latin-1 as they came. In two pieces it does not.
const { prototype } = http.ServerResponse
const send = prototype._send
prototype._send = function (data, encoding, ...rest) {
  if (!this._headerSent && typeof data === 'string' && /[\x80-\xff]/.test(this._header)) data = Buffer.from(data, encoding)
  return send.call(this, data, encoding, ...rest)
}

// The front end times things; here nothing may.
export const listenerServer = () => Object.assign(
  http.createServer({ maxHeaderSize: 256 * 1024, keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0 }, listener),
  { timeout: 0 })

// Listens with a node:net or node:http server, joins, and is quiet when the server has hung up.
export function serve(server) {
  const sockets = new Set()
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  fs.rmSync(socketPath, { force: true })
  server.listen(socketPath, () => join(() => sockets.size === 0))
}
