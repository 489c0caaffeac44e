"""Where a sweep keeps what: one folder for each kind of weights, so that a folder of checkpoints never mixes kinds.

::

    OUT/model_00.safetensors                    the weights at the end of each run, with model_00.json beside them
    OUT/earlier/model_00_at_0.5.safetensors     checkpoints on the way (or model_00_epoch_02)
    OUT/ema_0.999/model_00.safetensors          the moving average at the end, and OUT/ema_0.999/earlier/
    OUT/start/start.safetensors                 the shared start of all runs
    OUT/sweep.json                              a list of all; the folders with weights have one of their own
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .._version import __version__
from ..checkpoint.find import START, SUMMARY
from ..errors import SoupError
from ..record import Record, read_failure, read_record, write_json
from .hyperparameters import Hyperparameters

EARLIER = "earlier"
EPOCHS: Literal["epochs"] = "epochs"


@dataclass(frozen=True)
class Outputs:
    """What a run leaves besides its last weights: averages with each decay in ``ema``, and ``checkpoints`` at these
    shares of its steps, between 0 and 1, or ``"epochs"`` for one after each epoch."""

    ema: tuple[float, ...] = ()
    checkpoints: tuple[float, ...] | Literal["epochs"] = ()

    def __post_init__(self) -> None:
        for decay in self.ema:
            if not 0 < decay < 1:
                raise SoupError("ema holds decays between 0 and 1", found=decay)
        shares: Any = () if self.checkpoints == EPOCHS else self.checkpoints
        if isinstance(shares, str):
            expected = f"shares between 0 and 1, or {EPOCHS!r}"
            raise SoupError("unknown checkpoints", found=repr(shares), expected=expected)
        for share in shares:
            if not 0 < share < 1:
                raise SoupError("checkpoints are shares of the training between 0 and 1", found=share)
        for name, values in (("ema", self.ema), ("checkpoints", shares)):
            if len(set(values)) < len(values):
                raise SoupError(f"{name} names a value twice", found=values)


class Snapshot(NamedTuple):
    """Weights to save: those after ``share`` of the steps, or their average with decay ``ema``."""

    path: Path
    share: float
    ema: float | None

    def step(self, total: int) -> int:
        """After which of ``total`` steps."""
        return min(total, max(1, round(self.share * total)))


def ingredient_path(directory: Path, index: int) -> Path:
    """The weights at the end of run ``index``. At least two digits: a longer search leaves the names as they are."""
    return directory / f"model_{index:02d}.safetensors"


def start_path(directory: Path) -> Path:
    """In a folder of its own: the start is an ingredient for those who name it only."""
    return directory / START / f"{START}.safetensors"


def snapshots(directory: Path, index: int, hp: Hyperparameters, outputs: Outputs) -> list[Snapshot]:
    """All that run ``index`` saves, in the order of the steps; the last is the ingredient itself."""
    name = ingredient_path(directory, index).stem
    if outputs.checkpoints == EPOCHS:
        on_the_way = [(epoch / hp.epochs, f"{name}_epoch_{epoch:02d}") for epoch in range(1, hp.epochs)]
    else:
        shares = sorted(map(float, outputs.checkpoints))
        on_the_way = [(s, f"{name}_at_{text}") for s, text in zip(shares, _decimals(shares), strict=True)]
    found = []
    for share, stem in [*on_the_way, (1.0, name)]:
        below = "" if share == 1.0 else EARLIER
        # The averages first: a run whose ingredient is on record is complete.
        for decay in (*outputs.ema, None):
            kind = "" if decay is None else f"ema_{decay!r}"
            found.append(Snapshot(directory / kind / below / f"{stem}.safetensors", share, decay))
    return found


def _decimals(shares: Sequence[float]) -> list[str]:
    """As many decimals for all, so that names sort as the shares do: 0.25, 0.50."""
    exact = [Decimal(repr(share)) for share in shares]
    return [format(share, f".{max(-int(one.as_tuple().exponent) for one in exact)}f") for share in exact]


def write_summaries(
    directory: Path, points: Mapping[int, Hyperparameters], outputs: Outputs, shared: Mapping[str, Any]
) -> None:
    """Write ``sweep.json`` there and in each folder with weights, from the records of these runs, by number."""
    models, failed = [], []
    folders: dict[Path, list[dict[str, Any]]] = {}
    for index, hp in points.items():
        *others, last = snapshots(directory, index, hp, outputs)
        record = read_record(last.path)
        if record is None:
            failure = read_failure(last.path)
            if failure is not None:
                failed.append({"run": index, "error": failure["failed"], **hp.to_json()})
            continue
        lines = []
        for other in others:
            known = read_record(other.path)
            if known is not None:
                folders.setdefault(other.path.parent, []).append(_line(other.path.parent, other, known, hp))
                lines.append(_line(directory, other, known, hp))
        models.append({**_line(directory, last, record, hp), "checkpoints": lines})
    head = {"pysoup": __version__, **shared}
    for folder, content in folders.items():
        write_json(folder / SUMMARY, {**head, "models": content})
    write_json(directory / SUMMARY, {**head, "runs": len(points), "models": models, "failed": failed})


def _line(folder: Path, snapshot: Snapshot, record: Record, hp: Hyperparameters) -> dict[str, Any]:
    return {
        "path": snapshot.path.relative_to(folder).as_posix(),
        "score": record.score,
        "seconds": record.seconds,
        "share": snapshot.share,
        "ema": snapshot.ema,
        **hp.to_json(),
    }
