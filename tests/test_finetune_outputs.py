"""What a run leaves besides its last weights: averages and earlier checkpoints, each kind in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sweep_models import POINTS, data, files, make, net
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pysoup.checkpoint.find import find_checkpoints
from pysoup.checkpoint.scores import select_top
from pysoup.evaluate import HeldOut, Metric
from pysoup.finetune import Hyperparameters, Sweep, fine_tune
from pysoup.finetune.layout import Outputs, snapshots
from pysoup.record import read_record

EXTRA = {"ema": [0.5, 0.9999999], "checkpoints": [0.5]}


def iterates(hp: Hyperparameters) -> list[dict[str, Tensor]]:
    """The weights after each step of the same training."""
    model = net()
    steps: list[dict[str, Tensor]] = []

    def keep(step: int, total: int) -> None:
        steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    fine_tune(model, data(), hp, after_step=keep)
    return steps


def test_averages_and_checkpoints_have_folders_of_their_own(tmp_path: Path) -> None:
    make(tmp_path, **EXTRA).run()
    kinds = ("", "earlier/", "ema_0.5/", "ema_0.5/earlier/", "ema_0.9999999/", "ema_0.9999999/earlier/")
    expected = {f"{kind}sweep.json" for kind in kinds}
    for run in range(3):
        for kind in kinds:
            name = f"{kind}model_{run:02d}" + ("_at_0.5" if "earlier" in kind else "")
            expected |= {f"{name}.safetensors", f"{name}.json", f"{name}.margins.npy"}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == expected
    assert find_checkpoints(tmp_path) == [tmp_path / f"model_{run:02d}.safetensors" for run in range(3)]


def test_averages_and_checkpoints_are_those_of_the_training(tmp_path: Path) -> None:
    """The oracle keeps every iterate of the same training and averages them by the definition."""
    make(tmp_path, **EXTRA).run()
    for run, hp in enumerate(POINTS):
        steps = iterates(hp)
        assert len(steps) == 8
        for kind, end in (("", 8), ("earlier/", 4)):
            name = f"model_{run:02d}" + ("_at_0.5" if end == 4 else "")
            saved = load_file(tmp_path / f"{kind}{name}.safetensors")
            assert all(torch.equal(saved[key], tensor) for key, tensor in steps[end - 1].items())
            for decay in (0.5, 0.9999999):
                weights = [decay ** (end - 1 - t) for t in range(end)]
                average = load_file(tmp_path / f"ema_{decay}" / kind / f"{name}.safetensors")
                for key, tensor in average.items():
                    parts = zip(weights, steps[:end], strict=True)
                    expected = sum(w * step[key].double() for w, step in parts) / sum(weights)
                    torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_scores_on_record_are_those_of_the_files(tmp_path: Path) -> None:
    make(tmp_path, **EXTRA).run()
    x, y = data(1)
    paths = sorted(tmp_path.rglob("*.safetensors"))
    assert len(paths) == 18
    for path in paths:
        model = net()
        model.load_state_dict(load_file(path))
        record = read_record(path)
        assert record is not None
        assert record.score == (model.eval()(x).argmax(1) == y).double().mean().item()
        assert record.details["ema"] == (
            None if "ema_" not in str(path) else float(str(path).split("ema_")[1].split("/")[0])
        )
        assert record.details["step"] == (4 if "_at_" in path.name else 8)


def test_folder_of_averages_has_scores_to_choose_by(tmp_path: Path) -> None:
    make(tmp_path, **EXTRA).run()
    for folder in (tmp_path, tmp_path / "ema_0.5", tmp_path / "earlier"):
        paths = find_checkpoints(folder)
        best = select_top(paths, 1, "score")
        scores = {path: record.score for path in paths if (record := read_record(path)) is not None}
        assert best[0][1] == max(scores.values()) == scores[best[0][0]]


def test_saving_more_leaves_the_ingredients_as_they_are(tmp_path: Path) -> None:
    """Scores on the way draw nothing from the training's random numbers, even where the held-out loader shuffles."""
    make(tmp_path / "plain").run()
    make(tmp_path / "more", **EXTRA).run()
    heldout = DataLoader(TensorDataset(*data(1)), batch_size=8, shuffle=True)
    Sweep(tmp_path / "loader", net(), data(), POINTS, heldout, checkpoints="epochs").run()  # type: ignore[arg-type]
    assert files(tmp_path / "plain") == files(tmp_path / "more") == files(tmp_path / "loader")
    names = [path.name for path in sorted((tmp_path / "loader" / "earlier").glob("*.safetensors"))]
    assert names == [f"model_{run:02d}_epoch_01.safetensors" for run in range(3)]


def test_how_clearly_each_held_out_sample_is_right_is_written_beside_the_weights(tmp_path: Path) -> None:
    make(tmp_path).run()
    x, labels = data(1)
    for path in sorted(tmp_path.glob("model_*.safetensors")):
        model = net()
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            rows = model(x).tolist()
        expected = [
            row[label] - max(value for c, value in enumerate(row) if c != label)
            for row, label in zip(rows, labels.tolist(), strict=True)
        ]
        found = np.load(path.with_suffix(".margins.npy"))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_written_of_models_without_a_row_of_logits_for_each_sample(tmp_path: Path) -> None:
    def forward(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch
        times = 1 if model.training else 2
        return model(x).repeat_interleave(times, 0), y.repeat_interleave(times, 0)

    (tmp_path / "model_00.margins.npy").write_bytes(b"of an earlier run")
    Sweep(tmp_path, net(), data(0), POINTS[:1], HeldOut(data(1), forward)).run()
    assert (tmp_path / "model_00.json").exists()
    assert not list(tmp_path.glob("*.npy"))


def test_labels_that_are_probabilities_of_classes_train_without_margins(tmp_path: Path) -> None:
    def soft(seed: int) -> tuple[Tensor, Tensor]:
        x, labels = data(seed)
        return x, torch.nn.functional.one_hot(labels, 3).float()

    agree = Metric(lambda logits, labels: (logits.argmax(1) == labels.argmax(1)).double().mean(), "max", "agree")
    Sweep(tmp_path, net(), soft(0), POINTS[:1], soft(1), metric=agree).run()
    record = read_record(tmp_path / "model_00.safetensors")
    assert record is not None
    assert 0 <= record.score <= 1
    assert not list(tmp_path.glob("*.npy"))


def test_checkpoints_on_the_way_are_found_in_the_order_of_the_training(tmp_path: Path) -> None:
    shares = (0.5, 0.25, 0.125, 0.75)
    *earlier, _ = snapshots(tmp_path, 0, POINTS[0], Outputs(checkpoints=shares))
    for snapshot in earlier:
        snapshot.path.parent.mkdir(exist_ok=True)
        snapshot.path.touch()
    assert [snapshot.share for snapshot in earlier] == sorted(shares)
    assert find_checkpoints(f"{tmp_path}/earlier/model_00*") == [snapshot.path for snapshot in earlier]
