"""Which format an output has: told by its suffix, as it is for inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..index import FOREIGN_SUFFIXES, SUFFIX, SUFFIXES
from .layout import Layout, Placement
from .safetensors_layout import SafetensorsPlacement
from .torch_layout import TorchPlacement

_PLACEMENTS: dict[str, type[Placement]] = {SUFFIX: SafetensorsPlacement, ".pt": TorchPlacement, ".pth": TorchPlacement}
OUTPUT_SUFFIXES = tuple(_PLACEMENTS)
"""Of an output that is one file; a directory holds safetensors files."""
WEIGHT_SUFFIXES = (*SUFFIXES, *FOREIGN_SUFFIXES, ".json")
"""Of names that nobody gives a directory of weights."""


def place(
    output: Path, layout: Layout, metadata: Mapping[str, str], aliases: Mapping[str, str], is_directory: bool
) -> Placement:
    """The placement of ``layout`` in the format of ``output``; a suffix that no format has is refused elsewhere."""
    kind = SafetensorsPlacement if is_directory else _PLACEMENTS.get(output.suffix, SafetensorsPlacement)
    return kind(output, layout, metadata, aliases, is_directory)


def is_directory_output(output: str | os.PathLike[str], directory_input: bool) -> bool:
    """Whether ``output`` names a directory.

    Never with the suffix of a weight file, written or not; else where a directory is there, where there is no suffix,
    or where the first input is a directory too (``soup.v2``).
    """
    path = Path(output)
    if path.name.endswith(WEIGHT_SUFFIXES):
        return False
    return directory_input or path.suffix == "" or path.is_dir()
