"""What a report finds in directories, and the rows of its Table 3."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from report_runs import TESTS, evaluation, step, write_evaluations, write_recipe, write_run

from pysoup.errors import SoupError
from pysoup.report.collect import collect
from pysoup.report.content import Content, Row
from pysoup.report.methods import columns, cost_text, ingredients_text, values

NAMES = [f"sweep/model_{i:02d}.safetensors" for i in range(4)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", NAMES)
    return tmp_path / "run"


def rows(content: Content) -> dict[str, Row]:
    return {row.label: row for row in content.rows}


def test_rows_are_those_of_the_papers_table(run: Path) -> None:
    content = collect([run])
    assert [row.label for row in content.rows] == [
        "Best individual model",
        "Second best model",
        "Uniform soup",
        "Greedy soup",
        "Greedy soup (random order, 2 orders)",
        "Learned soup (by layer)",
        "Ensemble",
        "Greedy ensemble",
    ]
    assert columns(content) == ["heldout", "test", "mean of shifts", "sketch", "noise"]


def test_single_models_are_chosen_by_the_heldout_set_alone(run: Path) -> None:
    found = rows(collect([run]))
    # The worst of all on every test set.
    assert found["Best individual model"].detail == "model_00"
    assert found["Second best model"].detail == "model_01"
    best = found["Best individual model"]
    assert (best.heldout, best.tests["test"]) == (0.9, 0.85)
    assert best.mean == pytest.approx((0.85 / 2 + 0.85 / 4) / 2)


def test_random_orders_share_a_row_with_mean_and_standard_deviation(run: Path) -> None:
    row = rows(collect([run]))["Greedy soup (random order, 2 orders)"]
    assert row.tests["test"] == pytest.approx(statistics.fmean([0.91, 0.93]))
    assert row.spread["test"] == pytest.approx(statistics.stdev([0.91, 0.93]))
    assert row.spread["sketch"] == 0


def test_only_ensembles_cost_more_than_one_model(run: Path) -> None:
    found = rows(collect([run]))
    assert {label: row.cost for label, row in found.items() if row.cost > 1} == {"Ensemble": 4, "Greedy ensemble": 2}
    assert cost_text(found["Ensemble"]) == "O(k), 4\u00d7"
    assert cost_text(found["Uniform soup"]) == "O(1), 1\u00d7"
    assert ingredients_text(found["Greedy soup"]) == "2 of 3"


def test_the_start_is_no_ingredient(run: Path) -> None:
    content = collect([run])
    assert content.start is not None
    assert [model.label for model in content.models] == [f"model_{i:02d}" for i in range(4)]


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    models = [evaluation("a", 0.5, 0.5), evaluation("b", 0.25, 0.75)]
    write_evaluations(tmp_path / "r", models, metric={"name": "nll", "direction": "min", "function": "f"})
    content = collect([tmp_path / "r"])
    assert content.rows[0].detail == "b"
    assert content.best([0.5, math.nan, None, 0.25]) == 0.25


def test_scores_of_a_soup_come_from_its_evaluation_where_there_is_one(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r" / "soup", "greedy", ["a", "b"])
    same = {"kind": "soup", "recipe": "greedy", "ingredients": ["a", "b"], "weights": [0.5, 0.5]}
    other = same | {"weights": [0.25, 0.75]}
    found = [evaluation("moved", 0.9, 0.75, **same), evaluation("other", 0.9, 0.125, **other)]
    write_evaluations(tmp_path / "r" / "scores", found)
    row = rows(collect([tmp_path / "r"]))["Greedy soup"]
    assert row.tests["test"] == 0.75
    assert row.scores["test"]["ece"] == pytest.approx(0.075)


def test_records_of_a_sweep_are_models_without_test_scores(tmp_path: Path) -> None:
    for place, name in (("sweep", "model_00"), ("sweep/ema_0.999", "model_00"), ("sweep/start", "start")):
        (tmp_path / place).mkdir(exist_ok=True)
        record = {"record": 1, "score": 0.5, "metric": "accuracy", "direction": "max", "hyperparameters": {"lr": 1}}
        (tmp_path / place / f"{name}.json").write_text(json.dumps(record | {"weights": place, "seconds": 2}))
    (tmp_path / "sweep" / "model_01.json").write_text(json.dumps({"record": 1, "failed": "no memory"}))
    content = collect([tmp_path / "sweep"])
    assert [(model.label, model.hyperparameters, model.seconds) for model in content.models] == [
        ("model_00", {"lr": 1}, 2.0)
    ]
    assert any("pysoup evaluate" in line for line in content.missing)


def test_records_are_the_models_that_recipes_name(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    record = {"record": 1, "score": 0.5, "metric": "accuracy", "direction": "max", "hyperparameters": {"lr": 1}}
    (tmp_path / "sweep" / "model_0.5.json").write_text(json.dumps(record | {"weights": "hash", "seconds": 2}))
    ingredient = str(tmp_path / "sweep" / "model_0.5.safetensors")
    write_recipe(tmp_path / "greedy", "greedy", [ingredient])
    content = collect([tmp_path / "sweep", tmp_path / "greedy"])
    model = content.model_of(ingredient)
    assert model is not None
    assert (model.label, model.hyperparameters) == ("model_0.5", {"lr": 1})


def test_a_record_and_an_evaluation_of_one_file_are_one_model(tmp_path: Path) -> None:
    write_evaluations(tmp_path / "r", [evaluation("sweep/model_00.safetensors", 0.5, 0.25)])
    record = {"record": 1, "score": 0.5, "metric": "accuracy", "direction": "max", "hyperparameters": {"lr": 1}}
    record |= {"weights": "hash of sweep/model_00.safetensors", "seconds": 2}
    (tmp_path / "r" / "model_00.json").write_text(json.dumps(record))
    (model,) = collect([tmp_path / "r"]).models
    assert (model.name, model.hyperparameters, model.score("test")) == (
        "sweep/model_00.safetensors",
        {"lr": 1},
        0.25,
    )


def test_soups_of_one_recipe_are_told_apart_by_their_directories(tmp_path: Path) -> None:
    for name in ("strict", "plain"):
        write_recipe(tmp_path / "r" / name, "greedy", ["a"])
    assert [row.label for row in collect([tmp_path / "r"]).rows] == ["Greedy soup, r/plain", "Greedy soup, r/strict"]


def test_unknown_recipes_have_a_row_of_their_own(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r", "fisher", ["a", "b"], trace=[])
    (row,) = collect([tmp_path / "r"]).rows
    assert row.label == "Fisher soup"
    assert values(collect([tmp_path / "r"]), row) == [0.925, 0.93, 0.375, 0.5, 0.25]


def test_several_directories_make_one_report(tmp_path: Path) -> None:
    write_recipe(tmp_path / "one", "greedy", ["a"])
    write_recipe(tmp_path / "two", "uniform", ["a"])
    assert [row.label for row in collect([tmp_path / "one", tmp_path / "two"]).rows] == ["Uniform soup", "Greedy soup"]


def test_broken_files_are_no_results(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write_recipe(folder / "good", "greedy", ["a"], trace=[step(0, "a"), "no step", 3])
    for name, text in (("trace.json", "[]"), ("evaluations.json", '{"evaluations": 1, "models": 3}'), ("x.json", "{")):
        (folder / name).write_text(text)
    assert len(collect([folder]).rows) == 1


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_directories_without_results_are_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SoupError, match="nothing to report" if what == "empty" else "not a directory"):
        collect([tmp_path / what])


def test_scores_by_two_metrics_are_refused(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r" / "a", "greedy", ["a"])
    write_recipe(tmp_path / "r" / "b", "greedy", ["a"], metric="nll", direction="min")
    with pytest.raises(SoupError, match="several metrics"):
        collect([tmp_path / "r"])


def test_links_to_directories_are_not_followed(tmp_path: Path) -> None:
    write_recipe(tmp_path / "elsewhere", "uniform", ["a"])
    write_recipe(tmp_path / "r" / "a", "greedy", ["a"])
    (tmp_path / "r" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "r" / "loop").symlink_to(tmp_path / "r")
    assert [row.label for row in collect([tmp_path / "r"]).rows] == ["Greedy soup"]


def test_what_is_missing_comes_with_its_command(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r", "uniform", ["a"])
    lines = " | ".join(collect([tmp_path / "r"]).missing)
    for command in ("pysoup evaluate --task task.py:Task", "pysoup greedy", "pysoup ensemble --all", "--order random"):
        assert command in lines
    assert "the uniform soup" not in lines


def test_sets_are_in_the_tasks_order(run: Path) -> None:
    assert collect([run]).sets == ["heldout", *TESTS]
