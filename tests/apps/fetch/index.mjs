// A function (Request) → Response, for Bun and Node alike; under Bun with WebSockets.
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const text = new TextEncoder()

async function* gated(gate) {
  yield 'first\n'
  while (!existsSync(gate)) await sleep(5)
  yield 'last\n'
}

async function* endless() {
  for (;;) {
    yield 'tick\n'
    await sleep(5)
  }
}

async function* broken() {
  yield 'first\n'
  throw new Error('told to fail')
}

const streamed = (pieces) => new Response(new ReadableStream({
  async pull(controller) {
    const { done, value } = await pieces.next()
    if (done) controller.close()
    else controller.enqueue(text.encode(value))
  },
  cancel: () => pieces.return(),
}))

async function sha(request) {
  const sum = createHash('sha256')
  let length = 0
  for await (const piece of request.body) {
    sum.update(piece)
    length += piece.length
  }
  return `${length} ${sum.digest('hex')}`
}

export default async function (request, server) {
  const { pathname, searchParams } = new URL(request.url)
  const path = decodeURIComponent(pathname)
  switch (path) {
    case '/hello': return new Response('hello')
    case '/pid': return new Response(`${process.pid}`)
    case '/sha': return new Response(await sha(request))
    case '/stream': return streamed(gated(searchParams.get('gate')))
    case '/endless': return streamed(endless())
    case '/fail': throw new Error('told to fail')
    case '/break': return streamed(broken())
    case '/cookies': {
      const response = new Response()
      response.headers.append('Set-Cookie', 'a=1; Path=/')
      response.headers.append('Set-Cookie', 'b=2; Expires=Thu, 01 Jan 2032 00:00:00 GMT')
      return response
    }
    case '/socket': return server.upgrade(request) ? undefined : new Response('no WebSocket', { status: 400 })
  }
  if (path.startsWith('/echo/')) return new Response(path, { headers: { 'X-Echo': request.headers.get('x-name') } })
  return new Response('not found', { status: 404 })
}

export const websocket = {
  message: (socket, message) => socket.send(message),
  close: (socket, code) => console.log(`closed with ${code}`),
}
