"""A run without a GPU: the kernels emulated on the CPU, as the tests have them, to show that the benchmark works."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[2] / "tests" / "cuda"


def emulated() -> Callable[[], AbstractContextManager[None]]:
    """From now on CPU tensors go to the emulated kernels; within the returned context, to the CPU's own."""
    sys.path.insert(0, str(TESTS))
    from devices import Device, emulated_module

    device = Device("emulated", torch.device("cpu"), emulated_module())
    entered = ExitStack()
    entered.enter_context(device.on())

    @contextmanager
    def on_cpu() -> Iterator[None]:
        entered.close()
        try:
            yield
        finally:
            entered.enter_context(device.on())

    return on_cpu
