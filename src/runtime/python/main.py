"""Rip Server's Python worker: loads the app, joins the server, serves.

Run by the server as `python3 main.py <target>`, in the project's folder, with the worker protocol's
environment; with RIP_TEMPLATE in it, this process is the template, and workers are forked from it
(rip_template). The other parts: rip_loading, rip_worker (hot reload, the control socket, error answers), rip_head,
rip_wsgi with rip_answer (and rip_threads, for several requests at once), and rip_asgi with rip_http and rip_websocket.
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
    signal.signal(signal.SIGTERM, end_before_join)

    target = sys.argv.pop(1)
    mode, warm = os.environ.pop("RIP_TEMPLATE", None), os.environ.pop("RIP_WARM", None)
    template = ours("rip_template").Template(mode, warm) if mode else None
    rip_worker = ours("rip_worker")
    # Before the app is loaded: gevent and eventlet replace parts of the standard library, and an app may have modules
    # that are called as some of it. (asyncio takes a while to import, so it is left to those who use it.)
    rip_wsgi = ours("rip_wsgi")
    worker = rip_worker.Worker(os.environ, target, end_before_join)
    app = worker.load_or_exit()
    threads = worker.max_at_work > 1 and not rip_wsgi.is_patched()
    harness = ours("rip_asgi") if worker.is_asgi else ours("rip_threads") if threads else rip_wsgi
    if template:
        worker.become(template.run(worker, app))
    harness.serve(worker, app)
    if template:
        template.end_worker(worker)


def end_before_join(*_):
    os._exit(0)


def ours(name):
    """Imports one of the harness's modules; the project's may be called as some that it needs, so they come last."""
    path = sys.path[:]
    project = getattr(sys.modules.get("rip_loading"), "FOLDERS", ())
    sys.path[:] = [HERE] + sorted(path, key=lambda folder: folder in project)
    try:
        return __import__(name)
    finally:
        sys.path[:] = path


if __name__ == "__main__":
    if sys.path[0] == HERE:
        del sys.path[0]
    main()
