"""Serves an ASGI 3 app over asyncio protocols (uvloop's where it is installed): start, lifespan, reload, end.

A request is an Exchange (rip_http.py), or a WebSocket (rip_websocket.py), and `AsgiServer.active` while it runs:
whatever else comes meanwhile is answered 503 at once.
"""

import asyncio
import inspect
import signal
from concurrent.futures import ThreadPoolExecutor

from rip_http import ASGI, Connection
from rip_loading import accepts
from rip_websocket import WebSocket


def serve(worker, app):
    loop = new_loop()
    asyncio.set_event_loop(loop)
    server = AsgiServer(worker, loop)
    main = loop.create_task(server.run(app))
    while not main.done():
        try:
            loop.run_until_complete(main)
        except (SystemExit, KeyboardInterrupt) as error:
            # Of a task that the app has started: no reason for an end of the worker.
            if not main.done():
                worker.say("a task of the app's asked for the end of the process", error)
        except RuntimeError:
            if main.done():
                raise
            server.on_sigterm()  # the app has stopped the loop, as handlers of SIGTERM do
    main.result()
    loop.run_until_complete(end_tasks(loop))


async def end_tasks(loop):
    """What the app has started and not ended, as asyncio.run() ends it."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()


class Threads(ThreadPoolExecutor):
    """The loop's own, which knows what is at work: a thread goes on when the task that waits for it is cancelled."""

    def __init__(self):
        super().__init__(thread_name_prefix="asyncio")
        self.at_work = set()

    def submit(self, *args, **named):
        future = super().submit(*args, **named)
        self.at_work.add(future)
        future.add_done_callback(self.at_work.discard)
        return future


def new_loop():
    try:
        from uvloop import Loop as Base
    except ImportError:
        from asyncio import SelectorEventLoop as Base

    class Loop(Base):
        """Keeps the app's handler of SIGTERM beside the harness's."""

        app_handler = None
        is_ours = False

        def add_signal_handler(self, number, callback, *args):
            if number == signal.SIGTERM and not self.is_ours:
                if inspect.iscoroutinefunction(callback):
                    raise TypeError("coroutines cannot be used with add_signal_handler()")
                self.app_handler = (callback, args)
            else:
                super().add_signal_handler(number, callback, *args)

        def remove_signal_handler(self, number):
            if number != signal.SIGTERM:
                return super().remove_signal_handler(number)
            had, self.app_handler = self.app_handler, None
            return had is not None

        def on_sigterm(self, callback):
            self.is_ours = True
            self.add_signal_handler(signal.SIGTERM, callback)
            self.is_ours = False

    return Loop()


class AsgiServer:
    new_websocket = WebSocket

    def __init__(self, worker, loop):
        self.worker = worker
        self.loop = loop
        self.app = None
        self.lifespan = None
        self.active = None  # the request under way
        self.connections = set()
        self.tasks = set()
        self.leaving = False
        self.quit_accepted = None
        self.apps_sigterm = None
        self.listener = None
        self.finished = loop.create_future()
        self.threads = Threads()
        loop.set_default_executor(self.threads)

    async def run(self, app):
        self.app = as_single_callable(app)
        self.lifespan = Lifespan(self.worker, self.app)
        failure = await self.lifespan.startup()
        if failure:
            self.worker.fail("the app's startup failed: " + failure)
        self.listener = self.worker.listen()
        server = await self.loop.create_unix_server(lambda: Connection(self), sock=self.listener)
        self.worker.descriptors = self.descriptors
        self.apps_sigterm = self.worker.apps_sigterm()
        self.loop.on_sigterm(self.on_sigterm)
        self.worker.join()
        await self.finished
        server.close()
        # Background work of requests that have their answers, and what the app does on SIGTERM.
        while self.tasks:
            await asyncio.wait(self.tasks)
        await self.lifespan.shutdown()

    def descriptors(self):
        transports = [connection.transport for connection in self.connections]
        sockets = [transport.get_extra_info("socket") for transport in transports] + [self.listener]
        return [sock.fileno() for sock in sockets if sock is not None and sock.fileno() >= 0]

    # The end

    def on_sigterm(self):
        self.leaving = True
        self.call_apps_handlers()
        if self.quit_accepted is None:
            self.quit_accepted = self.worker.quit()
        if self.active:
            self.active.leave()
        self.finish_if_done()

    def call_apps_handlers(self):
        """Those that the app has set; the tasks that they start are waited for."""
        handlers = []
        if self.apps_sigterm:
            handlers.append((self.apps_sigterm, (signal.SIGTERM, None)))
        if self.loop.app_handler:
            handlers.append(self.loop.app_handler)
        self.apps_sigterm = self.loop.app_handler = None
        before = asyncio.all_tasks(self.loop)
        for handler, args in handlers:
            try:
                handler(*args)
            except SystemExit:
                pass  # that is under way
            except BaseException as error:
                self.worker.say("the app's handler of SIGTERM failed", error)
        for task in asyncio.all_tasks(self.loop) - before:
            self.wait_for(task)

    def finish_if_done(self):
        # Without a server that would close the connections, the request in hand is the last.
        waits = self.connections if self.quit_accepted else self.active
        if self.leaving and not waits and not self.finished.done():
            self.finished.set_result(None)

    def connection_ended(self, connection):
        self.connections.discard(connection)
        if self.worker.is_child:
            return
        # With the server gone, nobody will ever end this process.
        if not self.connections and not self.leaving and not self.worker.server_lives():
            self.leaving = True
        self.finish_if_done()

    # Requests

    def begin(self, exchange):
        self.active = exchange
        changed = self.worker.changed_app() if self.worker.watches else None
        exchange.task = self.loop.create_task(
            exchange.run() if changed is None else self.swap_and_run(changed, exchange)
        )
        self.wait_for(exchange.task)

    def answered(self, exchange):
        if self.active is exchange:
            self.active = None
            if self.leaving:
                self.finish_if_done()

    def wait_for(self, task):
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def cancel_unless_told(self, exchange, within_s):
        """Nobody waits for this stream: its app is told by a message if it listens, else by a cancellation."""
        self.loop.call_later(within_s, lambda: exchange.is_told or exchange.cancel())

    async def swap_and_run(self, changed, exchange):
        app = as_single_callable(changed)
        lifespan = Lifespan(self.worker, app)
        failure = await lifespan.startup()
        if failure:
            self.worker.swap_failed("the changed app's startup failed (%s)" % failure)
        else:
            last, self.app, self.lifespan = self.lifespan, app, lifespan
            exchange.scope["state"] = lifespan.state.copy()
            self.worker.swapped()
            self.wait_for(self.loop.create_task(last.shutdown()))
        await exchange.run()


def as_single_callable(app):
    """ASGI 2's `app(scope)(receive, send)` as ASGI 3."""
    if accepts(app, 3) or not accepts(app, 1):
        return app
    return lambda scope, receive, send: app(scope)(receive, send)


class Lifespan:
    def __init__(self, worker, app):
        self.worker = worker
        self.app = app
        self.state = {}
        self.inbox = asyncio.Queue()
        self.outbox = asyncio.Queue()
        self.task = None

    async def startup(self):
        """Why it failed, or None. An app that does not know about lifespans has none."""
        self.task = asyncio.ensure_future(self.run())
        answer = await self.ask("startup")
        return answer["message"] or "(no reason given)" if answer and answer["failed"] else None

    async def shutdown(self):
        answer = await self.ask("shutdown")
        if answer and answer["failed"]:
            self.worker.say("the app's shutdown failed: " + answer["message"])

    async def run(self):
        scope = {"type": "lifespan", "asgi": ASGI, "state": self.state}
        try:
            await self.app(scope, self.inbox.get, self.send)
        except BaseException:
            pass  # unsupported, or told by a message already
        if self.worker.is_child:
            self.worker.end_child()

    async def send(self, message):
        failed = message["type"].endswith(".failed")
        self.outbox.put_nowait({"failed": failed, "message": message.get("message", "")})

    async def ask(self, what):
        """The app's answer, or None if its lifespan has ended without one."""
        if self.task.done():
            return None
        self.inbox.put_nowait({"type": "lifespan." + what})
        answer = asyncio.ensure_future(self.outbox.get())
        await asyncio.wait((answer, self.task), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        return self.outbox.get_nowait() if self.outbox.qsize() else None
