"""Target: the ``.metadata`` of distributed checkpoints, beside the valid file of one process."""

from __future__ import annotations

import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

from pysoup.checkpoint import Checkpoint

from . import pickles
from .mutations import MutateBytes
from .target import Target, require

FILE = "__0_0.distcp"
SHAPES = {"a": (2, 3), "b": (4,), "c": ()}


class Distributed(Target):
    name = "distributed"
    file_name = ".metadata"
    share = 10

    def seeds(self) -> list[bytes]:
        return [*(_saved(nested)[0] for nested in (False, True)), b"", b"\x80\x04}."]

    def prepare(self, directory: Path) -> None:
        (directory / FILE).write_bytes(_saved(False)[1])

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        return other(data, self.longest) if rng.random() < 0.2 else pickles.mutate(data, rng)[: self.longest]

    def accepted(self, path: Path, checkpoint: Checkpoint, tensors: dict[str, bytes] | None) -> None:
        require([file.name for file in checkpoint.files] == [FILE], "another file than those of the directory")
        size = (path.parent / FILE).stat().st_size
        require(checkpoint.total_bytes <= size, "more bytes than the file has")
        saved = {bytes(raw) for raw in _VALUES.values()} | {b""}
        require(tensors is None or set(tensors.values()) <= saved, f"tensors {tensors}")


_VALUES = {name: bytearray() for name in SHAPES}


def _saved(nested: bool) -> tuple[bytes, bytes]:
    """Metadata and file of the same tensors, at the same places."""
    import torch
    import torch.distributed.checkpoint as dcp

    values: dict[str, Any] = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        values[name] = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + 10 * i
        _VALUES[name][:] = values[name].numpy().tobytes()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": values} if nested else values, checkpoint_id=folder, no_dist=True)
        return (Path(folder) / ".metadata").read_bytes(), (Path(folder) / FILE).read_bytes()
