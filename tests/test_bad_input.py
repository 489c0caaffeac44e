"""Bad input: a clear one-line error that names file and tensor; nothing written, nothing lost.

One table for all formats. Each row says what must be in the line, and has an oracle that is not pysoup: the input is
bad by it, and the same input without the fault is not, and is averaged.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import Place, Row, check_mended, check_refused
from bad_inputs_npz import NPZ
from bad_inputs_paths import NOT_FITTING, PATHS
from bad_inputs_pickles import PICKLES
from bad_inputs_safetensors import SAFETENSORS
from bad_inputs_shards import SHARDS
from bad_inputs_torch import TORCH

import pysoup

place = bad_inputs.place
TABLE = [*SAFETENSORS, *TORCH, *PICKLES, *NPZ, *SHARDS, *PATHS, *NOT_FITTING]

ALL = {"safetensors", "torch", "npz"}
LINES: dict[str, set[str]] = {
    "missing file": ALL,
    "empty file": ALL,
    "truncated at every section": ALL,
    "header length beyond the file": ALL,
    "header length beyond 100 MB": ALL,
    "header length negative": ALL,
    "invalid JSON": ALL,
    "invalid UTF-8": ALL,
    "offsets overlapping": {"safetensors", "torch"},
    "offsets gapped": {"safetensors"},
    "offsets out of order": {"safetensors"},
    "offsets past the end": ALL,
    "unknown dtype": ALL,
    "shape x dtype overflow": ALL,
    "different names": ALL,
    "different shapes": ALL,
    "different dtypes": ALL,
    "pickle with code in it": {"torch", "npz"},
    "zip bomb sizes": {"torch", "npz"},
    "directory without an index": {"safetensors", "torch"},
    "index naming a missing shard": {"safetensors", "torch"},
    "unreadable path": ALL,
    "trailing bytes": ALL,
    "duplicate JSON names": ALL,
    ".npz with objects": {"npz"},
    "archive members that point outside": {"torch", "npz"},
    "a shard index that points outside its directory": {"safetensors", "torch"},
}
"""The promise, line by line, and the formats in which a line can be broken at all."""

HUGE = ("zip bomb sizes", "header length beyond 100 MB", "header length negative", "shape x dtype overflow")

ELSEWHERE = {
    "truncated at every byte": "test_bad_input_truncated.py: test_bad_input_truncated_at_any_byte_is_refused",
    "weights of wrong count, NaN, zero sum": "test_bad_input_weights.py: test_bad_input_weights_are_refused",
    "output equal to an input": "test_bad_input_output.py: test_bad_input_that_is_the_output_is_refused",
    "full disk (ENOSPC) while writing": "test_full_disk.py: test_disk_that_is_full_at_any_step_is_one_line",
    "unwritable path": "test_bad_input_limits.py: test_path_without_rights_is_one_line",
    "NaN/Inf in an ingredient": "test_bad_input_nonfinite.py: test_nonfinite_values_propagate_and_are_reported",
    "stale temporary files of a killed run": "test_bad_input_limits.py: test_stale_temporary_is_removed_and_never_used",
}


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_bad_input_is_one_line_and_changes_nothing(row: Row, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(row, place, capsys)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_bad_input_without_its_fault_is_averaged(row: Row, place: Place) -> None:
    check_mended(row, place)


@pytest.mark.parametrize("row", [row for row in TABLE if row.line in HUGE], ids=str)
def test_bad_input_that_claims_to_be_huge_takes_no_memory(row: Row, place: Place) -> None:
    bad = row.make(place.bad, True)
    tracemalloc.start()
    try:
        with pytest.raises(row.error):
            pysoup.average_checkpoints([bad], place.output)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_bad_input_table_has_every_line_in_every_format(tmp_path: Path) -> None:
    kinds = {".safetensors": "safetensors", ".npz": "npz", ".pt": "torch", ".bin": "torch"}
    covered: dict[str, set[str]] = {}
    for k, row in enumerate(TABLE):
        (tmp_path / str(k)).mkdir()
        mended = row.make(tmp_path / str(k), False)
        files = [mended] if mended.suffix in kinds else [*mended.glob("*"), *mended.parent.glob("*")]
        covered.setdefault(row.line, set()).update(kinds[f.suffix] for f in files if f.suffix in kinds)
    assert covered.keys() == LINES.keys()
    assert {line: formats - covered[line] for line, formats in LINES.items() if formats - covered[line]} == {}
    assert len({str(row) for row in TABLE}) == len(TABLE)


def test_bad_input_lines_with_tests_of_their_own_have_them() -> None:
    for line, where in ELSEWHERE.items():
        file, test = where.split(": ")
        assert f"def {test}" in Path(__file__).with_name(file).read_text(), line
