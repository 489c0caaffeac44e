"""How the commands print: aligned columns without colour or wrapping, the same in a terminal, a pipe and a file."""

from __future__ import annotations

import json
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """``header`` over ``rows`` in aligned columns; the columns named in ``right`` are flush right."""
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def row(line: Sequence[str]) -> str:
        cells = zip(header, line, widths, strict=True)
        return "  ".join(cell.rjust(w) if name in right else cell.ljust(w) for name, cell, w in cells).rstrip()

    return "\n".join(row(line) for line in lines)


def printable(text: str) -> str:
    """``text``, quoted and escaped where it holds control characters: names in a file are not to be trusted."""
    return text if text.isprintable() else repr(text)


def as_json(value: object) -> str:
    """``value`` as indented JSON; NaN and infinities are refused, since JSON has none."""
    return json.dumps(value, indent=2, allow_nan=False)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def some(names: Sequence[str], shown: int = 8) -> str:
    """The first few of ``names``, fit to print, and how many there are besides."""
    rest = len(names) - shown
    return ", ".join(map(printable, names[:shown])) + (f" and {rest:,} more" if rest > 0 else "")


def as_notes(notes: Sequence[str]) -> list[str]:
    """``notes`` as the lines to print."""
    return [f"note: {printable(note)}" for note in notes]
