"""Gradients for the running statistics of BatchNorm: they are mixed like weights, and torch has none for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class DifferentiableStatistics(TorchFunctionMode):
    """While it is entered, ``F.batch_norm`` in evaluation mode takes statistics that require gradients.

    The output has the bits that it had; only the gradient is extended. Of ``F.instance_norm`` with running statistics
    these count as constants.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.batch_norm:
            return _batch_norm(*args, **given)
        if func is F.instance_norm:
            names = ("input", "running_mean", "running_var")
            given.update(zip(names, args, strict=False))
            given.update({n: given[n].detach() for n in names[1:] if given.get(n) is not None})
            rest = dict(zip(("weight", "bias", "use_input_stats", "momentum", "eps"), args[3:], strict=False))
            return func(**given, **rest)
        return func(*args, **given)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, var = running_mean.detach(), running_var.detach()
    output = F.batch_norm(input, mean, var, weight, bias, training, momentum, eps)
    if not (torch.is_grad_enabled() and (running_mean.requires_grad or running_var.requires_grad)):
        return output
    result: Tensor = _WithStatistics.apply(output, running_mean, running_var, input, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _WithStatistics(torch.autograd.Function):
    """``output = (input - mean) / sqrt(var + eps) * weight + bias``, whose own graph has all but mean and var."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, mean: Tensor, var: Tensor, input: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(mean, var, input, weight)
        ctx.eps = eps
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mean, var, input, weight = ctx.saved_tensors
        wide = torch.promote_types(var.dtype, torch.float32)
        shape = (1, -1, *([1] * (input.dim() - 2)))
        over = [d for d in range(input.dim()) if d != 1]
        scale = (var.to(wide) + ctx.eps).rsqrt()
        factor = scale if weight is None else scale * weight.to(wide)
        wide_gradient = gradient.to(wide)
        for_mean = -wide_gradient.sum(over) * factor
        centred = input.to(wide) - mean.to(wide).view(shape)
        for_var = -0.5 * (wide_gradient * centred).sum(over) * factor * scale * scale
        return gradient, for_mean.to(mean.dtype), for_var.to(var.dtype), None, None, None
