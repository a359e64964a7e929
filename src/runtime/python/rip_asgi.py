"""Serves an ASGI 3 app over asyncio protocols (uvloop's where it is installed): start, lifespan, reload, end.

A request is an Exchange (rip_http.py), or a WebSocket (rip_websocket.py), and in `AsgiServer.active` while it runs.
As many as RIP_CONCURRENCY says run at once; one more is answered 503. Event streams and WebSockets, once their heads
are out, go on beside them.
"""

import asyncio
import inspect
import signal
from concurrent.futures import ThreadPoolExecutor

try:
    from uvloop import Loop as BaseLoop
except ImportError:
    from asyncio import SelectorEventLoop as BaseLoop

from rip_http import ASGI, Connection
from rip_loading import accepts
from rip_websocket import WebSocket
from rip_worker import BACKLOG


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
    class Loop(BaseLoop):
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
        self.swapping = None  # a task, while a changed app starts
        self.active = set()  # requests at work, each in one of the worker's places
        self.streams = set()  # those that go on beside them
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
        # It listens once more, and would with a shorter queue.
        server = await self.loop.create_unix_server(lambda: Connection(self), sock=self.listener, backlog=BACKLOG)
        self.worker.descriptors = self.descriptors
        self.apps_sigterm = self.worker.apps_sigterm()
        self.loop.on_sigterm(self.on_sigterm)
        self.worker.join(streams=True, concurrency=self.worker.max_at_work)
        while not self.finished.done():
            await self.wait_for_end_of([self.finished])
        server.close()
        # Background work of requests that have their answers, and what the app does on SIGTERM.
        while self.tasks:
            await self.wait_for_end_of(self.tasks)
        try:
            await self.lifespan.shutdown()
        except asyncio.CancelledError:
            pass  # by the app's shutdown, which cancels all tasks

    async def wait_for_end_of(self, tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            self.on_sigterm()  # the app has cancelled all tasks, which says what stopping the loop does

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
        for exchange in (*self.active, *self.streams):
            exchange.leave()
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
        # Without a server that would close the connections, the requests in hand are the last.
        waits = self.connections if self.quit_accepted else self.active or self.streams
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

    def has_place(self):
        return len(self.active) < self.worker.max_at_work

    def is_idle(self, request_id):
        """Whether no request is at work, or, where one is named, that one is not."""
        if request_id is None:
            return not self.active
        return all(dict(exchange.scope["headers"]).get(b"x-request-id") != request_id for exchange in self.active)

    def begin(self, exchange):
        self.active.add(exchange)
        exchange.task = self.loop.create_task(self.run_newest(exchange) if self.worker.watches else exchange.run())
        self.wait_for(exchange.task)

    def goes_on_beside(self, exchange):
        """Its head is out, and it is a stream: it needs no place. Beyond the bound it keeps its place."""
        if exchange in self.active and len(self.streams) < self.worker.max_streams:
            self.active.discard(exchange)
            self.streams.add(exchange)

    def answered(self, exchange):
        self.active.discard(exchange)
        self.streams.discard(exchange)
        if self.leaving:
            self.finish_if_done()

    def wait_for(self, task):
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def cancel_unless_told(self, exchange, within_s):
        """Nobody waits for this stream: its app is told by a message if it listens, else by a cancellation."""
        self.loop.call_later(within_s, lambda: exchange.is_told or exchange.cancel())

    # Hot reload

    async def run_newest(self, exchange):
        """Runs it on the changed app, if there is one; those at work end on theirs."""
        changed = None if self.swapping else self.worker.changed_app()
        if changed is not None:
            self.swapping = self.loop.create_task(self.swap(changed))
        if self.swapping:
            try:
                await asyncio.wait([self.swapping])
            except asyncio.CancelledError:
                exchange.task.cancel()  # once more, for the app
        lifespan = self.lifespan
        lifespan.requests += 1
        exchange.scope["state"] = lifespan.state.copy()
        try:
            await exchange.run()
        finally:
            lifespan.requests -= 1
            self.end_replaced(lifespan)

    async def swap(self, changed):
        try:
            app = as_single_callable(changed)
            lifespan = Lifespan(self.worker, app)
            failure = await lifespan.startup()
            if failure:
                return self.worker.swap_failed("the changed app's startup failed (%s)" % failure)
            last, self.app, self.lifespan = self.lifespan, app, lifespan
            self.worker.swapped()
            self.end_replaced(last)
        finally:
            self.swapping = None

    def end_replaced(self, lifespan):
        """An app that another has replaced shuts down behind its last request."""
        if lifespan is not self.lifespan and not lifespan.requests:
            self.wait_for(self.loop.create_task(lifespan.shutdown()))


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
        self.requests = 0  # at work on this app, as far as a reload has to know
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
