// What Rip Server replaces for a Bun app: the same front end written over Bun.serve and fetch({ unix }).
// LIFO over idle workers, one request each, a bounded queue with a deadline.
//
//     bun bun-proxy.mjs PORT WORKER_SOCKET...

const MAX_QUEUE = 8192
const QUEUE_TIMEOUT_MS = 2000

const [port, ...idle] = process.argv.slice(2)
const queue = []

function acquire() {
  if (idle.length) return idle.pop()
  if (queue.length >= MAX_QUEUE) return null
  return new Promise((resolve) => {
    const waiting = { resolve, timer: setTimeout(() => { queue.splice(queue.indexOf(waiting), 1); resolve(null) }, QUEUE_TIMEOUT_MS) }
    queue.push(waiting)
  })
}

function release(socket) {
  const next = queue.shift()
  if (!next) return idle.push(socket)
  clearTimeout(next.timer)
  next.resolve(socket)
}

async function proxy(request) {
  const { pathname, search } = new URL(request.url)
  if (pathname === '/server') return new Response('ok')
  const unix = await acquire()
  if (!unix) return new Response('busy', { status: 503, headers: { 'Retry-After': '1' } })
  try {
    const { method, headers, body } = request
    const answer = await fetch(`http://worker${pathname}${search}`, { unix, method, headers, body, redirect: 'manual', decompress: false })
    return new Response(await answer.arrayBuffer(), { status: answer.status, headers: answer.headers })
  } catch {
    return new Response('bad gateway', { status: 502 })
  } finally {
    release(unix)
  }
}

Bun.serve({ port: Number(port), hostname: '127.0.0.1', fetch: proxy })
