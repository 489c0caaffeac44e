"""Smaller figures of the page: weights of ingredients, calibration, where the time went."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .axes import Scale, axes
from .content import Content, Made
from .drawings import LEFT, RIGHT, WIDTH, mark, svg, whole
from .html import Markup, el
from .scores import as_number

_CELL, _TALL = 22.0, 16.0
_LONGEST = 26
_SHOWN_ROWS = 200


def heat_map(
    label: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, wide: float = _CELL
) -> Markup:
    """Weights as cells: blue for positive ones, orange for negative ones, stronger the further from 0."""
    largest = max((abs(v) for row in values for v in row if math.isfinite(v)), default=0.0) or 1.0
    left = 12.0 + 6.4 * max(len(_short(name)) for name in rows)
    top = 14.0 + 5.2 * max(len(_short(name)) for name in columns)
    right = 5.2 * len(_short(columns[-1]))
    parts: list[Markup] = []
    for number, name in enumerate(columns):
        x = left + (number + 0.5) * wide
        turned = f"rotate(-55 {x:.1f} {top - 6:.1f})"
        parts.append(el("text", _short(name), x=x, y=top - 6, transform=turned, class_="tick"))
    for number, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + number * _TALL
        parts.append(el("text", _short(name), x=left - 6, y=y + 12, class_="tick right"))
        for place, value in enumerate(row):
            if not math.isfinite(value):
                continue
            cell = el(
                "rect",
                el("title", f"{name}, {columns[place]}: {value:.4g}"),
                x=left + place * wide,
                y=y,
                width=wide - 1,
                height=_TALL - 1,
                class_="cell negative" if value < 0 else "cell",
                fill_opacity=f"{abs(value) / largest:.3f}",
            )
            parts.append(cell)
    height = top + len(rows) * _TALL + 4
    return svg(parts, label, left + len(columns) * wide + right + 8, height, "heat")


def ingredients_map(content: Content) -> Markup | None:
    """Which model is in which soup, and with which weight: best models on top."""
    made = [m for m in content.made if m.weights]
    names = list(dict.fromkeys(name for m in made for name in m.ingredients))
    if not made or not names:
        return None
    order = [model.name for model in content.ranked()]
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    names = names[:_SHOWN_ROWS]
    values = []
    for name in names:
        weights = [dict(zip(m.ingredients, m.weights, strict=True)) for m in made]
        values.append([found.get(name, 0.0) for found in weights])
    labels = [model.label if (model := content.model_of(name)) else name for name in names]
    return heat_map("Weights of the ingredients in each soup", labels, [m.label for m in made], values, wide=34.0)


def reliability(title: str, bins: Sequence[Sequence[float]]) -> Markup:
    """A reliability diagram: accuracy against confidence, with the diagonal of perfect calibration."""
    x, y = Scale(0.0, 1.0, 52.0, 240.0), Scale(0.0, 1.0, 200.0, 10.0)
    parts = axes(x, y, "confidence", "accuracy")
    parts.append(el("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="diagonal"))
    total = sum(count for *_, count in bins) or 1
    points = " ".join(f"{x(sure):.1f},{y(right):.1f}" for sure, right, _ in bins)
    parts.append(el("polyline", points=points, class_="so-far"))
    for sure, right, count in bins:
        drawing = el("circle", cx=x(sure), cy=y(right), r=3.0 + 5.0 * math.sqrt(count / total))
        tip = [(title, ""), ("confidence", f"{sure:.3f}"), ("accuracy", f"{right:.3f}"), ("samples", f"{count:.0f}")]
        parts.append(mark(drawing, "bin", tip))
    return svg(parts, f"Reliability of {title}", 252, 240, "small")


def known_bins(value: object) -> list[list[float]]:
    """The bins of an evaluation; none where they are anything else."""
    if not isinstance(value, list):
        return []
    rows = [[as_number(part) for part in row] for row in value if isinstance(row, list) and len(row) == 3]
    known = [[part for part in row if part is not None] for row in rows if None not in row]
    return [row for row in known if 0 <= row[0] <= 1 and 0 <= row[1] <= 1 and 0 < row[2] < math.inf]


_PARTS = (("mix", "mixing (with reading)"), ("score", "scoring"), ("read", "reading ahead, beside the scoring"))


def cost_figure(made: Sequence[Made]) -> Markup | None:
    """Where the time of each recipe went: bars of seconds."""
    known = [(m, m.numbers("timing")) for m in made]
    known = [(m, timing) for m, timing in known if sum(timing.get(key, 0.0) for key, _ in _PARTS) > 0]
    if not known:
        return None
    left, right = 20.0 + 6.4 * max(len(_short(m.label)) for m, _ in known), RIGHT
    longest = max(sum(timing.get(key, 0.0) for key, _ in _PARTS) for _, timing in known)
    bottom = 10.0 + 24 * len(known)
    x, y = Scale(0.0, longest, min(left, 200.0), right), Scale(0.0, 1.0, bottom, 6.0)
    parts = [part for part in axes(x, y, "seconds", "") if "right" not in part.split(">")[0]]
    for number, (m, timing) in enumerate(known):
        top, begin = 10.0 + 24 * number, 0.0
        parts.append(el("text", _short(m.label), x=x.start - 6, y=top + 13, class_="tick right"))
        for key, name in _PARTS:
            seconds = max(0.0, timing.get(key, 0.0))
            drawing = el("rect", x=x(begin), y=top, width=x(seconds) - x(0.0), height=18.0)
            if seconds:
                parts.append(mark(drawing, f"part {key}", [(m.label, ""), (name, f"{seconds:.2f} s")]))
            begin += seconds
    return svg(parts, "Seconds of each recipe by what they were spent on", WIDTH, bottom + 44)


def cost_legend() -> Markup:
    box = el("rect", x=4.0, y=4.0, width=18.0, height=18.0)
    keys = [
        el("li", el("svg", box, viewBox="0 0 26 26", class_=f"key part {key}", aria_hidden="true"), name)
        for key, name in _PARTS
    ]
    return el("ul", keys, class_="legend")


def curve(label: str, values: Sequence[float], x_label: str, y_label: str) -> Markup | None:
    """A line of numbers, such as the loss of every step."""
    points = [(number, value) for number, value in enumerate(values, 1) if math.isfinite(value)]
    if len(points) < 2:
        return None
    x = Scale(1.0, float(max(2, len(values))), LEFT, RIGHT)
    y = Scale.around([value for _, value in points], 210.0, 10.0)
    parts = axes(x, y, x_label, y_label, x_text=whole)
    line = " ".join(f"{x(number):.1f},{y(value):.1f}" for number, value in points)
    parts.append(el("polyline", points=line, class_="so-far"))
    return svg(parts, label, WIDTH, 256)


def _short(name: str) -> str:
    """Long names keep their ends, which tell them apart."""
    return name if len(name) <= _LONGEST else f"\u2026{name[-_LONGEST + 1 :]}"
