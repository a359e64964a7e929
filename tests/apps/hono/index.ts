import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Hono } from 'hono'
import { setCookie } from 'hono/cookie'
import { stream } from 'hono/streaming'

const app = new Hono()
app.get('/hello', (c) => c.text('hello'))
app.get('/pid', (c) => c.text(`${process.pid}`))
app.post('/sha', async (c) => {
  const body = Buffer.from(await c.req.arrayBuffer())
  return c.text(`${body.length} ${createHash('sha256').update(body).digest('hex')}`)
})
app.get('/stream', (c) => stream(c, async (out) => {
  await out.write('first\n')
  while (!existsSync(c.req.query('gate')!)) await out.sleep(5)
  await out.write('last\n')
}))
app.get('/endless', (c) => stream(c, async (out) => {
  while (!out.aborted) {
    await out.write('tick\n')
    await out.sleep(5)
  }
}))
app.get('/break', (c) => c.body(new ReadableStream({
  async start(out) {
    out.enqueue('first\n')
    while (!existsSync(c.req.query('gate')!)) await sleep(5)
    out.error(new Error('told to fail'))
  },
})))
app.get('/fail', () => {
  throw new Error('told to fail')
})
app.get('/cookies', (c) => {
  setCookie(c, 'a', '1', { path: '/' })
  setCookie(c, 'b', '2', { path: null, expires: new Date(0) })
  return c.body(null)
})
app.get('/echo/:name', (c) => c.text(decodeURIComponent(c.req.path), 200, { 'X-Echo': c.req.header('x-name')! }))

export default app
