"""Bad input as rows of a table: what is wrong, the bytes made by hand, the same bytes without the fault, an oracle.

Every input holds the tensors ``a`` and ``w``; where one tensor is at fault it is ``w``. :func:`check_refused` and
:func:`check_mended` are the two halves of the promise.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import entry, raw_file
from safetensors import SafetensorError, safe_open

import pysoup
from pysoup.cli import main
from pysoup.errors import CheckpointError, SoupError

SHAPES = {"a": (2,), "w": (2, 2)}
GOOD = {"a": [1.0, 2.0], "w": [3.0, 4.0, 5.0, 6.0]}
BAD = {"a": [3.0, 6.0], "w": [7.0, 8.0, 9.0, 10.0]}
"""What the bad input holds where it is mended."""
MEAN = {"a": [2.0, 4.0], "w": [5.0, 6.0, 7.0, 8.0]}
LONGEST_LINE = 1000

HEADER = {"a": entry("F32", [2], 0, 8), "w": entry("F32", [2, 2], 8, 24)}

Make = Callable[[Path, bool], Path]
"""Makes the input in a directory, with its fault or without, and returns the path to give."""
Oracle = Callable[[Path], bool]
"""Whether the input is bad, found out without pysoup: true of the input with its fault, false of the one without."""


@dataclass(frozen=True)
class Row:
    """``line`` quotes the promise; ``says`` is a pattern of the error's line, which names ``file`` and ``tensor``."""

    line: str
    what: str
    make: Make
    says: str
    oracle: Oracle
    tensor: str | None = None
    file: str | None = None
    """The name of the file at fault, where it is not that of the path given."""
    error: type[SoupError] = CheckpointError
    of_a_model: bool = True
    """Whether it is bad for a live model too."""

    def __str__(self) -> str:
        return f"{self.line}: {self.what}"


def packed(values: dict[str, list[float]], code: str = "f") -> bytes:
    return b"".join(struct.pack(f"<{len(v)}{code}", *v) for v in values.values())


DATA = packed(BAD)


@dataclass(frozen=True)
class Place:
    """A good input, a directory for the bad one, one for the output: ``root`` holds all that is watched."""

    root: Path

    @property
    def good(self) -> Path:
        return self.root / "good.safetensors"

    @property
    def bad(self) -> Path:
        return self.root / "inputs" / "bad"

    @property
    def output(self) -> Path:
        return self.root / "out" / "soup.safetensors"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Where the working directory and that of temporary files are watched too. What blocks is an error."""
    root = tmp_path / "root"
    for name in ("inputs/bad", "out", "cwd", "tmp"):
        (root / name).mkdir(parents=True)
    monkeypatch.chdir(root / "cwd")
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    found = Place(root)
    raw_file(found.good, HEADER, packed(GOOD))
    with bounded(30):
        yield found


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raises where the block takes longer, such as for ever on a FIFO."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below ``root``: kind and mode, target of a link, identity, time and bytes of a file."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, directories, files in os.walk(root, followlinks=False):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            facts: tuple[object, ...] = (info.st_mode,)
            if stat.S_ISLNK(info.st_mode):
                facts += (os.readlink(path),)
            elif stat.S_ISREG(info.st_mode):
                facts += (info.st_ino, info.st_size, info.st_mtime_ns)
                if info.st_size < 1 << 20:
                    facts += (Path(path).read_bytes(),)
            found[os.path.relpath(path, root)] = facts
    return found


@contextmanager
def unchanged(root: Path) -> Iterator[None]:
    """Nothing below ``root`` appears, goes or changes in the block, and no descriptor stays open."""
    before, descriptors = listing(root), sorted(os.listdir("/proc/self/fd"))
    yield
    assert listing(root) == before
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def refusal(call: Callable[[], object], root: Path) -> SoupError:
    """The error of ``call``, a line fit for a terminal; nothing below ``root`` has changed."""
    with unchanged(root), pytest.raises(SoupError) as caught:
        call()
    assert_line(str(caught.value))
    return caught.value


def assert_line(text: str) -> None:
    assert text.isprintable(), text
    assert 0 < len(text) <= LONGEST_LINE, text


def model(values: dict[str, list[float]] | None = None) -> torch.nn.Module:
    """A module with the parameters ``a`` and ``w``, which no input holds unless given."""
    module = torch.nn.Module()
    for name, shape in SHAPES.items():
        data = torch.full(shape, 0.1) if values is None else torch.tensor(values[name]).reshape(shape)
        module.register_parameter(name, torch.nn.Parameter(data))
    return module


def state_bytes(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def check_refused(row: Row, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """By averages into a new file and over an old one, by a load into a model, and by the command."""
    bad = row.make(place.bad, True)
    assert row.oracle(bad), "the input is not what the row says"
    fresh = refusal(lambda: pysoup.average_checkpoints([place.good, bad], place.output), place.root)
    assert_names(row, bad, fresh)

    place.output.write_bytes(b"an old output")
    errors = [
        refusal(lambda: pysoup.average_checkpoints([place.good, bad], place.output, overwrite=True), place.root),
        refusal(lambda: pysoup.average_checkpoints([bad, place.good], place.output, overwrite=True), place.root),
        refusal(lambda: pysoup.average_checkpoints([bad], place.output, [1], overwrite=True), place.root)
        if issubclass(row.error, CheckpointError)
        else fresh,
    ]
    target = model()
    before = state_bytes(target)
    if row.of_a_model:
        errors.append(refusal(lambda: pysoup.load_soup_(target, [place.good, bad]), place.root))
        assert state_bytes(target) == before
    if issubclass(row.error, CheckpointError):
        for error in errors:
            assert_names(row, bad, error)

    with unchanged(place.root):
        code = main(["average", str(place.good), str(bad), "-o", str(place.output), "--force"])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err == f"pysoup: error: {fresh}\n"


def assert_names(row: Row, bad: Path, error: SoupError) -> None:
    text = str(error)
    assert isinstance(error, row.error), text
    assert re.search(row.says, text), text
    assert (row.file or bad.name) in text
    assert error.file is not None
    if row.tensor is not None:
        assert f"tensor {row.tensor!r}" in text
        assert error.tensor == row.tensor


def check_mended(row: Row, place: Place) -> None:
    """The same input without the fault is averaged, to the right values."""
    mended = row.make(place.bad, False)
    assert not row.oracle(mended), "the oracle calls every input bad"
    check_values(place, mended)


def check_values(place: Place, mended: Path) -> None:
    """The average of the good input and ``mended`` is the mean of what both should hold."""
    pysoup.average_checkpoints([place.good, mended], place.output)
    assert read_safetensors(place.output) == MEAN
    target = model()
    pysoup.load_soup_(target, [place.good, mended])
    assert state_bytes(target) == state_bytes(model(MEAN))


def read_safetensors(path: Path) -> dict[str, list[float]]:
    """As the safetensors library reads it."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name).ravel().tolist() for name in file.keys()}  # noqa: SIM118


def safetensors_refuses(path: Path) -> bool:
    try:
        read_safetensors(path)
    except (SafetensorError, OSError):
        return True
    return False


def torch_refuses(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.load(path, weights_only=True)
        except Exception:
            return True
    return False


def zipfile_refuses(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return True


def numpy_refuses(path: Path) -> bool:
    try:
        # Of a file that it opens itself, numpy leaves it open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                assert arrays[name].dtype.kind in "fV"
    except Exception:
        return True
    return False


def has_duplicates(text: bytes) -> bool:
    """Whether an object anywhere in the JSON has a name twice."""
    found = []

    def look(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found.append(len(dict(pairs)) != len(pairs))
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return any(found)


def leads_outside(name: str) -> bool:
    """Whether some program that unpacks below a folder would write elsewhere, Windows' included."""
    plain = name.replace("\\", "/")
    return plain[:1] == "/" or plain[1:2] == ":" or os.path.normpath(f"top/{plain}").split("/")[0] != "top"
