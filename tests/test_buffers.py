"""How files are read: past the page cache only where that pays, and not where it should have them for the next time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pysoup import buffers
from pysoup.buffers import available_memory, cold_buffers, fit_buffers
from pysoup.errors import SoupError

GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Reads:
    """A plan that reads so many bytes, of which the page cache has none, or all."""

    bytes: int
    absent: float = 1.0

    def absent_share(self) -> float:
        return self.absent


@pytest.fixture(autouse=True)
def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSOUP_DIRECT", raising=False)


def test_cold_files_that_are_read_once_are_read_past_the_page_cache() -> None:
    found = cold_buffers(Reads(4 * GIB), 64 * MIB, 2, 8)
    assert found is not None
    threads, buffer_bytes = found
    assert threads * buffer_bytes <= 64 * MIB
    assert cold_buffers(Reads(4 * GIB, absent=0.2), 64 * MIB, 2, 8) is None
    assert cold_buffers(Reads(4 * MIB), 64 * MIB, 2, 8) is None


def test_cold_files_that_are_read_again_are_kept_where_memory_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "available_memory", lambda: 8 * GIB)
    assert cold_buffers(Reads(4 * GIB), 64 * MIB, 2, 8, again=True) is None
    assert cold_buffers(Reads(7 * GIB), 64 * MIB, 2, 8, again=True) is not None
    monkeypatch.setattr(buffers, "available_memory", lambda: 0)  # not known
    assert cold_buffers(Reads(4 * GIB), 64 * MIB, 2, 8, again=True) is not None


def test_the_environment_decides_over_all_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "available_memory", lambda: 8 * GIB)
    monkeypatch.setenv("PYSOUP_DIRECT", "on")
    assert cold_buffers(Reads(4 * MIB, absent=0.0), 64 * MIB, 2, 8, again=True) is not None
    monkeypatch.setenv("PYSOUP_DIRECT", "off")
    assert cold_buffers(Reads(7 * GIB), 64 * MIB, 2, 8) is None
    monkeypatch.setenv("PYSOUP_DIRECT", "perhaps")
    with pytest.raises(SoupError, match="PYSOUP_DIRECT"):
        cold_buffers(Reads(7 * GIB), 64 * MIB, 2, 8)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs /proc")
def test_available_memory_is_some_of_what_the_machine_has() -> None:
    total = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    assert 0 < available_memory() < total


def test_buffers_stay_within_the_budget_and_are_never_too_small() -> None:
    for budget in (100_000, 3 * MIB, 64 * MIB):
        for threads in (1, 2, 16):
            for minimum in (1000, 90_000):
                used, nbytes = fit_buffers(budget, threads, minimum, 24)
                assert 1 <= used <= threads
                assert used * nbytes <= budget
                assert nbytes >= minimum
    with pytest.raises(SoupError, match="memory is too small"):
        fit_buffers(100, 1, 101, 2)
