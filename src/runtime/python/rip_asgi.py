"""Serves an ASGI 3 app over asyncio protocols (uvloop's where it is installed).

A request is an Exchange, or a WebSocket (rip_websocket.py), and `AsgiServer.active` while it runs:
whatever else comes meanwhile is answered 503 at once.
"""

import asyncio
import http
import signal
from urllib.parse import unquote_to_bytes

from rip_websocket import WebSocket
from rip_loading import accepts
from rip_worker import HOP_BY_HOP, Gone, host_and_port, last_hop, told

BODY_AHEAD_BYTES = 262144  # what is read of a body before the app asks for it
HOP_BY_HOP_BYTES = frozenset(name.encode() for name in HOP_BY_HOP)
# 2.3: with 2.4, Starlette's streams would notice a gone client only at their next send.
ASGI = {"version": "3.0", "spec_version": "2.3"}

STATUS_LINES = {status: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in http.HTTPStatus}
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n"
READY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
REFUSAL = b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n"


def serve(worker, app):
    try:
        import uvloop

        loop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(AsgiServer(worker, loop).run(app))
    loop.run_until_complete(loop.shutdown_asyncgens())


class AsgiServer:
    def __init__(self, worker, loop):
        self.worker = worker
        self.loop = loop
        self.app = None
        self.lifespan = None
        self.active = None  # the request under way
        self.connections = set()
        self.tasks = set()
        self.leaving = False
        self.quit_accepted = None
        self.finished = loop.create_future()

    async def run(self, app):
        self.app = as_single_callable(app)
        self.lifespan = Lifespan(self.worker, self.app)
        failure = await self.lifespan.startup()
        if failure:
            self.worker.fail("the app's startup failed: " + failure)
        listener = await self.loop.create_unix_server(lambda: Connection(self), sock=self.worker.listen())
        self.loop.add_signal_handler(signal.SIGTERM, self.on_sigterm)
        self.worker.join()
        await self.finished
        listener.close()
        # Background work of requests that have their answers.
        while self.tasks:
            await asyncio.wait(self.tasks)
        await self.lifespan.shutdown()

    def on_sigterm(self):
        self.leaving = True
        if self.quit_accepted is None:
            self.quit_accepted = self.worker.quit()
        self.finish_if_done()

    def finish_if_done(self):
        # Without a server that would close the connections, the request in hand is the last.
        waits = self.connections if self.quit_accepted else self.active
        if self.leaving and not waits and not self.finished.done():
            self.finished.set_result(None)

    def connection_ended(self, connection):
        self.connections.discard(connection)
        # With the server gone, nobody will ever end this process.
        if not self.connections and not self.leaving and not self.worker.server_lives():
            self.leaving = True
        self.finish_if_done()

    def begin(self, exchange):
        self.active = exchange
        changed = self.worker.changed_app() if self.worker.watches else None
        self.background(exchange.run() if changed is None else self.swap_and_run(changed, exchange))

    def answered(self, exchange):
        if self.active is exchange:
            self.active = None
            if self.leaving:
                self.finish_if_done()

    def background(self, work):
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def swap_and_run(self, changed, exchange):
        app = as_single_callable(changed)
        lifespan = Lifespan(self.worker, app)
        failure = await lifespan.startup()
        if failure:
            self.worker.say("the changed app's startup failed, the last good one goes on: " + failure)
        else:
            last, self.app, self.lifespan = self.lifespan, app, lifespan
            exchange.scope["state"] = lifespan.state.copy()
            self.worker.swapped()
            self.background(last.shutdown())
        await exchange.run()


def as_single_callable(app):
    """ASGI 2's `app(scope)(receive, send)` as ASGI 3."""
    if accepts(app, 3) or not accepts(app, 1):
        return app
    return lambda scope, receive, send: app(scope)(receive, send)


class Lifespan:
    def __init__(self, worker, app):
        self.worker = worker
        self.app = app
        self.state = {}
        self.inbox = asyncio.Queue()
        self.outbox = asyncio.Queue()
        self.task = None

    async def startup(self):
        """Why it failed, or None. An app that does not know about lifespans has none."""
        self.task = asyncio.ensure_future(self.run())
        answer = await self.ask("startup")
        return answer["message"] or "(no reason given)" if answer and answer["failed"] else None

    async def shutdown(self):
        answer = await self.ask("shutdown")
        if answer and answer["failed"]:
            self.worker.say("the app's shutdown failed: " + answer["message"])

    async def run(self):
        scope = {"type": "lifespan", "asgi": ASGI, "state": self.state}
        try:
            await self.app(scope, self.inbox.get, self.send)
        except (Exception, SystemExit):
            pass  # unsupported, or told by a message already

    async def send(self, message):
        failed = message["type"].endswith(".failed")
        self.outbox.put_nowait({"failed": failed, "message": message.get("message", "")})

    async def ask(self, what):
        """The app's answer, or None if its lifespan has ended without one."""
        if self.task.done():
            return None
        self.inbox.put_nowait({"type": "lifespan." + what})
        answer = asyncio.ensure_future(self.outbox.get())
        await asyncio.wait((answer, self.task), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        return self.outbox.get_nowait() if self.outbox.qsize() else None


class Connection(asyncio.Protocol):
    def __init__(self, server):
        self.server = server
        self.transport = None
        self.partial = b""  # a head that is not whole yet
        self.body_left = 0
        self.exchange = None
        self.socket = None  # after a 101, the WebSocket
        self.writable = None  # while the transport's buffer is full, a future

    def connection_made(self, transport):
        self.transport = transport
        self.server.connections.add(self)

    def eof_received(self):
        self.ended()

    def connection_lost(self, error):
        self.ended()
        self.server.connection_ended(self)

    def ended(self):
        self.resume_writing()
        if self.exchange:
            self.exchange.lost()

    def pause_writing(self):
        self.writable = self.server.loop.create_future()

    def resume_writing(self):
        writable, self.writable = self.writable, None
        if writable and not writable.done():
            writable.set_result(None)

    async def drained(self):
        await (asyncio.shield(self.writable) if self.writable else asyncio.sleep(0))

    def data_received(self, data):
        if self.socket:
            self.socket.feed(data)
        elif self.body_left:
            body, rest = data[: self.body_left], data[self.body_left :]
            self.body_left -= len(body)
            if self.exchange:
                self.exchange.feed(body)
            if rest:
                self.data_received(rest)
        else:
            if self.partial:
                data = self.partial + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.partial = data
            else:
                self.partial = b""
                self.request(data[:end], data[end + 4 :])

    def request(self, head, body):
        lines = head.split(b"\r\n")
        method, target, _ = lines[0].split(b" ")
        headers = []
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers.append((name.lower(), value.strip(b" \t")))
        fields = dict(headers)  # those that are read here come once
        self.body_left = int(fields.get(b"content-length", 0)) - len(body)
        if self.server.active:
            self.transport.write(BUSY)
            return
        if b"rip-probe" in fields and target == b"/ready":
            self.transport.write(READY)
            return
        path, _, query = target.partition(b"?")
        secure = fields.get(b"x-forwarded-proto") == b"https"
        host, port = host_and_port(fields.get(b"host", b"").decode("latin-1"), secure)
        client = last_hop(fields.get(b"x-forwarded-for", b"").decode("latin-1"))
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": "1.1",
            "method": method.decode("latin-1"),
            "scheme": "https" if secure else "http",
            "path": (unquote_to_bytes(path) if b"%" in path else path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": (client, 0) if client else None,
            "server": (host.strip("[]"), int(port)),
            "state": self.server.lifespan.state.copy(),
        }
        if fields.get(b"upgrade", b"").lower() == b"websocket":
            self.upgrade(scope, fields)
        else:
            self.exchange = Exchange(self, scope, body)
            self.server.begin(self.exchange)

    def upgrade(self, scope, fields):
        if fields.get(b"sec-websocket-version") != b"13":
            refusal = b"426 Upgrade Required\r\nSec-WebSocket-Version: 13"
        elif b"sec-websocket-key" not in fields:
            refusal = b"400 Bad Request"
        else:
            self.exchange = WebSocket(self, scope, fields)
            self.server.begin(self.exchange)
            return
        self.transport.write(REFUSAL % refusal)

    def failed(self, scope, error):
        """Reports an exception and answers 500."""
        fields = dict(scope["headers"])
        content_type, body = self.server.worker.error_answer(
            error,
            scope.get("method", "GET"),
            scope["raw_path"].decode("latin-1"),
            fields.get(b"x-request-id", b"-").decode("latin-1"),
            fields.get(b"accept", b"").decode("latin-1"),
        )
        head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        head = (head % (content_type, len(body))).encode()
        self.transport.write(head if scope.get("method") == "HEAD" else head + body)


class Exchange:
    """One HTTP request and its answer."""

    def __init__(self, connection, scope, body):
        self.connection = connection
        self.server = connection.server
        self.scope = scope
        self.body = body  # what the app has not asked for yet
        self.body_taken = False  # the app has had the last of it
        self.paused = False  # no more of it is read for now
        self.news = None  # an Event, once somebody waits in receive()
        self.gone = False
        self.lines = None  # the answer's head, until it is sent
        self.head_sent = False
        self.complete = False
        self.without_body = scope["method"] == "HEAD"
        self.chunked = False
        self.due = None  # what Content-Length still promises

    async def run(self):
        error = None
        try:
            await self.server.app(self.scope, self.receive, self.send)
        except (Exception, SystemExit, asyncio.CancelledError) as caught:
            error = caught
        connection, worker = self.connection, self.server.worker
        if self.complete:
            if error:
                worker.say("%s failed after its answer" % told(self.scope), error)
            return
        if not self.gone:
            if error is None:
                error = RuntimeError("the app returned before its answer was complete")
            connection.failed(self.scope, error) if not self.head_sent else self.cut(error)
        self.finish()

    def cut(self, error):
        # Half an answer must not look whole.
        self.server.worker.say("%s failed in its answer" % told(self.scope), error)
        self.connection.transport.close()

    def finish(self):
        self.complete = True
        if self.connection.exchange is self:
            self.connection.exchange = None
            self.read_on()
        self.wake()
        self.server.answered(self)

    def lost(self):
        self.gone = True
        self.wake()

    def wake(self):
        if self.news:
            self.news.set()

    def feed(self, body):
        self.body += body
        if len(self.body) > BODY_AHEAD_BYTES and not self.paused:
            self.paused = True
            self.connection.transport.pause_reading()
        self.wake()

    def read_on(self):
        if self.paused:
            self.paused = False
            self.connection.transport.resume_reading()

    async def receive(self):
        while not (self.gone or self.complete):
            more = self.connection.body_left > 0
            if self.body or not (more or self.body_taken):
                body, self.body = self.body, b""
                self.body_taken = not more
                self.read_on()
                return {"type": "http.request", "body": body, "more_body": more}
            if not self.news:
                self.news = asyncio.Event()
            self.news.clear()
            await self.news.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if self.gone:
            raise Gone("the client has gone")
        kind = message["type"]
        if kind == "http.response.body":
            body, more = message.get("body", b""), message.get("more_body", False)
            if self.lines is None or (self.complete and body and not self.without_body):
                raise RuntimeError("http.response.body came before the start, or after the end")
            if not self.complete:
                self.send_body(body, more)
            if more:
                # Also lets the loop notice that the client has gone, where the app never waits.
                await self.connection.drained()
        elif kind == "http.response.start":
            if self.lines is not None:
                raise RuntimeError("http.response.start came twice")
            self.start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError("unknown message: " + kind)

    def start(self, status, headers):
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        streams_events = False
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length":
                self.due = int(value)
            elif lower in HOP_BY_HOP_BYTES:
                continue
            elif lower == b"content-type":
                streams_events = value.startswith(b"text/event-stream")
            lines.append(b"%b: %b" % (name, value))
        if status in (204, 304):
            self.without_body = True
        self.lines = lines
        if streams_events:
            # Its first event may be long in coming, and the client waits for the head.
            self.send_body(b"", True)

    def send_body(self, body, more):
        data = b"" if self.head_sent else self.head(None if more else len(body))
        if self.without_body:
            body = b""
        elif self.due is not None:
            self.due -= len(body)
            if self.due < 0 or self.due and not more:
                raise RuntimeError("the body does not have the length that Content-Length says")
        elif self.chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        self.head_sent = True
        if data or body:
            self.connection.transport.write(data + body)
        # With the last byte that Content-Length promises: the next request may follow it at once.
        if self.without_body or not more or self.due == 0:
            self.finish()

    def head(self, length):
        lines = self.lines
        if self.due is None and not (self.without_body and not length):
            if length is None:
                self.chunked = True
                lines.append(b"Transfer-Encoding: chunked")
            else:
                self.due = length
                lines.append(b"Content-Length: %d" % length)
        data = b"\r\n".join(lines)
        breaks = len(lines) - 1
        if data.count(b"\n") != breaks or data.count(b"\r") != breaks or b"\0" in data:
            raise ValueError("a header has a line break in it: %r" % lines)
        return data + b"\r\n\r\n"
