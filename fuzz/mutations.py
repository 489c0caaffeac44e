"""Mutations of bytes and of the tokens of a text, for any format."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

MutateBytes = Callable[[bytes, int], bytes]
"""(data, most bytes) -> other data; libFuzzer's own where there is one."""

SIZES = (0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 127, 128, 255, 256, 4095, 4096, 65535, 65536)
LIMITS = tuple(s * 2**bits + d for bits in (7, 8, 15, 16, 31, 32, 53, 63, 64) for d in (-1, 0, 1) for s in (1, -1))
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|\w+|\s+|.', re.DOTALL)
_BRACKETS = {b"{": b"}", b"[": b"]", b"(": b")"}


def number(rng: random.Random, near: int = 0) -> int:
    """One that has a chance of being at an edge."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(SIZES)
    if kind == 1:
        return rng.choice(LIMITS)
    return near + rng.choice((-8, -4, -2, -1, 1, 2, 4, 8)) if kind == 2 else rng.getrandbits(rng.randrange(1, 70))


def mutate_bytes(rng: random.Random) -> MutateBytes:
    """What stands in for libFuzzer's mutator."""

    def mutate(data: bytes, most: int) -> bytes:
        result = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(result) + 1)
            kind = rng.randrange(6)
            if kind == 0 and at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            elif kind == 1 and at < len(result):
                result[at] = rng.randrange(256)
            elif kind == 2:
                del result[at : at + rng.choice((1, 1, 2, 4, 8, 16, 64))]
            elif kind == 3:
                result[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 8)))
            elif kind == 4:
                start = rng.randrange(len(result) + 1)
                result[at:at] = result[start : start + rng.randint(1, 64)]
            else:
                width = rng.choice((1, 2, 4, 8))
                value = number(rng, int.from_bytes(result[at : at + width], "little"))
                result[at : at + width] = (value % 256**width).to_bytes(width, "little")
        return bytes(result[:most])

    return mutate


def mutate_tokens(rng: random.Random, text: bytes, words: Sequence[bytes]) -> bytes:
    """``text`` with one to three of its tokens changed; ``words`` are what may replace or precede one."""
    tokens = TOKEN.findall(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not tokens:
            return rng.choice(words)
        at = rng.randrange(len(tokens))
        token = tokens[at]
        kind = rng.randrange(9)
        if kind <= 2:
            numbers = [i for i, t in enumerate(tokens) if t[-1:].isdigit()]
            if kind < 2 and numbers:
                at = rng.choice(numbers)
                near = int(tokens[at]) if tokens[at].isdigit() and len(tokens[at]) < 30 else 0
                tokens[at] = b"%d" % number(rng, near)
            else:
                tokens[at] = rng.choice(words)
        elif kind == 3:
            tokens[at] = rng.choice(tokens)
        elif kind == 4:
            del tokens[at]
        elif kind == 5:
            tokens.insert(at, rng.choice(words))
        elif kind == 6:
            start, end = span(tokens, rng.randrange(len(tokens)))
            tokens[at:at] = tokens[start:end][:400]
        elif kind == 7 and token[:1] in b"\"'" and len(token) > 2:
            inner = bytearray(token)
            inner[rng.randrange(1, len(token) - 1)] = rng.choice(b"a_.\\/\"'\0\n\x7f\xc3\xa9\xed\xff")
            tokens[at] = bytes(inner)
        else:
            start, end = span(tokens, at)
            del tokens[start:end]
    return b"".join(tokens)


def span(tokens: list[bytes], start: int) -> tuple[int, int]:
    """From ``start`` to the end of what opens there: a bracket to its partner, a name with its value."""
    at = start
    if tokens[at][:1] in b"\"'" and b":" in tokens[at + 1 : at + 3]:
        at = tokens.index(b":", at) + 1
        at += at < len(tokens) and tokens[at].isspace()
        at = min(at, len(tokens) - 1)
    partner = _BRACKETS.get(tokens[at])
    depth, opening = 0, tokens[at]
    while partner is not None and at < len(tokens):
        depth += (tokens[at] == opening) - (tokens[at] == partner)
        if depth == 0:
            break
        at += 1
    end = at + 1
    return start, end + (tokens[end : end + 1] == [b","])
