"""What the heads of the front end's requests are like. Whoever sends another is answered 400."""

import re

# The front end's bound for a client's head, and as much again for what it adds.
MAX_HEAD_BYTES = 131072
MAX_KNOWN_NAMES = 1000  # header names are the clients' to invent, so what is kept of them is bounded
MAX_LENGTH_DIGITS = 18  # more is no body that somebody sends

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = r"(%s) (/[!-~\x80-\xff]*|\*) HTTP/1\.1" % TOKEN
# All but the tab: of CR and LF there are those between the lines.
CONTROLS = bytes({*range(32), 127} - {9})


class BadRequest(ValueError):
    pass


class Grammar:
    """The same for heads of bytes and for those that are decoded as Latin-1."""

    def __init__(self, kind):
        self.match_line = re.compile(kind(REQUEST_LINE)).fullmatch
        self.is_token = re.compile(kind(TOKEN)).fullmatch
        self.field_names = set()  # of answers, as far as they have been checked

    def method_and_target(self, line):
        match = self.match_line(line)
        if not match:
            raise BadRequest
        return match.groups()

    def check_name(self, name):
        if not self.is_token(name):
            raise BadRequest

    def check_field_name(self, name):
        """That of an answer's field, which is the app's."""
        if name in self.field_names:
            return
        if not self.is_token(name):
            raise ValueError("%r is no name of a header" % name)
        if len(self.field_names) < MAX_KNOWN_NAMES:
            self.field_names.add(name)


TEXT = Grammar(str)
BYTES = Grammar(lambda pattern: pattern.encode("latin-1"))


def check_controls(head, lines):
    """That there is no control character in any of the head's lines."""
    if len(head) - len(head.translate(None, CONTROLS)) != 2 * len(lines) - 2:
        raise BadRequest


def body_bytes(length):
    """What Content-Length says."""
    if not (length.isdigit() and length.isascii() and len(length) <= MAX_LENGTH_DIGITS):
        raise BadRequest
    return int(length)
