"""The output of a model as a function of the weights that its ingredients are mixed with, and the gradient for these.

Forward: one fused weighted sum into the model's own tensors, then the model. Backward: the model's, then one fused pass
of inner products of its gradients with the ingredients. There is no second copy of the model, none of an ingredient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import SoupError
from ...evaluate import Forward
from ...mixture import Mixture
from .batchnorm import DifferentiableStatistics


class MixedModel:
    """``model``, mixed anew for each batch. To be called within :meth:`differentiable`.

    ``timing`` has the seconds of reading and mixing, and of reading for the inner products, so far; ``nonfinite`` the
    tensors with NaN or infinities of the last mix.
    """

    def __init__(self, model: nn.Module, mixture: Mixture) -> None:
        self.model = model
        self.mixture = mixture
        self.timing = {"mix": 0.0, "dots": 0.0}
        self.nonfinite: list[str] = []
        self._labels: Tensor | None = None
        self._has_buffers = any(tensor.is_floating_point() for tensor in model.buffers())
        self._leaves = _live_tensors(model, mixture)

    def __call__(self, weights: Tensor, forward: Forward, batch: Any) -> tuple[Tensor, Tensor]:
        """``forward(model, batch)`` with the mix of ``weights`` (f64 ``[G, K]``), of which logits are a function.

        The model then holds the mix. Its rounding to the model's types counts as none for the gradient.
        """
        logits: Tensor = _Mixed.apply(weights, self, lambda: forward(self.model, batch))  # type: ignore[no-untyped-call]
        assert self._labels is not None
        return logits, self._labels

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Gradients reach all tensors that are mixed, frozen ones and statistics of BatchNorm too; then flags are as
        they were."""
        tensors = [tensor for group in self._leaves for tensor in group]
        flags = [tensor.requires_grad for tensor in tensors]
        with torch.inference_mode(False), torch.enable_grad():
            try:
                for tensor in tensors:
                    tensor.requires_grad_(True)
                yield
            finally:
                for tensor, flag in zip(tensors, flags, strict=True):
                    tensor.requires_grad_(flag)

    def write(self, weights: Tensor) -> None:
        """The model gets the mix of ``weights``."""
        started = time.perf_counter()
        self.nonfinite = self.mixture.write(weights)
        self.timing["mix"] += time.perf_counter() - started

    def apply(self, forward: Callable[[], Any]) -> Tensor:
        """The logits of the model as it is, with their graph."""
        with DifferentiableStatistics() if self._has_buffers else nullcontext():
            output = forward()
        is_pair = isinstance(output, (tuple, list)) and len(output) == 2
        if not is_pair or not all(isinstance(part, Tensor) for part in output):
            raise SoupError("forward must return (logits, labels), both tensors", found=type(output).__name__)
        logits, self._labels = output[0], output[1].detach()
        if not logits.requires_grad:
            raise SoupError("no gradient of the logits reaches the weights: forward must not detach or use no_grad")
        assert isinstance(logits, Tensor)
        return logits

    def gradient(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """Of the weights: f64 ``[G, K]``, from that of the logits."""
        tensors = [tensor for group in self._leaves for tensor in group]
        found = iter(torch.autograd.grad(logits, tensors, gradient, allow_unused=True))
        started = time.perf_counter()
        totals = [_total([next(found) for _ in group]) for group in self._leaves]
        dots = self.mixture.dots(totals)
        self.timing["dots"] += time.perf_counter() - started
        return dots


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, mixed: MixedModel, forward: Callable[[], Any]) -> Tensor:
        mixed.write(weights.detach())
        with torch.enable_grad():
            logits = mixed.apply(forward)
        # Not among the saved tensors: it is no input or output, but what the model's own graph hangs on.
        ctx.mixed, ctx.logits = mixed, logits
        return logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, ctx.logits = ctx.logits, None
        if logits is None:
            raise SoupError("the graph of the model was used up by another backward pass")
        return ctx.mixed.gradient(logits, gradient), None, None


def _total(gradients: list[Tensor | None]) -> Tensor | None:
    """Of several tensors in one memory: the sum of what reached each."""
    given = [gradient for gradient in gradients if gradient is not None]
    return sum(given[1:], given[0]) if given else None


def _live_tensors(model: nn.Module, mixture: Mixture) -> list[list[Tensor]]:
    """For each tensor of the mixture, the parameters and buffers in its memory: gradients are asked for by these."""
    live: dict[Any, list[Tensor]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        live.setdefault(_place(tensor), []).append(tensor)
    groups = []
    for name, tensor in zip(mixture.names, mixture.mixed(), strict=True):
        found = live.get(_place(tensor), []) if tensor.numel() else []
        if tensor.numel() and not found:
            what = "state_dict() of the model gives part of a parameter, for which there is no gradient"
            raise SoupError(what, tensor=name)
        groups.append(found)
    return groups


def _place(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
