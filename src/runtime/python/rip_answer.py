"""A WSGI request's body as it comes, and its answer as it goes."""

import io
import os
import stat

# By their own names: gevent and eventlet replace what the modules have.
from _thread import allocate_lock
from select import POLLIN, poll
from socket import MSG_DONTWAIT

from rip_head import TEXT
from rip_worker import FINAL_STATUSES, HOP_BY_HOP, Gone

READ_BYTES = 65536
JOIN_BYTES = 65536  # up to here, copying head and body together costs less than another send
WAIT_MS = 100  # how late a reader may notice that the answer has ended


class Leaving(Gone):
    """The worker leaves, so an event stream ends here, in good order."""


class Body(io.RawIOBase):
    """A request's body while it comes; io.BufferedReader makes wsgi.input of it."""

    def __init__(self, connection, length):
        self.connection = connection  # None once the answer has ended
        self.left = length
        # A thread of the app's may read while the answer ends. Nobody waits for anything while he has it.
        self.lock = allocate_lock()

    def readable(self):
        return True

    def readinto(self, into):
        while self.left:
            with self.lock:
                connection = self.connection
                if connection is None:
                    raise Gone("the answer has ended, and its request's body with it")
                count = self.take(connection, into)
            if count is not None:
                return count
            wait_for_more(connection.fd)
        return 0

    def take(self, connection, into):
        """What has come, without waiting for more; None if nothing has."""
        count = min(len(into), self.left)
        if connection.rest:
            count = min(count, len(connection.rest))
            into[:count] = connection.rest[:count]
            connection.rest = connection.rest[count:]
        else:
            try:
                count = connection.sock.recv_into(into, count, MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError:
                count = 0
            if not count:
                connection.gone = True
                raise Gone("the request's body has ended early")
        self.left -= count
        return count

    def detach(self):
        """The answer has ended: what comes now is not for who still reads. Returns how much of the body is to come."""
        with self.lock:
            connection, self.connection = self.connection, None
            return self.left - len(connection.rest)


def wait_for_more(fd):
    """Not for long: as long as a thread waits, its connection is not closed for the other end."""
    poller = poll()
    poller.register(fd, POLLIN)
    poller.poll(WAIT_MS)


class FileWrapper:
    def __init__(self, filelike, blksize=READ_BYTES):
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self):
        return iter(lambda: self.filelike.read(self.blksize), b"")


class Answer:
    """One request's answer: the head waits for the body's first block, as PEP 3333 wants it."""

    def __init__(self, server, connection, method):
        self.server = server
        self.connection = connection
        self.is_get = method == "GET"
        self.without_body = method == "HEAD"
        self.status = None
        self.headers = None
        self.head_sent = False
        self.chunked = False
        self.due = None  # what Content-Length still promises
        self.streams_events = False
        self.complete = False

    def start_response(self, status, headers, exc_info=None):
        if exc_info:
            try:
                if self.head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it would hold the frames in a circle
        elif self.status is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self.status, self.headers = status, headers
        return self.write

    def head(self, length):
        """The head's bytes; `length` is the body's, or None if that is not known yet."""
        status = self.status
        if status is None:
            raise AssertionError("the app has not called start_response")
        code = int(status[:3])
        if code not in FINAL_STATUSES:
            raise ValueError("%r is no status of a final answer" % status)
        lines = ["HTTP/1.1 " + status]
        self.due = None
        for name, value in self.headers:
            TEXT.check_field_name(name)
            lower = name.lower()
            if lower == "content-length":
                self.due = int(value)
            elif lower in HOP_BY_HOP:
                continue
            elif lower == "content-type":
                self.streams_events = value[:17].lower() == "text/event-stream"
            lines.append(name + ": " + value)
        if code in (204, 304):
            self.without_body = True
        elif self.due is None and not (self.without_body and not length):
            if length is None:
                self.chunked = True
                lines.append("Transfer-Encoding: chunked")
            else:
                self.due = length
                lines.append("Content-Length: %d" % length)
        text = "\r\n".join(lines)
        if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
            raise ValueError("the status or a header has a line break in it: %r" % lines)
        return (text + "\r\n\r\n").encode("latin-1")

    def fitting(self, block):
        """The block as it is to be sent, counted against Content-Length."""
        if self.without_body:
            return b""
        if self.due is not None:
            if len(block) > self.due:
                raise AssertionError("the body is longer than its Content-Length")
            self.due -= len(block)
        return block

    def whole(self, body):
        """Head and body at once."""
        with self.connection.writing:
            self.send_whole(body)

    def send_whole(self, body):
        head = self.head(len(body))
        body = self.fitting(body)
        self.head_sent = True
        if len(body) <= JOIN_BYTES:
            self.server.busy = False
            self.connection.send(head + body)
        else:
            self.connection.send(head)
            self.server.busy = False
            self.connection.send(body)

    def write(self, block):
        """One block of the body: it leaves at once."""
        if not block:
            return
        with self.connection.writing:
            if self.complete:
                # The connection is the next answer's, which is another client's.
                raise Gone("the answer has ended")
            self.send_block(block)

    def send_block(self, block):
        if self.head_sent:
            # A stream may have no end: only here can it notice that nobody listens.
            if self.chunked and self.connection.has_ended():
                self.connection.gone = True
                raise Gone("the client has gone")
            if self.streams_events and self.is_get and self.server.leaving:
                raise Leaving("the worker leaves")
            head = b""
        else:
            head = self.head(None)
        block = self.fitting(block)
        if self.chunked:
            block = b"%x\r\n%b\r\n" % (len(block), block)
        data = head + block  # fails where the block is no bytes, before anything is sent
        self.head_sent = True
        if self.due == 0:
            self.server.busy = False
        if data:
            self.connection.send(data)

    def send_file(self, file):
        """Sends a real file from kernel to kernel; False if it is none."""
        if self.head_sent or not isinstance(file, (io.BufferedReader, io.BufferedRandom)):
            return False
        # Not whatever has a fileno(): a GzipFile's is that of the compressed file.
        if not isinstance(file.raw, io.FileIO) or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return False
        with self.connection.writing:
            self.send_file_on(file, file.tell())
        return True

    def send_file_on(self, file, offset):
        head = self.head(max(os.fstat(file.fileno()).st_size - offset, 0))
        self.head_sent = True
        self.connection.send(head)
        while self.due and not self.without_body:
            try:
                count = os.sendfile(self.connection.sock.fileno(), file.fileno(), offset, self.due)
            except OSError as error:
                self.connection.gone = True
                raise Gone(str(error)) from None
            if not count:
                break
            offset += count
            self.due -= count

    def end(self):
        with self.connection.writing:
            if not self.head_sent:
                self.send_whole(b"")
            if self.due and not self.without_body:
                raise AssertionError("the body is %d bytes shorter than its Content-Length" % self.due)
            self.complete = True  # before the last byte, behind which the next request comes
            if self.chunked:
                self.server.busy = False
                self.connection.send(b"0\r\n\r\n")

    def close(self):
        """Nothing more of it is sent; returns whether it was complete."""
        with self.connection.writing:
            was_complete, self.complete = self.complete, True
            return was_complete
