"""average_checkpoints on a device: the bytes of the CPU, in any memory; the errors of the CPU, nothing left then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import Device
from safetensors.torch import save_file
from torch import Tensor

from pysoup import BackendError, CheckpointError, SoupError, _native, average_checkpoints, open_checkpoint
from pysoup.cli import main

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
SIZES = (0, 1, 2, 31, 127, 1000, 0, 4097, 20_011)


def values(n: int, dtype: torch.dtype) -> Tensor:
    """Any bits: the whole range of the type, NaN and infinities among them."""
    return torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype)


def saved(directory: Path, count: int, dtypes: tuple[torch.dtype, ...] = FLOATS) -> list[Path]:
    directory.mkdir()
    for k in range(count):
        state = {f"{i}.{dtype}": values(n, dtype) for dtype in dtypes for i, n in enumerate(SIZES)}
        state |= {"counter": torch.tensor(3), "table": torch.arange(1000)}
        save_file(state, directory / f"{k}.safetensors")
    return sorted(directory.iterdir())


def large(directory: Path, count: int = 2) -> list[Path]:
    """Many chunks of a small memory: about a megabyte each."""
    directory.mkdir()
    for k in range(count):
        save_file({"a": torch.randn(250_000), "b": torch.randn(1000)}, directory / f"{k}.safetensors")
    return sorted(directory.iterdir())


def average(device: Device, paths: Any, out: Path, **options: Any) -> bytes:
    with device.on():
        report = average_checkpoints(paths, out, device="cuda", **options)
    assert report.device == "cuda:0"
    assert device.calls["run_staged"] > 0
    return out.read_bytes()


@pytest.mark.parametrize("weights", [None, [0.25, -1.5, 2.0]])
@pytest.mark.parametrize("memory", ["24KiB", "130KiB", "2MiB", "64MiB"])
def test_the_bytes_of_the_cpu_in_any_memory(
    tmp_path: Path, memory: str, weights: list[float] | None, on_device: Device
) -> None:
    paths = saved(tmp_path / "in", 3)
    expected = average_checkpoints(paths, tmp_path / "cpu.safetensors", weights)
    found = average(on_device, paths, tmp_path / "gpu.safetensors", weights=weights, memory=memory)
    assert found == (tmp_path / "cpu.safetensors").read_bytes()
    with on_device.on():
        report = average_checkpoints(paths, tmp_path / "gpu.safetensors", weights, device="cuda", overwrite=True)
    assert report.nonfinite == expected.nonfinite
    assert report.notes == expected.notes


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_the_bytes_of_the_cpu_for_any_number_of_inputs(tmp_path: Path, count: int, on_device: Device) -> None:
    paths = saved(tmp_path / "in", count, (torch.float32, torch.bfloat16))
    average_checkpoints(paths, tmp_path / "cpu.safetensors")
    for threads in (1, 3):
        options = {"threads": threads, "memory": "600KiB", "overwrite": True}
        found = average(on_device, paths, tmp_path / "gpu.safetensors", **options)
        assert found == (tmp_path / "cpu.safetensors").read_bytes()


def test_types_formats_and_shards_may_be_mixed(tmp_path: Path, on_device: Device) -> None:
    state = {"w": torch.randn(300, 70), "v": torch.randn(5)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {n: t.half() for n, t in state.items()}}, tmp_path / "b.pt")
    save_file({n: t.bfloat16() for n, t in state.items()}, tmp_path / "c.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.pt", tmp_path / "c.safetensors"]
    for dtype in ("f32", "bf16", "f8_e4m3"):
        average_checkpoints(paths, tmp_path / "cpu.pt", dtype=dtype, overwrite=True)
        assert (
            average(on_device, paths, tmp_path / "gpu.pt", dtype=dtype, overwrite=True)
            == (tmp_path / "cpu.pt").read_bytes()
        )


def test_names_that_only_some_have_are_averaged_over_those(tmp_path: Path, on_device: Device) -> None:
    save_file({"a": torch.randn(700), "b": torch.randn(9)}, tmp_path / "0.safetensors")
    save_file({"a": torch.randn(700), "c": torch.randn(300)}, tmp_path / "1.safetensors")
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    average_checkpoints(paths, tmp_path / "cpu.safetensors", keys="union")
    found = average(on_device, paths, tmp_path / "gpu.safetensors", keys="union")
    assert found == (tmp_path / "cpu.safetensors").read_bytes()


def test_files_that_are_read_past_the_page_cache(
    tmp_path: Path, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = large(tmp_path / "in", 3)
    average_checkpoints(paths, tmp_path / "cpu.safetensors")
    monkeypatch.setenv("PYSOUP_DIRECT", "on")
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    found = average(on_device, paths, tmp_path / "gpu.safetensors", memory="4MiB")
    assert found == (tmp_path / "cpu.safetensors").read_bytes()


def _failing(on_device: Device, paths: Any, out: Path, **options: Any) -> SoupError:
    with pytest.raises(SoupError) as caught:
        average(on_device, paths, out, **options)
    return caught.value


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_truncated_while_it_is_read_is_the_error_of_the_cpu(
    tmp_path: Path, threads: int, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = large(tmp_path / "in")
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "soup.safetensors"
    old.write_bytes(b"old")
    size = paths[1].stat().st_size
    _before_run(monkeypatch, lambda: os.truncate(paths[1], size - 300_000))
    error = _failing(on_device, paths, old, threads=threads, memory="300KiB", overwrite=True)
    assert isinstance(error, CheckpointError)
    assert (error.file, error.tensor, error.what) == (str(paths[1]), "a", "cannot be read")
    assert "too early at byte" in str(error)
    assert old.read_bytes() == b"old"
    assert list((tmp_path / "out").iterdir()) == [old]


def test_a_file_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = large(tmp_path / "in")
    (tmp_path / "out").mkdir()
    _before_run(monkeypatch, lambda: os.utime(paths[0], ns=(0, 0)))
    error = _failing(on_device, paths, tmp_path / "out" / "soup.safetensors")
    assert isinstance(error, CheckpointError)
    assert error.file == str(paths[0])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_cannot_be_read_is_the_error_of_the_cpu(
    tmp_path: Path, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = large(tmp_path / "in")
    opened = [open_checkpoint(p) for p in paths]
    (tmp_path / "out").mkdir()
    # A descriptor that cannot be read from takes the place of the file's.
    from pysoup.file_plan import Member

    enter = Member.open

    def unreadable(self: Member, scratch: Path | None = None) -> None:
        enter(self, scratch)
        if self.index == 1:
            writing = os.open(paths[1], os.O_WRONLY)
            os.dup2(writing, self.fds[0])
            os.close(writing)

    monkeypatch.setattr(Member, "open", unreadable)
    error = _failing(on_device, opened, tmp_path / "out" / "soup.safetensors")
    assert isinstance(error, CheckpointError)
    assert error.file == str(paths[1])
    assert "Bad file descriptor" in str(error)
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_memory_is_said_before_anything_is_read(tmp_path: Path, on_device: Device) -> None:
    paths = large(tmp_path / "in", 4)
    (tmp_path / "out").mkdir()
    for options in ({}, {"dry_run": True}):
        error = _failing(on_device, paths, tmp_path / "out" / "soup.safetensors", memory=1500, **options)
        assert error.what == "memory is too small for these inputs"
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_is_told_and_what_it_raises_stops_the_run(tmp_path: Path, on_device: Device) -> None:
    paths = large(tmp_path / "in")
    (tmp_path / "out").mkdir()
    seen: list[tuple[int, int]] = []
    average(
        on_device,
        paths,
        tmp_path / "gpu.safetensors",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] > 3_000_000
    assert seen == sorted(seen)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average(on_device, paths, tmp_path / "out" / "soup.safetensors", progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_ends_the_run_and_leaves_nothing(tmp_path: Path, on_device: Device) -> None:
    """Ctrl-C is seen by the waiting thread, whatever the others do."""
    paths = large(tmp_path / "in") * 200
    (tmp_path / "out").mkdir()

    def again_and_again() -> None:
        while True:
            average(on_device, paths, tmp_path / "out" / "soup.safetensors", overwrite=True)

    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            again_and_again()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"soup.safetensors"}


def test_the_timeline_has_every_byte_once(tmp_path: Path, on_device: Device) -> None:
    paths = large(tmp_path / "in")
    with _native.timeline() as chunks:
        average(on_device, paths, tmp_path / "gpu.safetensors", memory="400KiB", threads=2)
    assert 2 * 1_004_000 <= sum(chunk["bytes"] for chunk in chunks) < 1.1 * 2 * 1_004_000
    for chunk in chunks:
        for step in ("read", "copy", "kernel", "back", "write"):
            begin, end = chunk[step]
            assert 0 <= begin <= end < 60
        assert chunk["copy"][1] <= chunk["kernel"][1] <= chunk["back"][1]


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "cuda:99999"])
def test_other_devices_are_refused(tmp_path: Path, name: str) -> None:
    paths = large(tmp_path / "in")
    with pytest.raises(BackendError, match="not a device"):
        average_checkpoints(paths, tmp_path / "soup.safetensors", device=name)


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path, on_device: Device) -> None:
    paths = large(tmp_path / "in")
    with on_device.on(), pytest.raises(BackendError, match="cuda:77 cannot be used"):
        average_checkpoints(paths, tmp_path / "soup.safetensors", device="cuda:77")
    assert not (tmp_path / "soup.safetensors").exists()


def test_the_command_says_the_device(tmp_path: Path, on_device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(p) for p in large(tmp_path / "in")]
    with on_device.on():
        assert main(["average", *paths, "-o", str(tmp_path / "gpu.safetensors"), "--device", "cuda"]) == 0
    assert "cuda:0, " in capsys.readouterr().out
    assert main(["average", *paths, "-o", str(tmp_path / "cpu.safetensors")]) == 0
    assert (tmp_path / "gpu.safetensors").read_bytes() == (tmp_path / "cpu.safetensors").read_bytes()


def _before_run(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """All files are open and checked by then; not a byte of the tensors is read."""
    run = _native.run_staged

    def changed(*args: Any, **kwargs: Any) -> list[int]:
        change()
        return run(*args, **kwargs)

    monkeypatch.setattr(_native, "run_staged", changed)
