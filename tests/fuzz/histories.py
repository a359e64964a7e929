#!/usr/bin/env python3
"""Packs inputs of the target `history` into tests/fuzz/histories.bin, which `cargo test` plays.

    cargo fuzz run --fuzz-dir tests/fuzz history -- -set_cover_merge=1 -use_counters=0 <folder> tests/fuzz/corpus/history
    python3 tests/fuzz/histories.py <folder>

The first keeps a few inputs that reach together whatever the corpus reaches. What was found with an input is kept here by
adding it to the folder. Long inputs beyond a bound in bytes are left out: playing them takes seconds. Each is written with
its length, two bytes, before it.
"""

import pathlib
import sys

folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parent / "histories.bin"
inputs = sorted({file.read_bytes() for file in folder.iterdir()} - {b""}, key=lambda data: (len(data), data))
MAX_BYTES = 80_000
while sum(map(len, inputs)) > MAX_BYTES:
    inputs.pop()
out.write_bytes(b"".join(len(data).to_bytes(2, "big") + data for data in inputs))
print(f"{len(inputs)} histories")
