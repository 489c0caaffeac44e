"""The record beside a checkpoint: what is written is read, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pysoup.errors import OutputError, SoupError
from pysoup.record import Record, read_failure, read_record, record_path, write_failure, write_record

RECORD = Record(
    score=0.1 + 0.2,
    metric="accuracy",
    direction="max",
    heldout="ab" * 32,
    weights="cd" * 32,
    hyperparameters={"learning_rate": 1e-5, "epochs": 3},
    seed=7,
    seconds=12.5,
    details={"ema": None, "step": 40, "identity": {"start": "ef"}},
)


def test_record_reads_back_equal(tmp_path: Path) -> None:
    model = tmp_path / "model_00.safetensors"
    for record in (RECORD, replace(RECORD, heldout=None, direction="min", details={})):
        assert write_record(model, record) == tmp_path / "model_00.json"
        assert read_record(model) == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_00.json"]


def test_keys_are_the_documented_ones(tmp_path: Path) -> None:
    path = write_record(tmp_path / "m.safetensors", RECORD)
    assert json.loads(path.read_text()) == {
        "record": 1,
        "score": 0.30000000000000004,
        "metric": "accuracy",
        "direction": "max",
        "heldout": "ab" * 32,
        "weights": "cd" * 32,
        "hyperparameters": {"learning_rate": 1e-5, "epochs": 3},
        "seed": 7,
        "seconds": 12.5,
        "ema": None,
        "step": 40,
        "identity": {"start": "ef"},
    }


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("a/model.v1.safetensors", "model.v1.json"),
        ("model.pth.tar", "model.json"),
        ("model.safetensors.index.json", "model.json"),
        ("checkpoint-100", "checkpoint-100.json"),
        ("step_0.5", "step_0.5.json"),
    ],
)
def test_record_lies_beside_the_checkpoint_under_its_name(checkpoint: str, name: str) -> None:
    assert record_path(checkpoint) == Path(checkpoint).with_name(name)


def test_directory_of_one_file_has_the_record_of_that_file(tmp_path: Path) -> None:
    inside = tmp_path / "start" / "start.safetensors"
    inside.parent.mkdir()
    save_file({"w": np.zeros(2)}, inside)
    assert read_record(inside.parent) is None
    write_record(inside, RECORD)
    assert read_record(inside.parent) == RECORD
    beside = replace(RECORD, score=0.5)
    write_record(inside.parent, beside)
    assert read_record(inside.parent) == beside


def test_directory_of_several_files_has_no_record(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": np.zeros(2)}, tmp_path / f"{name}.safetensors")
        write_record(tmp_path / f"{name}.safetensors", RECORD)
    assert read_record(tmp_path) is None


CHANGES: list[dict[str, Any]] = [
    {"record": 2},
    {"score": "0.5"},
    {"score": True},
    {"score": None},
    {"metric": 3},
    {"direction": "up"},
    {"seed": 1.0},
    {"hyperparameters": []},
    {"weights": None},
    {"seconds": []},
    {"heldout": 3},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change}")
def test_file_of_another_kind_is_no_record(tmp_path: Path, change: dict[str, Any]) -> None:
    model = tmp_path / "model.safetensors"
    path = write_record(model, RECORD)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_record(model) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"architectures": ["Bert"]}', "\x00", "[" * 100_000])
def test_text_that_is_none_of_ours_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    assert read_record(tmp_path / "model.safetensors") is None
    assert read_failure(tmp_path / "model.safetensors") is None


@pytest.mark.parametrize("key", ["score", "metric", "heldout", "weights", "seed"])
def test_record_without_a_key_is_none(tmp_path: Path, key: str) -> None:
    model = tmp_path / "model.safetensors"
    path = write_record(model, RECORD)
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    assert read_record(model) is None


def test_absent_record_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path / "model.safetensors") is None
    assert read_record(tmp_path / "nowhere" / "model.safetensors") is None


def test_failure_is_no_record_and_a_record_no_failure(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    write_failure(model, "out of memory", {"run": 3})
    assert read_record(model) is None
    assert read_failure(model) == {"record": 1, "failed": "out of memory", "run": 3}
    write_record(model, RECORD)
    assert read_record(model) == RECORD
    assert read_failure(model) is None


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(SoupError, match="finite"):
        replace(RECORD, score=score)


def test_detail_may_not_hide_a_field() -> None:
    with pytest.raises(SoupError, match="a detail has the name of a field: found seed"):
        replace(RECORD, details={"seed": 3})


def test_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"model\.json: cannot write"):
        write_record(tmp_path / "absent" / "model.safetensors", RECORD)


def test_reading_records_needs_no_torch() -> None:
    code = "import sys, pysoup.record; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
