"""The moving average of the weights: its definition computed otherwise, ties, buffers, high decays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pysoup.errors import SoupError
from pysoup.finetune import Hyperparameters, WeightAverage, fine_tune

HP = Hyperparameters(learning_rate=3e-2, epochs=5, batch_size=8, seed=1)


class Tied(nn.Module):
    """Tied weights, a float buffer, an integer one, and a bf16 weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.narrow = nn.Parameter(torch.randn(4, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x))) * self.narrow.float()


def data(n: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    return x, x.argmax(1)


def history(decay: float, hp: Hyperparameters = HP) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The weights after each step, and the average at the end."""
    torch.manual_seed(2)
    model = Tied()
    average = WeightAverage(model, decay)
    steps: list[dict[str, Tensor]] = []

    def keep(step: int, total: int) -> None:
        average.update()
        steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    fine_tune(model, data(), hp, after_step=keep)
    return steps, average.state_dict()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999, 0.9999999])
def test_average_is_the_weighted_mean_of_all_iterates(decay: float) -> None:
    """The sum by its definition, all iterates kept, in float64."""
    steps, average = history(decay)
    weights = [decay ** (len(steps) - 1 - t) for t in range(len(steps))]
    assert len(steps) == 30
    for name, tensor in average.items():
        if not tensor.is_floating_point():
            continue
        expected = sum(w * step[name].double() for w, step in zip(weights, steps, strict=True)) / sum(weights)
        tolerance = 1e-2 if tensor.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(tensor.double(), expected, rtol=tolerance, atol=tolerance)


def test_average_follows_torchs_own_once_the_start_is_forgotten() -> None:
    """After many steps the correction of the bias is nothing, and the usual recursion says the same."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    average = WeightAverage(model, 0.8)
    usual = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8))
    for _ in range(200):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 3) * 0.1)
        average.update()
        usual.update_parameters(model)
    torch.testing.assert_close(average.state_dict()["weight"], usual.module.weight.detach())


def test_first_step_is_the_first_iterate_exactly() -> None:
    steps, average = history(0.999, replace(HP, epochs=1, batch_size=48))
    assert len(steps) == 1
    assert all(torch.equal(average[name], tensor) for name, tensor in steps[0].items())


def test_high_decay_is_the_plain_mean_and_not_the_start() -> None:
    steps, average = history(0.9999999)
    mean = torch.stack([step["first.weight"] for step in steps]).mean(0)
    torch.testing.assert_close(average["first.weight"], mean, rtol=1e-4, atol=1e-5)


def test_ties_dtypes_and_integers_are_those_of_the_model() -> None:
    steps, average = history(0.9)
    assert average["first.weight"] is average["second.weight"]
    assert {name: tensor.dtype for name, tensor in average.items()} == {
        name: tensor.dtype for name, tensor in steps[-1].items()
    }
    assert average["norm.num_batches_tracked"] == 30
    model = Tied()
    model.load_state_dict(average)


def test_average_leaves_the_training_alone() -> None:
    steps, _ = history(0.9)
    torch.manual_seed(2)
    model = Tied()
    fine_tune(model, data(), HP)
    assert all(torch.equal(steps[-1][name], tensor) for name, tensor in model.state_dict().items())


def test_returned_average_stays_when_training_goes_on() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    average.update()
    taken = average.state_dict()["weight"].clone()
    kept = average.state_dict()["weight"]
    with torch.no_grad():
        model.weight.add_(1)
    average.update()
    assert torch.equal(kept, taken)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(SoupError, match="between 0 and 1"):
        WeightAverage(nn.Linear(2, 2), decay)


def test_average_of_nothing_is_refused() -> None:
    with pytest.raises(SoupError, match="no step"):
        WeightAverage(nn.Linear(2, 2), 0.9).state_dict()
