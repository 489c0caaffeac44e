"""The figures of the page, as inline SVG of our own: they work as they are, without a script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .axes import Scale, axes, shape
from .content import Content, Made, Model, Row
from .html import Child, Markup, el, join
from .methods import MEAN
from .paths import setting, verdict
from .scores import HELDOUT, as_number, percent, value_text

WIDTH, _HEIGHT = 440.0, 370.0
LEFT, RIGHT, _TOP, _BOTTOM = 60.0, 430.0, 12.0, 322.0

_MARKS = (
    ("Uniform soup", "uniform", "circle"),
    ("Greedy soup", "greedy", "star"),
    ("Greedier soup", "orders", "pentagon"),
    ("Learned soup (", "learned", "diamond"),
    ("Learned soup", "learned", "square"),
    ("SWA", "soup", "square"),
    ("EMA", "soup", "star"),
    ("LAWA", "soup", "hexagon"),
    ("Model stock", "learned", "hexagon"),
    ("Interpolation", "start", "triangle"),
    ("Ensemble", "ensemble", "square"),
    ("Greedy ensemble", "ensemble", "pentagon"),
)
"""Row, class (its colour is in the style sheet) and shape. Other soups are orange triangles."""


def figure1(content: Content) -> Markup | None:
    """The paper's Figure 1: test against the mean of the shifts; without shifts, held-out against test."""
    if content.test is None:
        return None
    points = [_model_mark(content, model) for model in content.models]
    if content.start is not None:
        points.append(_model_mark(content, content.start, "Initialisation", "start", "hexagon"))
    points += [_row_mark(content, row) for row in content.rows if row.cost > 1 or row.ingredients > 1 or row.spread]
    known = [point for point in points if point is not None]
    if len(known) < 2:
        return None
    factor = 100.0 if percent(content.metric) else 1.0
    x = Scale.around([factor * point.x for point in known], LEFT, RIGHT)
    y = Scale.around([factor * point.y for point in known], _BOTTOM, _TOP)
    labels = _axis_names(content)
    marks = [point.drawn(x(factor * point.x), y(factor * point.y)) for point in known]
    groups = dict.fromkeys((point.group, point.class_, point.kind) for point in known)
    legend = el(
        "ul",
        [
            el("li", el("svg", shape(k, 13, 13), viewBox="0 0 26 26", class_=f"key {c}", aria_hidden="true"), g)
            for g, c, k in groups
        ],
        class_="legend",
    )
    drawing = svg(
        [*axes(x, y, *labels), el("g", marks, class_="marks")], "Figure 1: every model as a point", WIDTH, _HEIGHT
    )
    return join([drawing, legend])


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    group: str
    class_: str
    kind: str
    tip: list[tuple[str, str]]

    def drawn(self, x: float, y: float) -> Markup:
        return mark(shape(self.kind, x, y), self.class_, self.tip)


def mark(drawing: Child, class_: str, tip: Sequence[tuple[str, str]]) -> Markup:
    """Something to point at: its ``tip`` is the title without a script, and shown beside it with one."""
    text = "; ".join(f"{name}: {value}" if value else name for name, value in tip)
    data = json.dumps([list(pair) for pair in tip])
    return el(
        "g",
        el("title", text),
        drawing,
        class_=f"mark {class_}",
        tabindex="0",
        role="img",
        aria_label=text,
        data_tip=data,
    )


def _axis_names(content: Content) -> tuple[str, str]:
    unit = " (%)" if percent(content.metric) else ""
    name = content.metric.capitalize()
    if content.shifts:
        return f"{name} on {content.test}{unit}", f"Mean {content.metric} on the distribution shifts{unit}"
    return f"Held-out {content.metric}{unit}", f"{name} on {content.test}{unit}"


def _place(
    content: Content, heldout: float | None, tests: Mapping[str, float | None], mean: float | None
) -> tuple[float, float] | None:
    test = tests.get(content.test or "")
    x, y = (test, mean) if content.shifts else (heldout, test)
    if x is None or y is None:
        return None
    return (x, y) if math.isfinite(x) and math.isfinite(y) else None


def _model_mark(
    content: Content, model: Model, group: str = "Individual models", class_: str = "model", kind: str = "diamond"
) -> _Point | None:
    tests = {name: model.score(name) for name in content.tests}
    mean = content.mean_shift(model)
    place = _place(content, model.score(HELDOUT), tests, mean)
    tip = [(model.label, ""), *_score_tips(content, model.score(HELDOUT), tests, mean)]
    tip += [(str(name), setting(value)) for name, value in model.hyperparameters.items()]
    return None if place is None else _Point(*place, group, class_, kind, tip)


def _row_mark(content: Content, row: Row) -> _Point | None:
    place = _place(content, row.heldout, row.tests, row.mean)
    if place is None:
        return None
    class_, kind = next(((c, k) for name, c, k in _MARKS if row.label.startswith(name)), ("soup", "triangle"))
    if row.label.startswith("Greedy soup (random"):
        class_, kind = "orders", "star"
    tip = [(row.label, ""), *_score_tips(content, row.heldout, row.tests, row.mean)]
    return _Point(*place, row.label, class_, kind, [*tip, ("ingredients", str(row.ingredients))])


def _score_tips(
    content: Content, heldout: float | None, tests: Mapping[str, float | None], mean: float | None
) -> list[tuple[str, str]]:
    first = [(HELDOUT, heldout), *((name, tests[name]) for name in content.tests[:1])]
    found = [*first, *([(MEAN, mean)] if content.shifts else [])]
    return [(name, value_text(value, content.metric)) for name, value in found if value is not None]


def path_figure(content: Content, made: Made) -> Markup | None:
    """A greedy path: the score of the soup so far as steps, every candidate beside it."""
    factor = 100.0 if percent(content.metric) else 1.0
    steps = [(step, *_step_value(step)) for step in made.steps]
    shown = [(number, step, factor * v, early) for number, (step, v, early) in enumerate(steps, 1) if v is not None]
    if len(shown) < 2:
        return None
    lines = [factor * v for step, _, _ in steps if (v := as_number(step.get("best_score_before"))) is not None]
    low = sorted([value for *_, value, _ in shown])
    # A model that fell apart must not press all others into a line.
    floor = _floor(low, lines or low, content.direction)
    x = Scale(0.4, len(steps) + 0.6, LEFT, RIGHT)
    y = Scale.around([v for v in (*low, *lines) if not _beyond(v, floor, content.direction)], 250.0, _TOP)
    unit = " (%)" if percent(content.metric) else ""
    parts = axes(x, y, "step", f"held-out {content.metric}{unit}", x_text=whole)
    parts.append(el("path", d=_staircase(made, x, y, factor), class_="so-far"))
    for number, step, value, early in shown:
        outside = _beyond(value, floor, content.direction)
        at = y.start - 6 if outside and content.direction == "max" else y.end + 6 if outside else y(value)
        kind = "kept" if step.get("accepted") else "early" if early else "refused"
        drawing = shape("circle" if kind == "kept" else "triangle" if early else "diamond", x(number), at)
        parts.append(mark(drawing, f"step {kind}", step_tip(content, made, step)))
    return svg(parts, f"{made.label}: the held-out score step by step", WIDTH, 300.0)


def whole(value: float) -> str:
    """For the ticks of an axis that counts."""
    return f"{value:.0f}" if abs(value - round(value)) < 1e-9 else ""


def _floor(values: Sequence[float], lines: Sequence[float], direction: str) -> float:
    top, bottom = (max(lines), min(lines)) if direction == "max" else (min(lines), max(lines))
    middle = values[len(values) // 2]
    reach = max(abs(top - bottom), abs(top - middle), 1e-9)
    return top - 4 * reach if direction == "max" else top + 4 * reach


def _beyond(value: float, floor: float, direction: str) -> bool:
    return value < floor if direction == "max" else value > floor


def _step_value(step: Mapping[str, Any]) -> tuple[float | None, bool]:
    """The score of the soup with the candidate, or the bound on it; and whether it is only that."""
    score = as_number(step.get("candidate_score"))
    if score is not None and math.isfinite(score):
        return score, False
    bound = as_number(step.get("bound"))
    return (bound, True) if bound is not None and math.isfinite(bound) else (None, False)


def _staircase(made: Made, x: Scale, y: Scale, factor: float) -> str:
    path = ""
    for number, step in enumerate(made.steps, 1):
        before = as_number(step.get("best_score_before"))
        after = as_number(step.get("candidate_score")) if step.get("accepted") else before
        if after is None or not math.isfinite(after):
            continue
        path += f"{'L' if path else 'M'}{x(number):.1f} {y(factor * after):.1f} " if not path else ""
        path += f"L{x(number):.1f} {y(factor * (before if before is not None else after)):.1f} "
        path += f"L{x(number):.1f} {y(factor * after):.1f} "
    return path.strip() or "M0 0"


def step_tip(content: Content, made: Made, step: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a step of a trace says, for people."""
    value, early = _step_value(step)
    model = content.model_of(str(step.get("ingredient", "")))
    tip = [(model.label if model else str(step.get("ingredient", "")), ""), ("verdict", verdict(made, step))]
    sign = ("\u2264 " if content.direction == "max" else "\u2265 ") if early else ""
    tip.append(("soup with it", sign + value_text(value, content.metric)))
    tip.append(("soup before", value_text(step.get("best_score_before"), content.metric)))
    tip.append(("alone", value_text(step.get("single_score"), content.metric)))
    if model is not None:
        tip += [(str(name), setting(v)) for name, v in model.hyperparameters.items()]
    return tip


def svg(parts: Sequence[Child], label: str, width: float, height: float, class_: str = "figure") -> Markup:
    """The drawing as a whole; ``label`` is what is read out for it. A heat map has a size of its own."""
    box = f"0 0 {width:.0f} {height:.0f}"
    size = {"width": width, "height": height} if class_ == "heat" else {}
    return el("svg", parts, viewBox=box, class_=class_, role="group", aria_label=label, **size)
