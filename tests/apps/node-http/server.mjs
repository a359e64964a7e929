// A server that knows of no Rip Server: `-- node server.mjs`, or `-- node server.mjs {port}`, and `{port} ::1` for IPv6 alone.
import http from 'node:http'
import answer from './handler.mjs'

const server = http.createServer((req, res) => answer(req, res).catch((error) => {
  console.error(error)
  if (res.headersSent) res.destroy()
  else res.writeHead(500).end('Internal Server Error\n')
}))
const [port, host] = process.argv.slice(2)
server.listen(port ? { port: Number(port), host } : process.env.SOCKET_PATH)
process.on('SIGTERM', () => server.close())
