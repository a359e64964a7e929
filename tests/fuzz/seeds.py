#!/usr/bin/env python3
"""Writes tests/fuzz/corpus from tests/cases, so that the fuzzers begin with what is known to be interesting."""

import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
# Libfuzzer's own bound for inputs; the few longer cases are about bounds.
MOST_BYTES = 4096


def cases(name, key):
    for case in json.loads((HERE.parent / "cases" / name).read_text()):
        writes = [write.encode("latin-1") for write in case.get(key, [])]
        if b"".join(writes) and sum(map(len, writes)) <= MOST_BYTES:
            yield case, writes


def write(target, name, writes, flags=b""):
    """The layout of the targets' input: where to cut, as two bytes; flags, a byte each; the bytes."""
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(len(writes[0]).to_bytes(2, "little") + flags + b"".join(writes))


for case, writes in cases("http-requests.json", "send"):
    write("request_head", case["id"], writes, b"\1")
    head, _, body = b"".join(writes).partition(b"\r\n\r\n")
    if b"chunked" in head and body:
        write("chunked", case["id"], [body])
for case, writes in cases("worker-responses.json", "worker_sends"):
    request = case.get("request", "GET / HTTP/1.1").lower()
    is_old, is_head = "http/1.0" in request, request.startswith("head ")
    write("answer", case["id"], writes, bytes([is_head, "upgrade" in request, is_old, not is_old]))
    head, _, body = b"".join(writes).partition(b"\r\n\r\n")
    if b"chunked" in head and body:
        write("chunked", case["id"], [body])

request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
signature = b"\r\n\r\n\0\r\nQUIT\n"
for number, header in enumerate([
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n",
    b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n",
    b"PROXY UNKNOWN\r\n",
    signature + b"\x20\0\0\0",
    signature + b"\x21\x11\0\x0c" + bytes([192, 0, 2, 7, 198, 51, 100, 1, 0xDC, 4, 1, 0xBB]),
    signature + b"\x21\x21\0\x24" + bytes(36),
    signature + b"\x21\x31\0\xd8" + bytes(216),
]):
    write("proxy_header", f"header-{number}", [header, request])
