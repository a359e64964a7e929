"""A WebSocket client that most people use: `websocket_client.py <url> <how to leave>`."""

import asyncio
import sys

from websockets.asyncio.client import connect

MESSAGES = ["hello", "grüße €", "", b"\x00\xff", b"", "x" * 200_000, b"y" * 70_000]


async def main(url, leave):
    # No proxy, whatever the environment says.
    async with connect(url, proxy=None) as socket:
        for message in MESSAGES:
            await socket.send(message)
            answer = await socket.recv()
            assert answer == message, (answer[:100], message[:100])
        await socket.send(["in ", "three ", "frames"])
        assert await socket.recv() == "in three frames"
        await (await socket.ping())
        if leave == "orderly":
            await socket.close(4001, "enough")
            assert socket.close_code == 4001, socket.close_code
        else:
            socket.transport.abort()
    print("echoed", len(MESSAGES))


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 20))
