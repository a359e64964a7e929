// Node's Request, Response and Headers in a light form: they know what nearly every handler asks for, and
// make the real object for anything else.
import { clientOf, percents } from './request.mjs'

const { fetch, Headers, Request, Response } = globalThis
export { Response }
const REAL = Symbol('real')
const NONE = Buffer.alloc(0)
const utf8 = new TextDecoder()
const EMPTY = new Set([204, 205, 304]) // a Response with one of these refuses a body

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

export class LightHeaders {
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

export class LightRequest {
  #method; #target; #headers; #body; #client; #url; #controller; #gone; #real
  #used = false
  constructor(method, target, list, body, client) {
    this.#method = method
    this.#target = target
    this.#headers = new LightHeaders(list)
    this.#body = body
    this.#client = client
  }

  // Who asks, in the form of Bun's requestIP.
  static client(request) {
    return #client in request ? clientOf(request.#client ?? request.headers.get('x-forwarded-for')) : null
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

export class LightResponse {
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
// `constructor` is what the app knows by the name, of the light one as of the real one.
for (const [Light, Real] of [[LightHeaders, globalThis.Headers], [LightRequest, globalThis.Request], [LightResponse, globalThis.Response]]) {
  for (const { prototype } of [Light, Real]) {
    Object.defineProperty(prototype, 'constructor', { value: Real, writable: true, configurable: true, enumerable: false })
  }
}
Response.json = (data, init) => {
  const text = JSON.stringify(data)
  if (text === undefined) throw new TypeError('Response.json: this value has no JSON')
  return new LightResponse(text, init, 'application/json')
}
