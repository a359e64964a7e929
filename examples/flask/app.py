"""Run it with `rip-server examples/flask w:4`: the server finds `app` in app.py, and sees that it is WSGI."""

import os
import time

from flask import Flask, Response

app = Flask(__name__)


@app.get("/")
def index():
    return f"Hello from worker {os.environ['WORKER_ID']}\n"


@app.get("/count")
def count():
    def lines():
        for number in range(3):
            yield f"{number}\n"  # each leaves at once
            time.sleep(0.5)

    return Response(lines(), mimetype="text/plain")
