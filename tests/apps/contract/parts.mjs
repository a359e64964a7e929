// What the contract suite's two apps in JavaScript share.
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

export const touch = (dir, name, text = '') => writeFileSync(`${dir}/${name}`, text)
export const isThere = (dir, name = 'go') => existsSync(`${dir}/${name}`)
export { sleep }

export async function waitFor(dir, name = 'go') {
  while (!isThere(dir, name)) await sleep(5)
}

process.on('SIGTERM', async () => {
  await sleep(150)
  touch(process.env.CONTRACT_DIR, 'hook')
})

export async function sha(pieces) {
  const sum = createHash('sha256')
  let length = 0
  for await (const piece of pieces) {
    sum.update(piece)
    length += piece.length
  }
  return `${length} ${sum.digest('hex')}`
}

export async function part(pieces) {
  for await (const piece of pieces) return piece
}

export function fail(kind) {
  switch (kind) {
    case 'string': throw 'told to fail'
    case 'null': throw null
    case 'undefined': throw undefined
    case 'object': throw { told: 'to fail' }
    case 'kill': return process.kill(process.pid, 'SIGKILL')
    default: throw new Error('told to fail')
  }
}

export function* pieces(path) {
  const bytes = readFileSync(path)
  for (let at = 0; at < bytes.length; at += 65536) yield bytes.subarray(at, at + 65536)
}

export function environment() {
  const lines = Object.entries(process.env).map(([name, value]) => `${name}=${value}`)
  return [`cwd=${process.cwd()}`, ...lines].join('\n')
}
