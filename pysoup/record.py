"""What is known of one checkpoint, in a JSON file beside it: ``model_00.json`` for ``model_00.safetensors``.

``pysoup finetune`` writes it, the recipes read it: a score that was measured on the same held-out set with the same
metric need not be measured again. ``model_00.margins.npy`` may stand beside it, with what tells hard samples from easy
ones. Needs no torch, and numpy for margins alone. Every write is whole or absent.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from .checkpoint.find import stem
from .checkpoint.index import resolve
from .checkpoint.output.publish import publish_file, remove, remove_stale, temporary_path
from .errors import CheckpointError, OutputError, SoupError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMAT = 1
"""The value of the key ``record``; a file without it is not ours."""

_NUMBERS = (int, float)
_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Record:
    """The facts about one checkpoint.

    ``score`` is its held-out score by ``metric``, whose better ``direction`` is ``"max"`` or ``"min"``; ``heldout`` is
    the fingerprint of that held-out set (:attr:`pysoup.HeldOut.fingerprint`) and ``weights`` the fingerprint of the
    checkpoint (:func:`pysoup.fingerprint.fingerprint_file`): the score holds where both agree. ``seconds`` is the
    time of its training. ``details`` is whatever else the file holds (``step``, ``ema``, ``identity``, ...).
    """

    score: float
    metric: str
    direction: Literal["max", "min"]
    heldout: str | None
    weights: str
    hyperparameters: Mapping[str, Any]
    seed: int
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise SoupError("a recorded score must be finite", found=self.score)
        if self.direction not in ("max", "min"):
            raise SoupError("a record needs a direction", found=repr(self.direction), expected="'max' or 'min'")
        if taken := sorted(self.details.keys() & (_FIELDS | {"record", "failed"})):
            raise SoupError("a detail has the name of a field", found=taken[0])

    def to_json(self) -> dict[str, Any]:
        """All in one object, ready for JSON."""
        fields = {name: getattr(self, name) for name in _ORDER}
        return {"record": FORMAT, **fields, "hyperparameters": dict(self.hyperparameters), **self.details}


_ORDER = ("score", "metric", "direction", "hyperparameters", "seed", "seconds", "heldout", "weights")
_FIELDS = frozenset(_ORDER)


def record_path(checkpoint: str | os.PathLike[str]) -> Path:
    """Where the record of a weight file or of a model's directory is: beside it, under its name."""
    path = Path(checkpoint)
    return path.with_name(f"{stem(path.name)}.json")


def read_record(checkpoint: str | os.PathLike[str]) -> Record | None:
    """The record of ``checkpoint``; None where there is none, it is of another kind, or it says that a run failed.

    A directory with one weight file and no record beside it has that file's.
    """
    known = read_json(record_path(checkpoint))
    if known is None and (file := _only_file(Path(checkpoint))) is not None:
        known = read_json(record_path(file))
    if known is None or known.get("record") != FORMAT or not known.keys() >= _FIELDS:
        return None
    texts = (known["metric"], known["weights"], known["direction"])
    numbers = (known["score"], known["seconds"])
    fitting = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, _NUMBERS) and not isinstance(number, bool) for number in numbers)
        and isinstance(known["hyperparameters"], dict)
        and isinstance(known["heldout"], (str, type(None)))
        and type(known["seed"]) is int
        and known["direction"] in ("max", "min")
        and math.isfinite(known["score"])
    )
    if not fitting:
        return None
    return Record(
        score=float(known["score"]),
        metric=known["metric"],
        direction=cast(Literal["max", "min"], known["direction"]),
        heldout=known["heldout"],
        weights=known["weights"],
        hyperparameters=known["hyperparameters"],
        seed=known["seed"],
        seconds=float(known["seconds"]),
        details={key: value for key, value in known.items() if key not in _FIELDS and key not in ("record", "failed")},
    )


def _only_file(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    try:
        files = resolve(path).files
    except CheckpointError:
        return None
    return files[0] if len(files) == 1 else None


def write_record(checkpoint: str | os.PathLike[str], record: Record) -> Path:
    """Write ``record`` beside ``checkpoint``, in place of an older one; returns where. Raises OutputError."""
    path = record_path(checkpoint)
    write_json(path, record.to_json())
    return path


def read_failure(checkpoint: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What :func:`write_failure` left: an object with one line under ``failed``; None where there is no such record."""
    known = read_json(record_path(checkpoint))
    if known is None or known.get("record") != FORMAT or not isinstance(known.get("failed"), str):
        return None
    return known


def write_failure(checkpoint: str | os.PathLike[str], line: str, details: Mapping[str, Any]) -> Path:
    """Record that the run which should have made ``checkpoint`` failed, with the reason in one line."""
    path = record_path(checkpoint)
    write_json(path, {"record": FORMAT, "failed": line, **details})
    return path


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None where there is none, or something that is not one."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        content = json.loads(raw) if len(raw) <= _MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def margins_path(checkpoint: str | os.PathLike[str]) -> Path:
    """Where the margins of a weight file are: beside its record."""
    path = record_path(checkpoint)
    return path.with_name(f"{path.stem}.margins.npy")


def write_margins(checkpoint: str | os.PathLike[str], margins: npt.NDArray[np.float32]) -> None:
    """Write down for each sample of the record's held-out set how clearly the model is right: the label's logit less
    the best other one, f32 ``[N]``. Before the record itself, which vouches for it. Raises OutputError."""
    import numpy as np

    _write(margins_path(checkpoint), lambda file: np.save(file, margins, allow_pickle=False))


def read_margins(checkpoint: str | os.PathLike[str], samples: int) -> npt.NDArray[np.float32] | None:
    """The margins of so many samples; None where there are none, or the file holds something else.

    They only decide which samples are looked at first, so they are taken at their word.
    """
    import numpy as np

    try:
        # Not numpy.load, which also takes archives, and has errors of their own for broken ones.
        margins = np.lib.format.open_memmap(margins_path(checkpoint), mode="r")
        return np.array(margins) if margins.dtype == np.float32 and margins.shape == (samples,) else None
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside ``path``, flush and rename onto it. Raises OutputError."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    _write(path, lambda file: file.write(text.encode()))


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    temporary = temporary_path(path)
    try:
        remove_stale(path)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        publish_file(temporary, path, overwrite=True)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", file=path) from error
    finally:
        remove(temporary)
