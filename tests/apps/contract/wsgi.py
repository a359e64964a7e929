"""The contract suite's app, for WSGI."""

import atexit
import hashlib
import os
import time

from parts import PIECE, fail, pieces, touch


def at_end():
    time.sleep(0.15)
    touch(os.environ["CONTRACT_DIR"], "hook")


atexit.register(at_end)


def wait_for(folder, name="go"):
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.005)


def broken(kind, folder):
    yield b"first\n"
    wait_for(folder)
    fail(kind)


def events(folder, every):
    try:
        yield b"data: 0\n\n"
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.02)
            if every:
                yield b"data: 0\n\n"
    except GeneratorExit:
        touch(folder, "told")


def fork(kind, folder):
    child = os.fork()
    if child:
        return [b"the parent"]
    touch(folder, "child", str(os.getpid()))
    if kind == "raise":
        raise RuntimeError("told to fail, in a child")
    if kind == "stay":
        wait_for(folder)
        os._exit(0)
    return [b"the child"]


def sha(file):
    sum_, length = hashlib.sha256(), 0
    while piece := file.read(PIECE):
        sum_.update(piece)
        length += len(piece)
    return ("%d %s" % (length, sum_.hexdigest())).encode()


def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    _, name, *rest = (path + "/").split("/")
    status, headers, body = "200 OK", [("Content-Type", "text/plain")], None
    if name == "hello":
        body = [b"hello"]
    elif name == "pid":
        body = [str(os.getpid()).encode()]
    elif name == "ready":
        body = [b"the app's"]
    elif name == "env":
        lines = ["cwd=" + os.getcwd()] + ["%s=%s" % pair for pair in os.environ.items()]
        body = ["\n".join(lines).encode()]
    elif name == "sha":
        body = [sha(environ["wsgi.input"])]
    elif name == "ignore":
        body = [b"ignored"]
    elif name == "part":
        environ["wsgi.input"].read(1000)
        body = [b"left"]
    elif name == "file":
        body = [b"".join(pieces(query))]
    elif name == "pieces":
        body = pieces(query)
    elif name == "wait":
        touch(query, "started")
        wait_for(query)
        touch(query, "ended")
        body = [b"done"]
    elif name in ("events", "ticks"):
        headers = [("Content-Type", "text/event-stream")]
        body = events(query, name == "ticks")
    elif name == "fail":
        fail(rest[0])
    elif name == "break":
        body = broken(rest[0], query)
    elif name == "fork":
        body = fork(rest[0], query)
    elif name == "fields":
        got = [environ.get(key, "") for key in ("HTTP_X_MANY", "HTTP_COOKIE", "HTTP_X_LATIN")]
        headers += [("X-Latin", got[2]), ("X-Out", "a"), ("X-Out", "b"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        body = [("\n".join(got) + "\n").encode("latin-1")]
    elif name == "nobody":
        status = rest[0] + " X"
        headers.append(("Content-Length", "5"))
        body = [b"hello"]
    elif name == "client":
        body = [(environ["REMOTE_ADDR"] + environ.get("HTTP_RIP_CLIENT", "")).encode()]
    if body is None:
        status, body = "404 Not Found", []
    start_response(status, headers)
    return body
