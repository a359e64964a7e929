// The worker protocol: the words with the server's control socket, from the join to the end, and what
// becomes of the app's own handlers of signals and exceptions.
import { EventEmitter } from 'node:events'
import http from 'node:http'

const { env } = process
const LEAVE_LOOK_MS = 10
const MAX_AT_WORK = Number(env.RIP_CONCURRENCY) || 1
const MAX_STREAMS = Number(env.RIP_MAX_STREAMS ?? 1000)
// A handler that returned no promise may have begun something that nobody can see: so long it may keep
// the process from ending. The server's drain timeout bounds all the rest.
const UNSEEN_WORK_MS = 3000

export const socketPath = env.SOCKET_PATH
export const worker = {
  app: undefined, // see app.mjs
  // Requests, each with id(), fail(error), isStream(), and leave() where it may be told. Those at work hold a place;
  // event streams and WebSockets whose heads are out go on beside them.
  atWork: new Set(),
  streams: new Set(),
  isLeaving: false,
}

// ---- places ----

// Whether one more request finds a place.
export function hasPlace() {
  if (worker.atWork.size >= MAX_AT_WORK) settleStreams()
  return worker.atWork.size < MAX_AT_WORK
}

// Nobody is told when an answer turns out to be a stream, so it is looked for where it matters. Beyond the bound a
// stream keeps its place.
function settleStreams() {
  for (const one of worker.atWork) {
    if (worker.streams.size >= MAX_STREAMS) return
    if (one.isStream()) {
      worker.atWork.delete(one)
      worker.streams.add(one)
    }
  }
}

export const takePlace = (one) => { worker.atWork.add(one) }
export const isOver = (one) => { worker.atWork.delete(one) || worker.streams.delete(one) }

export const isNothingOpen = () => !worker.atWork.size && !worker.streams.size

export const BUSY = { 'Rip-Worker-Busy': '1', 'Content-Type': 'text/plain' }

// What a probe gets: once joined the worker is loaded. It is idle when no request is at work, or, where the probe
// names a request by its id, when that one is not.
export function isReady(probe, id) {
  if (probe !== 'idle') return true
  settleStreams()
  return id ? ![...worker.atWork].some((one) => one.id() === id) : !worker.atWork.size
}

// The signal goes to the server too, and it is the server that ends its workers.
process.on('SIGINT', () => {})

// ---- the server's control socket ----

export function tell(op, more) {
  const body = JSON.stringify({ op, instance: env.RIP_INSTANCE, workerId: Number(env.WORKER_ID), ...more })
  return new Promise((resolve) => {
    const failed = (error) => resolve({ ok: false, error: error.message })
    http.request({
      socketPath: env.RIP_CONTROL_SOCKET, path: '/worker', method: 'POST', agent: false,
      headers: { Host: 'localhost', 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) },
    }, async (response) => {
      let text = ''
      try {
        for await (const chunk of response) text += chunk
        resolve(JSON.parse(text))
      } catch {
        resolve({ ok: false, error: text || `status ${response.statusCode}` })
      }
    }).on('error', failed).end(body)
  })
}

export function giveUp(...why) {
  console.error('rip-server:', ...why)
  exit.call(process, 1)
}

let retiring
export function retire() {
  return retiring ??= tell('retire')
}

// Asks for a new process once more, also where one was asked for before.
export function retireAgain() {
  retiring = undefined
  return retire()
}

// ---- the app's own handlers of SIGTERM ----
// They are kept apart, so that what they return can be waited for.

const signals = new EventEmitter()
signals.setMaxListeners(0)
// Modules that were loaded before this one (--preload) have theirs already.
for (const handler of process.listeners('SIGTERM')) {
  process.removeListener('SIGTERM', handler)
  signals.on('SIGTERM', handler)
}
for (const name of ['on', 'addListener', 'once', 'prependListener', 'prependOnceListener', 'off', 'removeListener']) {
  const method = process[name]
  process[name] = function (event, handler) {
    if (event !== 'SIGTERM' || handler === onSigterm) return method.call(this, event, handler)
    signals[name](event, handler)
    return this
  }
}
for (const name of ['listeners', 'rawListeners']) {
  const method = process[name]
  process[name] = function (event) {
    const listeners = method.call(this, event)
    return event === 'SIGTERM' ? [...listeners, ...signals[name](event)] : listeners
  }
}
const { listenerCount, removeAllListeners, exit } = process
process.listenerCount = function (event, ...more) {
  return listenerCount.call(this, event, ...more) + (event === 'SIGTERM' ? signals.listenerCount(event, ...more) : 0)
}
process.removeAllListeners = function (event) {
  if (event === undefined || event === 'SIGTERM') signals.removeAllListeners()
  if (event !== undefined && event !== 'SIGTERM') removeAllListeners.call(this, event)
  return this
}

// An app that ends the process by itself when it is told to leave ends it behind its last request.
let exitsWith
process.exit = function (code) {
  if (!worker.isLeaving || hasEnded) exit.call(process, code)
  exitsWith ??= { code }
}

// ---- from the join to the end ----

let serving // what join() was given
let hasEnded = false // the last request is served
let toldToLeave
export const whenLeaving = new Promise((resolve) => { toldToLeave = resolve })

// Joins, and from then on leaves on SIGTERM: after the server's ok no new request comes, and `isQuiet()`
// says when the last one is served. Without an ok there is no server left to close the connections, and
// `isIdle()` is enough. `close()` stops listening.
export async function join({ isQuiet, isIdle = isNothingOpen, close }) {
  serving = { isQuiet, isIdle, close }
  process.on('SIGTERM', onSigterm)
  process.on('uncaughtException', (error) => onUncaught('uncaughtException', error))
  process.on('unhandledRejection', (error, promise) => onUncaught('unhandledRejection', error, promise))
  const answer = await tell('join', {
    pid: process.pid, socket: socketPath, version: Number(env.RIP_VERSION),
    drains: true, streams: true, concurrency: MAX_AT_WORK,
  })
  if (!answer.ok) giveUp(`the server refused worker ${env.WORKER_ID}: ${answer.error ?? JSON.stringify(answer)}`)
}

function onSigterm(signal, number) {
  if (worker.isLeaving) return
  worker.isLeaving = true
  toldToLeave()
  for (const one of [...worker.atWork, ...worker.streams]) one.leave?.()
  const handlers = signals.listeners('SIGTERM')
  const returned = handlers.map((handler) => call(handler, signal, number))
  const isUnseen = handlers.some((_, i) => typeof returned[i]?.then !== 'function')
  const exits = handlers.some((handler) => /\bexit\b/.test(Function.prototype.toString.call(handler)))
  leave(returned, isUnseen && exits ? Infinity : isUnseen ? UNSEEN_WORK_MS : 0)
}

// What a handler of the app returns, or the promise of nothing where it throws.
function call(handler, ...args) {
  try {
    const returned = handler.apply(process, args)
    if (typeof returned?.then !== 'function') return returned
    return Promise.resolve(returned).catch((error) => console.error(error))
  } catch (error) {
    return Promise.resolve(console.error(error))
  }
}

async function leave(handlers, unseenMs) {
  const { ok } = await tell('quit')
  // On a timer, so that bytes that were sent before the ok are read first.
  await new Promise((resolve) => {
    const timer = setInterval(() => {
      if (!(ok ? serving.isQuiet() : serving.isIdle())) return
      clearInterval(timer)
      resolve()
    }, LEAVE_LOOK_MS)
  })
  hasEnded = true
  // A framework's own end: Fastify's onClose, Nest's and hapi's hooks.
  if (worker.app.shutdown) await call(worker.app.shutdown)
  if (exitsWith) exit.call(process, exitsWith.code)
  await Promise.all(handlers)
  if (!unseenMs && !listenerCount.call(process, 'beforeExit')) exit.call(process)
  // Nothing listens any more, so the process ends by itself when nothing is left to do, as it would
  // without a server. What the app never closes (a pool, a timer) does not keep it for ever.
  serving.close()
  let isOver = false
  const onBeforeExit = () => {
    if (isOver) exit.call(process) // what its handlers began has ended; asked again, they would begin again
    isOver = true
  }
  const endBusy = async () => {
    if (isOver) return
    process.off('beforeExit', onBeforeExit)
    const returned = process.listeners('beforeExit').map((handler) => call(handler, process.exitCode ?? 0))
    await Promise.all(returned)
    const isUnseen = returned.some((value) => typeof value?.then !== 'function')
    setTimeout(() => exit.call(process), isUnseen ? UNSEEN_WORK_MS : 0)
  }
  process.on('beforeExit', onBeforeExit)
  if (unseenMs !== Infinity) setTimeout(endBusy, Math.max(unseenMs, LEAVE_LOOK_MS)).unref()
}

// What nobody caught is the app's, if it has handlers of its own, as without a server. Else it belongs to
// the request under way, if there is just one: that is answered. Of several nobody knows whose it is. A fresh
// process takes over, as nobody knows what state this one is in.
function onUncaught(event, error, promise) {
  if (listenerCount.call(process, event) > 1) return
  if (event === 'unhandledRejection' && listenerCount.call(process, 'uncaughtException') > 1) {
    return process.emit('uncaughtException', error, event)
  }
  if (error?.name === 'AbortError') return console.error(error) // a wait that was given up breaks nothing
  const open = [...worker.atWork, ...worker.streams]
  if (open.length === 1) open[0].fail(error)
  else console.error(error)
  retire()
}
