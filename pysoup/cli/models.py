"""``pysoup uniform``, ``greedy`` and ``demo``: the commands that run models, and so need torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import BackendError, OutputError
from ..progress import step_bar
from .choose import Best, choose
from .text import as_notes, printable, table

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..soups import Soup


def uniform(
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    metric: str | None,
    entry: str | None,
    best: Best | None,
    integers: str,
    overwrite: bool,
) -> None:
    """Make the uniform soup, and print its score and the files written."""
    _require_torch()
    from ..soups.command import run_uniform

    sources, notes = _sources(checkpoints, entry, best)
    with step_bar("uniform soup") as progress:
        soup = run_uniform(
            task, sources, output, metric=metric, integers=integers, overwrite=overwrite, progress=progress
        )
    _show(soup, output, notes)


def greedy(
    task: str,
    checkpoints: list[str],
    output: str,
    *,
    metric: str | None,
    accept: Literal[">=", ">"],
    entry: str | None,
    best: Best | None,
    integers: str,
    overwrite: bool,
) -> None:
    """Make the greedy soup, and print each step, the score and the files written."""
    _require_torch()
    from ..soups.command import run_greedy

    sources, notes = _sources(checkpoints, entry, best)
    with step_bar("greedy soup") as progress:
        soup = run_greedy(
            task,
            sources,
            output,
            metric=metric,
            accept=accept,
            integers=integers,
            overwrite=overwrite,
            progress=progress,
        )
    rows = []
    for step in soup.trace:
        scores = (_score(s) for s in (step.single_score, step.candidate_score, step.best_score_before))
        rows.append([str(step.step + 1), step.ingredient, *scores, "kept" if step.accepted else "refused", step.note])
    header = ["step", "checkpoint", "alone", "soup with it", "soup before", "", "note"]
    print(table(header, rows, right=("step", "alone", "soup with it", "soup before")))
    _show(soup, output, notes)


def demo(output: str, *, seed: int, overwrite: bool) -> None:
    """Run the demo in ``output``, which must be new or empty unless ``overwrite``."""
    from .. import demo as kitchen

    folder = Path(output)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError("the directory is not empty; another one or --force", file=folder)
    kitchen.run(folder, seed=seed)


def _sources(checkpoints: list[str], entry: str | None, best: Best | None) -> tuple[list[str | Checkpoint], list[str]]:
    """What the recipes take, and notes on what was found."""
    from ..checkpoint.find import open_found

    paths, notes = choose(checkpoints, best)
    return [str(path) for path in paths] if entry is None else [*open_found(paths, entry)], notes


def _show(soup: Soup, output: str, notes: Sequence[str]) -> None:
    from ..soups.command import RESULTS, TRACE, WEIGHTS

    print(f"{soup.recipe} soup of {len(soup.ingredients)}: held-out {soup.metric} {_score(soup.score)}")
    for name in (WEIGHTS, TRACE, RESULTS):
        print(f"wrote {printable(str(Path(output) / name))}")
    print("".join(f"{line}\n" for line in as_notes(list(dict.fromkeys([*notes, *soup.notes])))), end="")


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.5g}"


def _require_torch() -> None:
    if find_spec("torch") is None:
        install = "pip install 'model-soups[torch]' (in a checkout: '.[torch]')"
        raise BackendError(f"soups of models need torch: {install}")
