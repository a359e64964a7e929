#!/usr/bin/env python3
"""A worker of its own: says that it drains if DRAINS=1, and notes in $NOTES when SIGTERM comes.

/slow notes that it is at work, and answers when the file $NOTES/go is there."""
import json, os, signal, socket, sys, time

notes = os.environ["NOTES"]


def note(signum, frame):
    with open(f"{notes}/told.{os.getpid()}", "w"):
        pass
    told.append(signum)


def tell(message):
    line = socket.socket(socket.AF_UNIX)
    line.connect(os.environ["RIP_CONTROL_SOCKET"])
    body = json.dumps(message).encode()
    line.sendall(b"POST /worker HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    while line.recv(4096):
        pass


told = []
signal.signal(signal.SIGTERM, note)
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["SOCKET_PATH"])
listener.listen(100)
listener.settimeout(0.02)
tell({"op": "join", "workerId": int(os.environ["WORKER_ID"]), "pid": os.getpid(), "socket": os.environ["SOCKET_PATH"],
      "version": int(os.environ["RIP_VERSION"]), "drains": os.environ.get("DRAINS") == "1"})
while not told:
    try:
        peer, _ = listener.accept()
    except (TimeoutError, InterruptedError):
        continue
    peer.settimeout(None)
    while True:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = peer.recv(65536)
            if not piece:
                break
            head += piece
        if not head:
            break
        if b"/slow" in head:
            open(f"{notes}/at_work", "w").close()
        while b"/slow" in head and not os.path.exists(f"{notes}/go"):
            time.sleep(0.02)
        text = str(os.getpid()).encode()
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
