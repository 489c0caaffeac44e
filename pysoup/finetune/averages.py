"""Exponential moving averages of the weights (EMA), as the paper saves them beside its ViT-G models (section 3.3.2)."""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor, nn

from ..errors import SoupError


class WeightAverage:
    """The EMA of a model in training: ``update()`` after each step, ``state_dict()`` for the average so far.

    After t steps with weights w_1 ... w_t it is ``sum_s d**(t-s) w_s / sum_s d**(t-s)`` with d the ``decay``: bias is
    corrected as in Adam, so the start has no part in it, and with a high decay (0.9999999) it is nearly the plain mean
    of all iterates instead of nearly the start. Floating-point buffers are averaged like weights; integers are those
    of the last step. Kept in at least f32, on the model's device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise SoupError("the decay of a weight average is between 0 and 1", found=decay)
        self.decay = decay
        self.steps = 0
        self._live = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        # Tied tensors once: they must stay tied in the average.
        self._owner: dict[str, str] = {}
        owners: dict[object, str] = {}
        for name, tensor in self._live.items():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            self._owner[name] = owners.setdefault(place, name) if tensor.numel() else name
        floats = {name: self._live[name] for name in owners.values() if self._live[name].is_floating_point()}
        self._average = {
            name: torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
            for name, tensor in floats.items()
        }

        def key(name: str) -> tuple[str, str]:
            return str(floats[name].device), str(floats[name].dtype)

        self._groups = [list(names) for _, names in groupby(sorted(floats, key=key), key=key)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights."""
        self.steps += 1
        # 1 - d**t by expm1: for d near 1 the difference has no digits left.
        share = (1.0 - self.decay) / -math.expm1(self.steps * math.log(self.decay))
        for names in self._groups:
            averages = [self._average[name] for name in names]
            live = [self._live[name].to(average.dtype) for name, average in zip(names, averages, strict=True)]
            torch._foreach_lerp_(averages, live, min(share, 1.0))

    def state_dict(self) -> dict[str, Tensor]:
        """The average in the model's dtypes, in new tensors, tied where the model's are; SoupError before any step."""
        if not self.steps:
            raise SoupError("no step to average yet")
        made = {name: average.to(self._live[name].dtype, copy=True) for name, average in self._average.items()}
        result = {}
        for name, tensor in self._live.items():
            owner = self._owner[name]
            if owner not in made:
                made[owner] = tensor.clone()
            result[name] = made[owner]
        return result
