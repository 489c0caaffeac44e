"""``pysoup trajectory``: SWA, EMA and LAWA of files into a file, or scored for a task into a directory."""

from __future__ import annotations

from typing import Any

from ..errors import SoupError
from ..names import Rest
from ..progress import byte_bar, step_bar
from ..sizes import parse_size
from ..trajectory import windows
from .files import summary
from .models import require_torch, show
from .recipes import sources_of
from .text import as_json as to_json
from .text import some, table


def trajectory(
    checkpoints: list[str],
    output: str,
    task: str | None,
    *,
    kind: str,
    last: list[int] | None,
    end: list[int] | None,
    decay: list[float] | None,
    classic: bool,
    metric: str | None,
    recalibrate: bool,
    rest: Rest,
    entry: str | None,
    memory: str,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make it, and print what was averaged; of several averages, the score of each."""
    paths, notes = sources_of(checkpoints, entry, None)
    chosen: dict[str, Any] = {"last": last, "end": end, "decay": decay, "classic": classic}
    if len(paths) > len(checkpoints):  # found in folders or by patterns, and the order matters
        notes.append(f"in this order: {some([str(path) for path in paths])}")
    found = windows(kind, len(paths), **chosen)
    if task is None:
        if len(found) > 1:
            raise SoupError("several averages to choose from need --task", found=f"{len(found)} averages")
        from ..average import average_checkpoints

        with byte_bar("averaging") as bar:
            report = average_checkpoints(
                paths,
                output,
                found[0].weights,
                rest=rest,
                memory=parse_size(memory),
                integers="max",
                overwrite=overwrite,
                progress=bar,
                **options,
            )
        report.notes[:0] = notes
        print(to_json({**report.to_json(), "window": found[0].to_json()}) if as_json else summary(report))
        return
    require_torch()
    from ..soups import trajectory_soup
    from ..soups.command import run_recipe

    with step_bar(kind) as progress:
        made = run_recipe(
            trajectory_soup,
            task,
            paths,
            output,
            metric=metric,
            overwrite=overwrite,
            records=False,
            training=recalibrate,
            kind=kind,
            progress=progress,
            **chosen,
            **options,
        )
    if len(made.tried) > 1:
        rows = [[w.text, f"{p.score:.5g}", "chosen" if w == made.window else ""] for w, p in made.tried]
        print(table(["average", str(made.metric), ""], rows, right=(str(made.metric),)))
    show(made, output, notes)
