"""The paper's Figure 1: every model as a point, accuracy on the test set against the mean over the shifts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..checkpoint.output.publish import publish_file, remove, temporary_path
from ..errors import BackendError, OutputError
from .table import Result

FIGURE_SIZE = (6.4, 4.8)  # inches
DPI = 150


def figure1(
    path: str | os.PathLike[str],
    *,
    models: Sequence[Result],
    greedy: Result,
    uniform: Result,
    initialization: Result | None = None,
    test: str = "test",
) -> None:
    """Write a PNG of 960 x 720 pixels to ``path``, or, where it ends in ``.svg``, a vector drawing of that shape.

    An existing file is replaced whole or not at all; the same results give the same bytes.
    The marks are the paper's: greedy soup a purple star, uniform soup a blue circle, initialisation a grey hexagon,
    fine-tuned models green diamonds. Needs matplotlib (:class:`BackendError` without); no display.
    """
    if find_spec("matplotlib") is None:
        raise BackendError("a figure needs matplotlib: pip install 'model-soups[demo]' (in a checkout: '.[demo]')")
    # Not through pyplot: no global state, no backend that looks for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=FIGURE_SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    groups = [
        (models, "Individual models", "D", "tab:green", 45.0),
        ([] if initialization is None else [initialization], "Initialization (linear probe)", "h", "tab:gray", 130.0),
        ([uniform], "Uniform soup", "o", "tab:blue", 130.0),
        ([greedy], "Greedy soup", "*", "tab:purple", 300.0),
    ]
    for level, (results, label, marker, color, size) in enumerate(groups, start=2):
        if results:
            x, y = [100 * r.test for r in results], [100 * r.mean_shift for r in results]
            axes.scatter(
                x, y, s=size, marker=marker, c=color, label=label, zorder=level, edgecolors="white", linewidths=0.7
            )
    axes.set_xlabel(f"Accuracy on {test} (%)")
    axes.set_ylabel("Mean accuracy on the distribution shifts (%)")
    axes.grid(alpha=0.3, zorder=0)
    axes.legend(loc="best", framealpha=0.9)
    target = Path(path)
    temporary = temporary_path(target)
    try:
        if target.suffix.lower() == ".svg":
            # Names and a date that no two drawings would share.
            with rc_context({"svg.hashsalt": "pysoup"}):
                figure.savefig(temporary, format="svg", metadata={"Date": None})
        else:
            figure.savefig(temporary, format="png", dpi=DPI)
        publish_file(temporary, target, overwrite=True)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", file=target) from error
    finally:
        remove(temporary)
