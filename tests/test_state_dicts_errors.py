"""What average_state_dicts refuses: one line that names the tensor and the input, and nothing written before it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pysoup import IncompatibleError, SoupError, WeightsError, average_state_dicts


def ones(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.ones(shape) for name, shape in shapes.items()}


class TestWeights:
    def test_weights_are_normalised(self) -> None:
        states = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([5.0])}]
        assert average_state_dicts(states, [1, 3])["x"].item() == 4.0
        assert average_state_dicts(states, [10, 30])["x"].item() == 4.0
        assert average_state_dicts(states, (0.25, 0.75))["x"].item() == 4.0

    def test_raw_weights_are_taken_as_they_are(self) -> None:
        states = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([5.0])}]
        assert average_state_dicts(states, [1, 1], normalize=False)["x"].item() == 6.0
        assert average_state_dicts(states, [1, -1], normalize=False)["x"].item() == -4.0
        assert average_state_dicts(states, [2, -1])["x"].item() == -3.0

    def test_numbers_of_numpy_and_torch_are_weights(self) -> None:
        import numpy as np

        states = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([5.0])}]
        for weights in (np.array([1, 3]), torch.tensor([0.25, 0.75]), iter([1, 3])):
            assert average_state_dicts(states, weights)["x"].item() == 4.0  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("weights", "says"),
        [
            ([1.0], "wrong number of weights: found 1, expected 2"),
            ([1.0, 2.0, 3.0], "found 3, expected 2"),
            ([1.0, float("nan")], "weight 2 is not finite"),
            ([float("inf"), 1.0], "weight 1 is not finite"),
            ([1.0, -1.0], "sum 0"),
            ([0.0, 0.0], "all weights are zero"),
            (["a", "b"], "must be numbers"),
            (3.0, "must be numbers"),
        ],
    )
    def test_bad_weights_are_refused_before_anything_is_written(self, weights: object, says: str) -> None:
        out = {"x": torch.zeros(2)}
        with pytest.raises(WeightsError, match=says):
            average_state_dicts([ones(x=(2,))] * 2, weights, out=out)  # type: ignore[arg-type]
        assert out["x"].tolist() == [0, 0]

    def test_input_of_weight_zero_is_checked_but_not_read(self) -> None:
        bad = {"x": torch.tensor([float("nan"), float("inf")])}
        good = {"x": torch.tensor([1.0, 2.0])}
        assert average_state_dicts([bad, good, good], [0, 1, 3])["x"].tolist() == [1.0, 2.0]
        assert average_state_dicts([good, bad], [2.0, 0.0], normalize=False)["x"].tolist() == [2.0, 4.0]
        with pytest.raises(IncompatibleError, match=r"state_dicts\[1\]"):
            average_state_dicts([good, ones(x=(3,))], [1.0, 0.0])

    def test_one_input_left_after_zeros_is_copied_exactly(self) -> None:
        x = torch.randn(1000)
        for weight in (1.0, 0.3, 7.0):
            assert torch.equal(average_state_dicts([ones(x=(1000,)), {"x": x}], [0, weight])["x"], x)


class TestMismatches:
    def test_missing_and_additional_names_are_listed(self) -> None:
        with pytest.raises(IncompatibleError, match=r"state_dicts\[1\].*lacks 'y'; has in addition 'z'"):
            average_state_dicts([ones(x=(1,), y=(1,)), ones(x=(1,), z=(1,))])
        with pytest.raises(IncompatibleError, match=r"state_dicts\[2\].*in addition 'y'"):
            average_state_dicts([ones(x=(1,)), ones(x=(1,)), ones(x=(1,), y=(1,))])
        with pytest.raises(IncompatibleError, match=r"^out.*lacks 'x'"):
            average_state_dicts([ones(x=(1,))], out={})

    def test_shapes_are_named_with_both_sides(self) -> None:
        with pytest.raises(IncompatibleError, match=r"state_dicts\[1\]: tensor 'y'.*found \[2, 3\], expected \[3, 2\]"):
            average_state_dicts([ones(x=(1,), y=(3, 2)), ones(x=(1,), y=(2, 3))])
        with pytest.raises(IncompatibleError, match=r"out: tensor 'x'.*found \[\], expected \[1\]"):
            average_state_dicts([ones(x=(1,))], out=ones(x=()))

    def test_float_against_integer_is_refused_even_with_a_dtype(self) -> None:
        a, b = {"x": torch.ones(2)}, {"x": torch.ones(2, dtype=torch.int64)}
        with pytest.raises(IncompatibleError, match=r"'x'.*I64.*F32"):
            average_state_dicts([a, b], dtype="f32")

    def test_out_of_another_dtype_than_asked_is_refused(self) -> None:
        with pytest.raises(IncompatibleError, match=r"'x'.*found F32, expected BF16"):
            average_state_dicts([ones(x=(2,))], out=ones(x=(2,)), dtype="bf16")

    def test_what_is_no_state_dict_is_refused(self) -> None:
        for wrong in ([torch.ones(2)], [[("x", torch.ones(2))]], ["model.safetensors"]):
            with pytest.raises(IncompatibleError, match="not a state dict"):
                average_state_dicts(wrong)  # type: ignore[arg-type]

    def test_values_that_are_no_tensors_are_refused_by_name(self) -> None:
        with pytest.raises(IncompatibleError, match=r"state_dicts\[0\]: tensor 'epoch'.*int, not a tensor"):
            average_state_dicts([{"epoch": 3}] * 2)


def fake() -> Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(4)


def quantized() -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


def csr() -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(2).to_sparse_csr()


def nested() -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


SPECIAL: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.ones(4, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "sparse_csr": csr,
    "quantized": quantized,
    "FakeTensor": fake,
    "nested": nested,
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("where", [0, 1])
def test_special_tensors_are_refused_by_kind(kind: str, where: int) -> None:
    special = SPECIAL[kind]()
    states = [{"fine": torch.ones(2), "odd": torch.ones(4)} for _ in range(2)]
    if kind in ("sparse", "sparse_csr"):
        states = [{"fine": torch.ones(2), "odd": torch.ones(2, 2)} for _ in range(2)]
    states[where]["odd"] = special
    with pytest.raises(IncompatibleError, match="tensor 'odd'") as caught:
        average_state_dicts(states)
    assert kind.split("_")[0] in str(caught.value)
    with pytest.raises(IncompatibleError, match=rf"tensor 'odd'.*{kind.split('_')[0]}"):
        average_state_dicts([{"odd": special}] * 2)


def test_distributed_tensors_are_refused_by_kind(tmp_path: object) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch without distributed")
    from torch.distributed.tensor import DTensor, init_device_mesh

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = distributed.TCPStore("127.0.0.1", port, 1, True)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        tensor = DTensor.from_local(torch.ones(4), mesh)
        with pytest.raises(IncompatibleError, match=r"tensor 'x'.*DTensor"):
            average_state_dicts([{"x": tensor}] * 2)
    finally:
        distributed.destroy_process_group()


class TestOverlap:
    """An output that shares memory with an input other than exactly its own would be silently wrong."""

    @staticmethod
    def refused(states: list[dict[str, Tensor]], out: dict[str, Tensor]) -> None:
        before = [t.clone() for t in out.values()]
        with pytest.raises(IncompatibleError, match="overlap"):
            average_state_dicts(states, out=out)
        assert all(torch.equal(t, b) for t, b in zip(out.values(), before, strict=True)), "nothing was written"

    @pytest.mark.parametrize("shift", [1, -1, 7, 63])
    def test_shifted_view_of_an_input_is_refused(self, shift: int) -> None:
        base = torch.arange(200.0)
        self.refused([{"x": base[64:128]}, {"x": torch.ones(64)}], {"x": base[64 + shift : 128 + shift]})
        self.refused([{"x": torch.ones(64)}, {"x": base[64:128]}], {"x": base[64 + shift : 128 + shift]})

    def test_output_that_is_an_input_of_another_name_is_refused(self) -> None:
        a, b = torch.arange(4.0), torch.arange(4.0) + 10
        self.refused([{"x": a, "y": b}, ones(x=(4,), y=(4,))], {"x": b, "y": torch.zeros(4)})
        self.refused([{"x": a, "y": b}, ones(x=(4,), y=(4,))], {"x": b, "y": a})

    def test_two_outputs_that_overlap_are_refused(self) -> None:
        base = torch.zeros(10)
        self.refused([ones(x=(6,), y=(6,))] * 2, {"x": base[:6], "y": base[4:]})
        self.refused([ones(x=(6,), y=(6,))] * 2, {"x": base[4:], "y": base[:6]})

    @pytest.mark.parametrize(
        ("source", "target", "written", "read"),
        [(0, 8, "a", "c"), (0, 3, "a", "a"), (8, 0, "c", "a"), (0, 10, "a", "c")],
    )
    def test_overlap_is_named_where_tensors_lie_side_by_side(
        self, source: int, target: int, written: str, read: str
    ) -> None:
        """Neighbours in memory are summed as one run; the error still says which of them it was."""
        memory = torch.arange(40.0)

        def views(start: int) -> dict[str, Tensor]:
            return {n: memory[start + a : start + b] for n, a, b in (("a", 0, 6), ("b", 6, 6), ("c", 6, 11))}

        with pytest.raises(IncompatibleError, match=f"tensor '{written}': out overlaps.*shared with '{read}'"):
            average_state_dicts([ones(a=(6,), b=(0,), c=(5,)), views(source)], out=views(target))

    def test_output_of_another_type_over_an_input_is_refused(self) -> None:
        x = torch.arange(8.0)
        self.refused([{"x": x}, ones(x=(8,))], {"x": x.view(torch.bfloat16)[:8]})

    def test_neighbours_and_exact_aliases_are_fine(self) -> None:
        base = torch.arange(12.0)
        average_state_dicts([{"x": base[:4]}, ones(x=(4,))], out={"x": base[4:8]})
        assert base.tolist() == [0, 1, 2, 3, 0.5, 1, 1.5, 2, 8, 9, 10, 11]
        flat = torch.arange(8.0)
        pieces = {"x": flat[:4], "y": flat[4:]}
        average_state_dicts([pieces, ones(x=(4,), y=(4,))], out=pieces)
        assert flat.tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]


def test_errors_are_of_one_kind_and_one_line() -> None:
    assert issubclass(IncompatibleError, SoupError)
    assert issubclass(WeightsError, ValueError)
    with pytest.raises(SoupError) as caught:
        average_state_dicts([ones(**{f"n{i}": (1,) for i in range(50)}), ones(x=(1,))])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_complex_out_that_overlaps_an_input_is_refused_and_unchanged() -> None:
    memory = torch.arange(101, dtype=torch.float32).to(torch.complex64)
    before = memory.clone()
    with pytest.raises(IncompatibleError, match="out overlaps"):
        average_state_dicts([{"x": memory[:100]}, {"x": torch.ones(100) * 1j}], out={"x": memory[1:]})
    assert torch.equal(memory, before)


def test_a_pending_negation_of_complex_numbers_is_carried_out() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    result = average_state_dicts([{"x": torch._neg_view(value)}])["x"]
    assert result.tolist() == [-1 - 2j, -3 + 4j]


def test_uninitialized_parameters_are_refused_by_name() -> None:
    with pytest.raises(IncompatibleError, match=r"tensor 'weight'.*uninitialized"):
        average_state_dicts([torch.nn.LazyLinear(3).state_dict()])
