import asyncio
import hashlib
import os

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


async def hello(request):
    return PlainTextResponse("hello")


async def pid(request):
    return PlainTextResponse(str(os.getpid()))


async def sha(request):
    sum, length = hashlib.sha256(), 0
    async for piece in request.stream():
        sum.update(piece)
        length += len(piece)
    return PlainTextResponse("%d %s" % (length, sum.hexdigest()))


async def opened(gate):
    while not os.path.exists(gate):
        await asyncio.sleep(0.005)


async def stream(request):
    async def pieces():
        yield "first\n"
        await opened(request.query_params["gate"])
        yield "last\n"

    return StreamingResponse(pieces())


async def endless(request):
    async def pieces():
        while True:
            yield "tick\n"
            await asyncio.sleep(0.005)

    return StreamingResponse(pieces())


async def fail(request):
    raise RuntimeError("told to fail")


async def broken(request):
    async def pieces():
        yield "first\n"
        await opened(request.query_params["gate"])
        raise RuntimeError("told to fail")

    return StreamingResponse(pieces())


async def cookies(request):
    response = Response()
    response.set_cookie("a", "1", samesite=None)
    response.set_cookie("b", "2", path=None, samesite=None, expires="Thu, 01 Jan 1970 00:00:00 GMT")
    return response


async def echo(request):
    return PlainTextResponse("/echo/" + request.path_params["name"], headers={"X-Echo": request.headers["x-name"]})


app = Starlette(
    routes=[
        Route("/hello", hello),
        Route("/pid", pid),
        Route("/sha", sha, methods=["POST"]),
        Route("/stream", stream),
        Route("/endless", endless),
        Route("/fail", fail),
        Route("/break", broken),
        Route("/cookies", cookies),
        Route("/echo/{name}", echo),
    ]
)
