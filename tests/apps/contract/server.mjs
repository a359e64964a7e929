// handler.mjs behind a server that knows nothing of the worker protocol: `node server.mjs <port>`.
import http from 'node:http'
import answer from './handler.mjs'

const server = http.createServer((req, res) => answer(req, res).catch((error) => {
  console.error(error)
  if (res.headersSent) res.destroy()
  else res.writeHead(500).end('Internal Server Error\n')
}))
server.listen(Number(process.argv[2]), '127.0.0.1')
process.on('SIGTERM', () => server.close())
