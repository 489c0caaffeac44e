"""What a target of the fuzzer is."""

from __future__ import annotations

import random
from pathlib import Path

from pysoup.checkpoint import Checkpoint

from .mutations import MutateBytes


class Finding(AssertionError):
    """Something that must not happen, whatever the file holds."""


class Target:
    """One kind of file. Inputs are bytes: the file itself, unless :meth:`content` makes a file of them."""

    name: str
    file_name: str
    share: int
    """Part of all runs, in percent."""
    entry = "model"
    """Of a nested file: tried where one must be chosen."""
    longest = 8192
    """Bytes of an input."""

    def seeds(self) -> list[bytes]:
        """Valid inputs of every kind, and some known to be hostile. May import what it likes."""
        raise NotImplementedError

    def mutate(self, data: bytes, rng: random.Random, other: MutateBytes) -> bytes:
        """Another input; ``other`` changes bytes without knowing what they mean."""
        raise NotImplementedError

    def prepare(self, directory: Path) -> None:
        """Put beside the file what it needs there."""

    def content(self, data: bytes) -> bytes:
        return data

    def accepted(self, path: Path, checkpoint: Checkpoint, tensors: dict[str, bytes] | None) -> None:
        """Compare with another reader. ``tensors`` are the bytes, where they are few. Raises Finding."""

    def refused(self, path: Path, reason: str) -> None:
        """Compare with another reader. Raises Finding."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise Finding(what)
