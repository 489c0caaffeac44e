"""``pysoup ensemble --probabilities``: what every sample was told, as arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_task import held_out, write_checkpoints, write_task
from safetensors.torch import load_file

from pysoup.cli import main


def shares(paths: list[str], seed: int) -> np.ndarray:
    """The softmax of the mean of the logits."""
    (x, _) = next(iter(held_out(seed).batches(None)))
    logits = np.mean([x.double().numpy() @ load_file(path)["weight"].double().numpy().T for path in paths], axis=0)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize("every", [True, False])
def test_the_ensemble_writes_the_probabilities_of_all_sets(
    every: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, paths, run = write_task(tmp_path), write_checkpoints(tmp_path)[1:], tmp_path / "run"
    asked = ["ensemble", "--task", task, *paths, "-o", str(run), "--probabilities", *(["--all"] if every else [])]
    assert main(asked) == 0, capsys.readouterr().err
    assert f"wrote {run / 'probabilities'}" in capsys.readouterr().out
    used = json.loads((run / "trace.json").read_text())["ingredients"]
    for name, seed in (("heldout", 1), ("test-shifted", 2)):
        found = np.load(run / "probabilities" / f"{name}.npy", allow_pickle=False)
        assert found.shape == (300, 3)
        np.testing.assert_allclose(found, shares(used, seed), rtol=1e-4, atol=1e-6)
    (_, labels) = next(iter(held_out(2).batches(None)))
    right = (torch.from_numpy(found).argmax(1) == labels).double().mean().item()
    assert json.loads((run / "results.json").read_text())["tests"]["shifted"] == right
    assert sorted(path.name for path in (run / "probabilities").iterdir()) == ["heldout.npy", "test-shifted.npy"]


def test_without_being_asked_no_probabilities_are_written(tmp_path: Path) -> None:
    task, paths, run = write_task(tmp_path), write_checkpoints(tmp_path)[1:], tmp_path / "run"
    assert main(["ensemble", "--task", task, *paths, "-o", str(run)]) == 0
    assert not (run / "probabilities").exists()
