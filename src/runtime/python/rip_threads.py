"""Serves a WSGI app with several requests at once (`c:` above 1), each in a thread.

One thread leads: it waits for all connections and serves what comes itself, one request after the other, which costs no
more than one thread alone. Another one stands by. When the leader is still at work on a request a moment later, and more
is waiting, the one that stands by takes the lead; the last leader goes on with its request, and is one of the others
then. So a thread is woken only where a handler waits for something.

    waiting ─▶ standing by ─▶ leading ─┬─▶ at work in the lead ─▶ leading
       ▲                               └─▶ at work beside, when another has taken the lead
       └───────────────────────────────────────────┘
"""

import signal
from _thread import allocate_lock, start_new_thread
from os import read
from select import EPOLLIN, epoll
from socket import AF_UNIX, SOCK_STREAM, socket
from time import monotonic, sleep

from rip_head import BadRequest
from rip_worker import BUSY, READY
from rip_wsgi import ACCEPT_PAUSE_S, PARTIAL, READ_BYTES, Connection, WsgiServer

# A request that takes longer leaves the lead to another thread, if more is waiting. Shorter, and requests that only
# compute would wake threads; longer, and those that wait would start late.
LEAD_S = 0.001
WAITS_S = 0.005  # a handler that took so long beside the lead has waited for something


def serve(worker, app):
    ThreadedServer(worker, app).run()


class ThreadedServer(WsgiServer):
    multithread = True

    def open(self, listener):
        self.listener = listener
        self.connections = {}
        self.poller.register(listener, EPOLLIN)
        self.watch = epoll()  # for whoever stands by: readable when the leader has something to do
        self.watch.register(self.poller.fileno(), EPOLLIN)
        self.standing_by = allocate_lock()
        self.lock = allocate_lock()  # over the four below
        self.leader = None
        self.serial = 0  # of the leader's latest request
        self.in_lead = None  # the connection that the leader serves
        self.handlers_wait = False  # as far as the last request tells: then nobody needs to look for how long
        self.beside = 0  # requests of threads that do not lead
        self.loading = allocate_lock()
        self.finished = allocate_lock()
        self.finished.acquire()

    def run(self):
        self.apps_sigterm = self.worker.apps_sigterm()
        signal.signal(signal.SIGTERM, self.on_sigterm)
        signal.set_wakeup_fd(self.wake_writer, warn_on_full_buffer=False)
        # One more than there are places: somebody has to say that all are taken.
        for _ in range(self.worker.max_at_work + 1):
            start_new_thread(self.run_thread, (object(),))
        self.worker.join(streams=False, concurrency=self.worker.max_at_work)
        # Signals' handlers run in this thread.
        while True:
            try:
                self.finished.acquire()
                return
            except SystemExit:
                self.leaving = True  # a signal's handler of the app's own
                self.wake()

    def descriptors(self):
        return [self.listener.fileno(), *self.connections]

    # The lead

    def run_thread(self, me):
        while True:
            with self.standing_by:
                while not self.takes_lead(me):
                    pass
            while self.lead(me):
                pass

    def takes_lead(self, me):
        """Waits until the leader is at work for too long while more is waiting."""
        if self.leader is None:
            return self.take_lead(me, None)
        self.watch.poll()
        serial = self.serial
        if not (self.handlers_wait and self.in_lead):
            sleep(LEAD_S)
        return self.take_lead(me, serial)

    def take_lead(self, me, serial):
        """Takes it from a leader that is at work on that request."""
        with self.lock:
            if self.leader is not None:
                if serial != self.serial or not self.in_lead:
                    return False
                self.poller.unregister(self.in_lead.fd)
                self.in_lead.left_at = monotonic()
                self.in_lead = None
                self.beside += 1
            self.leader = me
        return True

    def lead(self, me):
        """Serves what has come; False when another has taken the lead."""
        for fd, _ in self.poller.poll():
            if fd == self.wake_reader:
                self.woken()
            elif fd == self.listener.fileno():
                self.accept()
            elif self.beside >= self.worker.max_at_work:
                self.refuse(self.connections[fd])
            else:
                connection = self.connections[fd]
                self.serial += 1
                self.in_lead = connection
                keep = self.served(connection)
                if not self.still_leads(me, connection, keep):
                    # What else has come is the new leader's.
                    self.handlers_wait = monotonic() - connection.left_at > WAITS_S
                    return self.handlers_wait and self.take_lead(me, self.serial)
                self.handlers_wait = False
        return True

    def still_leads(self, me, connection, keep):
        with self.lock:
            leads = self.leader is me
            if leads:
                self.in_lead = None
            else:
                self.beside -= 1
        if not keep:
            self.close(connection)
        elif not leads:
            self.poller.register(connection.fd, EPOLLIN)
        if self.leaving and not leads:
            self.wake()
        return leads

    def served(self, connection):
        try:
            return self.serve_one(connection)
        except BadRequest:
            return connection.refuse()
        except OSError:
            return False  # gone
        except BaseException as error:
            # The thread may lead, and is one of those that are counted.
            self.worker.say("a request has failed in the harness", error)
            return False

    # Connections

    def accept(self):
        try:
            connection = Connection(socket(AF_UNIX, SOCK_STREAM, 0, self.listener._accept()[0]))
        except OSError:
            return sleep(ACCEPT_PAUSE_S)
        self.connections[connection.fd] = connection
        self.poller.register(connection.fd, EPOLLIN)

    def close(self, connection):
        del self.connections[connection.fd]
        connection.sock.close()
        # With the server gone, nobody will ever end this process.
        if not self.connections and not self.worker.server_lives():
            self.leaving = True
        if self.leaving:
            self.wake()

    def refuse(self, connection):
        """All places are taken."""
        try:
            head = connection.read_head()
            if head is PARTIAL:
                return
            if head:
                environ, length = self.environ(head)
                connection.send(self.probed(environ) or BUSY)
                if connection.skip_body(length):
                    return
        except BadRequest:
            connection.refuse()
        except OSError:
            pass
        self.close(connection)

    def woken(self):
        if signal.SIGTERM in read(self.wake_reader, READ_BYTES):
            self.leaving = True
        if self.leaving and self.quit_accepted is None:
            self.quit_accepted = self.worker.quit()
        if self.quit_accepted is None or self.beside or self.quit_accepted and self.connections:
            return
        if self.finished.locked():
            self.finished.release()

    # Requests

    def probed(self, environ):
        kind = environ.get("HTTP_RIP_PROBE")
        if kind is None or environ["PATH_INFO"] != "/ready":
            return None
        if kind == "1":
            return READY
        wanted = environ.get("HTTP_X_REQUEST_ID")
        ids = {connection.request_id for connection in list(self.connections.values())} - {None}
        return BUSY if (wanted in ids if wanted else ids) else READY

    def answer(self, connection, environ):
        connection.request_id = environ.get("HTTP_X_REQUEST_ID", "")
        try:
            return super().answer(connection, environ)
        finally:
            connection.request_id = None

    def newest_app(self):
        with self.loading:
            return super().newest_app()
