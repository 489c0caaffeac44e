"""What is on disk: formats, index files, validation, the writer. Imports neither torch nor numpy.

Reading: :func:`open_checkpoint` checks every header in full and then hands out names, shapes and byte ranges.
Writing: :class:`CheckpointWriter` reserves the output beside its target and publishes it by one rename.
"""

from __future__ import annotations

from .agree import (
    DTypeDifference,
    agreement,
    align_names,
    align_names_to,
    dtype_differences,
    duplicate_inputs,
    refuse_scaled_f8,
    require_same,
)
from .checkpoint import Checkpoint, TensorEntry, open_checkpoint
from .index import natural_key
from .output.preflight import output_error
from .output.save import save_state_dict
from .output.writer import CheckpointWriter
from .reading import read_exactly
from .select import left_out_note, select_names

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "DTypeDifference",
    "TensorEntry",
    "agreement",
    "align_names",
    "align_names_to",
    "dtype_differences",
    "duplicate_inputs",
    "left_out_note",
    "natural_key",
    "open_checkpoint",
    "output_error",
    "read_exactly",
    "refuse_scaled_f8",
    "require_same",
    "save_state_dict",
    "select_names",
]
