"""Rows of paths that are no readable file, and of inputs that are good each but do not fit together."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bad_inputs import BAD, HEADER, Make, Row, packed
from bad_inputs_npz import header, npz
from bad_inputs_torch import archive, legacy
from checkpoint_files import entry, raw_file
from npz_files import archive as npz_archive
from npz_files import npy
from safetensors.numpy import load_file
from torch_files import archive as torch_file
from torch_files import legacy_bytes, legacy_storage, mapping, pickled, storage, tensor

from pysoup.errors import IncompatibleError

DATA = packed(BAD)


def safetensors(directory: Path, name: str = "bad.safetensors") -> Path:
    return raw_file(directory / name, HEADER, DATA)


def instead(change: Callable[[Path], object], make: Make | None = None) -> Make:
    """A good file that ``change`` replaces, once it is removed."""

    def made(directory: Path, broken: bool) -> Path:
        path = safetensors(directory) if make is None else make(directory, False)
        if broken:
            path.unlink()
            change(path)
        return path

    return made


def below_a_file(directory: Path, broken: bool) -> Path:
    folder = directory / "folder"
    if broken:
        folder.write_bytes(b"")
    else:
        folder.mkdir()
        safetensors(folder)
    return folder / "bad.safetensors"


def named(name: str) -> Make:
    return lambda directory, broken: directory / name if broken else safetensors(directory)


def listen(path: Path) -> None:
    here = os.getcwd()
    # The path of a socket may be 107 bytes long at most.
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def two_links_to_each_other(path: Path) -> None:
    path.symlink_to("other.safetensors")
    path.with_name("other.safetensors").symlink_to(path.name)


def is_missing(path: Path) -> bool:
    return not os.path.lexists(path)


def cannot_be_opened(path: Path) -> bool:
    try:
        with open(path, "rb"):
            return False
    except (OSError, ValueError):
        return True


def is_no_regular_file(path: Path) -> bool:
    return not stat.S_ISREG(os.stat(path).st_mode)


def is_empty(path: Path) -> bool:
    return os.path.getsize(path) == 0


MISSING = {"safetensors": None, "torch zip": archive(), "torch legacy": legacy(), "npz": npz()}

PATHS = [
    *(
        Row("missing file", kind, instead(is_missing, make), "no such file", is_missing)
        for kind, make in MISSING.items()
    ),
    Row("missing file", "below a file", below_a_file, "no such file|not a directory", cannot_be_opened),
    Row("missing file", "broken link", instead(lambda p: p.symlink_to("x")), "broken symbolic link", cannot_be_opened),
    Row("missing file", "name with NUL", named("a\0b.safetensors"), "", cannot_be_opened, file="a"),
    Row("missing file", "name of 300 bytes", named("x" * 300 + ".safetensors"), "too long", cannot_be_opened),
    *(
        Row("empty file", kind, instead(lambda path: path.write_bytes(b""), make), "file is empty|too short", is_empty)
        for kind, make in MISSING.items()
    ),
    Row(
        "unreadable path", "link to itself", instead(lambda p: p.symlink_to(p.name)), "symbolic link", cannot_be_opened
    ),
    Row("unreadable path", "links to each other", instead(two_links_to_each_other), "symbolic link", cannot_be_opened),
    Row("unreadable path", "FIFO", instead(os.mkfifo), "not a regular file", is_no_regular_file),
    Row(
        "unreadable path",
        "link to a FIFO",
        instead(lambda p: (os.mkfifo(p.with_name("x")), p.symlink_to("x"))),
        "not a regular file",
        is_no_regular_file,
    ),
    Row("unreadable path", "socket", instead(listen), "not a regular file", cannot_be_opened),
    Row(
        "unreadable path",
        "endless device",
        instead(lambda p: p.symlink_to("/dev/zero")),
        "not a regular file",
        is_no_regular_file,
    ),
    Row(
        "unreadable path",
        "empty device",
        instead(lambda p: p.symlink_to("/dev/null")),
        "not a regular file",
        is_no_regular_file,
    ),
    Row(
        "unreadable path",
        "FIFO for a torch file",
        instead(os.mkfifo, archive()),
        "not a regular file",
        is_no_regular_file,
    ),
    Row(
        "unreadable path", "FIFO for an array file", instead(os.mkfifo, npz()), "not a regular file", is_no_regular_file
    ),
    Row(
        "unreadable path",
        "directory named like a file",
        instead(Path.mkdir),
        "no weights in directory",
        cannot_be_opened,
    ),
]

KINDS = ("safetensors", "torch zip", "torch legacy", "npz")
CODES = {
    "F32": ("f", "FloatStorage", "'<f4'"),
    "F16": ("e", "HalfStorage", "'<f2'"),
    "I32": ("i", "IntStorage", "'<i4'"),
}
Tensors = dict[str, tuple[tuple[int, ...], str]]
"""Shape and type by name."""


def written(directory: Path, kind: str, tensors: Tensors) -> Path:
    """A good file of any format, of the bad input's values as far as they go, then zeros."""
    raw = {}
    for name, (shape, dtype) in tensors.items():
        count = 1
        for n in shape:
            count *= n
        values = [*BAD.get(name, ()), *[0.0] * count][:count]
        code = CODES[dtype][0]
        raw[name] = struct.pack(f"<{count}{code}", *(map(int, values) if code == "i" else values))
    if kind == "safetensors":
        entries, end = {}, 0
        for name, (shape, dtype) in tensors.items():
            entries[name] = entry(dtype, list(shape), end, end := end + len(raw[name]))
        return raw_file(directory / "bad.safetensors", json.dumps(entries), b"".join(raw.values()))
    if kind == "npz":
        path = directory / "bad.npz"
        texts = {name: f"({''.join(f'{n},' for n in shape)})" for name, (shape, _) in tensors.items()}
        return npz_archive(
            path, {f"{n}.npy": npy(header(texts[n], CODES[d][2]), raw[n]) for n, (_, d) in tensors.items()}
        )
    store = storage if kind == "torch zip" else legacy_storage
    views = {}
    for key, (name, (shape, dtype)) in enumerate(tensors.items()):
        strides = tuple(shape[d + 1] if d + 1 < len(shape) else 1 for d in range(len(shape)))
        numel = len(raw[name]) // (2 if dtype == "F16" else 4)
        views[name] = tensor(shape, strides, store=store(str(key), numel, CODES[dtype][1]))
    stored = {str(key): data for key, data in enumerate(raw.values())}
    if kind == "torch zip":
        return torch_file(directory / "bad.pt", pickled(mapping(views)), stored)
    path = directory / "bad.bin"
    sizes = {
        key: (len(data) // (2 if t[1] == "F16" else 4), data)
        for (key, data), t in zip(stored.items(), tensors.values(), strict=True)
    }
    path.write_bytes(legacy_bytes(mapping(views), sizes))
    return path


FIT: Tensors = {"a": ((2,), "F32"), "w": ((2, 2), "F32")}
COLUMN, FLAT, WIDE, HALF = ((2, 1), "F32"), ((4,), "F32"), ((2, 3), "F32"), ((2, 2), "F16")
DIFFERENT: dict[str, tuple[str, Tensors, str, str | None]] = {
    "one less": ("different names", {"a": FIT["a"]}, "lacks 'w'", None),
    "one more": ("different names", FIT | {"v": ((1,), "F32")}, "has also 'v'", None),
    "another": ("different names", {"a": FIT["a"], "W": FIT["w"]}, "lacks 'w' and has also 'W'", None),
    "wrapped in part": ("different names", {"a": FIT["a"], "module.w": FIT["w"]}, "has also 'module.w'", None),
    "deeper": ("different shapes", {"a": COLUMN, "w": FIT["w"]}, r"found \[2, 1\], expected \[2\] as in", "a"),
    "flat": ("different shapes", FIT | {"w": FLAT}, r"found \[4\], expected \[2, 2\] as in", "w"),
    "larger": ("different shapes", FIT | {"w": WIDE}, r"found \[2, 3\], expected \[2, 2\] as in", "w"),
    "half as wide": ("different dtypes", FIT | {"w": HALF}, "found F16, expected F32 as in", "w"),
    "integers": ("different dtypes", FIT | {"w": ((2, 2), "I32")}, "found I32, expected F32 as in", "w"),
}  # fmt: skip


def differs(path: Path) -> bool:
    """Whether an independent reader takes the file, and finds other names, shapes or types than the good one's."""
    return loaded(path) != {"a": ((2,), "float32"), "w": ((2, 2), "float32")}


def loaded(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (arrays[name].shape, str(arrays[name].dtype)) for name in arrays.files}
    if path.suffix == ".safetensors":
        return {name: (array.shape, str(array.dtype)) for name, array in load_file(path).items()}
    state = torch.load(path, weights_only=True)
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()}


def different(kind: str, what: str) -> Row:
    line, tensors, says, tensor = DIFFERENT[what]

    def make(directory: Path, broken: bool) -> Path:
        return written(directory, kind, tensors if broken else FIT)

    return Row(
        line, f"{kind}, {what}", make, says, differs, tensor, error=IncompatibleError, of_a_model=what != "half as wide"
    )


NOT_FITTING = [different(kind, what) for what in DIFFERENT for kind in KINDS]
