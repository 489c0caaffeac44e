"""Rows of pickles that run code, or cost memory, where a plain unpickler reads them: in both of torch's formats."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path

from bad_inputs import Make, Row, torch_refuses
from bad_inputs_torch import Parts, archive, both, legacy
from torch_files import call, named, text, tuple_of


def pickles(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as file:
        return file.read("m/data.pkl")


class _Running(pickle.Unpickler):
    def persistent_load(self, pid: object) -> object:
        return None


def runs_code(path: Path) -> bool:
    """Whether Python's own unpickler runs the code in the file, which makes a canary beside it."""
    canary = path.with_name("canary")
    stream = io.BytesIO(pickles(path))
    with contextlib.suppress(Exception):
        for _ in range(5):
            _Running(stream).load()
    found = os.path.lexists(canary)
    canary.unlink(missing_ok=True)
    return found and torch_refuses(path)


def code(body: Callable[[str], bytes], protocol: int = 2, whole: bool = False) -> list[tuple[str, Make]]:
    """A pickle whose first value makes the canary when loaded, in both formats; ``whole``: there is nothing else."""

    def make(kind: str) -> Make:
        def made(directory: Path, broken: bool) -> Path:
            evil = body(f"{directory / 'canary'}") if broken else b""
            good = Parts(first={"evil": evil} if broken and not whole else {}).tree(kind == "legacy")
            stream = b"\x80" + bytes((protocol,)) + (evil if broken and whole else good) + b"."
            return (archive if kind == "zip" else legacy)(body=stream)(directory, broken)

        return made

    return [(kind, make(kind)) for kind in ("zip", "legacy")]


TOUCH = "__import__('pathlib').Path('{}').touch()"


def os_system(path: str) -> bytes:
    return call("posix", "system", text(f"touch '{path}'"))


def stack_global(module: str, name: str, *args: bytes) -> bytes:
    return text(module) + text(name) + b"\x93" + tuple_of(*args) + b"R"


CODE: dict[str, tuple[Callable[[str], bytes], int, str]] = {
    "os.system": (os_system, 2, "calls posix.system, which is not data: refused"),
    "builtins.exec": (lambda p: call("builtins", "exec", text(TOUCH.format(p))), 2, "builtins.exec"),
    "builtins.eval of Python 2": (lambda p: call("__builtin__", "eval", text(TOUCH.format(p))), 2, "builtins.eval"),
    "os.symlink": (lambda p: call("os", "symlink", text("x"), text(p)), 2, "os.symlink"),
    "by STACK_GLOBAL": (lambda p: stack_global("os", "system", text(f"touch '{p}'")), 4, "os.system"),
    "by the attribute of an allowed module": (
        lambda p: stack_global("pathlib", "os.system", text(f"touch '{p}'")), 4, "pathlib.os.system",
    ),
    "by the attribute of torch": (
        lambda p: stack_global("torch.serialization", "os.system", text(f"touch '{p}'")), 4, "serialization.os.system",
    ),
    "by INST": (lambda p: b"(" + text(f"touch '{p}'") + b"iposix\nsystem\n", 2, "INST"),
    "by OBJ": (lambda p: b"(" + named("posix", "system") + text(f"touch '{p}'") + b"o", 2, "posix.system|OBJ"),
    "by partial": (
        lambda p: call("functools", "partial", named("posix", "system"), text(f"touch '{p}'")) + b")R", 2,
        "functools.partial",
    ),
}  # fmt: skip


def uses_a_large_memo(path: Path) -> bool:
    """Whether a pickle writes to a place in its memo beyond a million: CPython allocates all before it."""
    stream = io.BytesIO(pickles(path))
    found = False
    with contextlib.suppress(ValueError):
        while True:
            found |= any(op.name == "LONG_BINPUT" and arg > 10**6 for op, arg, _ in pickletools.genops(stream))
    return found


PICKLES = [
    *(
        Row("pickle with code in it", f"torch {kind}, {name}", make, says, runs_code)
        for name, (body, protocol, says) in CODE.items()
        for kind, make in code(body, protocol)
    ),
    *(
        Row("pickle with code in it", f"torch {kind}, and nothing else", make, "posix.system", runs_code)
        for kind, make in code(os_system, whole=True)
    ),
    *both(
        "zip bomb sizes", "memo of four thousand million entries", "memo 4294967280", uses_a_large_memo,
        first={"evil": b"}r\xf0\xff\xff\xff"},
    ),
]  # fmt: skip
