"""average_state_dicts and bound averages on a device: the bits of the CPU, in one launch."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from devices import Device
from torch import Tensor

from pysoup import Averager, BackendError, IncompatibleError, _native, average_state_dicts, ops

FLOATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
SIZES = (0, 1, 2, 3, 31, 32, 33, 127, 1000, 4097)


def states(dtype: torch.dtype, count: int = 3, sizes: tuple[int, ...] = SIZES) -> list[dict[str, Tensor]]:
    """Values over the whole range of the type, NaN and infinities among them; the large tensors start anywhere."""
    result = []
    for _ in range(count):
        state = {}
        for n in sizes:
            start = int(torch.randint(0, 5, ()))
            memory = torch.randint(0, 256, ((n + start) * dtype.itemsize,), dtype=torch.uint8)
            state[f"n{n}"] = memory.view(dtype)[start:]
        result.append(state)
    return result


def bits(state: dict[str, Any]) -> dict[str, Tensor]:
    return {n: t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for n, t in state.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    one, other = bits(one), bits(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("weights", [None, [0.5, -1.25, 3.0]])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_average_has_the_bits_of_the_cpu(dtype: torch.dtype, weights: list[float] | None, on_device: Device) -> None:
    given = states(dtype)
    expected = average_state_dicts(given, weights)
    with on_device.on():
        found = average_state_dicts(on_device.put(given), weights)
    assert same(found, expected)
    assert all(tensor.device == on_device.torch for tensor in found.values())
    assert on_device.calls["launch_sum"] == 1


def test_average_of_mixed_dtypes_into_another_has_the_bits_of_the_cpu(on_device: Device) -> None:
    given = [states(dtype, 1, (5, 130))[0] for dtype in FLOATS]
    expected = average_state_dicts(given, dtype="bf16")
    with on_device.on():
        assert same(average_state_dicts(on_device.put(given), dtype="bf16"), expected)


def test_average_of_tensors_that_are_not_contiguous_or_not_real(on_device: Device) -> None:
    given = [
        {"last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "c": torch.randn(7, dtype=torch.cfloat)}
        for _ in range(3)
    ]
    given[1]["last"] = given[1]["last"].contiguous()
    expected = average_state_dicts(given)
    with on_device.on():
        found = average_state_dicts([{n: t.to(on_device.torch) for n, t in state.items()} for state in given])
    assert same(found, expected)
    assert found["last"].is_contiguous(memory_format=torch.channels_last)


def test_average_keeps_container_ties_and_integers(on_device: Device) -> None:
    given = []
    for k in range(3):
        shared = torch.randn(9)
        given.append(OrderedDict(a=shared, b=shared, num_batches_tracked=torch.tensor(k), ids=torch.arange(4)))
    expected = average_state_dicts(given)
    moved = []
    for state in given:
        copies = {id(t): on_device.put(t) for t in state.values()}
        moved.append(OrderedDict((name, copies[id(t)]) for name, t in state.items()))
    with on_device.on():
        found = average_state_dicts(moved)
    assert same(found, expected)
    assert isinstance(found, OrderedDict)
    assert found["a"] is found["b"]
    assert found["num_batches_tracked"].device == on_device.torch


def test_average_in_place_tells_autograd(on_device: Device) -> None:
    given = states(torch.float32, 3, (3, 1000))
    expected = average_state_dicts(given)
    moved = on_device.put(given)
    versions = [tensor._version for tensor in moved[0].values()]
    with on_device.on():
        found = average_state_dicts(moved, out=moved[0])
    assert found["n3"] is moved[0]["n3"]
    assert same(found, expected)
    assert all(tensor._version > before for tensor, before in zip(moved[0].values(), versions, strict=True))


def test_average_into_a_partly_overlapping_output_is_refused(on_device: Device) -> None:
    memory = on_device.put(torch.zeros(12))
    with on_device.on(), pytest.raises(IncompatibleError, match="overlaps the memory"):
        average_state_dicts([{"x": memory[:10]}, {"x": on_device.put(torch.ones(10))}], out={"x": memory[1:11]})
    assert on_device.calls["launch_sum"] == 0


def test_average_with_a_progress_reports_the_bytes(on_device: Device) -> None:
    seen: list[int] = []
    with on_device.on():
        average_state_dicts(on_device.put([{"x": torch.ones(100)}] * 2), progress=seen.append)
    assert seen[-1] == 1200


def test_tensors_on_two_devices_are_refused_by_both_names() -> None:
    tensors: Any = [SimpleNamespace(device=torch.device(name)) for name in ("cuda:0", "cuda:0", "cpu")]
    with pytest.raises(IncompatibleError, match="several devices: found cuda:0 and cpu, expected one device"):
        ops.refuse_mixed_devices(tensors)


@pytest.mark.cuda
def test_state_dicts_on_two_devices_are_refused_by_name() -> None:
    here, there = {"a": torch.ones(3), "b": torch.ones(3)}, {"a": torch.ones(3), "b": torch.ones(3).cuda()}
    with pytest.raises(IncompatibleError, match="'b': device differs: found cuda:0, expected cpu"):
        average_state_dicts([here, there])
    with pytest.raises(IncompatibleError, match="several devices: found cpu and cuda:0, expected one device"):
        average_state_dicts([there, there])


@pytest.mark.cuda
def test_integers_may_be_on_other_devices_than_what_is_averaged() -> None:
    given = [
        {"a": torch.full((3,), k).float().cuda(), "m": torch.tensor(k), "n": torch.arange(4).cuda()} for k in (1, 3)
    ]
    found = average_state_dicts(given, integers="first")
    assert found["a"].tolist() == [2, 2, 2]
    assert (found["m"].item(), found["m"].is_cpu, found["n"].is_cuda) == (1, True, True)


def test_bound_average_follows_its_tensors(on_device: Device) -> None:
    given = [state | {"num_batches_tracked": torch.tensor(k)} for k, state in enumerate(states(torch.bfloat16))]
    with on_device.on():
        moved = on_device.put(given)
        out = on_device.put(given[0])
        bound = Averager(moved[0]).bind(moved, [0.25, 0.5, 0.25], out=out)
        for _ in range(2):
            for state, host in zip(moved, given, strict=True):
                host["n33"].fill_(float(torch.randn(())))
                state["n33"].copy_(host["n33"])
            on_device.calls.clear()
            version = out["n33"]._version
            assert bound.run() is out
            assert on_device.calls == {"launch_sum": 1}
            assert out["n33"]._version > version
            moved[1]["num_batches_tracked"] += 5
            given[1]["num_batches_tracked"] += 5
            bound.run()
        made = bound.out
    assert same(dict(made), average_state_dicts(given, [0.25, 0.5, 0.25]))


def test_bound_average_refuses_memory_that_moved(on_device: Device) -> None:
    with on_device.on():
        moved = on_device.put(states(torch.float32))
        bound = Averager(moved[0]).bind(moved)
        bound.run()
        moved[1]["n33"].data = on_device.put(torch.zeros(33))
        with pytest.raises(IncompatibleError, match="moved"):
            bound.run()


@pytest.mark.cuda
def test_bound_average_is_recorded_in_a_graph() -> None:
    given = states(torch.float32)
    moved = [{name: tensor.cuda() for name, tensor in state.items()} for state in given]
    bound = Averager(moved[0]).bind(moved)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bound.run()
    for state, host in zip(moved, given, strict=True):
        for name, tensor in host.items():
            tensor.copy_(torch.randn(tensor.shape))
            state[name].copy_(tensor)
    graph.replay()
    assert same(dict(bound.out), average_state_dicts(given))


@pytest.mark.cuda
def test_work_is_put_on_the_current_stream_of_the_tensors_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    given = states(torch.float32)
    expected = average_state_dicts(given)
    side = torch.cuda.Stream("cuda:1")
    with torch.cuda.stream(side):
        moved = [{name: t.to("cuda:1", non_blocking=True) for name, t in state.items()} for state in given]
        with torch.cuda.device("cuda:0"):
            found = average_state_dicts(moved)
    side.synchronize()
    assert same(found, expected)
    assert torch.cuda.current_device() == 0


def test_failed_launch_is_a_backend_error_of_one_line(on_device: Device) -> None:
    with on_device.on():
        given = on_device.put([torch.ones(7), torch.ones(7)])
        plan = ops.sum_columns([[given[0]]], [1.0], [given[1]], 1.0)
        packed = _native.pack_sum(plan)
        with pytest.raises(BackendError) as caught:
            _native.launch_sum(packed, device=97, stream=0, table=given[0].data_ptr(), flags=0)
    assert "\n" not in str(caught.value)
    assert "97" in str(caught.value)
