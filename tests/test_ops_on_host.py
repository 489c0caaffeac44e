"""Small tensors of a device brought to the host, and back, all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pysoup import ops
from pysoup.ops.tensors import _packed, _unpacked

TYPES = (torch.int64, torch.bool, torch.uint8, torch.int32, torch.int16, torch.int8)


class Copies(TorchDispatchMode):
    """Counts copies from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func)
        if name.startswith("aten._to_copy"):
            self.count += result.device != args[0].device
        elif name.startswith("aten.copy_"):
            self.count += args[0].device != args[1].device
        return result


def integers() -> list[Tensor]:
    """Many types and sizes; one is empty, one has no dimension, one is not contiguous."""
    made = []
    for number, dtype in enumerate(TYPES * 3):
        torch.manual_seed(number)
        made.append(torch.randint(0, 2, (number % 5, 3), dtype=torch.int64).to(dtype))
        made.append(torch.tensor(number).to(dtype))
    return [*made, torch.arange(12).reshape(3, 4).T]


def test_packed_tensors_come_back_as_they_were() -> None:
    given = sorted(integers(), key=lambda tensor: -tensor.element_size())
    found = _unpacked(_packed(given), given)
    assert [t.dtype for t in found] == [t.dtype for t in given]
    assert all(map(torch.equal, found, given))


def test_tensors_of_the_host_are_themselves() -> None:
    given = integers()
    assert [t.data_ptr() for t in ops.on_host(given)] == [t.data_ptr() for t in given]


def test_counters_of_a_device_take_one_copy_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet-50 has 53 of them; each copy by itself would wait for the device."""
    with FakeTensorMode(), Copies() as copies:
        there = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(53)]
        there.append(torch.zeros(3, dtype=torch.bool, device="cuda"))
        here = ops.on_host([*there, torch.zeros(2)])
        assert copies.count == 1
        assert all(t.is_cpu for t in here)
        assert [t.shape for t in here[:54]] == [t.shape for t in there]
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        written: list[tuple[Tensor, Tensor]] = []
        monkeypatch.setattr("pysoup.ops.tensors.write", lambda *pair: written.append(pair))
        ops.write_from_host(there, here[:54])
        assert copies.count == 2
        assert all(value.device == target.device for target, value in written)


def test_model_with_counters_is_added_and_written_with_one_copy_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the Averager: what is not averaged of a model is looked at at once, and written at once."""
    model = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(20))
    calls: list[tuple[str, int]] = []
    for name in ("on_host", "write_from_host"):
        whole = getattr(ops, name)

        def counted(tensors: Any, *rest: Any, name: str = name, whole: Any = whole) -> Any:
            calls.append((name, len(tensors)))
            return whole(tensors, *rest)

        monkeypatch.setattr(ops, name, counted)
    from pysoup import Averager

    averager = Averager(model)
    averager.add(model)
    averager.result(out=model)
    assert calls == [("on_host", 20), ("write_from_host", 20)]


@pytest.mark.cuda
def test_values_reach_the_device() -> None:
    given = integers()
    there = [tensor.cuda() for tensor in given]
    assert all(map(torch.equal, ops.on_host(there), given))
    targets = [torch.zeros_like(tensor) for tensor in there]
    ops.write_from_host(targets, given)
    assert all(map(torch.equal, [target.cpu() for target in targets], given))


def test_values_are_written_where_the_targets_are() -> None:
    given = integers()
    targets = [torch.zeros_like(tensor) for tensor in given]
    ops.write_from_host(targets, given)
    assert all(map(torch.equal, targets, given))
