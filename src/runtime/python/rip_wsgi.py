"""Serves a WSGI app (PEP 3333): blocking sockets and one thread, which is as quick as Python gets.

The main thread serves one connection, the server's. A second thread, the gate, holds the listener
and all other connections: a request that comes on one of them is handed to the main thread while
that is idle, and answered 503 while it is not. It sleeps as long as nothing like that happens.
"""

import io
import os
import select
import signal
import socket
import stat
import sys
import threading
import time
from collections import deque
from urllib.parse import unquote

from rip_worker import HOP_BY_HOP, Gone, host_and_port, last_hop

READ_BYTES = 65536
JOIN_BYTES = 65536  # up to here, copying head and body together costs less than another send
MAX_KNOWN_NAMES = 1000  # header names are the clients' to invent, so what is kept of them is bounded
GRACE_S = 0.002  # an answer's last byte is out a moment before the main thread is idle
ACCEPT_PAUSE_S = 0.05  # out of descriptors: one may come free

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n"
READY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


def serve(worker, app):
    WsgiServer(worker, app).run()


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.fd = sock.fileno()
        self.rest = b""  # what has come after the head
        self.gone = False

    def read_head(self):
        """The next request's head, without the empty line; None if the connection has ended."""
        data = self.sock.recv(READ_BYTES)
        while data:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                self.rest = data[end + 4 :]
                return data[:end].decode("latin-1")
            more = self.sock.recv(READ_BYTES)
            if not more:
                break
            data += more
        return None

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError as error:
            self.gone = True
            raise Gone(str(error)) from None

    def has_ended(self):
        try:
            return not self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


class Body(io.RawIOBase):
    """A request's body while it comes; io.BufferedReader makes wsgi.input of it."""

    def __init__(self, connection, length):
        self.connection = connection
        self.left = length

    def readable(self):
        return True

    def readinto(self, into):
        if not self.left:
            return 0
        connection = self.connection
        count = min(len(into), self.left)
        if connection.rest:
            count = min(count, len(connection.rest))
            into[:count] = connection.rest[:count]
            connection.rest = connection.rest[count:]
        else:
            try:
                count = connection.sock.recv_into(into, count)
            except OSError:
                count = 0
            if not count:
                connection.gone = True
                raise Gone("the request's body has ended early")
        self.left -= count
        return count

    def drain(self):
        scratch = memoryview(bytearray(min(self.left, READ_BYTES)))
        while self.left:
            self.readinto(scratch)


class FileWrapper:
    def __init__(self, filelike, blksize=READ_BYTES):
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self):
        return iter(lambda: self.filelike.read(self.blksize), b"")


class Answer:
    """One request's answer: the head waits for the body's first block, as PEP 3333 wants it."""

    def __init__(self, connection, method):
        self.connection = connection
        self.without_body = method == "HEAD"
        self.status = None
        self.headers = None
        self.head_sent = False
        self.chunked = False
        self.due = None  # what Content-Length still promises
        self.complete = False

    def start_response(self, status, headers, exc_info=None):
        if exc_info:
            try:
                if self.head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it would hold the frames in a circle
        elif self.status is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self.status, self.headers = status, headers
        return self.write

    def head(self, length):
        """The head's bytes; `length` is the body's, or None if that is not known yet."""
        status = self.status
        if status is None:
            raise AssertionError("the app has not called start_response")
        lines = ["HTTP/1.1 " + status]
        self.due = None
        for name, value in self.headers:
            lower = name.lower()
            if lower == "content-length":
                self.due = int(value)
            elif lower in HOP_BY_HOP:
                continue
            lines.append(name + ": " + value)
        if int(status[:3]) in (204, 304):
            self.without_body = True
        elif self.due is None and not (self.without_body and not length):
            if length is None:
                self.chunked = True
                lines.append("Transfer-Encoding: chunked")
            else:
                self.due = length
                lines.append("Content-Length: %d" % length)
        text = "\r\n".join(lines)
        if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
            raise ValueError("the status or a header has a line break in it: %r" % lines)
        return (text + "\r\n\r\n").encode("latin-1")

    def fitting(self, block):
        """The block as it is to be sent, counted against Content-Length."""
        if self.without_body:
            return b""
        if self.due is not None:
            if len(block) > self.due:
                raise AssertionError("the body is longer than its Content-Length")
            self.due -= len(block)
        return block

    def whole(self, body):
        """Head and body at once."""
        head = self.head(len(body))
        body = self.fitting(body)
        self.head_sent = True
        if len(body) <= JOIN_BYTES:
            self.connection.send(head + body)
        else:
            self.connection.send(head)
            self.connection.send(body)

    def write(self, block):
        """One block of the body: it leaves at once."""
        if not block:
            return
        if self.head_sent:
            # A stream may have no end: only here can it notice that nobody listens.
            if self.chunked and self.connection.has_ended():
                self.connection.gone = True
                raise Gone("the client has gone")
            head = b""
        else:
            head = self.head(None)
        block = self.fitting(block)
        if self.chunked:
            block = b"%x\r\n%b\r\n" % (len(block), block)
        self.head_sent = True
        if head or block:
            self.connection.send(head + block)

    def send_file(self, file):
        """Sends a real file from kernel to kernel; False if it is none."""
        if self.head_sent or not isinstance(file, (io.BufferedReader, io.BufferedRandom)):
            return False
        # Not whatever has a fileno(): a GzipFile's is that of the compressed file.
        if not isinstance(file.raw, io.FileIO) or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return False
        offset = file.tell()
        head = self.head(max(os.fstat(file.fileno()).st_size - offset, 0))
        self.head_sent = True
        self.connection.send(head)
        while self.due and not self.without_body:
            try:
                count = os.sendfile(self.connection.sock.fileno(), file.fileno(), offset, self.due)
            except OSError as error:
                self.connection.gone = True
                raise Gone(str(error)) from None
            if not count:
                break
            offset += count
            self.due -= count
        return True

    def end(self):
        if not self.head_sent:
            self.whole(b"")
        if self.chunked:
            self.connection.send(b"0\r\n\r\n")
        if self.due and not self.without_body:
            raise AssertionError("the body is %d bytes shorter than its Content-Length" % self.due)
        self.complete = True


class WsgiServer:
    def __init__(self, worker, app):
        self.worker = worker
        self.app = app
        self.connection = None  # the one that the main thread serves
        self.handed = deque()  # others that have a request, from the gate
        self.busy = False
        self.leaving = False
        self.quit_accepted = None
        self.known_names = {}
        self.wake_reader, self.wake_writer = socket.socketpair()
        self.wake_writer.setblocking(False)
        self.poller = select.epoll()
        self.poller.register(self.wake_reader, select.EPOLLIN)
        self.gate = Gate(self, worker.listen())
        self.base = {
            "SCRIPT_NAME": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "rip-server",
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,  # wsgi.input ends where the body does
        }

    def run(self):
        signal.signal(signal.SIGTERM, self.on_sigterm)
        self.gate.start()
        self.worker.join()
        wake_fd = self.wake_reader.fileno()
        while not self.done():
            for fd, _ in self.poller.poll():
                if fd == wake_fd:
                    self.woken()
                elif self.connection and fd == self.connection.fd:
                    self.serve(self.connection)

    def done(self):
        if self.connection or self.handed or self.gate.connections:
            return self.quit_accepted is False
        return self.leaving

    def on_sigterm(self, *_):
        self.leaving = True
        self.wake()

    def wake(self):
        try:
            self.wake_writer.send(b"!")
        except BlockingIOError:
            pass  # full of wakes already

    def woken(self):
        self.wake_reader.recv(READ_BYTES)
        if self.leaving and self.quit_accepted is None:
            self.quit_accepted = self.worker.quit()
        while self.handed:
            # The connection that was used last is the likeliest to be used next.
            last, self.connection = self.connection, self.handed.popleft()
            self.poller.register(self.connection.fd, select.EPOLLIN)
            if last:
                self.poller.unregister(last.fd)
                self.gate.hold(last)
            self.serve(self.connection)

    def serve(self, connection):
        self.busy = True
        try:
            keep = self.serve_one(connection)
        except (OSError, ValueError):
            keep = False  # gone, or not what the front end sends
        self.busy = False
        if keep:
            return
        connection.sock.close()
        self.connection = None
        # With the server gone, nobody will ever end this process.
        if not (self.handed or self.gate.connections or self.worker.server_lives()):
            self.leaving = True

    def serve_one(self, connection):
        """One request; False when the connection is to be closed."""
        head = connection.read_head()
        if head is None:
            return False
        environ = self.environ(head)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = None
        if length <= len(connection.rest):
            environ["wsgi.input"] = io.BytesIO(connection.rest)
        else:
            body = Body(connection, length)
            environ["wsgi.input"] = io.BufferedReader(body, READ_BYTES)
        if "HTTP_RIP_PROBE" in environ and environ["PATH_INFO"] == "/ready":
            connection.send(READY)
            keep = True
        else:
            keep = self.answer(connection, environ)
        if keep and body:
            body.drain()
        return keep

    def environ(self, head):
        lines = head.split("\r\n")
        method, target, _ = lines[0].split(" ")
        environ = self.base.copy()
        environ["REQUEST_METHOD"] = method
        environ["REQUEST_URI"] = target
        path, _, environ["QUERY_STRING"] = target.partition("?")
        environ["PATH_INFO"] = unquote(path, "latin-1") if "%" in path else path
        known = self.known_names
        for line in lines[1:]:
            name, _, value = line.partition(":")
            key = known.get(name) or self.environ_key(name)
            value = value.strip(" \t")
            if key in environ:
                value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
            environ[key] = value
        secure = environ.get("HTTP_X_FORWARDED_PROTO") == "https"
        environ["wsgi.url_scheme"] = "https" if secure else "http"
        environ["SERVER_NAME"], environ["SERVER_PORT"] = host_and_port(environ.get("HTTP_HOST", ""), secure)
        environ["REMOTE_ADDR"] = last_hop(environ.get("HTTP_X_FORWARDED_FOR", ""))
        return environ

    def environ_key(self, name):
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if len(self.known_names) < MAX_KNOWN_NAMES:
            self.known_names[name] = key
        return key

    def answer(self, connection, environ):
        """Lets the app answer; False when the connection is to be closed."""
        if self.worker.watches:
            changed = self.worker.changed_app()
            if changed:
                self.app = changed
                self.worker.swapped()
        answer = Answer(connection, environ["REQUEST_METHOD"])
        result = None
        try:
            try:
                result = self.app(environ, answer.start_response)
                kind = type(result)
                if (kind is list or kind is tuple) and not answer.head_sent:
                    answer.whole(b"".join(result))
                elif kind is not FileWrapper or not answer.send_file(result.filelike):
                    for block in result:
                        answer.write(block)
                        if answer.without_body and answer.head_sent:
                            break
                answer.end()
            finally:
                if hasattr(result, "close"):
                    result.close()
        except (Exception, SystemExit) as error:
            return self.failed(connection, environ, answer, error)
        return True

    def failed(self, connection, environ, answer, error):
        if connection.gone:
            return False
        method = environ["REQUEST_METHOD"]
        content_type, body = self.worker.error_answer(
            error,
            method,
            environ["REQUEST_URI"],
            environ.get("HTTP_X_REQUEST_ID", "-"),
            environ.get("HTTP_ACCEPT", ""),
        )
        if answer.head_sent:
            # Cut, unless it was the app's close() that failed: half an answer must not look whole.
            return answer.complete
        head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        connection.send((head % (content_type, len(body))).encode() + (b"" if method == "HEAD" else body))
        return True


class Gate(threading.Thread):
    """Holds the listener and every connection but the main thread's."""

    def __init__(self, server, listener):
        super().__init__(name="rip-gate", daemon=True)
        self.server = server
        self.listener = listener
        self.connections = {}
        self.poller = select.epoll()
        self.poller.register(listener, select.EPOLLIN)

    def hold(self, connection):
        self.connections[connection.fd] = connection
        self.poller.register(connection.fd, select.EPOLLIN)

    def run(self):
        while True:
            for fd, _ in self.poller.poll():
                if fd == self.listener.fileno():
                    self.accept()
                elif self.server_is_busy():
                    self.refuse(self.connections[fd])
                else:
                    self.poller.unregister(fd)
                    self.server.handed.append(self.connections[fd])
                    del self.connections[fd]
                    self.server.wake()

    def server_is_busy(self):
        if self.server.busy:
            time.sleep(GRACE_S)
        return self.server.busy

    def accept(self):
        try:
            self.hold(Connection(self.listener.accept()[0]))
        except OSError:
            time.sleep(ACCEPT_PAUSE_S)

    def refuse(self, connection):
        try:
            head = connection.read_head()
            if head is not None:
                connection.send(BUSY)
                length = int(self.server.environ(head).get("CONTENT_LENGTH") or 0)
                Body(connection, length).drain()
                return
        except (OSError, ValueError):
            pass
        del self.connections[connection.fd]
        connection.sock.close()
        self.server.wake()  # it may be waiting for the last connection's end
