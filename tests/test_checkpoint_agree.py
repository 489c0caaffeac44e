"""Whether checkpoints fit together is judged before data is read, and the error says where they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_files import entry, floats, raw_file

from pysoup.checkpoint import (
    Checkpoint,
    agree,
    agreement,
    dtype_differences,
    duplicate_inputs,
    open_checkpoint,
    refuse_scaled_f8,
    require_same,
)
from pysoup.errors import CheckpointError, IncompatibleError


def _opened(
    directory: Path, *files: dict[str, list[float]], aliases: tuple[dict[str, str], ...] = ()
) -> list[Checkpoint]:
    result = []
    for i, tensors in enumerate(files):
        metadata = {"pysoup.aliases": json.dumps(aliases[i])} if i < len(aliases) and aliases[i] else None
        result.append(open_checkpoint(floats(directory / f"{'ABCDEFG'[i]}.safetensors", tensors, metadata)))
    return result


def _failure(checkpoints: list[Checkpoint], **options: str) -> str:
    with pytest.raises(IncompatibleError) as caught:
        require_same(checkpoints, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_same_names_come_in_the_order_of_the_first(tmp_path: Path) -> None:
    checkpoints = _opened(tmp_path, {"b": [1.0], "a": [2.0]}, {"a": [1.0], "b": [2.0]})
    assert require_same(checkpoints) == ["b", "a"]
    assert agreement(checkpoints)[1] == {}


def test_name_differences_are_listed_with_their_file(tmp_path: Path) -> None:
    many = {f"x{i}": [1.0] for i in range(8)}
    text = _failure(_opened(tmp_path, {"w": [1.0], "v": [1.0]}, {"w": [1.0], "v": [1.0]}, {"w": [1.0], **many}))
    assert text.startswith(str(tmp_path / "C.safetensors"))
    assert f"differ from {tmp_path / 'A.safetensors'}" in text
    assert "lacks 'v'" in text
    assert "has also 'x0', 'x1', 'x2', 'x3', 'x4' and 3 more" in text


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapper_prefix_is_recognised_and_not_guessed_away(tmp_path: Path, prefix: str) -> None:
    plain, wrapped = {"a": [1.0], "b": [2.0]}, {f"{prefix}a": [1.0], f"{prefix}b": [2.0]}
    assert f"has '{prefix}'" in _failure(_opened(tmp_path, plain, wrapped))
    assert f"lacks '{prefix}'" in _failure(_opened(tmp_path, wrapped, plain))


def test_intersection_and_union_are_explicit(tmp_path: Path) -> None:
    checkpoints = _opened(tmp_path, {"a": [1.0], "b": [1.0]}, {"c": [1.0], "b": [1.0]}, {"b": [1.0], "a": [1.0]})
    assert require_same(checkpoints, "intersection") == ["b"]
    assert require_same(checkpoints, "union") == ["a", "b", "c"]
    assert "no tensor name is in all" in _failure(_opened(tmp_path, {"a": [1.0]}, {"b": [1.0]}), keys="intersection")
    assert "invalid keys" in _failure(checkpoints, keys="all")
    assert "no checkpoints" in _failure([])


@pytest.mark.parametrize("keys", ["same", "intersection", "union"])
def test_shape_difference_names_both_files(tmp_path: Path, keys: str) -> None:
    text = _failure(_opened(tmp_path, {"w": [1.0, 2.0]}, {"w": [1.0]}), keys=keys)
    a, b = tmp_path / "A.safetensors", tmp_path / "B.safetensors"
    assert text == f"{b}: tensor 'w': shape differs: found [1], expected [2] as in {a}"


def test_tied_names_stay_tied_only_where_all_inputs_tie_them(tmp_path: Path) -> None:
    stored, both = {"emb": [1.0], "w": [2.0]}, {"emb": [1.0], "w": [2.0], "head": [3.0]}
    ties = {"head": "emb"}
    tied = _opened(tmp_path, stored, stored, aliases=(ties, ties))
    assert agreement(tied) == (["emb", "w"], ties)
    # The other file stores the pair under the other name.
    swapped = _opened(tmp_path, stored, {"head": [1.0], "w": [2.0]}, aliases=(ties, {"emb": "head"}))
    assert agreement(swapped) == (["emb", "w"], ties)
    mixed = _opened(tmp_path, stored, both, aliases=(ties,))
    assert agreement(mixed) == (["emb", "w", "head"], {})
    assert mixed[0].entry("head") == mixed[0].entry("emb")


def test_dtype_differences_list_the_types_by_file(tmp_path: Path) -> None:
    a = open_checkpoint(
        raw_file(tmp_path / "a.safetensors", {"w": entry("F16", [1], 0, 2), "v": entry("U8", [1], 2, 3)}, b"abc")
    )
    b = open_checkpoint(raw_file(tmp_path / "b.safetensors", {"w": entry("BF16", [1], 0, 2)}, b"ab"))
    (difference,) = dtype_differences([a, b], ["w", "v"])
    assert difference.name == "w"
    assert [str(d) for d in difference.dtypes] == ["F16", "BF16"]
    assert dtype_differences([a, a], ["w", "v"]) == []


@pytest.mark.parametrize("scale", ["l.weight_scale", "l.weight_scale_inv", "l.scale_weight"])
def test_scaled_f8_weights_are_refused(tmp_path: Path, scale: str) -> None:
    header = {"l.weight": entry("F8_E4M3", [1], 0, 1), scale: entry("F32", [1], 1, 5)}
    with pytest.raises(CheckpointError, match=r"tensor 'l.weight'.*with a scale"):
        refuse_scaled_f8(open_checkpoint(raw_file(tmp_path / "f8.safetensors", header, b"12345")))


def test_unscaled_f8_and_scaled_bf16_are_not_refused(tmp_path: Path) -> None:
    header = {
        "l.weight": entry("F8_E4M3", [1], 0, 1),
        "n.weight_scale": entry("BF16", [1], 1, 3),
        "n.weight": entry("BF16", [1], 3, 5),
    }
    refuse_scaled_f8(open_checkpoint(raw_file(tmp_path / "f8.safetensors", header, b"12345")))


def test_duplicates_are_found_by_inode_and_by_content(tmp_path: Path) -> None:
    base = {"a": [1.0] * 100, "head": [2.0]}
    a, b, c = _opened(tmp_path, base, base, {**base, "head": [3.0]})
    (tmp_path / "link.safetensors").hardlink_to(tmp_path / "C.safetensors")
    link = open_checkpoint(tmp_path / "link.safetensors")
    assert duplicate_inputs([a, c, b, link]) == [(0, 2), (1, 3)]


def test_looking_for_duplicates_reads_each_of_many_models_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each pair: that takes 13 seconds for 1,000 models."""
    models = [open_checkpoint(floats(tmp_path / f"{i}.safetensors", {"a": [float(i)]})) for i in range(20)]
    opened: list[Path] = []
    real = agree.open_file
    monkeypatch.setattr(agree, "open_file", lambda path: opened.append(path) or real(path))
    assert duplicate_inputs(models) == []
    assert len(opened) == len(models)


@pytest.mark.parametrize("text", ["{", "[]", '{"x":"absent"}', '{"a":"a"}', '{"x":1}'])
def test_alias_metadata_that_does_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    path = floats(tmp_path / "a.safetensors", {"a": [1.0]}, {"pysoup.aliases": text})
    with pytest.raises(CheckpointError, match=r"pysoup\.aliases"):
        open_checkpoint(path)
