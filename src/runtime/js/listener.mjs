// `(req, res)` apps, and what is an http.Server: both run over node:http, under Node and under Bun.
import fs from 'node:fs'
import http from 'node:http'
import { isBun, reload } from './app.mjs'
import { failure, isAbort } from './failure.mjs'
import { clientOf, percents } from './request.mjs'
import { BUSY, hasPlace, isNothingOpen, isOver, isReady, join, socketPath, takePlace, worker } from './worker.mjs'

const EXCHANGE = Symbol('exchange')
const CLIENT = Symbol('client')
const LENGTH = /^\d+$/
// A WebSocket's Close frame: 1012, the service restarts.
const CLOSE_1012 = Buffer.from([0x88, 2, 1012 >> 8, 1012 & 255])

// ---- a request and its answer ----
//
//     at work ─▶ the answer is whole ─────────────────────────────────────────────▶ over
//        └─────▶ told that nobody waits ─▶ the handler ends its answer or its promise ─▶ over
//        │               ├────────────────── its head was out, and it made no promise ─▶ over
//        └─▶ destroyed by the handler ─▶ told ─▶ its promise, if it made one, has ended ─▶ over
//
// Only then is its place free for another request.

class Exchange {
  #pending = false // the handler's promise
  #hasEnded = false // the promise is settled, or the handler has failed
  #isTold = false
  #isDestroyed = false // by the handler
  #isLeaving = false
  #isClosed = false
  #left // of the body that the head's Content-Length promises; null where nothing is counted
  #isOut = false // all that was promised
  constructor(req, res) {
    this.req = req
    this.res = res
    // Node takes it from a request whose reader stops before the end (`for await`, `pipeline`).
    const socket = this.socket = req.socket
    res.on('close', () => {
      if (res.writableFinished) return this.skip()
      // The kernel's errors are the other side's doing. Bun has neither of the two.
      if (!isBun && !socket.readableEnded && !socket.errored?.syscall) this.#isDestroyed = true
      this.told(true)
    })
    // A pipeline, say, whose source fails.
    for (const stream of [req, res]) {
      const { destroy } = stream
      stream.destroy = (...args) => {
        const wasOpen = !socket.destroyed && !this.#isTold && !res.writableEnded
        // Bun would end the answer as if it were whole. A reader that stops answers still: it has taken the socket away.
        if (isBun && wasOpen && (stream === res || (!req.complete && req.socket))) socket.destroy()
        // Behind the answer's end the connection is the next request's.
        const isKept = stream === req && res.writableEnded && !this.#isTold && req.socket === socket
        if (isKept) req.socket = null
        destroy.apply(stream, args)
        if (isKept) req.socket = socket
        if (wasOpen && socket.destroyed) this.destroyed()
        return stream
      }
    }
    const { writeHead, write, end } = res
    res.writeHead = (status, ...more) => {
      needsFinal(status)
      return writeHead.call(res, status, ...more)
    }
    res.write = (chunk, ...more) => this.counts(chunk, more[0]) && write.call(res, chunk, ...more)
    res.end = (chunk, ...more) => {
      if (!this.counts(chunk, more[0], true)) return res
      this.#left = null
      return end.call(res, chunk, ...more)
    }
  }

  // Whether a piece of the body may go out. Neither Node nor Bun holds an answer to its Content-Length: what is beyond
  // would be read as the answer to the connection's next request, and what is missing would be waited for.
  counts(chunk, encoding, isLast = false) {
    // Bun sends no other body once its writeHead has thrown within `end`.
    if (!this.res.headersSent) needsFinal(this.res.statusCode)
    if (this.#left === undefined) this.#left = this.promised()
    if (this.#left === undefined || this.#left === null) return true
    this.#left -= sizeOf(chunk, encoding)
    const fault = this.#left < 0 ? 'longer' : isLast && this.#left > 0 ? 'shorter' : undefined
    if (!fault) {
      if (this.#left === 0 && !isLast) setImmediate(() => { this.#isOut = true })
      return true
    }
    this.#left = null
    const error = new Error(`the body is ${fault} than its Content-Length`)
    if (this.#isOut) this.endWhole(error)
    else this.fail(error)
    return false
  }

  // The client may have the answer as it was promised, and the connection another client's request. A cut would hit that.
  endWhole(error) {
    const { req, res } = this
    failure(error, req.method, req.url, (name) => req.headers[name])
    res.on('error', () => {}) // of what it still writes
    res.end()
  }

  // The length that the head promises; undefined while nobody knows, and null where there is nothing to hold to.
  promised() {
    const { req, res } = this
    if (!res.headersSent) {
      if (!res.hasHeader('content-length')) return
      res._implicitHeader() // who listens for it may still change the length
    }
    if (req.method === 'HEAD' || res.statusCode === 204 || res.statusCode === 304) return null
    const field = (name) => res.getHeader(name) ?? res._header?.match(RegExp(`^${name}: *(.*)$`, 'im'))?.[1]
    const length = String(field('content-length')).trim()
    return LENGTH.test(length) && !field('transfer-encoding') ? Number(length) : null
  }

  destroyed() {
    if (this.res.writableEnded) return
    this.#isDestroyed = true
    process.nextTick(() => this.told(true))
  }

  async run() {
    const { req, res } = this
    req.url = percents(req.url)
    try {
      const wait = reload()
      if (wait && await wait) return busy(res)
      const { listener, server } = worker.app
      const returned = server ? this.ask(server) : listener(req, res, (error) => this.next(error))
      if (typeof returned?.then !== 'function') return
      this.#pending = true
      await returned
    } catch (error) {
      this.fail(error)
    } finally {
      this.#hasEnded ||= this.#pending
      this.#pending = false
      if (this.#hasEnded && this.#isTold) this.over()
    }
  }

  // As `emit` would, but for what the listeners return.
  ask(server) {
    const listeners = server.rawListeners('request')
    if (!listeners.length) return this.next()
    const returned = listeners.map((listener) => listener.call(server, this.req, this.res))
    return returned.some((one) => typeof one?.then === 'function') ? Promise.all(returned) : undefined
  }

  // Nobody waits for the answer. The app hears what it would hear from a broken connection, but the
  // connection stays until the handler has ended.
  told(isHeard = false) {
    if (this.#isTold) return
    this.#isTold = true
    const { req, res } = this
    if (res.writableEnded) return this.over()
    res.on('error', () => {}) // of what it still writes
    res.destroyed = true
    // Who waits for room to write would wait for ever.
    res.write = (...args) => {
      const done = args.at(-1)
      if (typeof done === 'function') process.nextTick(done)
      setImmediate(() => res.emit('drain'))
      return false
    }
    setImmediate(() => res.emit('drain'))
    for (const name of ['end', 'destroy']) {
      const method = res[name]
      res[name] = (...args) => {
        method.apply(res, args)
        this.over()
        return res
      }
    }
    if (!isHeard) {
      req.aborted = true
      if ('_closed' in res) res._closed = true // Node says `close` no more than once
      for (const [one, event] of [[req, 'aborted'], [req, 'close'], [res, 'close']]) {
        try {
          one.emit(event)
        } catch (error) {
          console.error(error)
        }
      }
    }
    // What streams to nobody stops by itself, and seldom ends its answer.
    if (this.#hasEnded || ((res.headersSent || this.#isDestroyed) && !this.#pending)) this.over()
  }

  // The answer is out. What the app has begun to read and then left would keep the connection paused for
  // ever: neither the next request on it would be seen, nor its end. So nothing holds the rest of the body back any
  // more. It is no more than the connection holds, as the front end closes one where more is to come.
  skip() {
    this.over()
    const { req, socket } = this
    if (req.complete || socket.destroyed) return
    const { push } = req
    req.push = (...args) => {
      push.apply(req, args)
      return true
    }
    if (!req.listenerCount('data') && !req.listenerCount('readable')) req.resume()
    socket.resume()
  }

  id() { return this.req.headers['x-request-id'] }

  isStream() { return this.req.method === 'GET' && this.isEventStream() }

  isEventStream() {
    const { res } = this
    if (!res.headersSent) return false
    const type = res.getHeader('content-type') ?? res._header?.match(/^content-type: *(.*)$/im)?.[1]
    return /^text\/event-stream/i.test(type)
  }

  over() {
    isOver(this)
    const { res, socket } = this
    if (!this.#isTold || this.#isClosed) return
    this.#isClosed = true
    if (!this.#isLeaving) return socket.destroy()
    res.on('finish', () => socket.end())
    res.destroyed = false
    res.end()
  }

  // The event stream of a GET ends when its worker leaves: its client comes again, to another one.
  leave() {
    const { res } = this
    if (!res.headersSent) {
      const { writeHead } = res
      res.writeHead = (...args) => {
        process.nextTick(() => this.leave())
        return writeHead.apply(res, args)
      }
    } else if (this.isStream()) {
      this.#isLeaving = true
      this.told()
    }
  }

  // Express and Connect hand on what they did not serve. Their own last word would show the trace
  // to the client wherever NODE_ENV is not `production`.
  next(error) {
    if (error) return this.fail(error)
    this.answer(404, `Cannot ${this.req.method} ${this.req.url.replace(/\?.*/s, '')}\n`)
  }

  fail(error) {
    const { req } = this
    this.#hasEnded = true
    const given = error?.status ?? error?.statusCode
    if (this.#isTold && isAbort(error)) return
    if (given >= 400 && given < 500) return this.answer(given, http.STATUS_CODES[given] + '\n', undefined, error.headers)
    const [body, type] = failure(error, req.method, req.url, (name) => req.headers[name])
    this.answer(500, body, type, error?.headers)
  }

  answer(status, body, type = 'text/plain; charset=utf-8', headers = undefined) {
    const { res } = this
    if (res.headersSent) return void (res.writableEnded || res.destroy()) // a cut must not look like an end
    for (const name of res.getHeaderNames()) res.removeHeader(name)
    res.writeHead(status, { ...headers, 'Content-Type': type, 'Content-Length': Buffer.byteLength(body) }).end(body)
  }
}

// Node and Bun would send any other as one of those that a final answer follows.
function needsFinal(status) {
  if (status < 200) throw new RangeError(`an answer can’t have status ${status}`)
}

function sizeOf(chunk, encoding) {
  if (typeof chunk === 'string') return Buffer.byteLength(chunk, typeof encoding === 'string' ? encoding : 'utf8')
  return chunk?.byteLength ?? 0
}

const busy = (res) => res.writeHead(503, BUSY).end('busy\n')

function onRequest(req, res) {
  const probe = req.headers['rip-probe']
  if (probe && req.url === '/ready') return isReady(probe, req.headers['x-request-id']) ? res.end('ok') : busy(res)
  // The server may have read the whole answer before Node says that it is written.
  const last = req.socket[EXCHANGE]
  if (last?.res.writableEnded && !last.res.closed && worker.atWork.has(last)) {
    return last.res.once('close', () => req.socket.destroyed || onRequest(req, res))
  }
  if (!hasPlace()) return busy(res)
  nameClient(req)
  const exchange = req.socket[EXCHANGE] = new Exchange(req, res)
  takePlace(exchange)
  exchange.run()
}

// A Unix socket has no addresses: frameworks look there for `req.ip`.
function nameClient(req) {
  const { headers, rawHeaders, socket } = req
  const client = clientOf(headers['rip-client'] ?? headers['x-forwarded-for'])
  if (headers['rip-client']) {
    delete headers['rip-client']
    const at = rawHeaders.findIndex((name, i) => i % 2 === 0 && name.toLowerCase() === 'rip-client')
    if (at >= 0) rawHeaders.splice(at, 2)
  }
  if (socket[CLIENT] === undefined) {
    for (const [name, key] of [['remoteAddress', 'address'], ['remoteFamily', 'family'], ['remotePort', 'port']]) {
      Object.defineProperty(socket, name, { configurable: true, get() { return this[CLIENT]?.[key] } })
    }
  }
  socket[CLIENT] = client
}

// ---- a WebSocket, which is the app's own business from the first byte on ----

class Tunnel {
  constructor(req, socket) {
    this.req = req
    this.socket = socket
    this.writtenBefore = socket.bytesWritten
    socket.on('close', () => isOver(this))
    socket.on('error', () => {}) // close follows
    // A refusal whose end is plain looks as if another request could follow it, and nobody would read that.
    const { write, end } = socket
    for (const method of [write, end]) {
      socket[method === end ? 'end' : 'write'] = (data, ...more) => {
        Object.assign(socket, { write, end })
        return method.call(socket, closing(data), ...more)
      }
    }
  }

  id() { return this.req.headers['x-request-id'] }

  isStream() { return this.socket.bytesWritten > this.writtenBefore }

  leave() {
    if (this.isStream()) this.socket.write(CLOSE_1012)
  }

  fail(error) {
    failure(error, this.req.method, this.req.url, (name) => this.req.headers[name])
    this.socket.destroy()
  }
}

const REFUSAL = /^HTTP\/1\.1 (?!101)\d{3}.*\r\n/

function closing(data) {
  if (data instanceof Uint8Array) {
    const text = Buffer.from(data.buffer, data.byteOffset, data.length).toString('latin1')
    return REFUSAL.test(text) ? Buffer.from(closing(text), 'latin1') : data
  }
  return typeof data === 'string' ? data.replace(REFUSAL, '$&Connection: close\r\n') : data
}

function onUpgrade(req, socket, head) {
  if (!hasPlace()) {
    const fields = Object.entries(BUSY).map(([name, value]) => `${name}: ${value}\r\n`).join('')
    return socket.end(`HTTP/1.1 503 Service Unavailable\r\n${fields}Content-Length: 5\r\n\r\nbusy\n`)
  }
  nameClient(req)
  const tunnel = new Tunnel(req, socket)
  takePlace(tunnel)
  req.url = percents(req.url)
  try {
    worker.app.server.emit('upgrade', req, socket, head)
  } catch (error) {
    tunnel.fail(error)
  }
}

// ---- the server ----

// Node writes a head and a text that follows it in one piece, in UTF-8: that garbles the bytes past
// ASCII in header values, which are Latin-1 as they came. In two pieces it does not.
const { prototype } = http.ServerResponse
const send = prototype._send
prototype._send = function (data, encoding, ...rest) {
  if (!this._headerSent && typeof data === 'string' && /[\x80-\xff]/.test(this._header)) data = Buffer.from(data, encoding)
  return send.call(this, data, encoding, ...rest)
}

// The front end times things; here nothing may.
export function listenerServer() {
  const options = { maxHeaderSize: 256 * 1024, keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0 }
  const server = Object.assign(http.createServer(options, onRequest), { timeout: 0 })
  // What the front end lets pass is well-formed: Node knows no more than a list of methods. The status of all else is
  // what Node would send without this.
  server.on('clientError', (error, socket) => {
    if (!socket.writable || socket._httpMessage?.headersSent) return socket.destroy()
    const status = { HPE_INVALID_METHOD: 501, HPE_HEADER_OVERFLOW: 431 }[error.code] ?? 400
    socket.end(`HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`)
  })
  // Bun would not say that the connection is half-closed; so it may close it.
  server.httpAllowHalfOpen = !isBun
  server.on('connection', (socket) => {
    socket.on('end', () => socket[EXCHANGE]?.told())
    // The app has ended the connection itself, so no answer can follow. Bun would end it for other reasons too.
    if (!isBun) socket.on('finish', () => socket[EXCHANGE]?.destroyed())
  })
  // Node takes an upgrade for a plain request where nobody listens for it.
  const { listenerCount } = server
  server.listenerCount = function (event, ...more) {
    if (event === 'upgrade') return worker.app.server?.listenerCount(event) ?? 0
    return listenerCount.call(this, event, ...more)
  }
  return server.on('upgrade', onUpgrade)
}

// Listens with a node:net or node:http server, joins, and is quiet when the server has hung up.
export function serve(server) {
  const sockets = new Set()
  server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  fs.rmSync(socketPath, { force: true })
  const isQuiet = () => sockets.size === 0 && isNothingOpen()
  server.listen({ path: socketPath, backlog: 4096 }, () => join({ isQuiet, close: () => server.close() }))
}
