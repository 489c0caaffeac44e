"""The score of one model on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SoupError
from .heldout import HeldOut, as_heldout
from .metrics import MetricLike, as_metric


def evaluate(model: nn.Module, heldout: HeldOut | Any, metric: MetricLike = "accuracy") -> float:
    """Score ``model`` on ``heldout`` (a :class:`HeldOut` or any data it takes) in evaluation mode, without gradients.

    ``"accuracy"`` and ``"top5"`` are shares in [0, 1], ``"nll"`` is in nats per sample. The training flag of every
    module is afterwards as before. Raises :class:`SoupError` for an empty set, shapes or labels that do not fit;
    what the model, ``forward`` or the metric raise passes through.
    """
    heldout = as_heldout(heldout)
    accumulator = as_metric(metric).accumulator()
    # no_grad, not inference_mode: a cache or buffer that a model makes in its forward would become an inference
    # tensor, and the next candidate could not be written into it.
    with evaluating(model), torch.no_grad():
        for batch in heldout.batches(device_of(model)):
            logits, labels = _pair(heldout.forward(model, batch))
            accumulator.update(logits, labels)
        return accumulator.value()


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
