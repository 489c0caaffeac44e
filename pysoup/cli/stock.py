"""``pysoup stock``: Model Stock of files into a file, or scored for a task into a directory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..errors import SoupError
from ..names import Rest
from ..progress import byte_bar, step_bar
from ..sizes import format_size, parse_size
from .models import require_torch, show
from .recipes import sources_of
from .text import as_json as to_json
from .text import as_notes, plural, printable


def stock(
    start: str,
    checkpoints: list[str],
    output: str,
    task: str | None,
    *,
    metric: str | None,
    rest: Rest,
    entry: str | None,
    memory: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Make it, and print how far each tensor went; with a ``task``, the score too."""
    paths, notes = sources_of(checkpoints, entry, None)
    first, _ = sources_of([start], entry, None)
    if len(first) != 1:
        raise SoupError("START is to be one checkpoint", file=start, found=len(first))
    limit = parse_size(memory)
    if task is None:
        from ..stock import stock_checkpoints

        with byte_bar("stock") as bar:
            report = stock_checkpoints(first[0], paths, output, rest=rest, memory=limit, progress=bar, **options)
        report.notes[:0] = notes
        if as_json:
            print(to_json(report.to_json()))
            return
        done = report.average
        print(f"model stock of {plural(len(paths), 'checkpoint')} and their start into {printable(done.output)}")
        print(_ratios(report.ratios))
        print(f"read {format_size(2 * done.bytes_read)}, wrote {format_size(done.bytes_written)}")
        print("".join(f"{line}\n" for line in as_notes(report.notes)), end="")
        return
    require_torch()
    from ..soups import model_stock
    from ..soups.command import run_recipe

    def make(given: Sequence[Any], *arguments: Any, **more: Any) -> Any:
        return model_stock(given[0], given[1:], *arguments, memory=limit, **more)

    with step_bar("stock") as progress:
        made = run_recipe(
            make, task, [*first, *paths], output, metric=metric, records=False, progress=progress, **options
        )
    print(_ratios(made.ratios))
    show(made, output, notes)


def _ratios(ratios: dict[str, float]) -> str:
    """The least, the median and the largest t."""
    values, of = list(ratios.values()), plural(len(ratios), "tensor")
    middle = statistics.median(values)
    return f"t, the share of their mean: {min(values):.4f} to {max(values):.4f}, median {middle:.4f}, {of}"
