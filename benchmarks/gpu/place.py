"""Where a run takes place: a GPU, or, to try the benchmark out, kernels emulated on the CPU at tiny sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .clock import Call, Clock, Copy, Times


class WrongBits(Exception):
    """A result that is not the CPU's: it has no speed, and its part of the benchmark ends."""


@dataclass
class Run:
    """One run: its device, its clocks, and what was measured so far."""

    device: torch.device
    clock: Clock
    copy: Copy
    deadline: float
    on_cpu: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Within it CPU tensors go to the CPU's kernels: they do anyway, unless kernels are emulated."""
    compiling: bool = True
    """Whether torch.compile takes part."""
    copy_bandwidth: float = 0.0
    """Bytes read and written per second by the copy, in the last contest."""
    measured: dict[str, float] = field(default_factory=dict)
    """Goal -> what was measured."""
    times: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Contest -> contender -> times."""
    timeline: dict[str, Any] = field(default_factory=dict)
    """What the reader threads, the copies and the kernels did when, while a model was loaded."""
    checked: list[str] = field(default_factory=list)
    """What gave the CPU's bits."""

    @property
    def dry(self) -> bool:
        return self.clock.dry

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def free_bytes(self) -> int:
        return 1 << 40 if self.dry else torch.cuda.mem_get_info(self.device)[0]

    def race(self, contest: str, contenders: dict[str, Call]) -> dict[str, Times]:
        """Times the contenders and a copy, in turn."""
        times = self.clock.race({"copy": self.copy, **contenders})
        self.times[contest] = {name: t.to_json() for name, t in times.items()}
        return times

    def share(self, goal: str, times: dict[str, Times], moved: int, name: str = "pysoup") -> None:
        """Records which share of the copy's bandwidth ``name`` has, which moves that many bytes."""
        self.copy_bandwidth = self.copy.bandwidth(times["copy"])
        self.measured[goal] = moved / times[name].median / self.copy_bandwidth

    def check(self, what: str, found: Tensor, expected: Tensor) -> None:
        """Raises :class:`WrongBits` where the bits differ."""
        here, there = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (found, expected))
        if not torch.equal(here, there):
            wrong = int((here != there).sum()) if here.shape == there.shape else "all"
            raise WrongBits(f"{what}: {wrong} of {there.numel()} bytes differ from the CPU's")

    def passed(self, what: str) -> None:
        self.checked.append(what)

    def empty_cache(self) -> None:
        if not self.dry:
            torch.cuda.empty_cache()


def poison(tensors: list[Tensor]) -> None:
    """Writes NaN, which no result here is: what a kernel does not write stays wrong."""
    for tensor in tensors:
        tensor.fill_(float("nan"))
