// A function (Request) → Response, for Bun and Node alike.
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const text = new TextEncoder()

async function* gated(gate, last) {
  yield 'first\n'
  while (!existsSync(gate)) await sleep(5)
  yield last()
}

async function* endless() {
  for (;;) {
    yield 'tick\n'
    await sleep(5)
  }
}

async function waited(signal) {
  console.log('waiting')
  await new Promise((resolve) => signal.addEventListener('abort', resolve))
  console.log('the client has gone')
  return new Response()
}

function fail() {
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

export default async function (request) {
  const { pathname, searchParams } = new URL(request.url)
  const path = decodeURIComponent(pathname)
  switch (path) {
    case '/hello': return new Response('hello')
    case '/pid': return new Response(`${process.pid}`)
    case '/sha': return new Response(await sha(request))
    case '/stream': return streamed(gated(searchParams.get('gate'), () => 'last\n'))
    case '/endless': return streamed(endless())
    case '/wait': return waited(request.signal)
    case '/fail': return fail()
    case '/break': return streamed(gated(searchParams.get('gate'), fail))
    case '/cookies': {
      const response = new Response()
      response.headers.append('Set-Cookie', 'a=1; Path=/')
      response.headers.append('Set-Cookie', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT')
      return response
    }
  }
  if (path.startsWith('/echo/')) return new Response(path, { headers: { 'X-Echo': request.headers.get('x-name') } })
  return new Response('not found', { status: 404 })
}
