"""The frame of a drawing: scales, round numbers for ticks, grid lines and labels. Coordinates are SVG user units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .html import Markup, el


@dataclass(frozen=True)
class Scale:
    """Maps ``low..high`` of the data onto ``start..end`` of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, margin: float = 0.06) -> Scale:
        """Over all ``values`` and a little more on both sides."""
        low, high = min(values), max(values)
        room = (high - low) * margin or abs(high) * margin or 1.0
        return cls(low - room, high + room, start, end)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}".replace("-0", "-0" if value else "0", 1)


def axes(
    x: Scale, y: Scale, x_label: str, y_label: str, *, x_text: Callable[[float], str] | None = None
) -> list[Markup]:
    """Grid, tick labels and titles; ``y.start`` is the bottom. Where ``x_text`` gives none, there is no line."""
    parts = []
    for scale, horizontal in ((x, True), (y, False)):
        found = ticks(scale.low, scale.high)
        step = found[1] - found[0] if len(found) > 1 else 1.0
        for value in found:
            at = scale(value)
            text = x_text(value) if horizontal and x_text is not None else tick_text(value, step)
            if not text:
                continue
            if horizontal:
                parts.append(el("line", x1=at, x2=at, y1=y.start, y2=y.end, class_="grid"))
                parts.append(el("text", text, x=at, y=y.start + 17, class_="tick middle"))
            else:
                parts.append(el("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
                parts.append(el("text", text, x=x.start - 6, y=at + 4, class_="tick right"))
    parts.append(el("text", x_label, x=(x.start + x.end) / 2, y=y.start + 36, class_="axis middle"))
    middle = (y.start + y.end) / 2
    turned = f"rotate(-90 14 {middle:.1f})"
    parts.append(el("text", y_label, x=14.0, y=middle, transform=turned, class_="axis middle"))
    return parts


def polygon(x: float, y: float, radius: float, corners: int, *, inner: float | None = None, turn: float = 0.0) -> str:
    """Path of a regular polygon, or with ``inner`` radius of a star; the first corner is up."""
    points = []
    count = corners if inner is None else 2 * corners
    for number in range(count):
        r = inner if inner is not None and number % 2 else radius
        angle = 2 * math.pi * number / count - math.pi / 2 + turn
        points.append(f"{x + r * math.cos(angle):.1f} {y + r * math.sin(angle):.1f}")
    return f"M{' L'.join(points)} Z"


def shape(kind: str, x: float, y: float) -> Markup:
    """A mark: ``diamond``, ``circle``, ``star``, ``hexagon``, ``square``, ``pentagon`` or ``triangle``."""
    if kind == "circle":
        return el("circle", cx=x, cy=y, r=7.5)
    paths = {
        "diamond": polygon(x, y, 6, 4),
        "star": polygon(x, y, 12, 5, inner=5),
        "hexagon": polygon(x, y, 8.5, 6),
        "square": polygon(x, y, 9, 4, turn=math.pi / 4),
        "pentagon": polygon(x, y, 8.5, 5),
        "triangle": polygon(x, y, 9, 3),
    }
    return el("path", d=paths[kind])
