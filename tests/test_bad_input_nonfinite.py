"""NaN and infinities in an ingredient: they propagate, and the report names tensors and the files they came from."""

from __future__ import annotations

import json
from pathlib import Path

import bad_inputs
import numpy as np
import pytest
import torch
from bad_inputs import Place, assert_line, model, unchanged
from safetensors.torch import load_file, save_file

import pysoup
from pysoup.cli import main

place = bad_inputs.place

NAN, INF = float("nan"), float("inf")
State = dict[str, torch.Tensor]
# In the order of the alphabet, in which the safetensors library writes them.
FIRST = {"clean": [1.0, 2.0], "inf": [1.0, 2.0], "minus": [1.0, -INF], "nan": [NAN, 1.0], "opposite": [INF, 1.0]}
SECOND = {"clean": [3.0, 4.0], "inf": [1.0, INF], "minus": [3.0, -INF], "nan": [3.0, 1.0], "opposite": [-INF, 1.0]}
SOURCES = {"inf": [1], "minus": [0, 1], "nan": [0], "opposite": [0, 1]}
"""In which of the two inputs a tensor is not finite."""
TYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8_e5m2": torch.float8_e5m2,
    "f8_e4m3": torch.float8_e4m3fn,
}  # fmt: skip
SUFFIXES = ("safetensors", "pt", "legacy.pt", "npz", "deflated.npz", "directory")


def state(values: dict[str, list[float]], dtype: torch.dtype) -> State:
    """E4M3 has no infinity: NaN stands in its place, by its bits."""
    if dtype == torch.float8_e4m3fn:
        finite = {n: torch.tensor(v).nan_to_num(1, 1, 1).to(dtype).view(torch.uint8) for n, v in values.items()}
        bad = {n: ~torch.tensor(v).isfinite() for n, v in values.items()}
        return {n: torch.where(bad[n], 0x7F, bits).to(torch.uint8).view(dtype) for n, bits in finite.items()}
    return {name: torch.tensor(v, dtype=torch.float64).to(dtype) for name, v in values.items()}


def save(tensors: State, directory: Path, name: str, suffix: str) -> Path:
    path = directory / f"{name}.{suffix}"
    if suffix == "safetensors":
        save_file(tensors, path)
    elif suffix == "directory":
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
    elif suffix.endswith("pt"):
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == "pt")
    else:
        arrays = {
            n: t.view(torch.int16).numpy().view("V2") if t.dtype == torch.bfloat16 else t.numpy()
            for n, t in tensors.items()
        }
        (np.savez_compressed if suffix.startswith("deflated") else np.savez)(path, **arrays)
    return path


CASES = [(suffix, name) for suffix in SUFFIXES for name in TYPES if not (suffix.endswith("npz") and "f8" in name)]


@pytest.mark.parametrize(("suffix", "name"), CASES)
def test_nonfinite_values_propagate_and_are_reported_by_tensor_and_file(
    suffix: str, name: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [state(values, TYPES[name]) for values in (FIRST, SECOND)]
    paths = [save(s, place.bad, f"in{k}", suffix) for k, s in enumerate(states)]
    output = place.output.with_suffix(".pt")
    report = pysoup.average_checkpoints(paths, output)
    assert report.nonfinite == list(SOURCES)
    found = [note for note in report.notes if "NaN or infinity" in note]
    assert found == [
        f"NaN or infinity in tensor {tensor!r}: in {', '.join(str(paths[k]) for k in holders)}"
        for tensor, holders in SOURCES.items()
    ]

    result = torch.load(output, weights_only=True)
    # The oracle: the mean of two by plain Python floats, exact for these values.
    for tensor in FIRST:
        mean = [(x + y) / 2 for x, y in zip(FIRST[tensor], SECOND[tensor], strict=True)]
        expected = state({tensor: mean}, TYPES[name])[tensor].double()
        assert torch.equal(result[tensor].double().nan_to_num(7), expected.nan_to_num(7)), tensor
        assert torch.equal(result[tensor].double().isnan(), expected.isnan()), tensor

    assert main(["average", *map(str, paths), "-o", str(output), "--force"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"note: {note}" in lines for note in found)
    assert main(["average", *map(str, paths), "-o", str(output), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nonfinite"] == list(SOURCES)


def module() -> torch.nn.Module:
    result = torch.nn.Module()
    for name in FIRST:
        result.register_parameter(name, torch.nn.Parameter(torch.zeros(2)))
    return result


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nonfinite_values_are_reported_when_loaded_into_a_model(suffix: str, place: Place) -> None:
    paths = [
        save(state(values, torch.float32), place.bad, f"in{k}", suffix) for k, values in enumerate((FIRST, SECOND))
    ]
    target = module()
    with unchanged(place.root):
        report = pysoup.load_soup_(target, paths)
    assert report.nonfinite == list(SOURCES)
    assert sum("NaN or infinity" in note for note in report.notes) == len(SOURCES)
    assert target.get_parameter("clean").tolist() == [2, 3]
    assert target.get_parameter("inf").tolist() == [1, INF]


def test_nonfinite_input_of_weight_zero_is_not_reported(place: Place) -> None:
    first, second = (
        save(state(v, torch.float32), place.bad, str(k), "pt") for k, v in enumerate((FIRST, FIRST | SECOND))
    )
    clean = save(state({name: [1.0, 2.0] for name in FIRST}, torch.float32), place.bad, "clean", "pt")
    report = pysoup.average_checkpoints([clean, first, second], place.output, [1, 0, 0])
    assert report.nonfinite == []
    assert not any("NaN" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nonfinite_mean_of_finite_values_is_reported_as_out_of_range(dtype: torch.dtype, place: Place) -> None:
    largest = torch.finfo(dtype).max
    paths = [
        save({"a": torch.ones(1, dtype=dtype), "w": torch.full((3,), largest, dtype=dtype)}, place.bad, str(k), "pt")
        for k in range(2)
    ]
    report = pysoup.average_checkpoints(paths, place.output)
    assert report.nonfinite == []
    report = pysoup.average_checkpoints(paths, place.output, [1, 1], normalize=False, overwrite=True)
    assert report.nonfinite == ["w"]
    assert "NaN or infinity in tensor 'w': its mean is out of range" in report.notes
    assert load_file(place.output)["w"].isinf().all()


def test_nonfinite_bits_in_integers_are_no_matter_and_in_complex_numbers_are(place: Place) -> None:
    nan = torch.tensor([NAN, INF])
    tensors = {
        "n": nan.view(torch.int32),
        "z": torch.complex(torch.tensor([1.0, NAN]), torch.ones(2)),
        "y": torch.ones(2),
    }
    path = save(tensors, place.bad, "x", "pt")
    output = place.output.with_suffix(".pt")
    assert pysoup.average_checkpoints([path, path], output).nonfinite == ["z"]
    assert torch.equal(torch.load(output, weights_only=True)["n"], tensors["n"])


def test_nonfinite_tensors_without_number_are_all_listed_and_the_notes_are_few(place: Place) -> None:
    tensors = {f"layers.{k:03d}.weight": torch.full((2,), NAN if k % 2 else 1.0) for k in range(400)}
    report = pysoup.average_checkpoints([save(tensors, place.bad, "x", "safetensors")], place.output)
    assert report.nonfinite == [name for k, name in enumerate(tensors) if k % 2]
    found = [note for note in report.notes if "NaN" in note]
    assert len(found) < 20
    assert "184 more tensors" in found[-1]
    for note in found:
        assert_line(note)


def test_nonfinite_values_alone_in_one_of_many_large_inputs_are_traced(place: Place) -> None:
    """One value in a million, beyond the first chunk and in the last of the inputs."""
    paths = []
    for k in range(5):
        values = torch.ones(300_001)
        if k == 4:
            values[-1] = NAN
        paths.append(save({"w": values, "v": torch.ones(3)}, place.bad, str(k), "safetensors"))
    report = pysoup.average_checkpoints(paths, place.output, memory="64kB", threads=2)
    assert report.nonfinite == ["w"]
    assert [n for n in report.notes if "NaN" in n] == [f"NaN or infinity in tensor 'w': in {paths[4]}"]
    result = load_file(place.output)["w"]
    assert result[-1].isnan()
    assert result[:-1].eq(1).all()


def test_finite_inputs_report_nothing(place: Place) -> None:
    report = pysoup.average_checkpoints([place.good], place.output)
    assert (report.nonfinite, [n for n in report.notes if "NaN" in n]) == ([], [])
    assert pysoup.load_soup_(model(), [place.good]).nonfinite == []
