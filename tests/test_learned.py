"""A learned soup is that of the same recipe in plain torch, from the same numbers wherever its ingredients are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learned_oracle import COUNT, PlainMix, learn, made, shuffled
from safetensors import safe_open
from safetensors.torch import load_file
from soup_models import TiedLanguageModel, conv_batchnorm, encoded, pool, same_bits
from torch import Tensor

from pysoup import HeldOut, Soup, learned_soup
from pysoup.checkpoint import save_state_dict
from pysoup.evaluate import evaluate
from pysoup.mixture import Mixture
from pysoup.soups.learned.granules import granules_of

BATCH = 24


def files(folder: Path, states: list[dict[str, Tensor]]) -> list[str]:
    paths = [str(folder / f"model_{number}.safetensors") for number in range(len(states))]
    for state, path in zip(states, paths, strict=True):
        save_state_dict(state, path)
    return paths


@pytest.mark.parametrize("blocks", [None, 2])
@pytest.mark.parametrize("parametrization", ["softmax", "hyperplane"])
@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
def test_it_is_the_recipe_in_plain_torch(granularity: str, parametrization: str, blocks: int | None) -> None:
    model, states, x, y = made()
    granules = list(granules_of(granularity, [n for n, _ in model.named_parameters()]).values())
    lr = 0.1 if parametrization == "softmax" else 0.02
    steps, block_of = len(shuffled(x, y, BATCH, 3)(0)), None
    if blocks:
        cut = [[0, 1], [2, 3], [4]]
        hold = -(-steps // len(cut))
        block_of = lambda step: cut[step // hold % len(cut)]  # noqa: E731
    weights, beta, losses = learn(
        PlainMix(model, states, granules),
        shuffled(x, y, BATCH, 3),
        granules=len(granules),
        count=COUNT,
        softmax=parametrization == "softmax",
        lr=lr,
        epochs=3,
        block_of=block_of,
    )
    soup = learned_soup(
        states,
        model,
        HeldOut((x, y), batch_size=40),
        granularity=granularity,
        parametrization=parametrization,
        lr=lr,
        epochs=3,
        batch=BATCH,
        blocks=blocks,
        seed=3,
    )
    # A sum of the rest is rounded to the model's f64, and divided by none: hardly less exact than all in one.
    torch.testing.assert_close(soup.granule_weights, weights, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.tensor(soup.losses), torch.tensor(losses), rtol=1e-7, atol=1e-9)
    assert soup.beta == pytest.approx(beta, rel=1e-7)
    assert len(losses) == 3 * steps
    moved = (soup.granule_weights - 1 / COUNT).abs().max(0).values
    assert (moved > 1e-3).all()
    assert torch.allclose(soup.granule_weights.sum(1), torch.ones(len(granules), dtype=torch.float64))
    # It is in the model, and the score is that of the model.
    for name, value in PlainMix(model, states, granules).mixed(soup.granule_weights).items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert same_bits(soup.state_dict(), dict(model.state_dict()))
    assert soup.score == evaluate(model, (x, y))


def test_it_helps_where_some_ingredients_are_worse() -> None:
    model, states, x, y = made()
    uniform = PlainMix(model, states, [list(states[0])])(torch.full((1, COUNT), 1 / COUNT), x)
    soup = learned_soup(states, model, (x, y), "nll", epochs=20)
    assert soup.score is not None
    assert soup.beta * 0 == 0
    scaled = F.cross_entropy(soup.beta * model(x), y).item()
    assert scaled < 0.8 * F.cross_entropy(uniform, y).item()
    assert soup.weights[0] == max(soup.weights)
    assert soup.epochs[-1].loss < soup.epochs[0].loss


@pytest.mark.parametrize("blocks", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_do_not_depend_on_where_ingredients_are(
    tmp_path: Path, dtype: torch.dtype, blocks: int | None
) -> None:
    model, states, x, y = made(dtype=dtype)
    paths = files(tmp_path, states)
    ways: list[tuple[Any, dict[str, Any]]] = [
        (paths, {"place": "files"}),
        (paths, {"place": "memory"}),
        (paths, {"place": "files", "memory": "1MiB", "threads": 2}),
        (states, {}),
    ]
    soups = [
        learned_soup(source, made(dtype=dtype)[0], (x, y), preset="official-bylayer", batch=BATCH, blocks=blocks, **way)
        for source, way in ways
    ]
    for soup in soups[1:]:
        assert torch.equal(soup.granule_weights, soups[0].granule_weights)
        assert (soup.beta, soup.losses, soup.score) == (soups[0].beta, soups[0].losses, soups[0].score)
        assert same_bits(soup.state_dict(), soups[0].state_dict())
    assert not torch.equal(
        learned_soup(states, model, (x, y), preset="official-bylayer", batch=BATCH, seed=1).granule_weights,
        soups[0].granule_weights,
    )


def test_presets_are_those_of_the_papers() -> None:
    model, states, x, y = made()
    held = HeldOut((x, y), batch_size=60)
    paper = learned_soup(states, model, held)
    assert (paper.options["lr"], len(paper.epochs), list(paper.granules)) == (0.1, 3, ["model"])
    assert len(paper.losses) == 3 * 2
    official = learned_soup(states, model, held, preset="official-bylayer")
    assert (official.options["lr"], len(official.epochs), official.options["weight_decay"]) == (0.05, 5, 0.0)
    assert list(official.granules) == [name for name, _ in model.named_parameters()]
    assert len(official.losses) == 5  # batches of 256
    mehl = learned_soup(states, model, held, preset="mehl", blocks=2)
    assert (mehl.options["lr"], mehl.options["parametrization"], len(mehl.epochs)) == (0.01, "hyperplane", 5)
    assert learned_soup(states, model, held, preset="mehl", epochs=1).options["blocks"] == 18


def test_weights_on_the_hyperplane_may_be_negative_and_sum_to_one() -> None:
    model, states, x, y = made()
    soup = learned_soup(states, model, (x, y), parametrization="hyperplane", lr=0.1, epochs=15)
    assert soup.granule_weights.min() < 0
    assert sum(soup.weights) == pytest.approx(1.0)


def test_without_temperature_beta_stays_one() -> None:
    model, states, x, y = made()
    soup = learned_soup(states, model, (x, y), temperature=False)
    assert soup.beta == 1.0
    weights, _, _ = learn(
        PlainMix(model, states, [list(states[0])]),
        lambda epoch: [(x, y)],
        granules=1,
        count=COUNT,
        softmax=True,
        lr=0.1,
        epochs=3,
        temperature=False,
    )
    torch.testing.assert_close(soup.granule_weights, weights, rtol=1e-7, atol=1e-9)


def test_weight_decay_draws_to_the_uniform_soup_and_leaves_beta() -> None:
    model, states, x, y = made()
    free = learned_soup(states, model, (x, y), epochs=12)
    decayed = learned_soup(states, model, (x, y), epochs=12, weight_decay=1.0)
    assert max(decayed.weights) < max(free.weights)
    assert (decayed.beta - 1) * (free.beta - 1) > 0
    assert not any("beta" in note for note in free.notes)


def test_a_beta_that_turns_predictions_around_is_noted() -> None:
    model, _, x, _ = made()
    with torch.no_grad():
        least = model(x).argmin(1)
    soup = learned_soup(pool(model, 3, spread=0.01), model, (x, least), lr=0.3, epochs=10)
    assert soup.beta < 0
    assert any(note.startswith("beta ended at -") for note in soup.notes)


def test_the_lowest_epoch_is_kept_on_request() -> None:
    model, states, x, y = made()
    given = {"lr": 3.0, "epochs": 6, "batch": BATCH}
    kept = learned_soup(states, model, (x, y), "nll", keep="lowest", **given)
    losses = [epoch.heldout_loss for epoch in kept.epochs]
    assert all(isinstance(loss, float) for loss in losses)
    best = losses.index(min(losses)) + 1  # type: ignore[type-var]
    assert best < 6
    other = learned_soup(states, model, (x, y), "nll", **{**given, "epochs": best})
    assert torch.equal(kept.granule_weights, other.granule_weights)
    assert (kept.beta, kept.score) == (other.beta, other.score)
    assert kept.epochs[best - 1].score == kept.score
    expected = F.cross_entropy(kept.beta * model(x), y).item()
    assert losses[best - 1] == pytest.approx(expected, rel=1e-9)


def test_batchnorm_counters_and_ties_are_those_of_the_policy() -> None:
    for build in (conv_batchnorm, TiedLanguageModel):
        model, states, x, y = made(build)
        soup = learned_soup(states, model, (x, y), granularity="tensor", epochs=2)
        mixed = soup.state_dict()
        if build is conv_batchnorm:
            assert mixed["2.num_batches_tracked"] == max(state["2.num_batches_tracked"] for state in states)
            assert "2.running_var" in soup.granules
        else:
            assert mixed["head.weight"].data_ptr() == mixed["embed.weight"].data_ptr()
            assert "head.weight" not in soup.granules
    state = {**states[0]}
    assert set(mixed) == set(state)


@pytest.mark.parametrize("blocks", [None, 2])
def test_what_patterns_leave_out_stays_as_it_is_in_the_model(blocks: int | None) -> None:
    model, states, x, y = made()
    head = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("3.")}
    bodies = [{name: value for name, value in state.items() if name not in head} for state in states]
    granules = [["0.weight"], ["0.bias"]]
    weights, _, _ = learn(
        PlainMix(model, bodies, granules),
        lambda epoch: [(x, y)],
        granules=2,
        count=COUNT,
        softmax=True,
        lr=0.1,
        epochs=3,
        block_of=None if blocks is None else lambda step: [[0, 1], [2, 3], [4]][step % 3],
    )
    soup = learned_soup(bodies, model, (x, y), granularity="tensor", exclude=r"^3\.", blocks=blocks)
    torch.testing.assert_close(soup.granule_weights, weights, rtol=1e-7, atol=1e-9)
    assert list(soup.granules) == ["0.weight", "0.bias"]
    assert all(torch.equal(soup.state_dict()[name], value) for name, value in head.items())
    assert soup.options["exclude"] == [r"^3\."]


def test_dictionary_batches_and_a_loss_of_ones_own() -> None:
    from soup_models import HuggingFaceStyle

    model = HuggingFaceStyle()
    states = pool(model, 3, spread=0.3)

    def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    plain = learned_soup(states, model, encoded(), epochs=2)
    soup = learned_soup(states, model, encoded(), epochs=2, loss=smoothed)
    assert soup.options["loss"].endswith("smoothed")
    assert plain.options["loss"] == "cross entropy"
    assert soup.losses[0] != plain.losses[0]


def test_what_is_saved_says_how_the_soup_came_about(tmp_path: Path) -> None:
    model, states, x, y = made(dtype=torch.float32)
    paths = files(tmp_path, states)
    soup = learned_soup(paths, model, (x, y), granularity="layer", epochs=2)
    assert isinstance(soup, Soup)
    soup.save(tmp_path / "soup.safetensors")
    soup.save_trace(tmp_path / "trace.json")
    assert same_bits(load_file(tmp_path / "soup.safetensors"), dict(model.state_dict()))
    with safe_open(tmp_path / "soup.safetensors", "pt") as file:
        told = file.metadata()
    assert json.loads(told["pysoup.ingredients"]) == paths
    assert json.loads(told["pysoup.weights"]) == soup.weights
    rows = soup.granule_weights.tolist()
    assert json.loads(told["pysoup.granules"]) == dict(zip(soup.granules, rows, strict=True))
    assert float(told["pysoup.beta"]) == soup.beta
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["recipe"] == "learned"
    assert trace["losses"] == soup.losses
    assert [epoch["loss"] for epoch in trace["epochs"]] == [epoch.loss for epoch in soup.epochs]
    assert trace["granules"][0] == {
        "name": "0",
        "tensors": ["0.weight", "0.bias"],
        "weights": list(soup.weights_of("0").values()),
    }
    assert trace["options"]["optimizer"] == "AdamW"
    assert any("learned on the held-out data" in note for note in trace["notes"])
    # The share of an ingredient is that of its parameters.
    sizes = torch.tensor([6 * 16 + 16, 16 * 7 + 7], dtype=torch.float64)
    torch.testing.assert_close(
        torch.tensor(soup.weights, dtype=torch.float64), sizes / sizes.sum() @ soup.granule_weights
    )


def test_the_soup_stays_when_the_model_goes_on() -> None:
    model, states, x, y = made()
    soup = learned_soup(states, model, (x, y), epochs=1)
    before = soup.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same_bits(soup.state_dict(), before)


def test_training_flags_are_as_before() -> None:
    model, states, x, y = made()
    model.train()
    model[2].eval()
    learned_soup(states, model, (x, y), epochs=1)
    assert [module.training for module in model] == [True, True, False, True]


def test_blocks_read_no_file_but_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, states, x, y = made(dtype=torch.float32)
    paths = files(tmp_path, states)
    read: list[int] = []
    original = Mixture.dots

    def dots(self: Mixture, gradients: Any) -> Tensor:
        read.append(self.count)
        return original(self, gradients)

    monkeypatch.setattr(Mixture, "dots", dots)
    learned_soup(paths, model, (x, y), blocks=2, batch=BATCH, epochs=1)
    assert read == [3, 3, 3, 3, 2]  # the block and the sum of the rest
    read.clear()
    learned_soup(paths, model, (x, y), blocks=2, batch=BATCH, epochs=1, parametrization="hyperplane")
    assert read == [4, 4, 4, 4, 3]
