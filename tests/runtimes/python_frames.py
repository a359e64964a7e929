"""WebSocket frames that are mutated, read by the Python harness and by `websockets`.

usage: python_frames.py <the harness's folder> <seed> <rounds>

Both get the same messages out of them, and end with the same code. However the bytes come in pieces, they are read in
the same way, and nothing ends in an exception. What an idle app and an idle client leave waiting stays bounded.
"""

import asyncio
import random
import sys
from types import SimpleNamespace

sys.path.insert(0, sys.argv[1])
import rip_websocket
from rip_websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, WebSocket
from websockets.protocol import Protocol, Side

PAYLOADS = [b"", b"a", "grüße €".encode(), b"\xff", "€".encode()[:2], "€".encode()[2:], b"\xed\xa0\x80", b"x" * 125]
PAYLOADS += [b"y" * 126, b"z" * 70_000, b"\0"]
CODES = [999, 1000, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1014, 1015, 1016, 2999, 3000, 4999, 5000, 65535]
MAX_MESSAGE_BYTES = 100_000  # smaller than it is, so that large ones are quick


class Transport:
    def __init__(self):
        self.written, self.is_closed, self.pauses = b"", False, 0

    def write(self, data):
        self.written += data

    def close(self):
        self.is_closed = True

    def pause_reading(self):
        self.pauses += 1

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.is_closed = True


class Server:
    """What a WebSocket asks of the ASGI server; no app runs."""

    loop = SimpleNamespace(call_later=lambda *_: None)

    def cancel_unless_told(self, *_):
        pass


def opened():
    server = Server()
    transport = Transport()
    connection = SimpleNamespace(server=server, transport=transport, exchange=None, writable=None)
    connection.pause_reading = transport.pause_reading
    scope = {"scheme": "http", "method": "GET"}
    socket = WebSocket(connection, scope, {b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ=="})
    connection.exchange = socket
    socket.accepted = True
    socket.queue.clear()
    return socket


def ours(pieces):
    """The messages, what was written, the code of the end, and whether that was within a message."""
    socket = opened()
    for piece in pieces:
        socket.feed(piece)
    messages = [event.get("text", event.get("bytes")) for event in socket.queue]
    code = socket.disconnect and socket.disconnect["code"]
    return messages, socket.connection.transport.written, code, socket.kind is not None


def theirs(data):
    protocol = Protocol(Side.SERVER, max_size=MAX_MESSAGE_BYTES)
    protocol.receive_data(data)
    messages, kind, parts, not_text = [], None, [], False
    for frame in protocol.events_received():
        if frame.opcode not in (CONTINUATION, TEXT, BINARY):
            continue
        kind = kind if frame.opcode == CONTINUATION else frame.opcode
        parts.append(bytes(frame.data))
        if frame.fin:
            message, parts = b"".join(parts), []
            try:
                messages.append(message.decode() if kind == TEXT else message)
            except UnicodeDecodeError:
                not_text = True
                break
    if not_text:
        return messages, rip_websocket.NOT_UTF8
    sent = protocol.close_sent or protocol.close_rcvd
    return messages, sent and sent.code


def frame(chance, opcode, payload, final=True):
    head = bytearray([(0x80 if final else 0) | opcode])
    length = len(payload)
    # Longer than need be, which `websockets` takes of control frames too.
    is_padded = opcode < CLOSE and chance.random() < 0.04
    if length > 65535 or is_padded and chance.random() < 0.5:
        head += bytes([0x80 | 127]) + length.to_bytes(8, "big")
    elif length > 125 or is_padded:
        head += bytes([0x80 | 126]) + length.to_bytes(2, "big")
    else:
        head.append(0x80 | length)
    mask = chance.randbytes(4)
    return bytes(head) + mask + rip_websocket.unmask(payload, mask)


def frames(chance):
    """Some that are right, for the most part."""
    data, within = b"", False
    for _ in range(chance.randrange(1, 7)):
        kind = chance.choice((TEXT, TEXT, BINARY, BINARY, PING, PONG, CLOSE))
        if kind == CLOSE:
            code = chance.choice(CODES).to_bytes(2, "big") if chance.random() < 0.8 else b""
            data += frame(chance, CLOSE, code + chance.choice(PAYLOADS[:8])[: 123 if code else 0])
        elif kind in (PING, PONG):
            data += frame(chance, kind, chance.choice(PAYLOADS[:8]))
        else:
            final = chance.random() < 0.6
            data += frame(chance, CONTINUATION if within else kind, chance.choice(PAYLOADS), final)
            within = not final
    return data


def mutated(chance):
    data = bytearray(frames(chance))
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        at, kind = chance.randrange(min(len(data), 300)), chance.randrange(4)
        if kind == 0:
            del data[at]
        elif kind == 1:
            data.insert(at, chance.randrange(256))
        elif kind == 2:
            data[at] ^= 1 << chance.randrange(8)
        else:
            del data[chance.randrange(len(data)) :]
        if not data:
            break
    return bytes(data)


def check(data, chance):
    messages, _, code, is_within = whole = ours([data])
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(3))
    assert ours([data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]) == whole, "in pieces it is another"
    if len(data) < 300:
        assert ours([data[at : at + 1] for at in range(len(data))]) == whole, "byte by byte it is another"
    other_messages, other_code = theirs(data)
    assert messages == other_messages, (messages, other_messages)
    # `websockets` reads a frame to its end before it says that it is wrong, and takes no Close within a message.
    is_later = other_code is None and code in (1002, 1009)
    assert code == other_code or is_later or other_code == 1002 and is_within, (code, other_code)
    return code is None or code < 1002


def check_bounds():
    chance = SimpleNamespace(random=lambda: 1.0, randbytes=bytes)
    socket = opened()
    fed, block = 0, frame(chance, TEXT, b"") * 1000
    while not socket.connection.transport.pauses:
        socket.feed(block)
        fed += 1000
        assert fed < 10_000, "empty messages are queued without a bound"
    socket = opened()
    socket.connection.writable = asyncio.new_event_loop().create_future()
    for number in range(1000):
        socket.feed(frame(chance, PING, b"%d" % number))
    assert not socket.connection.transport.written, "pongs wait for a client that reads nothing"
    socket.connection.writable.set_result(None)
    socket.connection.writable.get_loop().run_until_complete(asyncio.sleep(0))
    assert socket.connection.transport.written == bytes([0x80 | PONG, 3]) + b"999", "the last ping is answered"
    socket = opened()
    socket.close(1000, "€" * 100)
    assert len(socket.connection.transport.written) <= 127
    socket.connection.transport.written[4:].decode()


def main():
    seed, rounds = int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    rip_websocket.MAX_MESSAGE_BYTES = MAX_MESSAGE_BYTES
    check_bounds()
    right = 0
    for number in range(rounds):
        data = mutated(chance)
        try:
            right += check(data, chance) if data else 1
        except Exception as error:
            raise SystemExit("seed %d, round %d: %r: %r" % (seed, number, error, data[:600])) from error
    print("%d of %d without a fault" % (right, rounds))
    assert rounds / 10 < right < rounds * 9 / 10, "too few of one kind to prove anything"


main()
