"""``pysoup analyze geometry``, ``plane``, ``angles`` and ``pairs``: what the analyses of weights print and write."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..progress import byte_bar, step_bar
from ..record import write_json
from .choose import Best, choose
from .models import require_torch
from .text import as_json as to_json
from .text import as_notes, plural, printable, table

if TYPE_CHECKING:
    from ..analysis.angles import Angles
    from ..analysis.geometry import Geometry
    from ..analysis.pairs import Pairs
    from ..analysis.plane import Plane

_MOST_SHOWN = 12
SCORES = ".scores.json"


def geometry(
    checkpoints: list[str],
    *,
    base: str | None,
    output: str | None,
    figure: str | None,
    entry: str | None,
    best: Best | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Print, write and draw the geometry of ``checkpoints``."""
    from ..analysis.geometry import weight_geometry

    check_outputs(output, figure, overwrite)
    paths, notes = choose(checkpoints, best)
    with byte_bar("reading") as progress:
        found = weight_geometry(paths, base, entry=entry, progress=progress, notes=notes, **options)
    if figure is not None:
        from ..analysis.figures_weights import geometry_figure

        geometry_figure(found, figure)
    deliver(found.to_json(), _geometry_text(found), notes, output, figure, as_json)


def plane(
    task: str, checkpoints: Sequence[str], *, train: int | None, grid: tuple[int, int], margin: float, **options: Any
) -> None:
    """Score the plane through three ``checkpoints``, and print where it is lowest."""

    def make(sets: Any, scores: str | None, progress: Any, options: dict[str, Any]) -> Any:
        from ..analysis.plane import error_plane

        start, first, second = checkpoints
        return error_plane(
            sets, start, first, second, grid=grid, margin=margin, scores=scores, progress=progress, **options
        )

    def draw(found: Plane, path: str) -> None:
        from ..analysis.figures_weights import plane_figure

        plane_figure(found, path)

    run("plane", task, make, draw, _plane_text, train=train, **options)


def angles(
    task: str, checkpoints: list[str], base: str, *, best: Best | None, group_by: tuple[str, ...], **options: Any
) -> None:
    """Score pairs of ``checkpoints``, and print how their angles and gains go together."""
    paths, notes = choose(checkpoints, best)

    def make(sets: Any, scores: str | None, progress: Any, options: dict[str, Any]) -> Any:
        from ..analysis.angles import angle_gains

        return angle_gains(sets, paths, base, by=group_by, scores=scores, progress=progress, **options)

    def draw(found: Angles, path: str) -> None:
        from ..analysis.figures_weights import angles_figure

        angles_figure(found, path)

    run("angles", task, make, draw, _angles_text, notes=notes, **options)


def pairs(task: str, checkpoints: list[str], *, best: Best | None, **options: Any) -> None:
    """Score pairs of ``checkpoints`` as soups and as ensembles, and print how they compare."""
    paths, notes = choose(checkpoints, best)

    def make(sets: Any, scores: str | None, progress: Any, options: dict[str, Any]) -> Any:
        from ..analysis.pairs import pair_scores

        return pair_scores(sets, paths, scores=scores, progress=progress, **options)

    def draw(found: Pairs, path: str) -> None:
        from ..analysis.figures_weights import pairs_figure

        pairs_figure(found, path)

    run("pairs", task, make, draw, _pairs_text, notes=notes, **options)


def run(
    title: str,
    task: str,
    make: Callable[[Any, str | None, Any, dict[str, Any]], Any],
    draw: Callable[[Any, str], None],
    text: Callable[[Any], str],
    *,
    output: str | None,
    figure: str | None,
    scores_file: str | None,
    overwrite: bool,
    as_json: bool,
    notes: Sequence[str] = (),
    train: int | None = None,
    samples: int | None = None,
    **options: Any,
) -> None:
    """An analysis that runs models: checked first, then made under a bar, drawn, written and printed.

    What was scored is kept in ``scores_file``, by default beside the output: the next run goes on there.
    """
    require_torch()
    check_outputs(output, figure, overwrite)
    kept = scores_file if scores_file is not None or output is None else str(Path(output).with_suffix(SCORES))
    from ..analysis.sets import Sets

    sets = Sets(task, train=train, samples=samples)
    with step_bar(title) as progress:
        found = make(sets, kept, progress, options)
    if figure is not None:
        draw(found, figure)
    deliver(found.to_json(), text(found), [*notes, *found.notes], output, figure, as_json)


def check_outputs(output: str | None, figure: str | None, overwrite: bool) -> None:
    """Raise before anything is computed where the results could not be written."""
    if output is not None:
        path = Path(output)
        if path.suffix != ".json":
            raise OutputError("the output is a JSON file", file=path, expected="a name that ends in .json")
        if path.exists() and not overwrite:
            raise OutputError("the output exists; another name or --force", file=path)
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError("cannot write to the directory", file=path.parent)
    if figure is not None:
        from ..analysis.drawing import check_figure

        check_figure(figure)
        if Path(figure).exists() and not overwrite:
            raise OutputError("the figure exists; another name or --force", file=figure)


def deliver(
    content: dict[str, Any],
    text: str,
    notes: Sequence[str],
    output: str | None,
    figure: str | None,
    as_json: bool,
) -> None:
    """Write ``content`` to the file ``output``, and print it or the ``text``, what was written and the notes."""
    if output is not None:
        write_json(Path(output), content)
    if as_json:
        print(to_json(content))
        return
    print(text)
    for path in (output, figure):
        if path is not None:
            print(f"wrote {printable(path)}")
    print("".join(f"{line}\n" for line in as_notes(list(dict.fromkeys(notes)))), end="")


def _geometry_text(found: Geometry) -> str:
    base = found.origin
    columns = ["#", "checkpoint", "norm", *([] if base is None else ["from base"]), "nearest", "at distance"]
    others: list[Any] = [[j for j in range(found.count) if j != i] for i in range(found.count)]
    rows = []
    for i, name in enumerate(found.names):
        nearest = min(others[i], key=lambda j: found.distance(i, j), default=None)
        moved = [] if base is None else [_measured(found.distance(i, base), found.distance_error(i, base))]
        near = ["-", "-"]
        if nearest is not None:
            near = [str(nearest + 1), _measured(found.distance(i, nearest), found.distance_error(i, nearest))]
        rows.append([str(i + 1), name, f"{found.norm(i):.5g}", *moved, *near])
    left = f", {plural(len(found.excluded), 'tensor')} left out" if found.excluded else ""
    lines = [f"{plural(found.tensors, 'tensor')}, {found.parameters:,} parameters{left}"]
    lines.append(table(columns, rows, right=("#", "norm", "from base", "nearest", "at distance")))
    at = "the base" if base is not None else "zero"
    if 1 < found.count <= _MOST_SHOWN:
        lines += ["", f"above the diagonal: angle at {at} in degrees; below: distance", _matrix(found)]
    elif found.count > 1:
        pairs = [(i, j) for i in range(found.count) for j in range(i)]
        distances = [found.distance(i, j) for i, j in pairs]
        known = [angle for angle in (found.angle(i, j, base) for i, j in pairs) if angle is not None]
        lines += ["", f"distances: {_range(distances)}", f"angles at {at}: {_range(known)} degrees"]
    return "\n".join(lines)


def _matrix(found: Geometry) -> str:
    header = ["", *(str(i + 1) for i in range(found.count))]
    rows = []
    for i in range(found.count):
        cells = []
        for j in range(found.count):
            angle = found.angle(i, j, found.origin) if j > i else None
            upper = "-" if angle is None else f"{angle:.2f}"
            cells.append("" if i == j else upper if j > i else f"{found.distance(i, j):.5g}")
        rows.append([str(i + 1), *cells])
    return table(header, rows, right=header)


def _plane_text(found: Plane) -> str:
    first, second = found.basis.corners[1:]
    lines = [f"plane of {len(found.x)} x {len(found.y)} points; theta_1 at {_at(first)}, theta_2 at {_at(second)}"]
    columns = ["", "start", "first", "second", "lowest", "at", "weights"]
    rows = [
        [
            title,
            *(f"{value:.4g}" for value in lowest["models"]),
            f"{lowest['value']:.4g}",
            _at(lowest["at"]),
            ", ".join(f"{round(weight, 2) + 0.0:.2f}" for weight in lowest["weights"]),
        ]
        for title, lowest in found.lowest().items()
    ]
    return "\n".join([*lines, table(columns, rows, right=("start", "first", "second", "lowest"))])


def _angles_text(found: Angles) -> str:
    rows = []
    for group, result in found.correlations.items():
        members = [pair for pair in found.measured if group in ("all", pair.group)]
        rows.append(
            [
                group,
                str(result.pairs),
                _range([pair.degrees for pair in members]),
                _range([100 * pair.gain for pair in members]),
                *("-" if v is None else f"{v:.3g}" for v in (result.rho, result.p_value, result.p_models)),
            ]
        )
    grouping = f"with {' or '.join(map(printable, found.by))}" if found.by else "what differs"
    columns = [grouping, "pairs", "angle (degrees)", "gain (points)", "rho", "p", "p of models"]
    title = f"accuracy: mean of {', '.join(map(printable, found.sets))}"
    return "\n".join([title, table(columns, rows, right=("pairs", "rho", "p", "p of models"))])


def _pairs_text(found: Pairs) -> str:
    rows = []
    for title, sets in found.panels.items():
        result = found.agreement(sets)
        rows.append(
            [
                title,
                str(result.pairs),
                f"{100 * result.mean_difference:+.2f}",
                f"{result.soup_wins} of {result.pairs}" + (f", {result.ties} equal" if result.ties else ""),
                f"{result.soup_beats_both} of {result.pairs}",
                "-" if result.pearson is None else f"{result.pearson:.3f}",
            ]
        )
    columns = ["accuracy on", "pairs", "soup - ensemble", "soup wins", "soup beats both", "correlation"]
    return table(columns, rows, right=("pairs", "soup - ensemble", "correlation"))


def _measured(value: float, error: float) -> str:
    """A distance in five digits, or fewer if it is not as sure as that."""
    if value <= error:
        return f"< {error:.1g}" if error else "0"
    return f"{value:.5g}" if error < 1e-4 * value else f"{value:.3g} +- {error:.1g}"


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    return f"{ordered[0]:.3g} to {ordered[-1]:.3g}, median {ordered[len(ordered) // 2]:.3g}"


def _at(point: Sequence[float]) -> str:
    return f"({point[0]:.3g}, {point[1]:.3g})"
