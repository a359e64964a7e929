// The contract suite's app: a function (Request) → Response, for Bun and Node.
import { readFileSync } from 'node:fs'
import { environment, fail, isThere, part, pieces, sha, sleep, touch, waitFor } from './parts.mjs'

const bytes = new TextEncoder()

const streamed = (source, init) => new Response(new ReadableStream({
  async pull(controller) {
    const { done, value } = await source.next()
    if (done) controller.close()
    else controller.enqueue(typeof value === 'string' ? bytes.encode(value) : value)
  },
}), init)

async function* broken(kind, dir) {
  yield 'first\n'
  await waitFor(dir)
  fail(kind)
}

async function* events(signal, dir, everyMs) {
  yield 'data: 0\n\n'
  let last = Date.now()
  while (!signal.aborted && !isThere(dir)) {
    await sleep(5)
    if (Date.now() - last < everyMs) continue
    last = Date.now()
    yield 'data: 0\n\n'
  }
}

async function wait(signal, dir) {
  signal.addEventListener('abort', () => touch(dir, 'told'))
  touch(dir, 'started')
  await waitFor(dir)
  touch(dir, 'ended')
  return new Response('done')
}

function fields({ headers }) {
  const got = ['x-many', 'cookie', 'x-latin'].map((name) => headers.get(name) ?? '')
  const response = new Response(Buffer.from(got.join('\n') + '\n', 'latin1'), { headers: { 'X-Latin': got[2] } })
  for (const value of ['a', 'b']) response.headers.append('X-Out', value)
  for (const value of ['a=1', 'b=2']) response.headers.append('Set-Cookie', value)
  return response
}

export default {
  async fetch(request, server) {
    const { pathname, search } = new URL(request.url)
    const [, name, kind] = pathname.split('/')
    const query = search.slice(1)
    switch (name) {
      case 'hello': return new Response('hello')
      case 'pid': return new Response(`${process.pid}`)
      case 'ready': return new Response('the app’s')
      case 'env': return new Response(environment())
      case 'sha': return new Response(await sha(request.body))
      case 'ignore': return new Response('ignored')
      case 'part':
        if (kind === 'stop') await part(request.body)
        else await request.body.getReader().read()
        return new Response('left')
      case 'file': return new Response(readFileSync(query))
      case 'pieces': return streamed(pieces(query))
      case 'wait': return wait(request.signal, query)
      case 'events':
      case 'ticks':
        request.signal.addEventListener('abort', () => touch(query, 'told'))
        return streamed(events(request.signal, query, name === 'ticks' ? 20 : Infinity), {
          headers: { 'Content-Type': 'text/event-stream' },
        })
      case 'fail': return fail(kind)
      case 'break': return streamed(broken(kind, query))
      case 'fields': return fields(request)
      case 'nobody': return new Response(null, { status: Number(kind), headers: { 'X-Kind': kind } })
      case 'client': return new Response((server?.requestIP?.(request)?.address ?? '') + (request.headers.get('rip-client') ?? ''))
      case 'socket': return server.upgrade(request) ? undefined : new Response('no WebSocket', { status: 400 })
    }
    return new Response('not found', { status: 404 })
  },
  websocket: {
    message: (socket, message) => { socket.send(message) },
    close: (_, code) => touch(process.env.CONTRACT_DIR, 'closed', `${code}`),
  },
}
