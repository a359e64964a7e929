import hashlib
import os
import time

from flask import Flask, Response, request

app = Flask(__name__)


@app.get("/hello")
def hello():
    return Response("hello", mimetype="text/plain")


@app.get("/pid")
def pid():
    return str(os.getpid())


@app.post("/sha")
def sha():
    body = request.get_data()
    return "%d %s" % (len(body), hashlib.sha256(body).hexdigest())


def gated(gate):
    yield "first\n"
    while not os.path.exists(gate):
        time.sleep(0.005)


@app.get("/stream")
def stream():
    def pieces(gate):
        yield from gated(gate)
        yield "last\n"

    return pieces(request.args["gate"])


@app.get("/endless")
def endless():
    def pieces():
        while True:
            yield "tick\n"
            time.sleep(0.005)

    return pieces()


@app.get("/fail")
def fail():
    raise RuntimeError("told to fail")


@app.get("/break")
def broken():
    def pieces(gate):
        yield from gated(gate)
        raise RuntimeError("told to fail")

    return pieces(request.args["gate"])


@app.get("/cookies")
def cookies():
    response = Response()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", path=None, expires="Thu, 01 Jan 1970 00:00:00 GMT")
    return response


@app.get("/echo/<name>")
def echo(name):
    return "/echo/" + name, {"X-Echo": request.headers["X-Name"]}
