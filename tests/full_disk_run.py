"""Writes outputs onto a disk that is too small, in a process of its own: see test_full_disk.py.

``python full_disk_run.py DISK SOURCE`` prints a JSON object: case -> error text. Each case leaves an old output as it
was, or dies with an AssertionError.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter
from pysoup.checkpoint.output import writer
from pysoup.errors import OutputError

U8 = dtypes.BY_NAME["U8"]
LARGE = [("model.safetensors", [("w", U8, (4 << 20,))])]
SMALL = [("model.safetensors", [("w", U8, (64,))])]
FITTING = [("model.safetensors", [(f"{i}", U8, (64,)) for i in range(500)])]
MANY_NAMES = [("model.safetensors", [(f"{i}" + "x" * 1000, U8, (1,)) for i in range(2000)])]


def unsupported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "not supported")


def unchecked(reserving: bool = True) -> None:
    """As when the space goes after the check, or the filesystem cannot reserve it."""
    writer.check_space = lambda *_: None
    if not reserving:
        os.posix_fallocate = unsupported


def write(target: Path, layout: list, fill: Path | None = None, **options: object) -> None:
    is_directory = target.suffix == ""
    with CheckpointWriter(target, layout, is_directory=is_directory, overwrite=True, **options) as output:
        for _, tensors in layout:
            for name, _, shape in tensors[:1]:
                output.write_bytes(name, bytes(shape[0]))
        if fill is not None:
            fill_up(fill)
        output.commit()


def fill_up(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def cases(disk: Path, source: Path) -> dict[str, Callable[[], None]]:
    """In order: what the first ones switch off stays off."""
    found: dict[str, Callable[[], None]] = {}
    targets = {name: disk / name for name in ("m.safetensors", "m.pt", "d")}
    for name, target in targets.items():
        found[f"told before: {name}"] = lambda t=target: write(t, LARGE)
    found["told before: carried files"] = lambda: write(targets["d"], SMALL, carry=source)
    for name, target in targets.items():
        found[f"reserving: {name}"] = lambda t=target: (unchecked(), write(t, LARGE))
    found["carried files"] = lambda: write(targets["d"], SMALL, carry=source)
    found["given files"] = lambda: write(targets["d"], SMALL, files={"README.md": bytes(2 << 20)})
    for name, target in targets.items():
        found[f"header: {name}"] = lambda t=target: (unchecked(reserving=False), write(t, MANY_NAMES))
    for name, target in targets.items():
        found[f"data: {name}"] = lambda t=target: write(t, LARGE)
    found["checksums: m.pt"] = lambda: write(targets["m.pt"], FITTING, fill=disk / "other")
    return found


def main(disk: Path, source: Path) -> dict[str, str]:
    (source / "config.json").write_bytes(bytes(2 << 20))
    (disk / "d").mkdir()
    old = dict.fromkeys((disk / "m.safetensors", disk / "m.pt", disk / "d" / "model.safetensors"), b"old")
    for path, content in old.items():
        path.write_bytes(content)
    told = {}
    for name, run in cases(disk, source).items():
        try:
            run()
        except OutputError as error:
            told[name] = str(error)
        (disk / "other").unlink(missing_ok=True)
        assert {path: path.read_bytes() for path in old} == old, name
        assert sorted(os.listdir(disk)) == ["d", "m.pt", "m.safetensors"], name
        assert os.listdir(disk / "d") == ["model.safetensors"], name
        assert shutil.disk_usage(disk).free > 900_000, name
    return told


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
