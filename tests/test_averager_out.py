"""Averager.result(out=...) and preview(out=...): everything about the output is checked before any of it is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pysoup import Averager, IncompatibleError, average_state_dicts


def averager_of(state: dict[str, Tensor]) -> Averager:
    averager = Averager(state)
    averager.add(state)
    return averager


def refused(averager: Averager, out: dict[str, Tensor], says: str) -> None:
    """By result and preview, without a write."""
    before = [t.clone() for t in out.values()]
    with pytest.raises(IncompatibleError, match=says):
        averager.result(out=out)
    with pytest.raises(IncompatibleError, match=says):
        averager.preview(averager.result(), out=out)
    assert all(torch.equal(t, b) for t, b in zip(out.values(), before, strict=True))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (7,), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    averager = averager_of({"first": torch.ones(2), "x": torch.arange(6.0).reshape(2, 3)})
    out = {"first": torch.zeros(2), "x": torch.zeros(shape)}
    refused(averager, out, r"out: tensor 'x': shape differs.*expected \[2, 3\]")


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 2, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), torch.zeros(2, dtype=torch.int8)]
)
def test_integers_of_another_shape_or_dtype_are_refused(bad: Tensor) -> None:
    averager = averager_of({"x": torch.ones(2), "n": torch.tensor([300, 2])})
    refused(averager, {"x": torch.zeros(2), "n": bad}, "out: tensor 'n'")


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.int64])
def test_complex_sums_go_into_their_own_type_alone(dtype: torch.dtype) -> None:
    averager = averager_of({"x": torch.ones(2), "z": torch.ones(4, dtype=torch.complex64)})
    refused(averager, {"x": torch.zeros(2), "z": torch.zeros(4, dtype=dtype)}, "out: tensor 'z': dtype differs")
    pairs = {"x": torch.zeros(2), "z": torch.zeros(4, 2)}
    refused(averager, pairs, "out: tensor 'z'")


def test_outputs_that_overlap_are_refused() -> None:
    averager = averager_of({"x": torch.ones(6), "y": torch.full((6,), 2.0)})
    base = torch.zeros(10)
    refused(averager, {"x": base[:6], "y": base[4:]}, "overlap")
    wide = torch.zeros(6, 4)
    refused(averager, {"x": wide[:, 1], "y": wide.view(-1)[1:13:2]}, "overlap")
    refused(averager, {"x": base[:6], "y": base[:6]}, "tensor 'y': tied in out, not in the model.*'x'")


def test_interleaved_outputs_are_written() -> None:
    averager = averager_of({"x": torch.ones(6), "y": torch.full((6,), 2.0)})
    base = torch.zeros(6, 2)
    averager.result(out={"x": base[:, 0], "y": base[:, 1]})
    assert base.tolist() == [[1.0, 2.0]] * 6


def test_an_output_that_overlaps_the_previewed_model_is_refused() -> None:
    averager = averager_of({"x": torch.ones(4)})
    base = torch.arange(8.0)
    with pytest.raises(IncompatibleError, match="overlap"):
        averager.preview({"x": base[:4]}, out={"x": base[2:6]})
    assert base.tolist() == list(range(8))
    averager.preview({"x": base[:4]}, out={"x": base[:4]})
    assert base.tolist() == [0.5, 1.0, 1.5, 2.0, 4, 5, 6, 7]


def test_tied_names_may_be_untied_in_the_output_but_of_one_type() -> None:
    shared = torch.ones(3)
    averager = averager_of({"a": shared, "b": shared})
    out = {"a": torch.zeros(3), "b": torch.zeros(3)}
    averager.result(out=out)
    assert out["a"].tolist() == out["b"].tolist() == [1.0] * 3
    refused(averager, {"a": torch.zeros(3), "b": torch.zeros(3, dtype=torch.bfloat16)}, "tensor 'b': dtype differs")


def test_special_tensors_are_refused() -> None:
    averager = averager_of({"x": torch.ones(4)})
    with pytest.raises(IncompatibleError, match=r"out: tensor 'x'.*meta"):
        averager.result(out={"x": torch.zeros(4, device="meta")})


def test_arrays_are_written_or_refused() -> None:
    averager = averager_of({"x": torch.arange(4.0)})
    array = np.zeros(4, np.float32)
    averager.result(out={"x": array[::-1]})
    assert array.tolist() == [3, 2, 1, 0]
    array.flags.writeable = False
    with pytest.raises(IncompatibleError, match="read-only"):
        averager.result(out={"x": array})


def test_noncontiguous_and_complex_leaves_are_written() -> None:
    state = {"w": torch.arange(6.0).reshape(2, 3), "z": torch.randn(3, dtype=torch.complex64)}
    out = {"w": nn.Parameter(torch.zeros(3, 2).t()), "z": torch.zeros(3, dtype=torch.complex64).conj()}
    averager_of(state).result(out=out)
    assert torch.equal(out["w"], state["w"])
    assert torch.equal(out["z"], state["z"])


class TestWeightZero:
    def test_it_is_checked_and_contributes_nothing(self) -> None:
        averager = averager_of({"x": torch.ones(2), "n": torch.tensor(3)})
        averager.add({"x": torch.tensor([float("nan"), 5.0]), "n": torch.tensor(9)}, 0.0)
        assert (averager.count, averager.total) == (1, 1.0)
        assert averager.result()["x"].tolist() == [1.0, 1.0]
        found = averager.preview({"x": torch.full((2,), float("inf")), "n": torch.tensor(9)}, weight=0.0)
        assert (found["x"].tolist(), found["n"].item()) == ([1.0, 1.0], 3)
        with pytest.raises(IncompatibleError, match=r"'x'.*shape differs"):
            averager.add({"x": torch.ones(3), "n": torch.tensor(9)}, 0.0)

    def test_before_the_first_it_decides_nothing(self) -> None:
        averager = Averager({"x": torch.ones(2, dtype=torch.bfloat16)})
        averager.add({"x": torch.full((2,), 7.0, dtype=torch.float64)}, 0)
        assert averager.count == 0
        averager.add({"x": torch.full((2,), 3.0, dtype=torch.bfloat16)})
        assert averager.result()["x"].tolist() == [3.0, 3.0]


class TestOverflowOfF64:
    TOP = 1.7e308

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
    def test_it_is_mended_as_in_one_call_whatever_the_output(self, isa: str, dtype: torch.dtype) -> None:
        top, inf = self.TOP, float("inf")
        rows = [
            [top, 1.0, top, inf, top],
            [top, 3.0, 1.0, 1.0, top],
            [-top, 5.0, top, 2.0, top],
            [-top, 4.0, -1, 3, inf],
        ]
        states = [{"ok": torch.ones(3, dtype=torch.float64), "x": torch.tensor(r, dtype=torch.float64)} for r in rows]
        averager = Averager({"ok": torch.zeros(3).to(dtype), "x": torch.zeros(5).to(dtype)})
        for k, state in enumerate(states, 1):
            expected = average_state_dicts(states[:k], dtype=dtype)["x"].double()
            torch.testing.assert_close(averager.preview(state)["x"].double(), expected, rtol=0, atol=0)
            averager.add(state)
            torch.testing.assert_close(averager.result()["x"].double(), expected, rtol=0, atol=0)

    def test_the_previewed_model_may_be_the_output(self) -> None:
        x = [torch.tensor([v, 1.0], dtype=torch.float64) for v in (self.TOP, self.TOP, -self.TOP)]
        expected = average_state_dicts([{"x": t} for t in x])["x"]
        averager = Averager({"x": x[0]})
        averager.add({"x": x[0]})
        averager.add({"x": x[1]})
        averager.preview({"x": x[2]}, out={"x": x[2]})
        assert torch.equal(x[2], expected)
