"""Figures of the analyses of weights: the geometry as heat maps, and the paper's Figures 2 to 4."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .angles import Angles, group_order
from .drawing import BLACK, CYCLE, GREY, MARKERS, SEQUENTIAL, panels, save_figure
from .geometry import Geometry
from .pairs import Pairs
from .plane import Plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PathLike = str | os.PathLike[str]
_MOST_LABELS = 30
_LEVELS = 9
_FINEST = 2.0 ** (1 - _LEVELS)
"""The first contour is this share of the range above the minimum; each further one is twice as far."""


def geometry_figure(geometry: Geometry, path: PathLike) -> None:
    """Heat maps of the distances between checkpoints, and of the angles between them: at the base, if there is one."""
    count, origin = geometry.count, geometry.origin
    at = "at the base" if origin is not None else "at zero"
    maps: dict[str, list[list[float | None]]] = {
        "Distance": [[geometry.distance(i, j) for j in range(count)] for i in range(count)],
        f"Angle {at} (degrees)": [[geometry.angle(i, j, origin) for j in range(count)] for i in range(count)],
    }
    side = max(3.4, min(6.0, 1.6 + 0.16 * count))
    figure, axes = panels(len(maps), size=(side + 0.9, side + 0.3))
    labels = [_short(name) for name in geometry.names]
    step = math.ceil(count / _MOST_LABELS)
    for each, (title, values) in zip(axes, maps.items(), strict=True):
        table = [
            [math.nan if value is None or i == j else value for j, value in enumerate(row)]
            for i, row in enumerate(values)
        ]
        image = each.imshow(table, cmap=SEQUENTIAL, interpolation="none")
        figure.colorbar(image, ax=each, shrink=0.8)
        ticks = range(0, count, step)
        each.set_xticks(ticks, [labels[i] for i in ticks], rotation=90, fontsize=7)
        each.set_yticks(ticks, [labels[i] for i in ticks], fontsize=7)
        each.set_title(title, fontsize=10)
    save_figure(figure, path)


def plane_figure(plane: Plane, path: PathLike) -> None:
    """Figure 2: filled contours of loss, test error and mean error on the shifts, with levels that double their
    distance above the minimum.

    A star is the first model, a square the second; the third is a diamond if it was trained at the second's learning
    rate and a circle otherwise. Grey arrows are the fine-tunings.
    """
    surfaces = plane.surfaces
    figure, axes = panels(len(surfaces), size=(4.4, 3.7))
    rates = plane.learning_rates[1:]
    marks = ["*", "s", "D" if rates[0] is not None and rates[0] == rates[1] else "o"]
    for each, (title, values) in zip(axes, surfaces.items(), strict=True):
        levels = contour_levels([value for row in values for value in row])
        if levels:
            top = max(value for row in values for value in row if math.isfinite(value))
            edges = [*levels, top + (top - levels[0]) * 1e-9]
            filled = each.contourf(plane.x, plane.y, values, levels=edges, colors=_steps(len(levels)))
            bar = figure.colorbar(filled, ax=each, ticks=levels)
            bar.ax.set_yticklabels(_told_apart(levels), fontsize=7)
        start, *ends = plane.basis.corners
        for end in ends:
            arrow = {"arrowstyle": "-|>", "color": "#BBBBBB", "linewidth": 1.6, "shrinkA": 4, "shrinkB": 4}
            each.annotate("", xy=end, xytext=start, arrowprops=arrow)
        for (x, y), mark, name in zip(plane.basis.corners, marks, plane.names, strict=True):
            size = 170 if mark == "*" else 60
            each.scatter([x], [y], marker=mark, s=size, c="white", edgecolors=BLACK, label=_short(name), zorder=3)
        each.set_title(title, fontsize=10)
        each.set_xlabel("along the first direction", fontsize=9)
        each.set_aspect("equal", adjustable="box")
    axes[0].set_ylabel("across it", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save_figure(figure, path)


def contour_levels(values: Sequence[float]) -> list[float]:
    """Geometric levels: the minimum, then steps above it that double, up to below the maximum; empty for a flat
    surface. Values that are not finite are left out."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or max(finite) <= min(finite):
        return []
    low, range_ = min(finite), max(finite) - min(finite)
    return [low, *(low + range_ * _FINEST * 2.0**step for step in range(_LEVELS - 1))]


def angles_figure(angles: Angles, path: PathLike) -> None:
    """Figure 3: the gain of averaging two models over the mean of theirs, against the angle between them.

    Coloured by group; where there is one group alone, by the larger learning rate of the two.
    """
    figure, (axes,) = panels(1, size=(5.4, 4.0))
    pairs = angles.measured
    groups = group_order(pairs)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    if len(groups) > 1:
        for number, group in enumerate(groups):
            members = [pair for pair in pairs if pair.group == group]
            found = angles.correlations.get(group)
            rho = "" if found is None or found.rho is None else f" ($\\rho$ = {found.rho:.2f})"
            mark, color = MARKERS[number % len(MARKERS)], CYCLE[number % len(CYCLE)]
            x, y = [pair.degrees for pair in members], [100 * pair.gain for pair in members]
            axes.scatter(x, y, s=22, marker=mark, c=color, label=f"{group}{rho}", edgecolors="white", linewidths=0.4)
        axes.legend(title=_grouping(angles), fontsize=8, title_fontsize=8)
    else:
        x, y = [pair.degrees for pair in pairs], [100 * pair.gain for pair in pairs]
        _scatter_by_rate(figure, axes, x, y, [pair.learning_rate for pair in pairs])
    whole = angles.correlations["all"]
    if whole.rho is not None:
        axes.set_title(f"Spearman's $\\rho$ = {whole.rho:.2f} over {whole.pairs} pairs", fontsize=10)
    axes.set_xlabel("angle between the two fine-tunings (degrees)", fontsize=9)
    axes.set_ylabel("gain of averaging (percentage points)", fontsize=9)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def pairs_figure(pairs: Pairs, path: PathLike) -> None:
    """Figure 4: the accuracy of the ensemble of two models against that of their soup, on the test set and on the mean
    of its shifts, coloured by the larger learning rate of the two; on the line both are equal."""
    shown = pairs.panels
    figure, axes = panels(len(shown), size=(4.6, 4.0))
    rates = [pair.learning_rate for pair in pairs.pairs]
    for number, (each, (title, sets)) in enumerate(zip(axes, shown.items(), strict=True)):
        values = pairs.values(sets)
        x, y = [100 * soup for soup, _, _ in values], [100 * ensemble for _, ensemble, _ in values]
        low, high = min(*x, *y), max(*x, *y)
        around = 0.05 * (high - low) or 1.0
        ends = (low - around, high + around)
        each.plot(ends, ends, color=GREY, linewidth=0.8, zorder=1)
        _scatter_by_rate(figure, each, x, y, rates, bar=number == len(shown) - 1)
        each.set_xlim(ends)
        each.set_ylim(ends)
        each.set_aspect("equal", adjustable="box")
        each.locator_params(nbins=6)
        each.set_title(title, fontsize=10)
        each.set_xlabel("accuracy of the soup of two (%)", fontsize=9)
        each.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy of the ensemble of two (%)", fontsize=9)
    save_figure(figure, path)


def _scatter_by_rate(
    figure: Any, axes: Axes, x: Sequence[float], y: Sequence[float], rates: Sequence[float | None], *, bar: bool = True
) -> None:
    """Points, in the colours of their learning rates on a logarithmic scale where these are known and differ."""
    from matplotlib.colors import LogNorm

    known = [rate for rate in rates if rate is not None and rate > 0]
    style: dict[str, Any] = {"s": 20, "edgecolors": "white", "linewidths": 0.3, "zorder": 2}
    if len(known) < len(rates) or len(set(known)) < 2:
        axes.scatter(x, y, c=CYCLE[0], **style)
        return
    points = axes.scatter(x, y, c=known, cmap=SEQUENTIAL, norm=LogNorm(min(known), max(known)), **style)
    if bar:
        ticks = [min(known), math.sqrt(min(known) * max(known)), max(known)]
        drawn = figure.colorbar(points, ax=axes)
        drawn.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks], fontsize=8)
        drawn.ax.minorticks_off()
        drawn.set_label("larger learning rate of the two", fontsize=9)


def _grouping(angles: Angles) -> str:
    return f"of the two, with {' or '.join(angles.by)}".replace("_", " ") if angles.by else "what differs"


def _told_apart(values: Sequence[float]) -> list[str]:
    """As text with as few digits as tell one from the other."""
    for digits in range(3, 9):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def _steps(count: int) -> list[Any]:
    """Colours from dark (low) to light."""
    import matplotlib as mpl

    return [mpl.colormaps[SEQUENTIAL](step / max(1, count - 1)) for step in range(count)]


def _short(name: str) -> str:
    """The name of a file without its suffix, or of a directory."""
    path = Path(name)
    return path.stem if path.suffix else path.name
