"""The part of the page on a path between two models: scores by alpha, and the barrier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .axes import Scale, axes, shape
from .content import Content, Made
from .drawings import LEFT, RIGHT, WIDTH, mark, svg
from .html import Markup, el, join, scrolled
from .methods import MEAN
from .scores import HELDOUT, as_number, percent, value_text

_SERIES = (("uniform", "circle"), ("greedy", "star"), ("soup", "triangle"))
"""Class and shape of the held-out set, the test set and the mean of its shifts."""


def interpolated_part(content: Content, made: Made) -> Markup | None:
    """Heading, figure and barrier; None of what was not interpolated."""
    points = made.trace.get("points")
    known = [p for p in points if isinstance(p, Mapping)] if isinstance(points, list) else []
    series = {name: line for name in _names(content) if len(line := _line(content, known, name)) > 1}
    if not series:
        return None
    factor = 100.0 if percent(content.metric) else 1.0
    unit = " (%)" if factor > 1 else ""
    values = [(alpha, factor * value) for line in series.values() for alpha, value in line]
    x = Scale.around([alpha for alpha, _ in values], LEFT, RIGHT, 0.03)
    y = Scale.around([value for _, value in values], 250.0, 12.0)
    parts = axes(x, y, "alpha: share of the second model", f"{content.metric}{unit}")
    keys = []
    for (name, line), (class_, kind) in zip(series.items(), _SERIES, strict=False):
        drawn = " ".join(f"{x(alpha):.1f},{y(factor * value):.1f}" for alpha, value in line)
        parts.append(el("polyline", points=drawn, class_=f"line {class_}"))
        for alpha, value in line:
            tip = [(name, ""), ("alpha", f"{alpha:.3g}"), (content.metric, value_text(value, content.metric))]
            parts.append(mark(shape(kind, x(alpha), y(factor * value)), class_, tip))
        drawing = el("svg", shape(kind, 13, 13), viewBox="0 0 26 26", class_=f"key {class_}", aria_hidden="true")
        keys.append(el("li", drawing, name))
    chosen, barrier = as_number(made.trace.get("alpha")), as_number(made.trace.get("barrier"))
    said = "" if chosen is None else f"Alpha {chosen:.3g} was chosen on the held-out set. "
    said += "" if barrier is None else f"The barrier there is {value_text(barrier, content.metric)}{unit.strip(' ()')}."
    figure = svg(parts, f"{made.label}: scores by alpha", WIDTH, 300)
    return join(
        [el("h3", made.label), el("p", said), el("figure", scrolled(figure, "Scores"), el("ul", keys, class_="legend"))]
    )


def _names(content: Content) -> list[str]:
    return [HELDOUT, *content.tests[:1], *([MEAN] if content.shifts else [])]


def _line(content: Content, points: list[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Alpha and score of each point that has both."""
    found = []
    for point in points:
        tests = point.get("tests")
        known = tests if isinstance(tests, Mapping) else {}
        if name == MEAN:
            parts = [as_number(known.get(shift)) for shift in content.shifts]
            whole = [value for value in parts if value is not None]
            value = math.fsum(whole) / len(whole) if whole and len(whole) == len(parts) else None
        else:
            value = as_number(point.get("score") if name == HELDOUT else known.get(name))
        alpha = as_number(point.get("alpha"))
        if alpha is not None and value is not None and math.isfinite(alpha) and math.isfinite(value):
            found.append((alpha, value))
    return sorted(found)
