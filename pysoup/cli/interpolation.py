"""``pysoup interpolate``: the path between two models, and the best point on it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import SoupError
from ..progress import step_bar
from .models import require_torch, show
from .recipes import sources_of
from .text import printable, table

CURVE = "curve.svg"


def interpolate(
    theta0: str,
    theta1: str,
    task: str,
    output: str,
    *,
    entry: str | None,
    also: tuple[str, ...],
    alphas: list[float] | None,
    **options: Any,
) -> None:
    """Score the points, print them, and write the best one, all scores and a figure of them to ``output``."""
    require_torch()
    from ..soups import interpolate as make
    from ..soups.command import heldout_sets, run_recipe
    from ..soups.interpolation import ALPHAS

    ends, notes = [], []
    for which, path in (("THETA0", theta0), ("THETA1", theta1)):
        found, more = sources_of([path], entry, None)
        if len(found) != 1:
            raise SoupError(f"{which} is to be one checkpoint: average several first", found=len(found), file=path)
        ends += found
        notes += more

    with step_bar("interpolation") as progress:
        made = run_recipe(
            lambda checkpoints, *given, **more: make(*checkpoints, *given, **more),
            task,
            ends,
            output,
            reports=True,
            also=heldout_sets(also),
            alphas=ALPHAS if alphas is None else alphas,
            progress=progress,
            **options,
        )
    print(_points(made))
    lost = "" if made.loss_barrier is None else f", of the loss {made.loss_barrier:.5g}"
    print(f"alpha {made.alpha:g}; barrier of {made.metric} {made.barrier:.5g}{lost}")
    show(made, output, notes)
    target = Path(output) / CURVE
    if find_spec("matplotlib") is None:
        print(f"note: no {target.name}, since matplotlib is not installed: pip install 'model-soups[demo]'")
        return
    from ..analysis.figure_interpolation import interpolation_figure

    interpolation_figure(made, target)
    print(f"wrote {printable(str(target))}")


def _points(made: Any) -> str:
    """All points; the sets that select first, and where there are several of them, their mean."""
    scores, tests = list(made.points[0].scores), list(made.points[0].tests)
    mean = ["mean"] if len(scores) > 1 else []
    header = ["alpha", *scores, *mean, "loss", *(f"test: {name}" for name in tests), ""]
    rows = []
    for point in made.points:
        values = [*point.scores.values(), *([point.score] if mean else []), point.loss, *point.tests.values()]
        texts = ["-" if value is None else f"{value:.5g}" for value in values]
        rows.append([f"{point.alpha:g}", *texts, "chosen" if point.alpha == made.alpha else ""])
    return table(header, rows, right=header[:-1])
