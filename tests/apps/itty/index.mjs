import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Router, text } from 'itty-router'

const streamed = (pieces) => new Response(ReadableStream.from(pieces))

async function* gated(gate, last) {
  yield Buffer.from('first\n')
  while (!existsSync(gate)) await sleep(5)
  yield Buffer.from(last())
}

async function* endless() {
  for (;;) {
    yield Buffer.from('tick\n')
    await sleep(5)
  }
}

function fail() {
  throw new Error('told to fail')
}

const router = Router()
router
  .get('/hello', () => text('hello'))
  .head('/hello', () => text('hello'))
  .get('/pid', () => text(`${process.pid}`))
  .post('/sha', async (request) => {
    const body = Buffer.from(await request.arrayBuffer())
    return text(`${body.length} ${createHash('sha256').update(body).digest('hex')}`)
  })
  .get('/stream', ({ query }) => streamed(gated(query.gate, () => 'last\n')))
  .get('/endless', () => streamed(endless()))
  .get('/fail', fail)
  .get('/break', ({ query }) => streamed(gated(query.gate, fail)))
  .get('/cookies', () => {
    const headers = new Headers()
    headers.append('Set-Cookie', 'a=1; Path=/')
    headers.append('Set-Cookie', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT')
    return new Response(null, { headers })
  })
  .get('/echo/:name', ({ params, headers }) =>
    text(`/echo/${decodeURIComponent(params.name)}`, { headers: { 'X-Echo': headers.get('x-name') } }))

export default router
