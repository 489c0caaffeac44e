"""Tiny models, pools of perturbed checkpoints and data for the recipe tests, and the recipe in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pysoup import Soup

StateDict = dict[str, Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 7))


def conv_batchnorm() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(16, 7)
    )


class TiedLanguageModel(nn.Module):
    """Logits over the vocabulary from the embedding itself; two names, one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 12)
        self.mix = nn.Linear(12, 12)
        self.head = nn.Linear(12, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(ids).mean(1))))


@dataclass
class Output:
    logits: Tensor


class HuggingFaceStyle(nn.Module):
    """Takes keyword arguments, returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        weight = attention_mask.float().unsqueeze(-1)
        return Output(self.head((self.embed(input_ids) * weight).sum(1) / weight.sum(1)))


def pool(model: nn.Module, count: int, *, spread: float, seed: int = 0) -> list[StateDict]:
    """``count`` independent state dictionaries around the model's own; tied entries stay one tensor."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for number in range(count):
        seen: dict[int, Tensor] = {}
        state: StateDict = {}
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() not in seen:
                if tensor.is_floating_point():
                    noise = torch.randn(tensor.shape, generator=generator) * spread
                    fresh = tensor + (noise.abs() if "var" in name else noise).to(tensor.dtype)
                else:
                    fresh = tensor + number
                seen[tensor.data_ptr()] = fresh
            state[name] = seen[tensor.data_ptr()]
        result.append(state)
    return result


def plain_mean(states: list[StateDict]) -> StateDict:
    """The average in order, rounded once, in float64 (16-bit types: in float32); integers: the largest."""
    result: StateDict = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            wide = torch.float64 if first.element_size() > 2 else torch.float32
            total = first.to(wide)
            for state in states[1:]:
                total = total + state[name].to(wide)
            result[name] = (total / len(states)).to(first.dtype)
        else:
            result[name] = torch.stack([state[name] for state in states]).max(0).values
    return result


def same_bits(one: StateDict, other: StateDict) -> bool:
    """Same names, dtypes and values, in any order of names."""
    return one.keys() == other.keys() and all(
        one[name].dtype == tensor.dtype and torch.equal(one[name].cpu(), tensor.cpu()) for name, tensor in other.items()
    )


class Interrupted:
    """A forward that is interrupted once it was called ``left`` times; ``seen``: of each call, the first weights and
    the inputs."""

    def __init__(self, left: int = 0) -> None:
        self.left = left
        self.seen: list[tuple[bytes, bytes]] = []

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        first = next(iter(model.state_dict().values()))
        self.seen.append((first.numpy().tobytes(), batch[0].numpy().tobytes()))
        return model(batch[0]), batch[1]

    def started_again(self, make: Callable[[], Soup], left: int) -> tuple[Soup, int]:
        """What ``make`` makes in the end, started again after every ``left`` calls, and the number of starts."""
        starts = 0
        while True:
            starts += 1
            self.left = left
            try:
                return make(), starts
            except KeyboardInterrupt:
                continue


def never(model: nn.Module, batch: object) -> tuple[Tensor, Tensor]:
    """A forward for what must be refused before anything is scored."""
    raise AssertionError("scored")


def decisions(soup: Soup) -> list[tuple[object, ...]]:
    """The trace, without what no two runs share."""
    return [(step.index, step.candidate_score, step.bound, step.samples, step.accepted) for step in soup.trace]


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(120, 6, generator=torch.Generator().manual_seed(5)), torch.arange(120) % 7


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(0, 7, (120, 4), generator=generator), torch.randint(0, 7, (120,), generator=generator)


def encoded() -> dict[str, Tensor]:
    ids, labels = tokens()
    mask = torch.ones_like(ids)
    mask[::3, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
