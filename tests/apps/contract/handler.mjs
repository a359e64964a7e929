// The contract suite's app: a function (req, res) as it is given to node:http.
import { readFileSync } from 'node:fs'
import { environment, fail, isThere, part, pieces, sha, sleep, touch, waitFor } from './parts.mjs'

export default async function (req, res) {
  const [pathname, query = ''] = req.url.split(/\?(.*)/s)
  const [, name, kind] = pathname.split('/')
  res.setHeader('Content-Type', 'text/plain')
  switch (name) {
    case 'hello': return res.end('hello')
    case 'pid': return res.end(`${process.pid}`)
    case 'ready': return res.end('the app’s')
    case 'env': return res.end(environment())
    case 'sha': return res.end(await sha(req))
    case 'ignore': return res.end('ignored')
    case 'part':
      if (kind === 'stop') await part(req)
      else await new Promise((resolve) => req.once('data', resolve))
      req.pause()
      return res.end('left')
    case 'file': {
      const file = readFileSync(query)
      res.setHeader('Content-Length', file.length)
      return res.end(file)
    }
    case 'pieces':
      for (const piece of pieces(query)) {
        if (!res.write(piece)) await new Promise((resolve) => res.once('drain', resolve))
      }
      return res.end()
    case 'wait': {
      req.on('aborted', () => touch(query, 'told'))
      req.on('error', () => {})
      touch(query, 'started')
      await waitFor(query)
      touch(query, 'ended')
      return res.end('done')
    }
    case 'events':
    case 'ticks': {
      let told = false
      req.on('error', () => {})
      res.on('close', () => {
        told ||= !res.writableFinished
        if (told) touch(query, 'told')
      })
      res.setHeader('Content-Type', 'text/event-stream')
      res.write('data: 0\n\n')
      while (!told && !isThere(query)) {
        await sleep(20)
        if (name === 'ticks') res.write('data: 0\n\n')
      }
      return res.end()
    }
    case 'fail': return fail(kind)
    case 'break':
      res.write('first\n')
      await waitFor(query)
      return fail(kind)
    case 'fields': {
      const got = ['x-many', 'cookie', 'x-latin'].map((field) => req.headers[field] ?? '')
      res.setHeader('X-Latin', got[2])
      res.setHeader('X-Out', ['a', 'b'])
      res.setHeader('Set-Cookie', ['a=1', 'b=2'])
      return res.end(got.join('\n') + '\n', 'latin1')
    }
    case 'nobody':
      res.statusCode = Number(kind)
      return res.end()
    case 'client': {
      const field = req.headers['rip-client']
      return res.end((req.socket.remoteAddress ?? '') + (field ? ` Rip-Client: ${field}` : ''))
    }
  }
  res.writeHead(404).end()
}
