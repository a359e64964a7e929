"""Run it with `rip-server examples/fastapi w:4`: the server finds `app` in app.py, and sees that it is ASGI."""

import os

from fastapi import FastAPI, WebSocket

app = FastAPI()


@app.get("/")
async def index():
    return {"worker": int(os.environ["WORKER_ID"])}


@app.websocket("/echo")
async def echo(socket: WebSocket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)
