"""What both kinds of app need: loading and hot reload, the control socket, error answers."""

import html
import importlib
import json
import os
import signal
import sys
import time
import traceback

# By their own names: gevent and eventlet replace what the modules have.
from _thread import get_ident
from select import POLLRDHUP, poll
from socket import AF_UNIX, SOCK_STREAM, socket

from rip_loading import Mistake, Target, looks_like_asgi

HERE = os.path.dirname(os.path.abspath(__file__))
LOOK_EVERY_S = 0.1  # how often a request looks whether the entry has changed
CONTROL_TIMEOUT_S = 10.0  # the server answers within a millisecond; this only bounds a hang
BACKLOG = 4096

# Answers of the worker's own, whole.
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
READY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

# Modules whose functions are a thread's first: behind them is no code of the app's.
THREADS = ("anyio.", "concurrent.futures.", "asgiref.", "threading")

FINAL_STATUSES = range(200, 1000)  # behind a smaller one the client waits for another answer

# What concerns one connection only is the front end's to say.
HOP_BY_HOP = frozenset("connection keep-alive proxy-connection te trailer transfer-encoding upgrade".split())


class Gone(ConnectionError):
    """The other end of the connection has gone, so nobody waits for this answer."""


class Worker:
    def __init__(self, env, target, sigterm_before_join):
        self.id = int(env.get("WORKER_ID", -1))  # a template has none
        self.pid = os.getpid()
        self.instance = env.get("RIP_INSTANCE")
        self.version = int(env.get("RIP_VERSION") or 0)
        self.entry = env["RIP_APP_ENTRY"]
        self.root = os.getcwd()
        self.socket_path = env.get("SOCKET_PATH")
        self.control_path = env["RIP_CONTROL_SOCKET"]
        self.watches = env.get("RIP_HOT_RELOAD") == "module"
        self.max_reloads = int(env.get("RIP_MAX_RELOADS") or 10)
        self.max_at_work = int(env.get("RIP_CONCURRENCY") or 1)  # requests at once
        self.max_streams = int(env.get("RIP_MAX_STREAMS") or 0)  # event streams and WebSockets beside them
        self.read_timeout_s = int(env.get("RIP_READ_TIMEOUT_MS") or 0) / 1000
        self.shows_traces = env.get("NODE_ENV") in ("development", "dev")
        self.is_asgi = False
        self.reloads = 0
        self.retiring = False
        self.seen = None  # the entry's signature when it was last loaded, or failed to
        self.next_look = 0.0
        self.target = Target(target, self.entry)
        self.sigterm_before_join = sigterm_before_join
        self.main_thread = get_ident()
        self.is_child = False  # this process is one that the app has forked
        self.descriptors = tuple  # gives those of the harness's sockets, which are not for such a child
        os.register_at_fork(after_in_child=self.now_in_child)

    def become(self, variables):
        """This process, forked from a template, is the worker that these variables name."""
        os.environ.update(variables)
        self.id, self.version = int(variables["WORKER_ID"]), int(variables["RIP_VERSION"])
        self.socket_path = variables["SOCKET_PATH"]
        self.pid = os.getpid()
        self.is_child = False

    # Loading

    def load_or_exit(self):
        try:
            self.seen = self.signature()
            app = self.target.load()
            if self.target.entry and self.target.entry != self.entry:
                self.entry = self.target.entry
                self.seen = self.signature()
        except BaseException as error:
            if self.is_child:
                self.end_child(error)
            if isinstance(error, Mistake):
                self.fail(str(error))
            self.fail("can't load %s%s" % (self.entry, missing(error)), error)
        if self.is_child:
            self.end_child()
        self.is_asgi = looks_like_asgi(app)
        return app

    def signature(self):
        """Tells two states of the entry apart: edits, renames over it, symlinks that moved."""
        stat = os.stat(self.entry)
        return stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev

    def changed_app(self):
        """The app loaded anew if its entry has changed, else None. Call it between two requests."""
        now = time.monotonic()
        if now < self.next_look:
            return None
        self.next_look = now + LOOK_EVERY_S
        try:
            signature = self.signature()
            if signature == self.seen:
                return None
            importlib.invalidate_caches()
            os.chdir(self.root)  # a new folder may have taken its place
        except OSError:
            return None  # an editor is about to put the file back
        self.seen = signature
        try:
            app = self.target.load()
        except (SyntaxError, Mistake) as error:
            # A new process would meet it as well.
            self.say(
                "can't load the changed %s, the last good one goes on" % self.entry,
                error,
            )
            return None
        except BaseException as error:
            if self.is_child:
                self.end_child(error)
            self.swap_failed("can't load the changed %s" % self.entry, error)
            return None
        if self.is_child:
            self.end_child()
        if looks_like_asgi(app) != self.is_asgi:
            self.say("%s is now %s: asked for a new process" % (self.entry, "WSGI" if self.is_asgi else "ASGI"))
            self.retire()
            return None
        return app

    def swap_failed(self, what, error=None):
        """What can't be done twice in one process (a metric's or a model's registration) goes well in a new one."""
        self.say(what + " in place; a new process is asked for, and until it serves the last good one goes on", error)
        self.retire()

    def swapped(self):
        """A changed app has taken over."""
        self.reloads += 1
        try:
            self.tell("reloaded")  # for `rip-server status`
        except OSError:
            pass
        if self.reloads == self.max_reloads:
            self.retire()

    # The server

    def listen(self):
        try:
            os.unlink(self.socket_path)
        except FileNotFoundError:
            pass
        listener = socket(AF_UNIX, SOCK_STREAM)
        try:
            listener.bind(self.socket_path)
        except OSError as error:
            self.fail("can't listen on %s: %s" % (self.socket_path, error))
        listener.listen(BACKLOG)
        return listener

    def join(self, streams, concurrency):
        more = {"pid": self.pid, "socket": self.socket_path, "version": self.version}
        try:
            ok, answer = self.tell("join", drains=True, streams=streams, concurrency=concurrency, **more)
        except OSError as error:
            self.fail("can't reach the server at %s: %s" % (self.control_path, error))
        if not ok:
            self.fail("the server refused this worker: " + answer)

    def quit(self):
        """Says goodbye; True if the server is there to finish with this worker in order."""
        try:
            return self.tell("quit")[0]
        except OSError:
            return False

    def retire(self):
        if self.retiring:
            return
        self.retiring = True
        try:
            self.tell("retire")
        except OSError as error:
            self.say("can't ask to be replaced: %s" % error)

    def server_lives(self):
        with socket(AF_UNIX, SOCK_STREAM) as control:
            control.settimeout(CONTROL_TIMEOUT_S)
            try:
                control.connect(self.control_path)
                return True
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except OSError:
                return True  # busy, not gone

    def tell(self, op, **more):
        """Posts a message to the control socket: (whether it was accepted, the answer's text)."""
        message = dict(op=op, workerId=self.id, **more)
        if self.instance is not None:
            message["instance"] = self.instance
        body = json.dumps(message)
        head = "POST /worker HTTP/1.1\r\nHost: rip\r\nConnection: close\r\nContent-Type: application/json\r\n"
        with socket(AF_UNIX, SOCK_STREAM) as control:
            control.settimeout(CONTROL_TIMEOUT_S)
            control.connect(self.control_path)
            control.sendall(("%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)).encode())
            with control.makefile("rb") as reader:
                status = reader.readline().split()
                length = -1
                for line in iter(reader.readline, b""):
                    if not line.strip():
                        break
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                text = reader.read(length).decode("utf-8", "replace").strip()
        try:
            accepted = status[1:2] == [b"200"] and json.loads(text).get("ok") is True
        except (ValueError, AttributeError):
            accepted = False
        return accepted, text or "no answer"

    def apps_sigterm(self):
        """The handler of SIGTERM that the app has set by now, or None."""
        handler = signal.getsignal(signal.SIGTERM)
        return handler if callable(handler) and handler is not self.sigterm_before_join else None

    # Processes that the app forks

    def now_in_child(self):
        """A forked child must neither answer on the worker's sockets nor hold them."""
        self.is_child = True
        if get_ident() != self.main_thread:
            # No code of ours is behind a handler in a thread: it ends when it is back with whom the thread belongs to.
            owner = thread_owner(sys._getframe())[0]
            sys.setprofile(
                lambda frame, event, _: event == "return" and owner in (frame, frame.f_back) and self.end_child()
            )
        try:
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for descriptor in self.descriptors():
                os.dup2(nowhere, descriptor, inheritable=False)
            os.close(nowhere)
        except OSError:
            pass

    def end_child(self, error=None):
        """A child has come to the end of the app's code: what follows is the worker's business."""
        code = 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            self.say("a process that the app has forked failed", error)
            code = 1
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # whatever the app has put there
        os._exit(code & 0xFF)

    # Trouble

    def say(self, what, error=None):
        """Never fails: the app may have put a stream in stderr's place that does, and the caller has work to end."""
        name = "template" if self.id < 0 else "worker %d" % self.id
        text = "rip-server: %s: %s\n%s" % (name, what, trace(error) if error else "")
        try:
            # In one write, so that other lines don't come between.
            if sys.stderr:
                sys.stderr.write(text)
        except Exception:
            try:
                os.write(2, text.encode("utf-8", "backslashreplace"))
            except OSError:
                pass  # nobody hears it

    def fail(self, what, error=None):
        self.say(what, error)
        sys.exit(1)

    def error_answer(self, error, method, target, request_id, accept):
        """Reports a request's exception; returns the whole 500."""
        content_type, body = self.error_page(error, method, target, request_id, accept)
        head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        return (head % (content_type, len(body))).encode() + (b"" if method == "HEAD" else body)

    def error_page(self, error, method, target, request_id, accept):
        """Reports a request's exception; returns the content type and body of its answer."""
        self.say("%s %s (request %s) failed" % (method, target.partition("?")[0], request_id), error)
        if not self.shows_traces:
            return "text/plain; charset=utf-8", b"Internal Server Error\n"
        text = "%s %s (request %s)\n\n%s" % (method, target, request_id, trace(error))
        if "text/html" not in accept:
            return "text/plain; charset=utf-8", text.encode("utf-8", "replace")
        title = html.escape(traceback.format_exception_only(type(error), error)[-1].strip())
        page = "<!doctype html><meta charset=utf-8><title>%s</title><h1>%s</h1><pre>%s</pre>\n"
        return "text/html; charset=utf-8", (page % (title, title, html.escape(text))).encode("utf-8", "replace")


def has_half_closed(fd):
    """Whether the other end says nothing more, however much of what it has said is still unread."""
    poller = poll()
    poller.register(fd, POLLRDHUP)
    return bool(poller.poll(0))


def thread_owner(frame):
    """The innermost of the frames, from the thread's first on, that belong to a pool of threads, and the one in it."""
    frames = []
    while frame:
        frames.append(frame)
        frame = frame.f_back
    owner = None
    while frames and module_of(frames[-1]).startswith(THREADS):
        owner = frames.pop()
    return owner, frames[-1] if frames else None


def module_of(frame):
    return frame.f_globals.get("__name__") or ""


def jobs_in_threads():
    """What the threads of anyio (Starlette's, FastAPI's) are at work on, by its first frame."""
    found = [thread_owner(frame) for frame in sys._current_frames().values()]
    return {job for owner, job in found if owner and job and is_job(module_of(owner), module_of(job))}


def is_job(owner, job):
    return owner.startswith("anyio.") and job != "queue"


def missing(error):
    """Of a package that is not installed, where it was looked for."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    where = "%s has no %s; a .venv beside the app, or VIRTUAL_ENV, with it would do"
    return ": " + where % (sys.executable, error.name.partition(".")[0])


def trace(error):
    """The exception's trace, from the app's first frame on."""
    frame = error.__traceback__
    while frame and frame.tb_frame.f_code.co_filename.startswith((HERE + os.sep, "<frozen")):
        frame = frame.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frame))
    except Exception as failure:
        return "%s, whose trace can't be shown (%s)\n" % (type(error).__name__, type(failure).__name__)


def told(scope):
    """An ASGI request, as logs name it."""
    request_id = dict(scope["headers"]).get(b"x-request-id", b"-").decode("latin-1")
    return "%s (request %s)" % (scope["path"], request_id)


def host_and_port(host, secure):
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal():
        return name, port
    return host or "localhost", "443" if secure else "80"
