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
from pysoup.finetune.train import _Losses, learning_rate_share, mixed_loss

HP = Hyperparameters(
    learning_rate=1e-2, weight_decay=1e-2, epochs=3, label_smoothing=0.1, mixup=0.4, seed=5, batch_size=16
)


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
    fine_tune(model, data() if source is None else source, hp)
    return weights(model)


def test_fine_tune_is_decided_by_its_seed() -> None:
    assert equal(trained(HP, noise=1), trained(HP, noise=2))
    assert not equal(trained(HP), trained(replace(HP, seed=6)))


def test_fine_tune_leaves_random_state_and_training_flags() -> None:
    model = net().eval()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fine_tune(model, data(), HP)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())


def test_fine_tune_learns() -> None:
    model = net()
    x, y = data(300)
    fine_tune(model, (x, y), Hyperparameters(learning_rate=3e-2, epochs=20, batch_size=32))
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
    torch.testing.assert_close(mixed_loss(model, (x, y), smoothing, share, partner), expected)


def test_unmixed_loss_is_cross_entropy() -> None:
    model = net().eval()
    x, y = data(20)
    expected = -model(x).log_softmax(1)[torch.arange(20), y].mean()
    torch.testing.assert_close(mixed_loss(model, (x, y), 0.0, 1.0, None), expected)


def test_one_step_is_clipped_adamw() -> None:
    """One full-batch step, written out: AdamW's first step moves each weight by lr * (sign-like ratio + decay)."""
    hp = Hyperparameters(learning_rate=0.01, weight_decay=0.1, epochs=1, batch_size=8)
    model = nn.Linear(6, 3)
    old = [p.detach().clone() for p in model.parameters()]
    x, y = data(8)
    x = x * 100  # a gradient far above norm 1
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 2
    fine_tune(model, (x, y), hp)
    for before, gradient, after in zip(old, gradients, model.parameters(), strict=True):
        clipped = gradient / norm
        step = clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(after.detach(), before * (1 - 0.01 * 0.1) - 0.01 * step, rtol=1e-4, atol=1e-5)


def shares(**fields: object) -> list[float]:
    hp = replace(HP, **fields)  # type: ignore[arg-type]
    return [learning_rate_share(step, 100, hp) for step in range(101)]


def test_schedule_rises_then_falls_to_zero() -> None:
    cosine = shares()
    assert cosine[:10] == [(step + 1) / 10 for step in range(10)]
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(cosine[10:]))


def test_cosine_is_that_of_torch_after_the_warm_up() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80, eta_min=0.3)
    expected = []
    for _ in range(80):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert shares(warmup=0.2, final_share=0.3)[20:100] == pytest.approx(expected)


def test_schedule_ends_at_the_final_share_and_stays_constant_at_one() -> None:
    cosine = shares(final_share=0.2)
    assert cosine[9:11] == [1.0, 1.0]
    assert cosine[55] == pytest.approx(0.6)
    assert cosine[100] == pytest.approx(0.2)
    assert set(shares(final_share=1.0)[9:]) == {1.0}


def test_linear_and_constant_schedules_follow_the_same_warm_up() -> None:
    linear = shares(schedule="linear")
    assert linear[:10] == shares()[:10]
    assert linear[10:] == pytest.approx([1 - step / 90 for step in range(91)])
    assert shares(schedule="linear", final_share=0.5)[100] == pytest.approx(0.5)
    assert shares(schedule="constant", warmup=0.3)[:30] == pytest.approx([(step + 1) / 30 for step in range(30)])
    assert set(shares(schedule="constant")[10:]) == {1.0}


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert shares(warmup=0.0)[:2] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_final_share_is_the_rate_the_optimizer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    fine_tune(net(), data(64), replace(HP, epochs=10, final_share=1.0))
    assert len(rates) == 40
    assert rates[3:] == [HP.learning_rate] * 37
    rates.clear()
    fine_tune(net(), data(64), replace(HP, epochs=10))
    assert rates[-1] < 0.01 * HP.learning_rate


def test_every_sample_of_full_batches_is_seen_once_per_epoch() -> None:
    seen: list[float] = []

    def watch(inputs: Tensor, hp: Hyperparameters, generator: torch.Generator) -> Tensor:
        seen.extend(inputs[:, 0].tolist())
        return inputs

    x, y = data(48)
    fine_tune(net(), (x, y), replace(HP, epochs=2), augment=watch)
    assert sorted(seen[:48]) == sorted(x[:, 0].tolist()) == sorted(seen[48:])
    assert seen[:48] != seen[48:]


def test_progress_counts_epochs() -> None:
    calls: list[tuple[int, int]] = []
    fine_tune(net(), data(), HP, progress=lambda done, total, what: calls.append((done, total)))
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
    hp = Hyperparameters(learning_rate=1e-2, epochs=5, batch_size=16)
    linear_probe(first, data(), hyperparameters=hp)
    linear_probe(second, DataLoader(TensorDataset(*data()), batch_size=16), hyperparameters=hp)
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
    with pytest.raises(SoupError, match="cannot tell inputs from labels in a training batch"):
        fine_tune(net(), [data()[0]], HP)


def test_loss_that_is_not_finite_is_an_error() -> None:
    x, y = data()
    with pytest.raises(SoupError, match="not finite at step 0"):
        fine_tune(net(), (x * math.nan, y), HP)


def test_gradient_is_not_clipped_at_norm_zero() -> None:
    """Weight decay aside, plain SGD would show the norm; AdamW's second step does, as its moments then differ."""
    x, y = data(32)
    results = []
    for clip_norm in (0.0, 1.0, 1e9):
        model = net()
        fine_tune(model, (x * 100, y), replace(HP, clip_norm=clip_norm))
        results.append(weights(model))
    assert equal(results[0], results[2])
    assert not equal(results[0], results[1])


def test_every_step_is_told_after_it_was_made() -> None:
    model = net()
    seen: list[tuple[int, int]] = []
    before = [weights(model)]

    def look(step: int, total: int) -> None:
        seen.append((step, total))
        assert not equal(before[-1], weights(model))
        before.append(weights(model))

    fine_tune(model, data(), HP, after_step=look)
    assert seen == [(step, 15) for step in range(1, 16)]


def test_autocast_computes_in_bfloat16_and_keeps_the_weights_wide() -> None:
    dtypes: list[torch.dtype] = []
    model = net()
    model.head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    fine_tune(model, data(), HP, autocast=torch.bfloat16)
    assert set(dtypes) == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    wide = trained(HP)
    assert not equal(wide, weights(model))
    for a, b in zip(wide, weights(model), strict=True):
        torch.testing.assert_close(a, b, rtol=0.2, atol=0.05)


def test_own_forward_takes_any_batch() -> None:
    """The same data in a batch that no rule knows gives the same weights."""

    def forward(model: nn.Module, batch: object) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, dict)
        return model(batch["image"]), batch["labels"]

    x, y = data()
    model = net()
    fine_tune(model, {"image": x, "labels": y}, HP, forward=forward)
    assert equal(weights(model), trained(HP))


def test_loader_that_is_longer_than_it_says_is_an_error() -> None:
    class Liar(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 1

    x, y = data(32)
    with pytest.raises(SoupError, match="another length than it says"):
        fine_tune(net(), Liar([(x[:16], y[:16]), (x[16:], y[16:])]), replace(HP, epochs=1))


@pytest.mark.parametrize("device", ["cpu", "cuda"], ids=["at once", "late"])
def test_first_loss_that_is_not_finite_is_named_also_where_losses_are_looked_at_late(device: str) -> None:
    """Looking at every loss would make a GPU wait; the check that comes later still knows the step."""

    def train() -> None:
        losses = _Losses(torch.device(device))
        for step in range(200):
            losses.add(torch.tensor({137: math.inf, 138: math.nan}.get(step, 1.0)))
        losses.check()

    with pytest.raises(SoupError, match=r"not finite at step 137.*found inf"):
        train()


def test_frozen_model_is_refused() -> None:
    with pytest.raises(SoupError, match="no parameter to train"):
        fine_tune(net().requires_grad_(False), data(), HP)
