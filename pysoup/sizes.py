"""Byte counts as people write them (``"64MiB"``, ``"1.5 GB"``, ``"512k"``) and as people read them."""

from __future__ import annotations

import re

from .errors import SoupError

_LETTERS = "kmgtp"
_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:([{_LETTERS}])(i?))?b?", re.ASCII | re.IGNORECASE)
_LARGEST = 2**63 - 1


def parse_size(size: str | int) -> int:
    """The number of bytes that ``size`` means.

    An integer is taken as bytes. Text is a number, with or without a fraction, and a unit: ``k``, ``MB``, ``G``, ...
    are powers of 1000, ``KiB``, ``Mi``, ... are powers of 1024, none or ``B`` is bytes; case does not matter. A
    fraction of a byte is dropped.

    Raises :class:`SoupError` for anything else, and for sizes that are negative or beyond 2**63 - 1.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        count = size
    else:
        match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) and len(size) <= 40 else None
        if match is None:
            raise SoupError("not a size in bytes", found=repr(size)[:60], expected="a number and a unit, such as 64MiB")
        number, letter, binary = match.groups()
        power = _LETTERS.index(letter.lower()) + 1 if letter else 0
        count = _scaled(number, (1024 if binary else 1000) ** power)
    if not 0 <= count <= _LARGEST:
        raise SoupError("size out of range", found=size, expected="0 to 2**63 - 1 bytes")
    return count


def format_size(nbytes: int) -> str:
    """``nbytes`` in the decimal unit that leaves one to three digits before the point: ``"605.2 MB"``, ``"12 B"``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value, prefixes = nbytes / 1000, list("kMGTP")
    # Not 1000: from 999.95 on, one decimal would show "1000.0 kB".
    while value >= 999.95 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.1f} {prefixes[0]}B"


def _scaled(number: str, unit: int) -> int:
    """``number * unit`` in exact integers: a float would lose bytes above 2**53."""
    whole, _, fraction = number.partition(".")
    denominator: int = 10 ** len(fraction)
    return int(whole or "0") * unit + int(fraction or "0") * unit // denominator
