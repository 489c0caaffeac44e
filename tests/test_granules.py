"""Granules are a partition of the model's tensors, named so that one can tell which they are."""

from __future__ import annotations

import pytest

from pysoup import SoupError
from pysoup.soups.learned.granules import granules_of

NAMES = [
    "scale",
    "embed.weight",
    "blocks.0.attn.weight",
    "blocks.0.attn.bias",
    "blocks.0.norm.weight",
    "blocks.11.attn.weight",
    "head.weight",
    "head.bias",
]


@pytest.mark.parametrize(
    "granularity",
    ["model", "layer", "tensor", ["attn"], [r"(blocks\.\d+)\.", "head"], {"body": r"blocks", "rest": "embed"}],
    ids=str,
)
def test_every_tensor_is_in_one_granule(granularity: object) -> None:
    granules = granules_of(granularity, NAMES)  # type: ignore[arg-type]
    assert sorted(name for names in granules.values() for name in names) == sorted(NAMES)
    assert all(granules.values())


def test_granules_of_each_kind() -> None:
    assert granules_of("model", NAMES) == {"model": NAMES}
    assert granules_of("tensor", NAMES) == {name: [name] for name in NAMES}
    assert granules_of("layer", NAMES) == {
        "scale": ["scale"],
        "embed": ["embed.weight"],
        "blocks.0.attn": ["blocks.0.attn.weight", "blocks.0.attn.bias"],
        "blocks.0.norm": ["blocks.0.norm.weight"],
        "blocks.11.attn": ["blocks.11.attn.weight"],
        "head": ["head.weight", "head.bias"],
    }


def test_a_pattern_with_a_group_makes_a_granule_of_each_match_and_the_first_pattern_wins() -> None:
    granules = granules_of(["norm", r"(blocks\.\d+)\.", "head"], NAMES)
    assert granules == {
        "rest": ["scale", "embed.weight"],
        "blocks.0": ["blocks.0.attn.weight", "blocks.0.attn.bias"],
        "norm": ["blocks.0.norm.weight"],
        "blocks.11": ["blocks.11.attn.weight"],
        "head": ["head.weight", "head.bias"],
    }
    assert list(granules_of({"block": r"blocks\.(\d+)", "top": "head"}, NAMES)) == [
        "rest",
        "block.0",
        "block.11",
        "top",
    ]


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("layers", "unknown granularity: found 'layers'"),
        ([], "no patterns for granules"),
        (["("], "not a pattern for granules: "),
        ([3], "not a pattern for granules: "),
        (["nothing_like_it"], "a pattern for granules takes no tensor: found 'nothing_like_it'"),
    ],
)
def test_what_makes_no_granules_is_an_error(granularity: object, message: str) -> None:
    with pytest.raises(SoupError) as caught:
        granules_of(granularity, NAMES)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_model_without_tensors_is_an_error() -> None:
    with pytest.raises(SoupError, match="no tensors to average"):
        granules_of("model", [])
