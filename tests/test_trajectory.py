"""Averages along a run: the weights of SWA, EMA and LAWA, files, live models, the choice, BatchNorm."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_task import write_task
from safetensors.torch import load_file, save_file
from soup_models import conv_batchnorm, images, mlp, never, plain_mean, same_bits
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pysoup import HeldOut, Metric, SoupError, trajectory_soup, trajectory_weights
from pysoup.cli import main
from pysoup.evaluate import evaluate
from pysoup.trajectory import windows

X, Y = images()


def run_of(model: nn.Module, steps: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Checkpoints of a random walk, step counters included."""
    torch.manual_seed(seed)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = [first]
    while len(states) < steps:
        states.append(pool_step(states[-1]))
    return states


def pool_step(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor + (0.2 * torch.randn(tensor.shape)).abs() if tensor.is_floating_point() else tensor + 10
        for name, tensor in state.items()
    }


def saved(folder: Path, states: list[dict[str, Tensor]]) -> list[str]:
    paths = [folder / f"step-{number}.safetensors" for number in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return [str(path) for path in paths]


def recursion(values: list[float], decay: float) -> float:
    average = values[0]
    for value in values[1:]:
        average = decay * average + (1 - decay) * value
    return average


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9, 0.9999999])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_ema_weights_are_those_of_the_recursion(decay: float, count: int) -> None:
    values = torch.randn(count, dtype=torch.float64).tolist()
    classic = trajectory_weights("ema", count, decay=decay, classic=True)
    corrected = trajectory_weights("ema", count, decay=decay)
    assert sum(w * v for w, v in zip(classic, values, strict=True)) == pytest.approx(recursion(values, decay))
    biased, power = 0.0, 1.0  # Adam's way: from zero, then divided by what is missing
    for value in values:
        biased, power = decay * biased + (1 - decay) * value, power * decay
    assert sum(w * v for w, v in zip(corrected, values, strict=True)) == pytest.approx(biased / (1 - power), rel=1e-6)
    assert math.fsum(classic) == pytest.approx(1)
    assert math.fsum(corrected) == pytest.approx(1)


def test_ema_weights_are_those_of_the_average_in_training() -> None:
    from pysoup.finetune.averages import WeightAverage

    model = nn.Linear(2, 1, bias=False).double()
    average, seen = WeightAverage(model, 0.8), []
    for _ in range(6):
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 2, dtype=torch.float64))
        average.update()
        seen.append(model.weight.detach().clone())
    weights = trajectory_weights("ema", 6, decay=0.8)
    mixed = sum(weight * value for weight, value in zip(weights, seen, strict=True))
    assert torch.allclose(average.state_dict()["weight"], mixed, rtol=1e-12)


def test_swa_and_lawa_are_plain_means_of_a_window() -> None:
    assert trajectory_weights("swa", 4) == [0.25] * 4
    assert trajectory_weights("swa", 4, last=2) == [0, 0, 0.5, 0.5]
    assert trajectory_weights("lawa", 5, last=2) == [0, 0, 0, 0.5, 0.5]
    assert trajectory_weights("lawa", 5, last=2, end=3) == [0, 0.5, 0.5, 0, 0]
    found = windows("lawa", 4, last=[1, 3], end=[2, 3, 4])
    assert [(w.last, w.end) for w in found] == [(1, 2), (1, 3), (3, 3), (1, 4), (3, 4)]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mean", {}, "unknown kind of average: found 'mean'"),
        ("ema", {}, "an EMA needs its decay"),
        ("ema", {"decay": 1.0}, "the decay is out of range: found 1.0"),
        ("ema", {"decay": math.nan}, "the decay is out of range: found nan"),
        ("lawa", {}, "LAWA needs last"),
        ("lawa", {"last": 5}, "last is out of range: found 5, expected a whole number from 1 to 4"),
        ("lawa", {"last": 3, "end": 2}, "no window of this size ends there: found last 3, end 2"),
        ("swa", {"last": 0}, "last is out of range"),
        ("swa", {"last": True}, "last is out of range"),
        ("swa", {"last": 2.0}, "last is out of range: found 2.0"),
        ("swa", {"last": "2"}, "last is out of range: found '2'"),
        ("ema", {"decay": "0.5"}, "the decay is out of range: found '0.5'"),
        ("ema", {"decay": [0.5, None]}, "the decay is out of range: found None"),
        ("swa", {"end": 2}, "end does nothing for swa"),
        ("swa", {"decay": 0.5}, "decay does nothing for swa"),
        ("lawa", {"last": 1, "classic": True}, "classic does nothing for lawa"),
        ("swa", {"last": []}, "last: no value given"),
    ],
)
def test_options_out_of_range_or_of_another_kind_are_refused(kind: Any, options: Any, message: str) -> None:
    with pytest.raises(SoupError, match=message):
        trajectory_weights(kind, 4, **options)


def test_a_live_model_gets_the_average_with_the_latest_counters() -> None:
    states = run_of(conv_batchnorm(), 5)
    model = conv_batchnorm()
    soup = trajectory_soup(states, model, kind="swa", last=3)
    assert same_bits(dict(model.state_dict()), plain_mean(states[2:]))
    assert same_bits(soup.state_dict(), plain_mean(states[2:]))
    assert soup.state_dict()["2.num_batches_tracked"] == 40
    assert (soup.ingredients, soup.weights) == ([f"checkpoints[{k}]" for k in (2, 3, 4)], [1 / 3] * 3)
    ema = trajectory_soup(states, model, kind="ema", decay=0.6, classic=True).state_dict()
    wanted = states[0]["1.weight"].double()
    for state in states[1:]:
        wanted = 0.6 * wanted + 0.4 * state["1.weight"].double()
    assert torch.allclose(ema["1.weight"], wanted.float(), atol=1e-6)


def test_the_best_window_on_held_out_data_is_taken() -> None:
    states = run_of(mlp(), 5)
    found = trajectory_soup(states, mlp(), (X, Y), "nll", kind="lawa", last=[1, 2, 3], end=[3, 4, 5])
    scores = {}
    for last in (1, 2, 3):
        for end in (3, 4, 5):
            model = mlp().eval()
            model.load_state_dict(plain_mean(states[end - last : end]))
            with torch.no_grad():
                scores[last, end] = nn.functional.cross_entropy(model(X).double(), Y).item()
    best = min(scores, key=lambda key: scores[key])
    assert (found.window.last, found.window.end) == best
    assert found.score == pytest.approx(scores[best], rel=1e-6)
    assert len(found.tried) == 9
    assert same_bits(found.state_dict(), plain_mean(states[best[1] - best[0] : best[1]]))
    tie = trajectory_soup([states[0]] * 3, mlp(), (X, Y), kind="swa", last=[2, 1, 3])
    assert tie.window.last == 2
    with pytest.raises(SoupError, match="several averages to choose from need held-out data"):
        trajectory_soup(states, mlp(), kind="ema", decay=[0.5, 0.9])


def test_batchnorm_is_estimated_anew_and_saved(tmp_path: Path) -> None:
    states = run_of(conv_batchnorm(), 4)
    batches = [X[:40], X[40:80], X[80:]]
    reference = conv_batchnorm()
    reference.load_state_dict(plain_mean(states[2:]))
    update_bn(batches, reference)
    model = conv_batchnorm()
    training = [(batch, Y[:40]) for batch in batches]
    soup = trajectory_soup(states, model, (X, Y), kind="swa", last=[2], training=training)
    soup.save(tmp_path / "soup.safetensors")
    out = load_file(tmp_path / "soup.safetensors")
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(out[name].double(), tensor.double(), atol=1e-5), name
    assert not torch.allclose(out["2.running_mean"], plain_mean(states[2:])["2.running_mean"], atol=1e-2)
    with torch.no_grad():
        assert soup.score == (reference.eval()(X).argmax(1) == Y).double().mean().item()


def test_the_soup_that_is_chosen_has_the_statistics_that_it_was_scored_with() -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(0)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for part in torch.randperm(len(X), generator=self.generator).split(20):
                yield 9 * X[part], Y[part]

    seen = []

    def nll(logits: Tensor, labels: Tensor) -> float:
        seen.append(model.state_dict()["2.running_var"].clone())
        return nn.functional.cross_entropy(logits.double(), labels).item()

    states, model = run_of(conv_batchnorm(), 4), conv_batchnorm()
    for last in ([1, 2, 3, 4], [4, 3, 2, 1]):
        seen.clear()
        metric = Metric(nll, direction="min")
        soup = trajectory_soup(states, model, (X, Y), metric, kind="swa", last=last, training=Shuffled())
        scored = seen[[window for window, _ in soup.tried].index(soup.window)]
        assert torch.equal(model.state_dict()["2.running_var"], scored)
        assert torch.equal(soup.state_dict()["2.running_var"], scored)
        assert len({tuple(row.tolist()) for row in seen}) == 4
        assert evaluate(model, (X, Y), metric) == soup.score == min(point.score for _, point in soup.tried)


def test_training_data_is_applied_as_held_out_data_is() -> None:
    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return model(batch["given"]["x"]), batch["y"]

    states, models = run_of(conv_batchnorm(), 3), (conv_batchnorm(), conv_batchnorm())
    held = HeldOut([{"given": {"x": X}, "y": Y}], forward)
    trajectory_soup(states, models[0], held, training=[{"given": {"x": 3 * X}, "y": Y}])
    trajectory_soup(states, models[1], (X, Y), training=[(3 * X, Y)])
    assert same_bits(dict(models[0].state_dict()), dict(models[1].state_dict()))


def test_patterns_and_misfits_are_as_in_other_recipes() -> None:
    states = run_of(mlp(), 3)
    model = mlp()
    head = model[3].weight.detach().clone()
    soup = trajectory_soup(states, model, kind="swa", exclude="^3")
    assert torch.equal(soup.state_dict()["3.weight"], head)
    states[2]["0.bias"] = torch.zeros(3)
    with pytest.raises(SoupError, match=r"checkpoints\[2\]: tensor '0\.bias': shape differs"):
        trajectory_soup(states, mlp(), HeldOut([(X, Y)], never), kind="swa", last=1)


def test_files_become_the_same_average_without_torch(tmp_path: Path) -> None:
    states = run_of(conv_batchnorm(), 4)
    paths = saved(tmp_path, states)
    lawa = trajectory_soup(paths, conv_batchnorm(), kind="lawa", last=2, end=3)
    for options, wanted in (
        (["--kind", "swa", "--last", "2"], trajectory_soup(paths, conv_batchnorm(), kind="swa", last=2)),
        (["--kind", "ema", "--decay", "0.7"], trajectory_soup(paths, conv_batchnorm(), kind="ema", decay=0.7)),
        (["--kind", "lawa", "--last", "2", "--end", "3"], lawa),
    ):
        out = tmp_path / f"{options[1]}.safetensors"
        code = (
            "import sys\nfrom pysoup.cli import main\n"
            f"code = main(['trajectory', {str(tmp_path / 'step-*.safetensors')!r}, '-o', {str(out)!r}, *{options!r}])\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\nsys.exit(code)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert same_bits(load_file(out), wanted.state_dict())


def test_the_command_says_in_which_order_it_took_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = saved(tmp_path, run_of(conv_batchnorm(), 3))
    assert main(["trajectory", str(tmp_path / "step-*"), "-o", str(tmp_path / "a.safetensors")]) == 0
    assert f"note: in this order: {', '.join(map(str, paths))}" in capsys.readouterr().out
    assert main(["trajectory", *map(str, paths), "-o", str(tmp_path / "b.safetensors")]) == 0
    assert "in this order" not in capsys.readouterr().out


def test_the_command_chooses_with_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write_task(tmp_path)
    generator = torch.Generator().manual_seed(4)
    rule = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    states = [{"weight": rule + 0.5 * torch.randn(3, 8, generator=generator)} for _ in range(5)]
    paths, run = saved(tmp_path, states), tmp_path / "run"
    asked = ["trajectory", *paths, "-o", str(run), "--kind", "lawa", "--last", "1,2,4", "--task", task]
    assert main(asked) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines[1:4]] == [
        ["lawa,", "last", k, "up", "to"] for k in ("1", "2", "4")
    ]  # fmt: skip
    trace = json.loads((run / "trace.json").read_text())
    best = max(trace["tried"], key=lambda one: one["score"])
    assert trace["window"]["last"] == best["last"]
    assert trace["score"] == best["score"]
    assert same_bits(load_file(run / "soup.safetensors"), plain_mean(states[5 - best["last"] :]))
    assert "shifted" in json.loads((run / "results.json").read_text())["tests"]
    assert main([*asked[:-2]]) == 1
    assert "several averages to choose from need --task" in capsys.readouterr().err
    assert main([*asked, "--force", "--recalibrate"]) == 1
    assert "has no train()" in capsys.readouterr().err
    assert main(["trajectory", *paths, "-o", "x", "--kind", "ema", "--decay", "0.5", "--recalibrate"]) == 2
    assert main(["trajectory", *paths, "-o", "x", "--last", "1.5"]) == 2
