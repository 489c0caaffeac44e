"""What the native module says of CUDA where there is none, and which devices a build has code for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pysoup import _native, ops
from pysoup.cli import doctor
from pysoup.errors import BackendError


def test_capabilities_say_why_there_is_no_device() -> None:
    found = _native.capabilities()
    assert len(found["cuda_names"]) == found["cuda_devices"]
    assert bool(found["cuda_reason"]) == (found["cuda_devices"] == 0)
    assert "\n" not in found["cuda_reason"]
    assert found["cuda"] == bool(found["cuda_architectures"]) == bool(found["cuda_runtime"])


@pytest.mark.parametrize(
    ("architectures", "device", "runs"),
    [
        ("80 90 90-virtual", (8, 0), True),
        ("80 90 90-virtual", (8, 6), True),  # machine code of 8.0 runs on all of 8
        ("80 90 90-virtual", (7, 5), False),
        ("80-real 90-real", (10, 0), False),
        ("80-real 90", (10, 0), True),  # the default: CMake's plain 90 is PTX, too
        ("80-real 90", (8, 9), True),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),
        ("native", (7, 5), True),
        ("80 90 90-virtual", (12, 0), True),  # PTX is translated by the driver
        ("90", (8, 9), False),
        ("86", (8, 0), False),
        ("80-virtual", (8, 9), True),
        ("90-real", (9, 0), True),
        ("", (8, 0), False),
    ],
)
def test_build_runs_on_devices_of_its_architectures(architectures: str, device: tuple[int, int], runs: bool) -> None:
    assert _native._runs_on(architectures, *device) == runs


def test_tensors_of_the_cpu_have_no_accelerator() -> None:
    assert ops.kernels_for(torch.zeros(1)) is None
    assert ops.kernels_for_all([]) is None


@pytest.mark.parametrize(("needed", "emptied"), [(100, False), (101, True)])
def test_torch_gives_memory_back_where_the_driver_has_too_little(
    monkeypatch: pytest.MonkeyPatch, needed: int, emptied: bool
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    ops.Accelerator(torch.device("cuda", 0)).make_room(needed)
    assert bool(calls) == emptied


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"cuda": False}, "not built in"),
        (
            {"cuda": True, "cuda_names": [], "cuda_reason": "no CUDA-capable device is detected"},
            "13.0 for 80, 90-virtual; no device: no CUDA-capable device is detected",
        ),
        (
            {"cuda": True, "cuda_names": ["A (sm_80)", "B (sm_90)"], "cuda_reason": ""},
            "13.0 for 80, 90-virtual; A (sm_80), B (sm_90)",
        ),
    ],
)
def test_doctor_says_in_one_line_what_cuda_can_do(facts: dict[str, Any], text: str) -> None:
    built = {"cuda_runtime": "13.0", "cuda_architectures": ["80", "90-virtual"]}
    assert doctor._cuda({**built, **facts}) == text


class Broken:
    """The native module of a machine with two devices, the first of which does not answer."""

    def __init__(self) -> None:
        self._real = _native.load()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def device_count(self) -> int:
        return 2

    def device_why_none(self) -> str:
        return ""

    def device_build(self) -> dict[str, Any]:
        return {"kind": "cuda", "runtime": 13000, "architectures": "80"}

    def device_properties(self, device: int) -> dict[str, Any]:
        if device == 0:
            raise self._real.NativeError(
                "properties of CUDA device 0: the GPU has fallen off the bus", "device", -1, 0, 0
            )
        return {"name": "Good", "major": 8, "minor": 0}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    native = Broken()
    monkeypatch.setattr(_native, "load", lambda: native)
    monkeypatch.setattr(_native, "_cuda_devices", _native._cuda_devices.__wrapped__)


@pytest.mark.usefixtures("broken")
def test_doctor_reports_a_device_that_fails_beside_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.doctor(as_json=False)
    out = capsys.readouterr().out
    assert "properties of CUDA device 0: the GPU has fallen off the bus, Good (sm_80)" in out
    assert "threads" in out


@pytest.mark.usefixtures("broken")
def test_device_that_fails_is_refused_with_its_reason() -> None:
    assert not _native.has_kernels(0)
    assert _native.check_device("cuda:1") == 1
    with pytest.raises(BackendError) as caught:
        _native.check_device("cuda")
    assert str(caught.value) == (
        "cuda cannot be used: found properties of CUDA device 0: the GPU has fallen off the bus, "
        "expected a CUDA device that pysoup doctor lists as usable"
    )


@pytest.mark.skipif(_native.capabilities()["cuda_devices"] > 0, reason="there is a CUDA device")
def test_absent_device_is_refused_in_one_proper_line() -> None:
    with pytest.raises(BackendError) as caught:
        _native.check_device("cuda")
    reason = _native.capabilities()["cuda_reason"]
    expected = "expected a CUDA device that pysoup doctor lists as usable"
    assert str(caught.value) == f"cuda cannot be used: found {reason}, {expected}"


def test_prepared_products_are_refused_where_there_are_no_kernels() -> None:
    elsewhere = [torch.ones(3, device="meta")]
    with pytest.raises(BackendError, match=r"no kernels for this device: found meta, expected dots\(\)"):
        ops.PreparedDots(elsewhere, [elsewhere])
