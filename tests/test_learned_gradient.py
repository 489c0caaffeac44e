"""The gradient for the mixing weights is that of plain autograd through stacked checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learned_oracle import PlainMix
from soup_models import HuggingFaceStyle, TiedLanguageModel, conv_batchnorm, encoded, images, mlp, pool, tokens
from torch import Tensor, nn

from pysoup import SoupError
from pysoup.evaluate import default_forward
from pysoup.mixture import Mixture
from pysoup.soups.learned.gradient import MixedModel
from pysoup.soups.learned.granules import granules_of

GRANULARITIES: list[Any] = ["model", "layer", "tensor", ["weight", "."]]
COUNT = 3


class Recurrent(nn.Module):
    """An LSTM keeps a list of its own parameters; one parameter is not used at all, one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Linear(5, 7)
        self.frozen.weight.requires_grad_(False)
        self.register_buffer("shift", torch.randn(7))

    def forward(self, ids: Tensor) -> Tensor:
        return self.frozen(self.lstm(self.embed(ids))[0][:, -1]) + self.shift


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": (mlp, images),
    "batchnorm": (conv_batchnorm, images),
    "tied": (TiedLanguageModel, tokens),
    "keywords": (HuggingFaceStyle, encoded),
    "recurrent": (Recurrent, tokens),
}


def made(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[dict[str, Tensor]], Any]:
    torch.manual_seed(1)
    build, data = MODELS[kind]
    model = build().to(dtype).eval()
    states = pool(model, COUNT, spread=0.3)
    batch = data()
    if isinstance(batch, tuple) and batch[0].is_floating_point():
        batch = (batch[0].to(dtype), batch[1])
    return model, states, batch


def weights_of(granules: int) -> Tensor:
    raw = torch.randn(granules, COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.softmax(raw, 1).requires_grad_(True)


def inputs_of(batch: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor], Tensor]:
    if isinstance(batch, dict):
        return (), {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    return batch[:-1], {}, batch[-1]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "batchnorm"])
def test_gradients_are_those_of_autograd_through_stacked_checkpoints(kind: str, granularity: Any) -> None:
    model, states, batch = made(kind)
    sources = [(str(number), state) for number, state in enumerate(states)]
    names = Mixture(model, sources).names
    granules = list(granules_of(granularity, names).values())
    ours, theirs = weights_of(len(granules)), weights_of(len(granules))
    inputs, named, labels = inputs_of(batch)
    plain = PlainMix(model, states, granules)
    expected_logits = plain(theirs, *inputs, **named)
    expected_loss = F.cross_entropy(expected_logits, labels)
    (expected,) = torch.autograd.grad(expected_loss, theirs)

    flags = [p.requires_grad for p in model.parameters()]
    with Mixture(model, sources, granules) as mixture:
        mixed = MixedModel(model, mixture)
        with mixed.differentiable():
            logits, found = mixed(ours, default_forward, batch)
            loss = F.cross_entropy(logits, found)
            (gradient,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-12, atol=1e-12)
    scale = expected.abs().max().item()
    assert scale > 1e-4
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12 * scale)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(b.requires_grad for b in model.buffers())
    assert all(p.grad is None for p in model.parameters())
    # The model holds the mix itself, no copy of it.
    for name, value in plain.mixed(theirs).items():
        torch.testing.assert_close(model.state_dict()[name], value.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("granularity", ["model", "tensor"])
@pytest.mark.parametrize("kind", MODELS)
def test_gradcheck_finds_the_derivative_of_every_weight(kind: str, granularity: str) -> None:
    # Of BatchNorm, too, whose running statistics are mixed with the weights.
    model, states, batch = made(kind)
    batch = {k: v[:5] for k, v in batch.items()} if isinstance(batch, dict) else tuple(part[:5] for part in batch)
    sources = [(str(number), state) for number, state in enumerate(states)]
    granules = list(granules_of(granularity, Mixture(model, sources).names).values())
    with Mixture(model, sources, granules) as mixture:
        mixed = MixedModel(model, mixture)

        class Anew(torch.autograd.Function):
            """The differences mix the model anew, so each backward pass needs a forward pass of its own."""

            @staticmethod
            def forward(ctx: Any, weights: Tensor) -> Tensor:
                ctx.save_for_backward(weights)
                return mixed(weights, default_forward, batch)[0].detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                with torch.enable_grad():
                    weights = ctx.saved_tensors[0].detach().requires_grad_(True)
                    return torch.autograd.grad(mixed(weights, default_forward, batch)[0], weights, gradient)[0]

        with mixed.differentiable():
            assert torch.autograd.gradcheck(Anew.apply, weights_of(len(granules)), eps=1e-6, atol=1e-6, rtol=1e-6)


def test_float32_gradients_agree_to_a_millionth() -> None:
    model, states, batch = made("mlp", torch.float32)
    sources = [(str(number), state) for number, state in enumerate(states)]
    granules = list(granules_of("layer", Mixture(model, sources).names).values())
    ours, theirs = weights_of(len(granules)), weights_of(len(granules))
    (expected,) = torch.autograd.grad(
        F.cross_entropy(PlainMix(model, states, granules)(theirs, batch[0]), batch[1]), theirs
    )
    with Mixture(model, sources, granules) as mixture:
        mixed = MixedModel(model, mixture)
        with mixed.differentiable():
            logits, labels = mixed(ours, default_forward, batch)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), ours)
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_in_bfloat16_the_rounding_counts_as_none() -> None:
    model, states, batch = made("mlp", torch.bfloat16)
    sources = [(str(number), state) for number, state in enumerate(states)]
    granules = list(granules_of("tensor", Mixture(model, sources).names).values())
    weights = weights_of(len(granules))
    with Mixture(model, sources, granules) as mixture:
        mixed = MixedModel(model, mixture)
        with mixed.differentiable():
            logits, labels = mixed(weights, default_forward, batch)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels), weights)
    # The gradients of the rounded tensors themselves, then exact products with the ingredients.
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]).float(), batch[1]), list(model.parameters()))
    expected = torch.stack(
        [
            torch.stack([(g.double() * state[name].double()).sum() for state in states])
            for (name, _), g in zip(model.named_parameters(), gradients, strict=True)
        ]
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_evaluation_of_batchnorm_has_the_same_bits_with_gradients_for_its_statistics() -> None:
    model, states, (x, _) = made("batchnorm", torch.float32)
    sources = [(str(number), state) for number, state in enumerate(states)]
    with Mixture(model, sources) as mixture:
        mixed = MixedModel(model, mixture)
        weights = weights_of(1)
        with mixed.differentiable():
            logits, _ = mixed(weights, default_forward, (x, torch.zeros(len(x))))
            assert torch.autograd.grad(logits.sum(), weights)[0].isfinite().all()
        with torch.no_grad():
            assert torch.equal(model(x), logits)


def test_gradients_reach_the_weights_under_no_grad_and_inference_mode() -> None:
    model, states, batch = made("mlp")
    sources = [(str(number), state) for number, state in enumerate(states)]
    with Mixture(model, sources) as mixture:
        mixed = MixedModel(model, mixture)
        for context in (torch.no_grad(), torch.inference_mode()):
            weights = weights_of(1)
            with context, mixed.differentiable():
                logits, _ = mixed(weights, default_forward, batch)
                assert torch.autograd.grad(logits.sum(), weights)[0].abs().sum() > 0


def test_a_forward_without_gradients_is_an_error() -> None:
    model, states, batch = made("mlp")

    @torch.no_grad()
    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return model(batch[0]), batch[1]

    with Mixture(model, [(str(number), state) for number, state in enumerate(states)]) as mixture:
        mixed = MixedModel(model, mixture)
        with mixed.differentiable(), pytest.raises(SoupError, match="no gradient of the logits reaches the weights"):
            mixed(weights_of(1), forward, batch)


def test_the_graph_of_a_batch_is_used_once() -> None:
    model, states, batch = made("mlp")
    with Mixture(model, [(str(number), state) for number, state in enumerate(states)]) as mixture:
        mixed = MixedModel(model, mixture)
        weights = weights_of(1)
        with mixed.differentiable():
            logits, _ = mixed(weights, default_forward, batch)
            logits.sum().backward(retain_graph=True)
            with pytest.raises(SoupError, match="used up"):
                logits.sum().backward()
