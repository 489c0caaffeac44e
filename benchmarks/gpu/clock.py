"""Times on a GPU: events around each call, contenders in turn, medians; beside it what the call costs the host."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[[int], object]
"""Given the number of the round, which chooses among the sets of inputs."""

_WARM_UP = 3


@dataclass
class Times:
    """Seconds of one contender, round by round."""

    device: list[float] = field(default_factory=list)
    """From the first to the last thing that the device did for it."""
    host: list[float] = field(default_factory=list)
    """Until the call returned."""

    @property
    def median(self) -> float:
        return statistics.median(self.device)

    def to_json(self) -> dict[str, Any]:
        host = statistics.median(self.host) if self.host else None
        return {"median": self.median, "best": min(self.device), "host": host, "all": self.device}


class Clock:
    """Times calls on one device.

    Before each call the device is given a buffer to read, larger than its L2 cache, for longer than the host needs to
    queue the call: what is timed is the device, at work on inputs that no cache holds. A call that waits for the device
    is timed with what the host does afterwards.

    ``dry`` is the host's clock, on any device, for trying the benchmark out.
    """

    def __init__(self, device: torch.device, repeats: int = 20, *, dry: bool = False) -> None:
        self.device = device
        self.repeats = repeats
        self.dry = dry
        self._lead = torch.ones(1 << 10 if dry else _lead_elements(device), device=device)
        self._lead_result = torch.empty((), device=device)
        self._lead_seconds = 0.0
        if not dry:
            self._read_lead(2)
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            self._read_lead(20)
            torch.cuda.synchronize(device)
            self._lead_seconds = (time.perf_counter() - start) / 20

    def race(self, contenders: Mapping[str, Call]) -> dict[str, Times]:
        """Times of all contenders, in turn, in an order that changes from round to round (seeded)."""
        times = {name: Times() for name in contenders}
        shuffle = random.Random(0)
        queueing = dict.fromkeys(contenders, 0.0)
        gc.collect()
        gc.disable()
        try:
            for number in range(_WARM_UP + self.repeats):
                order = list(contenders)
                shuffle.shuffle(order)
                spans = {name: self._span(contenders[name], number, queueing[name]) for name in order}
                self.wait()
                for name, (seconds, host) in spans.items():
                    if number == 0:
                        continue  # compiling, first allocations
                    queueing[name] = max(queueing[name], host)
                    if number >= _WARM_UP:
                        times[name].device.append(seconds())
                        times[name].host.append(host)
        finally:
            gc.enable()
        return times

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def _span(self, call: Call, number: int, queueing: float) -> tuple[Callable[[], float], float]:
        if self.dry:
            begin = time.perf_counter()
            call(number)
            spent = time.perf_counter() - begin
            return lambda: spent, spent
        # Twice as long as the call took to queue so far, 20 ms at most: then it waits for the device anyway.
        self._read_lead(1 + int(min(2 * queueing, 0.02) / self._lead_seconds))
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        begin = time.perf_counter()
        call(number)
        host = time.perf_counter() - begin
        last.record()
        return lambda: first.elapsed_time(last) / 1e3, host

    def _read_lead(self, times: int) -> None:
        for _ in range(times):
            torch.sum(self._lead, dim=0, out=self._lead_result)


def _lead_elements(device: torch.device) -> int:
    """f32 elements of the buffer read before each call: four times the L2 cache, and half a gigabyte at least."""
    properties = torch.cuda.get_device_properties(device)
    return max(4 * int(getattr(properties, "L2_cache_size", 0)), min(512 << 20, properties.total_memory // 32)) // 4


class Copy:
    """The ceiling: a copy from device memory to device memory, of bytes that no cache holds."""

    def __init__(self, clock: Clock) -> None:
        properties = None if clock.dry else torch.cuda.get_device_properties(clock.device)
        self.bytes = 1 << 16 if properties is None else min(1 << 30, properties.total_memory // 32)
        self._from = [_noise(self.bytes, clock.device) for _ in range(2)]
        self._to = [torch.empty_like(source) for source in self._from]

    def __call__(self, number: int) -> None:
        self._to[number % 2].copy_(self._from[number % 2])

    def bandwidth(self, times: Times) -> float:
        """Bytes read and written, per second."""
        return 2 * self.bytes / times.median


def _noise(size: int, device: torch.device) -> Tensor:
    return torch.randint(-(1 << 31), (1 << 31) - 1, (size // 4,), dtype=torch.int32, device=device)
