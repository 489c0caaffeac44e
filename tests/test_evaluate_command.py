"""``pysoup evaluate``: every model on every set, against plain torch; what is known is not computed again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_task import NAMES, linear, write_checkpoints, write_task
from safetensors.torch import load_file, save_file
from torch import Tensor

from pysoup.cli import main
from pysoup.errors import OutputError, SoupError
from pysoup.evaluate import as_metric, ece
from pysoup.record import Record, write_record
from pysoup.report import evaluate_checkpoints, evaluations, read_evaluations
from pysoup.task import load_task


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return write_task(tmp_path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    return write_checkpoints(tmp_path)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of passes over a set so far, one entry each."""
    seen: list[int] = []
    real = evaluations.score_model

    def counted(*arguments: Any, **options: Any) -> Any:
        seen.append(len(seen))
        return real(*arguments, **options)

    monkeypatch.setattr(evaluations, "score_model", counted)
    return seen


def plain(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, likelihood and calibration error in plain torch, bins of equal mass cut by rank."""
    sure, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    order = sure.argsort()
    gaps = [abs(float(sure[part].mean() - right[part].mean())) * len(part) for part in order.tensor_split(15)]
    return {
        "score": float(right.mean()),
        "nll": float(torch.nn.functional.cross_entropy(logits.double(), labels)),
        "ece": sum(gaps) / len(labels),
    }


def outputs(path: str | Path, task: str, name: str) -> tuple[Tensor, Tensor]:
    loaded: Any = load_task(task)
    ((x, labels),) = loaded.heldout() if name == "heldout" else loaded.tests()[name]
    model = linear()
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        return model(x), labels


def scores(path: str | Path) -> dict[str, dict[str, Any]]:
    known = read_evaluations(path)
    assert known is not None
    return {Path(model["name"]).name: model["scores"] for model in known["models"]}


def test_scores_likelihoods_and_calibration_are_those_of_plain_torch(task: str, checkpoints: list[str]) -> None:
    evaluate_checkpoints(checkpoints, task, "run")
    found = scores("run")
    for path in checkpoints:
        for name in ("heldout", "shifted"):
            seen, expected = found[Path(path).name][name], plain(*outputs(path, task, name))
            assert seen["samples"] == 300
            assert {key: seen[key] for key in expected} == pytest.approx(expected, rel=1e-6)
            assert sum(count for *_, count in seen["bins"]) == 300
            assert seen["ece"] == pytest.approx(sum(n * abs(p - a) for p, a, n in seen["bins"]) / 300)


def test_soups_and_ensembles_of_recipes_are_scored_as_what_they_are(task: str, checkpoints: list[str]) -> None:
    chosen = checkpoints[1:3]
    for command, place in ((["uniform"], "runs/soup"), (["ensemble", "--all"], "runs/ensemble")):
        assert main([*command, "--task", task, *chosen, "-o", place]) == 0
    found = evaluate_checkpoints(["runs", "runs/ensemble"], task, "scores")
    assert [(model["kind"], model["recipe"]) for model in found.given[:2]] == [
        ("soup", "uniform"),
        ("ensemble", "ensemble"),
    ]
    soup = {"weight": (load_file(chosen[0])["weight"] + load_file(chosen[1])["weight"]) / 2}
    save_file(soup, "mean.safetensors")
    logits = torch.stack([outputs(path, task, "shifted")[0] for path in chosen]).mean(0)
    expected = plain(logits, outputs(chosen[0], task, "shifted")[1])
    assert found.given[0]["scores"]["shifted"]["nll"] == pytest.approx(
        plain(*outputs("mean.safetensors", task, "shifted"))["nll"], rel=1e-5
    )
    seen = found.given[1]["scores"]["shifted"]
    assert {key: seen[key] for key in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("added", [[0, 1, 0, 0, 1], None])
def test_a_weighted_ensemble_counts_models_as_often_as_they_were_added(
    added: list[int] | None, task: str, checkpoints: list[str]
) -> None:
    names, weights = checkpoints[1:3], [0.6, 0.4]
    steps = [{"ingredient": names[index], "accepted": True} for index in added or []]
    steps += [{"ingredient": checkpoints[0], "accepted": False}] if added else []
    trace = {"recipe": "greedy ensemble", "ingredients": names, "weights": weights, "trace": steps}
    Path("several").mkdir()
    Path("several/trace.json").write_text(json.dumps(trace))
    parts = [outputs(name, task, "heldout") for name in names]
    expected = plain(weights[0] * parts[0][0] + weights[1] * parts[1][0], parts[0][1])
    seen = evaluate_checkpoints(["several"], task).given[0]["scores"]["heldout"]
    assert {key: seen[key] for key in expected} == pytest.approx(expected, rel=1e-5)


def test_an_ensemble_scores_what_its_recipe_scored_to_the_bit(task: str, checkpoints: list[str]) -> None:
    options = ["--select", "best", "--replacement", "--max-ingredients", "5", "--metric", "nll"]
    assert main(["ensemble", *options, "--task", task, *checkpoints, "-o", "runs/several"]) == 0
    trace = json.loads(Path("runs/several/trace.json").read_text())
    found = evaluate_checkpoints(["runs/several"], task, metric="nll").given[0]["scores"]["heldout"]
    assert found["score"] == trace["score"]


def test_known_content_is_not_scored_again(task: str, checkpoints: list[str], passes: list[int]) -> None:
    evaluate_checkpoints(checkpoints[:2], task, "run")
    assert len(passes) == 4
    first = read_evaluations("run")
    again = evaluate_checkpoints(checkpoints[:2], task, "run")
    assert (len(passes), again.scored) == (4, 0)
    assert read_evaluations("run") == first
    more = evaluate_checkpoints(checkpoints[:3], task, "run")
    assert (len(passes), more.scored) == (6, 1)
    assert [Path(model["name"]).stem for model in more.content["models"]] == list(NAMES[:3])


def test_a_copy_under_another_name_is_known_and_new_content_is_not(
    task: str, checkpoints: list[str], passes: list[int]
) -> None:
    evaluate_checkpoints(checkpoints[:2], task, "run")
    Path("copy.safetensors").write_bytes(Path(checkpoints[0]).read_bytes())
    assert evaluate_checkpoints(["copy.safetensors"], task, "run").scored == 0
    assert len(scores("run")) == 3
    other = {"weight": torch.ones(3, 8)}
    save_file(other, checkpoints[0])
    changed = evaluate_checkpoints(checkpoints[:2], task, "run")
    assert changed.scored == 1
    assert len(scores("run")) == 3  # in place of the old one
    expected = plain(*outputs(checkpoints[0], task, "heldout"))["nll"]
    assert scores("run")[Path(checkpoints[0]).name]["heldout"]["nll"] == pytest.approx(expected, rel=1e-6)


def test_a_file_that_moved_keeps_its_line(task: str, checkpoints: list[str], passes: list[int]) -> None:
    evaluate_checkpoints(checkpoints[:2], task, "run")
    os.rename(checkpoints[0], "moved.safetensors")
    assert evaluate_checkpoints(["moved.safetensors"], task, "run").scored == 0
    assert list(scores("run")) == ["moved.safetensors", Path(checkpoints[1]).name]


def test_an_interrupted_run_goes_on(task: str, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = evaluations.score_model, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # the second set of the third model
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(evaluations, "score_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoints(checkpoints, task, "run")
    assert len(scores("run")) == 2
    assert evaluate_checkpoints(checkpoints, task, "run").scored == 2
    assert len(calls) == 6 + 4
    evaluate_checkpoints(checkpoints, task, "whole")
    for name, found in scores("whole").items():
        for key in ("score", "nll", "ece", "bins"):
            assert scores("run")[name]["heldout"][key] == found["heldout"][key]


@pytest.mark.parametrize("change", ["metric", "bins", "data"])
def test_scores_of_something_else_are_kept_unless_forced(change: str, task: str, checkpoints: list[str]) -> None:
    evaluate_checkpoints(checkpoints[:2], task, "run")
    before = Path("run/evaluations.json").read_bytes()
    options: dict[str, Any] = {"metric": {"metric": "nll"}, "bins": {"bins": 10}, "data": {}}[change]
    if change == "data":
        Path("other_task.py").write_text(Path("task.py").read_text().replace("_data(2)", "_data(5)"))
        task = "other_task.py:Task"
    with pytest.raises(OutputError, match="scores of other data or by another metric"):
        evaluate_checkpoints(checkpoints[:1], task, "run", **options)
    assert Path("run/evaluations.json").read_bytes() == before
    evaluate_checkpoints(checkpoints[:1], task, "run", overwrite=True, **options)
    assert list(scores("run")) == [Path(checkpoints[0]).name]


@pytest.mark.parametrize("text", ["{", '{"evaluations": 1, "models": [{}]}', '{"evaluations": 2, "models": []}'])
def test_a_broken_file_is_kept_unless_forced(text: str, task: str, checkpoints: list[str]) -> None:
    Path("run").mkdir()
    Path("run/evaluations.json").write_text(text)
    with pytest.raises(OutputError, match="broken"):
        evaluate_checkpoints(checkpoints, task, "run")
    assert evaluate_checkpoints(checkpoints, task, "run", overwrite=True).scored == 4


def test_hyperparameters_come_from_the_record_of_these_weights_alone(task: str, checkpoints: list[str]) -> None:
    contents = {model["name"]: model["content"] for model in evaluate_checkpoints(checkpoints[:2], task).given}
    for path, weights in ((checkpoints[0], contents[checkpoints[0]]), (checkpoints[1], "other")):
        write_record(path, Record(0.5, "accuracy", "max", None, weights, {"learning_rate": 0.25}, 7, 1.5))
    first, second = evaluate_checkpoints(checkpoints[:2], task).given
    assert (first["hyperparameters"], first["seed"], first["training_seconds"]) == ({"learning_rate": 0.25}, 7, 1.5)
    assert "hyperparameters" not in second


def test_the_checkpoints_own_directory_is_refused(task: str, checkpoints: list[str], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the checkpoints are in this directory"):
        evaluate_checkpoints(checkpoints, task, tmp_path)
    assert not (tmp_path / "evaluations.json").exists()


def test_what_does_not_fit_the_model_is_found_before_anything_is_scored(
    task: str, checkpoints: list[str], passes: list[int]
) -> None:
    save_file({"weight": torch.ones(2, 8)}, "small.safetensors")
    with pytest.raises(SoupError, match=r"small\.safetensors"):
        evaluate_checkpoints([*checkpoints, "small.safetensors"], task, "run")
    assert passes == []
    assert not os.path.exists("run")


def test_an_ensemble_without_its_ingredients_is_refused(task: str, checkpoints: list[str]) -> None:
    assert main(["ensemble", "--all", "--task", task, *checkpoints[:2], "-o", "runs/e"]) == 0
    os.remove(checkpoints[0])
    with pytest.raises(SoupError, match="opening the ingredients of runs/e"):
        evaluate_checkpoints(["runs/e"], task)


@pytest.mark.parametrize("weights", [[], [0.5], [0.5, -0.5], ["x", 0.5], [float("nan"), 0.5], None])
def test_a_broken_trace_of_an_ensemble_is_refused(weights: object, task: str, checkpoints: list[str]) -> None:
    Path("e").mkdir()
    trace = {"recipe": "ensemble", "ingredients": checkpoints[:2], "weights": weights, "trace": [3, {}]}
    Path("e/trace.json").write_text(json.dumps(trace))
    with pytest.raises(SoupError, match="ingredients and their weights"):
        evaluate_checkpoints(["e"], task)


def test_state_dicts_and_names_of_ones_own_are_taken(task: str, checkpoints: list[str]) -> None:
    named = {"first": load_file(checkpoints[1]), "second": checkpoints[2]}
    found = evaluate_checkpoints(named, task, "run")
    assert [model["name"] for model in found.given] == ["first", "second"]
    assert evaluate_checkpoints(named, task, "run").scored == 0
    assert list(scores("run")) == ["first", "second"]


def test_labels_that_do_not_count_are_no_part_of_likelihood_and_calibration() -> None:
    from pysoup.evaluate import top_k
    from pysoup.report.set_scores import score_outputs

    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 4
    padded = torch.where(torch.arange(60) % 3 == 0, -100, labels)
    kept = padded != -100
    seen = score_outputs(logits, padded, top_k(1, ignore_index=-100), 0.0)
    alone = score_outputs(logits[kept], labels[kept], as_metric("accuracy"), 0.0)
    assert (seen.score, seen.ece, seen.samples) == (alone.score, alone.ece, 40)
    assert seen.nll == pytest.approx(alone.nll)
    sure, predicted = logits[kept].softmax(1).max(1)
    assert seen.ece == pytest.approx(ece(sure, predicted == labels[kept]), rel=1e-5)


def test_outputs_that_are_no_class_logits_have_no_calibration() -> None:
    from pysoup import Metric
    from pysoup.report.set_scores import score_outputs

    error = Metric(lambda found, wanted: float((found[:, 0] - wanted).abs().mean()), "min", "error")
    seen = score_outputs(torch.ones(5, 2), torch.zeros(5), error, 0.0)
    assert (seen.score, seen.nll, seen.ece, seen.bins) == (1.0, None, None, ())
    broken = score_outputs(torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.int64), as_metric("accuracy"), 0.0)
    assert (broken.score, broken.nll, broken.ece) == (0.0, None, None)


def test_command_prints_a_table_and_says_what_was_known(
    task: str, checkpoints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--task", task, *checkpoints, "-o", "run"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accuracy in %; nll and ece on shifted"
    assert lines[1].split() == ["model", "heldout", "shifted", "nll", "ece"]
    expected = plain(*outputs(checkpoints[1], task, "shifted"))
    cells = lines[3].split()
    assert cells[2:] == [f"{100 * expected['score']:.2f}", f"{expected['nll']:.4f}", f"{expected['ece']:.4f}"]
    assert lines[6:8] == ["4 models: 4 scored, 0 known", "wrote run/evaluations.json"]
    assert main(command) == 0
    assert "4 models: 0 scored, 4 known" in capsys.readouterr().out


def test_command_prints_one_object(task: str, checkpoints: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--task", task, *checkpoints[:1], "-o", "run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--task", task, *checkpoints[1:2], "-o", "run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in content["models"]] == checkpoints[1:2]
    assert content["metric"]["name"] == "accuracy"
    assert content["sets"]["heldout"]["selects"] is True


def test_shifts_have_a_mean(
    tmp_path: Path, task: str, checkpoints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        Path("task.py")
        .read_text()
        .replace('{"shifted": self._data(2)}', '{n: self._data(k) for k, n in enumerate("abc")}')
    )
    Path("three_tests.py").write_text(text)
    assert main(["evaluate", "--task", "three_tests.py:Task", checkpoints[1], "-o", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[0] == "model"
    assert lines[1].split()[1:] == ["heldout", "a", "mean", "of", "shifts", "b", "c", "nll", "ece"]
    cells = [float(cell) for cell in lines[2].split()[1:]]
    assert cells[2] == pytest.approx((cells[3] + cells[4]) / 2, abs=0.006)
