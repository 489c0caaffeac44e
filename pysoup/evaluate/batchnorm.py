"""BatchNorm statistics of a soup: re-estimated on data."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ..errors import SoupError
from .batches import iterate, moved
from .forward import Forward, apply
from .heldout import HeldOut
from .scoring import device_of, flags_kept, precision


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, data: Any, forward: Forward | None = None, *, batch_size: int = 256) -> int:
    """Re-estimate the running statistics of every BatchNorm layer in one pass over ``data``; their number is returned.

    The running mean and variance become the plain average over batches, as in ``torch.optim.swa_utils.update_bn``
    (SWA, 1803.05407): averaged weights give other activations than the ones whose statistics were averaged. Use
    training data; labels are not looked at. ``data`` is anything :class:`HeldOut` takes, read once and not kept;
    ``forward(model, batch)`` applies the model to a batch where the default rules do not fit. A :class:`HeldOut` brings
    its own ``forward`` and its ``autocast``.

    Layers without running statistics or not yet initialised (lazy) are left alone; 0 means that nothing was done.
    The momentum and training flags are afterwards as before; if the pass fails, the statistics too.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and not is_lazy(module.running_mean)
    ]
    if not layers:
        return 0
    autocast = None
    if isinstance(data, HeldOut):
        forward = data.forward if forward is None else forward
        autocast = data.autocast
    batches = iter(iterate(data, batch_size))
    first = next(batches, None)
    if first is None:
        raise SoupError("no data to estimate the BatchNorm statistics from")
    momenta = [layer.momentum for layer in layers]
    saved = [[(buffer, buffer.clone()) for buffer in layer.buffers(recurse=False)] for layer in layers]
    with flags_kept(model):
        try:
            with precision(autocast, device_of(model)):
                _estimate(model, layers, chain([first], batches), forward)
        except BaseException:
            for buffer, value in chain.from_iterable(saved):
                buffer.copy_(value)
            raise
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return len(layers)


def _estimate(model: nn.Module, layers: list[_BatchNorm], batches: Any, forward: Forward | None) -> None:
    model.train()
    for layer in layers:
        layer.train()  # a model whose train() freezes BatchNorm would leave the statistics empty
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average instead of an exponential one
    device = device_of(model)
    for batch in batches:
        if forward is None:
            apply(model, moved(batch, device))
        else:
            forward(model, moved(batch, device))
