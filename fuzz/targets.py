"""All targets, by name."""

from __future__ import annotations

from .distributed import Distributed
from .headers import Headers
from .indexes import Indexes
from .npz_files import Npz
from .target import Target
from .torch_files import LegacyTorch, Pickles, TorchArchives

_ALL: tuple[Target, ...] = (Headers(), Indexes(), TorchArchives(), Pickles(), LegacyTorch(), Npz(), Distributed())
TARGETS = {target.name: target for target in _ALL}
