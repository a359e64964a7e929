"""Serves a WSGI app (PEP 3333): blocking sockets and one thread, which is as quick as Python gets.

The main thread serves one connection, the server's. A second thread, the gate, holds the listener
and all other connections: a request that comes on one of them is handed to the main thread while
that is idle, and answered 503 while it is not. It sleeps as long as nothing like that happens.
"""

import io
import signal
import sys
from collections import deque
from urllib.parse import unquote

# By their own names: gevent and eventlet replace what the modules have.
from _thread import allocate_lock, start_new_thread
from os import O_CLOEXEC, O_NONBLOCK, pipe2, read, write
from select import EPOLLIN, epoll
from socket import AF_UNIX, SOCK_STREAM, socket
from time import sleep

from rip_answer import Answer, Body, FileWrapper, Leaving, READ_BYTES
from rip_head import MAX_HEAD_BYTES, MAX_KNOWN_NAMES, TEXT, BadRequest, body_bytes, check_controls
from rip_worker import BAD_REQUEST, BUSY, READY, Gone, has_half_closed, host_and_port

PARTIAL = b""  # a head that has not come whole yet
GRACE_S = 0.002  # an answer's last byte is out a moment before the main thread is idle
ACCEPT_PAUSE_S = 0.05  # out of descriptors: one may come free
WAKE = b"\0"  # in the wake pipe; signals write their numbers


def serve(worker, app):
    WsgiServer(worker, app).run()


class Connection:
    request_id = None  # of the request at work, where it has to be known

    def __init__(self, sock):
        self.sock = sock
        self.fd = sock.fileno()
        self.rest = b""  # what has come after the head
        self.partial = PARTIAL
        self.unread_bytes = 0  # of a body that nobody wanted, still to come
        self.gone = False
        self.writing = allocate_lock()  # threads of the app's may write as well

    def read_head(self):
        """The next request's head, without the empty line; None if the connection has ended.

        Reads once, when there is something to read: who says nothing more keeps nobody waiting.
        """
        data = self.sock.recv(READ_BYTES)
        if not data:
            return None
        if self.unread_bytes:
            count = min(self.unread_bytes, len(data))
            self.unread_bytes -= count
            data = data[count:]
        searched = 0
        if self.partial:
            searched = max(len(self.partial) - 3, 0)
            data = self.partial + data
        end = data.find(b"\r\n\r\n", searched)
        if end < 0:
            self.partial = data
            if len(data) > MAX_HEAD_BYTES:
                raise BadRequest
            return PARTIAL
        if not end:
            raise BadRequest
        self.partial = PARTIAL
        self.rest = data[end + 4 :]
        return data[:end]

    def skip_body(self, length):
        """Lets a body pass of which nothing was read; False when more than that has come."""
        self.unread_bytes = length - len(self.rest)
        return self.unread_bytes >= 0

    def refuse(self):
        """Answers what the front end would not send. Nobody can tell where the next request begins."""
        try:
            self.send(BAD_REQUEST)
        except Gone:
            pass
        return False

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError as error:
            self.gone = True
            raise Gone(str(error)) from None

    def has_ended(self):
        return has_half_closed(self.fd)


class WsgiServer:
    multithread = False

    def __init__(self, worker, app):
        self.worker = worker
        self.app = app
        self.connection = None  # the one that the main thread serves
        self.handed = deque()  # others that have a request, from the gate
        self.busy = False  # from before an answer's last byte is sent: who asks then waits, and is not refused
        self.leaving = False
        self.quit_accepted = None
        self.known_names = {}
        self.wake_reader, self.wake_writer = pipe2(O_CLOEXEC | O_NONBLOCK)
        self.poller = epoll()
        self.poller.register(self.wake_reader, EPOLLIN)
        self.open(worker.listen())
        worker.descriptors = self.descriptors
        self.base = {
            "SCRIPT_NAME": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "rip-server",
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": self.multithread,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,  # wsgi.input ends where the body does
        }

    def open(self, listener):
        self.wait = waiter(self.poller)
        self.gate = Gate(self, listener)

    def run(self):
        self.apps_sigterm = self.worker.apps_sigterm()
        signal.signal(signal.SIGTERM, self.on_sigterm)
        # Wakes the loop even if the app puts a handler of its own in place of ours.
        signal.set_wakeup_fd(self.wake_writer, warn_on_full_buffer=False)
        self.gate.start()
        self.worker.join(streams=False, concurrency=1)
        while not self.done():
            try:
                for fd, _ in self.wait():
                    if fd == self.wake_reader:
                        self.woken()
                    elif self.connection and fd == self.connection.fd:
                        self.serve(self.connection)
            except SystemExit:
                self.leaving = True  # a signal's handler of the app's own
                self.wake()

    def descriptors(self):
        held = [self.gate.listener.fileno(), *self.gate.connections]
        held += [connection.fd for connection in self.handed]
        return held + [self.connection.fd] if self.connection else held

    def done(self):
        if self.quit_accepted and (self.connection or self.handed or self.gate.connections):
            return False  # the server closes them
        return self.quit_accepted is not None

    def on_sigterm(self, number, frame):
        self.leaving = True
        self.wake()
        handler, self.apps_sigterm = self.apps_sigterm, None
        if handler:
            try:
                handler(number, frame)
            except SystemExit:
                pass  # the request in hand is finished first
            except BaseException as error:
                self.worker.say("the app's handler of SIGTERM failed", error)

    def wake(self):
        try:
            write(self.wake_writer, WAKE)
        except BlockingIOError:
            pass  # full of wakes already

    def woken(self):
        if signal.SIGTERM in read(self.wake_reader, READ_BYTES):
            self.leaving = True
        if self.leaving and self.quit_accepted is None:
            self.quit_accepted = self.worker.quit()
        while self.handed:
            # The connection that was used last is the likeliest to be used next.
            last, self.connection = self.connection, self.handed.popleft()
            self.poller.register(self.connection.fd, EPOLLIN)
            if last:
                self.poller.unregister(last.fd)
                self.gate.hold(last)
            self.serve(self.connection)

    def serve(self, connection):
        try:
            keep = self.serve_one(connection)
        except BadRequest:
            keep = connection.refuse()
        except OSError:
            keep = False  # gone
        except Exception as error:
            self.worker.say("a request has failed in the harness", error)
            keep = False
        self.busy = False
        if keep:
            return
        connection.sock.close()
        self.connection = None
        # With the server gone, nobody will ever end this process.
        if not (self.handed or self.gate.connections or self.worker.server_lives()):
            self.leaving = True
            self.wake()

    def serve_one(self, connection):
        """One request; False when the connection is to be closed."""
        head = connection.read_head()
        if not head:
            return head is PARTIAL
        self.busy = True  # not before: the end of a connection is no request that another has to give way to
        environ, length = self.environ(head)
        body = None
        if length <= len(connection.rest):
            environ["wsgi.input"] = io.BytesIO(connection.rest[:length])
        else:
            body = Body(connection, length)
            environ["wsgi.input"] = io.BufferedReader(body, READ_BYTES)
        probed = self.probed(environ) if "HTTP_RIP_PROBE" in environ else None
        try:
            if probed:
                connection.send(probed)
                keep = True
            else:
                keep = self.answer(connection, environ)
        finally:
            if body:
                connection.unread_bytes = body.detach()
        if body:
            return keep
        # What came behind the request came before its answer.
        return keep and length == len(connection.rest)

    def probed(self, environ):
        """The answer to the server's probe, if it is one; here to both kinds: no handler runs."""
        return READY if environ["PATH_INFO"] == "/ready" else None

    def environ(self, head):
        """The head's environ, and the body's length."""
        lines = head.decode("latin-1").split("\r\n")
        check_controls(head, lines)
        method, target = TEXT.method_and_target(lines[0])
        environ = self.base.copy()
        environ["REQUEST_METHOD"] = method
        environ["REQUEST_URI"] = target
        # `OPTIONS *` is about the server: it has no path.
        path, _, environ["QUERY_STRING"] = ("" if target == "*" else target).partition("?")
        environ["PATH_INFO"] = unquote(path, "latin-1") if "%" in path else path
        known = self.known_names
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            key = known.get(name) or self.environ_key(name)
            if not colon:
                raise BadRequest
            value = value.strip(" \t")
            if key in environ:
                value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
            environ[key] = value
        if "HTTP_TRANSFER_ENCODING" in environ:
            raise BadRequest
        length = environ.get("CONTENT_LENGTH")
        secure = environ.get("HTTP_X_FORWARDED_PROTO") == "https"
        environ["wsgi.url_scheme"] = "https" if secure else "http"
        environ["SERVER_NAME"], environ["SERVER_PORT"] = host_and_port(environ.get("HTTP_HOST", ""), secure)
        client = environ.pop("HTTP_RIP_CLIENT", None)
        environ["REMOTE_ADDR"] = environ.get("HTTP_X_FORWARDED_FOR", "") if client is None else client
        return environ, 0 if length is None else body_bytes(length)

    def environ_key(self, name):
        TEXT.check_name(name)
        key = name.upper().replace("-", "_")
        if key == "CONTENT_LENGTH" and "_" in name:
            raise BadRequest
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        if len(self.known_names) < MAX_KNOWN_NAMES:
            self.known_names[name] = key
        return key

    def answer(self, connection, environ):
        """Lets the app answer; False when the connection is to be closed."""
        app = self.newest_app() if self.worker.watches else self.app
        answer = Answer(self, connection, environ["REQUEST_METHOD"])
        result = None
        try:
            try:
                result = app(environ, answer.start_response)
                if self.worker.is_child:
                    self.worker.end_child()
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
        except Leaving:
            answer.end()
            return False
        except BaseException as error:
            # Also those of the app's that are no Exception: its worker is well.
            if self.worker.is_child:
                self.worker.end_child(error)
            return self.failed(connection, environ, answer, error)
        if self.worker.is_child:
            self.worker.end_child()
        return True

    def newest_app(self):
        changed = self.worker.changed_app()
        if changed:
            self.app = changed
            self.worker.swapped()
        return self.app

    def failed(self, connection, environ, answer, error):
        is_complete = answer.close()
        if connection.gone:
            return False
        method = environ["REQUEST_METHOD"]
        failure = self.worker.error_answer(
            error,
            method,
            environ["REQUEST_URI"],
            environ.get("HTTP_X_REQUEST_ID", "-"),
            environ.get("HTTP_ACCEPT", ""),
        )
        if answer.head_sent:
            # Cut, unless it was the app's close() that failed: half an answer must not look whole.
            return is_complete
        self.busy = False
        connection.send(failure)
        return True


def is_patched_by_gevent():
    monkey = sys.modules.get("gevent.monkey")
    return bool(monkey and monkey.is_module_patched("socket"))


def is_patched_by_eventlet():
    patcher = sys.modules.get("eventlet.patcher")
    return bool(patcher and patcher.is_monkey_patched("socket"))


def is_patched():
    """Threads are greenlets there, whose locks are not for several real threads."""
    return is_patched_by_gevent() or is_patched_by_eventlet()


def waiter(poller):
    """The wait for the next request: under gevent or eventlet what the app has started runs meanwhile."""
    if is_patched_by_gevent():
        from gevent.socket import wait_read

        return lambda: wait_read(poller.fileno()) or poller.poll(0)
    if is_patched_by_eventlet():
        from eventlet.hubs import trampoline

        return lambda: trampoline(poller.fileno(), read=True) and None or poller.poll(0)
    return poller.poll


class Gate:
    """Holds the listener and every connection but the main thread's."""

    def __init__(self, server, listener):
        self.server = server
        self.listener = listener
        self.connections = {}
        self.poller = epoll()
        self.poller.register(listener, EPOLLIN)

    def start(self):
        start_new_thread(self.run, ())

    def hold(self, connection):
        self.connections[connection.fd] = connection
        self.poller.register(connection.fd, EPOLLIN)

    def run(self):
        listener = self.listener.fileno()
        while True:
            for fd, _ in self.poller.poll():
                if fd == listener:
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
            sleep(GRACE_S)
        return self.server.busy

    def accept(self):
        try:
            # What accept() makes would be a gevent socket in an app that is patched.
            self.hold(Connection(socket(AF_UNIX, SOCK_STREAM, 0, self.listener._accept()[0])))
        except OSError:
            sleep(ACCEPT_PAUSE_S)

    def refuse(self, connection):
        """Says that the worker is busy; to the probe that asks only whether the app is loaded, that it is."""
        try:
            head = connection.read_head()
            if head is PARTIAL:
                return
            if head:
                environ, length = self.server.environ(head)
                is_ready = environ.get("HTTP_RIP_PROBE") == "1" and environ["PATH_INFO"] == "/ready"
                connection.send(READY if is_ready else BUSY)
                if connection.skip_body(length):
                    return
        except BadRequest:
            connection.refuse()
        except OSError:
            pass
        del self.connections[connection.fd]
        connection.sock.close()
        self.server.wake()  # it may be waiting for the last connection's end
