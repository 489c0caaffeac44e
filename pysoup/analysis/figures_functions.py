"""Figures of the analyses of functions: the paper's Figures B.1, B.2 and 6, reliability diagrams, grids."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .drawing import (
    BLACK,
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    check_figure,
    panels,
    save_figure,
)
from .orders import MEAN_SHIFT, Point
from .sets import HELDOUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from .approximation import Approximation
    from .calibration import CalibrationCurve
    from .count import CountCurve
    from .grids import Grids

_METHODS = {
    "ensemble": ("Ensemble", RED, "s", "-"),
    "uniform": ("Uniform soup", BLUE, "o", "-"),
    "greedy": ("Greedy soup", PURPLE, "D", "-"),
    "best": ("Best on held-out set", GREEN, "^", "--"),
}
_KINDS = {
    "soup": ("Soup", BLUE, "o", "-"),
    "ensemble": ("Ensemble", RED, "s", "-"),
    "soup of calibrated": ("Soup of calibrated models", SKY, "o", "--"),
    "ensemble of calibrated": ("Ensemble of calibrated models", ORANGE, "s", "--"),
    "soup, calibrated": ("Soup, then calibrated", BLACK, "o", ":"),
    "ensemble, calibrated": ("Ensemble, then calibrated", GREY, "s", ":"),
}
_MEASURES = {"ece": "Calibration error, equal mass (%)", "accuracy": "Accuracy (%)"}


def count_figure(found: CountCurve, path: str | os.PathLike[str]) -> None:
    """Draw Figure B.1: the score against the number of models, mean and one standard deviation over the orders."""
    check_figure(path)
    names = _shown(next(iter(found.curves.values())))
    figure, axes = panels(len(names))
    percent = found.metric == "accuracy" or found.metric.startswith("top")
    for each, name in zip(axes, names, strict=True):
        for method, sets in found.curves.items():
            _curve(each, sets[name], _METHODS[method], 100 if percent else 1)
        each.set_title(name, fontsize=9)
        each.set_xlabel("Number of models", fontsize=9)
        each.set_ylabel(f"{found.metric.capitalize()}{' (%)' if percent else ''}", fontsize=9)
        each.grid(alpha=0.3)
    axes[0].legend(fontsize=7, framealpha=0.9)
    save_figure(figure, path)


def calibration_figure(found: CalibrationCurve, path: str | os.PathLike[str]) -> None:
    """Draw Figure B.2: calibration error (logarithmic) and accuracy against the number of models.

    On the first test set and the mean of the shifts. Kinds that are calibrated as a whole have the accuracy of those
    that are not, and are drawn for the calibration error alone.
    """
    check_figure(path)
    from matplotlib.ticker import LogLocator

    names = _shown(found.curves["soup"]["ece"])
    figure, axes = panels(2 * len(names), size=(3.7, 3.8))
    shown = [(measure, name) for measure in _MEASURES for name in names]
    for each, (measure, name) in zip(axes, shown, strict=True):
        means = []
        for kind, measures in found.curves.items():
            if measure == "accuracy" and kind.endswith(", calibrated"):
                continue
            _curve(each, measures[measure][name], _KINDS[kind], 100)
            means += [100 * point.mean for point in measures[measure][name] if point.mean > 0]
        if measure == "ece" and means:
            each.set_yscale("log")
            each.set_ylim(0.6 * min(means), 1.6 * max(means))
            each.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            each.yaxis.set_major_formatter("{x:g}")
            each.yaxis.set_minor_formatter("{x:g}")
            each.tick_params(which="both", labelsize=8)
        each.set_title(name, fontsize=9)
        each.set_xlabel("Number of models", fontsize=9)
        each.set_ylabel(_MEASURES[measure], fontsize=9)
        each.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    save_figure(figure, path)


def reliability_figure(found: CalibrationCurve, path: str | os.PathLike[str], *, name: str | None = None) -> None:
    """Draw accuracy against confidence in bins of equal mass, before and after calibrating, on the set ``name``.

    The area of a mark is the number of its samples.
    """
    check_figure(path)
    name = _first_test(list(found.curves["soup"]["accuracy"])) if name is None else name
    figure, axes = panels(len(found.reliability), size=(3.4, 3.6))
    for each, (title, sets) in zip(axes, found.reliability.items(), strict=True):
        each.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", zorder=1)
        for kind, label, colour, marker in (
            ("plain", "as it is", BLUE, "o"),
            ("scaled", "calibrated", ORANGE, "s"),
        ):
            _bins(each, sets[name][kind], label, colour, marker)
        each.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        each.set_title(f"{title}: {name}", fontsize=9)
        each.set_xlabel("Confidence", fontsize=9)
        each.set_ylabel("Accuracy", fontsize=9)
        each.grid(alpha=0.3)
    axes[0].legend(fontsize=7, loc="upper left", framealpha=0.9)
    save_figure(figure, path)


def approximation_figure(found: Approximation, path: str | os.PathLike[str]) -> None:
    """Draw Figure 6: the approximation of Equation (1) against the true difference of losses, and of errors.

    A colour and mark for each set; points of the highest learning rates are hollow. Linear near zero, logarithmic
    beyond, as differences are of many sizes.
    """
    check_figure(path)
    shown = {title: panel for title, panel in found.panels().items() if panel[0]}
    agreements = found.agreements()
    figure, axes = panels(len(shown), size=(4.0, 4.0))
    for each, (title, (points, errors)) in zip(axes, shown.items(), strict=True):
        each.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        each.axvline(0, color=GREY, linewidth=0.8, zorder=1)
        for number, name in enumerate(found.sets):
            colour, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
            for high in (False, True):
                some = [p for p in points if p.set == name and found.is_high(p) == high]
                each.scatter(
                    [p.predicted for p in some],
                    [100 * p.true_error if errors else p.true for p in some],
                    s=14,
                    marker=marker,
                    facecolors="none" if high else colour,
                    edgecolors=colour,
                    linewidths=0.7,
                    label=None if high else name,
                    zorder=2,
                )
        predicted, true = [p.predicted for p in points], [p.true for p in points]
        limit = _threshold(predicted)
        _symmetric(each.set_xscale, each.xaxis, limit, predicted)
        if errors:
            each.set_ylabel("True difference of errors (points)", fontsize=9)
        else:
            _symmetric(each.set_yscale, each.yaxis, limit, true)
            each.set_ylabel("True difference of losses", fontsize=9)
            _diagonal(each)
        each.set_xlabel("Approximation, Equation (1)", fontsize=9)
        result = agreements[title]
        words = f"rank correlation {result.spearman:.2f}, same sign {result.same_sign:.0%}" if len(points) > 1 else ""
        each.set_title(f"{title}\n{words}", fontsize=8)
        each.tick_params(labelsize=6)
    axes[0].legend(fontsize=7, framealpha=0.9)
    save_figure(figure, path)


def _shown(sets: Mapping[str, Any]) -> list[str]:
    """The first test set and the mean of its shifts (or the one there is); the held-out set where there is no test."""
    tests = [name for name in sets if name != HELDOUT]
    if not tests:
        return [HELDOUT]
    others = [MEAN_SHIFT] if MEAN_SHIFT in sets else tests[1:2]
    return [tests[0], *others]


def _first_test(names: Sequence[str]) -> str:
    return next((name for name in names if name != HELDOUT), HELDOUT)


def _curve(axes: Axes, points: Sequence[Point], style: tuple[str, str, str, str], scale: float) -> None:
    label, colour, marker, line = style
    from matplotlib.ticker import MaxNLocator

    n = [point.n for point in points]
    mean = [scale * point.mean for point in points]
    spread = [0.0 if point.sd is None else scale * point.sd for point in points]
    axes.plot(n, mean, color=colour, marker=marker, markersize=3.5, linestyle=line, linewidth=1.3, label=label)
    low, high = ([max(m + sign * s, 0.0) for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bins(axes: Axes, bins: Sequence[Sequence[float]], label: str, colour: str, marker: str) -> None:
    if not bins:
        return
    sure, right, counts = zip(*bins, strict=True)
    axes.plot(sure, right, color=colour, linewidth=1, zorder=2)
    sizes = [10 + 40 * count / max(counts) for count in counts]
    axes.scatter(sure, right, s=sizes, color=colour, marker=marker, label=label, zorder=3, linewidths=0, clip_on=False)


def _threshold(values: Sequence[float]) -> float:
    """Up to where it is linear: a power of ten, so that about half of the values are beyond it."""
    sizes = sorted(abs(value) for value in values if value and math.isfinite(value))
    return 10.0 ** math.floor(math.log10(sizes[len(sizes) // 2])) if sizes else 1e-3


def _symmetric(scale: Callable[..., Any], axis: Axis, limit: float, values: Sequence[float]) -> None:
    """Linear up to ``limit``, logarithmic beyond, with a tick at 0 and at each decade from there on."""
    scale("symlog", linthresh=limit)
    largest = max((abs(value) for value in values if math.isfinite(value)), default=limit)
    decades = range(
        round(math.log10(limit)), max(math.ceil(math.log10(max(largest, limit))), 1 + round(math.log10(limit)))
    )
    axis.set_ticks([*(-(10.0**k) for k in reversed(decades)), 0.0, *(10.0**k for k in decades)])


def _diagonal(axes: Axes) -> None:
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    # Both scales are the same one, so it is straight.
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--", zorder=1, scalex=False, scaley=False)


def grids_figure(found: Grids, path: str | os.PathLike[str]) -> None:
    """Draw the average of each grid's ends against its best single model (Appendix F), by what was varied."""
    check_figure(path)
    names = _shown(dict.fromkeys(found.sets))
    figure, axes = panels(len(names))
    varied = list(dict.fromkeys(grid.varied for grid in found.grids))
    percent = 100 if found.metric == "accuracy" or found.metric.startswith("top") else 1
    for each, name in zip(axes, names, strict=True):
        values = [percent * value for g in found.grids for value in (g.best(name, found.direction), g.average[name])]
        values = [value for value in values if math.isfinite(value)] or [0.0]
        room = 0.05 * (max(values) - min(values)) or 1.0
        # One range for both axes: what wins is above the diagonal, which is always there.
        ends = (min(values) - room, max(values) + room)
        each.set(xlim=ends, ylim=ends)
        for number, kind in enumerate(varied):
            some = [grid for grid in found.grids if grid.varied == kind]
            best = [percent * grid.best(name, found.direction) for grid in some]
            average = [percent * grid.average[name] for grid in some]
            colour, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
            each.scatter(best, average, s=30, color=colour, marker=marker, label=kind, zorder=2)
        _diagonal(each)
        each.set_title(f"{name}: {found.wins(name)} of {len(found.grids)} averages win", fontsize=9)
        each.set_xlabel("Best single model of the grid", fontsize=9)
        each.set_ylabel("Average of its two ends", fontsize=9)
        each.grid(alpha=0.3)
    axes[0].legend(fontsize=7, framealpha=0.9)
    save_figure(figure, path)
