// A request's body, between the socket and whoever reads it.
const NONE = Buffer.alloc(0)
const BODY_AHEAD = 64 * 1024 // bytes held for a handler that does not read yet

export class Body {
  #held = []
  #size = 0
  #stream; #sink; #error; #whole
  #wanted = true
  #hurry = false // hold nothing back
  constructor(socket, length) {
    this.socket = socket
    this.left = length
  }

  take(bytes) {
    this.left -= bytes.length
    if (!this.#wanted) return
    this.#size += bytes.length
    if (this.#sink) this.#sink.enqueue(plain(bytes))
    else this.#held.push(bytes)
    if (!this.left) {
      this.#sink?.close()
      this.#whole?.resolve(Buffer.concat(this.#held))
    } else if (!this.#hurry && (this.#sink ? this.#sink.desiredSize <= 0 : this.#size >= BODY_AHEAD)) {
      this.socket.pause()
    }
  }

  whole() {
    if (this.#error) throw this.#error
    if (!this.left) return Buffer.concat(this.#held)
    this.#hurry = true
    this.socket.resume()
    return new Promise((resolve, reject) => { this.#whole = { resolve, reject } })
  }

  // Bytes, if all are here, else a stream.
  open() {
    if (!this.left && !this.#error) return Buffer.concat(this.#held)
    return this.#stream = new ReadableStream({
      start: (sink) => {
        if (this.#error) return sink.error(this.#error)
        for (const bytes of this.#held) sink.enqueue(plain(bytes))
        this.#sink = sink
      },
      pull: () => { this.socket.resume() },
      cancel: () => this.drop(),
    }, new ByteLengthQueuingStrategy({ highWaterMark: BODY_AHEAD }))
  }

  // The answer is out. What nobody is reading is thrown away, and who comes for it later is told so: what is held
  // would look like all of it.
  finish() {
    this.#hurry = true
    if (this.#stream?.locked || this.#whole) this.socket.resume()
    else this.drop()
  }

  drop() {
    if (this.left) this.fail(new DOMException('The body was thrown away: the answer ended before it was read', 'AbortError'))
    this.socket.resume()
  }

  fail(error) {
    if (!this.left) return
    this.#error ??= error
    if (this.#wanted) this.#sink?.error(error)
    this.#whole?.reject(error)
    this.#wanted = false
    this.#held = []
  }
}

const plain = (buffer) => new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.length)
