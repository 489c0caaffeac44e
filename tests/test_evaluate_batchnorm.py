"""recalibrate_batchnorm against torch.optim.swa_utils.update_bn."""

from __future__ import annotations

import copy

import pytest
import torch
from soup_models import conv_batchnorm
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut, recalibrate_batchnorm

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)) * 3 + 1
Y = torch.zeros(40).long()
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 40, 16)]


def buffers(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


@pytest.mark.parametrize(
    "data", [BATCHES, [x for x, _ in BATCHES], HeldOut(BATCHES), [{"input": x, "labels": y} for x, y in BATCHES]]
)
def test_statistics_equal_those_of_torch(data: object) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(conv_batchnorm(), nn.BatchNorm1d(7, momentum=0.3)).eval()
    ours[0][2].train()
    theirs = copy.deepcopy(ours)
    update_bn(BATCHES, theirs)
    flags = [module.training for module in ours.modules()]
    assert recalibrate_batchnorm(ours, data) == 2
    for one, other in zip(buffers(ours), buffers(theirs), strict=True):
        assert torch.equal(one, other)
    assert flags == [module.training for module in ours.modules()]
    assert (ours[0][2].momentum, ours[1].momentum) == (0.1, 0.3)


def test_layers_without_statistics_are_left_alone() -> None:
    assert recalibrate_batchnorm(nn.Linear(6, 2), BATCHES) == 0
    assert recalibrate_batchnorm(nn.BatchNorm1d(6, track_running_stats=False), BATCHES) == 0
    assert recalibrate_batchnorm(nn.LazyBatchNorm1d(), BATCHES) == 0
    layer = nn.SyncBatchNorm(6)
    assert recalibrate_batchnorm(layer, [X]) == 1
    assert torch.allclose(layer.running_mean, X.mean(0), atol=1e-6)


def test_a_frozen_batchnorm_is_estimated_too() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self[0].eval()
            return self

    model = Frozen(nn.BatchNorm1d(6)).train()
    assert recalibrate_batchnorm(model, [X]) == 1
    assert torch.allclose(model[0].running_mean, X.mean(0), atol=1e-6)
    assert not model[0].training


@pytest.mark.parametrize("momentum", [0.1, None])
def test_after_an_error_the_statistics_are_as_before(momentum: float | None) -> None:
    model = nn.Sequential(nn.BatchNorm1d(6, momentum=momentum))
    model(X)
    before = buffers(model)
    with pytest.raises(RuntimeError):
        recalibrate_batchnorm(model, [X, X[:, :5]])
    with pytest.raises(SoupError, match="no data"):
        recalibrate_batchnorm(model, [])
    assert all(torch.equal(a, b) for a, b in zip(before, buffers(model), strict=True))
    assert model[0].momentum == momentum
    assert model.training


def test_a_forward_of_ones_own_is_used() -> None:
    model = nn.BatchNorm1d(6)
    recalibrate_batchnorm(model, [{"pixels": X}], lambda model, batch: (model(batch["pixels"]), Y))
    assert torch.allclose(model.running_mean, X.mean(0), atol=1e-6)


def test_weights_written_under_the_callers_autocast_count() -> None:
    model, data = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), HeldOut([(X, Y)], autocast="bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(X)  # autocast keeps a copy of the weights
        for parameter in model[0].parameters():
            parameter.data.neg_()
        recalibrate_batchnorm(model, data)
        found = buffers(model)
    recalibrate_batchnorm(model, data)
    assert all(torch.equal(a, b) for a, b in zip(found, buffers(model), strict=True))
