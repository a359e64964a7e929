"""What the contract suite's two apps in Python share."""

import asyncio
import os
import signal

PIECE = 65536


def touch(folder, name, text=""):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


class Own(BaseException):
    pass


def fail(kind):
    if kind == "exit":
        raise SystemExit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    kinds = {"interrupt": KeyboardInterrupt, "cancelled": asyncio.CancelledError, "own": Own, "generator": GeneratorExit}
    raise kinds.get(kind, RuntimeError)("told to fail")


def pieces(path):
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            yield piece
