"""Hostile names of tensors, files, entries, shards: errors, reports and listings stay lines that a terminal shows."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_inputs
import numpy as np
import pytest
import torch
from bad_inputs import Place, assert_line, model, refusal
from bad_inputs_shards import shards
from checkpoint_files import entry, floats, raw_file

import pysoup
from pysoup.cli import main
from pysoup.errors import CheckpointError, IncompatibleError
from pysoup.file_plan import Member

place = bad_inputs.place

NAMES = {
    "newline": "w\nx",
    "carriage return": "w\rpysoup: all is well",
    "ANSI escape": "\x1b[31mw\x1b[0m\x1b]0;title\x07",
    "C1 escape": "\x9b31mw",
    "NUL": "w\0x",
    "right to left": "w\u202ecod.exe\u2066",
    "line separator": "w\u2028x\u2029y\x85z",
    "zero width": "w\u200b\ufeff\U000e0041",
    "backspace": "w\b\b\bpysoup",
    "delete": "w\x7f",
    "quotes": "'\"\\'",
    "blank": " ",
    "empty": "",
    "long": "w" * 10_000,
    "long escapes": "\x1b" * 10_000,
    "long of four bytes": "\U000e0041" * 10_000,
}
LONG = [what for what in NAMES if what.startswith("long")]


def safetensors(path: Path, tensors: dict[str, dict[str, object]], data: bytes) -> Path:
    return raw_file(path, json.dumps(tensors), data)


def pair(place: Place, one: dict[str, object], other: dict[str, object], data: tuple[bytes, bytes]) -> list[Path]:
    """Two files of a tensor each, of these entries; the names may differ."""
    return [safetensors(place.bad / f"{k}.safetensors", e, d) for k, e, d in zip("01", (one, other), data, strict=True)]


F32, DATA = entry("F32", [2], 0, 8), struct.pack("<2f", 1, 2)

FAULTS: dict[str, tuple[Callable[[str], tuple[dict[str, Any], dict[str, Any]]], tuple[bytes, bytes]]] = {
    "unknown dtype": (lambda name: ({name: F32}, {name: entry("X", [2], 0, 8)}), (DATA, DATA)),
    "gap": (lambda name: ({name: F32}, {name: entry("F32", [2], 4, 12)}), (DATA, bytes(12))),
    "truncated": (lambda name: ({name: F32}, {name: F32}), (DATA, DATA[:-1])),
    "overlap": (lambda name: ({name: F32}, {name: F32, "v": entry("F32", [2], 4, 12)}), (DATA, bytes(12))),
    "shape differs": (lambda name: ({name: F32}, {name: entry("F32", [2, 1], 0, 8)}), (DATA, DATA)),
    "dtype differs": (lambda name: ({name: F32}, {name: entry("F16", [2], 0, 4)}), (DATA, DATA[:4])),
    "name lacks": (lambda name: ({name: F32}, {"other": F32}), (DATA, DATA)),
    "name more": (lambda name: ({"other": F32}, {name: F32}), (DATA, DATA)),
    "integers differ": (
        lambda name: ({name: entry("I32", [2], 0, 8)}, {name: entry("I32", [2], 0, 8)}), (DATA, DATA[::-1]),
    ),
    "scaled weights": (
        lambda name: (
            {name: entry("F8_E4M3", [8], 0, 8)},
            {name: entry("F8_E4M3", [4], 0, 4), name + "_scale": entry("F32", [1], 4, 8)},
        ),
        (DATA, DATA),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("what", NAMES)
def test_hostile_name_of_a_tensor_keeps_the_error_one_line(
    what: str, fault: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    entries, data = FAULTS[fault]
    paths = pair(place, *entries(NAMES[what]), data)
    keys = "union" if fault == "scaled weights" else "same"
    error = refusal(lambda: pysoup.average_checkpoints(paths, place.output, keys=keys), place.root)
    assert "1.safetensors" in str(error)
    assert main(["average", *map(str, paths), "-o", str(place.output), "--keys", keys]) == 1
    assert capsys.readouterr().err == f"pysoup: error: {error}\n"
    if fault != "dtype differs":
        refusal(lambda: pysoup.load_soup_(model(), paths), place.root)


@pytest.mark.parametrize("what", NAMES)
def test_hostile_name_in_a_failed_read_keeps_the_error_one_line(
    what: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAMES[what]
    for dtype in ("F32", "I32"):
        tensors = {name: entry(dtype, [2], 0, 8)}
        paths = pair(place, tensors, tensors, (DATA, DATA))
        opened = Member.open

        def open_and_cut(member: Member, scratch: Path | None = None, opened: Any = opened) -> None:
            opened(member, scratch)
            os.truncate(member.checkpoint.files[0], 20)

        with monkeypatch.context() as patch:
            patch.setattr(Member, "open", open_and_cut)
            with pytest.raises(CheckpointError) as caught:
                pysoup.average_checkpoints(paths, place.output)
        assert_line(str(caught.value))
        assert os.listdir(place.output.parent) == []


@pytest.mark.parametrize("what", NAMES)
def test_hostile_name_without_weight_keeps_the_error_one_line(what: str, place: Place) -> None:
    paths = pair(place, {"other": F32}, {"other": F32, NAMES[what]: entry("F32", [0], 8, 8)}, (DATA, DATA))
    error = refusal(lambda: pysoup.average_checkpoints(paths, place.output, [1, 0], keys="union"), place.root)
    assert "weight 0" in str(error)


@pytest.mark.parametrize("what", NAMES)
def test_hostile_names_are_listed_a_line_each(what: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    name = NAMES[what]
    nan = struct.pack("<2f", float("nan"), 1)
    tensors = {name: F32, "other": entry("F32", [2], 8, 16)}
    paths = [safetensors(place.bad / f"{k}.safetensors", tensors, nan + DATA) for k in range(2)]
    assert main(["inspect", *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    # Each file: its path, the head, two tensors, format, types, total; a blank line between; then the verdict.
    assert len(lines) == 2 * 7 + 2 + 2
    assert main(["average", *map(str, paths), "-o", str(place.output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert sum("NaN or infinity in tensor" in line for line in lines) == 1
    assert list(pysoup.open_checkpoint(place.output)) == [name, "other"]
    for command in (
        ["inspect", *map(str, paths), "--json"],
        ["average", str(paths[0]), "-o", f"{place.output}.pt", "--json"],
    ):
        assert main(command) == 0
        out = capsys.readouterr().out
        assert out.isascii()
        assert json.dumps(name) in out


@pytest.mark.parametrize("what", LONG)
def test_long_name_keeps_the_lines_of_an_average_short(
    what: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = struct.pack("<2f", float("nan"), 1)
    path = safetensors(place.bad / "0.safetensors", {NAMES[what]: F32}, nan)
    assert main(["average", str(path), "-o", str(place.output)]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert_line(line)


@pytest.mark.parametrize("keys", ["intersection", "union"])
@pytest.mark.parametrize("what", NAMES)
def test_hostile_name_that_only_one_input_has_is_noted_in_a_line(
    what: str, keys: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"other": F32, NAMES[what]: entry("F32", [0], 8, 8)}
    paths = pair(place, {"other": F32}, more, (DATA, DATA))
    assert main(["average", *map(str, paths), "-o", str(place.output), "--keys", keys]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("note: ")]) >= 1
    for line in lines:
        assert_line(line)


@pytest.mark.parametrize("what", NAMES)
def test_hostile_names_of_entries_keep_error_and_listing_in_lines(
    what: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    name = NAMES[what]
    path, one = place.bad / "many.pt", place.bad / "one.pt"
    weights = {"a": torch.ones(2)}
    torch.save({name: weights, "model": {"a": torch.zeros(2)}, "epoch": 3}, path)
    error = refusal(lambda: pysoup.average_checkpoints([path], place.output), place.root)
    assert "holds 2 state dicts" in str(error)
    refusal(lambda: pysoup.average_checkpoints([path], place.output, entry=name + "x"), place.root)
    torch.save({"model": {name: torch.ones(2)}, name: {name: 1}, name + "y": "text"}, one)
    assert main(["average", str(one), "-o", str(place.output.with_suffix(".pt"))]) == 0
    assert main(["inspect", str(one)]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert line.isprintable()


@pytest.mark.parametrize("what", [w for w in NAMES if w not in (*LONG, "empty", "quotes", "NUL")])
def test_hostile_names_in_archives_keep_the_error_one_line(what: str, place: Place) -> None:
    name = NAMES[what]
    np.savez(place.bad / "x.npz", **{name: np.array([None])})
    assert_line(str(refusal(lambda: pysoup.average_checkpoints([place.bad / "x.npz"], place.output), place.root)))
    torch.save({name: torch.ones(2).to_sparse()}, place.bad / "x.pt")
    error = refusal(lambda: pysoup.average_checkpoints([place.bad / "x.pt"], place.output), place.root)
    assert error.tensor == name


@pytest.mark.parametrize("what", NAMES)
def test_hostile_names_in_an_index_keep_the_error_one_line(what: str, place: Place) -> None:
    name, a, w = NAMES[what], "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for weight_map in (
        {"a": a, "w": w, name: a},
        {"a": a, "w": f"{name}.safetensors"},
        {"a": a, "w": w, name: f"../{name}"},
        {"a": a, "w": [name]},
    ):
        given = shards(weight_map)(place.bad, True)
        refusal(lambda path=given: pysoup.average_checkpoints([path], place.output), place.root)


@pytest.mark.parametrize("what", [w for w in NAMES if w not in (*LONG, "NUL", "empty")])
def test_hostile_names_of_files_keep_error_and_report_in_lines(
    what: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    name = NAMES[what]
    bad, good = place.bad / f"{name}bad.safetensors", place.bad / f"{name}.safetensors"
    floats(good, {"a": [float("nan"), 1.0]})
    bad.write_bytes(good.read_bytes()[:-1])
    error = refusal(lambda: pysoup.average_checkpoints([good, bad], place.output), place.root)
    assert error.file == str(bad)
    output = place.output.with_name(f"{name}.safetensors")
    assert main(["average", str(good), str(good), "-o", str(output)]) == 0
    assert main(["inspect", str(good), str(good)]) == 0
    out, err = capsys.readouterr()
    for line in (out + err).splitlines():
        assert line.isprintable()
    assert json.loads(pysoup.open_checkpoint(output).metadata["pysoup.ingredients"]) == [str(good)] * 2
    refusal(lambda: pysoup.average_checkpoints([good], output), place.root)


@pytest.mark.parametrize("what", NAMES)
def test_hostile_names_that_do_not_fit_a_model_keep_the_error_one_line(what: str, place: Place) -> None:
    path = safetensors(place.bad / "0.safetensors", {NAMES[what]: F32}, DATA)
    error = refusal(lambda: pysoup.load_soup_(model(), [path]), place.root)
    assert isinstance(error, IncompatibleError)
