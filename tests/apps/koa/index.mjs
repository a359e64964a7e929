import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import Koa from 'koa'

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

function fail() {
  throw new Error('told to fail')
}

async function sha(request) {
  const sum = createHash('sha256')
  let length = 0
  for await (const piece of request) {
    sum.update(piece)
    length += piece.length
  }
  return `${length} ${sum.digest('hex')}`
}

const app = new Koa()
app.use(async (context) => {
  const path = decodeURIComponent(context.path)
  switch (path) {
    case '/hello': return context.body = 'hello'
    case '/pid': return context.body = `${process.pid}`
    case '/sha': return context.body = await sha(context.req)
    case '/stream': return context.body = Readable.from(gated(context.query.gate, () => 'last\n'))
    case '/endless': return context.body = Readable.from(endless())
    case '/fail': return fail()
    case '/break': return context.body = Readable.from(gated(context.query.gate, fail))
    case '/cookies':
      context.set('Set-Cookie', ['a=1; Path=/', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT'])
      return context.body = ''
  }
  if (path.startsWith('/echo/')) {
    context.set('X-Echo', context.get('x-name'))
    context.body = path
  }
})

export default app
