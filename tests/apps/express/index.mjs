import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import express from 'express'

const app = express()
app.get('/hello', (request, response) => {
  response.type('text/plain').send('hello')
})
app.get('/pid', (request, response) => {
  response.send(`${process.pid}`)
})
app.post('/sha', express.raw({ type: () => true, limit: '1mb' }), ({ body }, response) => {
  response.send(`${body.length} ${createHash('sha256').update(body).digest('hex')}`)
})
app.get('/stream', async (request, response) => {
  response.write('first\n')
  while (!existsSync(request.query.gate)) await sleep(5)
  response.end('last\n')
})
app.get('/endless', async (request, response) => {
  while (!response.destroyed) {
    response.write('tick\n')
    await sleep(5)
  }
})
app.get('/fail', async () => {
  throw new Error('told to fail')
})
app.get('/break', async (request, response) => {
  response.write('first\n')
  while (!existsSync(request.query.gate)) await sleep(5)
  throw new Error('told to fail')
})
app.get('/cookies', (request, response) => {
  response.cookie('a', '1').cookie('b', '2', { path: '', expires: new Date(0) }).end()
})
app.get('/echo/:name', (request, response) => {
  response.set('X-Echo', request.get('x-name')).send(`/echo/${request.params.name}`)
})

export default app
