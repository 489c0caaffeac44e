"""Reading, copying and summing beside one another, from the times of the chunks of one run: numbers, and a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LANES = ("read", "copy", "kernel")
_SHADES = " .:#"

Span = tuple[float, float]


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans that do not touch, in order."""
    result: list[Span] = []
    for begin, end in sorted(s for s in spans if s[1] > s[0]):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def lanes(chunks: Sequence[Mapping[str, Any]]) -> dict[str, list[Span]]:
    """When each lane was busy, whoever it was that worked in it."""
    return {lane: merged((chunk[lane][0], chunk[lane][1]) for chunk in chunks) for lane in LANES}


def summary(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds in all, of each lane, and of how much of the copies and kernels was hidden behind reading."""
    busy = lanes(chunks)
    ends = [end for spans in busy.values() for _, end in spans]
    result: dict[str, Any] = {"chunks": len(chunks), "seconds": max(ends, default=0.0)}
    result |= {lane: length(spans) for lane, spans in busy.items()}
    # The length of an intersection: that of both, less that of the union.
    for lane in ("copy", "kernel"):
        both = length(busy[lane]) + length(busy["read"]) - length(merged([*busy[lane], *busy["read"]]))
        result[f"{lane} while reading"] = both / length(busy[lane]) if busy[lane] else 0.0
    result["read, summed over threads"] = sum(chunk["read"][1] - chunk["read"][0] for chunk in chunks)
    return result


def drawing(chunks: Sequence[Mapping[str, Any]], columns: int = 72) -> str:
    """A line a lane, from the start of the run to its end; the darker, the busier."""
    busy = lanes(chunks)
    end = max((span[1] for spans in busy.values() for span in spans), default=0.0)
    if end <= 0:
        return "nothing was carried to a device"
    step = end / columns
    last = f"{end * 1e3:.1f} ms"
    lines = [f"{'':8}0{last:>{columns - 1}}"]
    for lane, spans in busy.items():
        line = ""
        for column in range(columns):
            begin, until = column * step, (column + 1) * step
            share = length((max(a, begin), min(b, until)) for a, b in spans if b > begin and a < until) / step
            line += _SHADES[math.ceil(min(share, 1.0) * (len(_SHADES) - 1) - 1e-9)]
        lines.append(f"{lane:7}|{line}|")
    return "\n".join(lines)
