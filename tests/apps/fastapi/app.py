import asyncio
import hashlib
import os

from fastapi import FastAPI, Header, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse

app = FastAPI(default_response_class=PlainTextResponse)


@app.api_route("/hello", methods=["GET", "HEAD"])
async def hello():
    return "hello"


@app.get("/pid")
def pid():  # in a thread
    return str(os.getpid())


@app.post("/sha")
async def sha(request: Request):
    body = await request.body()
    return "%d %s" % (len(body), hashlib.sha256(body).hexdigest())


async def opened(gate):
    while not os.path.exists(gate):
        await asyncio.sleep(0.005)


@app.get("/stream")
async def stream(gate: str):
    async def pieces():
        yield "first\n"
        await opened(gate)
        yield "last\n"

    return StreamingResponse(pieces())


@app.get("/endless")
async def endless():
    async def pieces():
        while True:
            yield "tick\n"
            await asyncio.sleep(0.005)

    return StreamingResponse(pieces())


@app.get("/fail")
async def fail():
    raise RuntimeError("told to fail")


@app.get("/break")
async def broken(gate: str):
    async def pieces():
        yield "first\n"
        await opened(gate)
        raise RuntimeError("told to fail")

    return StreamingResponse(pieces())


@app.get("/cookies")
async def cookies(response: Response):
    response.set_cookie("a", "1", samesite=None)
    response.set_cookie("b", "2", path=None, samesite=None, expires="Thu, 01 Jan 1970 00:00:00 GMT")
    return ""


@app.get("/echo/{name}")
async def echo(name: str, response: Response, x_name: str = Header()):
    response.headers["X-Echo"] = x_name
    return "/echo/" + name


@app.websocket("/socket")
async def echo_socket(socket: WebSocket):
    await socket.accept()
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"])
            await socket.send({**message, "type": "websocket.send"})
    except WebSocketDisconnect as end:
        print("closed with", end.code)
