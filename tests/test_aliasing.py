"""Shared memory is judged by elements: an oracle of byte addresses against views of random strides."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from pysoup import IncompatibleError
from pysoup.aliasing import refuse_overlap, ties


def addresses(tensor: Tensor) -> list[int]:
    """The address of every byte of every element."""
    width, places = tensor.element_size(), itertools.product(*map(range, tensor.shape))
    starts = [tensor.data_ptr() + width * sum(i * s for i, s in zip(at, tensor.stride(), strict=True)) for at in places]
    return [start + byte for start in starts for byte in range(width)]


def random_view(base: Tensor, shape: list[int], rng: random.Random) -> Tensor:
    typed = base.view(rng.choice([torch.float32, torch.int16, torch.int64]))
    if rng.random() < 0.3:
        stride = list(torch.empty(shape).stride())
    else:
        stride = [rng.randint(0 if rng.random() < 0.1 else 1, 6) for _ in shape]
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True) if n)
    return typed.as_strided(shape, stride, rng.randint(0, typed.numel() - reach))


def test_any_views_are_refused_exactly_where_a_byte_is_shared() -> None:
    rng, counts = random.Random(7), {True: 0, False: 0}
    base = torch.zeros(70, dtype=torch.int64)
    for _ in range(2000):
        outs, column = [], []
        for _ in range(rng.randint(1, 2)):
            shape = [rng.randint(0 if rng.random() < 0.1 else 1, 4) for _ in range(rng.randint(0, 3))]
            outs.append(random_view(base, shape, rng))
            column.append(outs[-1].detach() if rng.random() < 0.2 else random_view(base, shape, rng))
        written = [byte for out in outs for byte in addresses(out)]
        others = [t for t, out in zip(column, outs, strict=True) if addresses(t) != addresses(out)]
        read = {byte for tensor in others for byte in addresses(tensor)}
        shared = len(set(written)) < len(written) or bool(read & set(written))
        counts[shared] += 1
        if shared:
            with pytest.raises(IncompatibleError, match="overlap"):
                refuse_overlap(["a", "b"], outs, [column], ["input"])
        else:
            refuse_overlap(["a", "b"], outs, [column], ["input"])
    assert min(counts.values()) > 400, "both outcomes are tried"


def test_an_output_may_be_its_own_input_but_not_anothers() -> None:
    base = torch.zeros(6, 8)
    left, right = base[:, :4], base[:, 4:]
    refuse_overlap(["a", "b"], [left, right], [[left, right], [left, torch.ones(6, 4)]], ["first", "second"])
    with pytest.raises(IncompatibleError, match=r"tensor 'b': out overlaps.*shared with 'a' of second"):
        refuse_overlap(["a", "b"], [left, right], [[left, right], [right, torch.ones(6, 4)]], ["first", "second"])
    square = torch.zeros(4, 4)
    with pytest.raises(IncompatibleError, match="shared with 'a' of first"):
        refuse_overlap(["a"], [square], [[square.t()]], ["first"])


def test_ties_are_the_same_view_and_empty_tensors_are_none() -> None:
    t, e = torch.zeros(4, 4), torch.zeros(0)
    assert ties([t, t.detach(), t[:2], t.t(), e, e, t.view(torch.int32), t.view(4, 4)]) == {1: 0, 7: 0}
