"""Which ingredients a step moves, and the mixture that it reads: all of them, or a block beside the sum of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint import Checkpoint
from ...mixture import Mixture
from ..candidates import Candidate
from .gradient import MixedModel
from .weights import Coefficients

REST, MEAN = "the rest of the ingredients", "the mean of the ingredients"


class Blocks:
    """The mixtures of all steps; a step's is made when it is asked for, and kept until the next block's turn.

    With ``size`` (fewer than all) the ingredients are cut into blocks of so many, in their order. A block has its
    share of an epoch's steps; then it is the next one's turn. Of the others, the sum is kept beside the model, in f32
    (f64 for f64 models), and for the hyperplane the mean of all, so that a step reads no more files than the block's.
    This is the same function of the block's weights as with all ingredients read, for every granularity, up to the
    rounding of these sums: meanwhile the weights of the others do not change against one another.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Sequence[Candidate],
        granules: Sequence[Sequence[str]],
        coefficients: Coefficients,
        *,
        size: int | None,
        hyperplane: bool,
        **options: Any,
    ) -> None:
        self.timing = {"mix": 0.0, "dots": 0.0}
        self._model = model
        self._candidates = list(candidates)
        self._granules = granules
        self._coefficients = coefficients
        self._hyperplane = hyperplane
        self._options = options
        count = len(candidates)
        self.blocks: list[list[int]] = []
        """Positions of the ingredients of each; empty if all are moved in every step."""
        if size is not None and size < count:
            self.blocks = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        self._hold = 1
        self._number: int | None = None
        self._mean: dict[str, Tensor] | None = None
        self._mixed: MixedModel | None = None
        # Checks every header, whether or not all are read in a step. What is kept in memory is the block alone.
        self.whole = self._mixture(model, self._sources(range(count)), **({"place": "files"} if self.blocks else {}))

    def begin(self, steps_per_epoch: int) -> None:
        """Each block gets its share of an epoch's steps, one at least."""
        self._hold = -(-steps_per_epoch // max(1, len(self.blocks)))

    def of_step(self, step: int) -> tuple[MixedModel, Callable[[], Tensor]]:
        """What step ``step`` mixes, and the weights for that, differentiable."""
        if not self.blocks:
            if self._mixed is None:
                self._mixed = MixedModel(self._model, self.whole)
            return self._mixed, self._coefficients.weights
        number = step // self._hold % len(self.blocks)
        members = self.blocks[number]
        if number != self._number or self._mixed is None:
            self._let_go()
            self._mixed = MixedModel(self._model, self._block(members))
            self._number = number
        return self._mixed, lambda: self._coefficients.of_block(members)

    def close(self) -> None:
        """Closes all files."""
        self._let_go()
        self.whole.close()

    def _let_go(self) -> None:
        if self._mixed is not None:
            for name, seconds in self._mixed.timing.items():
                self.timing[name] += seconds
            self._mixed.mixture.close()
        self._mixed, self._number = None, None

    def _block(self, members: Sequence[int]) -> Mixture:
        sources = [(REST, self._sum(self._coefficients.of_rest(members)))]
        if self._hyperplane:
            if self._mean is None:
                count = self._coefficients.count
                self._mean = self._sum(torch.full([len(self._granules), count], 1.0 / count, dtype=torch.float64))
            sources.append((MEAN, self._mean))
        return self._mixture(self._model, [*sources, *self._sources(members)])

    def _sum(self, weights: Tensor) -> dict[str, Tensor]:
        """The weighted sum of all ingredients, in wider types than the model's."""
        wide = _Tensors(self._candidates[0].names.only(self._model.state_dict()))
        with self._mixture(wide, self._sources(range(len(self._candidates))), place="files") as mixture:
            mixture.write(weights)
        return dict(wide.state_dict())

    def _sources(self, indices: Sequence[int]) -> list[tuple[str, Checkpoint | Any]]:
        return [(self._candidates[k].name, self._candidates[k].source) for k in indices]

    def _mixture(self, model: nn.Module, sources: Any, **options: Any) -> Mixture:
        return Mixture(model, sources, self._granules, **{**self._options, **options})


class _Tensors(nn.Module):
    """New tensors with the names, shapes, ties and devices of ``state``, floating ones at least f32."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._state: dict[str, Tensor] = {}
        made: dict[Any, Tensor] = {}
        for name, tensor in state.items():
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else name
            if place not in made:
                is_inexact = tensor.is_floating_point() or tensor.is_complex()
                dtype = torch.promote_types(tensor.dtype, torch.float32) if is_inexact else tensor.dtype
                made[place] = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
                # By number: a name in a module has no dots.
                self.register_buffer(f"tensor_{len(made)}", made[place])
            self._state[name] = made[place]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(self._state)
