"""What commands that run models have in common: how they print soups, and that they need torch; and ``pysoup demo``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BackendError, OutputError
from .text import as_notes, printable, table

if TYPE_CHECKING:
    from ..soups import Ensemble, GreedyStep, Soup


def steps(
    made: Soup | Ensemble,
    columns: tuple[str, str] = ("soup with it", "soup before"),
    verdicts: tuple[str, str] = ("kept", "refused"),
) -> str:
    """The trace as a table; with a column for the rounds, of a recipe that has some."""
    header = ["step", "checkpoint", "alone", *columns, "seen", "", "note"]
    rows = [_row(step, made, verdicts) for step in made.trace]
    if any(step.round for step in made.trace):
        header.insert(1, "round")
        for row, step in zip(rows, made.trace, strict=True):
            row.insert(1, "-" if step.round is None else str(step.round))
    return table(header, rows, right=("step", "round", "alone", *columns, "seen"))


def _row(step: GreedyStep, soup: Soup | Ensemble, verdicts: tuple[str, str]) -> list[str]:
    """One step of the trace; of a soup that was refused early, the score that was still possible."""
    verdict = verdicts[not step.accepted]
    if step.round and not step.accepted and any(s.accepted and s.round == step.round for s in soup.trace):
        verdict = "not best"  # of its round: it may well have made the soup better
    with_it = _score(step.candidate_score)
    if step.bound is not None:
        with_it = f"{'<=' if soup.direction == 'max' else '>='} {_score(step.bound)}"
    return [
        str(step.step + 1),
        step.ingredient,
        _score(step.single_score),
        with_it,
        _score(step.best_score_before),
        f"{step.samples / step.of:.0%}" if step.of else "-",
        verdict,
        step.note,
    ]


def demo(output: str, *, seed: int, overwrite: bool) -> None:
    """Run the demo in ``output``, which must be new or empty unless ``overwrite``."""
    from .. import demo as kitchen

    folder = Path(output)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError("the directory is not empty; another one or --force", file=folder)
    kitchen.run(folder, seed=seed)


def show(made: Soup | Ensemble, output: str, notes: Sequence[str]) -> None:
    """The last lines of a command: the score, the cost, the files written and the notes."""
    from ..soups import Soup
    from ..soups.command import RESULTS, TRACE, WEIGHTS

    is_soup = isinstance(made, Soup)
    kind = f"{made.recipe} soup" if is_soup else made.recipe
    print(f"{kind} of {len(made.ingredients)}: held-out {made.metric} {_score(made.score)}")
    print(_cost(made))
    for name in (WEIGHTS, TRACE, RESULTS) if is_soup else (TRACE, RESULTS):
        print(f"wrote {printable(str(Path(output) / name))}")
    print("".join(f"{line}\n" for line in as_notes(list(dict.fromkeys([*notes, *made.notes])))), end="")


def _cost(made: Soup | Ensemble) -> str:
    """Passes over the held-out set and where the time went; reading ahead runs beside the scoring."""
    used, saved = made.passes["used"], made.passes["saved"]
    passes = f"{used:.4g} {'pass' if used == 1 else 'passes'} over the held-out set"
    passes += f", {saved:.4g} saved" if saved > 0 else ""
    parts = {"mix": "mix", "score": "score", "read": "read ahead"}
    return f"{passes}; {', '.join(f'{text} {made.timing[name]:.2f} s' for name, text in parts.items())}"


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.5g}"


def require_torch() -> None:
    if find_spec("torch") is None:
        install = "pip install 'model-soups[torch]' (in a checkout: '.[torch]')"
        raise BackendError(f"soups of models need torch: {install}")
