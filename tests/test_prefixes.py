"""Wrappers' prefixes are recognised and said, and only names that are then the same are matched."""

from __future__ import annotations

import pytest
import torch

from pysoup.prefixes import Unwrapped, described, matched

PLAIN = ["conv.weight", "head.module.bias"]


class Compiled(torch.nn.Module):
    """Names as torch.compile's OptimizedModule gives them, without the seconds that its import takes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def test_unwrapped_takes_out_what_torch_itself_puts_in() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    names = list(model.state_dict())
    compiled = Compiled(model)
    parallel = torch.nn.DataParallel(model)
    both = torch.nn.DataParallel(compiled)
    inside = torch.nn.Sequential(Compiled(model[0]), model[1])
    for wrapped in (compiled, parallel, both, inside):
        assert list(wrapped.state_dict()) != names
        assert Unwrapped(wrapped.state_dict()).plain == names
    assert Unwrapped(both.state_dict()).wrappers == ("module", "_orig_mod")


@pytest.mark.parametrize(
    "names",
    [
        ["module.a", "head.a"],  # a submodule called "module", not a wrapper
        ["x.module.a"],
        ["a_orig_mod.b", "_orig_module.c"],
        [],
    ],
)
def test_unwrapped_leaves_names_that_only_look_alike(names: list[str]) -> None:
    assert Unwrapped(names).plain == names
    assert Unwrapped(names).wrappers == ()


def test_matched_maps_to_the_reference_and_says_how() -> None:
    wrapped = [f"module._orig_mod.{name}" for name in PLAIN]
    renamed, text = matched(wrapped, PLAIN) or ({}, "")
    assert renamed == dict(zip(wrapped, PLAIN, strict=True))
    assert text == "has 'module.' (DistributedDataParallel), '_orig_mod.' (torch.compile)"
    renamed, text = matched(PLAIN, wrapped) or ({}, "")
    assert renamed == dict(zip(PLAIN, wrapped, strict=True))
    assert text.startswith("lacks 'module.'")


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        (PLAIN, PLAIN),
        (list(reversed(PLAIN)), PLAIN),
        ([f"module.{name}" for name in PLAIN], [*PLAIN, "more"]),
        ([f"model.{name}" for name in PLAIN], PLAIN),  # no wrapper that torch makes
        (["_orig_mod.a", "a"], ["a", "b"]),  # would fall together
        ([], PLAIN),
    ],
)
def test_matched_does_not_guess(names: list[str], reference: list[str]) -> None:
    assert matched(names, reference) is None


def test_described_names_the_origin() -> None:
    assert described(["_fsdp_wrapped_module"]) == "'_fsdp_wrapped_module.' (FSDP)"


def test_matched_in_part_takes_names_of_its_own_along() -> None:
    wrapped = ["module.a", "module.b"]
    assert matched(["a", "b", "c"], wrapped) is None
    renamed, _ = matched(["a", "b", "c"], wrapped, all_of_them=False) or ({}, "")
    assert renamed == {"a": "module.a", "b": "module.b", "c": "module.c"}
    renamed, _ = matched([*wrapped, "module.c"], ["a", "b"], all_of_them=False) or ({}, "")
    assert renamed == {"module.a": "a", "module.b": "b", "module.c": "c"}
    assert matched(["a", "c"], ["a", "module.b"], all_of_them=False) is None  # some are the same as they are
    assert matched(["c", "d"], wrapped, all_of_them=False) is None
