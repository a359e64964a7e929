// A server that knows of no Rip Server: `-- node server.mjs`.
import http from 'node:http'
import answer from './handler.mjs'

const server = http.createServer((req, res) => answer(req, res).catch((error) => {
  console.error(error)
  if (res.headersSent) res.destroy()
  else res.writeHead(500).end('Internal Server Error\n')
}))
server.listen(process.env.SOCKET_PATH)
process.on('SIGTERM', () => server.close())
