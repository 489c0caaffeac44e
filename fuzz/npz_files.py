"""Target: numpy's archives, compared with numpy."""

from __future__ import annotations

import io
import random
import struct
import warnings
from pathlib import Path

import numpy as np

from pysoup.checkpoint import Checkpoint

from . import zips
from .mutations import MutateBytes, mutate_tokens, number
from .target import Finding, Target, require
from .zips import Member

WORDS = (
    *rb"""
    'descr' 'fortran_order' 'shape' '<f4' '<f8' '|b1' '|u1' '<i8' '<c8' '<c16' '|V2' '<V2' '>f4' '|O' '<U3' '|S4' ''
    '<M8[s]' 'float8_e4m3fn' '|V1' '<f16' '=f4' True False None (3,) (2,3) () (0,) (-1,) (3) 3L { } ( ) , : [ ] '
    [('a','<f4')] __import__('os').system('ls')
    """.split(),
    *(b"  ", b"\n", b"\0", b"(" + b"1," * 65 + b")", b"(" * 2000, b"9" * 5000),
)


def npy(text: bytes, data: bytes, version: int = 1, length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    width = "<H" if version == 1 else "<L"
    return b"\x93NUMPY" + struct.pack("<BB", version, 0) + struct.pack(width, size) + text + data


class Npz(Target):
    name = "npz"
    file_name = "model.npz"
    share = 10
    entry = "params"

    def seeds(self) -> list[bytes]:
        w = np.arange(6, dtype=np.float32).reshape(2, 3)
        arrays: list[dict[str, np.ndarray]] = [
            {"w": w, "b": w[0].astype(np.float16)},
            {"t": np.asfortranarray(w), "zero": np.zeros((0, 3)), "scalar": np.array(3)},
            {"params/a/kernel": w, "params/bf16": np.zeros(2, "V2"), "opt/step": np.array(1)},
            {
                "c": w.astype(np.complex64),
                "flag": w > 1,
                "i": w.astype(np.int8),
                "cube": np.asfortranarray(w[None] * w),
            },
            {"o": np.array([None, {}], dtype=object)},
            {"s": np.array(["a", "b"]), "big": w.astype(">f4")},
            {},
        ]
        seeds = []
        for save in (np.savez, np.savez_compressed):
            for named in arrays:
                file = io.BytesIO()
                save(file, **named)  # type: ignore[arg-type]
                seeds.append(file.getvalue())
        bomb = Member(b"w.npy", npy(_text(65000), bytes(65000)), deflated=True)
        return [
            *seeds,
            zips.build([bomb]),
            zips.build([Member(b"w.npy", npy(_text(3), b"abc", 2))]),
            b"PK\x03\x04",
            b"",
        ]

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        kind = rng.random()
        if kind < 0.1:
            return other(data, self.longest)
        if kind < 0.3:
            return zips.mutate_fields(data, rng)
        members = zips.split(data)
        if not members:
            return other(data, self.longest)
        if kind < 0.45:
            members = zips.mutate_members(members, rng)
        else:
            at = rng.randrange(len(members))
            raw = members[at].data
            changed = other(raw, 2048) if kind < 0.55 else _mutated_array(raw, rng)
            members[at] = members[at]._replace(data=changed)
        return zips.build(members, rng)[: self.longest]

    def accepted(self, path: Path, checkpoint: Checkpoint, tensors: dict[str, bytes] | None) -> None:
        if tensors is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with np.load(path, allow_pickle=False) as file:
                    wanted = f"{checkpoint.entry_name}/" if checkpoint.entry_name else ""
                    names = [n for n in file.files if n.startswith(wanted) and not n.endswith("/")]
                    theirs = {name: file[name] for name in names}
            except NotImplementedError:
                return  # A "version needed" that Python's zipfile does not know.
            except Exception as error:
                if "Bad CRC-32" in str(error):
                    return  # Of an array that is not compressed: its bytes are streamed, as any file's are.
                raise Finding(f"numpy refuses it: {error!r}") from error
        require(theirs.keys() == set(checkpoint), f"numpy finds {sorted(theirs)}")
        for name, array in theirs.items():
            require(array.shape == checkpoint.entry(name).shape, f"array {name!r}: numpy has shape {array.shape}")
            require(array.tobytes() == tensors[name], f"array {name!r}: numpy has other bytes")


def _text(count: int) -> bytes:
    return b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }\n" % count


def _mutated_array(raw: bytes, rng: random.Random) -> bytes:
    """A ``.npy`` file with another header, its length mostly right."""
    version = raw[6] if len(raw) > 6 and raw[6] in (1, 2, 3) else 1
    width = 2 if version == 1 else 4
    length = int.from_bytes(raw[8 : 8 + width], "little")
    text, data = raw[8 + width : 8 + width + length], raw[8 + width + length :]
    if rng.random() < 0.8:
        text = mutate_tokens(rng, text.strip(), WORDS)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)] + bytes(rng.randrange(9))
    version = rng.choice((1, 2, 3, 4)) if rng.random() < 0.1 else version
    return npy(text, data, version, number(rng, len(text)) % 65536 if rng.random() < 0.05 else None)
