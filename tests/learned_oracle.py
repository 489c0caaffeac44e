"""A learned soup in plain torch: all checkpoints stacked in float64, autograd through the mix, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from soup_models import TiedLanguageModel, images, mlp, pool, tokens
from torch import Tensor, nn

StateDict = dict[str, Tensor]
COUNT = 5


def made(
    build: Any = mlp, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, list[dict[str, Tensor]], Tensor, Tensor]:
    """A model, checkpoints around it of which the later ones are the noisier, and data that it labels itself."""
    torch.manual_seed(1)
    model = build().to(dtype).eval()
    x = (images() if build is not TiedLanguageModel else tokens())[0]
    x = x.to(dtype) if x.is_floating_point() else x
    with torch.no_grad():
        y = model(x).argmax(1)
    states = [pool(model, 1, spread=0.1 + 0.2 * number, seed=number)[0] for number in range(COUNT)]
    return model, states, x, y


class PlainMix:
    """``functional_call`` of a model with the weighted sum of stacked checkpoints, for gradients by autograd alone."""

    def __init__(self, model: nn.Module, states: Sequence[StateDict], granules: Sequence[Sequence[str]]) -> None:
        self.model = model
        self.granule = {name: g for g, names in enumerate(granules) for name in names}
        self.stacked = {name: torch.stack([state[name] for state in states]) for name in self.granule}
        self.states = states

    def mixed(self, weights: Tensor) -> StateDict:
        mixed = {}
        for name, stack in self.stacked.items():
            row = weights[self.granule[name]].to(stack.dtype)
            mixed[name] = torch.tensordot(row.to(stack.dtype), stack, dims=1)
        return mixed

    def __call__(self, weights: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        output = torch.func.functional_call(self.model, self.mixed(weights), inputs, named)
        return output if isinstance(output, Tensor) else output.logits


def learn(
    mix: PlainMix,
    batches: Callable[[int], Sequence[tuple[Tensor, Tensor]]],
    *,
    granules: int,
    count: int,
    softmax: bool,
    lr: float,
    epochs: int,
    temperature: bool = True,
    block_of: Callable[[int], Sequence[int]] | None = None,
) -> tuple[Tensor, float, list[float]]:
    """Weights, beta and the loss of each step. ``block_of`` says of a step which ingredients' weights it moves."""
    start = torch.ones(granules, dtype=torch.float64)
    columns = [(start if softmax else start / count).clone().requires_grad_(True) for _ in range(count)]
    beta = torch.ones([], dtype=torch.float64, requires_grad=temperature)
    optimizer = torch.optim.AdamW([*columns, *([beta] if temperature else [])], lr=lr, weight_decay=0.0)
    losses = []
    mix.model.eval()

    def weights(moved: Sequence[int]) -> Tensor:
        raw = torch.stack([column if k in moved else column.detach() for k, column in enumerate(columns)], 1)
        return torch.softmax(raw, 1) if softmax else raw + (1 - raw.sum(1, keepdim=True)) / count

    for epoch in range(epochs):
        for x, y in batches(epoch):
            optimizer.zero_grad(set_to_none=True)
            moved = range(count) if block_of is None else block_of(len(losses))
            loss = F.cross_entropy(mix(weights(moved), x) * beta, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return weights([]).detach(), beta.item(), losses


def shuffled(x: Tensor, y: Tensor, size: int, seed: int) -> Callable[[int], list[tuple[Tensor, Tensor]]]:
    """Batches of ``size`` samples, drawn anew for each epoch from one generator."""

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epoch + 1):
            order = torch.randperm(len(x), generator=generator)
        return [(x[part], y[part]) for part in order.split(size)]

    return batches
