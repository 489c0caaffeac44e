"""Mixture: what does not fit, has changed or is closed is one line, and nothing stays open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mixed_models import Net, gradients, saved, states
from torch import nn

from pysoup import (
    CheckpointError,
    IncompatibleError,
    SoupError,
    WeightsError,
)
from pysoup.mixture import Mixture

PLACES = ("files", "memory", "device")
WEIGHTS = [[0.25, -1.5, 0.3, 0.0], [0.0, 0.0, 0.7, 0.1], [1.0, 1.0, 1.0, 1.0]]


def test_granules_must_be_a_partition(tmp_path: Path) -> None:
    model, sources = nn.Linear(2, 2), [("a", nn.Linear(2, 2).state_dict())]
    for wrong, text in (
        ([["weight"]], "'bias'.*in no granule"),
        ([["weight"], ["bias", "weight"]], "'weight'.*in two granules"),
        ([["weight", "bias", "other"]], "'other'.*not an averaged tensor"),
        (["weight", "bias"], "a granule is a list of names"),
    ):
        with pytest.raises(IncompatibleError, match=text):
            Mixture(model, sources, wrong)
    with pytest.raises(SoupError, match="not a place"):
        Mixture(model, sources, place="disk")
    with pytest.raises(SoupError, match="nothing to mix"):
        Mixture(model, [])


def test_weights_and_gradients_that_do_not_fit_are_refused() -> None:
    model = nn.Linear(2, 2)
    with Mixture(model, [(name, nn.Linear(2, 2).state_dict()) for name in "ab"]) as mixture:
        before = [t.clone() for t in mixture.mixed()]
        for weights in ([1.0], [[1.0, 0.0], [1.0, 0.0]], [], "ab", [[1.0, [2.0]]]):
            with pytest.raises(WeightsError):
                mixture.write(weights)
        with pytest.raises(WeightsError, match="weight 2 of granule 1 is not finite"):
            mixture.write([0.0, float("nan")])
        assert all(map(torch.equal, mixture.mixed(), before))
        good = [torch.ones(2, 2), torch.ones(2)]
        for gradient, text in (
            (good[:1], "number of gradients"),
            ([torch.ones(2, 3), good[1]], "'weight'.*shape"),
            ([good[0].long(), good[1]], "'weight'.*dtype"),
            ([good[0].to(torch.complex64), good[1]], "'weight'.*dtype"),
            ([good[0].to_sparse(), good[1]], "'weight'.*sparse"),
        ):
            with pytest.raises(IncompatibleError, match=text):
                mixture.dots(gradient)


def test_a_model_whose_tensors_were_replaced_is_refused() -> None:
    model = nn.Linear(2, 2)
    with Mixture(model, [("a", nn.Linear(2, 2).state_dict())]) as mixture:
        model.weight = nn.Parameter(torch.ones(2, 2))
        with pytest.raises(SoupError, match="were replaced"):
            mixture.write([1.0])


def test_a_closed_mixture_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with Mixture(model, [("a", nn.Linear(2, 2).state_dict())]) as mixture:
        pass
    for use in (lambda: mixture.write([1.0]), lambda: mixture.dots([None, None]), mixture.gram):
        with pytest.raises(SoupError, match="the mixture is closed"):
            use()


def test_ingredients_that_a_write_would_change_are_refused() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2).state_dict()
    own = {"weight": model.weight.detach().t(), "bias": other["bias"]}
    for place in PLACES:
        with pytest.raises(IncompatibleError, match="mine: tensor 'weight': shares memory with the model"):
            Mixture(model, [("other", other), ("mine", own)], place=place)


def test_ingredients_must_fit_the_model(tmp_path: Path) -> None:
    given = states(2)
    given[1]["large.weight"] = given[1]["large.weight"][:, :3].clone()
    with pytest.raises(IncompatibleError, match=r"1\.pt.*'large.weight'.*shape"):
        Mixture(Net(), saved(tmp_path, given))
    counts = [torch.tensor([1, 2]), torch.tensor([1, 3])]

    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("seen", torch.zeros(2, dtype=torch.long))

    pairs = [(str(k), {**Counting().state_dict(), "seen": count}) for k, count in enumerate(counts)]
    with pytest.raises(IncompatibleError, match="'seen'"):
        Mixture(Counting(), pairs)


def test_a_file_cut_short_is_named_with_its_tensor(tmp_path: Path) -> None:
    given = states(3)
    sources = saved(tmp_path, given)
    with Mixture(Net(), sources, integers="first") as mixture:
        mixture.write([1.0, 1.0, 1.0])
        wanted = gradients(mixture.names, given[0])
        os.truncate(tmp_path / "2.safetensors", (tmp_path / "2.safetensors").stat().st_size // 2)
        with pytest.raises(CheckpointError, match=r"2\.safetensors.*tensor.*model holds part"):
            mixture.write([1.0, 1.0, 1.0])
        with pytest.raises(CheckpointError, match=r"2\.safetensors.*tensor"):
            mixture.dots(wanted)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    given = states(2)
    with Mixture(Net(), saved(tmp_path, given), integers="first") as mixture:
        with open(tmp_path / "0.safetensors", "r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\0")
        os.utime(tmp_path / "0.safetensors", (1, 1))
        with pytest.raises(CheckpointError, match=r"0\.safetensors.*changed"):
            mixture.dots(gradients(mixture.names, given[0]))
        with pytest.raises(CheckpointError, match=r"0\.safetensors.*changed"):
            mixture.write([1.0, 1.0])


def test_too_little_memory_is_refused(tmp_path: Path) -> None:
    given = states(3)
    sources = saved(tmp_path, given)
    with pytest.raises(SoupError, match="memory is too small"):
        Mixture(Net(), sources, integers="first", memory=900)
    with Mixture(Net(), sources, integers="first", memory=5000) as mixture:
        mixture.write([1.0, 1.0, 1.0])
        with pytest.raises(SoupError, match="memory is too small"):
            mixture.dots(gradients(mixture.names, given[0]))


def test_no_file_stays_open(tmp_path: Path) -> None:
    def is_open() -> bool:
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return any(str(tmp_path) in os.path.realpath(link) for link in links)

    mixture = Mixture(Net(), saved(tmp_path, states(2)), integers="first")
    assert is_open()
    mixture.close()
    assert not is_open()
    with Mixture(Net(), saved(tmp_path, states(2)), integers="first", place="memory") as mixture:
        assert mixture.place == "memory"
        assert not is_open()
        for path in tmp_path.iterdir():
            path.unlink()
        assert mixture.write([0.5, 0.5]) == []
