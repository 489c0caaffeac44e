"""Targets: torch's zip archives, the pickles in them, and its legacy files; some compared with torch itself."""

from __future__ import annotations

import io
import random
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pysoup.checkpoint import Checkpoint

from . import pickles, zips
from .mutations import MutateBytes, number
from .target import Target, require
from .zips import Member

_STORAGE = bytes(range(1, 25))
"""Of all tensors in the seeds, so that a pickle fits any archive of them."""
_NEEDED = re.compile(rb"[^/]+/(data\.pkl|data/.*|version)")
_COMPARED = 8
"""One accepted file in so many is given to torch too, which takes a thousand times as long as we do to start with."""


class TorchArchives(Target):
    name = "torch"
    file_name = "model.pt"
    share = 20

    def seeds(self) -> list[bytes]:
        saved = [_saved(value, zipped=True) for value in _state_dicts()]
        # Paddings, and records that nobody reads, make them long: the fuzzer needs short ones.
        short = [zips.build([m for m in zips.split(raw) if _NEEDED.fullmatch(m.name)]) for raw in saved]
        named = zips.build([*zips.split(saved[0]), Member(b"archive/pysoup.json", b'{"ingredients":"[]"}')])
        deflated = zips.build([m._replace(deflated=True) for m in zips.split(saved[0])])
        return [*saved, *short, named, deflated, b"PK\x05\x06" + bytes(18), b"PK\x03\x04"]

    def prepare(self, directory: Path) -> None:
        import torch  # noqa: F401 - before memory is measured

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        kind = rng.random()
        if kind < 0.1:
            return other(data, self.longest)
        if kind < 0.35:
            return zips.mutate_fields(data, rng)
        members = zips.split(data)
        if not members:
            return other(data, self.longest)
        if kind < 0.5:
            members = zips.mutate_members(members, rng)
        else:
            at = rng.randrange(len(members))
            pickled = [i for i, m in enumerate(members) if m.name.endswith(b".pkl")]
            if pickled and kind < 0.9:
                at = rng.choice(pickled)
            changed = pickles.mutate(members[at].data, rng) if at in pickled else other(members[at].data, 512)
            members[at] = members[at]._replace(data=changed)
        return zips.build(members, rng)[: self.longest]

    def accepted(self, path: Path, checkpoint: Checkpoint, tensors: dict[str, bytes] | None) -> None:
        if tensors is not None and zlib.crc32(path.read_bytes()) % _COMPARED == 0:
            compare_with_torch(path, checkpoint, tensors)


class Pickles(TorchArchives):
    """``data.pkl`` alone, in an archive that is otherwise right."""

    name = "pickles"
    share = 20
    longest = 4096

    def seeds(self) -> list[bytes]:
        values = _state_dicts()
        saved = [_saved(value, zipped=True, protocol=protocol) for protocol in (1, 2, 4) for value in values]
        return [m.data for raw in saved for m in zips.split(raw) if m.name.endswith(b"data.pkl")]

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        return other(data, self.longest) if rng.random() < 0.2 else pickles.mutate(data, rng)[: self.longest]

    def content(self, data: bytes) -> bytes:
        storages = [Member(b"a/data/%d" % i, _STORAGE) for i in range(4)]
        return zips.build([Member(b"a/data.pkl", data), Member(b"a/version", b"3\n"), *storages])


class LegacyTorch(TorchArchives):
    name = "legacy"
    file_name = "model.bin"
    share = 12

    def seeds(self) -> list[bytes]:
        saved = [_saved(value, zipped=False) for value in _state_dicts()]
        return [*saved, saved[0][:-1], saved[0] + b"x", b"\x80\x02}.", b"\x80\x02"]

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        kind = rng.random()
        if kind < 0.15:
            return other(data, self.longest)
        items = pickles.split(data)
        pickled, rest = b"".join(items[:-1]), items[-1]
        if kind < 0.85:
            return (pickles.mutate(pickled, rng) + rest)[: self.longest]
        if kind < 0.95 and len(rest) > 8:
            at = 0 if rng.random() < 0.5 else rng.randrange(len(rest) - 7)
            near = int.from_bytes(rest[at : at + 8], "little")
            rest = rest[:at] + struct.pack("<Q", number(rng, near) % 2**64) + rest[at + 8 :]
        return (pickled + other(rest, 1024))[: self.longest] if rng.random() < 0.5 else pickled + rest


def compare_with_torch(path: Path, checkpoint: Checkpoint, tensors: dict[str, bytes]) -> None:
    """Where torch loads the file at all, it must find the same tensors in it."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return  # torch refuses more classes than we, who make nothing of them.
    for key in checkpoint.entry_name.split(".") if checkpoint.entry_name else ():
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        return  # A key with a dot in it: rare enough to let it be.
    theirs = {k: t for k, t in value.items() if isinstance(k, str) and isinstance(t, torch.Tensor)}
    names = {*checkpoint, *checkpoint.aliases}
    require(theirs.keys() == names, f"torch finds {sorted(theirs)}")
    for name, tensor in theirs.items():
        entry = checkpoint.entry(name)
        require(tuple(tensor.shape) == entry.shape, f"tensor {name!r}: torch has shape {tuple(tensor.shape)}")
        require(str(tensor.dtype) == f"torch.{entry.dtype.torch_name}", f"tensor {name!r}: torch has {tensor.dtype}")
        raw = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
        require(bytes(raw.tolist()) == tensors[entry.name], f"tensor {name!r}: torch has other bytes")


def _state_dicts() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of kinds of tensors that torch gives up.
        return list(_made_state_dicts())


def _made_state_dicts() -> Iterator[Any]:
    import argparse
    from collections import Counter, OrderedDict, defaultdict

    import torch

    def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).to(dtype)

    w, whole = ramp(2, 3), ramp(3, dtype=torch.int64)
    plain = OrderedDict({"w": w, "b": ramp(12, dtype=torch.bfloat16)})
    tagged = torch.nn.Parameter(w.clone())
    tagged.tag = "x"
    trained = {
        "epoch": 3,
        "state_dict": plain,
        "optimizer": {"state": {0: {"step": ramp(6)[0]}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "args": argparse.Namespace(lr=0.1, name="x"),
    }
    yield from [
        plain,
        {"w": w, "tied": w, "t": w.T, "row": w[1], "step": w[:, ::2], "wide": w[:1].expand(4, 3)},
        {"model": {"a": w, "n": whole[1]}, "ema": {"a": w + 1}},
        {"p": torch.nn.Parameter(w), "empty": w[:0], "f8": ramp(24).to(torch.float8_e4m3fn)},
        {"c": ramp(3, dtype=torch.complex64), "bool": ramp(24) > 9, "i": ramp(12, dtype=torch.int16)},
        torch.nn.Linear(3, 2, bias=False).state_dict(),
        {
            "tagged": tagged,
            "count": Counter("aab"),
            "model": defaultdict(list, a=w),
            "set": {1},
            "f": 0.5,
            "bytes": b"a",
        },
        {"meta": torch.empty(2, device="meta"), "complex": 1j, "size": w.shape, "type": w.dtype, "device": w.device},
        trained,
        {"q": torch.quantize_per_tensor(ramp(24), 0.1, 0, torch.qint8), "s": ramp(3, dtype=torch.float64).to_sparse()},
        w,
        [],
        {},
        {"lr": 0.1},
    ]


def _saved(value: Any, *, zipped: bool, protocol: int = 2) -> bytes:
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return file.getvalue()
