"""What valgrind counts of a run: user-space instructions and allocations, which no noise of the machine touches."""

import re

ALLOCATING = {"malloc", "calloc", "realloc", "reallocarray", "posix_memalign", "aligned_alloc", "memalign"}


def callgrind(out):
    """Valgrind's words before a command, for `counted` to read what it leaves in `out`."""
    return ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "-q"]


def counted(out):
    """User-space instructions of a run, and its calls of the C library's allocator."""
    text = open(out).read()
    names, allocations, callee = {}, 0, None
    # A name stands beside its number the first time only: `cfn=(12) malloc`, then `cfn=(12)`.
    for key, number, name, calls in re.findall(r"^(?:(c?fn)=\((\d+)\)(?: (.*))?|calls=(\d+) .*)$", text, re.M):
        if name:
            names[number] = name
        if key == "cfn":
            callee = names.get(number)
        elif calls and callee in ALLOCATING:
            allocations += int(calls)
    return int(re.search(r"^(?:totals|summary): (\d+)", text, re.M)[1]), allocations
