"""average_state_dicts(out=...): what is written where, ties and shared memory, and nothing written before an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import same_bits
from torch import Tensor, nn

from pysoup import IncompatibleError, average_state_dicts


def tied_model() -> nn.ModuleDict:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight  # type: ignore[union-attr]
    return model


class TestTies:
    def test_tied_module_is_written_in_place_and_once(self) -> None:
        model = tied_model()
        w = [torch.full((3, 3), k) for k in (1.0, 3.0)]
        moved: list[int] = []
        average_state_dicts([{"a.weight": t, "b.weight": t} for t in w], out=model, progress=moved.append)
        assert model["a"].weight.tolist() == [[2.0] * 3] * 3
        assert model["b"].weight is model["a"].weight
        assert moved[-1] == 3 * 36

    def test_tied_module_may_be_an_input(self) -> None:
        model, other = tied_model(), tied_model()
        expected = average_state_dicts([model, other])
        average_state_dicts([model, other], out=model)
        assert torch.equal(model["a"].weight, expected["a.weight"])

    def test_inputs_untied_but_equal_go_into_a_tied_output(self) -> None:
        model = tied_model()
        average_state_dicts([{"a.weight": torch.ones(3, 3), "b.weight": torch.ones(3, 3).t()}] * 2, out=model)
        assert (model["a"].weight == 1).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex64])
    def test_inputs_of_two_values_for_a_tied_output_are_refused(self, dtype: torch.dtype) -> None:
        shared, t = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
        states = [{"a": t, "b": t}, {"a": t, "b": t + 1}]
        with pytest.raises(IncompatibleError, match=r"state_dicts\[1\]: tensor 'b': tied in out.*'a'"):
            average_state_dicts(states, out={"a": shared, "b": shared})
        assert not shared.any()
        average_state_dicts(states, [1, 0], out={"a": shared, "b": shared})  # what is not read has no say
        assert torch.equal(shared, t)

    def test_untied_output_of_tied_inputs_is_written_in_both_places(self) -> None:
        w = [torch.full((3,), k) for k in (1.0, 3.0)]
        out = {"a": torch.zeros(3), "b": torch.zeros(3)}
        average_state_dicts([{"a": t, "b": t} for t in w], out=out)
        assert out["a"].tolist() == out["b"].tolist() == [2.0] * 3

    def test_tied_integers_stay_tied(self) -> None:
        ids, out = torch.arange(3), torch.zeros(3, dtype=torch.int64)
        average_state_dicts([{"a": ids, "b": ids}] * 2, out={"a": out, "b": out})
        assert out.tolist() == [0, 1, 2]
        fresh = average_state_dicts([{"a": ids, "b": ids}] * 2)
        assert fresh["a"] is fresh["b"]


class TestNothingIsWrittenBeforeAnError:
    @pytest.mark.parametrize("layout", ["plain", "strided"])
    def test_integers_that_differ(self, layout: str) -> None:
        w = torch.zeros(3) if layout == "plain" else torch.zeros(6)[::2]
        out = {"w": w, "ids": torch.zeros(2, dtype=torch.int64)}
        states = [{"w": torch.ones(3), "ids": torch.tensor([1, n])} for n in (2, 3)]
        with pytest.raises(IncompatibleError, match="ids"):
            average_state_dicts(states, out=out)
        assert out["w"].tolist() == [0, 0, 0]

    def test_noncontiguous_outputs_that_overlap(self) -> None:
        base = torch.zeros(4, 8)
        ones = {"a": torch.ones(4, 4), "b": torch.ones(4, 4)}
        with pytest.raises(IncompatibleError, match=r"'b'.*overlaps.*'a'|'a'.*overlaps.*'b'"):
            average_state_dicts([ones] * 2, out={"a": base[:, :4], "b": base[:, 2:6]})
        assert not base.any()
        base = torch.arange(32.0).reshape(4, 8)
        with pytest.raises(IncompatibleError, match="overlap"):
            average_state_dicts([{"a": base[:, :4]}, {"a": torch.zeros(4, 4)}], out={"a": base[:, 1:5]})
        assert torch.equal(base, torch.arange(32.0).reshape(4, 8))

    def test_an_output_that_overlaps_itself(self) -> None:
        out = torch.zeros(1).expand(4)
        with pytest.raises(IncompatibleError, match="tensor 'a': out overlaps itself"):
            average_state_dicts([{"a": torch.arange(4.0)}], out={"a": out})

    def test_integers_that_overlap_floats(self) -> None:
        base = torch.zeros(8, dtype=torch.int32)
        state = {"w": torch.ones(4), "n": torch.ones(4, dtype=torch.int32)}
        with pytest.raises(IncompatibleError, match="overlap"):
            average_state_dicts([state] * 2, out={"w": base[2:6].view(torch.float32), "n": base[:4]})
        assert not base.any()


class TestLayouts:
    def test_interleaved_outputs_without_a_common_element_are_written(self) -> None:
        base = torch.zeros(4, 8)
        states = [{"a": torch.full((4, 4), k), "b": torch.full((4, 4), 10 * k)} for k in (1.0, 3.0)]
        average_state_dicts(states, out={"a": base[:, :4], "b": base[:, 4:]})
        assert base.tolist() == [[2.0] * 4 + [20.0] * 4] * 4
        pieces = {"a": base[:, :4], "b": base[:, 4:]}  # and they may be the inputs
        average_state_dicts([pieces, states[0]], out=pieces)
        assert base.tolist() == [[1.5] * 4 + [15.0] * 4] * 4

    def test_noncontiguous_parameter_may_be_the_output(self) -> None:
        p = nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
        average_state_dicts([{"a": torch.ones(2, 3, 4, 4)}] * 2, out={"a": p})
        assert (p == 1).all()
        assert p.requires_grad
        assert p._version > 0

    def test_noncontiguous_inference_tensor_may_be_the_output(self) -> None:
        with torch.inference_mode():
            out = torch.zeros(3, 2).t()
        average_state_dicts([{"a": torch.ones(2, 3)}] * 2, out={"a": out})
        assert (out == 1).all()

    @pytest.mark.parametrize("view", ["plain", "conj", "transposed"])
    def test_complex_outputs_are_written(self, view: str) -> None:
        states = [{"z": torch.randn(3, 3, dtype=torch.complex64)} for _ in range(2)]
        expected = average_state_dicts(states)["z"]
        memory = torch.zeros(3, 3, dtype=torch.complex64)
        out = {"plain": memory, "conj": memory.conj(), "transposed": memory.t()}[view]
        average_state_dicts(states, out={"z": out})
        assert torch.equal(out, expected)
        stored: dict[str, Tensor] = {"plain": expected, "conj": expected.conj(), "transposed": expected.t()}
        assert torch.equal(memory, stored[view])


class TestArrays:
    @pytest.mark.parametrize("make", ["frozen", "scalar"])
    def test_read_only_arrays_are_refused(self, make: str) -> None:
        out = np.zeros(3, np.float32)
        out.flags.writeable = False
        state = {"a": np.ones(3, np.float32)}
        if make == "scalar":
            out, state = np.float32(0), {"a": np.float32(1)}  # type: ignore[assignment]
        with pytest.raises(IncompatibleError, match=r"out: tensor 'a'.*read-only"):
            average_state_dicts([state] * 2, out={"a": out})
        assert not out.any()

    def test_reversed_arrays_are_written(self) -> None:
        out = np.zeros((2, 3), np.float32)
        states = [{"a": np.arange(6, dtype=np.float32).reshape(2, 3)}] * 2
        view = out[::-1, ::-1]
        assert average_state_dicts(states, out={"a": view})["a"] is view
        assert out.tolist() == [[5, 4, 3], [2, 1, 0]]
        average_state_dicts([{"a": view}, {"a": view + 2}], out={"a": view})
        assert out.tolist() == [[6, 5, 4], [3, 2, 1]]

    def test_reversed_arrays_that_overlap_are_refused(self) -> None:
        base = np.zeros(6, np.float32)
        state = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
        with pytest.raises(IncompatibleError, match="overlap"):
            average_state_dicts([state] * 2, out={"a": base[3::-1], "b": base[2:]})
        assert not base.any()


def test_output_in_place_equals_a_new_one_for_mixed_layouts() -> None:
    torch.manual_seed(0)
    states = [
        {
            "t": torch.randn(5, 4).t(),
            "c": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "n": torch.ones(2),
        }
        for _ in range(3)
    ]
    expected = average_state_dicts(states, [1, 2, 3])
    result = average_state_dicts(states, [1, 2, 3], out=states[1])
    assert all(same_bits(result[n].contiguous(), expected[n].contiguous()) for n in expected)
