"""The sum of a running average in memory or in a file, by a budget: the same bits, nothing left on the disk."""

from __future__ import annotations

import copy
import errno
import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import random_bits, same_bits
from safetensors.torch import save_file
from torch import Tensor

from pysoup import Averager, OutputError, SoupError, _native, average_state_dicts
from pysoup.columns import ACC_F64, MEMORY, Columns, SourceColumn
from pysoup.dtypes import F32, F64
from pysoup.running_sum import RunningSum

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
State = dict[str, Tensor]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of its own, empty."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def pool(types: list[torch.dtype], sizes: list[int], count: int, seed: int = 0) -> list[State]:
    """State dictionaries of random bits: NaN, infinities and subnormals included."""
    pairs = list(zip(types, sizes, strict=True))
    return [{f"{i}": random_bits(n, t, seed + 97 * k + i) for i, (t, n) in enumerate(pairs)} for k in range(count)]


def equal(one: State, other: State) -> bool:
    return list(one) == list(other) and all(same_bits(one[name], other[name]) for name in one)


class TestSameBits:
    @settings(max_examples=40)
    @given(data=st.data())
    def test_any_models_in_any_place(self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
        sizes = data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=5))
        types = data.draw(st.lists(st.sampled_from(TYPES), min_size=len(sizes), max_size=len(sizes)))
        count = data.draw(st.integers(1, 4))
        given = pool(types, sizes, count, data.draw(st.integers(0, 1000)))
        weights = data.draw(st.sampled_from([[1.0] * count, [0.5, -0.75, 3.0, 2.0][:count]]))
        in_files = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        directory = tmp_path_factory.mktemp("models")
        sources: list[State | Path] = []
        for k, (state, is_file) in enumerate(zip(given, in_files, strict=True)):
            sources.append(directory / f"{k}.safetensors" if is_file else state)
            if is_file:
                save_file(state, directory / f"{k}.safetensors")
        options = {"threads": data.draw(st.integers(1, 3)), "memory": data.draw(st.sampled_from([1, "40kB", "8MiB"]))}
        one = Averager(given[0], sum_memory="1GiB", **options)  # type: ignore[arg-type]
        other = Averager(given[0], sum_memory=0, **options)  # type: ignore[arg-type]
        for source, weight in zip(sources, weights, strict=True):
            assert equal(other.preview(source, weight=weight), one.preview(source, weight=weight))
            assert other.nonfinite == one.nonfinite
            one.add(source, weight)
            other.add(source, weight)
            assert equal(other.result(), one.result())
            assert other.nonfinite == one.nonfinite
        assert (one.sum_place, other.sum_place) == (("memory", "file") if sum(sizes) else ("", ""))
        if weights[0] == 1.0:
            assert equal(other.result(), average_state_dicts(given))

    def test_first_model_of_f64_comes_later(self, scratch: Path) -> None:
        spec = {"a": torch.zeros(1000, dtype=torch.float64)}
        given = [{"a": random_bits(1000, torch.float32, 1)}, {"a": torch.full((1000,), 1.7e308, dtype=torch.float64)}]
        given += [given[1], {"a": -given[1]["a"]}]
        one, other = Averager(spec, sum_memory="1GiB"), Averager(spec, sum_memory=0)
        for state in given:
            one.add(state)
            other.add(state)
            assert equal(other.result(), one.result())
        assert torch.isfinite(one.result()["a"]).any()

    def test_overflow_of_f64_is_mended_from_the_file(self, scratch: Path) -> None:
        top = torch.full((700,), torch.finfo(torch.float64).max, dtype=torch.float64)
        top[::3] *= -1
        given = [{"small": torch.randn(5), "x": top}] * 3
        averager = Averager(given[0], sum_memory=0)
        for state in given:
            averager.add(state)
        assert averager.sum_place == "file"
        assert equal(averager.result(), average_state_dicts(given))
        assert averager.nonfinite == []
        assert equal(averager.preview(given[0]), average_state_dicts([*given, given[0]]))

    def test_sum_of_many_chunks_is_its_own_source(self, isa: str, tmp_path: Path) -> None:
        """In place in one file, by several threads, from an odd offset: as in memory."""
        count, at = 700_001, 8 * 3
        values = [random_bits(count, torch.float32, k) for k in range(3)]
        expected = torch.zeros(count, dtype=torch.float64)
        with open(tmp_path / "sum", "w+b") as file:
            file.write(b"before..before..before.." + bytes(8 * count) + b"after")
            file.flush()
            for value in values:
                expected += value.double()
                columns, sums, source = Columns(), SourceColumn(), SourceColumn()
                columns.add(count, at, file.fileno(), F64.native, ACC_F64, 1.0)
                sums.add(at, file.fileno(), F64.native, 1.0)
                source.add(value.data_ptr(), MEMORY, F32.native, 1.0)
                _native.run(columns.plan([sums, source]), threads=4, buffer_bytes=40_000)
            file.seek(0)
            content = file.read()
        assert (content[:at], content[at + 8 * count :]) == (b"before..before..before..", b"after")
        found = torch.frombuffer(bytearray(content[at : at + 8 * count]), dtype=torch.float64)
        assert torch.equal(found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


class TestBudget:
    def test_it_decides(self, scratch: Path) -> None:
        state = {"a": torch.ones(1000, dtype=torch.bfloat16), "b": torch.ones(100)}
        for budget, place in ((4800, "memory"), ("4.8kB", "memory"), (4799, "file"), (0, "file")):
            averager = Averager(state, sum_memory=budget)  # type: ignore[arg-type]
            assert averager.sum_place == ""
            averager.add(state)
            assert averager.sum_place == place, budget
            assert averager.sum_host_bytes == (4800 if place == "memory" else 0)

    def test_models_of_f64_take_twice_as_much(self, scratch: Path) -> None:
        state = {"a": torch.ones(1000, dtype=torch.float64)}
        for budget, place in ((16000, "memory"), (15999, "file")):
            averager = Averager(state, sum_memory=budget)
            averager.add(state)
            assert averager.sum_place == place

    def test_without_one_half_of_what_is_free(self, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = {"a": torch.ones(1000, dtype=torch.bfloat16)}
        for free, place in ((8000, "memory"), (7999, "file"), (0, "memory")):  # 0: it is not known
            monkeypatch.setattr("pysoup.running_sum.available_memory", lambda free=free: free)
            averager = Averager(state)
            averager.add(state)
            assert averager.sum_place == place

    def test_without_one_a_full_disk_is_no_error(self, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pysoup.running_sum.available_memory", lambda: 10)
        monkeypatch.setattr("pysoup.running_sum.free_bytes", lambda _: 10)
        state = {"a": torch.ones(1000, dtype=torch.bfloat16)}
        averager = Averager(state)
        averager.add(state)
        assert averager.sum_place == "memory"
        assert equal(averager.result(), state)

    @pytest.mark.parametrize("budget", ["much", -1, True, "1 XB"])
    def test_what_is_no_size_is_refused(self, budget: object) -> None:
        with pytest.raises(SoupError, match="size"):
            Averager({"a": torch.ones(3)}, sum_memory=budget)  # type: ignore[arg-type]


class TestFile:
    def test_it_has_no_name_and_its_space_is_reserved(self, scratch: Path) -> None:
        state = {"a": torch.ones(300_000, dtype=torch.bfloat16)}
        averager = Averager(state, sum_memory=0)
        averager.add(state)
        assert os.listdir(scratch) == []
        ours = [fd for fd in _open_files() if os.readlink(f"/proc/self/fd/{fd}").startswith(str(scratch))]
        assert len(ours) == 1
        assert os.fstat(ours[0]).st_blocks * 512 >= 1_200_000

    def test_it_goes_with_the_averager(self, scratch: Path) -> None:
        before = _open_files()
        state = {"a": torch.ones(1000), "b": torch.ones(10, dtype=torch.float16)}
        averager = Averager(state, sum_memory=0)
        averager.add(state)
        assert len(_open_files()) == len(before) + 2
        del averager
        gc.collect()
        assert _open_files() == before

    def test_it_serves_the_next_sum(self, scratch: Path) -> None:
        states = pool([torch.float32, torch.bfloat16], [500, 300], 3)
        averager = Averager(states[0], sum_memory=0)
        averager.add(states[0])
        files = _open_files()
        averager.reset()
        averager.add(states[1])
        averager.add(states[2])
        assert _open_files() == files
        assert equal(averager.result(), average_state_dicts(states[1:]))

    def test_it_is_not_copied(self, scratch: Path) -> None:
        averager = Averager({"a": torch.ones(10)}, sum_memory=0)
        averager.add({"a": torch.ones(10)})
        with pytest.raises(SoupError, match="cannot be copied"):
            copy.deepcopy(averager)

    def test_missing_space_is_told_before_anything_is_read(
        self, scratch: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pysoup.running_sum.free_bytes", lambda _: 1000)
        averager = Averager({"a": torch.ones(1000)}, sum_memory="1kB")
        with pytest.raises(OutputError) as caught:
            averager.add({"a": torch.ones(1000)})
        expected = "not enough disk space: found 1000 bytes free, expected 8000 bytes"
        assert str(caught.value).startswith(f"{scratch}: the running sum beyond its memory budget")
        assert str(caught.value).endswith(expected)
        assert averager.count == 0
        assert _files_in(scratch) == 0

    def test_space_that_goes_while_it_is_reserved_is_told(self, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        averager = Averager({"a": torch.ones(1000)}, sum_memory=0)
        with pytest.raises(OutputError, match="disk is full"):
            averager.add({"a": torch.ones(1000)})
        assert _files_in(scratch) == 0

    def test_failed_write_is_told_and_leaves_an_empty_sum(self, scratch: Path, tmp_path: Path) -> None:
        state = {"a": torch.ones(1000)}
        averager = Averager(state, sum_memory=0)
        averager.add(state)
        (tmp_path / "other").write_bytes(bytes(8000))
        read_only = os.open(tmp_path / "other", os.O_RDONLY)
        os.dup2(read_only, _sum_fd(averager._sum))
        os.close(read_only)
        with pytest.raises(OutputError, match=r"running sum .* cannot be written: bad file descriptor"):
            averager.add(state)
        assert averager.count == 0


def _sum_fd(sums: RunningSum) -> int:
    (fd,) = {array.fd for array in sums._arrays.values() if not isinstance(array, Tensor)}
    return fd


def _open_files() -> list[int]:
    """Descriptors that lead somewhere; without the one that lists them."""
    return sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}"))


def _files_in(directory: Path) -> int:
    return sum(os.readlink(f"/proc/self/fd/{fd}").startswith(str(directory)) for fd in _open_files())
