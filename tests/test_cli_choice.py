"""Which checkpoints the commands work on: patterns, folders, the best by a score, nested entries; and the manual."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path

import click
import pytest
import torch
from safetensors_files import f32, load, save

from pysoup.cli import main
from pysoup.cli.app import app

SCORES = {"m_1": 0.5, "m_2": 0.75, "m_10": 1.0}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three checkpoints, each holding its number, with what training leaves beside them."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs")
    folder.mkdir()
    for name in SCORES:
        save(folder / f"{name}.safetensors", {"w": f32(float(name.removeprefix("m_")))})
    (folder / "optimizer.pt").write_bytes(b"not weights")
    (folder / "scores.json").write_text(json.dumps({name: {"val": {"acc": score}} for name, score in SCORES.items()}))
    return folder


def report(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main([*args, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("given", ["runs", "runs/", "runs/*", "runs/m_*.safetensors", "run?/**"])
def test_average_takes_a_folder_or_a_pattern(given: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["average", given, "-o", "soup.safetensors", "--weights", "0,3,1"]) == 0
    assert load(Path("soup.safetensors"))["w"] == f32(4)
    out = capsys.readouterr().out
    assert "averaged 3 checkpoints" in out
    assert out.count(f"note: {given}: 3 checkpoints\n") == 1


def test_average_of_nothing_that_matches_names_the_pattern(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["average", "runs/*.pth", "-o", "soup.safetensors"]) == 1
    assert capsys.readouterr().err == "pysoup: error: runs/*.pth: no file matches the pattern\n"


def test_inspect_takes_a_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = report(["inspect", "runs"], capsys)
    assert [Path(c["path"]).stem for c in facts["checkpoints"]] == list(SCORES)  # type: ignore[attr-defined]
    assert facts["notes"] == ["runs: 3 checkpoints"]
    assert main(["inspect", "runs"]) == 0
    assert capsys.readouterr().out.endswith("can be averaged: yes\nnote: runs: 3 checkpoints\n")


def test_top_takes_the_best_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = ["average", "runs", "-o", "soup.safetensors", "--force", "--top", "2", "--by", "val.acc"]
    result = report(best, capsys)
    assert result["inputs"] == ["runs/m_10.safetensors", "runs/m_2.safetensors"]
    assert result["notes"][:4] == [  # type: ignore[index]
        "runs: 3 checkpoints",
        "2 of 3 checkpoints by val.acc in runs/scores.json, highest first",
        "val.acc 1: runs/m_10.safetensors",
        "val.acc 0.75: runs/m_2.safetensors",
    ]
    assert load(Path("soup.safetensors"))["w"] == f32(6)
    assert report([*best, "--lowest"], capsys)["inputs"] == ["runs/m_1.safetensors", "runs/m_2.safetensors"]
    Path("other.jsonl").write_text(
        "".join(f'{{"model_name": "{name}", "val.acc": -1e{i}}}\n' for i, name in enumerate(SCORES))
    )
    assert report([*best, "--scores", "other.jsonl"], capsys)["inputs"] == [f"runs/m_{n}.safetensors" for n in (1, 2)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top", "2", "--by", "loss"], ["runs/scores.json", "'loss'", "val.acc"]),
        (["--top", "2", "--by", "val.acc", "--scores", "no.json"], ["no.json", "no such file"]),
    ],
)
def test_top_without_scores_is_one_line(
    options: list[str], words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["average", "runs", "-o", "soup.safetensors", *options]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for word in words:
        assert word in err
    assert not Path("soup.safetensors").exists()


@pytest.mark.parametrize("command", ["average", "uniform", "greedy"])
@pytest.mark.parametrize(
    "options",
    [
        ["--top", "2"],
        ["--by", "acc"],
        ["--lowest"],
        ["--scores", "s.json"],
        ["--top", "0", "--by", "acc"],
        ["--top", "x", "--by", "acc"],
    ],
    ids=" ".join,
)
def test_top_and_what_belongs_to_it_come_together(
    command: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    task = [] if command == "average" else ["--task", "t.py:T"]
    assert main([command, "a", "-o", "b", *task, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err


def test_entry_is_taken_and_the_rest_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1.0, 3.0):
        state = {
            "state_dict": OrderedDict(w=torch.tensor([number])),
            "state_dict_ema": OrderedDict(w=torch.tensor([10 * number])),
            "epoch": 7,
        }
        torch.save(state, f"t{number:.0f}.pt")
    assert main(["inspect", "t1.pt"]) == 1
    assert "state_dict_ema" in capsys.readouterr().err
    (facts,) = report(["inspect", "t1.pt", "--entry", "state_dict_ema"], capsys)["checkpoints"]  # type: ignore[misc]
    assert (facts["format"], facts["entry"]) == ("torch", "state_dict_ema")
    assert any("epoch" in text for text in facts["dropped"])
    assert main(["inspect", "t1.pt", "--entry", "state_dict_ema"]) == 0
    out = capsys.readouterr().out
    assert "\nformat: torch, entry state_dict_ema\nleft out: " in out
    assert main(["average", "t*.pt", "-o", "soup.safetensors", "--entry", "state_dict_ema"]) == 0
    assert load(Path("soup.safetensors"))["w"] == f32(20)


def test_entry_that_no_input_can_have_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["inspect", "runs"], ["average", "runs", "-o", "soup.safetensors"]):
        assert main([*args, "--entry", "ema"]) == 1
        assert "'ema'" in capsys.readouterr().err


def test_inspect_says_the_format_of_a_plain_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "runs/m_1.safetensors"]) == 0
    assert "\nformat: safetensors\n" in capsys.readouterr().out
    (facts,) = report(["inspect", "runs/m_1.safetensors"], capsys)["checkpoints"]  # type: ignore[misc]
    assert (facts["format"], facts["entry"], facts["dropped"]) == ("safetensors", None, [])


def test_inspect_matches_names_as_average_does(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("wrapped.safetensors"), {"module.w": f32(5)})
    facts = report(["inspect", "runs/m_1.safetensors", "wrapped.safetensors"], capsys)
    assert facts["together"]["can_average"] is True  # type: ignore[index]
    assert "'module.'" in facts["notes"][0]  # type: ignore[index]
    assert [t["name"] for t in facts["checkpoints"][1]["tensors"]] == ["module.w"]  # type: ignore[index]


def test_shard_size_cuts_the_output(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("a", "b"):
        Path(model).mkdir()
        save(Path(model, "model.safetensors"), {name: f32(1, 2, 3, 4) for name in "uvw"})
    assert main(["average", "a", "b", "-o", "soup", "--shard-size", "32"]) == 0
    assert len(list(Path("soup").glob("model-*-of-*.safetensors"))) == 2
    capsys.readouterr()
    assert main(["average", "a", "b", "-o", "soup2", "--shard-size", "much"]) == 1
    assert "not a size" in capsys.readouterr().err


def documented(text: str, command: str) -> str:
    """The section of the manual on a command."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return next(section for section in sections if re.match(rf".*pysoup {command}\b", section.partition("\n")[0]))


OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


@pytest.mark.parametrize("name", list(app.commands))
def test_every_option_is_in_the_manual(name: str) -> None:
    section = documented((Path(__file__).parent.parent / "docs" / "cli.md").read_text(), name)
    parameters = [p for p in app.commands[name].params if isinstance(p, click.Option)]
    options = {option for p in parameters for option in (p.opts[-1], *p.secondary_opts)}
    # An output may be in the example alone; the default of an on-and-off option goes without saying.
    assert options - set(OPTION.findall(section)) <= {"--normalize", "--early-rejection", "--output"}


@pytest.mark.parametrize("name", list(app.commands["analyze"].commands))  # type: ignore[attr-defined]
def test_every_option_of_an_analysis_is_on_its_page(name: str) -> None:
    folder = Path(__file__).parent.parent / "docs"
    page, manual = (folder / "analysis.md").read_text(), (folder / "cli.md").read_text()
    parameters = app.commands["analyze"].commands[name].params  # type: ignore[attr-defined]
    options = {p.opts[-1] for p in parameters if isinstance(p, click.Option)}
    assert options - set(OPTION.findall(page)) <= set(OPTION.findall(manual))
    assert f"## {name}" in page


def test_the_manual_has_no_option_that_the_commands_lack() -> None:
    text = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    groups = [c for c in app.commands.values() if isinstance(c, click.Group)]
    commands = [*app.commands.values(), *(c for group in groups for c in group.commands.values())]
    known = {option for c in commands for p in c.params for option in (*p.opts, *p.secondary_opts)}
    assert {option for option in OPTION.findall(text) if option.startswith("--")} - known == {"--help"}
