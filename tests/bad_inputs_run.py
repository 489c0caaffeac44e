"""Averages under limits that a process cannot take back, in a process of its own: see test_bad_input_limits.py.

``python bad_inputs_run.py CASE DIRECTORY`` prints a JSON object of what each part of the case ended with.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pysoup
from pysoup import _native
from pysoup.checkpoint import unpack  # noqa: F401 (loaded before the limits hold)
from pysoup.checkpoint.output import writing  # noqa: F401
from pysoup.errors import SoupError

NOBODY = 65534
Ends = dict[str, object]


def ending(call: Callable[[], object]) -> list[str]:
    """The class and the line of the error that ends ``call``; the class alone of one that is not ours."""
    try:
        call()
    except SoupError as error:
        return [type(error).__name__, str(error)]
    except BaseException as error:
        return [type(error).__name__]
    return ["done"]


def fails(call: Callable[[], object]) -> bool:
    """The oracle: whether the system refuses the same to a plain program."""
    try:
        call()
    except PermissionError:
        return True
    return False


def another_user(root: Path) -> Ends:
    """``root/NAME/`` has what to take the rights from; its owner, who is not root, does without them."""
    warm_up(root)
    if os.getuid() == 0:
        for folder, _, names in os.walk(root):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(path, NOBODY, NOBODY)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    found: Ends = {}
    for name in ("bad.safetensors", "bad.pt", "bad.bin", "bad.npz", "model", "index", "shard", "folder"):
        given, locked = root / name / name, root / name / name
        if not given.suffix:
            given = root / name / "model"
            inside = {"model": "", "index": "model.safetensors.index.json", "shard": "model-00002-of-00002.safetensors"}
            locked = given / inside[name] if name in inside else root / name
        output = root / "out" / f"{name}.safetensors"
        mode = locked.stat().st_mode
        look = os.listdir if locked.is_dir() else open
        locked.chmod(0)
        refused = fails(lambda to=locked, how=look: how(to))
        first = ending(lambda to=given, out=output: pysoup.average_checkpoints([root / "good.safetensors", to], out))
        locked.chmod(mode)
        second = ending(lambda to=given, out=output: pysoup.average_checkpoints([root / "good.safetensors", to], out))
        found[name] = [refused, first, second]
    for name, mode in (("no writing", 0o555), ("nothing", 0)):
        folder = root / "closed"
        for output in (folder / "soup.safetensors", folder / "soup.pt", folder / "soup"):
            folder.chmod(mode)
            refused = fails(lambda where=folder: os.mkdir(where / "x"))
            first = ending(lambda to=output: pysoup.average_checkpoints([root / "good.safetensors"], to))
            folder.chmod(0o755)
            second = ending(lambda to=output: pysoup.average_checkpoints([root / "good.safetensors"], to))
            found[f"{name}, {output.name}"] = [refused, first, second]
            if output.is_dir():
                for path in output.iterdir():
                    path.unlink()
                output.rmdir()
            else:
                output.unlink()
    return found


def warm_up(root: Path) -> None:
    """All that is loaded late is loaded now."""
    (root / "warm").mkdir()
    (root / "warm" / "out").mkdir()
    for given in (
        "bad.safetensors/bad.safetensors",
        "bad.pt/bad.pt",
        "bad.bin/bad.bin",
        "bad.npz/bad.npz",
        "model/model",
    ):
        pysoup.average_checkpoints([root / given], root / "warm" / "out" / f"{Path(given).name}.pt")
    pysoup.average_checkpoints([root / "model" / "model"], root / "warm" / "out" / "directory")


def small_files(root: Path) -> Ends:
    """No file may have more than 20,000 bytes, where an output has twice that, or the temporary file has."""
    inputs, out = [root / "big.safetensors", root / "big.npz"], root / "out"
    pysoup.average_checkpoints(inputs, root / "reference.safetensors")
    size = (root / "reference.safetensors").stat().st_size
    bf16 = {"dtype": "bf16"}
    limit = size * 3 // 4
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    names = ("x.safetensors", "x.pt", "x")
    found: Ends = {
        "reserved, " + n: ending(lambda to=n: pysoup.average_checkpoints(inputs[:1], out / to)) for n in names
    }
    found["unpacked"] = ending(lambda: pysoup.average_checkpoints(inputs, out / "x.safetensors", **bf16))
    found["left"] = sorted(os.listdir(out))
    found["fits"] = ending(lambda: pysoup.average_checkpoints(inputs[:1], out / "fits.safetensors", **bf16))

    def offer_nothing(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    os.posix_fallocate, os.ftruncate = offer_nothing, lambda *_: None
    for name in names:
        found["written, " + name] = ending(lambda to=name: pysoup.average_checkpoints(inputs[:1], out / to))
    found["left at last"] = sorted(os.listdir(out))
    return found


def few_descriptors(root: Path) -> Ends:
    """From as many descriptors as are needed down to none: each time the result, or one line and nothing."""
    warm_up(root)
    inputs = [
        root / "good.safetensors",
        root / "model" / "model",
        root / "bad.npz" / "bad.npz",
        root / "bad.pt" / "bad.pt",
    ]
    used = len(os.listdir("/proc/self/fd")) - 1
    found: Ends = {}
    for name in ("soup.safetensors", "soup.pt", "soup"):
        output = root / "out" / name
        for limit in range(used + 12, used - 1, -1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            _hold(limit)
            end = ending(lambda to=output: pysoup.average_checkpoints(inputs, to, overwrite=True))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            found[f"{name}, {limit - used}"] = [*end, sorted(os.listdir(root / "out"))]
    return found


def _hold(limit: int) -> None:
    """pysoup raises its soft limit as far as it may: here, no further."""
    from pysoup import average

    average._allow_descriptors = lambda files: None
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit


def stopped(root: Path, output: str) -> None:
    """Says so when it is in the middle, and stays there."""

    def wait(done: int, total: int) -> None:
        print("in the middle", flush=True)
        time.sleep(60)

    inputs = [root / "big.safetensors", root / "big.npz"]
    pysoup.average_checkpoints(inputs, output, memory="8kB", threads=1, progress=wait, overwrite=True)


if __name__ == "__main__":
    _native.load()
    case, where = sys.argv[1], Path(sys.argv[2])
    if case == "stopped":
        stopped(where, sys.argv[3])
    print(
        json.dumps(
            {"another user": another_user, "small files": small_files, "few descriptors": few_descriptors}[case](where)
        )
    )
