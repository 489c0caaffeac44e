"""``pysoup analyze count``, ``calibration``, ``approximation``, ``grids``, ``compare``: what they print and write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..progress import step_bar
from .analyze import check_outputs, deliver
from .choose import Best, choose
from .models import require_torch
from .text import plural, printable, table

if TYPE_CHECKING:
    from ..analysis.approximation import Approximation
    from ..analysis.calibration import CalibrationCurve
    from ..analysis.compare import Comparisons
    from ..analysis.count import CountCurve
    from ..analysis.grids import Grids
    from ..analysis.sets import Sets

RUN = ".run"


def count(task: str, checkpoints: list[str], *, metric: str | None, **options: Any) -> None:
    """Score soups and ensembles of the first n ``checkpoints``, and print the curve on the first sets."""

    def make(sets: Sets, paths: Sequence[Path], options: dict[str, Any]) -> CountCurve:
        from ..analysis.count import count_curve

        return count_curve(sets, paths, _metric(sets, metric), **options)

    def draw(found: CountCurve, path: str) -> None:
        from ..analysis.figures_functions import count_figure

        count_figure(found, path)

    _run("count", task, checkpoints, make, draw, _count_text, **options)


def calibration(
    task: str, checkpoints: list[str], *, metric: str | None, reliability: str | None, **options: Any
) -> None:
    """Measure the calibration of soups and ensembles of the first n ``checkpoints``, and print it."""

    def make(sets: Sets, paths: Sequence[Path], options: dict[str, Any]) -> CalibrationCurve:
        from ..analysis.calibration import calibration_curve

        found = calibration_curve(sets, paths, _metric(sets, metric), **options)
        if reliability is not None:
            from ..analysis.figures_functions import reliability_figure

            reliability_figure(found, reliability)
        return found

    def draw(found: CalibrationCurve, path: str) -> None:
        from ..analysis.figures_functions import calibration_figure

        calibration_figure(found, path)

    check_outputs(None, reliability, options["overwrite"])
    _run("calibration", task, checkpoints, make, draw, _calibration_text, **options)
    if reliability is not None and not options["as_json"]:
        print(f"wrote {printable(reliability)}")


def approximation(task: str, checkpoints: list[str], **options: Any) -> None:
    """Compare both sides of Equation (1) for pairs of ``checkpoints``, and print how well they agree."""

    def make(sets: Sets, paths: Sequence[Path], options: dict[str, Any]) -> Approximation:
        from ..analysis.approximation import soup_approximation

        return soup_approximation(sets, paths, **options)

    def draw(found: Approximation, path: str) -> None:
        from ..analysis.figures_functions import approximation_figure

        approximation_figure(found, path)

    _run("approximation", task, checkpoints, make, draw, _approximation_text, **options)


def grids(task: str, checkpoints: list[str], *, metric: str | None, **options: Any) -> None:
    """Score the grids among ``checkpoints``, and print what the averages of their ends are worth."""

    def make(sets: Sets, paths: Sequence[Path], options: dict[str, Any]) -> Grids:
        from ..analysis.grids import grid_ends

        return grid_ends(sets, paths, _metric(sets, metric), **options)

    def draw(found: Grids, path: str) -> None:
        from ..analysis.figures_functions import grids_figure

        grids_figure(found, path)

    _run("grids", task, checkpoints, make, draw, _grids_text, **options)


def compare(task: str, checkpoints: list[str], *, run: None = None, **options: Any) -> None:
    """Compare the first of ``checkpoints`` with the others, and print the tests."""

    def make(sets: Sets, paths: Sequence[Path], options: dict[str, Any]) -> Comparisons:
        from ..analysis.compare import compare_models

        options.pop("run")  # a pass for each model: there is not much to go on from
        return compare_models(sets, paths, **options)

    _run("compare", task, checkpoints, make, None, _compare_text, figure=None, best=None, run=None, **options)


def _run(
    title: str,
    task: str,
    checkpoints: list[str],
    make: Callable[[Any, Sequence[Path], dict[str, Any]], Any],
    draw: Callable[[Any, str], None] | None,
    text: Callable[[Any], str],
    *,
    output: str | None,
    figure: str | None,
    run: str | None,
    best: Best | None,
    overwrite: bool,
    as_json: bool,
    samples: int | None = None,
    tests: str | None = None,
    **options: Any,
) -> None:
    """An analysis that runs models: checked first, then made under a bar, drawn, written and printed.

    What was scored is kept in the directory ``run``, by default one beside the output that goes when it is written.
    """
    require_torch()
    check_outputs(output, figure, overwrite)
    paths, notes = choose(checkpoints, best)
    own = None if run is not None or output is None else Path(output).with_suffix(RUN)
    from ..analysis.sets import Sets
    from ..analysis.views import chosen

    sets = chosen(Sets(task, samples=samples), None if tests is None else [name for name in tests.split(",") if name])
    directory = str(own) if own is not None else run
    if directory is not None:
        directory, more = _recordable(sets, directory)
        notes += more
    with step_bar(title) as progress:
        found = make(sets, paths, {**options, "run": directory, "progress": progress})
    if figure is not None and draw is not None:
        draw(found, figure)
    deliver(found.to_json(), text(found), [*notes, *found.notes], output, figure, as_json)
    if own is not None:
        from ..soups.journal import remove_run

        remove_run(own)


def _recordable(sets: Sets, directory: str) -> tuple[str | None, list[str]]:
    """The directory; none, with a note, for data that a later run would not know again."""
    from ..errors import SoupError

    if Path(directory).is_file():
        raise OutputError("what was scored is kept in a directory, and this is a file", file=directory)
    try:
        _ = sets.fingerprints
    except SoupError as error:
        return None, [f"had it been killed, this analysis could not have gone on: {error}"]
    return directory, []


def _metric(sets: Sets, metric: str | None) -> Any:
    return getattr(sets.task, "metric", "accuracy") if metric is None else metric


def _count_text(found: CountCurve) -> str:
    sets = list(next(iter(found.curves.values())))
    shown = sorted({1, 2, 3, 5, 10, 20, 50, 100, len(found.checkpoints)} & set(range(1, len(found.checkpoints) + 1)))
    lines = [f"{found.metric}, mean of {plural(len(found.orders), 'random order')}"]
    for name in sets:
        rows = []
        for method, curves in found.curves.items():
            rows.append([method, *(_spread(curves[name][n - 1].mean, curves[name][n - 1].sd) for n in shown)])
        header = [name, *(str(n) for n in shown)]
        lines += ["", table(header, rows, right=header[1:])]
    return "\n".join(lines)


def _calibration_text(found: CalibrationCurve) -> str:
    shown = {"accuracy": "accuracy", "nll": "nll", "ece": "ECE", "ece_width": "ECE (width)"}
    lines = [f"all {plural(len(found.checkpoints), 'model')}; ECE with {found.bins} bins of equal mass (equal width)"]
    lines.append(f"temperatures fitted on the held-out set: beta {_betas(found.betas)}")
    for name in next(iter(found.curves["soup"].values())):
        rows = [
            [kind, *(f"{measures[measure][name][-1].mean:.4f}" for measure in shown)]
            for kind, measures in found.curves.items()
        ]
        one = ["one model", *(f"{found.curves['soup'][measure][name][0].mean:.4f}" for measure in shown)]
        header = [name, *shown.values()]
        lines += ["", table(header, [one, *rows], right=header[1:])]
    return "\n".join(lines)


def _betas(betas: Sequence[float | None]) -> str:
    known = sorted(beta for beta in betas if beta is not None)
    return f"{known[0]:.3g} to {known[-1]:.3g}" if known else "-"


def _approximation_text(found: Approximation) -> str:
    lines = [f"{plural(len(found.pairs), 'pair')}, {plural(len(found.points), 'point')}"]
    if found.highest is not None:
        lines[0] += f"; highest learning rates: above {found.highest:.3g}"
    rows = []
    for name in [None, *found.sets]:
        for title, result in found.agreements(name).items():
            numbers = (result.pearson, result.spearman, result.same_sign)
            rows.append(
                ["all sets" if name is None else name, title, str(result.count), *(f"{value:.3f}" for value in numbers)]
            )
    header = ["set", "difference", "points", "correlation", "rank correlation", "same sign"]
    lines.append(table(header, rows, right=header[2:]))
    doubts = [p.doubt / abs(p.curvature) for p in found.points if p.doubt is not None and p.curvature]
    if doubts:
        middle = sorted(doubts)[len(doubts) // 2]
        lines.append(f"three points instead of five would change the second derivative by {middle:.1%} (median)")
    return "\n".join(lines)


def _grids_text(found: Grids) -> str:
    rows = []
    for name in found.sets:
        for varied in dict.fromkeys(grid.varied for grid in found.grids):
            some = [grid for grid in found.grids if grid.varied == varied]
            gains = [grid.gain(name, found.direction) for grid in some]
            wins = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
            rows.append([name, varied, wins, f"{min(gains):+.4f} to {max(gains):+.4f}"])
    title = f"{found.metric}: the average of a grid's two ends against its best single model"
    return "\n".join([title, table(["set", "varied", "averages that win", "by"], rows, right=("averages that win",))])


def _compare_text(found: Comparisons) -> str:
    lines = []
    for (i, j), sets in found.found.items():
        rows = []
        for name, one in sets.items():
            only = "-" if one.mcnemar is None else f"{one.mcnemar.only_a} : {one.mcnemar.only_b}"
            rows.append(
                [
                    name,
                    *(f"{100 * value:.2f}" for value in one.accuracy),
                    only,
                    _p(one.accuracy_test.p_value),
                    *(f"{value:.4f}" for value in one.nll),
                    "-" if one.nll_test is None else _p(one.nll_test.p_value),
                ]
            )
        header = ["set", "A (%)", "B (%)", "only A : B right", "p", "A nll", "B nll", "p of nll"]
        lines += [f"A {printable(found.names[i])}", f"B {printable(found.names[j])}", table(header, rows, right=header)]
        lines.append("")
    lines.append(
        f"p of accuracy: McNemar's exact test (of a mean: permutations); of nll: paired permutations, seed {found.seed}"
    )
    if len(found.found) > 1:
        lines.append(f"of {len(found.found)} comparisons, each p-value is that of one alone")
    return "\n".join(lines)


def _p(value: float) -> str:
    return f"{value:.3g}"


def _spread(mean: float, sd: float | None) -> str:
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.4f}" if sd is None else f"{mean:.4f} ({sd:.4f})"
