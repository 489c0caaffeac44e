"""The examples run as their first lines say, and the code in the documentation of fine-tuning is code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pysoup.checkpoint import open_checkpoint
from pysoup.finetune.plan import read_plan
from pysoup.record import read_record
from pysoup.task import load_task

ROOT = Path(__file__).parents[1]
EXAMPLES, GUIDE = ROOT / "examples", ROOT / "docs" / "finetuning.md"


def pysoup(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pysoup", *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def shortened(folder: Path, name: str, *changes: tuple[str, str]) -> None:
    """The example and a sweep file of it with fewer and shorter runs."""
    shutil.copy(EXAMPLES / f"{name}.py", folder)
    text = (EXAMPLES / f"{name}.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.toml").write_text(text)


def swept(folder: Path, name: str, task: str) -> dict[str, object]:
    """Fine-tune and make the greedy soup; the results."""
    pysoup(folder, "finetune", f"{name}.toml", "-o", "runs/x", "--jobs", "2")
    pysoup(folder, "greedy", "--task", f"{name}.py:{task}", "runs/x", "-o", "soups/x")
    scores = [record.score for path in (folder / "runs" / "x").glob("*.safetensors") if (record := read_record(path))]
    results: dict[str, object] = json.loads((folder / "soups" / "x" / "results.json").read_text())
    assert len(scores) == 2
    assert results["heldout"] >= max(scores)  # type: ignore[operator]
    return results


def test_image_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    shortened(tmp_path, "image_classification", ("runs = 8", "runs = 2"), ("epochs = [15, 30]", "epochs = [1, 2]"))
    results = swept(tmp_path, "image_classification", "Digits")
    assert list(results["tests"]) == ["test", "noise"]  # type: ignore[call-overload]
    assert (tmp_path / "runs" / "x" / "ema_0.99" / "model_01.safetensors").exists()


def test_image_example_keeps_its_sets_apart() -> None:
    pytest.importorskip("sklearn")
    task = load_task(f"{EXAMPLES / 'image_classification.py'}:Digits")
    parts = [task.train()[0], task.heldout()[0], task.tests()["test"][0]]  # type: ignore[attr-defined]
    assert [len(part) for part in parts] == [300, 300, 297]
    seen = [{image.numpy().tobytes() for image in part} for part in parts]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_text_example_runs(tmp_path: Path) -> None:
    """A random BERT of two layers instead of a pre-trained one: everything else is as for a user."""
    transformers = pytest.importorskip("transformers")
    words = ["red", "green", "blue", "cat", "dog", "bird", "the", "a", "sees", "likes"]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    config = transformers.BertConfig(
        vocab_size=15, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 80), ("heldout", 60), ("test", 40), ("test_long", 20)):
        lines = []
        for _ in range(count):
            subject, color = torch.randint(0, 3, (2,), generator=generator).tolist()
            text = f"the {words[color]} {words[3 + subject]}" + " sees a dog" * (name == "test_long")
            lines.append(f"{words[color]}\t{text}")
        (tmp_path / "data" / f"{name}.tsv").write_text("\n".join(lines))
    shortened(
        tmp_path,
        "text_classification",
        ("runs = 12", "runs = 2"),
        ("epochs = 10", "epochs = 2"),
        ("epochs = [2, 3]", "epochs = [1, 2]"),
        ("[-4.5, -3.5]", "[-2.5, -2]"),
    )
    results = swept(tmp_path, "text_classification", "Texts")
    assert list(results["tests"]) == ["test", "test_long"]  # type: ignore[call-overload]
    start = open_checkpoint(tmp_path / "runs" / "x" / "start" / "start.safetensors")
    assert start.entry("classifier.weight").shape == (3, 16)


@pytest.mark.parametrize("sweep", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_sweep_files_of_the_examples_are_valid(sweep: Path) -> None:
    plan = read_plan(sweep)
    assert len(plan.points) >= 8
    assert Path(plan.task.rpartition(":")[0]).is_file()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def test_sweep_files_in_the_guide_are_valid(tmp_path: Path) -> None:
    texts = [text for text in blocks("toml") if "task =" in text]
    assert texts
    for text in texts:
        (tmp_path / "sweep.toml").write_text(text)
        assert read_plan(tmp_path / "sweep.toml").points


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_task_in_the_guide_compiles_and_runs_where_its_library_is_installed(library: str) -> None:
    """The class has what a sweep asks for; with the library its module can be imported. No weights are loaded."""
    found = [text for text in blocks("python") if re.search(rf"^import {library}$", text, re.M)]
    assert len(found) == 1
    code = compile(found[0], f"{GUIDE.name}: {library}", "exec")
    for method in ("def model(", "def train(", "def heldout("):
        assert method in found[0]
    if find_spec(library) is None:
        return
    space: dict[str, object] = {}
    exec(code, space)
    assert any(callable(getattr(value, "heldout", None)) for value in space.values())


def test_other_python_in_the_guide_compiles() -> None:
    for number, text in enumerate(blocks("python")):
        compile(text, f"{GUIDE.name}, block {number}", "exec")
