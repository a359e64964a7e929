"""A bare WSGI app."""

import hashlib
import os
import time
from urllib.parse import parse_qs


def gated(gate):
    yield b"first\n"
    while not os.path.exists(gate):
        time.sleep(0.005)


def whole(gate):
    yield from gated(gate)
    yield b"last\n"


def endless():
    while True:
        yield b"tick\n"
        time.sleep(0.005)


def broken(gate):
    yield from gated(gate)
    raise RuntimeError("told to fail")


def sha(file):
    body = file.read()
    return "%d %s" % (len(body), hashlib.sha256(body).hexdigest())


def gate(environ):
    return parse_qs(environ["QUERY_STRING"])["gate"][0]


def application(environ, start_response):
    path = environ["PATH_INFO"].encode("latin-1").decode()
    headers = [("Content-Type", "text/plain")]
    body = None
    if path == "/hello":
        body = [b"hello"]
    elif path == "/pid":
        body = [str(os.getpid()).encode()]
    elif path == "/sha":
        body = [sha(environ["wsgi.input"]).encode()]
    elif path == "/stream":
        body = whole(gate(environ))
    elif path == "/endless":
        body = endless()
    elif path == "/fail":
        raise RuntimeError("told to fail")
    elif path == "/break":
        body = broken(gate(environ))
    elif path == "/cookies":
        headers += [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT")]
        body = []
    elif path.startswith("/echo/"):
        headers.append(("X-Echo", environ["HTTP_X_NAME"]))
        body = [path.encode()]
    start_response("404 Not Found" if body is None else "200 OK", headers)
    return body or []
