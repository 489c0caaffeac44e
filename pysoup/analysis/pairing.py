"""Pairs of checkpoints: which are looked at, what differs between the two, and how two numbers of each go together."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import combinations
from typing import Any

from ..errors import BackendError, SoupError
from ..record import Record

USES = ("none", "one", "both")
SEED, SEVERAL, UNKNOWN = "seed", "several", "not recorded"
KINDS = {
    "learning_rate": "learning rate",
    "augment_ops": "augmentation",
    "augment_magnitude": "augmentation",
    "mixup": "augmentation",
}
"""Hyperparameters that are one thing to vary (paper, Figure 3); others are called by their own name."""

Pair = tuple[int, int]


def choose_pairs(count: int, pairs: int | None = None, seed: int = 0) -> list[Pair]:
    """All pairs of ``count`` checkpoints, or so many of them, drawn with ``seed``: more of them begin with the same."""
    if count < 2:
        raise SoupError("pairs need two checkpoints or more", found=count)
    every = list(combinations(range(count), 2))
    if pairs is None or pairs >= len(every):
        return every
    random.Random(seed).shuffle(every)
    return every[:pairs]


def what_differs(first: Record | None, second: Record | None) -> str:
    """What was varied between two trainings, by the records beside the checkpoints.

    ``"seed"``: nothing else differs; the one kind of hyperparameter that does (the seed may, too); ``"several"``; or
    ``"not recorded"``.
    """
    if first is None or second is None:
        return UNKNOWN
    one, other = first.hyperparameters, second.hyperparameters
    keys = [key for key in {**one, **other} if key != SEED and one.get(key) != other.get(key)]
    kinds = sorted({KINDS.get(key, key.replace("_", " ")) for key in keys})
    return SEED if not kinds else kinds[0] if len(kinds) == 1 else SEVERAL


def how_many_use(names: Sequence[str], first: Record | None, second: Record | None) -> str:
    """How many of the two were trained with any of these hyperparameters (above 0): ``"none"``, ``"one"``, ``"both"``,
    or ``"not recorded"``. Raises :class:`SoupError` for one that is in no record."""
    if first is None or second is None:
        return UNKNOWN
    for name in names:
        known = sorted({**first.hyperparameters, **second.hyperparameters})
        if name not in known:
            raise SoupError("no such hyperparameter in the records", found=repr(name), expected=", ".join(known))
    used = sum(any(record.hyperparameters.get(name) for name in names) for record in (first, second))
    return USES[used]


def learning_rate(record: Record | None) -> float | None:
    """The recorded one."""
    rate = None if record is None else record.hyperparameters.get("learning_rate")
    return float(rate) if isinstance(rate, (int, float)) and not isinstance(rate, bool) else None


def larger_rate(first: Record | None, second: Record | None) -> float | None:
    """The larger learning rate of a pair; None unless both are recorded."""
    rates = [rate for rate in (learning_rate(first), learning_rate(second)) if rate is not None]
    return max(rates) if len(rates) == 2 else None


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two numbers over ``pairs`` pairs.

    ``p_value`` is two-sided and takes the pairs for independent, which those that share a model are not;
    ``p_models`` does not (see :func:`correlation`). ``rho`` and the rest are None where there is nothing to correlate.
    """

    pairs: int
    rho: float | None = None
    p_value: float | None = None
    p_models: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def correlation(
    first: Mapping[Pair, float], second: Mapping[Pair, float], *, permutations: int = 999, seed: int = 0
) -> Correlation:
    """How two numbers of each pair go together. Needs scipy.

    Where all pairs of four models or more are there, ``p_models`` is that of Mantel's test: the share of
    ``permutations`` of the models (and of the order as it is) after which the correlation is as strong.
    """
    keys = [key for key in first if key in second]
    one, other = [first[key] for key in keys], [second[key] for key in keys]
    if len(keys) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return Correlation(len(keys))
    require_scipy()
    from scipy.stats import spearmanr

    found = spearmanr(one, other)
    rho = float(found.statistic)
    models = sorted({index for key in keys for index in key})
    complete = len(models) >= 4 and len(keys) == len(models) * (len(models) - 1) // 2
    p_models = _mantel(first, second, models, rho, permutations, seed) if complete else None
    return Correlation(len(keys), rho, float(found.pvalue), p_models)


def _mantel(
    first: Mapping[Pair, float],
    second: Mapping[Pair, float],
    models: Sequence[int],
    rho: float,
    permutations: int,
    seed: int,
) -> float:
    import numpy as np
    from scipy.stats import rankdata

    upper = np.triu_indices(len(models), 1)
    pairs = list(combinations(models, 2))  # in the order of these indices
    tables = []
    for values in (first, second):
        ranks = rankdata([values[pair] for pair in pairs])
        table = np.zeros((len(models), len(models)))
        table[upper] = ranks - ranks.mean()
        tables.append(table + table.T)
    one, other = tables
    scale = np.sqrt((one[upper] ** 2).sum() * (other[upper] ** 2).sum())
    generator = np.random.default_rng(seed)
    strong = 1
    for _ in range(permutations):
        order = generator.permutation(len(models))
        strong += abs((one[np.ix_(order, order)][upper] * other[upper]).sum() / scale) >= abs(rho) - 1e-12
    return float(strong / (permutations + 1))


def require_scipy() -> None:
    """Raise :class:`BackendError` with what to install where it is missing."""
    if find_spec("scipy") is None:
        install = "pip install 'model-soups[demo]' (in a checkout: '.[demo]')"
        raise BackendError(f"rank correlations need scipy: {install}")
