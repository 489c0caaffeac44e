"""The second derivative of a loss along a line of weights, by differentiation: there is no step to choose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SoupError
from ..evaluate import HeldOut, evaluating
from ..evaluate.forward import Forward
from ..origin import described


def line_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The floating parameters and buffers that a model has now, by name, tied ones once: detached, not copied."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def second_derivative_along(model: nn.Module, along: Mapping[str, Tensor], data: HeldOut, beta: float) -> float:
    """d2/dt2 of the mean cross-entropy of ``beta * f(x; theta + t * along)`` at t = 0, theta what ``model`` holds.

    Exact up to the model's own roundings, by two reverse passes through each batch, in t alone; memory holds what a
    training step with a graph of its gradient does. (Nested ``torch.func.jvp`` would need less, but leaves out terms of
    layer norms, measured with torch 2.13.) What is seen is the derivative almost everywhere: nothing of the curvature
    that ReLU and max-pooling have in their kinks, which differences over a step do see. Raises :class:`SoupError` where
    the model cannot be differentiated twice.
    """
    base = line_tensors(model)
    first = next(iter(along.values()))
    applied = _Applied(model, data.forward)
    total, samples = [], 0
    with evaluating(model), torch.enable_grad(), _differentiable():
        for batch in data.batches(first.device):
            t = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)
            moved = {f"model.{name}": tensor + t * along[name] for name, tensor in base.items()}
            try:
                logits, labels = torch.func.functional_call(applied, moved, (batch,))
                loss = functional.cross_entropy(beta * logits.double(), labels.long(), reduction="sum")
                (slope,) = torch.autograd.grad(loss, t, create_graph=True)
                # A loss that is linear in t has a slope that does not know of it.
                (curvature,) = torch.autograd.grad(slope, t) if slope.requires_grad else (torch.zeros(()),)
            except (NotImplementedError, RuntimeError) as error:
                what = f"the model cannot be differentiated twice: {described(error)}"
                raise SoupError(what, expected="the derivative by differences (central)") from error
            total.append(float(curvature))
            samples += len(labels)
    return math.fsum(total) / samples


class _Applied(nn.Module):
    """``functional_call`` gives other weights to a call of a module alone, and ``forward`` may do anything."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self._apply_to = forward

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self._apply_to(self.model, batch)


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention by its formula: the fused kernels cannot be differentiated twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
