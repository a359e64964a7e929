"""A bare ASGI app, with a lifespan and WebSockets."""

import asyncio
import hashlib
import os
from urllib.parse import parse_qs

PLAIN = (b"content-type", b"text/plain")


async def app(scope, receive, send):
    await {"http": answer, "websocket": echo_socket, "lifespan": lifespan}[scope["type"]](scope, receive, send)


async def lifespan(scope, receive, send):
    for event in ("startup", "shutdown"):
        await receive()
        print("lifespan:", event)
        await send({"type": "lifespan.%s.complete" % event})


async def echo_socket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    print("closed with", message["code"])


async def pieces_of(scope, receive):
    path = scope["path"]
    if path == "/hello":
        yield b"hello"
    elif path == "/pid":
        yield str(os.getpid()).encode()
    elif path == "/sha":
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        yield b"%d %b" % (len(body), hashlib.sha256(body).hexdigest().encode())
    elif path == "/stream":
        yield b"first\n"
        gate = parse_qs(scope["query_string"].decode())["gate"][0]
        while not os.path.exists(gate):
            await asyncio.sleep(0.005)
        yield b"last\n"
    elif path == "/endless":
        gone = asyncio.ensure_future(disconnected(receive))
        while not gone.done():
            yield b"tick\n"
            await asyncio.sleep(0.005)
    elif path == "/fail":
        raise RuntimeError("told to fail")
    elif path == "/break":
        yield b"first\n"
        raise RuntimeError("told to fail")
    elif path.startswith("/echo/"):
        yield path.encode()
    elif path == "/cookies":
        yield b""


async def disconnected(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(scope, receive, send):
    headers = [PLAIN]
    if scope["path"] == "/cookies":
        headers.append((b"set-cookie", b"a=1; Path=/"))
        headers.append((b"set-cookie", b"b=2; Expires=Thu, 01 Jan 2032 00:00:00 GMT"))
    headers += [(b"x-echo", value) for name, value in scope["headers"] if name == b"x-name"]
    started = False
    async for piece in pieces_of(scope, receive):
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            started = True
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})
