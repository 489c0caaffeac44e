"""The devices that tests of the CUDA kernels run on: a real one, or the CPU with the kernels emulated on it."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pysoup import _native
from pysoup.ops import Accelerator, device

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"
ENTRIES = ("launch_sum", "launch_scores", "launch_dots", "run_staged")
"""What of ``_native`` puts work on a device."""


class Emulated(Accelerator):
    """Stands for the CPU as if it were a device: memory, streams and uploads are the host's."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.index = 0
        self.free = 1 << 40

    def stream(self) -> int:
        return 0

    def upload(self, nbytes: int, write: Callable[[int], object]) -> Tensor:
        staged = torch.empty(nbytes, dtype=torch.uint8)
        write(staged.data_ptr())
        return staged

    def wait(self) -> None:
        pass

    def is_capturing(self) -> bool:
        return False

    def keep(self, tensor: Tensor) -> None:
        pass

    def free_bytes(self) -> int:
        return self.free

    def make_room(self, nbytes: int) -> None:
        pass


@dataclass
class Device:
    """Where tests put their tensors; within :meth:`on`, work on these tensors is the kernels'."""

    name: str
    torch: torch.device
    native: ModuleType | None = None
    calls: Counter[str] = field(default_factory=Counter)
    """How often something was put on the device, by the name of the entry."""

    def put(self, value: Any) -> Any:
        """A tensor, or a mapping or list of them, on the device; never the same memory."""
        if isinstance(value, Tensor):
            return value.detach().clone().to(self.torch)
        if isinstance(value, Mapping):
            return {name: self.put(one) for name, one in value.items()}
        return [self.put(one) for one in value]

    @contextmanager
    def on(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ENTRIES:
                if hasattr(_native, name):
                    patch.setattr(_native, name, self._counted(name, getattr(_native, name)))
            if self.native is not None:
                patch.setattr(_native, "load", lambda: self.native)
                patch.setattr(_native, "_cuda_devices", _native._cuda_devices.__wrapped__)
                patch.setitem(device._found, torch.device("cpu"), Emulated())
            yield

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return function(*args, **kwargs)

        return call


def emulated_module() -> ModuleType:
    """The native module with its CUDA kernels compiled for the host, built if need be."""
    import pybind11

    if shutil.which("cmake") is None:
        pytest.skip("the emulated kernels are built with cmake, which is not there")
    ninja = shutil.which("ninja")
    configure = [
        "cmake",
        f"-S{ROOT}",
        f"-B{BUILD}",
        *(["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DPYSOUP_CUDA=EMULATE",
    ]
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that run tests, the first one builds
        for command in (configure, ["cmake", "--build", str(BUILD), "--target", "_C"]):
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CLICOLOR_FORCE": "0"})
            if done.returncode:
                pytest.fail(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}", pytrace=False)
    (path,) = BUILD.glob("_C*.so")
    spec = importlib.util.spec_from_file_location("pysoup_emulated._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
