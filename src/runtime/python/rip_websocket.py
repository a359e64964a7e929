"""The server's side of a WebSocket (RFC 6455), as ASGI's `websocket` scope."""

import asyncio
import base64
import hashlib
from collections import deque

from rip_head import BYTES
from rip_http import Answer
from rip_worker import Gone, told

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
QUEUED_BYTES = 262144  # what is read ahead of the app
EVENT_BYTES = 256  # what an event takes beside its message: a client may send millions of empty ones
PING_EVERY_S = 20  # the front end ends a tunnel that is quiet for a minute
CLOSE_TIMEOUT_S = 5  # for the client's half of the closing handshake
TELL_S = 5  # an app that has not asked for news by then is cancelled: it may be busy with the last message
LEAVE_TIMEOUT_S = 1  # the same when the worker leaves
MAX_REASON_BYTES = 123  # beside its code, in the 125 bytes of a control frame

OPCODES = CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PROTOCOL_ERROR, NO_CODE, NOT_UTF8, TOO_BIG, APP_FAILED, RESTART = 1002, 1005, 1007, 1009, 1011, 1012
ENDED_WITHOUT_CLOSE = 1006
ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


class WebSocket:
    def __init__(self, connection, scope, fields):
        self.connection = connection
        self.server = connection.server
        self.key = fields[b"sec-websocket-key"]
        offered = fields.get(b"sec-websocket-protocol", b"").decode("latin-1")
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["subprotocols"] = [name.strip() for name in offered.split(",") if name.strip()]
        scope["extensions"] = {"websocket.http.response": {}}
        del scope["method"]
        self.scope = scope
        self.task = None
        self.accepted = False
        self.denial = None  # an HTTP answer in place of the handshake
        self.is_told = False  # the app has had its websocket.disconnect
        self.cancelled = False
        self.closed = False  # a Close was sent, or the handshake refused, or the connection is gone
        self.disconnect = None  # the app's last message
        self.queue = deque([{"type": "websocket.connect"}])
        self.queued = EVENT_BYTES
        self.taken = 0  # messages, by the app
        self.news = asyncio.Event()
        self.buffer = bytearray()
        self.pinged = None  # the payload of a Ping, until the client takes what is written
        self.kind = None  # TEXT or BINARY while a message comes in fragments
        self.message = bytearray()

    async def run(self):
        try:
            await self.run_app()
        except BaseException:
            self.connection.transport.close()
            raise
        finally:
            self.connection.ended()
            self.server.answered(self)

    async def run_app(self):
        error = None
        try:
            await self.server.app(self.scope, self.receive, self.send)
        except BaseException as caught:
            error = caught
        if self.server.worker.is_child:
            self.server.worker.end_child(error)
        connection = self.connection
        is_news = error and not self.cancelled and not isinstance(error, Gone)
        if self.accepted:
            if is_news:
                self.server.worker.say("WebSocket %s failed" % told(self.scope), error)
            if not self.closed:
                self.close(APP_FAILED if error else 1000)
        elif self.denial and self.denial.head_sent:
            if not self.denial.complete:
                connection.transport.close()
            if is_news:
                self.server.worker.say("WebSocket %s failed in its refusal" % told(self.scope), error)
        elif not self.closed and not self.cancelled:
            connection.failed(self.scope, error or RuntimeError("the app neither accepted nor refused"))

    # The app's side

    async def receive(self):
        while not self.queue:
            if self.disconnect:
                self.is_told = True
                return self.disconnect
            self.news.clear()
            await self.news.wait()
        message = self.queue.popleft()
        self.queued -= size(message)
        self.taken += 1
        if self.queued <= QUEUED_BYTES:
            self.connection.resume_reading()
        return message

    async def send(self, message):
        kind = message["type"]
        if self.closed:
            raise Gone("the WebSocket is closed")
        if kind == "websocket.close":
            if self.accepted:
                code = message.get("code") or 1000
                if code != NO_CODE and not is_close_code(code):
                    raise ValueError("no Close has the code %r" % code)
                self.close(code, message.get("reason") or "")
            else:
                self.refused()
                self.connection.transport.write(REFUSED)
        elif kind == "websocket.accept" and not self.accepted and not self.denial:
            self.accept(message.get("subprotocol"), message.get("headers", ()))
        elif kind == "websocket.send" and self.accepted:
            text = message.get("text")
            if text is not None:
                self.write(TEXT, text.encode())
            else:
                self.write(BINARY, message["bytes"])
            await self.connection.drained()
        elif kind == "websocket.http.response.start" and not self.accepted and not self.denial:
            self.denial = Answer(self.connection)
            self.denial.start(message["status"], message.get("headers", ()))
        elif kind == "websocket.http.response.body" and self.denial and not self.denial.complete:
            more = message.get("more_body", False)
            self.denial.send_body(message.get("body", b""), more)
            if self.denial.complete:
                self.refused()
            await self.connection.drained()
        else:
            raise RuntimeError("%s at the wrong time" % kind)

    def refused(self):
        self.closed = True
        self.disconnect = disconnected(ENDED_WITHOUT_CLOSE)

    def accept(self, subprotocol, headers):
        proof = base64.b64encode(hashlib.sha1(self.key + ACCEPT_SUFFIX).digest())
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
        lines.append(b"Sec-WebSocket-Accept: " + proof)
        if subprotocol:
            lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode("latin-1"))
        for name, value in headers:
            BYTES.check_field_name(name)
            lines.append(b"%b: %b" % (name, value))
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
            raise ValueError("a header has a line break in it: %r" % lines)
        self.accepted = True
        self.connection.socket = self
        self.server.goes_on_beside(self)
        self.connection.transport.write(head + b"\r\n\r\n")
        self.server.loop.call_later(PING_EVERY_S, self.ping)
        if self.server.leaving:
            self.leave()

    # The end before the end

    def lost(self):
        """The client has ended its side, with a Close before or without."""
        self.closed = True
        self.disconnected(ENDED_WITHOUT_CLOSE)

    def left(self):
        """The client has gone, and what it had sent before is not read: an app that goes on taking it gets it all."""
        self.closed = True
        self.server.loop.call_later(TELL_S, self.cancel_unless_taken, self.taken)

    def cancel_unless_taken(self, before):
        if self.disconnect:
            return  # it is read
        if self.taken == before:
            self.cancel()
        else:
            self.left()

    def leave(self):
        """The worker ends: both sides are told at once."""
        if self.accepted and not self.closed:
            self.close(RESTART, "the server restarts", LEAVE_TIMEOUT_S)
            self.disconnected(RESTART)

    def disconnected(self, code, reason=""):
        """Tells the app."""
        self.disconnect = self.disconnect or disconnected(code, reason)
        self.news.set()
        self.server.cancel_unless_told(self, TELL_S)

    def cancel(self):
        if self.task and not (self.cancelled or self.task.done()):
            self.cancelled = True
            self.task.cancel()

    # The client's side

    def ping(self):
        if not self.closed:
            self.write(PING, b"")
            self.server.loop.call_later(PING_EVERY_S, self.ping)

    def answer_ping(self, payload):
        """Once the client takes what is written; of several Pings until then the last is answered."""
        is_first, self.pinged = self.pinged is None, payload
        if self.connection.writable is None:
            self.pong()
        elif is_first:
            self.connection.writable.add_done_callback(self.pong)

    def pong(self, _=None):
        payload, self.pinged = self.pinged, None
        if not self.closed:
            self.write(PONG, payload)

    def write(self, opcode, payload):
        length = len(payload)
        if length < 126:
            head = bytes((0x80 | opcode, length))
        elif length < 65536:
            head = bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big")
        self.connection.transport.write(head + payload)

    def close(self, code, reason="", timeout_s=CLOSE_TIMEOUT_S):
        """Sends our Close; the connection ends with the client's, or a little later."""
        payload = b"" if code == NO_CODE else code.to_bytes(2, "big") + cut_text(reason)
        self.write(CLOSE, payload)
        self.closed = True
        self.server.loop.call_later(timeout_s, self.connection.transport.close)

    def end(self, code, reason="", answer=None):
        """Answers the client's Close, or its error, and ends our side; the rest ends with the app's code."""
        if not self.closed:
            self.close(answer or code, reason)
        self.disconnected(code, reason)
        self.buffer.clear()
        if self.connection.exchange is self and self.connection.transport.can_write_eof():
            self.connection.transport.write_eof()
        else:
            self.connection.transport.close()

    def feed(self, data):
        if self.disconnect:
            return
        self.buffer += data
        while not self.disconnect and self.frame():
            pass

    def frame(self):
        """Takes one frame from the buffer; False if it is not whole."""
        buffer = self.buffer
        if len(buffer) < 2:
            return False
        final, opcode, length, at = buffer[0] & 0x80, buffer[0] & 0x0F, buffer[1] & 0x7F, 2
        if buffer[0] & 0x70 or not buffer[1] & 0x80:
            return self.end(PROTOCOL_ERROR, "a reserved bit, or no mask")
        if opcode not in OPCODES:
            return self.end(PROTOCOL_ERROR, "an unknown opcode")
        if opcode >= CLOSE and (length > 125 or not final):
            return self.end(PROTOCOL_ERROR, "a control frame is short and whole")
        if length > 125:
            at = 4 if length == 126 else 10
            if len(buffer) < at:
                return False
            length = int.from_bytes(buffer[2:at], "big")
        if len(self.message) + length > MAX_MESSAGE_BYTES:
            return self.end(TOO_BIG, "a message has at most %d bytes" % MAX_MESSAGE_BYTES)
        if len(buffer) < at + 4 + length:
            return False
        payload = unmask(buffer[at + 4 : at + 4 + length], buffer[at : at + 4])
        del buffer[: at + 4 + length]
        if opcode == CLOSE:
            self.client_closes(payload)
        elif opcode == PING:
            self.answer_ping(payload)
        elif opcode != PONG:
            self.fragment(opcode, final, payload)
        return True

    def fragment(self, opcode, final, payload):
        if (opcode == CONTINUATION) != (self.kind is not None):
            return self.end(PROTOCOL_ERROR, "fragments out of order")
        if opcode != CONTINUATION:
            self.kind = opcode
        self.message += payload
        if not final:
            return
        kind, message = self.kind, bytes(self.message)
        self.kind, self.message = None, bytearray()
        if kind == TEXT:
            try:
                message = message.decode()
            except UnicodeDecodeError:
                return self.end(NOT_UTF8)
        event = {"type": "websocket.receive", "text" if kind == TEXT else "bytes": message}
        self.queue.append(event)
        self.queued += size(event)
        if self.queued > QUEUED_BYTES:
            self.connection.pause_reading()
        self.news.set()

    def client_closes(self, payload):
        code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else NO_CODE
        try:
            reason = payload[2:].decode()
        except UnicodeDecodeError:
            return self.end(NOT_UTF8)
        if len(payload) == 1 or payload and not is_close_code(code):
            return self.end(PROTOCOL_ERROR, "not a close code")
        self.end(code, reason, answer=code)


def is_close_code(code):
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def cut_text(reason):
    """As much of it as a Close has room for, and no half of a character."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()


def unmask(payload, mask):
    # As one big number: the quickest XOR that Python has.
    length = len(payload)
    mask = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(length, "little")


def size(message):
    return len(message.get("text") or message.get("bytes") or "") + EVENT_BYTES


def disconnected(code, reason=""):
    return {"type": "websocket.disconnect", "code": code, "reason": reason}
