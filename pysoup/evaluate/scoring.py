"""The score of one model on held-out data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoupError
from .heldout import HeldOut, as_heldout
from .metrics import MetricLike, as_metric

ASKS_OF_A_DEVICE = 64
"""How often a pass elsewhere than on the CPU asks for the bound: each time the host waits for the device."""


@dataclass(frozen=True)
class Evaluation:
    """One pass over held-out data, or the part of it that was needed."""

    score: float | None
    """Of the whole set; ``None``: stopped before its end."""
    bound: float | None
    """The best score that was still possible where the pass stopped; ``None`` of a whole pass."""
    samples: int
    """Samples that counted until the end or the stop."""
    seconds: float
    """Wall-clock time of the pass; reading the data for the first time is not in it."""


def evaluate(model: nn.Module, heldout: HeldOut | Any, metric: MetricLike = "accuracy") -> float:
    """Score ``model`` on ``heldout`` (a :class:`HeldOut` or any data it takes) in evaluation mode, without gradients.

    ``"accuracy"`` and ``"top5"`` are shares in [0, 1], ``"nll"`` is in nats per sample; see :data:`MetricLike`. The
    training flag of every module is afterwards as before. Raises :class:`SoupError` for an empty set, shapes or labels
    that do not fit; what the model, ``forward`` or the metric raise passes through.
    """
    score = run_evaluation(model, heldout, metric).score
    assert score is not None  # nothing could stop it
    return score


def run_evaluation(
    model: nn.Module,
    heldout: HeldOut | Any,
    metric: MetricLike = "accuracy",
    *,
    stop: Callable[[float], bool] | None = None,
    samples: int | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Evaluation:
    """:func:`evaluate`, ended as soon as ``stop`` says so of the best score that is still possible.

    ``stop(bound)`` is asked after each batch but the last on the CPU and at most 64 times a pass on another device;
    never of a metric without a bound (``metric.has_bound``). It needs ``samples``, the number that counts in a whole
    pass (``Evaluation.samples`` of one over the same data) or more. ``watch(logits, labels)`` sees each batch's output,
    on the model's device. ``heldout.autocast`` is the precision of the forward passes.
    """
    heldout, metric = as_heldout(heldout), as_metric(metric)
    if stop is not None and samples is None:
        raise SoupError("stop needs samples, the number that counts in a whole pass")
    accumulator = metric.accumulator()
    last = len(heldout)
    device = device_of(model)
    started = time.perf_counter()
    # no_grad, not inference_mode: a cache or buffer that a model makes in its forward would become an inference
    # tensor, and the next candidate could not be written into it.
    with evaluating(model), torch.no_grad(), precision(heldout.autocast, device) as full_precision:
        for number, batch in enumerate(heldout.batches(device), 1):
            logits, labels = _pair(heldout.forward(model, batch))
            with full_precision():
                accumulator.update(logits, labels)
                if watch is not None:
                    watch(logits, labels)
            if stop is None or samples is None or not metric.has_bound or number == last:
                continue
            if logits.device.type == "cpu" or number % math.ceil(last / ASKS_OF_A_DEVICE) == 0:
                bound = accumulator.bound(samples)
                if bound is not None and stop(bound):
                    return Evaluation(None, bound, accumulator.samples, time.perf_counter() - started)
        score = accumulator.value()
    return Evaluation(score, None, accumulator.samples, time.perf_counter() - started)


@contextmanager
def precision(
    dtype: torch.dtype | None, device: torch.device | None
) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """Mixed precision for a while, if there is a ``dtype``; yields what switches it off again for the metric.

    Autocast keeps low-precision copies of weights until the outermost context ends, also one of the caller. Weights
    are overwritten in place between two passes, so no copy may outlive its pass.
    """
    kind = "cpu" if device is None else device.type
    torch.clear_autocast_cache()
    try:
        if dtype is None:
            yield nullcontext
        else:
            with torch.autocast(kind, dtype=dtype):
                yield partial(torch.autocast, kind, enabled=False)
    finally:
        torch.clear_autocast_cache()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model.eval()`` for a while; then every module has its own training flag back."""
    with flags_kept(model):
        model.eval()
        yield


@contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Restore the training flag of every module, also after an exception."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # Not through train(): it would set the children too, and models override it.
        for module, training in flags:
            module.training = training


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the first parameter or buffer; ``None`` if the model has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return None if first is None else first.device


def _pair(output: Any) -> tuple[Tensor, Tensor]:
    if isinstance(output, (tuple, list)) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
        return output[0], output[1]
    kinds = ", ".join(type(part).__name__ for part in output) if isinstance(output, (tuple, list)) else ""
    found = f"{type(output).__name__}({kinds})" if kinds else type(output).__name__
    raise SoupError("forward must return (logits, labels), both tensors", found=found)
