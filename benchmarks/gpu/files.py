"""From files in the page cache to a model on the device, against reading alone and copying alone."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from checkpoints import Family, StateDict, checkpoints
from shapes import clip_vit_b32
from torch import Tensor

import pysoup
from pysoup import _native

from . import timeline
from .clock import Times
from .place import Run, poison

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
COUNT = 8
CHUNK = 8 << 20


class Parameters(torch.nn.Module):
    """A model that is nothing but its parameters."""

    def __init__(self, tensors: StateDict) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            module: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))


def files(run: Run, repeats: int) -> None:
    """Eight files of CLIP ViT-B/32's shapes, 2.4 GB in bf16 and 4.8 in f32."""
    shapes = clip_vit_b32()
    if run.dry:
        shapes = {name: tuple(min(size, 6) for size in shape) for name, shape in shapes.items()}
    family = Family(shapes)
    for label, dtype in DTYPES.items():
        with _folder(COUNT * family.elements * dtype.itemsize) as folder:
            if folder is None:
                continue
            paths = checkpoints(family, folder, COUNT, dtype)
            model = Parameters({n: torch.empty(s, dtype=dtype, device=run.device) for n, s in shapes.items()})
            _check(run, f"files {label}", model, paths)
            parts = _Parts(run, paths)
            calls: dict[str, Callable[[], object]] = {
                "pysoup": lambda m=model, p=paths: pysoup.load_soup_(m, p),  # type: ignore[misc]
                "read": parts.read,
                "pinned copy": parts.copy,
            }
            times = _in_turn(run, calls, repeats)
            _draw(run, label, model, paths)
        run.times[f"files {label}"] = {name: t.to_json() for name, t in times.items()}
        slower = max(times["read"].median, times["pinned copy"].median)
        run.measured[f"files {label}"] = slower / times["pysoup"].median


@contextmanager
def _folder(size: int) -> Iterator[Path | None]:
    """A place for the files that is removed again, or None where there is none with as much room."""
    with tempfile.TemporaryDirectory(prefix="bench_cuda-") as folder:
        free = shutil.disk_usage(folder).free
        if free < size * 1.1:
            print(f"bench_cuda: files: left out: {free >> 20} MiB are free in {folder}, {size >> 20} are needed")
            yield None
        else:
            yield Path(folder)


class _Parts:
    """The two things that have to be done in any case, each alone and in the same pieces."""

    def __init__(self, run: Run, paths: list[Path]) -> None:
        self._run = run
        self._pieces = [
            (path, at, min(CHUNK, path.stat().st_size - at))
            for path in paths
            for at in range(0, path.stat().st_size, CHUNK)
        ]
        self._threads = _native.default_threads()
        pin = not run.dry
        self._pinned = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=pin) for _ in range(self._threads)]
        self._device = [torch.empty(CHUNK, dtype=torch.uint8, device=run.device) for _ in range(self._threads)]

    def read(self) -> None:
        """All files into pinned memory, as many pieces at a time as there are processors."""
        descriptors = {path: os.open(path, os.O_RDONLY) for path, _, _ in self._pieces}
        buffers = [memoryview(buffer.numpy()) for buffer in self._pinned]

        def read_some(thread: int) -> None:
            for path, at, size in self._pieces[thread :: self._threads]:
                done = 0
                while done < size:
                    done += os.preadv(descriptors[path], [buffers[thread][done:size]], at + done)

        try:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(read_some, range(self._threads)))
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)

    def copy(self) -> None:
        """As many bytes from pinned memory to the device."""
        for number, (_, _, size) in enumerate(self._pieces):
            slot = number % self._threads
            self._device[slot][:size].copy_(self._pinned[slot][:size], non_blocking=True)
        self._run.clock.wait()


def _in_turn(run: Run, calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Wall-clock seconds of whole calls, the device's work included."""
    times = {name: Times() for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            run.clock.wait()
            begin = time.perf_counter()
            call()
            run.clock.wait()
            if number:
                times[name].device.append(time.perf_counter() - begin)
    return times


def _draw(run: Run, label: str, model: torch.nn.Module, paths: list[Path]) -> None:
    """One more run, looked at: what the threads, the copies and the kernels did when."""
    with _native.timeline() as chunks:
        pysoup.load_soup_(model, paths)
    run.timeline[label] = timeline.summary(chunks) | {"drawing": timeline.drawing(chunks).splitlines()}
    if not run.dry:
        print(f"8 files to a live model, {label}:\n{timeline.drawing(chunks)}", flush=True)


def _check(run: Run, what: str, model: torch.nn.Module, paths: list[Path]) -> None:
    """The parameters against the average of the same files on the CPU."""
    poison([p.detach() for p in model.parameters()])
    pysoup.load_soup_(model, paths)
    with run.on_cpu():
        there = Parameters({n: torch.empty_like(p, device="cpu") for n, p in model.state_dict().items()})
        pysoup.load_soup_(there, paths)
    found: dict[str, Tensor] = model.state_dict()
    for name, tensor in there.state_dict().items():
        run.check(f"{what}, {name}", found[name], tensor)
    run.passed(what)
