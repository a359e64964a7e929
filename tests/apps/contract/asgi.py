"""The contract suite's app, for ASGI."""

import asyncio
import hashlib
import os
import time

from parts import fail, pieces, touch


async def wait_for(folder, name="go"):
    while not os.path.exists(os.path.join(folder, name)):
        await asyncio.sleep(0.005)


async def app(scope, receive, send):
    await {"http": answer, "websocket": echo_socket, "lifespan": lifespan}[scope["type"]](scope, receive, send)


async def lifespan(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.sleep(0.15)
    touch(os.environ["CONTRACT_DIR"], "hook")
    await send({"type": "lifespan.shutdown.complete"})


async def echo_socket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    touch(os.environ["CONTRACT_DIR"], "closed", str(message["code"]))


async def told(receive, folder):
    while (await receive())["type"] != "http.disconnect":
        pass
    touch(folder, "told")


async def fork(kind, folder):
    child = os.fork()
    if child:
        return b"the parent"
    touch(folder, "child", str(os.getpid()))
    if kind == "raise":
        raise RuntimeError("told to fail, in a child")
    if kind == "stay":
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.005)
        os._exit(0)
    return b"the child"


async def answer(scope, receive, send):
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    _, name, *rest = (path + "/").split("/")
    status, headers, body = 200, [(b"content-type", b"text/plain")], None

    async def start():
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def more(piece):
        await send({"type": "http.response.body", "body": piece, "more_body": True})

    if name == "hello":
        body = b"hello"
    elif name == "pid":
        body = str(os.getpid()).encode()
    elif name == "ready":
        body = b"the app's"
    elif name == "env":
        lines = ["cwd=" + os.getcwd()] + ["%s=%s" % pair for pair in os.environ.items()]
        body = "\n".join(lines).encode()
    elif name == "sha":
        sum_, length, goes_on = hashlib.sha256(), 0, True
        while goes_on:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            sum_.update(message["body"])
            length, goes_on = length + len(message["body"]), message["more_body"]
        body = ("%d %s" % (length, sum_.hexdigest())).encode()
    elif name == "ignore":
        body = b"ignored"
    elif name == "part":
        await receive()
        body = b"left"
    elif name == "file":
        body = b"".join(pieces(query))
    elif name == "pieces":
        await start()
        for piece in pieces(query):
            await more(piece)
        return await send({"type": "http.response.body"})
    elif name == "wait":
        listener = asyncio.ensure_future(told(receive, query))
        touch(query, "started")
        await wait_for(query)
        listener.cancel()
        touch(query, "ended")
        body = b"done"
    elif name in ("events", "ticks"):
        headers = [(b"content-type", b"text/event-stream")]
        await start()
        await more(b"data: 0\n\n")
        listener = asyncio.ensure_future(told(receive, query))
        while not (listener.done() or os.path.exists(os.path.join(query, "go"))):
            await asyncio.wait([listener], timeout=0.02)
            if name == "ticks" and not listener.done():
                await more(b"data: 0\n\n")
        listener.cancel()
        return None if listener.done() else await send({"type": "http.response.body"})
    elif name == "fail":
        fail(rest[0])
    elif name == "break":
        await start()
        await more(b"first\n")
        await wait_for(query)
        fail(rest[0])
    elif name == "fork":
        body = await fork(rest[0], query)
    elif name == "fields":
        got = []
        for key, glue in ((b"x-many", b","), (b"cookie", b"; "), (b"x-latin", b",")):
            got.append(glue.join(value for field, value in scope["headers"] if field == key))
        headers += [(b"x-latin", got[2]), (b"x-out", b"a"), (b"x-out", b"b")]
        headers += [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        body = b"\n".join(got) + b"\n"
    elif name == "nobody":
        status, body = int(rest[0]), b"hello"
        headers.append((b"content-length", b"5"))
    elif name == "client":
        body = scope["client"][0].encode() + dict(scope["headers"]).get(b"rip-client", b"")
    if body is None:
        status, body = 404, b""
    await start()
    await send({"type": "http.response.body", "body": body})
