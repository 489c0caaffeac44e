"""What one file holds: the columns that every format's reader fills, and nothing about the format itself."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .reading import FileStamp

METADATA_RECORD = "pysoup.json"
"""The record of our own torch files that holds the metadata, an object of strings; torch ignores it."""


class Strided(NamedTuple):
    """A tensor whose elements are in the file, but not in C order and next to each other.

    ``strides`` are in elements, >= 0, one a dimension; ``span`` is the count of bytes from the first element to the
    end of the last, which the reader has checked to lie within the file.
    """

    strides: tuple[int, ...]
    span: int


class Deflated(NamedTuple):
    """A tensor in a deflate stream (RFC 1951) of ``size`` bytes, after ``skip`` bytes of other output.

    The stream must give exactly ``skip`` bytes and the tensor's. ``strides``, in elements, where these are not in
    C order; they are then the bytes from the first element to the end of the last. ``crc`` is the CRC-32 of the whole
    output, if known.
    """

    size: int
    skip: int
    strides: tuple[int, ...] | None = None
    crc: int | None = None


class Piece(NamedTuple):
    """A box of a tensor: of ``sizes``, from the element ``corner`` on, from byte ``offset`` of the file at ``path``.

    In C order, or with ``strides`` in elements. ``stamp`` is that of the file when its headers were checked.
    """

    path: Path
    stamp: FileStamp
    offset: int
    corner: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...] | None


@dataclass(frozen=True, eq=False, slots=True)
class Pieces:
    """A tensor in boxes, which fill it without overlap, sorted by their corners; about 300 bytes a box.

    Equal only to itself: there may be thousands of boxes.
    """

    boxes: tuple[Piece, ...]


Form: TypeAlias = Strided | Deflated | Pieces


@dataclass(slots=True)
class Contents:
    """One valid file: parallel columns; about 60 bytes a tensor besides its name.

    ``format`` is ``"safetensors"``, ``"torch"``, ``"torch-legacy"``, ``"npz"`` or ``"dcp"``. ``dtypes`` holds indices
    into :data:`pysoup.dtypes.ALL`; ``begins`` are absolute file offsets in bytes. ``forms`` tells, by position, which
    tensors are not simply their bytes in C order from there on. ``digest`` is of what describes the tensors, and
    comparable within one process only. ``aliases`` (alias -> stored name) are names tied by the file itself.
    ``entry`` is the path of the state dict in a nested file (``""``: the file is one), ``dropped`` what else it
    holds.
    """

    path: Path
    format: str
    stamp: FileStamp
    digest: int
    names: list[str] = field(default_factory=list)
    dtypes: array[int] = field(default_factory=lambda: array("B"))
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    begins: array[int] = field(default_factory=lambda: array("Q"))
    forms: dict[int, Form] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    entry: str = ""
    dropped: list[str] = field(default_factory=list)
