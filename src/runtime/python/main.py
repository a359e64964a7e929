"""Rip Server's Python worker: loads the app, joins the server, serves one request at a time.

Run by the server as `python3 main.py <target>`, in the project's folder, with the worker protocol's
environment. The parts: rip_loading, rip_worker (hot reload, the control socket, error answers),
rip_wsgi, and rip_asgi with rip_websocket.
"""

import os
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    for stream in (sys.stdout, sys.stderr):
        if stream:
            # Each line leaves when it is whole, and a log line is never the reason for a 500.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    # Ctrl-C is the server's business. A handler, since SIG_IGN would be inherited by the app's children.
    signal.signal(signal.SIGINT, lambda *_: None)
    # Nothing is lost if it ends before it has joined.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    worker = ours("rip_worker").Worker(os.environ, sys.argv[1])
    app = worker.load_or_exit()
    ours("rip_asgi" if worker.is_asgi else "rip_wsgi").serve(worker, app)


def ours(name):
    """Imports one of the harness's modules; else its folder stays out of the app's sight."""
    sys.path.insert(0, HERE)
    try:
        return __import__(name)
    finally:
        sys.path.remove(HERE)


if __name__ == "__main__":
    if sys.path[0] == HERE:
        del sys.path[0]
    main()
