// The worker under Bun: `bun bun.mjs` in the app's folder. Bun.serve speaks HTTP and WebSocket, and gets
// what the app exports for it, each of its functions behind the protocol's rules.
import fs from 'node:fs'
import { isListenerApp, loadFirst, LOOK_EVERY_MS, reload } from './app.mjs'
import { failure, isAbort, isDevelopment, notAResponse } from './failure.mjs'
import { listenerServer, serve } from './listener.mjs'
import { clientOf } from './request.mjs'
import { BUSY, hasPlace, isNothingOpen, isOver, isReady, join, socketPath, takePlace, whenLeaving, worker } from './worker.mjs'

// Before the first event of a stream that says nothing for so long.
const COMMENT = new TextEncoder().encode(':\n\n')
const SILENCE_MS = 50

// When a stream fails after the head is out, Bun cuts the connection, as it should, but tells nobody.
// So each Response made from a stream is noted here, and read through `watched`.
const streams = new WeakSet()
const { Response } = globalThis
globalThis.Response = new Proxy(Response, {
  construct(target, args, self) {
    const made = Reflect.construct(target, args, self === globalThis.Response ? target : self)
    if (typeof args[0] === 'function' || args[0]?.[Symbol.asyncIterator]) streams.add(made)
    return made
  },
})
Response.prototype.constructor = globalThis.Response

// ---- a request and its answer ----

// Bun closes a connection that the server has half-closed at once, and a stream that nobody reads too:
// the exchange is over when the handler has ended, and what it streams, whatever became of the connection.
class Exchange {
  #resolve
  #signal
  isEventStream = false
  #stop // ends the stream under way
  constructor(request) {
    this.request = request
    if (request.headers.get('accept')?.includes('text/event-stream')) {
      this.#signal = new AbortController()
      Object.defineProperty(request, 'signal', { value: AbortSignal.any([request.signal, this.#signal.signal]) })
    }
  }

  start(server, handler) {
    return new Promise((resolve) => {
      this.#resolve = resolve
      this.run(server, handler).then(resolve)
    })
  }

  async run(server, handler) {
    const { request } = this
    try {
      const wait = reload(() => server.reload(options()))
      if (wait && await wait) return this.over(busy())
      this.app = worker.app
      const response = await (handler ?? this.app.fetch ?? notFound)(request, server)
      if (!(response instanceof Response)) {
        if (response === undefined && upgraded.has(request)) return this.over()
        throw notAResponse(response)
      }
      if (!streams.has(response) || response.bodyUsed) return this.over(response)
      if (request.method !== 'HEAD' && !request.signal.aborted) return new Response(this.watched(response), response)
      await response.body?.cancel().catch(() => {})
      return this.over(new Response(null, response))
    } catch (error) {
      return this.over(await answerOf(error, request, this.app))
    }
  }

  id() { return this.request.headers.get('x-request-id') }

  isStream() { return this.isEventStream && this.request.method === 'GET' }

  watched(response) {
    const { request } = this
    const reader = response.body.getReader()
    let isOver = false
    let silence
    const stop = async (reason) => {
      if (isOver) return
      isOver = true
      clearTimeout(silence)
      await reader.cancel(reason).catch(() => {})
      this.over()
    }
    request.signal.addEventListener('abort', () => stop(request.signal.reason))
    this.isEventStream = response.headers.get('content-type')?.startsWith('text/event-stream')
    const stream = new ReadableStream({
      start: (controller) => {
        this.#stop = (reason) => {
          if (isOver) return
          controller.close()
          stop(reason)
        }
        // Bun sends the head with the first bytes: a stream that says nothing at first would seem not to be open, and
        // would hold its place. A comment says nothing either.
        if (this.isStream() && !response.headers.has('content-encoding')) {
          silence = setTimeout(() => isOver || controller.enqueue(COMMENT), SILENCE_MS)
        }
      },
      pull: async (controller) => {
        try {
          const { done, value } = await reader.read()
          clearTimeout(silence)
          if (isOver) return
          if (!done) return controller.enqueue(value)
          controller.close()
        } catch (error) {
          if (isOver) return
          if (!(request.signal.aborted && isAbort(error))) fail(error, request)
          controller.error(error)
        }
        isOver = true
        this.over()
      },
      cancel: stop,
    }, { highWaterMark: 0 })
    if (worker.isLeaving) this.leave()
    return stream
  }

  // The event stream of a GET ends when its worker leaves: its client comes again, to another one.
  leave() {
    if (!this.isStream()) return
    const reason = new DOMException('The worker leaves', 'AbortError')
    this.#stop?.(reason)
    this.#signal?.abort(reason)
  }

  fail(error) { this.#resolve(fail(error, this.request)) }

  over(response) {
    isOver(this)
    return response
  }
}

function fail(error, request) {
  const [body, type] = failure(error, request.method, request.url, (name) => request.headers.get(name))
  return new Response(body, { status: 500, headers: { 'Content-Type': type } })
}

// The app's own `error` comes first.
async function answerOf(error, request, app = worker.app) {
  if (request.signal.aborted && isAbort(error)) return new Response()
  try {
    const response = await app.error?.(error)
    if (response instanceof Response) return response
  } catch (another) {
    error = another
  }
  return fail(error, request)
}

const busy = () => new Response('busy\n', { status: 503, headers: BUSY })

let latest // for what Bun finds wrong with a Response only when it sends it
let lastHost, isHostFine

// Without a route's handler it is the app's `fetch`, as it is after a hot reload.
function answer(request, server, handler) {
  const { headers } = request
  const probe = headers.get('rip-probe')
  if (probe && request.url.endsWith('/ready')) {
    return isReady(probe, headers.get('x-request-id')) ? new Response('ok') : busy()
  }
  if (!hasPlace()) return busy()
  const host = headers.get('host')
  if (host !== lastHost) {
    lastHost = host
    isHostFine = URL.canParse(request.url)
  }
  if (!isHostFine) {
    const target = request.url.replace(/^https?:\/\/[^/]*/, '')
    Object.defineProperty(request, 'url', { value: new URL(target[0] === '/' ? `http://localhost${target}` : 'http://localhost/').href })
  }
  if (headers.get('x-forwarded-proto') === 'https') {
    Object.defineProperty(request, 'url', { value: request.url.replace(/^http:/, 'https:') })
  }
  const client = headers.get('rip-client')
  if (client !== null) {
    headers.delete('rip-client')
    clients.set(request, client)
  }
  latest = request
  const exchange = new Exchange(request)
  takePlace(exchange)
  return exchange.start(server, handler)
}

const upgraded = new WeakSet() // requests that have become WebSockets
const clients = new WeakMap() // by request, where it is not who has connected
const requestIP = (request) => clientOf(clients.get(request) ?? request.headers.get('x-forwarded-for'))

// ---- what the app exports for Bun.serve ----

const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'TRACE', 'CONNECT']
const isMethods = (route) => Object(route) === route && Object.keys(route).length > 0
  && Object.keys(route).every((key) => METHODS.includes(key))
const behind = (handler) => typeof handler === 'function' ? (request, server) => answer(request, server, handler) : handler
const mapped = (object, change) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]))

function routesOf(routes = {}) {
  const all = mapped(routes, (route) => isMethods(route) ? mapped(route, behind) : behind(route))
  // A static answer or page for everything would answer the probes too.
  const first = '/ready' in routes ? '/ready' : Object.keys(routes).find((path) => /^\/(:[^/]*|\*)$/.test(path))
  const route = isMethods(routes[first]) ? routes[first].GET : routes[first]
  if (!route || typeof route === 'function') return all
  const hidden = `/${crypto.randomUUID()}`
  all[hidden] = route
  all['/ready'] = (request, server) => request.headers.has('rip-probe') ? answer(request, server)
    : fetch(`http://localhost${hidden}`, { unix: socketPath, method: request.method, headers: request.headers, decompress: false })
  return all
}

const sockets = new Set()

function websocketOf(handlers) {
  if (!handlers) return
  return Object.setPrototypeOf({
    open(socket) {
      sockets.add(socket)
      if (worker.isLeaving) socket.close(1012)
      return handlers.open?.(socket)
    },
    close(socket, ...why) {
      sockets.delete(socket)
      return handlers.close?.(socket, ...why)
    },
  }, handlers)
}

const notFound = () => new Response('Not Found\n', { status: 404 })

function options() {
  const { app } = worker
  return {
    fetch: (request, server) => answer(request, server),
    routes: routesOf(app.routes),
    websocket: websocketOf(app.websocket),
    error: (error) => answerOf(error, latest),
  }
}

await loadFirst()
if (isListenerApp(worker.app)) {
  serve(listenerServer())
} else {
  fs.rmSync(socketPath, { force: true })
  // The front end times things and bounds bodies; here nothing may.
  const server = Bun.serve({
    unix: socketPath, idleTimeout: 0, maxRequestBodySize: worker.app.maxRequestBodySize ?? Number.MAX_SAFE_INTEGER,
    // Pages are bundled anew at each request; the socket for hot modules would hold the worker.
    development: isDevelopment && worker.app.routes ? { hmr: false } : false,
    ...options(),
  })
  server.requestIP = requestIP
  const { upgrade } = server
  server.upgrade = (request, ...more) => {
    const isDone = upgrade.call(server, request, ...more)
    if (isDone) upgraded.add(request)
    return isDone
  }
  // Static answers and pages come without a word from Bun, so nobody would look for a change.
  if (process.env.RIP_HOT_RELOAD === 'module' && worker.app.routes) {
    setInterval(() => reload(() => server.reload(options())), LOOK_EVERY_MS).unref()
  }
  whenLeaving.then(() => sockets.forEach((socket) => socket.close(1012)))
  // Bun does not say when a connection closes; with no request there is none to wait for.
  const isQuiet = () => !server.pendingRequests && !server.pendingWebSockets && isNothingOpen()
  join({ isQuiet, isIdle: isQuiet, close: () => server.stop() })
}
