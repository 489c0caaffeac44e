"""The path between two models as a figure: scores of all sets, and the loss."""

from __future__ import annotations

import os

from ..soups import Interpolation
from .drawing import BLACK, CYCLE, GREY, MARKERS, panels, save_figure


def interpolation_figure(found: Interpolation, path: str | os.PathLike[str]) -> None:
    """Score against alpha for each held-out set (solid) and test set (dashed), and the loss where it is known.

    The straight grey line between the ends is what the barrier is measured from; a vertical one marks the alpha that
    was chosen. ``path`` ends in .svg, .png or .pdf. Needs matplotlib.
    """
    alphas = [point.alpha for point in found.points]
    losses = [point.loss for point in found.points if point.loss is not None]
    is_known = len(losses) == len(found.points)
    figure, axes = panels(1 + is_known)
    held = list(found.points[0].scores)
    curves = [(name, "-", [point.scores[name] for point in found.points]) for name in held]
    curves += [(name, "--", [point.tests[name] for point in found.points]) for name in found.points[0].tests]
    for number, (name, style, values) in enumerate(curves):
        mark, color = MARKERS[number % len(MARKERS)], CYCLE[number % len(CYCLE)]
        label = name if style == "-" else f"{name} (test)"
        axes[0].plot(alphas, values, style, marker=mark, color=color, markersize=4, linewidth=1.4, label=label)
    ends = {point.alpha: point for point in found.points}
    axes[0].plot([0, 1], [ends[0.0].score, ends[1.0].score], color=GREY, linewidth=1, zorder=1)
    axes[0].set_ylabel(str(found.metric), fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    if is_known:
        line = [point.loss or 0.0 for point in (ends[0.0], ends[1.0])]
        axes[1].plot(alphas, losses, "-", marker="o", color=CYCLE[0], markersize=4, linewidth=1.4)
        axes[1].plot([0, 1], line, color=GREY, linewidth=1, zorder=1)
        axes[1].set_ylabel("loss on the held-out data (nats)", fontsize=9)
    for each in axes:
        each.axvline(found.alpha, color=BLACK, linewidth=0.8, linestyle=":")
        each.set_xlabel("alpha: share of the second model", fontsize=9)
        each.grid(alpha=0.3)
    save_figure(figure, path)
