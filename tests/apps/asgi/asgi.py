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
        print("lifespan:", event, flush=True)
        await send({"type": "lifespan.%s.complete" % event})


async def echo_socket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    print("closed with", message["code"], flush=True)


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
        await gate(scope)
        yield b"last\n"
    elif path == "/endless":
        gone = asyncio.ensure_future(disconnected(receive))
        while not gone.done():
            yield b"tick\n"
            await asyncio.sleep(0.005)
    elif path == "/wait":
        print("waiting", flush=True)
        await disconnected(receive)
        print("the client has gone", flush=True)
    elif path == "/fail":
        raise RuntimeError("told to fail")
    elif path == "/break":
        yield b"first\n"
        await gate(scope)
        raise RuntimeError("told to fail")
    elif path.startswith("/echo/"):
        yield path.encode()
    elif path == "/cookies":
        yield b""


async def gate(scope):
    path = parse_qs(scope["query_string"].decode())["gate"][0]
    while not os.path.exists(path):
        await asyncio.sleep(0.005)


async def disconnected(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(scope, receive, send):
    headers = [PLAIN]
    if scope["path"] == "/cookies":
        headers.append((b"set-cookie", b"a=1; Path=/"))
        headers.append((b"set-cookie", b"b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT"))
    headers += [(b"x-echo", value) for name, value in scope["headers"] if name == b"x-name"]
    status = 404
    async for piece in pieces_of(scope, receive):
        if status == 404:
            status = 200
            await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    if status == 404:
        await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body"})
