"""What all tests share: seeds, the instruction set under test, skipping what needs a GPU."""

from __future__ import annotations

import fcntl
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
        if item.get_closest_marker("cuda"):  # not by keyword: a folder of that name is one
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Where several processes run tests at a time, those that are marked ``alone`` wait for the others, and these for
    them."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    # What all processes of this run share is above the folder of each.
    folder = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    with _room(folder, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _room(folder: Path, *, alone: bool) -> Iterator[None]:
    """Who is to be alone stands in the door until the room is empty; everybody else only passes it."""
    with open(folder / "door", "w") as door, open(folder / "room", "w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Said, not left to the closing: a process that a test forked may hold the files open longer.
            fcntl.flock(room, fcntl.LOCK_UN)
            fcntl.flock(door, fcntl.LOCK_UN)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU has, in turn, forced for the test."""
    with _native.force_isa(request.param):
        yield request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tensors of a few numbers: handing them to threads takes longer than the sums."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, alone or in any order."""
    random.seed(0)
    # Only what is loaded already: tests of the command run without torch.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _tasks_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Task files that a test file writes and loads are gone after it: another one has a ``task.py`` of its own."""
    path, known = list(sys.path), set(sys.modules)
    folder = str(tmp_path_factory.getbasetemp())
    yield
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]
