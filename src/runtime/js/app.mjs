// The app: how its entry is loaded, what it exports, and hot reload.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import http from 'node:http'
import Module, { createRequire } from 'node:module'
import net from 'node:net'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { compilerAnswer, isDevelopment, takesHtml } from './failure.mjs'
import { giveUp, retire, retireAgain, tell, whenLeaving, worker } from './worker.mjs'

const { env } = process
const entry = env.RIP_APP_ENTRY
const isRip = entry.endsWith('.rip')
export const isBun = 'Bun' in globalThis
const require = createRequire(import.meta.url)
export const LOOK_EVERY_MS = 100
// A request that needs the new process waits for it, but not so long that it would be late.
const MAX_HOLD_MS = 4000

let loads = 0
let reloads = 0
let looked = 0
let seen
let swapping // a promise, while the changed entry is loaded
let bootMs
let listened // where the entry listens by itself, if it does
let isServing = false // by Bun.serve

// Nanoseconds, size and inode: an edit within the same second counts, and so does a rename over the
// entry or a symlink that moved.
function look() {
  const { mtimeNs, size, ino, dev } = fs.statSync(entry, { bigint: true })
  return `${mtimeNs} ${size} ${ino} ${dev}`
}

async function load() {
  const file = fs.realpathSync(entry)
  delete globalThis.__ripHandler
  // CommonJS is loaded anew when the old one is forgotten, and under Bun so is an ES module; under Node
  // that takes a new name.
  delete require.cache[file]
  const query = loads++ && !isBun ? `?v=${loads}` : ''
  return pick(await import(pathToFileURL(file).href + query))
}

// `require.main` is for the app what it would be if the app had been started by itself, but for one
// thing: it is not the entry's own module, as the entry is imported and should not listen.
function setMain() {
  const main = new Module(entry, null)
  Object.assign(main, { filename: entry, loaded: true, paths: Module._nodeModulePaths?.(path.dirname(entry)) ?? [] })
  process.mainModule = main
  if (isBun) Object.defineProperty(Object.getPrototypeOf(require), 'main', { configurable: true, get: () => main })
}

// ---- what an entry may export ----

// One of { fetch, websocket, routes, error, … } with what Bun.serve knows, { listener } for (req, res)
// functions, and { server, shutdown } for what is an http.Server or has one.
async function pick(module) {
  let [app] = await settled(module.default)
  if (app?.__esModule === true) [app = app] = await settled(app.default) // compiled to CommonJS by TypeScript or Babel
  if (isBun && typeof app?.fetch === 'function' && typeof app.stop === 'function' && 'pendingRequests' in app) {
    isServing = true
    throw noHandler()
  }
  const routes = Object(app) === app && Object.hasOwn(app, 'routes') && isPlain(app.routes) ? app.routes : undefined
  if (typeof app?.fetch === 'function' || (routes && typeof app !== 'function')) return fetchApp(app, routes)
  if (typeof app?.callback === 'function') {
    const listener = app.callback() // Koa, which lets an answer hang that fails after its head is out
    app.on?.('error', (error, context) => error.headerSent && context?.res.destroy())
    return { listener }
  }
  const server = await serverOf(app)
  if (server) return server
  if (typeof app === 'function') {
    return isListener(app) ? { listener: app } : { fetch: lenient(app), websocket: module.websocket }
  }
  if (typeof module.fetch === 'function') return { fetch: lenient(module.fetch), websocket: module.websocket }
  // The Rip language's own API: start() leaves its handler there when a server runs the app.
  await new Promise((resolve) => setImmediate(resolve)) // it may be about to
  const registered = globalThis.__ripHandler ?? await startHandler()
  if (typeof registered === 'function') return { fetch: asText(registered), isRegistered: true }
  // Bun takes a file that it has no loader for as an asset: its default export is a path.
  if (typeof app === 'string' && isRip) throw NO_COMPILER
  throw noHandler()
}

// An itty-router has any property that it is asked for, `then` too.
const settled = async (value) => typeof value?.fetch === 'function' ? [value] : [await value]

const isPlain = (value) => {
  if (Object(value) !== value) return false
  const prototype = Object.getPrototypeOf(value)
  return prototype === null || prototype === Object.prototype
}

function fetchApp(app, routes) {
  if (!isBun && routes) throw '`routes` are Bun’s: --runtime=bun, with Bun installed, would serve them'
  // What is not the object's own may mean anything.
  const own = (name) => Object.hasOwn(app, name) ? app[name] : undefined
  const fetch = typeof app.fetch === 'function' ? lenient((...args) => app.fetch(...args)) : undefined
  const error = typeof own('error') === 'function' ? (problem) => app.error(problem) : undefined
  return { fetch, routes, error, websocket: own('websocket'), maxRequestBodySize: own('maxRequestBodySize') }
}

export const isListenerApp = ({ listener, server }) => Boolean(listener ?? server)

// Frameworks that have an http.Server, and want to be made ready first: Fastify, Nest, hapi. Whoever
// exports the server that he has made gives his WebSockets with it.
async function serverOf(app) {
  const server = [app, app?.server, app?.listener, app?.httpServer].find((one) => one instanceof http.Server)
    ?? (typeof app?.getHttpServer === 'function' ? app.getHttpServer() : undefined)
  if (!server) return
  if (server.listening) {
    const at = server.address()
    listened ??= at?.port ? `port ${at.port}` : String(at)
    throw noHandler()
  }
  if (app === server) return { server }
  await (app.init ?? app.initialize ?? app.ready)?.call(app)
  const close = app.close ?? app.stop
  return { server, shutdown: typeof close === 'function' ? () => close.call(app) : undefined }
}

// Express and Connect are functions with `handle`. Any other function of two parameters says by the name
// of the second what it takes, or by what it does with it.
export function isListener(app) {
  if (typeof app.handle === 'function' || app.length > 2) return true
  if (app.length < 2) return false
  const text = Function.prototype.toString.call(app).replace(/\/\*.*?\*\/|\/\/[^\n]*/gs, '')
  if (text.endsWith('{ [native code] }')) return !isBun // bound
  const second = text.match(/^[^(]*\([^,)]*,\s*([\w$]+)/)?.[1]
  if (!second) return false // taken apart
  if (/^[_$]*(res|resp|response|reply|rsp)[_$]*$/i.test(second)) return true
  const name = second.replaceAll('$', '\\$')
  return RegExp(`(?<![\\w$.])${name}\\s*\\.\\s*(end|write|writeHead|setHeader|statusCode|status|send|json|pipe|on)\\b`
    + `|pipe(line)?\\([^)]*(?<![\\w$.])${name}\\s*\\)`).test(text)
}

// What a handler of the Rip language may return: a function to ask once more, and what is no Response
// is sent as text, or as JSON where it is an object or a list.
function asText(handler) {
  return async (request, ...more) => {
    let answer = await handler(request, ...more)
    if (typeof answer === 'function') answer = await answer(request, ...more)
    if (answer instanceof Response) return answer
    if (answer === undefined || answer === null) return new Response(null, { status: 204 })
    return isPlain(answer) || Array.isArray(answer) ? Response.json(answer) : new Response(String(answer))
  }
}

const lenient = (handler) => isRip ? asText(handler) : handler

// Routes of the language's API that nobody has called start() for.
async function startHandler() {
  if (!isRip) return
  try {
    const api = await import(createRequire(entry).resolve('@rip-lang/server'))
    return api.startHandler?.()
  } catch {
    return undefined // not installed, so it is not used
  }
}

// ---- what is wrong with an entry ----

const NO_COMPILER = 'nothing here compiles .rip. Name the compiler with --preload=<module>'
  + (isBun ? ', or as `preload` in a bunfig.toml in the app’s folder' : ', or install Bun')

function noHandler() {
  const folder = process.cwd(), file = path.relative(folder, entry)
  if (isServing) return 'it listens by itself. What would do: to export what Bun.serve gets, `export default { fetch(request) { … } }`'
  const command = `rip-server ${folder} -- env PORT={socket} ${isBun ? 'bun' : 'node'} ${file}`
  return (listened ? `it listens by itself (${listened}) and ` : 'it ') + 'exports no handler. What would do: '
    + '`export default (request) => new Response(…)`, an object with `fetch`, a function named `fetch`, an http.Server '
    + 'or an app of Express, Fastify, Koa or the like that does not listen; or, for a server that listens where PORT '
    + `says: ${command}`
}

// Notes what the entry listens on while it is loaded, for the advice to an app that exports nothing, or whose
// second worker finds the port of the first.
function noteListeners() {
  // Under Bun an http.Server has a listen of its own.
  const prototypes = [net.Server.prototype, http.Server.prototype]
  const restores = prototypes.filter((prototype) => Object.hasOwn(prototype, 'listen')).map((prototype) => {
    const { listen } = prototype
    prototype.listen = function (...args) {
      const [at] = args
      listened ??= typeof at === 'object' && at ? `port ${at.port ?? at.path}` : typeof at === 'number' ? `port ${at}` : `${at ?? 'a port'}`
      this.prependOnceListener?.('error', (error) => {
        if (this.listenerCount('error') > 0) return // the app's own
        if (error?.code === 'EADDRINUSE') giveUp(`can’t load ${entry}:`, noHandler())
        throw error
      })
      return listen.apply(this, args)
    }
    return () => (prototype.listen = listen)
  })
  const serve = isBun && Bun.serve
  if (serve) {
    Bun.serve = (...args) => {
      // Bun's http.Server calls it as well.
      isServing ||= !listened
      listened ??= `port ${args[0]?.port ?? 3000}`
      return serve(...args)
    }
  }
  return () => {
    for (const restore of restores) restore()
    if (serve) Bun.serve = serve
  }
}

// What a person needs to see. Of an ES module Node keeps the line of a syntax error to itself, but its
// --check tells.
function explain(error) {
  // A second worker finds the port of the first.
  if (error?.code === 'EADDRINUSE' && listened) return noHandler()
  if (typeof error?.formatHTML === 'function' && typeof error.format === 'function') return error.format({ color: false })
  if (error?.code === 'ERR_UNKNOWN_FILE_EXTENSION') {
    if (isRip) return NO_COMPILER
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

// A new process would find the same.
const isSyntaxError = (error) =>
  error instanceof SyntaxError || error?.name === 'BuildMessage' || error?.name === 'AggregateError'
  || typeof error?.formatHTML === 'function' || typeof error === 'string'

export async function loadFirst() {
  const started = performance.now()
  setMain()
  const forget = noteListeners()
  try {
    seen = look()
    worker.app = await load()
  } catch (error) {
    const answer = compilerAnswer(error)
    // In development the first one waits for the next edit, and shows what its compiler says.
    if (!answer || !isDevelopment || env.RIP_HOT_RELOAD !== 'module' || env.RIP_VERSION !== '1') {
      giveUp(`can’t load ${entry}:`, explain(error))
    }
    console.error('rip-server:', `can’t load ${entry}:`, explain(error))
    worker.app = { fetch: answer, isBroken: true }
  }
  forget()
  bootMs = performance.now() - started
}

// ---- hot reload ----

// Looks whether the entry has changed. Returns a promise only when the request has to wait for it; that
// gives true where another worker should have the request. Requests at work end on the old handler.
export function reload(swapped) {
  if (env.RIP_HOT_RELOAD !== 'module' || swapping) return swapping
  if (performance.now() - looked < LOOK_EVERY_MS) return
  looked = performance.now()
  try {
    const now = look()
    if (now === seen) return
    seen = now
  } catch {
    return // an editor is about to put the new one there
  }
  return swapping = swap(swapped).finally(() => { swapping = undefined })
}

async function swap(swapped) {
  let app
  try {
    app = await load()
  } catch (error) {
    console.error(`rip-server: ${entry} is broken, the last good one goes on:`, explain(error))
    showProblem(compilerAnswer(error))
    // It may be well in a process of its own: a name that is registered already, say.
    return !isSyntaxError(error) && handOver()
  }
  showProblem(undefined)
  // Fetch and (req, res) apps need different servers under them; what the language's API registers stays
  // in the process, and routes stay in Bun.serve where there are none behind them.
  const isOther = isListenerApp(app) !== isListenerApp(worker.app) || (worker.app.routes && !app.routes)
  if (isOther || (app.isRegistered && !worker.app.isBroken)) return handOver()
  tell('reloaded')
  if (++reloads === Number(env.RIP_MAX_RELOADS)) retire() // 0: never
  worker.app = app
  swapped?.()
  return false
}

// In development a person at a browser sees what the compiler says of the last edit; everybody else is
// served by the last good handler.
let lastGood
function showProblem(answer) {
  if (lastGood) worker.app = lastGood
  lastGood = undefined
  if (!answer || !isDevelopment || isListenerApp(worker.app)) return
  lastGood = worker.app
  worker.app = { ...lastGood, fetch: (request, ...more) => takesHtml(request) ? answer(request) : lastGood.fetch(request, ...more) }
}

// Asks for a new process, and waits until it serves. If it can't, this one goes on.
async function handOver() {
  retireAgain()
  let timer
  const late = new Promise((resolve) => { timer = setTimeout(resolve, Math.min(bootMs * 2 + 1000, MAX_HOLD_MS)) })
  await Promise.race([whenLeaving, late])
  clearTimeout(timer)
  return worker.isLeaving
}
