"""A second last layer, applied beside the model's own: soups of calibrated ingredients cost no pass of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoint import Checkpoint
from ..errors import SoupError
from ..soups.candidates import Candidate


class SecondLayer:
    """The average of the candidates' last layers, each scaled before, on what the model's own one gets.

    ``name`` is that of a linear submodule whose output is the logits: multiplied weights and bias are multiplied
    logits. A context manager: within it the passes of ``model`` are watched; :meth:`take` gives the logits.
    Raises :class:`SoupError` where there is no such layer.
    """

    def __init__(self, model: nn.Module, name: str, candidates: Sequence[Candidate]) -> None:
        self._name = name
        self._candidates = candidates
        self._layer = _linear(model, name)
        self._values: dict[str, Tensor] = {}
        self._own: list[Tensor] = []
        self._second: list[Tensor] = []
        self._hook: Any = None

    def set(self, members: Sequence[int], scales: Sequence[float]) -> None:
        """The average of these members, each multiplied with its scale; summed in f64."""
        for key, own in self._layer.named_parameters():
            total = torch.zeros(own.shape, dtype=torch.float64)
            for index, scale in zip(members, scales, strict=True):
                total += scale * _tensor(self._candidates[index], f"{self._name}.{key}").double()
            self._values[key] = (total / len(members)).to(own.device, own.dtype)

    def take(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The second logits of the passes since, cut as the model's ``own`` are, which the layer has to have given."""
        first, second = torch.cat(self._own), torch.cat(self._second)
        self._own, self._second = [], []
        found, start = {}, 0
        for name, logits in own.items():
            rows = slice(start, start + len(logits))
            start = rows.stop
            if first[rows].shape != logits.shape or not _same(first[rows], logits):
                what = f"the output of {self._name!r} is not the model's logits, so scaling it is not calibrating them"
                raise SoupError(what, expected="the name of the last layer")
            found[name] = second[rows].to(logits.dtype)
        return found

    def __enter__(self) -> SecondLayer:
        self._own, self._second = [], []
        self._hook = self._layer.register_forward_hook(self._watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _watch(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        second = functional.linear(args[0], self._values["weight"], self._values.get("bias"))
        self._own.append(output.detach().to("cpu", copy=True))
        self._second.append(second.detach().cpu())


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise SoupError("no such layer in the model", found=repr(name), expected="the name of its last layer") from None
    if not isinstance(layer, nn.Linear):
        what = f"ingredients are calibrated by scaling the last layer, and {name!r} is not linear"
        raise SoupError(what, found=type(layer).__name__, expected="Linear")
    return layer


def _tensor(candidate: Candidate, name: str) -> Tensor:
    source = candidate.source
    if isinstance(source, Checkpoint):
        return source.tensor(name)
    return torch.as_tensor(source[name])


def _same(one: Tensor, other: Tensor) -> bool:
    """NaN too."""
    return torch.allclose(one.to(other.dtype), other, rtol=0.0, atol=0.0, equal_nan=True)
