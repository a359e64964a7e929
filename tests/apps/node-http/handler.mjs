// A function (req, res) as it is given to node:http.
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

async function sha(req) {
  const sum = createHash('sha256')
  let length = 0
  for await (const piece of req) {
    sum.update(piece)
    length += piece.length
  }
  return `${length} ${sum.digest('hex')}`
}

export default async function (req, res) {
  const { pathname, searchParams } = new URL(req.url, 'http://localhost')
  const path = decodeURIComponent(pathname)
  res.setHeader('Content-Type', 'text/plain')
  switch (path) {
    case '/hello': return res.end('hello')
    case '/pid': return res.end(`${process.pid}`)
    case '/sha': return res.end(await sha(req))
    case '/stream':
    case '/break':
      res.write('first\n')
      while (!existsSync(searchParams.get('gate'))) await sleep(5)
      if (path === '/break') throw new Error('told to fail')
      return res.end('last\n')
    case '/endless':
      while (!res.destroyed) {
        res.write('tick\n')
        await sleep(5)
      }
      return
    case '/fail': throw new Error('told to fail')
    case '/cookies':
      res.setHeader('Set-Cookie', ['a=1; Path=/', 'b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT'])
      return res.end()
  }
  if (path.startsWith('/echo/')) return res.writeHead(200, { 'X-Echo': req.headers['x-name'] }).end(Buffer.from(path))
  res.writeHead(404).end()
}
