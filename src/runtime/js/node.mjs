// The worker under Node: `node node.mjs` in the app's folder. Fetch handlers are served over plain
// sockets: what the front end sends is strict, framed by a length and never pipelined, and node:http
// and the platform's own Request and Response would take most of a small answer's time.
import { STATUS_CODES } from 'node:http'
import net from 'node:net'
import { BUSY, failure, isAbort, listenerServer, loadFirst, notAResponse, percents, reload, serve, worker } from './shared.mjs'

// ---- light stand-ins: they know what nearly every handler asks for, and make the real object ----
// ---- for anything else ----

const { fetch, Headers, Request, Response } = globalThis
const REAL = Symbol('real')
const NONE = Buffer.alloc(0)
const utf8 = new TextDecoder()
const BODY_AHEAD = 64 * 1024 // body bytes held for a handler that does not read yet
const EMPTY = new Set([204, 205, 304]) // a Response with one of these refuses a body
const HOP_BY_HOP = new Set(['connection', 'keep-alive', 'transfer-encoding', 'upgrade'])

// Gives a stand-in all that it does not have itself: by way of the real object, made at that moment.
function lighten(Light, Real) {
  Object.setPrototypeOf(Light.prototype, Real.prototype)
  for (const key of Reflect.ownKeys(Real.prototype)) {
    if (Object.hasOwn(Light.prototype, key)) continue
    const { get, value } = Object.getOwnPropertyDescriptor(Real.prototype, key)
    Object.defineProperty(Light.prototype, key, {
      configurable: true,
      ...(get ? { get() { return get.call(this[REAL]) } }
        : typeof value !== 'function' ? { value }
        : { value(...args) { return value.apply(this[REAL], args) }, writable: true }),
    })
  }
}

class LightHeaders {
  #list; #real
  constructor(list) {
    this.#list = list // name, value, name, value …, the names in lower case
  }

  static adopt(headers, real) { headers.#real = real }

  get [REAL]() {
    if (!this.#real) {
      this.#real = new Headers()
      for (let i = 0; i < this.#list.length; i += 2) this.#real.append(this.#list[i], this.#list[i + 1])
    }
    return this.#real
  }

  get(name) {
    if (this.#real) return this.#real.get(name)
    name = `${name}`.toLowerCase()
    let found = null
    for (let i = 0; i < this.#list.length; i += 2) {
      if (this.#list[i] !== name) continue
      const value = this.#list[i + 1]
      found = found === null ? value : `${found}${name === 'cookie' ? ';' : ','} ${value}`
    }
    return found
  }

  has(name) { return this.get(name) !== null }
}
lighten(LightHeaders, Headers)

// Targets that a URL parser would leave as they are need none.
const PLAIN_TARGET = /^\/[\w\-.~!$&()*+,;=:@/%?]*$/
const DOTS = /\/\.|%2e/i
let lastHost, lastOrigin

function originOf(headers) {
  const host = `${headers.get('x-forwarded-proto') === 'https' ? 'https' : 'http'}://${headers.get('host')}`
  if (host !== lastHost) lastOrigin = URL.canParse(host) ? new URL(host).origin : 'http://localhost'
  lastHost = host
  return lastOrigin
}

class LightRequest {
  #method; #target; #headers; #body; #url; #controller; #gone; #real
  #used = false
  constructor(method, target, list, body) {
    this.#method = method
    this.#target = target
    this.#headers = new LightHeaders(list)
    this.#body = body
  }

  static abort(request, reason) {
    request.#gone = reason
    request.#controller?.abort(reason)
  }

  get method() { return this.#method }
  get headers() { return this.#headers }

  get url() {
    if (this.#url) return this.#url
    const origin = originOf(this.#headers), target = this.#target
    if (PLAIN_TARGET.test(target) && !DOTS.test(target)) return this.#url = origin + target
    const href = target[0] === '/' ? origin + percents(target) : percents(target)
    return this.#url = URL.canParse(href, origin) ? new URL(href, origin).href : origin + '/'
  }

  get signal() {
    if (!this.#controller) {
      this.#controller = new AbortController()
      if (this.#gone) this.#controller.abort(this.#gone)
    }
    return this.#controller.signal
  }

  // A body that is wanted whole needs no stream.
  get bodyUsed() { return this.#real ? this.#real.bodyUsed : this.#used }
  async #whole() {
    if (this.#used) throw new TypeError('Body is unusable: it has been read already')
    this.#used = this.#body !== undefined
    return this.#body ? this.#body.whole() : NONE
  }
  async text() { return this.#real ? this.#real.text() : utf8.decode(await this.#whole()) }
  async json() { return JSON.parse(await this.text()) }
  async arrayBuffer() {
    return this.#real ? this.#real.arrayBuffer() : new Uint8Array(await this.#whole()).buffer
  }

  get [REAL]() {
    if (!this.#real) {
      const method = /^(TRACE|TRACK|CONNECT)$/i.test(this.#method) ? 'GET' : this.#method // Request refuses those
      const body = method === 'GET' || method === 'HEAD' ? undefined : this.#used ? 'used' : this.#body?.open()
      this.#real = new Request(this.url, { method, headers: this.#headers[REAL], body, signal: this.signal, duplex: 'half' })
      LightHeaders.adopt(this.#headers, this.#real.headers)
      if (this.#used && body) this.#real.text()
    }
    return this.#real
  }
}
lighten(LightRequest, Request)

class LightResponse {
  #body; #status; #headers; #real
  constructor(body, init, type = 'text/plain;charset=UTF-8') {
    const { status = 200, statusText, headers } = init ?? {}
    this.#body = body = body instanceof ArrayBuffer ? new Uint8Array(body) : body ?? null
    this.#status = status
    const simple = body === null || typeof body === 'string' || ArrayBuffer.isView(body)
    const usual = Number.isInteger(status) && status >= 200 && status < 600 && !statusText
    if (simple && usual && (body === null || !EMPTY.has(status))) {
      this.#headers = new Headers(headers)
      if (typeof body === 'string' && !this.#headers.has('content-type')) this.#headers.set('content-type', type)
    } else {
      this.#real = new Response(body, init)
      this.#headers = this.#real.headers
      if (body instanceof Blob && !this.#headers.has('content-length')) this.#headers.set('content-length', body.size)
    }
  }

  // Text or bytes, null for none; undefined where only the stream can tell.
  static known(response) {
    if (!(#body in response)) return response.body === null ? null : undefined
    const body = response.#body
    if (response.#real?.bodyUsed) throw new TypeError('the Response’s body has been read already')
    return body === null || typeof body === 'string' || ArrayBuffer.isView(body) ? body : undefined
  }

  get status() { return this.#status }
  get statusText() { return this.#real?.statusText ?? '' }
  get headers() { return this.#headers }
  get body() { return this.#body === null ? null : this[REAL].body }

  get [REAL]() {
    if (!this.#real) {
      this.#real = new Response(this.#body, { status: this.#status, headers: this.#headers })
      this.#headers = this.#real.headers
    }
    return this.#real
  }
}
lighten(LightResponse, Response)

// The app's own `new Request(light)` and `fetch(light)` get the real one: platform code looks inside.
const real = ([first, ...rest]) => [first?.[REAL] ?? first, ...rest]
globalThis.fetch = (...args) => fetch(...real(args))
globalThis.Request = new Proxy(Request, {
  construct: (target, args, self) => Reflect.construct(target, real(args), self),
})
globalThis.Response = new Proxy(Response, {
  construct: (target, args, self) =>
    self === globalThis.Response ? new LightResponse(args[0], args[1]) : Reflect.construct(target, args, self),
})
Response.json = (data, init) => {
  const text = JSON.stringify(data)
  if (text === undefined) throw new TypeError('Response.json: this value has no JSON')
  return new LightResponse(text, init, 'application/json')
}

// ---- a request's body, between the socket and whoever reads it ----

class Body {
  #held = []
  #size = 0
  #stream; #sink; #error; #whole
  #wanted = true
  #hurry = false // hold nothing back
  constructor(socket, length) {
    this.socket = socket
    this.left = length
  }

  take(bytes) {
    this.left -= bytes.length
    if (!this.#wanted) return
    this.#size += bytes.length
    if (this.#sink) this.#sink.enqueue(plain(bytes))
    else this.#held.push(bytes)
    if (!this.left) {
      this.#sink?.close()
      this.#whole?.resolve(Buffer.concat(this.#held))
    } else if (!this.#hurry && (this.#sink ? this.#sink.desiredSize <= 0 : this.#size >= BODY_AHEAD)) {
      this.socket.pause()
    }
  }

  whole() {
    if (!this.left) return Buffer.concat(this.#held)
    if (this.#error) throw this.#error
    this.#hurry = true
    this.socket.resume()
    return new Promise((resolve, reject) => { this.#whole = { resolve, reject } })
  }

  // Bytes, if all are here, else a stream.
  open() {
    if (!this.left) return Buffer.concat(this.#held)
    return this.#stream = new ReadableStream({
      start: (sink) => {
        if (this.#error) return sink.error(this.#error)
        for (const bytes of this.#held) sink.enqueue(plain(bytes))
        this.#sink = sink
      },
      pull: () => { this.socket.resume() },
      cancel: () => this.drop(),
    }, new ByteLengthQueuingStrategy({ highWaterMark: BODY_AHEAD }))
  }

  // The answer is out. What nobody is reading is thrown away.
  finish() {
    this.#hurry = true
    if (!this.#stream?.locked && !this.#whole) this.#wanted = false
    this.socket.resume()
  }

  drop() {
    this.#wanted = false
    this.socket.resume()
  }

  fail(error) {
    if (!this.left) return
    this.#error = error
    if (this.#wanted) this.#sink?.error(error)
    this.#whole?.reject(error)
    this.#wanted = false
  }
}

const plain = (buffer) => new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.length)

// ---- a connection from the server ----
//
//     read ─▶ next ─▶ answer ─▶ write ─▶ over ─▶ next …
//      └─▶ Body.take                ▲
//     left (the server hung up) ────┘

const NOBODY = new LightRequest('', '/', [])

class Connection {
  #bytes = NONE // not looked at yet
  #request; #body // under way
  #headSent = false
  #answered = false
  #gone = false
  #reader; #wake
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
    if (this.#request) return
    const end = this.#bytes.indexOf('\r\n\r\n')
    if (end < 0) return
    const lines = this.#bytes.toString('latin1', 0, end).split('\r\n')
    const rest = this.#bytes.subarray(end + 4)
    this.#bytes = NONE
    const [method, target] = lines[0].split(' ')
    const list = []
    let length = 0, probe = false
    for (let i = 1; i < lines.length; i++) {
      const colon = lines[i].indexOf(':')
      const name = lines[i].slice(0, colon).toLowerCase()
      const value = trimmed(lines[i], colon + 1)
      list.push(name, value)
      if (name === 'content-length') length = Number(value)
      else if (name === 'rip-probe') probe = true
    }
    this.#body = length > 0 ? new Body(this.socket, length) : undefined
    const request = this.#request = new LightRequest(method, target, list, this.#body)
    this.read(rest)
    if (probe && target === '/ready') return this.reply(200, 'ok')
    if (worker.current) {
      this.#body?.drop()
      return this.reply(503, 'busy\n', BUSY)
    }
    worker.current = this
    this.answer(request)
  }

  async answer(request) {
    try {
      const wait = reload()
      if (wait) await wait
      const response = await worker.app.fetch(request)
      if (this.#request === request && !this.#gone) return await this.write(request, response)
      response?.body?.cancel?.()?.catch?.(() => {})
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
      else if (!HOP_BY_HOP.has(name)) head += `${name}: ${value}\r\n`
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
    for (;;) {
      const { done, value } = await reader.read()
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
      if (socket.writableNeedDrain) await new Promise((resolve) => { this.#wake = resolve })
    }
    if (left > 0) throw new Error('the body is shorter than its Content-Length')
    this.last(chunked ? '0\r\n\r\n' : '')
  }

  fail(error) {
    if (this.#request === NOBODY) return console.error(error)
    const { method, url, headers } = this.#request
    const quiet = this.#gone && isAbort(error)
    const [body, type] = quiet ? [] : failure(error, method, url, (name) => headers.get(name))
    this.#reader?.cancel(error).catch(() => {})
    if (this.#headSent || this.#gone) {
      this.#gone = true
      this.socket.destroy() // a cut must not look like an end
      return this.over()
    }
    this.reply(500, body, { 'Content-Type': type })
    this.#request = NOBODY // what the handler may still answer is for nobody
  }

  reply(status, body, headers) {
    this.write(this.#request, new LightResponse(body, { status, headers }))
  }

  last(data, encoding = 'latin1') {
    this.socket.write(data, encoding, this.#written)
  }

  // The answer has ended; the next request waits for the end of this one's body.
  over() {
    this.#answered = true
    if (this.#body?.left && !this.#gone) return this.#body.finish()
    if (worker.current === this) worker.current = undefined
    this.#request = this.#body = this.#reader = this.#wake = undefined
    this.#headSent = this.#answered = false
    if (this.#gone) this.socket.end()
    else if (this.#bytes.length) this.next()
  }

  left() {
    if (this.#gone) return
    this.#gone = true
    if (!this.#request) return this.socket.end()
    const error = new DOMException('The client is gone', 'AbortError')
    LightRequest.abort(this.#request, error)
    this.#body?.fail(error)
    this.#reader?.cancel(error).catch(() => {})
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
serve(worker.app.listener ? listenerServer() : net.createServer({ allowHalfOpen: true }, (socket) => new Connection(socket)))
