"""``pysoup analyze count | calibration | approximation | compare``: what they print, write and draw."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import function_task
import pytest
import torch
from function_task import pool

from pysoup.checkpoint import save_state_dict
from pysoup.cli import main

TASK = f"{function_task.__file__}:Blobs"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / f"m{number}.safetensors" for number in range(3)]
    for path, state in zip(paths, pool(3), strict=True):
        save_state_dict(state, path)
    return [str(path) for path in paths]


def words(path: Path) -> str:
    """The text of a drawing, which must be well-formed."""
    return " ".join("".join(node.itertext()) for node in ET.parse(path).iter() if node.tag.endswith("text"))


def test_count_writes_draws_and_prints(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, figure = tmp_path / "count.json", tmp_path / "count.svg"
    args = ["analyze", "count", *files, "--task", TASK, "--orders", "2", "-o", str(output), "--figure", str(figure)]
    assert main(args) == 0
    known = json.loads(output.read_text())
    assert list(known["curves"]) == ["best", "uniform", "greedy", "ensemble"]
    assert [point["n"] for point in known["curves"]["greedy"]["clean"]] == [1, 2, 3]
    text = words(figure)
    for word in ("Uniform soup", "Greedy soup", "Ensemble", "clean", "mean of shifts", "Number of models"):
        assert word in text
    printed = capsys.readouterr().out
    assert "accuracy, mean of 2 random orders" in printed
    assert f"{known['curves']['ensemble']['noisy'][2]['mean']:.4f}" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count.json", "count.svg"]  # no run left behind


def test_calibration_draws_both_figures(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, figure, diagram = tmp_path / "c.json", tmp_path / "c.svg", tmp_path / "r.svg"
    args = ["analyze", "calibration", *files, "--task", TASK, "--orders", "1", "--tests", "clean", "--bins", "5"]
    assert main([*args, "-o", str(output), "--figure", str(figure), "--reliability", str(diagram)]) == 0
    known = json.loads(output.read_text())
    assert list(known["curves"]["soup"]["ece"]) == ["heldout", "clean"]
    assert "Soup of calibrated models" in words(figure)
    assert "Ensemble, then calibrated" in words(figure)
    assert "as it is" in words(diagram)
    assert "ensemble: clean" in words(diagram)
    assert "temperatures fitted on the held-out set" in capsys.readouterr().out


def test_approximation_of_drawn_pairs(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, figure = tmp_path / "a.json", tmp_path / "a.svg"
    args = ["analyze", "approximation", *files, "--task", TASK, "--pairs", "2", "--alphas", "3", "--step", "0.1"]
    assert main([*args, "-o", str(output), "--figure", str(figure), "--tests", "noisy"]) == 0
    known = json.loads(output.read_text())
    assert len(known["pairs"]) == 2
    assert [point["alpha"] for point in known["points"]] == [0.5] * 4
    assert known["options"] == {
        "alphas": [0.0, 0.5, 1.0], "derivative": "central", "step": 0.1, "seed": 0, "precise": True,
    }  # fmt: skip
    assert "Approximation, Equation (1)" in words(figure)
    assert "rank correlation" in capsys.readouterr().out


def test_compare_prints_a_table_for_each_pair(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "compare.json"
    assert main(["analyze", "compare", *files, "--task", TASK, "--all-pairs", "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("only A : B right") == 3
    assert "McNemar's exact test" in printed
    assert len(json.loads(output.read_text())["comparisons"]) == 3
    assert main(["analyze", "compare", *files[:2], "--task", TASK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == files[:2]


def test_a_run_directory_that_was_named_stays_and_serves_the_next_analysis(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for command in ("calibration", "count"):
        assert main(["analyze", command, *files, "--task", TASK, "--orders", "1", "--run", str(run)]) == 0
    assert (run / "journal.jsonl").exists()
    # The curve of the soups was there: only greedy soups were tried anew, on the held-out set alone.
    keys = [json.loads(line).get("key", "") for line in (run / "journal.jsonl").read_text().splitlines()]
    assert len(keys) == len({key for key in keys if key}) + keys.count("")
    capsys.readouterr()
    assert main(["analyze", "count", *files[:2], "--task", TASK, "--run", str(run)]) == 1
    assert "another run is recorded here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("count", ["--tests", "clear"], "has no such test set: found 'clear', expected clean, noisy, noisier"),
        ("count", ["--figure", "x.gif"], "not a kind of figure"),
        ("calibration", ["--reliability", "x.gif"], "not a kind of figure"),
        ("calibration", ["--head", "body"], "is not the model's logits"),
        ("compare", ["-o", "x.txt"], "the output is a JSON file"),
        ("approximation", ["--run", __file__], "is kept in a directory, and this is a file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    files: list[str], command: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", command, *files, "--task", TASK, *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_output_that_exists_is_kept(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "count.json"
    output.write_text("mine")
    assert main(["analyze", "count", *files, "--task", TASK, "-o", str(output)]) == 1
    assert output.read_text() == "mine"
    assert "the output exists" in capsys.readouterr().err


def test_nothing_but_the_own_run_is_deleted(files: list[str], tmp_path: Path) -> None:
    foreign = tmp_path / "count.run" / "arrays" / "thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    args = ["analyze", "count", *files, "--task", TASK, "--orders", "1", "-o", str(tmp_path / "count.json")]
    assert main(args) == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "count.json", foreign]


@pytest.mark.parametrize("command", ["count", "approximation"])
def test_a_model_with_nan_is_named(
    command: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = pool(1)[0]
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name] = torch.full_like(state[name], float("nan"))
    save_state_dict(state, tmp_path / "nan.safetensors")
    main(["analyze", command, files[0], str(tmp_path / "nan.safetensors"), "--task", TASK])
    assert f"nan.safetensors: NaN or infinity in tensor {name!r}" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--figure", "--reliability"])
def test_a_figure_that_exists_is_kept_unless_forced(option: str, files: list[str], tmp_path: Path) -> None:
    drawing = tmp_path / "ece.svg"
    drawing.write_text("mine")
    args = ["analyze", "calibration", *files, "--task", TASK, "--orders", "1", option, str(drawing)]
    assert main(args) == 1
    assert drawing.read_text() == "mine"
    assert main([*args, "--force"]) == 0
    assert drawing.read_text() != "mine"
