"""The cross-dataset example: backbones averaged, heads of other shapes left out, better than where all began."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLE = Path(__file__).parents[1] / "examples" / "cross_dataset.py"


@pytest.mark.usefixtures("one_thread")
def test_the_soup_of_backbones_knows_all_classes_better_than_the_start(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("cross_dataset", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main(tmp_path)
    assert found["a b c"] > found["start"] + 0.05
    soup, start = load_file(tmp_path / "soup-a-b-c.safetensors"), load_file(tmp_path / "start.safetensors")
    parts = [load_file(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert [len(part["head.bias"]) for part in parts] == [3, 4, 3]
    assert torch.equal(soup["head.weight"], start["head.weight"])
    name = "backbone.0.weight"
    assert torch.allclose(soup[name], torch.stack([part[name] for part in parts]).mean(0), atol=1e-6)
