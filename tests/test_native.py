"""The native module: which instruction set runs, what it says of itself, the GIL, progress."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pysoup import BackendError, _native, average_state_dicts

ROOT = Path(__file__).parents[1]


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, timeout=60
    )


class TestIsa:
    def test_capabilities_are_consistent(self) -> None:
        found = _native.capabilities()
        assert found["isas"][-1] == "generic"
        assert found["isa"] in found["isas"]
        assert set(found["isas"]) <= {"generic", "avx2", "avx512", "neon"}
        assert len(set(found["isas"])) == len(found["isas"])
        assert 1 <= found["threads"] <= os.cpu_count()
        assert found["build_type"] == "Release"
        assert found["compiler"]
        assert isinstance(found["cuda"], bool)
        assert found["cuda_devices"] >= 0

    def test_avx_is_found_where_the_processor_has_it(self) -> None:
        cpuinfo = Path("/proc/cpuinfo")
        if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
            pytest.skip("no x86 flags in /proc/cpuinfo")
        flags = set(next(x for x in cpuinfo.read_text().splitlines() if x.startswith("flags")).split())
        found = _native.capabilities()["isas"]
        assert ("avx2" in found) == ({"avx2", "fma", "f16c"} <= flags)
        assert ("avx512" in found) == ({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"} <= flags)

    def test_forced_isa_is_active_only_inside(self, isa: str) -> None:
        assert _native.active_isa() == isa
        with _native.force_isa("generic"):
            assert _native.active_isa() == "generic"
        assert _native.active_isa() == isa

    @pytest.mark.parametrize("name", ["avx3", "AVX2", "neon", "none"])
    def test_unknown_or_absent_isa_is_an_error_not_a_fallback(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if name in _native.capabilities()["isas"]:
            pytest.skip("this machine has it")
        with pytest.raises(BackendError, match=name), _native.force_isa(name):
            pass
        monkeypatch.setenv("PYSOUP_ISA", name)
        with pytest.raises(BackendError, match=rf"PYSOUP_ISA: .*{name}.*expected one of .*generic") as caught:
            average_state_dicts([{"x": torch.ones(3)}] * 2)
        assert "\n" not in str(caught.value)

    def test_environment_forces_an_isa(self) -> None:
        code = "from pysoup import _native; print(_native.active_isa(), _native.capabilities()['isa'])"
        assert python(code, PYSOUP_ISA="generic").stdout == "generic generic\n"
        best = _native.capabilities()["isas"][0]
        for auto in ("auto", ""):
            assert python(code, PYSOUP_ISA=auto).stdout == f"{best} {best}\n"

    def test_forced_generic_averages_in_a_process_of_its_own(self) -> None:
        code = """
import torch
from pysoup import average_state_dicts
x = torch.arange(1000.0).to(torch.bfloat16)
print(average_state_dicts([{"x": x}, {"x": x * 3}])["x"].double().sum().item())
"""
        results = {python(code, PYSOUP_ISA=name).stdout for name in (_native.capabilities()["isas"][0], "generic")}
        assert len(results) == 1
        assert float(results.pop()) > 0


def test_big_endian_machines_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(BackendError, match="not supported: found big-endian, expected little-endian"):
        average_state_dicts([{"x": torch.ones(3)}])


@pytest.mark.parametrize("threads", [0, -1, 5000, True, 1.5, "2"])
def test_wrong_numbers_of_threads_are_refused(threads: object) -> None:
    with pytest.raises(BackendError, match="threads"):
        average_state_dicts([{"x": torch.ones(3)}], threads=threads)  # type: ignore[arg-type]


def test_bandwidth_is_measured() -> None:
    found = _native.measure_bandwidth(1 << 20, threads=1)
    assert set(found) == {"read", "mix"}
    assert all(1e8 < value < 1e13 for value in found.values())


def test_progress_grows_to_the_bytes_moved() -> None:
    state = {"x": torch.zeros(6 << 20), "y": torch.zeros(3, dtype=torch.bfloat16)}
    seen: list[int] = []
    average_state_dicts([state] * 8, threads=1, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 9 * (4 * (6 << 20) + 2 * 3)


def test_error_in_progress_stops_and_is_raised() -> None:
    class Stop(Exception):
        pass

    def progress(done: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        average_state_dicts([{"x": torch.ones(10)}], progress=progress)


@pytest.mark.alone
def test_other_python_threads_run_meanwhile() -> None:
    """A thread that only counts must get on while a long average runs."""
    x = torch.zeros(1 << 20)
    states = [{str(i): x for i in range(4)}] * 200
    ticks: list[float] = []
    running = True

    def count() -> None:
        while running:
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    with _native.force_isa("generic"):
        out = {str(i): torch.zeros(1 << 20) for i in range(4)}
        counter.start()
        begun = time.perf_counter()
        average_state_dicts(states, out=out, threads=1)
        ended = time.perf_counter()
        running = False
        counter.join()
    inside = [t for t in ticks if begun < t < ended]
    # With the GIL held there would be none at all between the two ends.
    assert len(inside) > 5
    assert max(b - a for a, b in zip([begun, *inside], [*inside, ended], strict=True)) < max(0.5 * (ended - begun), 0.1)
