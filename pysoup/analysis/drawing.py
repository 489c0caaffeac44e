"""One style for the figures of analyses: vector or PNG by the suffix, colours that the colour-blind tell apart."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.output.publish import publish_file, remove, remove_stale, temporary_path
from ..errors import BackendError, OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, BLACK, GREY = "#56B4E9", "#D55E00", "#F0E442", "#000000", "#7F7F7F"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK, YELLOW)
"""For groups, in this order."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
"""Beside the colours: a group is told by its mark too, in print without colour."""
SEQUENTIAL = "viridis"
"""For numbers; its lightness grows evenly."""
SUFFIXES = (".svg", ".png", ".pdf")
DPI = 150
_PANEL = (4.2, 3.6)  # inches


def check_figure(path: str | os.PathLike[str]) -> None:
    """Raise before anything is computed where ``path`` could not be drawn: its suffix, or no matplotlib."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise OutputError("not a kind of figure", file=target, found=repr(target.suffix), expected=", ".join(SUFFIXES))
    if find_spec("matplotlib") is None:
        raise BackendError("a figure needs matplotlib: pip install 'model-soups[demo]' (in a checkout: '.[demo]')")
    if not target.parent.is_dir():
        raise OutputError("no such directory", file=target.parent)


def panels(count: int, *, size: tuple[float, float] = _PANEL) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels side by side, each of ``size`` inches. Needs matplotlib; no display, no pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(count * size[0], size[1]), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for each in axes:
        each.tick_params(labelsize=8)
    return figure, list(axes)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write ``figure`` to ``path`` (.svg, .png or .pdf), in place of an older file, whole or not at all.

    The same figure is the same bytes. Raises :class:`OutputError`.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    check_figure(path)
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    temporary = temporary_path(target)
    FigureCanvasAgg(figure)
    try:
        remove_stale(target)
        # Text stays text: small, and found by a search.
        style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pysoup", "font.sans-serif": ["DejaVu Sans"]}
        with mpl.rc_context(style):
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=dates.get(kind))
        publish_file(temporary, target, overwrite=True)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", file=target) from error
    finally:
        remove(temporary)
