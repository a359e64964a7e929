"""Heads that are mutated, read by both parsers of the Python harness and by h11.

usage: python_heads.py <the harness's folder> <http-requests.json> <seed> <rounds>

What both of ours accept h11 accepts, with the same method, target, fields and length of body; what they refuse they
refuse with 400, and nothing ends in an exception. However a head comes in pieces, it is read in the same way.
"""

import asyncio
import json
import random
import sys
from types import SimpleNamespace

sys.path.insert(0, sys.argv[1])
import rip_http
import rip_wsgi
from rip_head import BadRequest
from rip_websocket import WebSocket

try:
    import h11
except ImportError:
    h11 = None
    print("h11 is not installed: nobody else judges")

BAD = b"HTTP/1.1 400 "
FORWARDED = (
    b"POST /a/b?c=d HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\nCookie: a=b\r\nContent-Length: 3\r\n"
    b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Request-Id: 0123456789abcdef"
)
UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
)
PIECES = [b"\r", b"\n", b"\r\n", b"\0", b"\t", b" ", b":", b",", b"%00", b"%", b"?", b"*", b"/", b"_", b"-", b"+", b"0x3"]
PIECES += [b"\x0b", b"\x1f", b"\x7f", b"\x80", b"\x85", b"\xa0", b"\xb2", b"\xff", b"HTTP/1.0", b"9" * 20, b"9" * 5000]
LINES = [b"Content-Length: 3", b"content-length:4", b"Content_Length: 5", b"Transfer-Encoding: chunked", b"Host: b:99999"]
LINES += [b"Rip-Probe: idle", b"Rip-Client: 10.0.0.1", b" folded", b"X", b":", b"X-Long: " + b"y" * 9000, b"Host: c"]


class Transport:
    def __init__(self):
        self.written, self.is_closed = b"", False

    def write(self, data):
        self.written += data

    def close(self):
        self.is_closed = True


class Server:
    """What a connection asks of the ASGI server; no app runs."""

    new_websocket = WebSocket
    connections = set()
    lifespan = SimpleNamespace(state={})
    threads = SimpleNamespace(at_work=())
    loop = SimpleNamespace(time=lambda: 0.0)

    def has_place(self):
        return True

    def is_idle(self, _):
        return True

    def begin(self, exchange):
        pass


class Connection(rip_http.Connection):
    came = None

    def answer(self, method, target, headers, fields, body):
        self.came = method, target, headers, self.body_left + len(body)
        super().answer(method, target, headers, fields, body)


def asgi(pieces):
    """Method, target, fields and the body's length, or None."""
    connection = Connection(Server())
    connection.connection_made(Transport())
    for piece in pieces:
        connection.data_received(piece)
    transport = connection.transport
    if connection.came is None:
        assert transport.written.startswith(BAD) and transport.is_closed, transport.written
    return connection.came


WSGI = rip_wsgi.WsgiServer.__new__(rip_wsgi.WsgiServer)
WSGI.base, WSGI.known_names = {}, {}


def wsgi(head):
    """Method, target and the body's length, or None."""
    try:
        environ, length = WSGI.environ(head)
    except BadRequest:
        return None
    assert all(isinstance(value, str) for value in environ.values())
    return environ["REQUEST_METHOD"].encode(), environ["REQUEST_URI"].encode("latin-1"), length


def judge(head):
    """What h11 takes it for; None where it refuses, and False where it has no say."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(head + b"\r\n\r\n")
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        # The front end sees to Host, and h11 knows only targets of ASCII.
        return False if "Host" in str(error) or not head.split(b"\r\n")[0].isascii() else None
    headers = list(event.headers)
    length = int(dict(headers).get(b"content-length", 0))
    return event.method, event.target, headers, length


def mutated(chance, heads):
    head = chance.choice(heads)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        at, kind = chance.randrange(len(head) + 1), chance.randrange(7)
        lines = head.split(b"\r\n")
        if kind == 0:
            head = head[:at] + head[at + 1 :]
        elif kind == 1:
            head = head[:at] + chance.choice(PIECES) + head[at:]
        elif kind == 2:
            head = head[:at] + bytes((chance.randrange(256),)) + head[at + 1 :]
        elif kind == 3:
            lines.insert(chance.randrange(len(lines)) + 1, chance.choice(LINES))
            head = b"\r\n".join(lines)
        elif kind == 4:
            lines.append(chance.choice(lines))
            head = b"\r\n".join(lines)
        elif kind == 5:
            chance.shuffle(lines)
            head = b"\r\n".join(lines)
        else:
            other = chance.choice(heads)
            head = head[:at] + other[chance.randrange(len(other)) :]
    # Only the first head of what has come out.
    return (head + b"\r\n\r\n").partition(b"\r\n\r\n")[0]


def check(head, chance):
    whole = head + b"\r\n\r\n"
    ours = asgi([whole])
    cut = chance.randrange(len(whole))
    assert asgi([whole[:cut], whole[cut:]]) == ours, "in two pieces it is another"
    plain = wsgi(head)
    if b"_" not in head:
        assert (plain is None) == (ours is None), "one parser takes it and the other does not"
    if ours is None:
        return False
    method, target, headers, length = ours
    assert plain in (None, (method, target, length)), "the parsers disagree"
    other = judge(head) if h11 else False
    if other is not False:
        assert other == (method, target, headers, length), "h11 takes it for %r" % (other,)
    return True


def main():
    seed, rounds = int(sys.argv[3]), int(sys.argv[4])
    chance = random.Random(seed)
    with open(sys.argv[2]) as file:
        sent = ["".join(case["send"][:1]) for case in json.load(file) if isinstance(case["send"][0], str)]
    heads = [text.encode("latin-1").partition(b"\r\n\r\n")[0] for text in sent]
    heads = [head for head in heads if 0 < len(head) < 2000]
    heads += [FORWARDED, UPGRADE] * (len(heads) // 4)
    accepted = 0
    for number in range(rounds):
        head = mutated(chance, heads)
        if not head:
            continue
        try:
            accepted += check(head, chance)
        except Exception as error:
            raise SystemExit("seed %d, round %d: %r: %r" % (seed, number, head, error)) from error
    print("%d of %d accepted" % (accepted, rounds))
    assert rounds / 20 < accepted < rounds * 19 / 20, "too few of one kind to prove anything"


asyncio.set_event_loop(asyncio.new_event_loop())
main()
