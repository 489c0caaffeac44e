"""Weights of wrong count, NaN, zero sum: refused by number before any file is written, in files and in memory."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import bad_inputs
import pytest
from bad_inputs import MEAN, Place, model, read_safetensors, refusal, state_bytes
from bad_inputs_npz import npz
from bad_inputs_torch import archive

import pysoup
from pysoup.cli import main
from pysoup.errors import WeightsError

place = bad_inputs.place

WEIGHTS: dict[str, tuple[list[float], str]] = {
    "none": ([], "wrong number of weights: found 0, expected 3"),
    "one less": ([1, 1], "wrong number of weights: found 2, expected 3"),
    "one more": ([1, 1, 1, 1], "wrong number of weights: found 4, expected 3"),
    "NaN": ([1, math.nan, 1], "weight 2 is not finite: found nan"),
    "infinite": ([1, 1, math.inf], "weight 3 is not finite: found inf"),
    "minus infinite": ([-math.inf, 1, 1], "weight 1 is not finite: found -inf"),
    "zeros": ([0, 0, 0], "all weights are zero"),
    "minus zeros": ([0, -0.0, 0], "all weights are zero"),
    "sum zero": ([1, 1, -2], "cannot be normalised: found sum 0, expected a finite sum other than 0"),
    "sum zero of fractions": ([0.25, 0.5, -0.75], "cannot be normalised: found sum 0"),
    "sum beyond f64": ([1e308, 1e308, 1e307], "cannot be normalised: found sum inf"),
}


def sums_to_nothing(weights: list[float]) -> bool:
    """The oracle: three finite numbers whose exact sum is not zero, and not beyond the largest float, make sense."""
    if len(weights) != 3 or not all(map(math.isfinite, weights)):
        return True
    return not 0 < abs(sum(map(Fraction, weights))) <= Fraction(sys.float_info.max)


@pytest.mark.parametrize("what", WEIGHTS)
def test_bad_input_weights_are_refused_and_nothing_is_written(
    what: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, says = WEIGHTS[what]
    assert sums_to_nothing(weights)
    paths = [place.good, archive()(place.bad, False), npz()(place.bad, False)]
    target = model()
    before = state_bytes(target)
    for call in (
        lambda: pysoup.average_checkpoints(paths, place.output, weights),
        lambda: pysoup.average_checkpoints(paths, place.output.with_suffix(""), weights),
        lambda: pysoup.load_soup_(target, paths, weights),
    ):
        error = refusal(call, place.root)
        assert isinstance(error, WeightsError)
        assert says in str(error)
    assert state_bytes(target) == before
    text = ",".join(map(str, weights))
    code = main(["average", *map(str, paths), "-o", str(place.output), "--weights", text])
    out, err = capsys.readouterr()
    # No weight at all is no list of numbers: wrong usage.
    assert (code, out) == (2 if not weights else 1, "")
    assert not weights or err == f"pysoup: error: {error}\n"
    assert not place.output.exists()


@pytest.mark.parametrize("weights", [["x", 1, 1], [None, 1, 1], 3, "abc", [[1], [1], [1]]], ids=repr)
def test_bad_input_weights_that_are_no_numbers_are_refused(weights: object, place: Place) -> None:
    error = refusal(lambda: pysoup.average_checkpoints([place.good] * 3, place.output, weights), place.root)  # type: ignore[arg-type]
    assert isinstance(error, WeightsError)


def test_bad_input_weights_without_their_fault_are_taken(place: Place) -> None:
    paths = [place.good, archive()(place.bad, False)]
    assert not sums_to_nothing([1, 1, 1])
    pysoup.average_checkpoints(paths, place.output, [1, 1])
    assert read_safetensors(place.output) == MEAN
    pysoup.average_checkpoints(paths, place.output, [1, -1], normalize=False, overwrite=True)
    assert read_safetensors(place.output) == {"a": [-2, -4], "w": [-4, -4, -4, -4]}


def test_bad_input_of_weight_zero_is_refused_all_the_same(place: Place) -> None:
    bad = archive(cut=1)(place.bad, True)
    error = refusal(lambda: pysoup.average_checkpoints([place.good, bad], place.output, [1, 0]), place.root)
    assert str(bad) in str(error)
    refusal(lambda: pysoup.load_soup_(model(), [place.good, bad], [1, 0]), place.root)
