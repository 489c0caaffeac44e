"""The shared start of a sweep: the pre-trained model with a head, made once and kept in ``OUT/start/``.

The head is trained by a linear probe (LP, the paper's default), set by the task (zero-shot), or left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..checkpoint import open_checkpoint, save_state_dict
from ..errors import OutputError, SoupError
from ..evaluate import Forward, HeldOut, Metric, evaluate
from ..fingerprint import fingerprint_data, fingerprint_file
from ..progress import StepProgress
from ..record import Record, read_record, record_path, write_record
from .layout import start_path
from .plan import Start
from .train import linear_probe
from .trainer import heldout_fingerprint, make_directory


def prepare_start(
    directory: Path,
    model: nn.Module,
    data: Any,
    heldout: HeldOut,
    metric: Metric,
    start: Start,
    *,
    data_identity: str,
    forward: Forward | None = None,
    zero_shot: Callable[[nn.Module], Any] | None = None,
    overwrite: bool = False,
    progress: StepProgress | None = None,
) -> Record:
    """Turn ``model`` into the start: read if it is there and made from the same, else made, scored and saved.

    Raises :class:`OutputError` for a start made from something else, unless ``overwrite``.
    """
    path = start_path(directory)
    probed = start.head == "probe"
    identity = {
        "base": fingerprint_data(model.state_dict()),
        "head": start.head,
        "module": start.module if probed else None,
        "probe": start.hyperparameters.to_json() if probed else None,
        "train": data_identity if probed else None,
    }
    known = read_record(path)
    if known is not None and path.exists():
        differing = [key for key in identity if known.details.get("identity", {}).get(key) != identity[key]]
        if not differing:
            model.load_state_dict(open_checkpoint(path).state_dict())
            return known
        if not overwrite:
            what = f"the start was made from another {_NAMES[differing[0]]}; another directory or --force"
            raise OutputError(what, file=path)
    began = time.perf_counter()
    if probed:
        if start.module is None:
            raise SoupError("the linear probe needs the name of the head; the task's `head`, or [start] module")
        linear_probe(
            model, data, head=start.module, hyperparameters=start.hyperparameters, forward=forward, progress=progress
        )
    elif start.head == "zero_shot":
        if zero_shot is None:
            raise SoupError("the task has no zero_shot(model) to set the head")
        zero_shot(model)
    seconds = time.perf_counter() - began
    make_directory(path.parent)
    record_path(path).unlink(missing_ok=True)
    save_state_dict(model.state_dict(), path, metadata={"format": "pt"}, overwrite=True)
    record = Record(
        score=evaluate(model, heldout, metric),
        metric=metric.name,
        direction=metric.direction,
        heldout=heldout_fingerprint(heldout),
        weights=fingerprint_file(path),
        hyperparameters=start.hyperparameters.to_json() if probed else {},
        seed=start.hyperparameters.seed,
        seconds=round(seconds, 3),
        details={"identity": identity, "torch": str(torch.__version__), "pysoup": __version__},
    )
    write_record(path, record)
    return record


_NAMES = {
    "base": "model",
    "head": "kind of head",
    "module": "head",
    "probe": "probe",
    "train": "training data",
}
