// Any server that can listen on a Unix socket will do: `rip-server examples/command w:4 -- node server.mjs`.
// Others take it as an argument: `-- uvicorn --uds {socket} app:app`, `-- gunicorn -b unix:{socket} app:app`.
import http from 'node:http'

const server = http.createServer((request, response) => response.end(`Hello from worker ${process.env.WORKER_ID}\n`))
server.listen(process.env.SOCKET_PATH)
process.on('SIGTERM', () => server.close())
