"""Bad input: a clear one-line error that names file and tensor; nothing written, nothing lost."""

from __future__ import annotations

import bad_inputs
import pytest
from bad_inputs import Place, Row, check_mended, check_refused
from bad_inputs_safetensors import SAFETENSORS
from bad_inputs_torch import TORCH
from bad_inputs_npz import NPZ
from bad_inputs_paths import NOT_FITTING, PATHS
from bad_inputs_shards import SHARDS

place = bad_inputs.place
TABLE = [*SAFETENSORS, *TORCH, *NPZ, *SHARDS, *PATHS, *NOT_FITTING]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_bad_input_is_one_line_and_changes_nothing(row: Row, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(row, place, capsys)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_bad_input_without_its_fault_is_averaged(row: Row, place: Place) -> None:
    check_mended(row, place)
