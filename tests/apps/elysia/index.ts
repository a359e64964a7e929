import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Elysia } from 'elysia'

// Else a host of one letter, as the tests' is, is taken for a part of the path.
export default new Elysia({ handler: { standardHostname: false } })
  // Its own answer would have the exception's message.
  .onError(({ code, error }) => {
    if (code !== 'UNKNOWN') return
    console.error(error)
    return 'Internal Server Error'
  })
  .get('/hello', () => 'hello')
  .get('/pid', () => `${process.pid}`)
  .post('/sha', ({ body }) => {
    const bytes = Buffer.from(body as ArrayBuffer)
    return `${bytes.length} ${createHash('sha256').update(bytes).digest('hex')}`
  }, { parse: 'arrayBuffer' })
  .get('/stream', async function* ({ query }) {
    yield 'first\n'
    while (!existsSync(query.gate)) await sleep(5)
    yield 'last\n'
  })
  .get('/endless', async function* () {
    for (;;) {
      yield 'tick\n'
      await sleep(5)
    }
  })
  .get('/fail', () => {
    throw new Error('told to fail')
  })
  .get('/cookies', ({ set }) => {
    set.headers['set-cookie'] = ['a=1; Path=/', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT']
    return ''
  })
  .get('/echo/:name', ({ params, headers, set }) => {
    set.headers['x-echo'] = headers['x-name']!
    return `/echo/${params.name}`
  })
