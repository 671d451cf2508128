#!/usr/bin/env python3
"""A target's inputs as a text: one a line, with bytes that are no printable ASCII escaped as in C.

corpus.py unpack FILE DIRECTORY   writes them as files, as libFuzzer reads them
corpus.py pack DIRECTORY FILE     the other way round; shorter ones first, each once
"""

import pathlib
import re
import sys

NAMES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
VALUES = {name: value for value, name in NAMES.items()}


def escaped(data):
    return re.sub(rb"[^ -\[\]-~]", lambda m: NAMES.get(m[0]) or b"\\x%02x" % m[0][0], data)


def unescaped(line):
    return re.sub(rb"\\(?:x([0-9a-f]{2})|.)", lambda m: VALUES.get(m[0]) or bytes.fromhex(m[1].decode()), line)


def main(command, source, target):
    source, target = pathlib.Path(source), pathlib.Path(target)
    if command == "unpack":
        target.mkdir(parents=True, exist_ok=True)
        for number, line in enumerate(source.read_bytes().splitlines()):
            (target / f"{number:04}").write_bytes(unescaped(line))
    elif command == "pack":
        inputs = {file.read_bytes() for file in source.iterdir()}
        lines = [escaped(data) for data in sorted(inputs, key=lambda data: (len(data), data))]
        assert {unescaped(line) for line in lines} == inputs
        target.write_bytes(b"".join(line + b"\n" for line in lines))
    else:
        sys.exit(__doc__)


if len(sys.argv) != 4:
    sys.exit(__doc__)
main(*sys.argv[1:])
