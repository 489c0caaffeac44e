"""Training: deterministic by seed, its losses and schedule as a plain computation has them, its data as promised."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pysoup.errors import SoupError
from pysoup.finetune import Hyperparameters, fine_tune, linear_probe
from pysoup.finetune.train import learning_rate_share, mixed_loss

HP = Hyperparameters(learning_rate=1e-2, weight_decay=1e-2, epochs=3, label_smoothing=0.1, mixup=0.4, seed=5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def data(n: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def weights(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def trained(hp: Hyperparameters, source: object = None, noise: int = 0) -> list[Tensor]:
    model = net()
    torch.manual_seed(noise)  # the caller's random state must not matter
    fine_tune(model, data() if source is None else source, hp, batch_size=16)
    return weights(model)


def test_fine_tune_is_decided_by_its_seed() -> None:
    assert equal(trained(HP, noise=1), trained(HP, noise=2))
    assert not equal(trained(HP), trained(replace(HP, seed=6)))


def test_fine_tune_leaves_random_state_and_training_flags() -> None:
    model = net().eval()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fine_tune(model, data(), HP, batch_size=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())


def test_fine_tune_learns() -> None:
    model = net()
    x, y = data(300)
    fine_tune(model, (x, y), Hyperparameters(learning_rate=3e-2, epochs=20), batch_size=32)
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.95


def test_shuffling_loader_is_decided_by_the_seed_too() -> None:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True)

    assert equal(trained(HP, loader(), noise=1), trained(HP, loader(), noise=2))


def test_mixup_and_smoothing_match_soft_targets() -> None:
    """The oracle mixes smoothed one-hot targets and takes the cross-entropy by its definition, in float64."""
    model = net().double().eval()
    x, y = data(20)
    x = x.double()
    partner, share, smoothing = torch.randperm(20), 0.3, 0.2
    target = nn.functional.one_hot(y, 3).double() * (1 - smoothing) + smoothing / 3
    target = share * target + (1 - share) * target[partner]
    logits = model(share * x + (1 - share) * x[partner])
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed_loss(model, x, y, smoothing, share, partner), expected)


def test_unmixed_loss_is_cross_entropy() -> None:
    model = net().eval()
    x, y = data(20)
    expected = -model(x).log_softmax(1)[torch.arange(20), y].mean()
    torch.testing.assert_close(mixed_loss(model, x, y, 0.0, 1.0, None), expected)


def test_one_step_is_clipped_adamw() -> None:
    """One full-batch step, written out: AdamW's first step moves each weight by lr * (sign-like ratio + decay)."""
    hp = Hyperparameters(learning_rate=0.01, weight_decay=0.1, epochs=1)
    model = nn.Linear(6, 3)
    old = [p.detach().clone() for p in model.parameters()]
    x, y = data(8)
    x = x * 100  # a gradient far above norm 1
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 2
    fine_tune(model, (x, y), hp, batch_size=8)
    for before, gradient, after in zip(old, gradients, model.parameters(), strict=True):
        clipped = gradient / norm
        step = clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(after.detach(), before * (1 - 0.01 * 0.1) - 0.01 * step, rtol=1e-4, atol=1e-5)


def test_schedule_rises_then_falls_to_zero() -> None:
    shares = [learning_rate_share(step, 100, 0.1) for step in range(101)]
    assert shares[:10] == [(step + 1) / 10 for step in range(10)]
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


def test_schedule_ends_at_the_final_share_and_stays_constant_at_one() -> None:
    shares = [learning_rate_share(step, 100, 0.1, 0.2) for step in range(101)]
    assert shares[9:11] == [1.0, 1.0]
    assert shares[55] == pytest.approx(0.6)
    assert shares[100] == pytest.approx(0.2)
    assert {learning_rate_share(step, 100, 0.1, 1.0) for step in range(9, 101)} == {1.0}


def test_final_share_is_the_rate_the_optimizer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    fine_tune(net(), data(64), replace(HP, epochs=10, final_share=1.0), batch_size=16)
    assert len(rates) == 40
    assert rates[3:] == [HP.learning_rate] * 37
    rates.clear()
    fine_tune(net(), data(64), replace(HP, epochs=10), batch_size=16)
    assert rates[-1] < 0.01 * HP.learning_rate


def test_every_sample_of_full_batches_is_seen_once_per_epoch() -> None:
    seen: list[float] = []

    def watch(inputs: Tensor, hp: Hyperparameters, generator: torch.Generator) -> Tensor:
        seen.extend(inputs[:, 0].tolist())
        return inputs

    x, y = data(48)
    fine_tune(net(), (x, y), replace(HP, epochs=2), batch_size=16, augment=watch)
    assert sorted(seen[:48]) == sorted(x[:, 0].tolist()) == sorted(seen[48:])
    assert seen[:48] != seen[48:]


def test_progress_counts_epochs() -> None:
    calls: list[tuple[int, int]] = []
    fine_tune(net(), data(), HP, batch_size=16, progress=lambda done, total, what: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_linear_probe_changes_the_head_alone_and_learns() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = data(300)
    hp = Hyperparameters(learning_rate=3e-2, epochs=40)
    linear_probe(model, (x, y), head="head", hyperparameters=hp)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.75
    assert not model.head._forward_pre_hooks


def test_linear_probe_takes_a_loader() -> None:
    first, second = net(), net()
    linear_probe(first, data(), batch_size=16)
    linear_probe(second, DataLoader(TensorDataset(*data()), batch_size=16), batch_size=16)
    assert equal(weights(first), weights(second))


def test_wrong_head_names_the_submodules() -> None:
    with pytest.raises(SoupError, match=r"no submodule 'fc'.*body, head"):
        linear_probe(net(), data(), head="fc")


@pytest.mark.parametrize("source", [None, 3, "text", iter([]), []])
def test_data_of_another_kind_is_refused(source: object) -> None:
    with pytest.raises(SoupError, match="not training data"):
        fine_tune(net(), source, HP)


def test_unequal_lengths_are_refused() -> None:
    x, y = data()
    with pytest.raises(SoupError, match="one label per input"):
        fine_tune(net(), (x, y[:-1]), HP)


def test_batch_that_is_no_pair_is_refused() -> None:
    with pytest.raises(SoupError, match="a training batch is a pair"):
        fine_tune(net(), [data()[0]], HP)


def test_loss_that_is_not_finite_is_an_error() -> None:
    x, y = data()
    with pytest.raises(SoupError, match="not finite at step 0"):
        fine_tune(net(), (x * math.nan, y), HP)


def test_frozen_model_is_refused() -> None:
    with pytest.raises(SoupError, match="no parameter to train"):
        fine_tune(net().requires_grad_(False), data(), HP)
