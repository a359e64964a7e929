#!/usr/bin/env python3
"""Packs a corpus of the target `history` into tests/fuzz/histories.hex, which `cargo test` plays.

    cargo fuzz cmin --fuzz-dir tests/fuzz history      # keeps the inputs that each reach something new
    python3 tests/fuzz/histories.py [corpus]

Shorter inputs come first, up to a bound in bytes, so that playing them stays a matter of a few seconds.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
MAX_BYTES = 100_000

corpus = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "corpus" / "history"
inputs = sorted({file.read_bytes() for file in corpus.iterdir()} - {b""}, key=lambda data: (len(data), data))
kept, total = [], 0
for data in inputs:
    total += len(data)
    if total > MAX_BYTES:
        break
    kept.append(data.hex())
(HERE / "histories.hex").write_text("".join(line + "\n" for line in kept))
print(f"{len(kept)} of {len(inputs)} histories")
