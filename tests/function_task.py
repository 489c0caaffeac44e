"""A small task with shifts and a pool of models for it, and their soups and ensembles in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLASSES = 4
_FEATURES = 6


class Blobs:
    """Four overlapping clouds; the shifts are noisier."""

    head = "head"

    def model(self) -> nn.Module:
        return network(0)

    def heldout(self) -> list[tuple[Tensor, Tensor]]:
        return clouds(120, 1)

    def tests(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        return {"clean": clouds(150, 2), "noisy": clouds(90, 3, noise=1.5), "noisier": clouds(90, 4, noise=2.5)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(_FEATURES, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def network(seed: int) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


def clouds(count: int, seed: int, *, noise: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    """In batches of 256 at most."""
    centres = 1.3 * torch.randn(CLASSES, _FEATURES, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    x = centres[labels] + noise * torch.randn(count, _FEATURES, generator=generator)
    return list(zip(x.split(256), labels.split(256), strict=True))


def pool(count: int, *, steps: int = 40, spread: float = 0.1) -> list[dict[str, Tensor]]:
    """Models trained from one start, each on other data and at another rate."""
    start = network(0)
    x, y = clouds(200, 7)[0]
    _train(start, x, y, 40, 0.02)
    found = []
    for number in range(count):
        model = copy.deepcopy(start)
        x, y = clouds(120, 20 + number)[0]
        _train(model, x, y, steps, spread * (1 + number % 3))
        found.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return found


def average(states: Sequence[dict[str, Tensor]], scales: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The plain mean; ``scales`` multiply each one's head before."""
    scales = scales or [1.0] * len(states)
    mean = {}
    for name in states[0]:
        factors = scales if name.startswith("head") else [1.0] * len(states)
        mean[name] = sum(f * s[name].double() for f, s in zip(factors, states, strict=True)).float() / len(states)
    return mean


def logits_of(state: dict[str, Tensor], data: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    model = network(0)
    model.load_state_dict(state)
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in data]), torch.cat([y for _, y in data])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def _train(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
