"""HTTP/1.1 between the server and an ASGI app: a connection, a request's exchange, its answer."""

import asyncio
import http
from urllib.parse import unquote_to_bytes

from rip_head import BYTES, MAX_HEAD_BYTES, MAX_KNOWN_NAMES, BadRequest, body_bytes, check_controls
from rip_worker import (
    BAD_REQUEST,
    BUSY,
    FINAL_STATUSES,
    HOP_BY_HOP,
    READY,
    Gone,
    has_half_closed,
    host_and_port,
    jobs_in_threads,
    told,
)

BODY_AHEAD_BYTES = 262144  # what is read of a body before the app asks for it
TELL_S = 0.05  # an event stream that has not asked for news of its client by then is cancelled
LOOK_EVERY_S = 0.02  # whether a thread of a cancelled request is still at work
WATCH_EVERY_S = 0.1  # whether a client has left whose body is not read
TIMEOUT_SLACK_S = 0.1  # the server's clock began a moment earlier, and its word comes a moment later
HOP_BY_HOP_BYTES = frozenset(name.encode() for name in HOP_BY_HOP)
# 2.3: with 2.4, Starlette's streams would notice a gone client only at their next send.
ASGI = {"version": "3.0", "spec_version": "2.3"}

STATUS_LINES = {status: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in http.HTTPStatus}
REFUSAL = b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n"

known_names = {}  # of fields, in lower case


class Connection(asyncio.Protocol):
    def __init__(self, server):
        self.server = server
        self.transport = None
        self.partial = b""  # a head that is not whole yet
        self.body_left = 0
        self.exchange = None
        self.socket = None  # after a 101, the WebSocket
        self.writable = None  # while the transport's buffer is full, a future
        self.has_ended = False  # the server's side: nobody waits for the answer
        self.is_read_out = False  # to that end
        self.paused = False  # no more is read for now
        self.watch = None  # a timer, while that may hide the end
        self.is_last = False  # nothing more is read: the connection ends with the exchange

    def connection_made(self, transport):
        self.transport = transport
        self.server.connections.add(self)

    def eof_received(self):
        """The server's half-close; our half stays open until the handler has ended."""
        self.has_ended = self.is_read_out = True
        self.resume_writing()
        if self.exchange is None:
            return False
        self.exchange.lost()
        return True

    def connection_lost(self, error):
        self.resume_writing()
        if not self.is_read_out and self.exchange:
            self.has_ended = self.is_read_out = True
            self.exchange.lost()
        if self.watch:
            self.watch.cancel()
        self.server.connection_ended(self)

    def pause_reading(self):
        if not (self.paused or self.transport.is_closing()):
            self.paused = True
            self.transport.pause_reading()
            self.watch = self.watch or self.server.loop.call_later(WATCH_EVERY_S, self.look_for_end)

    def resume_reading(self):
        if self.paused:
            self.paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def look_for_end(self):
        """Where nothing is read, the end behind it does not come by itself."""
        self.watch = None
        if not self.paused or self.has_ended or self.exchange is None or self.transport.is_closing():
            return
        if has_half_closed(self.transport.get_extra_info("socket").fileno()):
            self.has_ended = True
            self.resume_writing()
            self.exchange.left()
        else:
            self.watch = self.server.loop.call_later(WATCH_EVERY_S, self.look_for_end)

    def pause_writing(self):
        self.writable = self.server.loop.create_future()

    def resume_writing(self):
        writable, self.writable = self.writable, None
        if writable and not writable.done():
            writable.set_result(None)

    async def drained(self):
        await (asyncio.shield(self.writable) if self.writable else asyncio.sleep(0))

    def ended(self):
        """The exchange is over."""
        self.exchange = None
        if self.has_ended or self.is_last:
            self.transport.close()

    def data_received(self, data):
        if self.socket:
            self.socket.feed(data)
        elif self.is_last:
            return
        elif self.body_left:
            body, rest = data[: self.body_left], data[self.body_left :]
            self.body_left -= len(body)
            if self.exchange:
                self.exchange.feed(body)
            if rest:
                self.data_received(rest)
        elif self.exchange:
            self.end_with_exchange()
        else:
            searched = 0
            if self.partial:
                searched = max(len(self.partial) - 3, 0)
                data = self.partial + data
            end = data.find(b"\r\n\r\n", searched)
            try:
                if end >= 0:
                    self.partial = b""
                    self.request(data[:end], data[end + 4 :])
                elif len(data) > MAX_HEAD_BYTES:
                    raise BadRequest
                else:
                    self.partial = data
            except ValueError:
                # What the front end would not send. Nobody can tell where the next request begins.
                self.is_last = True
                self.transport.write(BAD_REQUEST)
                self.transport.close()

    def end_with_exchange(self):
        """More has come than a request, before its answer: the front end would not send it."""
        self.is_last = True
        if self.exchange is None:
            self.transport.close()

    def request(self, head, body):
        lines = head.split(b"\r\n")
        check_controls(head, lines)
        method, target = BYTES.method_and_target(lines[0])
        headers = []
        for line in lines[1:]:
            name, value = line.split(b":", 1)
            headers.append((known_names.get(name) or lower_name(name), value.strip(b" \t")))
        fields = dict(headers)  # those that are read here come once
        if b"transfer-encoding" in fields or len(fields) < len(headers) and has_two_lengths(headers):
            raise BadRequest
        length = body_bytes(fields.get(b"content-length", b"0"))
        self.body_left = max(length - len(body), 0)
        self.answer(method, target, headers, fields, body[:length])
        if length < len(body):
            self.end_with_exchange()

    def answer(self, method, target, headers, fields, body):
        if b"rip-probe" in fields and target == b"/ready":
            is_ok = fields[b"rip-probe"] == b"1" or self.server.is_idle(fields.get(b"x-request-id"))
            self.transport.write(READY if is_ok else BUSY)
            return
        if not self.server.has_place():
            self.transport.write(BUSY)
            return
        path, _, query = target.partition(b"?")
        secure = fields.get(b"x-forwarded-proto") == b"https"
        host, port = host_and_port(fields.get(b"host", b"").decode("latin-1"), secure)
        client = fields.get(b"rip-client")
        if client is None:
            client = fields.get(b"x-forwarded-for", b"")
        else:
            headers = [field for field in headers if field[0] != b"rip-client"]
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
            "client": (client.decode("latin-1"), 0) if client else None,
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
            self.exchange = self.server.new_websocket(self, scope, fields)
            self.server.begin(self.exchange)
            return
        self.transport.write(REFUSAL % refusal)

    def failed(self, scope, error):
        """Reports an exception and answers 500."""
        fields = dict(scope["headers"])
        answer = self.server.worker.error_answer(
            error,
            scope.get("method", "GET"),
            scope["raw_path"].decode("latin-1"),
            fields.get(b"x-request-id", b"-").decode("latin-1"),
            fields.get(b"accept", b"").decode("latin-1"),
        )
        self.transport.write(answer)


def lower_name(name):
    BYTES.check_name(name)
    lower = name.lower()
    if len(known_names) < MAX_KNOWN_NAMES:
        known_names[name] = lower
    return lower


def has_two_lengths(headers):
    return sum(name == b"content-length" for name, _ in headers) > 1


class Answer:
    """An answer as the app sends it. What is not said of one stands here, which is quicker than to say it of each."""

    lines = None  # the answer's head, until it is sent
    head_sent = False
    complete = False
    without_body = False
    chunked = False
    streams_events = False
    due = None  # what Content-Length still promises

    def __init__(self, connection):
        self.connection = connection

    def finish(self):
        self.complete = True

    def start(self, status, headers):
        if status not in FINAL_STATUSES:
            raise ValueError("%r is no status of a final answer" % status)
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        for name, value in headers:
            BYTES.check_field_name(name)
            lower = name.lower()
            if lower == b"content-length":
                self.due = int(value)
            elif lower in HOP_BY_HOP_BYTES:
                continue
            elif lower == b"content-type":
                self.streams_events = value[:17].lower() == b"text/event-stream"
            lines.append(b"%b: %b" % (name, value))
        if status in (204, 304):
            self.without_body = True
        self.lines = lines
        if self.streams_events:
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
        data += body  # fails where the body is no bytes, before anything is sent
        self.head_sent = True
        if data:
            self.connection.transport.write(data)
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


class Exchange(Answer):
    """One HTTP request and its answer."""

    task = None
    body_taken = False  # the app has had the last of it
    news = None  # an Event, once somebody waits in receive()
    gone = False  # nobody waits for the answer
    leaving = False  # the worker ends: the app is told to end its stream
    is_told = False  # the app has had its http.disconnect
    cancelled = False
    jobs = frozenset()  # what threads were at work on when it was cancelled

    def __init__(self, connection, scope, body):
        self.connection = connection
        self.server = connection.server
        self.scope = scope
        self.body = body  # what the app has not asked for yet
        self.threads_before = frozenset(self.server.threads.at_work) if self.server.threads.at_work else ()
        self.moved = self.server.loop.time()  # when the request came, or the last of the answer went
        if scope["method"] == "HEAD":
            self.without_body = True

    async def run(self):
        try:
            await self.run_app()
        finally:
            if not self.complete:
                # Whatever has failed here: it must not keep its place, nor look whole.
                self.connection.transport.close()
                self.finish()

    async def run_app(self):
        error = None
        try:
            await self.server.app(self.scope, self.receive, self.send)
        except BaseException as caught:
            error = caught
        if self.server.worker.is_child:
            self.server.worker.end_child(error)
        if self.cancelled:
            # Threads that the handler has waited for go on.
            for future in self.server.threads.at_work.difference(self.threads_before):
                await asyncio.wait([asyncio.wrap_future(future)])
            while not self.jobs.isdisjoint(jobs_in_threads()):
                await asyncio.sleep(LOOK_EVERY_S)
        if self.complete:
            if error:
                self.server.worker.say("%s failed after its answer" % told(self.scope), error)
            return
        # An app that is told of its client's end may leave it at that.
        expected = self.cancelled or isinstance(error, Gone) or self.gone and error is None
        if self.leaving and self.chunked and not self.gone and (expected or error is None):
            self.send_body(b"", False)  # the stream ends in good order
            self.connection.transport.close()
            return
        if not self.head_sent and not expected:
            self.connection.failed(self.scope, error or unfinished())
        elif not self.gone:
            self.cut(error or unfinished())
        elif error and not expected:
            self.server.worker.say("%s failed; its client had gone" % told(self.scope), error)
        self.finish()

    def cut(self, error):
        # Half an answer must not look whole.
        self.server.worker.say("%s failed in its answer" % told(self.scope), error)
        self.connection.transport.close()

    def finish(self):
        self.complete = True
        connection = self.connection
        if connection.exchange is self:
            connection.resume_reading()
            connection.ended()
        if self.news:
            self.news.set()
        self.server.answered(self)

    # The end before the end

    def lost(self):
        """Nobody waits for the answer: the app is told. Only of some is it the end."""
        was_gone, self.gone = self.gone, True
        self.wake()
        if was_gone:
            return
        if self.is_overdue() or self.streams_events and self.head_sent:
            self.server.cancel_unless_told(self, TELL_S)

    left = lost  # seen before what had been sent was read

    def is_overdue(self):
        """Whether it is for its read timeout that the server waits no longer."""
        limit = self.server.worker.read_timeout_s
        return limit and self.server.loop.time() - self.moved >= limit - TIMEOUT_SLACK_S

    def leave(self):
        """The worker ends: the event stream of a GET is told, all else is finished."""
        is_stream = self.streams_events and self.scope["method"] == "GET"
        if is_stream and self.head_sent and not self.complete:
            self.leaving = True
            self.wake()
            self.server.cancel_unless_told(self, TELL_S)

    def cancel(self):
        # Once: a second one would end the wait for what the first one has left at work.
        if self.task and not (self.cancelled or self.task.done() or self.complete):
            self.cancelled = True
            self.jobs = jobs_in_threads()
            if not self.streams_events:
                self.server.worker.say("%s is cancelled: its time is up" % told(self.scope))
            self.task.cancel()

    # The app's side

    def wake(self):
        if self.news:
            self.news.set()

    def feed(self, body):
        self.body += body
        if len(self.body) > BODY_AHEAD_BYTES:
            self.connection.pause_reading()
        self.wake()

    async def receive(self):
        while not self.complete:
            more = self.connection.body_left > 0
            if self.body or not (more or self.body_taken):
                body, self.body = self.body, b""
                self.body_taken = not more
                self.connection.resume_reading()
                return {"type": "http.request", "body": body, "more_body": more}
            # Who reads its body gets it, though nobody waits for the answer any more.
            if self.gone and (self.connection.is_read_out or not more) or self.leaving:
                break
            if not self.news:
                self.news = asyncio.Event()
            self.news.clear()
            await self.news.wait()
        self.is_told = True
        return {"type": "http.disconnect"}

    async def send(self, message):
        kind = message["type"]
        if kind == "http.response.body":
            body, more = message.get("body", b""), message.get("more_body", False)
            if self.lines is None or (self.complete and body and not self.without_body):
                raise RuntimeError("http.response.body came before the start, or after the end")
            if self.gone and self.head_sent and more:
                raise Gone("the client has gone")
            if not self.complete:
                self.send_body(body, more)
            if more:
                self.moved = self.server.loop.time()
                # Also lets the loop notice that the client has gone, where the app never waits.
                await self.connection.drained()
        elif kind == "http.response.start":
            if self.lines is not None:
                raise RuntimeError("http.response.start came twice")
            self.start(message["status"], message.get("headers", ()))
            if self.streams_events and self.scope["method"] == "GET":
                self.server.goes_on_beside(self)
        else:
            raise RuntimeError("unknown message: " + kind)


def unfinished():
    return RuntimeError("the app returned before its answer was complete")
