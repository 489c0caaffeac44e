"""The same content as Markdown, CSV and JSON; and the command."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from report_runs import HOSTILE, write_recipe, write_run

from pysoup.cli import main
from pysoup.errors import OutputError, SoupError
from pysoup.report import write_report
from pysoup.report.html import clean

NAMES = [f"sweep/model_{i:02d}.safetensors" for i in range(4)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", NAMES)
    return tmp_path / "run"


def test_the_suffix_names_the_format_unless_it_is_given(run: Path, tmp_path: Path) -> None:
    begins = {"html": "<!DOCTYPE html>", "md": "# Soups of run", "json": "{", "csv": "kind,name,what,heldout"}
    for kind, begin in begins.items():
        write_report(run, tmp_path / f"report.{kind}")
        write_report([run], tmp_path / "report", format=kind)
        text = (tmp_path / f"report.{kind}").read_text()
        assert text.startswith(begin)
        assert text == (tmp_path / "report").read_text()


def test_unknown_formats_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="html or md or json or csv"):
        write_report(run, tmp_path / "report.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["trace.json", "results.json", "evaluations.json"])
def test_a_report_never_replaces_what_reports_are_made_of(name: str, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.json")}
    with pytest.raises(OutputError, match="another name"):
        write_report(run, run / name)
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == before


def test_a_report_is_written_whole_or_not_at_all(run: Path, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("old")
    with pytest.raises(OutputError, match="exists"):
        write_report(run, tmp_path / "report.md", overwrite=False)
    with pytest.raises(OutputError, match="cannot write"):
        write_report(run, tmp_path / "absent" / "report.md")
    assert (tmp_path / "report.md").read_text() == "old"
    write_report(run, tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text() != "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "run"]


def test_markdown_has_the_papers_table(run: Path, tmp_path: Path) -> None:
    write_report(run, tmp_path / "report.md")
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| Method | heldout | test | mean of shifts | sketch | noise | ingredients | cost of use |" in lines
    assert "| Best individual model | 90.00 | 85.00 | 31.87 | 42.50 | 21.25 | 1 | O(1), 1\u00d7 |" in lines
    assert (
        "| Greedy soup | **92.50** | **93.00** | **37.50** | **50.00** | **25.00** | 2 of 3 | O(1), 1\u00d7 |" in lines
    )
    assert "## Calibration" in lines


def test_json_keeps_all_digits_and_everything(run: Path, tmp_path: Path) -> None:
    write_report(run, tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    best = content["methods"][0]
    assert (best["method"], best["heldout"], best["mean_shift"]) == ("Best individual model", 0.9, 0.31875)
    assert content["models"][1]["hyperparameters"]["learning_rate"] == 0.002
    (learned,) = [made for made in content["made"] if made["recipe"] == "learned"]
    assert learned["beta"] == 1.25
    assert len(learned["granules"]) == len(NAMES)


def test_csv_has_a_line_for_each_method_and_model(run: Path, tmp_path: Path) -> None:
    write_report(run, tmp_path / "report.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert [line["kind"] for line in lines] == ["method"] * 8 + ["model"] * 4
    assert (lines[8]["what"], lines[8]["test"], lines[8]["learning_rate"]) == (NAMES[0], "0.85", "0.001")


def test_no_name_becomes_markdown_html_or_a_formula(tmp_path: Path) -> None:
    write_run(tmp_path / "run", HOSTILE)
    for kind in ("md", "csv", "json"):
        write_report(tmp_path / "run", tmp_path / f"report.{kind}")
    text = (tmp_path / "report.md").read_text()
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    assert not {token.type for token in tokens} & {"html_block", "fence", "hr", "blockquote_open"}
    inside = [child for token in tokens for child in token.children or []]
    assert not {child.type for child in inside} & {"html_inline", "link_open", "image", "em_open"}
    shown = "".join(child.content for child in inside)
    for name in HOSTILE:
        assert clean(name.split("/")[-1]) in shown
    for line in csv.reader(io.StringIO((tmp_path / "report.csv").read_text())):
        assert not any(cell.startswith(("=", "+", "@")) for cell in line)
    models = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [model["name"] for model in models] == HOSTILE


def test_command_writes_the_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 0
    assert capsys.readouterr().out == f"4 models, 7 recipes\nwrote {tmp_path / 'report.html'}\n"
    assert main(["report", str(run), "-o", str(tmp_path / "x"), "--format", "csv"]) == 0
    assert (tmp_path / "x").read_text().startswith("kind,")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "none"), "-o", str(tmp_path / "y.html")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "y.html").exists()


def test_command_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    write_recipe(tmp_path / "run", "uniform", ["a"])
    code = """
import sys
from pysoup.cli import main
assert main(["report", sys.argv[1], "-o", sys.argv[2]]) == 0
assert not {"torch", "numpy", "matplotlib"} & sys.modules.keys()
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "r.html")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
