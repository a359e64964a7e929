// An object with `fetch` and `websocket`, as Bun.serve takes it.
import type { Server, ServerWebSocket } from 'bun'

export default {
  fetch(request: Request, server: Server) {
    const { pathname } = new URL(request.url)
    if (pathname === '/socket' && server.upgrade(request)) return
    return new Response(pathname === '/pid' ? `${process.pid}` : 'hello')
  },
  websocket: {
    message: (socket: ServerWebSocket, message: string | Buffer) => void socket.send(message),
    close: (socket: ServerWebSocket, code: number) => console.log(`closed with ${code}`),
  },
}
