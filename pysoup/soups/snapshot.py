"""The weights of a model as they were, for a soup that outlives its model's next change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..ops import write


class Snapshot:
    """The tensors of a model as they are now, on the CPU; ties stay."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = _copied(model.state_dict())

    def result(self) -> dict[str, Any]:
        """New tensors."""
        return _copied(self._tensors)

    def restore(self, model: nn.Module) -> None:
        """Write them into the model that they are of."""
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, Tensor):
                write(tensor, self._tensors[name])


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[Any, Tensor] = {}
    result: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            result[name] = value
            continue
        place = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype) if value.numel() else name
        if place not in made:
            made[place] = value.detach().to("cpu", copy=True)
        result[name] = made[place]
    return result
