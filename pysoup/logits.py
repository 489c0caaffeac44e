"""Scores of logits in one pass over their bytes: top-k counts, negative log-likelihood, and what each sample adds.

Tensors on devices without kernels take the same steps in plain torch, without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import ops
from .errors import IncompatibleError, SoupError

PER_SAMPLE = ("prediction", "correct", "margin", "confidence", "nll")


@dataclass
class LogitScores:
    """The scores of M candidates over the same N samples; a single one is M = 1.

    Tensors are on the logits' device. Per-sample tensors are ``[M, N]``, or ``None`` unless asked for. A sample whose
    label is ignored is no part of any count or sum; its prediction is -1, its ``correct`` false, the rest NaN. So it is
    for a row with a NaN, which does count, as wrong.
    """

    top: dict[int, Tensor]
    """k -> int64 ``[M]``: samples whose label is among the k largest logits, of equal ones those of the lower class."""
    nll: Tensor | None
    """f64 ``[M]``: the negative log-likelihoods in nats, summed in one fixed order; ``None`` if not asked for.
    NaN if a row of the candidate has a NaN or a positive infinity, or nothing but negative ones; infinite if the
    label's logit is -inf."""
    samples: int | Tensor
    """The labels that count: an int, or, on devices other than the CPU with ``ignore_index``, a 0-dim tensor."""
    nan_rows: Tensor
    """int64 ``[M]``: rows with a NaN, of the samples that count."""
    prediction: Tensor | None = None
    """int64: the class of the largest logit, of equal ones the lowest."""
    correct: Tensor | None = None
    """bool: whether the prediction is the label."""
    margin: Tensor | None = None
    """f64: the label's logit minus the largest other one; infinite if there is one class."""
    confidence: Tensor | None = None
    """f64: the softmax probability of the prediction."""
    nll_per_sample: Tensor | None = None
    """f64, in nats."""
    _labels_seen: _LabelCheck | None = field(default=None, repr=False)

    def check_labels(self) -> None:
        """Raise :class:`SoupError` if a label was out of range, where that is not known yet: waits for the device.

        On the CPU the call itself has raised. Elsewhere a wrong label counts as class 0 or C - 1 until it is found.
        """
        if self._labels_seen is not None:
            self._labels_seen.raise_if_wrong()


def score_logits(
    logits: Tensor,
    labels: Tensor,
    *,
    k: int | Collection[int] = (1, 5),
    per_sample: bool | Collection[str] = False,
    ignore_index: int | None = None,
    nll: bool = True,
    threads: int | None = None,
    first_sample: int = 0,
) -> LogitScores:
    """Top-k counts and likelihoods of logits ``[N, C]`` or, for M candidates, ``[M, N, C]``; labels ``[N]``.

    Logits are f32, f16, bf16 or f64 with any strides (rows that are not contiguous are copied); labels are integers
    from 0 to C - 1, or ``ignore_index``. ``per_sample``: some of ``"prediction"``, ``"correct"``, ``"margin"``,
    ``"confidence"`` and ``"nll"``, or True for all that ``nll`` allows. Without ``nll`` no exponential is computed
    unless ``"confidence"`` asks for it. ``first_sample`` is the number of the first row in error messages.

    A label is in the top k if fewer than k classes are ahead of it; a class is ahead if its logit is larger, or equal
    and its number lower. A row with a NaN is wrong for every k. Counts are exact, each likelihood is within 1e-6
    (relative) of float64 arithmetic, and all are the same bits for any instruction set and number of threads.

    Raises :class:`SoupError` for k > C and for labels out of range, :class:`IncompatibleError` for shapes and dtypes.
    """
    request = _Request(k, per_sample, ignore_index, nll, threads, first_sample)
    return request.score(None, logits, labels, 1.0, 1.0)


def score_ensemble(
    base: Tensor,
    candidates: Tensor,
    labels: Tensor,
    weight: float = 1.0,
    *,
    scale: float = 1.0,
    k: int | Collection[int] = (1, 5),
    per_sample: bool | Collection[str] = False,
    ignore_index: int | None = None,
    nll: bool = True,
    threads: int | None = None,
    first_sample: int = 0,
) -> LogitScores:
    """The scores of ``scale * (base + weight * candidates[m])`` for each m, without writing these sums to memory.

    ``base`` is ``[N, C]``, ``candidates`` ``[M, N, C]`` or ``[N, C]``; their dtypes may differ. The arithmetic is f32,
    ``scale * fma(weight, candidate, base)`` with both factors rounded to f32, or the same in f64 where ``base`` or
    ``candidates`` is f64. The rest is as for :func:`score_logits`.
    """
    request = _Request(k, per_sample, ignore_index, nll, threads, first_sample)
    return request.score(base, candidates, labels, weight, scale)


class _Request:
    """What is asked of a call, checked."""

    def __init__(
        self,
        k: int | Collection[int],
        per_sample: bool | Collection[str],
        ignore_index: int | None,
        nll: bool,
        threads: int | None,
        first_sample: int,
    ) -> None:
        ks = list(k) if isinstance(k, Collection) else [k]
        for one in ks:
            if isinstance(one, bool) or not isinstance(one, int) or one < 1:
                raise SoupError("k must be a positive integer", found=repr(one))
        self.k = list(dict.fromkeys(ks))
        if isinstance(per_sample, bool):
            wanted: Iterable[str] = (n for n in PER_SAMPLE if nll or n != "nll") if per_sample else ()
        else:
            wanted = [per_sample] if isinstance(per_sample, str) else per_sample
        self.per_sample = frozenset(wanted)
        for name in self.per_sample:
            if name not in PER_SAMPLE:
                raise SoupError("unknown per-sample score", found=repr(name), expected=", ".join(PER_SAMPLE))
        if "nll" in self.per_sample and not nll:
            raise SoupError("per_sample asks for 'nll', and nll is False")
        self.ignore_index = ignore_index
        self.nll = nll
        self.threads = threads
        self.first_sample = first_sample

    def score(self, base: Tensor | None, logits: Tensor, labels: Tensor, weight: float, scale: float) -> LogitScores:
        _check_kinds(base, logits, labels)
        if logits.dim() == 2:
            logits = logits[None]
        _check_shapes(base, logits, labels)
        classes = logits.shape[2]
        for k in self.k:
            if k > classes:
                raise SoupError(f"top-{k} needs at least {k} classes", found=f"{classes} classes")
        wide = torch.float64 in (logits.dtype, None if base is None else base.dtype)
        weight, scale = _factor(weight, "weight", wide), _factor(scale, "scale", wide)
        check = _LabelCheck(
            labels.detach().to(logits.device, torch.int64), classes, self.ignore_index, self.first_sample
        )
        if logits.is_cpu and ops.kernels_for(logits) is None:
            check.raise_if_wrong()
        rows = ops.score_rows(
            base,
            logits,
            check.labels,
            weight=weight,
            scale=scale,
            ignore_label=self.ignore_index,
            k=self.k,
            wanted=self.per_sample | ({"nll"} if self.nll else set()),
            threads=self.threads,
        )
        check.bad_row = rows.get("bad_row")
        kept = {name: rows.get(name) for name in self.per_sample & {"prediction", "margin", "confidence"}}
        return LogitScores(
            top=dict(zip(self.k, rows["top"], strict=True)),
            nll=rows["total"] if self.nll else None,
            samples=check.samples(),
            nan_rows=rows["nan_rows"],
            correct=rows["rank"] == 0 if "correct" in self.per_sample else None,
            nll_per_sample=rows["nll"] if "nll" in self.per_sample else None,
            _labels_seen=check,
            **kept,
        )


class _LabelCheck:
    """Which labels count, and whether one is out of range."""

    def __init__(self, labels: Tensor, classes: int, ignore_index: int | None, first_sample: int) -> None:
        self.labels = labels
        self.classes = classes
        self.ignore_index = ignore_index
        self.first_sample = first_sample
        self.bad_row: Tensor | None = None
        """Of a kernel that has looked: the first row whose label is no class, or -1."""

    def samples(self) -> int | Tensor:
        if self.ignore_index is None:
            return len(self.labels)
        count = (self.labels != self.ignore_index).sum()
        return int(count) if count.is_cpu else count

    def raise_if_wrong(self) -> None:
        row = self._first_wrong() if self.bad_row is None else int(self.bad_row)
        if row < 0:
            return
        ignored = "" if self.ignore_index is None else f", or {self.ignore_index} to be ignored"
        raise SoupError(
            f"the label of sample {self.first_sample + row} is not a class",
            found=int(self.labels[row]),
            expected=f"0 to {self.classes - 1}{ignored}",
        )

    def _first_wrong(self) -> int:
        wrong = (self.labels < 0) | (self.labels >= self.classes)
        if self.ignore_index is not None:
            wrong &= self.labels != self.ignore_index
        return int(wrong.to(torch.int8).argmax()) if bool(wrong.any()) else -1


def _check_kinds(base: Tensor | None, logits: Tensor, labels: Tensor) -> None:
    tensors = {"logits": logits, "labels": labels} | ({} if base is None else {"base": base})
    for name, tensor in tensors.items():
        ops.refuse_special(tensor, name, what="cannot score this kind of tensor")
        if name == "labels":
            if tensor.is_floating_point() or tensor.is_complex():
                raise IncompatibleError("labels must be class numbers", found=tensor.dtype, expected="an integer dtype")
        elif tensor.dtype not in ops.LOGIT_DTYPES:
            raise IncompatibleError(f"dtype of {name}", found=tensor.dtype, expected="f32, f16, bf16 or f64")
    if base is not None and base.device != logits.device:
        raise IncompatibleError("base and candidates are on different devices", found=f"{base.device}, {logits.device}")


def _check_shapes(base: Tensor | None, logits: Tensor, labels: Tensor) -> None:
    """``logits`` are ``[M, N, C]`` already, if they are logits at all."""
    shapes = f"logits {list(logits.shape)} and labels {list(labels.shape)}"
    if logits.dim() != 3 or labels.dim() != 1 or logits.shape[1] != len(labels):
        raise IncompatibleError("shapes do not fit", found=shapes, expected="[N, C] or [M, N, C] and [N]")
    if not logits.shape[0] or not logits.shape[2]:
        raise IncompatibleError("there is nothing to score", found=shapes, expected="one class and candidate or more")
    if base is not None and base.shape != logits.shape[1:]:
        raise IncompatibleError(
            "shapes do not fit",
            found=f"base {list(base.shape)}",
            expected=f"{list(logits.shape[1:])} as the candidates",
        )


def _factor(value: float, name: str, wide: bool) -> float:
    """As a finite number of the type that is computed with."""
    value = float(value)
    if not math.isfinite(value) or (not wide and abs(value) > torch.finfo(torch.float32).max):
        raise SoupError(f"{name} must be finite{'' if wide else ' in f32'}", found=value)
    return value
