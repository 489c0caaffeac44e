"""Model Stock (Jang et al. 2024, arXiv 2403.19522): how far from the start to the mean, by the angles between models.

Neither torch nor numpy is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from .average import AverageReport, average_checkpoints
from .checkpoint import Checkpoint, align_names
from .checkpoint.find import open_found
from .errors import SoupError
from .gram import Gram, Matrix, gram
from .names import NameFilter, Patterns, Rest
from .weights import Weights

_UNMOVED = 1e-12
"""Of the squared norms: a squared distance below this is the rounding of its inner products."""

Path = str | os.PathLike[str] | Checkpoint


@dataclass
class StockReport:
    """What :func:`stock_checkpoints` did: ``ratios`` has t for each tensor, ``cosines`` what it follows from."""

    start: str
    ratios: dict[str, float]
    cosines: dict[str, float]
    average: AverageReport
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)


def stock_ratio(matrix: Matrix) -> tuple[float, float]:
    """The mean cosine of one tensor, and t; from the inner products f64 ``[1 + N, 1 + N]``, the start's first.

    ``cos`` is the mean over all pairs of the cosine between their offsets from the start (with N of two the paper's
    angle; for more, as mergekit has it). ``t = N cos / (1 + (N - 1) cos)`` (equation 7 of Model Stock; for two models
    ``2 cos / (1 + cos)``), 0 where the mean cosine is not positive: there the start is kept. The pair of a model that
    has not moved, by more than a millionth of the weights' norm, has the cosine 0.
    """
    count = len(matrix) - 1
    zero = matrix[0][0]

    def product(i: int, j: int) -> float:
        return matrix[i][j] - matrix[i][0] - matrix[0][j] + zero

    squares = [product(i, i) for i in range(1, count + 1)]
    moved = [s > _UNMOVED * (matrix[i][i] + zero) for i, s in enumerate(squares, 1)]
    cosines = []
    for i, j in combinations(range(count), 2):
        both = moved[i] and moved[j]
        cosine = product(i + 1, j + 1) / math.sqrt(squares[i] * squares[j]) if both else 0.0
        cosines.append(max(-1.0, min(1.0, cosine)))
    mean = math.fsum(cosines) / len(cosines)
    return mean, count * mean / (1.0 + (count - 1) * mean) if mean > 0 else 0.0


def stock_ratios(tensors: Mapping[str, Matrix]) -> tuple[dict[str, float], dict[str, float]]:
    """:func:`stock_ratio` of each tensor: cosines, and t, by name. Raises where weights are not finite."""
    cosines, ratios = {}, {}
    for name, matrix in tensors.items():
        if not all(math.isfinite(value) for row in matrix for value in row):
            raise SoupError("Model Stock needs finite weights", tensor=name, found="NaN or infinity")
        cosines[name], ratios[name] = stock_ratio(matrix)
    return cosines, ratios


def stock_row(ratio: float, count: int) -> list[float]:
    """The weights of the start and of each of ``count`` models: ``(1 - t) theta_0 + t mean(theta_i)``."""
    return [1.0 - ratio, *[ratio / count] * count]


def check_count(count: int) -> None:
    """Raises :class:`SoupError` for fewer than two models: one has no angle to another."""
    if count < 2:
        raise SoupError("Model Stock needs two models or more beside the start", found=count)


def stock_checkpoints(
    start: Path,
    paths: str | os.PathLike[str] | Sequence[Path],
    output: str | os.PathLike[str],
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    rest: Rest = "drop",
    entry: str | None = None,
    dtype: object = None,
    integers: str = "auto",
    memory: str | int = "64MiB",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> StockReport:
    """Model Stock of files, into a file: ``(1 - t) theta_0 + t mean(theta_i)``, with a t of its own for each tensor.

    ``start`` is the checkpoint that all were fine-tuned from. Two passes over the files, each within ``memory`` bytes
    of buffers: the inner products, then the average. No data is needed. The output is as that of
    :func:`pysoup.average_checkpoints` with ``start`` as the first input; the other arguments and errors are as there.
    """
    names = NameFilter.of(include, exclude)
    notes: list[str] = []
    first = open_found([start], entry)
    if len(first) != 1:
        raise SoupError("the start is to be one checkpoint", file=first[0].path.parent, found=len(first))
    opened = [*first, *open_found(paths, entry, notes)]
    check_count(len(opened) - 1)
    aligned, _ = align_names(opened, "intersection" if names else "same")
    if names:
        names.check(name for c in aligned for name in (*c, *c.aliases))
        aligned = [checkpoint.only(names.takes) for checkpoint in aligned]

    def averaged(weights: Weights, **how: Any) -> AverageReport:
        return average_checkpoints(
            opened,
            output,
            weights,
            normalize=False,
            include=names.include,
            exclude=names.exclude,
            rest=rest,
            dtype=dtype,
            integers=integers,
            memory=memory,
            threads=threads,
            overwrite=overwrite,
            **how,
        )

    averaged([1.0] * len(opened), dry_run=True)  # what is wrong with the output shows before anything is read
    products = products_of(aligned, memory=memory, threads=threads, progress=progress)
    cosines, ratios = stock_ratios(products.tensors)
    rows = {name: stock_row(ratio, len(opened) - 1) for name, ratio in ratios.items()}
    report = averaged(rows, progress=progress)
    return StockReport(str(opened[0].path), ratios, cosines, report, [*notes, *report.notes])


def products_of(
    checkpoints: Sequence[Checkpoint],
    *,
    memory: str | int = "64MiB",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Gram:
    """The inner products of each tensor of the start and the models, in one pass."""
    named = [(str(checkpoint.path), checkpoint) for checkpoint in checkpoints]
    return gram(named, per_tensor=True, memory=memory, threads=threads, progress=progress)
