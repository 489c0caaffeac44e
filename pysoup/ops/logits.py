"""Scores of rows of logits: one native call, or plain torch where there are no kernels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .device import Accelerator, kernels_for
from .tensors import DTYPES, addresses

# Native code does less than this on the calling thread alone: how many there might be need not be found out.
_INLINE_BYTES = 1 << 20

LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes that :func:`score_rows` takes."""


def score_rows(
    base: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    *,
    weight: float,
    scale: float,
    ignore_label: int | None,
    k: Sequence[int],
    wanted: Collection[str],
    threads: int | None,
) -> dict[str, Tensor]:
    """The scores of logits ``[M, N, C]``, or of ``scale * (base + weight * logits)``; all on one device.

    Caller must have checked dtypes, shapes and labels (int64 ``[N]``). ``wanted``: some of ``"prediction"``,
    ``"margin"``, ``"confidence"`` and ``"nll"``. Returns these and ``"rank"``, at most the largest k (all ``[M, N]``),
    ``"top"`` ``[len(k), M]``, ``"nan_rows"`` and ``"total"``, the sum of ``"nll"`` where that is wanted (``[M]``);
    ``csrc/kernels.h`` says what they mean. A CUDA device adds ``"bad_row"``: the first row (int64, one number) with a
    label that is no class, which counts as the nearest one, or -1. Devices without kernels take the same steps in
    plain torch. None is waited for.
    """
    accelerator = kernels_for(logits)
    if accelerator is None and not logits.is_cpu:
        from ..reference import score_rows as reference_rows

        return reference_rows(
            base, logits, labels, weight=weight, scale=scale, ignore_label=ignore_label, k=k, wanted=wanted
        )
    candidates, rows, _ = logits.shape
    logits, labels = _in_rows(logits), labels.contiguous()
    base = base if base is None else _in_rows(base)
    per_row = {"rank": torch.int64, "prediction": torch.int64}
    per_row |= dict.fromkeys(("margin", "confidence", "nll"), torch.float64)
    new = partial(torch.empty, device=logits.device)
    # Likelihoods of no rows have no address, by which the kernels know that their sum is wanted.
    sums = new if rows else partial(torch.zeros, device=logits.device)
    result = {n: new(candidates, rows, dtype=d) for n, d in per_row.items() if n == "rank" or n in wanted}
    totals = {
        "top": new(len(k), candidates, dtype=torch.int64),
        "nan_rows": new(candidates, dtype=torch.int64),
        "total": sums(candidates, dtype=torch.float64),
    }
    arguments: dict[str, Any] = {
        "logits": logits.data_ptr(),
        "dtype": DTYPES[logits.dtype].native,
        "shape": logits.shape,
        "strides": logits.stride()[:2],
        "base": 0 if base is None else base.data_ptr(),
        "base_dtype": 0 if base is None else DTYPES[base.dtype].native,
        "base_stride": 0 if base is None else base.stride(0),
        "weight": weight,
        "scale": scale,
        "labels": labels.data_ptr(),
        "ignore": ignore_label,
        "k": k,
        "outputs": [result[name].data_ptr() if name in result else 0 for name in per_row],
        "totals": addresses(list(totals.values())),
    }
    if accelerator is not None:
        result["bad_row"] = _launch(accelerator, arguments)
    else:
        if threads is None and logits.numel() * logits.element_size() < _INLINE_BYTES:
            threads = 1
        _native.score_logits(threads=_native.threads_or_default(threads), **arguments)
    if "nll" not in wanted:
        del totals["total"]  # nothing was written there
    return result | totals


def _launch(accelerator: Accelerator, arguments: dict[str, Any]) -> Tensor:
    """The same on the current stream of a device; returns where it will say which row has a wrong label."""
    bad_row = accelerator.empty(1, torch.int64)
    needed = _native.score_scratch(arguments["shape"])
    scratch = accelerator.empty(needed, torch.uint8)
    _native.launch_scores(
        device=accelerator.index,
        stream=accelerator.stream(),
        bad_row=bad_row.data_ptr(),
        scratch=scratch.data_ptr() if needed else 0,
        **arguments,
    )
    return bad_row


def _in_rows(logits: Tensor) -> Tensor:
    """The tensor itself where the classes of a row follow one another in memory, else a copy for which it holds."""
    logits = logits.detach().resolve_neg()
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()
