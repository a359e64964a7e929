"""The harness's second role: a process that has loaded the app, listens nowhere, and forks a worker on the server's word.

The server's line is the standard input. On it the server asks for a worker with its number, variables and two pipes; the
template makes an intermediate process, that one makes the worker, names it to the server and ends. So the worker becomes
the server's own child (which adopts orphans), and the app's fork hooks run in the worker's branch alone.
"""

import atexit
import encodings.idna  # Werkzeug's first request would load it, in each worker
import gc
import io
import os
import signal
import sys
import threading
import weakref

# By their own names: gevent and eventlet replace what the modules have.
from array import array
from os import fork, getpid, getppid, waitpid
from socket import AF_UNIX, CMSG_LEN, SCM_RIGHTS, SO_TYPE, SOCK_DGRAM, SOCK_SEQPACKET, SOL_SOCKET, socket
from time import sleep

MAX_MESSAGE_BYTES = 64 * 1024
PR_SET_PDEATHSIG = 1
WAIT_S = 0.0002  # between two looks whether the process between has ended
WARM_REQUESTS = 3  # the first loads what is lazy, the others what the first has put into caches


class Template:
    def __init__(self, mode, warm):
        """`mode`: auto, or always. `warm`: a path of the app's, or None."""
        self.mode = mode
        self.warm_path = warm
        self.server = getppid()
        # The app's standard input is a pipe that nobody writes to, as that of every worker.
        self.line = socket(AF_UNIX, SOCK_SEQPACKET, 0, os.dup(0))
        reader, writer = os.pipe()
        os.dup2(reader, 0)
        os.close(reader)
        os.close(writer)
        try:
            import ctypes

            self.libc = ctypes.PyDLL(None)
            self.libc.prctl.argtypes = [ctypes.c_int] + 4 * [ctypes.c_ulong]
            self.libc.fork, self.libc.prctl  # they are looked up here
        except (ImportError, OSError, AttributeError) as error:
            self.refuse("%s cannot call libc's fork (ctypes: %s)" % (sys.executable, error))
        self.before = descriptors()
        if not self.before and self.mode != "always":
            self.refuse("/proc, which tells what a fork would share, is not there")

    def say(self, *words):
        text = " ".join(map(str, words))
        self.line.send(text.encode("utf-8", "replace")[:2000])

    def refuse(self, why):
        flush()
        self.say("refused", why)
        os._exit(0)

    def run(self, worker, app):
        """Forks until the server closes the line. Comes back in the worker: its variables."""
        close_databases()
        obstacle = self.obstacle()
        if self.warm_path and not obstacle:
            self.warm(worker, app)
            close_databases()
            obstacle = self.obstacle()
        if obstacle and self.mode != "always":
            self.refuse(obstacle + "; --fork=always would fork nevertheless")
        flush()
        gc.collect()
        self.streams = [weakref.ref(stream) for stream in open_streams()]
        gc.freeze()
        self.say("ready")
        while True:
            number, variables, pipes = self.next_order()
            if self.fork(number, pipes):
                return variables
            for pipe in pipes:
                os.close(pipe)

    def next_order(self):
        pipes = array("i")
        try:
            message, control, _, _ = self.line.recvmsg(MAX_MESSAGE_BYTES, CMSG_LEN(2 * pipes.itemsize))
        except OSError:
            message = b""
        if not message:
            os._exit(0)
        for level, kind, data in control:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                pipes.frombytes(data[: len(data) - len(data) % pipes.itemsize])
        number, *variables = os.fsdecode(message).split("\0")
        return number, dict(variable.split("=", 1) for variable in variables), pipes

    def fork(self, number, pipes):
        """True in the worker."""
        flush()
        # Without the app's hooks, which are for the worker alone.
        child = self.libc.fork()
        if child == 0:
            self.be_between(number, pipes)
            return True
        if child < 0:
            self.say("failed", number, "the system refuses to make a process")
            return False
        status = waitpid(child, 0)[1]
        if status != 0:
            self.say("failed", number, "the process between has ended with status", status)
        return False

    def be_between(self, number, pipes):
        """The process between template and worker; comes back in the worker."""
        between, code = getpid(), 1
        try:
            worker = fork()
            if worker == 0:
                return self.be_worker(between, pipes)
            # Before this process ends, so that the worker is known before it can join.
            self.say("forked", number, worker)
            code = 0
        except BaseException as error:
            if getpid() != between:
                raise
            self.say("failed", number, error)
            code = 0
        finally:
            if getpid() == between:
                os._exit(code)

    def be_worker(self, between, pipes):
        self.line.close()
        os.setpgid(0, 0)
        while getppid() == between:
            sleep(WAIT_S)
        # Every fork loses it, and set earlier it would fire at the end of the process between.
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if getppid() != self.server:
            os._exit(1)
        for pipe, standard in zip(pipes, (1, 2)):
            os.dup2(pipe, standard)
            os.close(pipe)

    def end_worker(self, worker):
        """Does what the interpreter does at its end, and ends; but it does not take apart what the template has loaded.
        That would copy all its memory, and take longer than the fork did."""
        try:
            threading._shutdown()
            atexit._run_exitfuncs()
        except BaseException as error:
            worker.say("a function that was registered with atexit failed", error)
        streams = [stream() for stream in self.streams] + open_streams()
        # One of another kind, gzip's say, writes into the plain ones at its end, and a plain one may write into it.
        for kind in (True, False, True):
            for stream in streams:
                if is_plain(stream) == kind:
                    try:
                        stream.flush() if kind else stream.close()
                    except Exception:
                        pass  # it is closed, or the disk is full
        flush()
        os._exit(0)

    # What a fork would share, or leave behind

    def obstacle(self):
        """Why the app is not to be forked, or None."""
        for look in (patches, threads, processes, self.open_files):
            for what in look():
                return what
        return None

    def open_files(self):
        for fd in descriptors():
            what = None if fd in self.before else what_is_shared(fd)
            if what:
                yield what

    # Warming

    def warm(self, worker, app):
        """Lets the app answer a GET a few times: what it loads then is shared."""
        if worker.is_asgi:
            return worker.say("--warm is for WSGI apps: what an ASGI app makes belongs to its worker's event loop")
        for _ in range(WARM_REQUESTS):
            try:
                status = get(app, self.warm_path)
            except BaseException as error:
                return worker.say("--warm=%s failed" % self.warm_path, error)
            if not status.startswith(("1", "2", "3")):
                return worker.say("--warm=%s was answered %s" % (self.warm_path, status))


def get(app, target):
    """A WSGI app's answer to a GET: its status."""
    path, _, query = target.partition("?")
    statuses = []
    environ = {
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": target,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "rip-server",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }

    def start_response(status, headers, exc_info=None):
        statuses.append(status)
        return lambda data: None

    result = app(environ, start_response)
    try:
        for _ in result:
            pass
    finally:
        if hasattr(result, "close"):
            result.close()
    return statuses[-1]


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass


def open_streams():
    """The files with a buffer, of what the garbage collector knows."""
    kinds = (io.TextIOBase, io.BufferedIOBase)
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


def is_plain(stream):
    return type(stream).__module__ == "_io"


def patches():
    for name, module in (("gevent", "gevent.monkey"), ("eventlet", "eventlet.patcher")):
        patcher = sys.modules.get(module)
        if patcher and getattr(patcher, "saved" if name == "gevent" else "already_patched", None):
            yield "%s has replaced parts of the standard library" % name


def threads():
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            yield "the thread '%s' runs, started while the app was loaded" % thread.name
    for task in os.listdir("/proc/self/task"):
        if task != str(getpid()):
            yield "a thread runs that a library has started while the app was loaded (%s of %d)" % (task, getpid())


def processes():
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            yield "a process runs that the app has started while it was loaded"
    except ChildProcessError:
        pass


def descriptors():
    """This process's, or nothing where /proc does not tell."""
    found = set()
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for name in names:
        try:
            os.fstat(int(name))
            found.add(int(name))
        except OSError:
            pass  # that of the listing itself
    return found


def what_is_shared(fd):
    """What two processes must not both use, or None."""
    try:
        target = os.readlink("/proc/self/fd/%d" % fd)
        info = {}
        with open("/proc/self/fdinfo/%d" % fd) as file:
            for line in file:
                name, _, value = line.partition(":")
                info[name] = value.strip()
    except FileNotFoundError:
        return None
    what = "descriptor %d" % fd
    if target.startswith("socket:"):
        return connected(fd, what)
    if target.startswith("pipe:"):
        return "%s is a pipe" % what
    if target.startswith("anon_inode:"):
        kind = target[len("anon_inode:") :].strip("[]")
        return "%s is of the kind %s" % (what, kind)
    if "lock" in info:
        return "%s, '%s', is locked" % (what, target)
    if int(info.get("flags", "0"), 8) & os.O_ACCMODE and not target.startswith("/dev/"):
        return "%s, '%s', is open for writing" % (what, target)
    return None


def connected(fd, what):
    with socket(fileno=os.dup(fd)) as sock:
        if sock.getsockopt(SOL_SOCKET, SO_TYPE) == SOCK_DGRAM:
            return None
        try:
            peer = sock.getpeername()
        except OSError:
            return None  # it listens, or is not connected yet
    if isinstance(peer, tuple):
        peer = "%s port %s" % peer[:2]
    return "%s is a connection to %s" % (what, peer or "another socket of this process")


def close_databases():
    """Django's connections are opened when they are needed, and never shared."""
    db = sys.modules.get("django.db")
    if db:
        try:
            db.connections.close_all()
        except Exception:
            pass
