"""The shared start of all ingredients: pre-trained to convergence, then a linear probe for the ten digits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import open_checkpoint, save_state_dict
from ..errors import SoupError
from ..finetune import Hyperparameters, fine_tune, linear_probe
from ..fingerprint import fingerprint_data
from ..progress import StepProgress
from .data import GLYPH_CLASSES, Data
from .images import pretraining_augment
from .network import DigitNet

PRETRAINING = Hyperparameters(learning_rate=3e-3, weight_decay=0.05, epochs=100, batch_size=128)
PROBE = Hyperparameters(learning_rate=1e-2, weight_decay=1e-4, epochs=60, batch_size=64)
_SEED = 0
_KEY = "pysoup.demo.start"


def make_start(
    path: Path,
    pretraining: Data,
    train: Data,
    *,
    pretraining_hp: Hyperparameters = PRETRAINING,
    progress: StepProgress | None = None,
) -> Mapping[str, Tensor]:
    """The state dict of the start, written to ``path`` too; read from there if it was made from the same before."""
    identity = hashlib.sha256(f"{fingerprint_data([pretraining, train])} {pretraining_hp} {PROBE}".encode()).hexdigest()
    known = _read(path, identity)
    if known is not None:
        return known
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = DigitNet(len(GLYPH_CLASSES))
        fine_tune(
            model,
            pretraining,
            pretraining_hp,
            augment=pretraining_augment,
            progress=progress,
        )
        # The task has other classes: a new head, which the probe trains before anything else moves.
        model.head = nn.Linear(model.head.in_features, 10)
        linear_probe(model, train, head="head", hyperparameters=PROBE)
    start = model.state_dict()
    save_state_dict(start, path, metadata={"format": "pt", _KEY: identity}, overwrite=True)
    return start


def _read(path: Path, identity: str) -> Mapping[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        checkpoint = open_checkpoint(path)
        return checkpoint.state_dict() if checkpoint.metadata.get(_KEY) == identity else None
    except SoupError:
        # Whatever it is, it is not a start of ours: made again.
        return None
