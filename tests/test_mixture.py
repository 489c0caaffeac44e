"""Mixture: a granule's tensors are its weights' mix, its products the gradient's; the same bits in every place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_models import Net, gradients, granules, saved, states
from oracle import BY_TORCH, accumulator, one_element, same_bits
from test_dots import by_the_contract
from torch import Tensor, nn

from pysoup import (
    _native,
    load_soup_,
    open_checkpoint,
    ops,
)
from pysoup.mixture import Mixture

PLACES = ("files", "memory", "device")
WEIGHTS = [[0.25, -1.5, 0.3, 0.0], [0.0, 0.0, 0.7, 0.1], [1.0, 1.0, 1.0, 1.0]]


def mixed_by_the_law(values: Sequence[Tensor], weights: Sequence[float], out: torch.dtype) -> Tensor:
    used = [(tensor, w) for tensor, w in zip(values, weights, strict=True) if w]
    if not used:
        return torch.zeros(values[0].shape, dtype=out)
    acc = accumulator([BY_TORCH[t.dtype] for t in values], BY_TORCH[out])
    factors = [w for _, w in used]
    rows = zip(*(t.double().flatten().tolist() for t, _ in used), strict=True)
    flat = [one_element(row, factors, 1.0, acc, BY_TORCH[out]) for row in rows]
    return torch.tensor(flat, dtype=torch.float64).to(out).reshape(values[0].shape)


@pytest.mark.parametrize(
    ("dtype", "model_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float16),
    ],
    ids=str,
)
def test_tensors_become_the_mix_of_their_granule_by_the_law(
    tmp_path: Path, dtype: torch.dtype, model_dtype: torch.dtype
) -> None:
    given = states(4, dtype)
    for state in given:
        state["large.weight"] = state["large.weight"][:, :7].clone()  # exact arithmetic is slow
    model = Net()
    model.large = nn.Linear(7, 127, bias=False)
    model = model.to(model_dtype)
    with Mixture(model, saved(tmp_path, given), integers="max") as probe:
        names = probe.names
    assert "head.weight" not in names
    assert "norm.running_mean" in names
    with Mixture(model, saved(tmp_path, given), granules(names), integers="max") as mixture:
        assert (mixture.count, mixture.granules) == (4, 3)
        assert mixture.write(WEIGHTS) == []
        for i, (name, tensor) in enumerate(zip(names, mixture.mixed(), strict=True)):
            expected = mixed_by_the_law([state[name] for state in given], WEIGHTS[i % 3], model_dtype)
            assert same_bits(tensor.contiguous(), expected), name
    assert model.head.weight is model.embed.weight
    assert model.norm.num_batches_tracked.item() == 3


@pytest.mark.parametrize("gradient", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_follow_the_contract_tensor_by_tensor(
    tmp_path: Path, dtype: torch.dtype, gradient: torch.dtype
) -> None:
    given = states(3, dtype)
    with Mixture(Net(), saved(tmp_path, given), integers="first") as mixture:
        names = mixture.names
        given_gradients: list[Tensor | None] = [g.to(gradient) for g in gradients(names, given[0])]
        given_gradients[names.index("norm.bias")] = None
        found = mixture.dots(given_gradients)
    assert found.dtype == torch.float64
    assert found.shape == (1, 3)
    for k, state in enumerate(given):
        total = 0.0
        for name, one in zip(names, given_gradients, strict=True):
            if one is not None:
                total += by_the_contract(one.flatten(), state[name].flatten())
        assert found[0, k].item() == total


def test_products_are_those_of_plain_torch_for_each_granule(tmp_path: Path) -> None:
    given = states(4)
    with Mixture(Net(), saved(tmp_path, given), integers="first") as probe:
        names = probe.names
    wanted = gradients(names, given[0])
    with Mixture(Net(), saved(tmp_path, given), granules(names), integers="first") as mixture:
        found = mixture.dots(wanted)
    for g in range(3):
        for k, state in enumerate(given):
            rows = [(wanted[i], state[n]) for i, n in enumerate(names) if i % 3 == g]
            expected = sum((one.double() * x.double()).sum() for one, x in rows)
            assert found[g, k].item() == pytest.approx(float(expected), rel=1e-11, abs=1e-11)


def results(mixture: Mixture, wanted: Sequence[Tensor | None]) -> tuple[list[Tensor], Tensor]:
    mixture.write(WEIGHTS)
    return [t.clone().contiguous() for t in mixture.mixed()], mixture.dots(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_for_any_place_memory_threads_and_isa(tmp_path: Path, dtype: torch.dtype) -> None:
    given = states(4, dtype)
    sources = saved(tmp_path, given)
    with Mixture(Net(), sources, integers="first") as probe:
        names = probe.names
    wanted = gradients(names, given[0])
    first: tuple[list[Tensor], Tensor] | None = None
    runs: list[dict[str, Any]] = [{"place": place} for place in (*PLACES, "auto")]
    runs += [{"memory": memory, "threads": threads} for memory in ("200KiB", "1MiB") for threads in (1, 3)]
    runs += [
        {"sources": list(zip("abcd", given, strict=True))},
        {"sources": [*sources[:2], ("c", given[2]), sources[3]]},
    ]
    for isa in _native.capabilities()["isas"]:
        for options in runs:
            options = {"sources": sources, "integers": "first", **options}
            with (
                _native.force_isa(isa),
                Mixture(Net(), options.pop("sources"), granules(names), **options) as mixture,
            ):
                found = results(mixture, wanted)
            first = first or found
            assert all(map(same_bits, found[0], first[0])), (isa, options)
            assert same_bits(found[1], first[1]), (isa, options)


def test_the_same_bits_from_files_read_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = states(4)
    sources = saved(tmp_path, given)
    with Mixture(Net(), sources, integers="first") as probe:
        names = probe.names
    wanted, found = gradients(names, given[0]), []
    for way in ("off", "on"):
        monkeypatch.setenv("PYSOUP_DIRECT", way)
        with Mixture(Net(), sources, granules(names), integers="first") as mixture:
            found.append(results(mixture, wanted))
    assert all(map(same_bits, found[0][0], found[1][0]))
    assert same_bits(found[0][1], found[1][1])


def test_weights_of_zero_are_not_read(tmp_path: Path) -> None:
    given = states(3)
    for tensor in given[1].values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    model = Net()
    with Mixture(model, saved(tmp_path, given), integers="first") as mixture:
        assert mixture.write([0.5, 0.0, 0.5]) == []
        assert all(torch.isfinite(t).all() for t in mixture.mixed())
        assert mixture.write([0.5, 0.1, 0.5]) == mixture.names
        assert mixture.write([0.0, 0.0, 0.0]) == []
        assert not any(t.any() for t in mixture.mixed())


def test_equal_weights_are_the_soup_up_to_rounding(tmp_path: Path) -> None:
    sources = saved(tmp_path, states(3))
    model, expected = Net(), Net()
    load_soup_(expected, [source for _, source in sources], integers="first")
    with Mixture(model, sources, integers="first") as mixture:
        mixture.write(torch.full((1, 3), 1 / 3, dtype=torch.float64, requires_grad=True))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_a_gradient_through_the_mixture_is_that_of_stacked_parameters(tmp_path: Path) -> None:
    given = states(3)
    model = Net()
    with Mixture(model, saved(tmp_path, given), integers="first") as probe:
        names = probe.names
    weights = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ids = torch.arange(11)

    def loss_of(embed: Tensor, large: Tensor) -> Tensor:
        return torch.tanh(embed[ids]).square().sum() + large.sin().mean()

    stacked = {name: torch.stack([state[name].double() for state in given]) for name in names}
    plain = {n: torch.tensordot(weights[i % 3], stacked[n], 1) for i, n in enumerate(names)}
    loss_of(plain["embed.weight"], plain["large.weight"]).backward()
    with Mixture(model, saved(tmp_path, given), granules(names), integers="first") as mixture:
        mixture.write(weights)
        model.zero_grad()
        loss_of(model.embed.weight, model.large.weight).backward()
        parameters = dict(model.named_parameters())
        found = mixture.dots([parameters[n].grad if n in parameters else None for n in names])
    assert weights.grad is not None
    torch.testing.assert_close(found, weights.grad, rtol=1e-5, atol=1e-5)


def test_complex_tensors_are_mixed_and_multiplied_as_pairs_of_reals(tmp_path: Path) -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.zeros(5, dtype=torch.complex64))

    given = [{"phase": torch.randn(5, dtype=torch.complex64)} for _ in range(2)]
    path = tmp_path / "1.pt"
    torch.save(given[1], path)
    model, gradient = Wave(), torch.randn(5, dtype=torch.complex64)
    with Mixture(model, [("a", given[0]), ("b", open_checkpoint(path))]) as mixture:
        mixture.write([0.5, 2.0])
        torch.testing.assert_close(model.phase.detach(), 0.5 * given[0]["phase"] + 2 * given[1]["phase"])
        found = mixture.dots([gradient])
    expected = [(gradient.conj() * state["phase"]).sum().real.item() for state in given]
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_gradients_of_any_layout_count_in_the_order_of_the_names(tmp_path: Path) -> None:
    given = states(2)
    with Mixture(Net(), saved(tmp_path, given), integers="first") as mixture:
        wanted = gradients(mixture.names, given[0])
        odd = [g.to(memory_format=torch.channels_last) if g.dim() == 4 else g for g in wanted]
        odd = [g.t().contiguous().t() if g.dim() == 2 else g for g in odd]
        assert same_bits(mixture.dots(odd), mixture.dots(wanted))
        ones = [torch.ones(()).expand(g.shape) for g in wanted]
        assert same_bits(mixture.dots(ones), mixture.dots([g.contiguous() for g in ones]))
        assert not mixture.dots([None] * len(wanted)).any()


def test_autograd_is_told_and_buffers_follow(tmp_path: Path) -> None:
    model = Net()
    with Mixture(model, saved(tmp_path, states(2)), integers="first") as mixture:
        version, buffer = model.large.weight._version, model.norm.running_mean
        mixture.write([0.5, 0.5])
        assert model.large.weight._version > version
        assert model.norm.running_mean is buffer
        assert mixture.mixed()[mixture.names.index("large.weight")].data_ptr() == model.large.weight.data_ptr()


def test_all_pairs_have_the_bits_of_files_for_any_place_memory_and_threads(tmp_path: Path) -> None:
    given = states(3)
    sources = saved(tmp_path, given)
    runs: list[dict[str, Any]] = [{"place": place} for place in PLACES]
    runs += [{"memory": memory, "threads": threads} for memory in ("200KiB", "1MiB") for threads in (1, 3)]
    # Tied tensors under one name here, both there.
    runs += [{"sources": list(zip("abc", given, strict=True))}, {"sources": [*sources[:2], ("c", given[2])]}]
    for options in runs:
        with Mixture(Net(), **{"sources": sources, "integers": "first", **options}) as mixture:
            names, found = mixture.names, mixture.gram()
        assert same_bits(found, ops.gram([[state[name] for name in names] for state in given])), options
    rows = torch.stack([given[k]["large.weight"].double().flatten() for k in range(3)])
    torch.testing.assert_close(found[names.index("large.weight")], rows @ rows.T, rtol=1e-12, atol=1e-9)
