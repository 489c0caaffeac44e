"""The mixing weights that are learned, their temperature, and the optimiser's state: all in float64 on the CPU.

``softmax``: the weights of a granule are ``softmax(raw)``, positive with the sum 1; ``raw`` begins with ones (paper,
appendix I). ``hyperplane``: they are ``raw + (1 - sum(raw)) / K``, that is, any with the sum 1, negative ones too: the
mix is ``mean + sum_k raw_k (theta_k - mean)``, and the gradient is projected on the hyperplane by that (Li et al. 2024,
arXiv 2407.03641, MEHL). Both begin with the uniform soup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# What AdamW keeps of each number, beside the count of its steps.
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Coefficients:
    """Weights of G granules for K ingredients, and beta, which scales the logits."""

    def __init__(
        self, granules: int, count: int, parametrization: str, *, temperature: bool, lr: float, weight_decay: float
    ) -> None:
        self.count = count
        self._is_softmax = parametrization == "softmax"
        start = 1.0 if self._is_softmax else 1.0 / count
        # One for each ingredient: of those whose weights are not moved, the optimiser counts no step.
        self.raw = [torch.full([granules], start, dtype=torch.float64, requires_grad=True) for _ in range(count)]
        self.beta = torch.ones([], dtype=torch.float64, requires_grad=temperature)
        groups = [
            {"params": self.raw, "weight_decay": weight_decay},
            {"params": [self.beta] if temperature else [], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, foreach=False)

    def weights(self) -> Tensor:
        """``[G, K]``, differentiable."""
        return self._weights(torch.stack(self.raw, 1))

    def of_block(self, members: Sequence[int]) -> Tensor:
        """The same mix as weights for what :meth:`of_rest` makes of the other ingredients, then for the ``members``.

        With softmax ``[G, 1 + b]``: the rest is an average, whose share is what the members leave. On the hyperplane
        ``[G, 2 + b]``: the rest is a sum, the second is the mean of all, whose share makes the sum of weights 1.
        """
        others = [k for k in range(self.count) if k not in members]
        mine = torch.stack([self.raw[k] for k in members], 1)
        theirs = torch.stack([self.raw[k].detach() for k in others], 1)
        if self._is_softmax:
            return torch.softmax(torch.cat([theirs.logsumexp(1, keepdim=True), mine], 1), 1)
        left = 1.0 - theirs.sum(1, keepdim=True) - mine.sum(1, keepdim=True)
        return torch.cat([torch.ones_like(left), left, mine], 1)

    def of_rest(self, members: Sequence[int]) -> Tensor:
        """``[G, K]``, 0 for the ``members``: the other ingredients, as :meth:`of_block` takes them together."""
        others = [k for k in range(self.count) if k not in members]
        weights = torch.zeros(len(self.raw[0]), self.count, dtype=torch.float64)
        theirs = torch.stack([self.raw[k].detach() for k in others], 1)
        weights[:, others] = torch.softmax(theirs, 1) if self._is_softmax else theirs
        return weights

    def step(self, loss: Tensor) -> None:
        """One step of AdamW on what ``loss`` depends on."""
        moved = [*self.raw, *([self.beta] if self.beta.requires_grad else [])]
        for tensor, gradient in zip(moved, torch.autograd.grad(loss, moved, allow_unused=True), strict=True):
            tensor.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def values(self) -> Tensor:
        """Raw weights and beta, flat: what :meth:`set_values` takes back. New."""
        return torch.cat([*(raw.detach() for raw in self.raw), self.beta.detach().reshape(1)])

    def set_values(self, values: Tensor) -> None:
        with torch.no_grad():
            for tensor, part in zip([*self.raw, self.beta], self._cut(values), strict=True):
                tensor.copy_(part.view_as(tensor))

    @property
    def state(self) -> Tensor:
        """``[4, n]``: the values, AdamW's two moments of each, and its count of steps: all that the next step needs."""
        rows = [self.values]
        tensors = [*self.raw, self.beta]
        known: list[dict[str, Any]] = [self._optimizer.state.get(tensor, {}) for tensor in tensors]
        for name in _MOMENTS:
            parts = [s[name].reshape(-1) if s else t.new_zeros(t.numel()) for s, t in zip(known, tensors, strict=True)]
            rows.append(torch.cat(parts))
        steps = [t.new_full([t.numel()], float(s["step"]) if s else 0.0) for s, t in zip(known, tensors, strict=True)]
        return torch.stack([*rows, torch.cat(steps)]).detach()

    def set_state(self, state: Tensor) -> None:
        values, *moments, steps = state
        self.set_values(values)
        cut = [self._cut(moment) for moment in moments]
        for i, (tensor, count) in enumerate(zip([*self.raw, self.beta], self._cut(steps), strict=True)):
            if count[0] > 0:
                kept = {name: parts[i].clone().view_as(tensor) for name, parts in zip(_MOMENTS, cut, strict=True)}
                # As the optimiser itself counts.
                self._optimizer.state[tensor] = {"step": count[0].to(torch.float32), **kept}

    def _cut(self, flat: Tensor) -> tuple[Tensor, ...]:
        return torch.split(flat, [tensor.numel() for tensor in (*self.raw, self.beta)])

    def _weights(self, raw: Tensor) -> Tensor:
        if self._is_softmax:
            return torch.softmax(raw, 1)
        return raw + (1.0 - raw.sum(1, keepdim=True)) / self.count
