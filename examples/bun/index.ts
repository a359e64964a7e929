// `rip-server examples/bun`: a fetch handler and a WebSocket echo, under Bun.
export default {
  fetch(request: Request, server: { upgrade(request: Request): boolean }) {
    const { pathname } = new URL(request.url)
    if (pathname === '/echo' && server.upgrade(request)) return
    return Response.json({ hello: pathname, pid: process.pid })
  },
  websocket: {
    message(socket: { send(text: string | Uint8Array): void }, text: string | Uint8Array) {
      socket.send(text)
    },
  },
}
