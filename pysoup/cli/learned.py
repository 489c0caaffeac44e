"""How ``pysoup learned`` prints what was learned: the epochs, and the weights of ingredients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .text import table

if TYPE_CHECKING:
    from ..soups import LearnedSoup

_KINDS = ("model", "layer", "tensor")
_MOST_GRANULES, _MOST_INGREDIENTS = 40, 12


def granules(given: Sequence[str]) -> str | list[str] | None:
    """``--granularity`` as the library takes it: a kind, patterns, or None where none was given."""
    if len(given) == 1 and given[0] in _KINDS:
        return given[0]
    return list(given) or None


def epochs(soup: LearnedSoup) -> str:
    """A line for each epoch."""
    header = ["epoch", "steps", "loss", "beta"]
    rows = [[str(e.epoch), str(e.steps), f"{e.loss:.5g}", f"{e.beta:.4g}"] for e in soup.epochs]
    if any(epoch.heldout_loss is not None for epoch in soup.epochs):
        header += ["held-out loss", f"held-out {soup.metric}"]
        for row, epoch in zip(rows, soup.epochs, strict=True):
            row += ["-" if value is None else f"{value:.5g}" for value in (epoch.heldout_loss, epoch.score)]
    return table(header, rows, right=header)


def weights(soup: LearnedSoup) -> str:
    """A line for each granule, where that is not too much; else one for each ingredient, over all granules."""
    names, values = list(soup.granules), soup.granule_weights
    if len(names) == 1:
        rows = [[name, f"{value:.4f}"] for name, value in zip(soup.ingredients, values[0].tolist(), strict=True)]
        return table(["checkpoint", "weight"], rows, right=["weight"])
    if len(names) <= _MOST_GRANULES and len(soup.ingredients) <= _MOST_INGREDIENTS:
        header = ["weights", *short(soup.ingredients)]
        lines = zip(names, values.tolist(), strict=True)
        return table(header, [[name, *(f"{v:.3f}" for v in row)] for name, row in lines], right=header[1:])
    header = ["checkpoint", "weight", "least", "most"]
    columns = zip(soup.weights, values.min(0).values.tolist(), values.max(0).values.tolist(), strict=True)
    rows = [[name, *(f"{value:.4f}" for value in row)] for name, row in zip(soup.ingredients, columns, strict=True)]
    note = f"(weight: over all parameters; least and most: of {len(names)} granules)"
    return f"{table(header, rows, right=header[1:])}\n{note}"


def short(names: Sequence[str]) -> list[str]:
    """The files without folders and suffixes, where these are different; else the names."""
    stems = [Path(name).stem for name in names]
    return stems if len(set(stems)) == len(stems) else list(names)
