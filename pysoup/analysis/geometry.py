"""Distances, inner products and angles of checkpoints, from one Gram matrix streamed from the files (paper, section 4).

Needs no torch, no task, and no more memory than the buffers it is given: models may be larger than memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint, align_names
from ..checkpoint.find import find_checkpoints, open_found
from ..errors import SoupError
from ..names import NameFilter, Patterns
from ..progress import ByteProgress

_EPSILON = 2.0**-53
_TERMS = 80
_TILES = 2**22

PathLike = str | os.PathLike[str]
Matrix = list[list[float]]


@dataclass(frozen=True)
class Geometry:
    """Where K checkpoints lie, and with a ``base`` how they left it.

    ``gram[i][j]`` is the inner product of the checkpoints i and j over ``tensors`` tensors of together ``parameters``
    elements, in f64; with a base its row and column are the last. ``error``: each of these inner products is within
    ``error * norm_i * norm_j`` of the exact one of the stored values.

    Squared distances are differences of such numbers. They are exact for equal checkpoints (0), and otherwise off by
    at most ``error * (norm_i + norm_j) ** 2``: what is much nearer than ``sqrt(error)`` of the norm (about 1e-7) is not
    told apart from equal. Every distance and angle comes with its bound.
    """

    names: list[str]
    base: str | None
    tensors: int
    parameters: int
    excluded: list[str]
    """The tensors that were left out."""
    gram: Matrix
    error: float

    def __post_init__(self) -> None:
        for index, name in enumerate([*self.names, *([] if self.base is None else [self.base])]):
            if not math.isfinite(self.gram[index][index]):
                raise SoupError("no norm: a weight is NaN or infinite, or its square is", file=name)

    @property
    def count(self) -> int:
        """K, without the base."""
        return len(self.names)

    def norm(self, i: int, origin: int | None = None) -> float:
        """The Euclidean norm of checkpoint i, or its distance from the checkpoint ``origin``."""
        return math.sqrt(max(self.inner(i, i, origin), 0.0))

    def inner(self, i: int, j: int, origin: int | None = None) -> float:
        """``<theta_i, theta_j>``, or with an ``origin`` ``<theta_i - origin, theta_j - origin>``."""
        g = self.gram
        if origin is None:
            return g[i][j]
        if origin in (i, j):
            return 0.0
        return math.fsum([g[i][j], -g[i][origin], -g[origin][j], g[origin][origin]])

    def inner_error(self, i: int, j: int, origin: int | None = None) -> float:
        """The bound of the error of :meth:`inner`."""
        lengths = [self.norm(k) + (0.0 if origin is None else self.norm(origin)) for k in (i, j)]
        return (self.error + 2 * _EPSILON) * lengths[0] * lengths[1]

    def distance(self, i: int, j: int) -> float:
        """The Euclidean distance of two checkpoints."""
        return self.norm(i, j)

    def distance_error(self, i: int, j: int) -> float:
        """The bound of its error: relatively small unless the checkpoints are very near each other."""
        squared = self.inner_error(i, i, j) if i != j else 0.0
        return squared / max(self.distance(i, j), math.sqrt(squared)) if squared else 0.0

    def cosine(self, i: int, j: int, origin: int | None = None) -> float | None:
        """Of the angle at ``origin`` (default: zero); None where one of them is not told apart from it."""
        lengths = [self.norm(k, origin) for k in (i, j)]
        if any(length**2 <= self.inner_error(k, k, origin) for k, length in zip((i, j), lengths, strict=True)):
            return None
        return 1.0 if i == j else max(-1.0, min(1.0, self.inner(i, j, origin) / lengths[0] / lengths[1]))

    def angle(self, i: int, j: int, origin: int | None = None) -> float | None:
        """The same as an angle in degrees, 0 to 180."""
        cosine = self.cosine(i, j, origin)
        return None if cosine is None else math.degrees(math.acos(cosine))

    def angle_error(self, i: int, j: int, origin: int | None = None) -> float | None:
        """The bound of its error in degrees."""
        cosine = self.cosine(i, j, origin)
        if cosine is None or i == j:
            return None if cosine is None else 0.0
        lengths = [self.norm(k, origin) for k in (i, j)]
        shares = [self.inner_error(k, k, origin) / length**2 for k, length in zip((i, j), lengths, strict=True)]
        if max(shares) > 0.4:
            return 180.0
        # A length is off by less than the share that its square is off by, and so is one by it; the rest is generous.
        slack = 2 * self.inner_error(i, j, origin) / lengths[0] / lengths[1] + sum(shares)
        middle = math.acos(cosine)
        return math.degrees(max(abs(math.acos(max(-1.0, min(1.0, cosine + s))) - middle) for s in (-slack, slack)))

    @property
    def origin(self) -> int | None:
        """The row of the base."""
        return None if self.base is None else self.count

    def to_json(self) -> dict[str, Any]:
        """All of it in one object: matrices are lists of rows, angles in degrees, null where there is none."""
        found: dict[str, Any] = {
            "analysis": "geometry",
            "checkpoints": self.names,
            "base": self.base,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "excluded_tensors": self.excluded,
            "gram": self.gram,
            "gram_relative_error": self.error,
            "norms": [self.norm(i) for i in range(self.count)],
            "distances": self._table(self.distance),
            "distance_errors": self._table(self.distance_error),
            "angles": self._table(self.angle),
        }
        if (base := self.origin) is not None:
            found["from_base"] = {
                "base_norm": self.norm(base),
                "distances": [self.distance(i, base) for i in range(self.count)],
                "distance_errors": [self.distance_error(i, base) for i in range(self.count)],
                "dots": self._table(lambda i, j: self.inner(i, j, base)),
                "cosines": self._table(lambda i, j: self.cosine(i, j, base)),
                "angles": self._table(lambda i, j: self.angle(i, j, base)),
                "angle_errors": self._table(lambda i, j: self.angle_error(i, j, base)),
            }
        return found

    def _table(self, value: Any) -> list[list[Any]]:
        return [[value(i, j) for j in range(self.count)] for i in range(self.count)]


def weight_geometry(
    checkpoints: PathLike | Sequence[PathLike | Checkpoint],
    base: PathLike | Checkpoint | None = None,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    exclude_norms: bool = False,
    entry: str | None = None,
    memory: str | int = "64MiB",
    threads: int | None = None,
    progress: ByteProgress | None = None,
    notes: list[str] | None = None,
) -> Geometry:
    """The :class:`Geometry` of ``checkpoints``, and of ``base``, from which they were fine-tuned.

    All floating-point tensors count, but for those that the patterns ``include`` and ``exclude`` leave out and, with
    ``exclude_norms``, those of at most one dimension: gains and biases. The paper's angles are those of weight matrices
    alone, since gains are all about 1 and would bring every angle down. Integer tensors are left out.

    The files are read once, through ``memory`` bytes of buffers; names, shapes and ties must agree. ``notes`` gets a
    line for whatever should be known of the files. Raises :class:`SoupError` as :func:`pysoup.average_checkpoints`
    does, and for NaN and infinities.
    """
    notes = [] if notes is None else notes
    found: list[Any] = find_checkpoints(checkpoints, notes)
    start: list[Any] = [] if base is None else find_checkpoints([base])
    if len(start) > 1:
        raise SoupError("the base is one model", file=str(base), found=f"{len(start)} checkpoints")
    opened = open_found([*found, *start], entry)
    aligned, matched = align_names(opened)
    notes += matched
    labels = [str(checkpoint.path) for checkpoint in aligned]
    return gram_geometry(
        list(zip(labels, aligned, strict=True)),
        with_base=base is not None,
        names=NameFilter.of(include, exclude),
        exclude_norms=exclude_norms,
        memory=memory,
        threads=threads,
        progress=progress,
    )


def gram_geometry(
    sources: Sequence[tuple[str, Checkpoint]],
    *,
    with_base: bool,
    names: NameFilter,
    exclude_norms: bool,
    memory: str | int = "64MiB",
    threads: int | None = None,
    progress: ByteProgress | None = None,
) -> Geometry:
    """:func:`weight_geometry` of opened checkpoints with their labels, the base last if there is one."""
    from ..gram import gram

    first = sources[0][1]
    floating = [name for name in (*first, *first.aliases) if first.entry(name).dtype.kind in ("float", "complex")]
    names.check(floating)

    def leaves_out(name: str) -> bool:
        flat = exclude_norms and (name in first or name in first.aliases) and len(first.entry(name).shape) < 2
        return flat or not names.takes(name)

    excluded = [name for name in floating if leaves_out(name)]
    if len(excluded) == len(floating):
        raise SoupError("no tensor is left to compare", file=first.path, expected="one with two dimensions or more")
    found = gram(sources, exclude=leaves_out, memory=memory, threads=threads, progress=progress)
    sizes = [math.prod(first.entry(name).shape) for name in found.names]
    labels = [label for label, _ in sources]
    return Geometry(
        names=labels[:-1] if with_base else labels,
        base=labels[-1] if with_base else None,
        tensors=len(found.names),
        parameters=sum(sizes),
        excluded=excluded,
        gram=found.matrix,
        error=gram_error(sizes),
    )


def gram_error(sizes: Sequence[int]) -> float:
    """The bound of the relative error of inner products over tensors of these sizes (docs/arithmetic.md)."""
    return (_TERMS + max(sizes, default=0) / _TILES + len(sizes)) * _EPSILON
