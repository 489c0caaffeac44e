"""Grids of one hyperparameter, found by the records beside checkpoints, and the averages of their ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import function_task
import pytest
from function_task import Blobs, accuracy, average, logits_of, pool
from torch import Tensor

from pysoup.analysis import figures_functions
from pysoup.analysis.grids import Grid, find_grids, grid_ends
from pysoup.analysis.orders import MEAN_SHIFT
from pysoup.analysis.sets import Sets
from pysoup.checkpoint import save_state_dict
from pysoup.cli import main
from pysoup.errors import SoupError
from pysoup.record import Record, write_record

BASE: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 4, "augment_ops": 0, "augment_magnitude": 0, "mixup": 0.0}


def record(**changed: Any) -> Record:
    return Record(0.5, "accuracy", "max", None, "w", {**BASE, **changed}, changed.get("seed", 0), 1.0)


@pytest.fixture(scope="module")
def models() -> list[dict[str, Tensor]]:
    return pool(4)


@pytest.fixture(scope="module")
def folder(models: list[dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    rates = (1e-3, 1e-2, 1e-4, 1e-3)
    for number, (state, rate) in enumerate(zip(models, rates, strict=True)):
        path = folder / f"m{number}.safetensors"
        save_state_dict(state, path)
        write_record(path, record(learning_rate=rate, seed=number, epochs=4 + (number == 3)))
    return folder


def test_models_that_differ_in_one_hyperparameter_are_a_grid() -> None:
    records = [
        record(learning_rate=1e-3),
        record(learning_rate=1e-5),
        record(learning_rate=1e-4, seed=7),
        record(learning_rate=1e-4, seed=8),  # the same value again
        record(learning_rate=1e-6, epochs=8),  # another epoch count
        None,
    ]
    assert find_grids(records) == [Grid("learning rate", [1, 2, 0], [1e-5, 1e-4, 1e-3])]


def test_strengths_of_augmentation_are_one_grid() -> None:
    records = [
        record(augment_ops=2, augment_magnitude=15),
        record(),
        record(augment_ops=1, augment_magnitude=9),
        record(mixup=0.5),
    ]
    (grid,) = find_grids(records)
    assert grid.varied == "augmentation"
    assert grid.members == [1, 3, 2, 0]  # magnitude, ops and mixup, in the order of their names


def test_two_models_and_random_searches_are_no_grid() -> None:
    assert find_grids([record(learning_rate=1e-3), record(learning_rate=1e-4)]) == []
    assert find_grids([record(learning_rate=10.0**-n, epochs=n) for n in range(5)]) == []


@pytest.mark.parametrize("name", ["heldout", "clean", "noisy"])
def test_the_ends_are_averaged_and_the_best_single_model_is_of_that_set(
    models: list[dict[str, Tensor]], folder: Path, name: str
) -> None:
    found = grid_ends(Sets(Blobs()), folder)
    (grid,) = found.grids
    assert (grid.members, grid.values) == ([2, 0, 1], [1e-4, 1e-3, 1e-2])
    data = Blobs().heldout() if name == "heldout" else Blobs().tests()[name]
    singles = [accuracy(*logits_of(models[index], data)) for index in grid.members]
    both = accuracy(*logits_of(average([models[2], models[1]]), data))
    assert grid.singles[name] == singles
    assert grid.average[name] == both
    assert grid.gain(name, "max") == pytest.approx(both - max(singles))
    assert found.wins(name) == (both > max(singles))


def test_a_loss_wins_where_it_is_lower(folder: Path) -> None:
    found = grid_ends(Sets(Blobs()), folder, metric="nll")
    (grid,) = found.grids
    assert grid.best("clean", found.direction) == min(grid.singles["clean"])
    assert found.wins("clean") == (grid.average["clean"] < min(grid.singles["clean"]))


def test_no_grid_is_an_error(models: list[dict[str, Tensor]]) -> None:
    with pytest.raises(SoupError, match="no 3 of the checkpoints differ in one hyperparameter alone"):
        grid_ends(Sets(Blobs()), models)


def test_the_diagonal_of_the_figure_is_in_view(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures_functions, "save_figure", lambda figure, path: drawn.append(figure))
    figures_functions.grids_figure(grid_ends(Sets(Blobs()), folder), "g.svg")
    (figure,) = drawn
    assert all(axes.get_xlim() == axes.get_ylim() for axes in figure.axes)


def test_the_command_prints_writes_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, figure = tmp_path / "g.json", tmp_path / "g.svg"
    task = f"{function_task.__file__}:Blobs"
    args = ["analyze", "grids", str(folder), "--task", task, "-o", str(output), "--figure", str(figure)]
    assert main(args) == 0
    assert "learning rate" in capsys.readouterr().out
    known = json.loads(output.read_text())
    assert known["grids"][0]["varied"] == "learning rate"
    assert MEAN_SHIFT in known["wins"]
    assert "Average of its two ends" in figure.read_text()
