"""The app of `soak --everything`: small answers, bodies, event streams and WebSockets, several at once."""

import asyncio

PIECE = bytes(64 << 10)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            step = (await receive())["type"]
            await send({"type": step + ".complete"})
            if step == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        return await echo(receive, send)
    path, query = scope["path"], scope["query_string"].decode()
    if path == "/events":
        return await events(send)
    if path == "/up":
        while (await receive()).get("more_body"):
            pass
    size = int(query.removeprefix("bytes=") or 0) if path == "/down" else 4
    headers = [(b"content-length", b"%d" % size), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while size > len(PIECE):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        size -= len(PIECE)
    await send({"type": "http.response.body", "body": PIECE[:size]})


async def events(send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while True:
        await send({"type": "http.response.body", "body": b"data: now\n\n", "more_body": True})
        await asyncio.sleep(0.2)


async def echo(receive, send):
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "bytes": event.get("bytes"), "text": event.get("text")})
