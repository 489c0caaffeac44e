"""What all tests share: seeds, the instruction set under test, skipping what needs a GPU."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from pysoup import _native

# Kernels and files make single examples slow on a busy machine; a deadline would only make tests flaky.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

CAPABILITIES: dict[str, Any] = _native.capabilities()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", CAPABILITIES["isas"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CAPABILITIES["cuda_devices"] > 0:
        return
    reason = "no CUDA device" if CAPABILITIES["cuda"] else "built without CUDA"
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU has, in turn, forced for the test."""
    with _native.force_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, alone or in any order."""
    random.seed(0)
    # Only what is loaded already: tests of the command run without torch.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
