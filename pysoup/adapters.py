"""LoRA adapters averaged: the mean of what they add to a model, ``sum_i w_i scale_i B_i A_i``, as an adapter again.

The mean of the A and of the B is not that: ``(B_1 + B_2)(A_1 + A_2) / 4`` has products of one adapter's B with
another's A. The exact mean of K adapters of rank r is ``[B_1 .. B_K] [A_1; ..; A_K]``, of rank K r at most, so that no
matrix of the model's size is made: the factors are reduced by QR, and the small core between them by SVD, whose
largest singular values are kept (the best approximation of a rank: Eckart and Young 1936).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .adapter_config import CONFIG, AdapterConfig, check_alike, merged_settings, read_config
from .average import average_checkpoints
from .checkpoint import Checkpoint, CheckpointWriter, TensorEntry
from .checkpoint.find import open_found
from .checkpoint.strict_json import clip
from .dtypes import DType
from .errors import CheckpointError, IncompatibleError, SoupError
from .weights import check_weights, mix

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["exact", "naive"]

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))", re.DOTALL)
_LORA = re.compile(r"\.lora_")


@dataclass
class AdapterReport:
    """What :func:`average_adapters` did. ``ranks`` has the rank of each module of the result.

    ``error`` is what the chosen rank leaves out of the exact mean: the Frobenius norm of the difference over that of
    the mean, all modules together; ``worst`` the module where it is largest. None for the naive mean, whose distance
    is not measured.
    """

    output: str
    inputs: list[str]
    weights: list[float]
    method: Method
    ranks: dict[str, int]
    error: float | None = None
    worst: tuple[str, float] | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class _Adapter:
    """One adapter: its factors by module (names of A and B), and its other tensors."""

    checkpoint: Checkpoint
    config: AdapterConfig
    factors: dict[str, tuple[str, str]]
    others: list[str]

    def shapes(self, module: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        a, b = self.factors[module]
        return self.checkpoint.entry(a).shape, self.checkpoint.entry(b).shape

    def scale(self, module: str) -> float:
        return self.config.scale(module.removeprefix(_PREFIX), self.shapes(module)[0][0])


def average_adapters(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    weights: Sequence[float] | None = None,
    *,
    method: Method = "exact",
    rank: int | None = None,
    overwrite: bool = False,
) -> AdapterReport:
    """Average LoRA adapters (directories as PEFT saves them) into the adapter directory ``output``.

    ``"exact"``: the mean of the products, with the sum of the ranks, at most ``rank``; ranks, alphas and target modules
    of the adapters may differ, and the result's scale is 1. Made in f64 and stored in the type of the first adapter.
    ``"naive"``: the mean of A and of B, which needs the same ranks and scales. ``weights``, one an adapter, are
    normalised; None is equal ones. What else an adapter holds (``modules_to_save``, biases) is averaged as it is.

    Raises :class:`SoupError`: adapters that are no plain LoRA, of convolutions, or that do not fit together.
    """
    if method not in ("exact", "naive"):
        raise SoupError("unknown method", found=method, expected="exact or naive")
    if rank is not None and (method == "naive" or rank < 1):
        what = "the naive mean keeps the rank" if method == "naive" else "rank is too small"
        raise SoupError(what, found=rank, expected=None if method == "naive" else "at least 1")
    adapters = [_opened(checkpoint) for checkpoint in open_found(paths)]
    notes = check_alike([adapter.config for adapter in adapters])
    inputs = [str(adapter.checkpoint.path) for adapter in adapters]
    law = mix(check_weights(weights, len(adapters)), range(len(adapters)), normalize=True)
    taken = dict(zip(law.members, law.shares, strict=True))
    shares = [taken.get(i, 0.0) for i in range(len(adapters))]
    if method == "naive":
        ranks = _same_products(adapters)
        checkpoints = [adapter.checkpoint for adapter in adapters]
        average_checkpoints(checkpoints, output, weights, overwrite=overwrite)
        return AdapterReport(os.fspath(output), inputs, shares, method, ranks, notes=notes)
    _check_others(adapters)
    ranks = _ranks(adapters, rank)
    error, worst = _write(adapters, weights, shares, ranks, Path(output), overwrite)
    names = {module.removeprefix(_PREFIX): r for module, r in ranks.items()}
    return AdapterReport(os.fspath(output), inputs, shares, method, names, error, worst, notes)


def low_rank_sum(factors: Sequence[tuple[Tensor, Tensor]], rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best approximation of ``sum_i B_i A_i`` of a rank, as A ``[rank, in]`` and B ``[out, rank]``, both f64.

    ``factors`` are pairs ``A [r_i, in]``, ``B [out, r_i]``. Also the squared Frobenius norms of what is left out and of
    the whole. The singular values are shared equally by A and B; ``rank`` is at most the sum of the ranks, and at most
    either size of the product.
    """
    import torch

    right = torch.cat([a.double() for a, _ in factors])
    left = torch.cat([b.double() for _, b in factors], dim=1)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    roots = values[:rank].sqrt()
    squares = values.square()
    a = roots[:, None] * (v[:rank] @ q_right.T)
    return a, (q_left @ u[:, :rank]) * roots, float(squares[rank:].sum()), float(squares.sum())


def _opened(checkpoint: Checkpoint) -> _Adapter:
    """The adapter in a directory, its tensors paired. Raises CheckpointError."""
    path = checkpoint.path
    if not checkpoint.is_directory:
        raise CheckpointError("not an adapter", file=path, expected=f"a directory with {CONFIG}")
    config = read_config(checkpoint.files[0].parent)
    pairs: dict[str, dict[str, str]] = {}
    others = []
    for name in (*checkpoint, *checkpoint.aliases):
        match = _FACTOR.fullmatch(name)
        if match is not None:
            pairs.setdefault(match["module"], {})[match["linear"] or match["embedding"]] = name
        elif _LORA.search(name):
            raise CheckpointError("not a factor of plain LoRA", file=path, tensor=clip(name))
        else:
            others.append(name)
    factors = {}
    for module, pair in pairs.items():
        if len(pair) != 2:
            raise CheckpointError(
                "has no partner: A and B come in pairs", file=path, tensor=clip(next(iter(pair.values())))
            )
        a, b = (checkpoint.entry(pair[key]) for key in "AB")
        _check_pair(path, a, b)
        factors[module] = pair["A"], pair["B"]
    if not factors:
        raise CheckpointError("holds no LoRA factors", file=path, found=clip(next(iter(checkpoint), "no tensors")))
    return _Adapter(checkpoint, config, factors, others)


def _check_pair(path: Path, a: TensorEntry, b: TensorEntry) -> None:
    for entry in (a, b):
        if len(entry.shape) != 2:
            what = "a factor of a convolution, which this does not average"
            raise CheckpointError(what, file=path, tensor=clip(entry.name), found=list(entry.shape))
        if entry.dtype.kind != "float":
            raise CheckpointError("not of a float type", file=path, tensor=clip(entry.name), found=entry.dtype)
    if a.shape[0] != b.shape[1]:
        expected = f"rank {a.shape[0]}, as its A"
        raise CheckpointError(
            "A and B have different ranks", file=path, tensor=clip(b.name), found=list(b.shape), expected=expected
        )


def _same_products(adapters: Sequence[_Adapter]) -> dict[str, int]:
    """The rank by module, the same in all adapters; so are the scales."""
    first = adapters[0]
    for other in adapters[1:]:
        for module in first.factors.keys() & other.factors.keys():
            one, two = first.scale(module), other.scale(module)
            if first.shapes(module)[0][0] != other.shapes(module)[0][0] or one != two:
                what = f"rank or scale of module {clip(module)!r} differs: only the exact mean can be taken"
                ranks = [f"rank {a.shapes(module)[0][0]}, scale {a.scale(module):g}" for a in (other, first)]
                raise IncompatibleError(what, file=other.checkpoint.path, found=ranks[0], expected=ranks[1])
    return {module.removeprefix(_PREFIX): first.shapes(module)[0][0] for module in first.factors}


def _check_others(adapters: Sequence[_Adapter]) -> None:
    """The tensors that are no factors must be the same ones everywhere."""
    first = adapters[0]
    for other in adapters[1:]:
        if difference := sorted(set(first.others) ^ set(other.others)):
            raise IncompatibleError("not in all adapters", file=other.checkpoint.path, tensor=clip(difference[0]))
        for name in first.others:
            found, expected = (list(a.checkpoint.entry(name).shape) for a in (other, first))
            if found != expected:
                path = other.checkpoint.path
                raise IncompatibleError("shape differs", file=path, tensor=clip(name), found=found, expected=expected)


def _ranks(adapters: Sequence[_Adapter], most: int | None) -> dict[str, int]:
    """The rank of each module of the result; a module that an adapter lacks is one that it leaves as it is."""
    ranks: dict[str, int] = {}
    for module in dict.fromkeys(module for adapter in adapters for module in adapter.factors):
        holders = [adapter for adapter in adapters if module in adapter.factors]
        (_, columns), (rows, _) = holders[0].shapes(module)
        total = 0
        for adapter in holders:
            a, b = adapter.shapes(module)
            adapter.scale(module)  # or the error, before anything is written
            if (a[1], b[0]) != (columns, rows):
                name, found = adapter.factors[module][0], f"{b[0]} x {a[1]}"
                raise IncompatibleError(
                    "product has another shape",
                    file=adapter.checkpoint.path,
                    tensor=clip(name),
                    found=found,
                    expected=f"{rows} x {columns}",
                )
            total += a[0]
        ranks[module] = min(total, rows, columns, most or total)
    return ranks


def _write(
    adapters: Sequence[_Adapter],
    weights: Sequence[float] | None,
    shares: Sequence[float],
    ranks: dict[str, int],
    output: Path,
    overwrite: bool,
) -> tuple[float, tuple[str, float] | None]:
    """Write the result module by module; returns the relative error of all, and the worst module's."""
    from .state_dicts import average_state_dicts

    first = adapters[0]
    settings = merged_settings([a.config for a in adapters], {m.removeprefix(_PREFIX): r for m, r in ranks.items()})
    writer = CheckpointWriter(
        output,
        [(_WEIGHTS, [*_factor_specs(adapters, ranks), *_other_specs(first)])],
        metadata={"format": "pt", "pysoup.ingredients": json.dumps([str(a.checkpoint.path) for a in adapters])},
        is_directory=True,
        overwrite=overwrite,
        inputs=[adapter.checkpoint for adapter in adapters],
        carry=first.config.directory,
        files={CONFIG: (json.dumps(settings, indent=2) + "\n").encode("utf-8")},
    )
    lost = whole = 0.0
    worst: tuple[str, float] | None = None
    with writer:
        for module, rank in ranks.items():
            holder = next(adapter for adapter in adapters if module in adapter.factors)
            factors = [
                _scaled(a, module, s) for a, s in zip(adapters, shares, strict=True) if s and module in a.factors
            ]
            if not factors:  # all its adapters have weight 0
                factors = [_scaled(holder, module, 0.0)]
            *pair, left_out, total = low_rank_sum(factors, rank)
            for name, tensor in zip(holder.factors[module], pair, strict=True):
                _put(writer, name, tensor, holder.checkpoint.entry(name).dtype)
            lost, whole = lost + left_out, whole + total
            error = math.sqrt(left_out / total) if total else 0.0
            if worst is None or error > worst[1]:
                worst = module.removeprefix(_PREFIX), error
        for name in first.others:
            mean = average_state_dicts([{name: a.checkpoint.tensor(name)} for a in adapters], weights)[name]
            _put(writer, name, mean, first.checkpoint.entry(name).dtype)
        writer.commit()
    return math.sqrt(lost / whole) if whole else 0.0, worst


def _factor_specs(adapters: Sequence[_Adapter], ranks: dict[str, int]) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    """Name, type and shape of A and B, for each module: as in the first adapter that has it, but for the rank."""
    for module, rank in ranks.items():
        holder = next(adapter for adapter in adapters if module in adapter.factors)
        (a, b), entry = holder.factors[module], holder.checkpoint.entry
        yield a, entry(a).dtype, (rank, entry(a).shape[1])
        yield b, entry(b).dtype, (entry(b).shape[0], rank)


def _other_specs(adapter: _Adapter) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    for name in adapter.others:
        entry = adapter.checkpoint.entry(name)
        yield name, entry.dtype, entry.shape


def _scaled(adapter: _Adapter, module: str, share: float) -> tuple[Tensor, Tensor]:
    """A, and B times the adapter's weight and scale, in f64: what the adapter adds to the mean."""
    a, b = (adapter.checkpoint.tensor(name).double() for name in adapter.factors[module])
    for name, tensor in zip(adapter.factors[module], (a, b), strict=True):
        if not bool(tensor.isfinite().all()):
            raise CheckpointError("holds NaN or infinity", file=adapter.checkpoint.path, tensor=clip(name))
    return a, b * (share * adapter.scale(module))


def _put(writer: CheckpointWriter, name: str, tensor: Tensor, dtype: DType) -> None:
    import torch

    stored = tensor.to(getattr(torch, dtype.torch_name)).contiguous().reshape(-1)
    if stored.numel():
        writer.write_bytes(name, stored.view(torch.uint8).numpy().data)
