"""average_state_dicts as the drop-in for the loop people write: containers, ties, integers, layouts, autograd."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from oracle import same_bits
from torch import Tensor, nn

from pysoup import IncompatibleError, SoupError, average_state_dicts


def loop_mean(states: list[dict[str, Tensor]], weights: list[float] | None = None) -> dict[str, Tensor]:
    """The loop of the paper's repository, in float64."""
    shares = [1.0] * len(states) if weights is None else weights
    return {n: sum(s[n].double() * w for s, w in zip(states, shares, strict=True)) / sum(shares) for n in states[0]}


def models(count: int) -> list[nn.Module]:
    torch.manual_seed(5)
    return [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)).float()
        for _ in range(count)
    ]


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if t.is_floating_point()}


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]], ids=["equal", "unequal"])
def test_result_equals_the_plain_loop(weights: list[float] | None) -> None:
    states = [m.state_dict() for m in models(3)]
    result = average_state_dicts(states, weights)
    expected = loop_mean([floats(s) for s in states], weights)
    assert list(result) == list(states[0])
    for name, value in expected.items():
        assert result[name].dtype == torch.float32
        assert torch.equal(result[name], value.float()) or weights is not None
        torch.testing.assert_close(result[name], value.float(), rtol=2**-23, atol=0)
    models(1)[0].load_state_dict(result)


def test_result_is_new_memory_and_needs_no_gradient() -> None:
    states = [dict(m.named_parameters()) for m in models(2)]
    result = average_state_dicts(states)
    assert all(not t.requires_grad and t.is_leaf for t in result.values())
    assert not {t.data_ptr() for t in result.values()} & {t.data_ptr() for s in states for t in s.values()}
    one = average_state_dicts([states[0]])
    assert all(one[n].data_ptr() != t.data_ptr() and torch.equal(one[n], t) for n, t in states[0].items())


def test_ordered_dict_and_module_versions_are_kept() -> None:
    states = [m.state_dict() for m in models(2)]
    result = average_state_dicts(states)
    assert isinstance(result, OrderedDict)
    assert result._metadata == states[0]._metadata
    assert type(average_state_dicts([dict(s) for s in states])) is dict


def test_a_generator_of_state_dicts_and_modules_is_accepted() -> None:
    given = models(3)
    expected = average_state_dicts([m.state_dict() for m in given])
    for result in (average_state_dicts(m.state_dict() for m in given), average_state_dicts(given)):
        assert all(torch.equal(result[n], expected[n]) for n in expected)


def test_order_of_names_in_later_inputs_does_not_matter() -> None:
    a = {"x": torch.ones(2), "y": torch.zeros(3)}
    b = {"y": torch.ones(3), "x": torch.zeros(2)}
    result = average_state_dicts([a, b])
    assert list(result) == ["x", "y"]
    assert result["x"].tolist() == [0.5, 0.5]


def test_no_inputs_and_no_tensors() -> None:
    assert average_state_dicts([{}, {}]) == {}
    with pytest.raises(SoupError, match="no state dicts"):
        average_state_dicts([])


def test_scalar_and_empty_tensors_are_kept_in_shape() -> None:
    states = [
        {"s": torch.tensor(k + 1.0), "e": torch.empty(0, 3), "i": torch.empty(0, dtype=torch.int64)} for k in (0, 1)
    ]
    result = average_state_dicts(states)
    assert result["s"].shape == ()
    assert result["s"].item() == 1.5
    assert result["e"].shape == (0, 3)
    assert result["i"].dtype == torch.int64


def test_ties_of_all_inputs_stay_ties_and_are_summed_once() -> None:
    shared = [torch.randn(4, 4) for _ in range(2)]
    both = [{"a": t, "b": t, "c": t[:2]} for t in shared]
    result = average_state_dicts(both)
    assert result["a"].data_ptr() == result["b"].data_ptr()
    assert result["c"].data_ptr() != result["a"].data_ptr(), "another view of the same memory is not the same tensor"
    moved: list[int] = []
    average_state_dicts([{"a": t, "b": t} for t in shared], progress=moved.append)
    assert moved[-1] == 3 * 64


def test_ties_of_some_inputs_are_untied() -> None:
    t, u = torch.randn(3), torch.randn(3)
    result = average_state_dicts([{"a": t, "b": t}, {"a": t, "b": u}])
    assert result["a"].data_ptr() != result["b"].data_ptr()
    assert torch.equal(result["a"], t)
    assert torch.equal(result["b"], ((t.double() + u.double()) / 2).float())
    crossed = average_state_dicts([{"a": t, "b": t, "c": u}, {"a": t, "b": u, "c": u}])
    assert len({x.data_ptr() for x in crossed.values()}) == 3


class TestIntegers:
    def test_equal_values_are_kept_in_new_memory(self) -> None:
        ids = torch.arange(5)
        result = average_state_dicts([{"ids": ids}, {"ids": ids.clone()}])
        assert torch.equal(result["ids"], ids)
        assert result["ids"].data_ptr() != ids.data_ptr()

    def test_batch_counter_becomes_the_largest(self) -> None:
        states = [{"bn.num_batches_tracked": torch.tensor(n)} for n in (3, 9, 5)]
        assert average_state_dicts(states)["bn.num_batches_tracked"].item() == 9

    def test_other_differences_are_an_error_that_names_tensor_and_input(self) -> None:
        states = [
            {"head.ids": torch.tensor([1, 2])},
            {"head.ids": torch.tensor([1, 2])},
            {"head.ids": torch.tensor([1, 3])},
        ]
        with pytest.raises(IncompatibleError, match=r"state_dicts\[2\]: tensor 'head.ids'.*integers='first'"):
            average_state_dicts(states)

    @pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
    def test_largest_of_unsigned_numbers_beyond_the_signed_range(self, dtype: torch.dtype) -> None:
        top = torch.iinfo(dtype).max
        states = [{"n": torch.tensor(v, dtype=dtype)} for v in ([1, top, 0], [top - 1, 5, 0], [7, top // 2, 0])]
        assert average_state_dicts(states, integers="max")["n"].tolist() == [top - 1, top, 0]

    @pytest.mark.parametrize(
        "dtype",
        [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64],
    )
    def test_first_and_max_choose(self, dtype: torch.dtype) -> None:
        states = [{"n": torch.tensor([1, 7]).to(dtype)}, {"n": torch.tensor([2, 5]).to(dtype)}]
        assert average_state_dicts(states, integers="first")["n"].tolist() == [1, 7]
        assert average_state_dicts(states, integers="max")["n"].tolist() == [2, 7]
        assert average_state_dicts(states, integers="max")["n"].dtype == dtype

    def test_bool_masks_follow_the_same_policy(self) -> None:
        states = [{"m": torch.tensor([True, False, False])}, {"m": torch.tensor([False, True, False])}]
        with pytest.raises(IncompatibleError, match="'m'"):
            average_state_dicts(states)
        assert average_state_dicts(states, integers="max")["m"].tolist() == [True, True, False]

    def test_unknown_policy_is_refused(self) -> None:
        with pytest.raises(SoupError, match=r"mean.*auto, first, max"):
            average_state_dicts([{"n": torch.tensor(1)}], integers="mean")

    def test_input_of_weight_zero_has_no_say(self) -> None:
        states = [{"n": torch.tensor(1)}, {"n": torch.tensor(2)}]
        assert average_state_dicts(states, [0.0, 1.0])["n"].item() == 2


class TestLayouts:
    def test_complex_numbers_are_averaged_by_parts(self) -> None:
        states = [{"z": torch.randn(5, dtype=torch.complex64)} for _ in range(3)]
        expected = (sum(s["z"].to(torch.complex128) for s in states) / 3).to(torch.complex64)
        result = average_state_dicts(states)["z"]
        assert result.dtype == torch.complex64
        torch.testing.assert_close(result, expected, rtol=2**-23, atol=0)

    def test_pending_conjugation_and_negation_are_carried_out(self) -> None:
        z = torch.randn(2, 40, dtype=torch.complex64)
        conj = average_state_dicts([{"z": z.conj()}, {"z": z}])["z"]
        torch.testing.assert_close(conj, torch.complex(z.real, torch.zeros_like(z.real)))
        negated = z.conj().imag
        assert negated.is_neg()
        for part in (slice(0, 40), slice(3, 4)):  # a single element counts as contiguous
            x = negated[:1, part]
            assert torch.equal(average_state_dicts([{"x": x}, {"x": x}])["x"], -z.imag[:1, part])

    @pytest.mark.parametrize("make", ["transposed", "strided", "expanded", "permuted", "flipped"])
    def test_noncontiguous_inputs_give_the_values_of_contiguous_ones(self, make: str) -> None:
        views = {
            "transposed": lambda t: t.t(),
            "strided": lambda t: t[::2, ::3],
            "expanded": lambda t: t[:1].expand(7, -1),
            "permuted": lambda t: t.reshape(4, 3, 2, 5).permute(2, 0, 3, 1),
            "flipped": lambda t: t.flip(0)[1:, 2:],
        }
        base = [torch.randn(12, 10).to(torch.bfloat16) for _ in range(3)]
        given = [views[make](t) for t in base]
        expected = average_state_dicts([{"x": t.contiguous()} for t in given])["x"]
        result = average_state_dicts([{"x": t} for t in given])["x"]
        assert same_bits(result, expected)
        mixed = average_state_dicts([{"x": given[0]}, {"x": given[1].contiguous()}, {"x": given[2]}])["x"]
        assert same_bits(mixed, expected)

    def test_channels_last_keeps_its_memory_format_and_bits(self) -> None:
        plain = [torch.randn(4, 3, 5, 7) for _ in range(3)]
        last = [t.to(memory_format=torch.channels_last) for t in plain]
        expected = average_state_dicts([{"x": t} for t in plain])["x"]
        result = average_state_dicts([{"x": t} for t in last])["x"]
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert same_bits(result, expected)
        assert same_bits(average_state_dicts([{"x": last[0]}, {"x": plain[1]}, {"x": last[2]}])["x"], expected)
        assert same_bits(average_state_dicts([{"x": plain[0]}, {"x": last[1]}, {"x": last[2]}])["x"], expected)

    @pytest.mark.parametrize("kind", ["transposed", "strided", "channels_last"])
    def test_noncontiguous_outputs_are_written_in_place(self, kind: str) -> None:
        shape = (4, 3, 5, 6)
        out = {
            "transposed": torch.zeros(6, 5, 3, 4).permute(3, 2, 1, 0),
            "strided": torch.zeros(4, 3, 5, 12)[..., ::2],
            "channels_last": torch.zeros(shape).to(memory_format=torch.channels_last),
        }[kind]
        states = [{"x": torch.randn(shape)} for _ in range(2)]
        before = out.data_ptr()
        assert average_state_dicts(states, out={"x": out})["x"] is out
        assert out.data_ptr() == before
        assert same_bits(out, average_state_dicts(states)["x"])


class TestAutograd:
    def test_module_is_written_in_place(self) -> None:
        given = models(3)
        target = models(1)[0]
        places = {n: t.data_ptr() for n, t in target.state_dict().items()}
        expected = average_state_dicts(given)
        average_state_dicts(given, out=target)
        assert {n: t.data_ptr() for n, t in target.state_dict().items()} == places
        assert all(torch.equal(t, expected[n]) for n, t in target.state_dict().items())
        assert all(p.requires_grad for p in target.parameters())

    def test_parameters_are_accepted_as_inputs_and_outputs(self) -> None:
        given = [dict(m.named_parameters()) for m in models(2)]
        out = dict(models(1)[0].named_parameters())
        assert average_state_dicts(given, out=out) is out
        expected = average_state_dicts(given)
        assert all(torch.equal(out[n], expected[n]) and out[n].requires_grad for n in out)

    def test_stale_backward_fails(self) -> None:
        model = nn.Linear(3, 3)
        loss = (model(torch.ones(1, 3)) ** 2).sum()
        weight = model.weight
        loss = loss + (weight * weight).sum()
        average_state_dicts([{n: torch.ones_like(t) for n, t in model.state_dict().items()}], out=model)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_version_counters_of_outputs_alone_are_bumped(self) -> None:
        a, b, out = torch.ones(3), torch.ones(3), torch.zeros(3)
        average_state_dicts([{"x": a}, {"x": b}], out={"x": out})
        assert out._version > 0
        assert a._version == b._version == 0

    def test_inference_tensors_are_read_and_written(self) -> None:
        with torch.inference_mode():
            a, out = torch.ones(4), torch.zeros(4)
            result = average_state_dicts([{"x": a}, {"x": 3 * a}])
        average_state_dicts([{"x": a}, {"x": 3 * a}], out={"x": out})
        assert out.tolist() == result["x"].tolist() == [2.0] * 4


class TestDtypes:
    def test_types_may_differ_between_tensors_and_are_kept(self) -> None:
        names = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
        states = [{str(d): torch.full((9,), k).to(d) for d in names} for k in (1.0, 3.0)]
        result = average_state_dicts(states)
        assert all(result[str(d)].dtype == d and (result[str(d)].double() == 2).all() for d in names)

    @pytest.mark.parametrize("spelling", ["bf16", "bfloat16", torch.bfloat16])
    def test_dtype_chooses_the_type_of_floats_alone(self, spelling: object) -> None:
        state = {"w": torch.randn(3), "n": torch.tensor(4), "z": torch.ones(2, dtype=torch.complex64)}
        result = average_state_dicts([state, state], dtype=spelling)
        assert [result[n].dtype for n in "wnz"] == [torch.bfloat16, torch.int64, torch.complex64]

    def test_different_types_need_a_dtype(self) -> None:
        a, b = {"w": torch.ones(2)}, {"w": torch.full((2,), 2.0).to(torch.bfloat16)}
        with pytest.raises(IncompatibleError, match=r"state_dicts\[1\]: tensor 'w'.*found BF16, expected F32.*dtype="):
            average_state_dicts([a, b])
        assert average_state_dicts([a, b], dtype="f16")["w"].tolist() == [1.5, 1.5]

    def test_dtype_that_is_no_float_type_is_refused(self) -> None:
        for dtype in ("int8", torch.int64, "complex64", "nonsense"):
            with pytest.raises(SoupError, match="not a float dtype"):
                average_state_dicts([{"w": torch.ones(2)}], dtype=dtype)
