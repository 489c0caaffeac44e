"""Every test with ``on_device`` runs with the kernels emulated on the CPU and, where there is one, on a CUDA device."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from devices import Device, emulated_module


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    """Built once, about a minute; later only what changed."""
    return emulated_module()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def on_device(request: pytest.FixtureRequest) -> Device:
    if request.param == "cuda":
        return Device("cuda", torch.device("cuda", torch.cuda.current_device()))
    return Device("emulated", torch.device("cpu"), request.getfixturevalue("emulated"))
