"""A sweep: one start, ingredients on disk, and a second run that does only what is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sweep_models import POINTS, data, files, make, net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pysoup.errors import OutputError, SoupError
from pysoup.evaluate import HeldOut
from pysoup.finetune import Hyperparameters, Ranges, Sweep, fine_tune, sample_hyperparameters, trainer
from pysoup.finetune.sweep import data_identity
from pysoup.record import read_record


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the trainings that really took place."""
    seeds: list[int] = []

    def counted(model: nn.Module, source: object, hp: Hyperparameters, **options: object) -> None:
        seeds.append(hp.seed)
        fine_tune(model, source, hp, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "fine_tune", counted)
    return seeds


def test_each_ingredient_starts_from_the_shared_start(tmp_path: Path) -> None:
    made = make(tmp_path).run()
    for ingredient, hp in zip(made, POINTS, strict=True):
        model = net()
        fine_tune(model, data(), hp)
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
    points = sample_hyperparameters(4, 0, Ranges(batch_size=(16,)))
    make(tmp_path, points[:2]).run()
    make(tmp_path, points).run()
    assert trainings == [hp.seed for hp in points]


def test_other_sweep_in_the_directory_is_refused_before_training(tmp_path: Path, trainings: list[int]) -> None:
    make(tmp_path).run()
    before = files(tmp_path)
    trainings.clear()
    with pytest.raises(OutputError, match=r"model_00\.safetensors: made by another sweep \(train differs\)"):
        make(tmp_path, seed=9).run()
    assert trainings == []
    assert files(tmp_path) == before
    make(tmp_path, seed=9, overwrite=True).run()
    assert trainings == [1, 2, 3]
    assert files(tmp_path) != before


BAD = [POINTS[0], Hyperparameters(learning_rate=1e30, epochs=2), POINTS[2]]


def test_failed_training_names_the_ingredient_and_the_others_are_made(tmp_path: Path, trainings: list[int]) -> None:
    run = make(tmp_path, BAD)
    with pytest.raises(SoupError, match=r"model_01\.safetensors: fine-tuning failed: the loss is not finite"):
        run.run()
    assert list(files(tmp_path)) == ["model_00.safetensors", "model_02.safetensors"]
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), net().parameters(), strict=True))
    failure = json.loads((tmp_path / "model_01.json").read_text())
    assert failure["failed"].startswith("the loss is not finite at step")
    assert Hyperparameters.from_json(failure["hyperparameters"]) == BAD[1]
    summary = json.loads((tmp_path / "sweep.json").read_text())
    assert [(entry["run"], entry["error"]) for entry in summary["failed"]] == [(1, failure["failed"])]
    assert len(summary["models"]) == 2


def test_failed_run_is_made_again_only_when_asked(tmp_path: Path, trainings: list[int]) -> None:
    for retry, expected in ((False, [1, 0, 3]), (False, []), (True, [0])):
        trainings.clear()
        with pytest.raises(SoupError, match="fine-tuning failed"):
            make(tmp_path, BAD, retry=retry).run()
        assert trainings == expected


def test_retry_that_succeeds_leaves_no_failure(tmp_path: Path) -> None:
    broken = True

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if broken:
            raise MemoryError("no room")
        return model(batch[0]), batch[1]

    with pytest.raises(
        SoupError, match=r"failed: MemoryError: no room \(test_\w+\.py:\d+\) \(and 2 more of 3 runs\)"
    ) as caught:
        make(tmp_path, forward=forward).run()
    assert isinstance(caught.value.__cause__, MemoryError)
    assert "in forward" in json.loads((tmp_path / "model_00.json").read_text())["traceback"]
    broken = False
    assert len(make(tmp_path, forward=forward, retry=True).run()) == 3
    assert "failed" not in json.loads((tmp_path / "model_00.json").read_text())
    assert json.loads((tmp_path / "sweep.json").read_text())["failed"] == []


def test_failed_run_leaves_none_of_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="not finite"):
        make(tmp_path, [Hyperparameters(learning_rate=1e30, epochs=20)], checkpoints=[0.01], ema=[0.9]).run()
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob(".*"))


def test_interrupt_stops_at_once_and_the_model_has_the_start(tmp_path: Path) -> None:
    def stop(*arguments: object) -> Tensor:
        raise KeyboardInterrupt

    run = make(tmp_path, augment=stop)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), net().parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == []


def test_progress_names_ingredient_and_score(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    made = make(tmp_path).run(lambda done, total, what: calls.append((done, total, what)))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert calls[0][2] == f"model_00.safetensors accuracy {made[0].score:.4f}"


def test_empty_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="at least one"):
        make(tmp_path, [])


def test_record_has_all_that_the_recipes_need(tmp_path: Path) -> None:
    made = make(tmp_path, metric="nll").run()
    record = read_record(made[1].path)
    assert record is not None
    assert (record.metric, record.direction, record.seed) == ("nll", "min", 2)
    assert record.score == made[1].score
    assert record.heldout == HeldOut(data(1)).fingerprint
    assert record.weights == hashlib.sha256(made[1].path.read_bytes()).hexdigest()
    assert Hyperparameters(**record.hyperparameters) == POINTS[1]
    assert record.seconds > 0
    details = {key: record.details[key] for key in ("run", "step", "steps", "epoch", "ema", "device")}
    assert details == {"run": 1, "step": 8, "steps": 8, "epoch": 2.0, "ema": None, "device": "cpu"}
    assert record.details["torch"] == torch.__version__


def test_average_asked_for_later_is_made_by_training_again(tmp_path: Path, trainings: list[int]) -> None:
    make(tmp_path).run()
    before = files(tmp_path)
    make(tmp_path, ema=[0.9]).run()
    assert trainings == [1, 2, 3, 1, 2, 3]
    assert files(tmp_path) == before
    make(tmp_path).run()
    assert trainings == [1, 2, 3, 1, 2, 3]


def test_other_heldout_data_or_metric_only_scores_anew(tmp_path: Path, trainings: list[int]) -> None:
    make(tmp_path, ema=[0.9]).run()
    before = files(tmp_path)
    trainings.clear()
    made = Sweep(tmp_path, net(), data(), POINTS, data(5), metric="nll", ema=[0.9]).run()
    assert trainings == []
    assert files(tmp_path) == before
    x, y = data(5)
    for ingredient, path in zip(made, sorted((tmp_path / "ema_0.9").glob("*.safetensors")), strict=True):
        for file in (ingredient.path, path):
            model = net()
            model.load_state_dict(load_file(file))
            record = read_record(file)
            assert record is not None
            assert record.score == pytest.approx(nn.functional.cross_entropy(model.eval()(x), y).item())
            assert record.heldout == HeldOut(data(5)).fingerprint
        assert ingredient.score == read_record(ingredient.path).score  # type: ignore[union-attr]


def test_cut_weight_file_counts_as_missing(tmp_path: Path, trainings: list[int]) -> None:
    make(tmp_path).run()
    before = files(tmp_path)
    weights = tmp_path / "model_00.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    trainings.clear()
    make(tmp_path).run()
    assert trainings == [1]
    assert files(tmp_path) == before


def test_record_from_before_a_field_existed_still_counts(tmp_path: Path, trainings: list[int]) -> None:
    make(tmp_path).run()
    for path in tmp_path.glob("model_*.json"):
        content = json.loads(path.read_text())
        del content["hyperparameters"]["clip_norm"]
        path.write_text(json.dumps(content))
    trainings.clear()
    make(tmp_path).run()
    assert trainings == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"augment": lambda inputs, hp, generator: inputs}, "augment"),
        ({"autocast": "bfloat16"}, "autocast"),
        ({"forward": lambda model, batch: (model(batch[0]), batch[1])}, "forward"),
    ],
)
def test_other_way_of_training_is_another_sweep(tmp_path: Path, options: dict[str, object], what: str) -> None:
    make(tmp_path).run()
    with pytest.raises(OutputError, match=rf"made by another sweep \({what} differs\)"):
        make(tmp_path, **options).run()


def test_autocast_is_bfloat16_or_none(tmp_path: Path) -> None:
    made = make(tmp_path, autocast="bfloat16").run()
    assert {tensor.dtype for tensor in load_file(made[0].path).values()} == {torch.float32}
    assert read_record(made[0].path).details["identity"]["autocast"] == "bfloat16"  # type: ignore[union-attr]
    with pytest.raises(SoupError, match="bfloat16 or none"):
        make(tmp_path, autocast="float16")


def test_second_sweep_in_the_directory_is_refused_while_one_runs(tmp_path: Path) -> None:
    tried: list[str] = []

    def second(inputs: Tensor, hp: Hyperparameters, generator: torch.Generator) -> Tensor:
        if not tried:
            with pytest.raises(OutputError, match="another sweep is running"):
                make(tmp_path).run()
            tried.append("yes")
        return inputs

    make(tmp_path, augment=second).run()
    assert tried == ["yes"]


def test_score_that_is_no_number_is_a_failed_run(tmp_path: Path) -> None:
    def strange(logits: Tensor, labels: Tensor) -> float:
        return float("nan")

    strange.direction = "max"  # type: ignore[attr-defined]
    with pytest.raises(SoupError, match="the held-out strange is not finite"):
        make(tmp_path, metric=strange).run()
    assert not list(tmp_path.glob("*.safetensors"))


def test_data_without_a_fingerprint_is_known_by_kind_and_length(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(*data()), batch_size=16)
    made = Sweep(tmp_path, net(), loader, POINTS[:1], data(1)).run()
    identity = read_record(made[0].path).details["identity"]  # type: ignore[union-attr]
    assert identity["train"] == "DataLoader of 4"
    assert data_identity(TensorDataset(*data())) == data_identity(data()) != data_identity(data(1))
