"""A file that ends anywhere before its end is an error in every format: never a result, never another exception."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import (
    Make,
    Oracle,
    Place,
    assert_line,
    check_values,
    listing,
    model,
    numpy_refuses,
    safetensors_refuses,
    state_bytes,
    torch_refuses,
)
from bad_inputs_npz import npz
from bad_inputs_safetensors import safetensors
from bad_inputs_shards import index_fails, shards
from bad_inputs_torch import archive, legacy

import pysoup
from pysoup.errors import CheckpointError

place = bad_inputs.place

Cut = Callable[[Path], Path]


def itself(path: Path) -> Path:
    return path


def within(name: str) -> Cut:
    return lambda path: path / name


CASES: dict[str, tuple[Make, Cut, Oracle]] = {
    "safetensors": (safetensors(), itself, safetensors_refuses),
    "torch zip": (archive(), itself, torch_refuses),
    "torch legacy": (legacy(), itself, torch_refuses),
    "npz": (npz(), itself, numpy_refuses),
    "npz, deflated": (npz(deflated=True), itself, numpy_refuses),
    "shard": (shards(), within("model-00002-of-00002.safetensors"), safetensors_refuses),
    "torch shard": (shards(suffix="bin"), within("model-00002-of-00002.bin"), torch_refuses),
    "index": (shards(), within("model.safetensors.index.json"), lambda path: index_fails(path.parent)),
    "torch index": (
        shards(suffix="bin"),
        within("pytorch_model.bin.index.json"),
        lambda path: index_fails(path.parent),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_truncated_at_any_byte_is_refused(case: str, place: Place) -> None:
    make, inside, oracle = CASES[case]
    given = make(place.bad, False)
    check_values(place, given)
    place.output.unlink()
    cut = inside(given)
    raw = cut.read_bytes()
    target = model()
    before = state_bytes(target)
    for length in reversed(range(len(raw))):
        os.truncate(cut, length)
        with pytest.raises(CheckpointError) as caught:
            pysoup.average_checkpoints([place.good, given], place.output)
        assert_line(str(caught.value))
        assert str(cut) in str(caught.value)
        assert os.listdir(place.output.parent) == []
        assert cut.read_bytes() == raw[:length]
        assert oracle(cut), length
        if length % 8 == 0:
            with pytest.raises(CheckpointError):
                pysoup.load_soup_(target, [place.good, given])
    assert state_bytes(target) == before
    assert set(listing(place.root)) == {
        *("inputs", "inputs/bad", "out", "cwd", "tmp", "good.safetensors", str(cut.relative_to(place.root))),
        *(str(p.relative_to(place.root)) for p in (given, *given.glob("*"))),
    }
