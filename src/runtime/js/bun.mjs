// The worker under Bun: `bun bun.mjs` in the app's folder. Bun.serve speaks HTTP and WebSocket.
import fs from 'node:fs'
import { BUSY, failure, isAbort, join, listenerServer, loadFirst, notAResponse, reload, serve, socketPath, worker } from './shared.mjs'

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

function watched(stream, request) {
  const reader = stream.getReader()
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await reader.read()
        if (done) controller.close()
        else controller.enqueue(value)
      } catch (error) {
        fail(error, request)
        controller.error(error)
      }
    },
    cancel: (reason) => reader.cancel(reason),
  }, { highWaterMark: 0 })
}

function fail(error, request) {
  if (request.signal.aborted && isAbort(error)) return new Response()
  const [body, type] = failure(error, request.method, request.url, (name) => request.headers.get(name))
  return new Response(body, { status: 500, headers: { 'Content-Type': type } })
}

async function run(request, server) {
  try {
    await reload(() => server.reload(options()))
    const response = await worker.app.fetch(request, server)
    if (!(response instanceof Response)) {
      if (response === undefined && server.pendingWebSockets) return // upgraded
      throw notAResponse(response)
    }
    if (!streams.has(response) || response.bodyUsed) return response
    return new Response(watched(response.body, request), response)
  } catch (error) {
    return fail(error, request)
  }
}

let latest // for what Bun finds wrong with a Response only when it sends it

function answer(request, server) {
  const { headers } = request
  if (headers.has('rip-probe') && new URL(request.url).pathname === '/ready') return new Response('ok')
  if (worker.current || server.pendingRequests > 1 || server.pendingWebSockets) {
    return new Response('busy\n', { status: 503, headers: BUSY })
  }
  if (headers.get('x-forwarded-proto') === 'https') {
    Object.defineProperty(request, 'url', { value: request.url.replace(/^http:/, 'https:') })
  }
  latest = request
  return new Promise((resolve) => {
    const mine = worker.current = { fail: (error) => resolve(fail(error, request)) }
    run(request, server).then((response) => {
      if (worker.current === mine) worker.current = undefined
      resolve(response)
    })
  })
}

const options = () => ({ fetch: answer, websocket: worker.app.websocket, error: (error) => fail(error, latest) })

await loadFirst()
if (worker.app.listener) {
  serve(listenerServer())
} else {
  fs.rmSync(socketPath, { force: true })
  // The front end times things and bounds bodies; here nothing may.
  const server = Bun.serve({
    unix: socketPath, idleTimeout: 0, maxRequestBodySize: Number.MAX_SAFE_INTEGER, development: false, ...options(),
  })
  // Bun does not say when a connection closes; with no request there is none to wait for.
  const quiet = () => !server.pendingRequests && !server.pendingWebSockets
  join(quiet, quiet)
}
