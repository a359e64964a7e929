// What becomes of an exception.
import { inspect } from 'node:util'

const { env } = process
export const isDevelopment = ['', 'dev', 'development'].includes(env.NODE_ENV ?? '')

// Prints the trace under the request's id; returns the body of the 500 and its content type. Only
// where NODE_ENV says development in so many words does the client see more than that.
export function failure(error, method, url, header) {
  const path = url.replace(/^https?:\/\/[^/]*|\?.*$/gs, '')
  console.error(`[${header('x-request-id') ?? '-'}] ${method} ${path}:`, error)
  if (env.NODE_ENV !== 'development' && env.NODE_ENV !== 'dev') return ['Internal Server Error\n', 'text/plain']
  const text = inspect(error)
  if (!header('accept')?.includes('text/html')) return [text + '\n', 'text/plain; charset=utf-8']
  return [page(`<h1>500</h1><pre>${escaped(text)}</pre>`), 'text/html; charset=utf-8']
}

const escaped = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt()};`)
const page = (body) => `<!doctype html><meta charset="utf-8"><title>500</title>${body}\n`

export const takesHtml = (request) => Boolean(request.headers.get('accept')?.includes('text/html'))

// A compiler of pages, such as the Rip language's, has its own word for a person: as a page for who takes
// HTML. Returns a handler, or undefined for any other error.
export function compilerAnswer(error) {
  if (typeof error?.formatHTML !== 'function') return
  return (request) => {
    const isHtml = takesHtml(request)
    const text = typeof error.format === 'function' ? error.format({ color: false }) : String(error.message)
    const body = isHtml ? page(error.formatHTML()) : `${text}\n`
    return new Response(body, { status: 500, headers: { 'Content-Type': `text/${isHtml ? 'html' : 'plain'}; charset=utf-8` } })
  }
}

export function notAResponse(value) {
  return new TypeError(`the handler returned ${inspect(value, { depth: 0 })}, which is no Response`)
}

// The client is gone and the handler said no more than that: nobody needs to read it.
export const isAbort = (error) => error?.name === 'AbortError' || error?.code === 'ERR_STREAM_PREMATURE_CLOSE'
