"""A sweep: one start, ingredients on disk, and a second run that does only what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pysoup.errors import OutputError, SoupError
from pysoup.finetune import Hyperparameters, Sweep, fine_tune, sample_hyperparameters, sweep
from pysoup.finetune.sweep import digest

POINTS = [Hyperparameters(learning_rate=10**-k, epochs=2, mixup=0.3, seed=k) for k in (1, 2, 3)]


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 5, generator=generator)
    return x, x[:, :3].argmax(1)


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def make(directory: Path, points: list[Hyperparameters] = POINTS, seed: int = 0, **options: object) -> Sweep:
    return Sweep(directory, net(), data(seed), points, data(1), batch_size=16, **options)  # type: ignore[arg-type]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the trainings that really took place."""
    seeds: list[int] = []

    def counted(model: nn.Module, source: object, hp: Hyperparameters, **options: object) -> None:
        seeds.append(hp.seed)
        fine_tune(model, source, hp, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "fine_tune", counted)
    return seeds


def test_each_ingredient_starts_from_the_shared_start(tmp_path: Path) -> None:
    made = make(tmp_path).run()
    for ingredient, hp in zip(made, POINTS, strict=True):
        model = net()
        fine_tune(model, data(), hp, batch_size=16)
        saved = load_file(ingredient.path)
        assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
        x, y = data(1)
        assert ingredient.score == (model.eval()(x).argmax(1) == y).double().mean().item()


def test_files_say_how_they_were_made(tmp_path: Path) -> None:
    made = make(tmp_path).run()
    assert [i.path.name for i in made] == [f"model_{k:02d}.safetensors" for k in range(3)]
    with safe_open(made[1].path, "pt") as file:
        assert Hyperparameters(**json.loads(file.metadata()["pysoup.hyperparameters"])) == POINTS[1]
    summary = json.loads((tmp_path / "sweep.json").read_text())
    assert [m["path"] for m in summary["models"]] == [i.path.name for i in made]
    assert [m["score"] for m in summary["models"]] == [i.score for i in made]
    assert [m["learning_rate"] for m in summary["models"]] == [hp.learning_rate for hp in POINTS]
    assert not list(tmp_path.glob(".*"))


def test_model_holds_the_start_afterwards(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.run()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), net().parameters(), strict=True))


def test_second_run_trains_nothing_and_says_so(tmp_path: Path, trainings: list[int]) -> None:
    first = make(tmp_path).run()
    before = files(tmp_path)
    second = make(tmp_path).run()
    assert trainings == [1, 2, 3]
    assert [i.resumed for i in first] == [False] * 3
    assert [i.resumed for i in second] == [True] * 3
    assert [(i.path, i.score) for i in first] == [(i.path, i.score) for i in second]
    assert files(tmp_path) == before


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_interrupted_sweep_ends_with_the_same_bits(tmp_path: Path, trainings: list[int], suffix: str) -> None:
    make(tmp_path / "whole").run()
    make(tmp_path / "cut").run()
    trainings.clear()
    (tmp_path / "cut" / f"model_01{suffix}").unlink()
    make(tmp_path / "cut").run()
    assert trainings == [2]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_half_written_record_counts_as_missing(tmp_path: Path, trainings: list[int]) -> None:
    make(tmp_path).run()
    record = tmp_path / "model_02.json"
    record.write_text(record.read_text()[:40])
    trainings.clear()
    make(tmp_path).run()
    assert trainings == [3]


def test_longer_search_makes_only_the_new_ones(tmp_path: Path, trainings: list[int]) -> None:
    points = sample_hyperparameters(4, 0)
    make(tmp_path, points[:2]).run()
    make(tmp_path, points).run()
    assert trainings == [hp.seed for hp in points]


def test_other_sweep_in_the_directory_is_refused_before_training(tmp_path: Path, trainings: list[int]) -> None:
    make(tmp_path).run()
    before = files(tmp_path)
    trainings.clear()
    with pytest.raises(OutputError, match=r"model_00\.safetensors: made by another sweep"):
        make(tmp_path, seed=9).run()
    assert trainings == []
    assert files(tmp_path) == before
    make(tmp_path, seed=9, overwrite=True).run()
    assert trainings == [1, 2, 3]
    assert files(tmp_path) != before


def test_failed_training_names_the_ingredient_and_keeps_the_others(tmp_path: Path, trainings: list[int]) -> None:
    bad = [POINTS[0], Hyperparameters(learning_rate=1e30, epochs=2)]
    run = make(tmp_path, bad)
    with pytest.raises(SoupError, match=r"model_01\.safetensors: fine-tuning failed: the loss is not finite"):
        run.run()
    assert list(files(tmp_path)) == ["model_00.safetensors"]
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), net().parameters(), strict=True))


def test_progress_names_ingredient_and_score(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    made = make(tmp_path).run(lambda done, total, what: calls.append((done, total, what)))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert calls[0][2] == f"model_00.safetensors accuracy {made[0].score:.4f}"


def test_empty_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="at least one"):
        make(tmp_path, [])


def test_digest_tells_data_apart_and_skips_what_it_cannot_read() -> None:
    x, y = data()
    assert digest((x, y)) == digest((x.clone(), y.clone()))
    changed = x.clone()
    changed[3, 2] += 1e-6
    different = [
        digest(d) for d in ((x, y), (changed, y), (y, x), (x.double(), y), (x.view(5, 64), y), [x, y, y], {"x": x})
    ]
    assert len(set(different)) == len(different)
    assert digest([iter([])]) is None
    assert digest(torch.empty(0)) is not None
