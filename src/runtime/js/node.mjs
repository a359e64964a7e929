// The worker under Node: `node node.mjs` in the app's folder. Fetch handlers are served over plain
// sockets: what the front end sends is strict, framed by a length and never pipelined, and node:http
// and the platform's own Request and Response would take most of a small answer's time.
import { STATUS_CODES } from 'node:http'
import net from 'node:net'
import { isListenerApp, loadFirst, reload } from './app.mjs'
import { Body } from './body.mjs'
import { failure, isAbort, notAResponse } from './failure.mjs'
import { LightRequest, LightResponse, Response } from './light.mjs'
import { listenerServer, serve } from './listener.mjs'
import { BUSY, hasPlace, isOver, isReady, takePlace, worker } from './worker.mjs'

const NONE = Buffer.alloc(0)
// What the front end's heads are like: its bound is half of this.
const MAX_HEAD_BYTES = 128 * 1024
const HEAD = /^[!#$%&'*+.^_`|~\w-]+ (?:\/[!-~\x80-\xff]*|\*) HTTP\/1\.1(?:\r\n[!#$%&'*+.^_`|~\w-]+:[\t -~\x80-\xff]*)*$/
const LENGTH = /^\d{1,18}$/ // more is no body that somebody sends
const BAD_REQUEST = 'HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n'
// Of requests that come before an answer: the front end waits until it has the answer.
const MAX_AHEAD_BYTES = 1024 * 1024
const HOP_BY_HOP = new Set(['connection', 'keep-alive', 'transfer-encoding', 'upgrade'])

// What handlers get behind the request, as under Bun.
const context = { requestIP: (request) => LightRequest.client(request) }

// ---- a connection from the server ----
//
//     read ─▶ next ─▶ answer ─▶ write ─▶ over ─▶ next …
//      └─▶ Body.take                ▲
//     left (nobody waits) ──────────┘

const NOBODY = new LightRequest('', '/', [])

class Connection {
  #bytes = NONE // not looked at yet
  #request; #body // under way
  #headSent = false
  #answered = false
  #gone = false
  #isEventStream = false
  #reader; #wake
  #cancelled // a promise, once the reader was told that nobody reads on
  #written = () => this.over()

  constructor(socket) {
    this.socket = socket
    socket.on('data', (bytes) => this.read(bytes))
    socket.on('drain', () => this.#wake?.())
    // A server whose client is gone shuts its side down: both mean that nobody waits for the answer.
    socket.on('end', () => this.left())
    socket.on('close', () => this.left())
    socket.on('error', () => {}) // close follows
  }

  read(bytes) {
    if (this.#gone) return
    if (this.#body?.left) {
      const part = bytes.subarray(0, this.#body.left)
      this.#body.take(part)
      bytes = bytes.subarray(part.length)
      if (!this.#body.left && this.#answered) this.over()
    }
    if (!bytes.length) return
    this.#bytes = this.#bytes.length ? Buffer.concat([this.#bytes, bytes]) : bytes
    this.next()
  }

  next() {
    if (this.#request) return this.#bytes.length > MAX_AHEAD_BYTES && this.socket.destroy()
    const end = this.#bytes.indexOf('\r\n\r\n')
    if (end < 0) return this.#bytes.length > MAX_HEAD_BYTES && this.bad()
    const head = this.#bytes.toString('latin1', 0, end)
    if (!HEAD.test(head)) return this.bad()
    const lines = head.split('\r\n')
    const rest = this.#bytes.subarray(end + 4)
    this.#bytes = NONE
    const [method, target] = lines[0].split(' ')
    const list = []
    let length, probe, client, id
    for (let i = 1; i < lines.length; i++) {
      const colon = lines[i].indexOf(':')
      const name = lines[i].slice(0, colon).toLowerCase()
      const value = trimmed(lines[i], colon + 1)
      if (name === 'rip-client') client = value
      else list.push(name, value)
      if (name === 'content-length') {
        if (length !== undefined || !LENGTH.test(value)) return this.bad()
        length = Number(value)
      } else if (name === 'transfer-encoding') return this.bad()
      else if (name === 'x-request-id') id = value
      else if (name === 'rip-probe') probe = value
    }
    this.#body = length > 0 ? new Body(this.socket, length) : undefined
    const request = this.#request = new LightRequest(method, target, list, this.#body, client)
    this.read(rest)
    if (probe && target === '/ready') return isReady(probe, id) ? this.reply(200, 'ok') : this.refuse()
    if (!hasPlace()) return this.refuse()
    takePlace(this)
    this.answer(request)
  }

  id() { return this.#request?.headers.get('x-request-id') }

  isStream() { return this.#isEventStream && this.#headSent && this.#request.method === 'GET' }

  async answer(request) {
    try {
      const wait = reload()
      if (wait && await wait && this.#request === request && !this.#gone) return this.refuse()
      const response = await worker.app.fetch(request, context)
      if (this.#request === request && !this.#gone) return await this.write(request, response)
      await response?.body?.cancel?.()?.catch?.(() => {})
      if (this.#request === request) this.over()
    } catch (error) {
      if (this.#request === request) this.fail(error)
      else console.error(error)
    }
  }

  async write(request, response) {
    if (!(response instanceof Response)) {
      if (!response?.headers?.forEach) throw notAResponse(response)
      response = new LightResponse(response.body, response) // of another fetch library
    }
    const { status } = response
    const known = LightResponse.known(response)
    if (status < 200) throw new TypeError(`a Response with status ${status} can’t be sent`)
    let head = `HTTP/1.1 ${status} ${response.statusText || STATUS_CODES[status] || ''}\r\n`
    let given // the app's own Content-Length counts where we can't know better
    for (const [name, value] of response.headers) {
      if (name === 'content-length') given = /^\d+$/.test(value) ? Number(value) : undefined
      else if (name === 'content-type') this.#isEventStream = value.startsWith('text/event-stream')
      if (name !== 'content-length' && !HOP_BY_HOP.has(name)) head += `${name}: ${value}\r\n`
    }
    const bare = request.method === 'HEAD' || status === 204 || status === 304
    const length = known === undefined || (bare && known === null) ? given
      : known === null ? 0 : typeof known === 'string' ? Buffer.byteLength(known) : known.byteLength
    if (status === 204 || (bare && known === null && length === undefined)) head += '\r\n'
    else head += length === undefined ? 'Transfer-Encoding: chunked\r\n\r\n' : `Content-Length: ${length}\r\n\r\n`

    if (known === undefined && !bare) return this.stream(head, response.body.getReader(), length)
    this.#headSent = true
    if (bare || known === null) {
      if (known === undefined) response.body.cancel().catch(() => {})
      this.last(head)
    } else if (known.length === length && typeof known === 'string') {
      this.last(head + known) // ASCII
    } else {
      this.socket.cork()
      this.socket.write(head, 'latin1')
      this.last(typeof known === 'string' ? known : Buffer.from(known.buffer, known.byteOffset, length), 'utf8')
      this.socket.uncork()
    }
  }

  async stream(head, reader, left) {
    const { socket } = this
    const chunked = left === undefined
    this.#reader = reader
    this.#headSent = true
    socket.write(head, 'latin1')
    if (worker.isLeaving) this.leave()
    for (;;) {
      const { done, value } = await reader.read()
      if (this.#cancelled) await this.#cancelled
      if (this.#gone) return this.over()
      if (done) break
      const bytes = typeof value === 'string' ? Buffer.from(value) : value
      if (bytes.byteLength === 0) continue // an empty chunk would be the last
      if (!chunked && (left -= bytes.byteLength) < 0) throw new Error('the body is longer than its Content-Length')
      socket.cork()
      if (chunked) socket.write(bytes.byteLength.toString(16) + '\r\n', 'latin1')
      socket.write(bytes)
      if (chunked) socket.write('\r\n', 'latin1')
      socket.uncork()
      if (socket.writableNeedDrain && !this.#gone) await new Promise((resolve) => { this.#wake = resolve })
    }
    if (left > 0) throw new Error('the body is shorter than its Content-Length')
    if (this.#cancelled) this.#gone = true // its worker leaves
    this.last(chunked ? '0\r\n\r\n' : '')
  }

  fail(error) {
    if (this.#request === NOBODY) return console.error(error)
    const { method, url, headers } = this.#request
    const quiet = this.#gone && isAbort(error)
    const [body, type] = quiet ? [] : failure(error, method, url, (name) => headers.get(name))
    this.cancel(error)
    if (this.#headSent || this.#gone) {
      this.#gone = true
      this.socket.destroy() // a cut must not look like an end
      return this.over()
    }
    this.reply(500, body, { 'Content-Type': type })
    this.#request = NOBODY // what the handler may still answer is for nobody
  }

  refuse() {
    this.#body?.drop()
    this.reply(503, 'busy\n', BUSY)
  }

  reply(status, body, headers) {
    this.write(this.#request, new LightResponse(body, { status, headers }))
  }

  last(data, encoding = 'latin1') {
    this.socket.write(data, encoding, this.#written)
  }

  // What the front end would not send. Nobody can tell where the next request begins.
  bad() {
    this.#gone = true
    this.socket.write(BAD_REQUEST)
    this.socket.destroySoon()
  }

  // The answer has ended; the next request waits for the end of this one's body.
  over() {
    this.#answered = true
    if (this.#body?.left && !this.#gone) return this.#body.finish()
    isOver(this)
    this.#request = this.#body = this.#reader = this.#wake = this.#cancelled = undefined
    this.#headSent = this.#answered = this.#isEventStream = false
    if (this.#gone) this.socket.destroySoon()
    else if (this.#bytes.length) this.next()
  }

  cancel(reason) {
    this.#cancelled ??= this.#reader?.cancel(reason).catch(() => {})
  }

  // The event stream of a GET ends when its worker leaves: its client comes again, to another one.
  leave() {
    if (!this.#reader || this.#gone || !this.isStream()) return
    const reason = new DOMException('The worker leaves', 'AbortError')
    this.cancel(reason)
    LightRequest.abort(this.#request, reason)
  }

  // The connection stays until the handler has ended.
  left() {
    if (this.#gone) return
    this.#gone = true
    if (!this.#request) return this.socket.destroySoon()
    const error = new DOMException('The client is gone', 'AbortError')
    LightRequest.abort(this.#request, error)
    this.#body?.fail(error)
    this.cancel(error)
    this.#wake?.()
    if (this.#answered) this.over()
  }
}

// Not String.trim(): that takes the byte A0 too, which ends many a UTF-8 letter.
function trimmed(line, start) {
  let end = line.length
  while (line[start] === ' ' || line[start] === '\t') start++
  while (end > start && (line[end - 1] === ' ' || line[end - 1] === '\t')) end--
  return line.slice(start, end)
}

await loadFirst()
serve(isListenerApp(worker.app) ? listenerServer() : net.createServer({ allowHalfOpen: true }, (socket) => new Connection(socket)))
