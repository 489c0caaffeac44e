"""Inputs that change under the run: an error that names file and tensor, and no output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pysoup import CheckpointError, average_checkpoints, open_checkpoint
from pysoup.file_plan import Member


def inputs(directory: Path, elements: int = 4000, count: int = 3) -> list[Path]:
    directory.mkdir()
    for k in range(count):
        save_file({"a": torch.randn(elements), "b": torch.randn(elements)}, directory / f"{k}.safetensors")
    return sorted(directory.iterdir())


@pytest.mark.parametrize("change", ["truncated", "rewritten", "replaced", "removed"])
def test_a_file_changed_since_it_was_opened_is_an_error(tmp_path: Path, change: str) -> None:
    paths = inputs(tmp_path / "in")
    (tmp_path / "out").mkdir()
    opened = [open_checkpoint(p) for p in paths]
    victim = paths[1]
    if change == "truncated":
        os.truncate(victim, victim.stat().st_size - 100)
    elif change == "rewritten":
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(0, 0))
    elif change == "replaced":
        (tmp_path / "new").write_bytes(victim.read_bytes())
        os.replace(tmp_path / "new", victim)
    else:
        victim.unlink()
    with pytest.raises(CheckpointError, match=r"1\.safetensors"):
        average_checkpoints(opened, tmp_path / "out" / "soup.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("elements", [1000, 2_000_000])
def test_a_file_truncated_while_it_is_read_is_an_error(tmp_path: Path, threads: int, elements: int) -> None:
    """Cut after all files were opened and checked, just before the first byte is read."""
    paths = inputs(tmp_path / "in", elements)
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "soup.safetensors"
    old.write_bytes(b"old")
    victim = paths[2]

    from pysoup import _native

    run = _native.run

    def cut_then_run(*arguments: object, **options: object) -> None:
        os.truncate(victim, victim.stat().st_size - 64)
        run(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "run", cut_then_run)
        with pytest.raises(CheckpointError, match=r"2\.safetensors: tensor 'b': cannot be read.*too early") as caught:
            average_checkpoints(paths, old, threads=threads, overwrite=True)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["soup.safetensors"]
    assert old.read_bytes() == b"old"


def test_a_file_truncated_in_the_middle_of_the_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = inputs(tmp_path / "in", 30_000, count=2)
    (tmp_path / "out").mkdir()
    opened = Member.open

    def cut_after_opening(member: Member, scratch: Path | None = None) -> None:
        opened(member, scratch)
        os.truncate(paths[0], 1000)

    monkeypatch.setattr(Member, "open", cut_after_opening)
    with pytest.raises(CheckpointError, match=r"0\.safetensors: tensor '[ab]'"):
        average_checkpoints(paths, tmp_path / "out" / "soup.safetensors", memory="2kB", threads=1, sync=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_written_to_in_the_middle_of_the_run_is_an_error(tmp_path: Path) -> None:
    """Same size, so every read succeeds; half of them may have seen the old values."""
    paths = inputs(tmp_path / "in", 1_000_000, count=2)
    (tmp_path / "out").mkdir()

    def progress(done: int, total: int) -> None:
        os.utime(paths[0], ns=(0, 0))

    with pytest.raises(CheckpointError, match=r"0\.safetensors: file changed"):
        average_checkpoints(paths, tmp_path / "out" / "soup.safetensors", progress=progress, sync=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_error_in_progress_leaves_nothing(tmp_path: Path) -> None:
    paths = inputs(tmp_path / "in")
    (tmp_path / "out").mkdir()

    def progress(done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        average_checkpoints(paths, tmp_path / "out" / "soup.safetensors", progress=progress)
    assert list((tmp_path / "out").iterdir()) == []


def test_more_inputs_than_the_soft_limit_of_open_files_are_averaged(tmp_path: Path) -> None:
    paths = inputs(tmp_path / "in", elements=4, count=100)
    code = (
        "import resource, sys; from pysoup import average_checkpoints;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "average_checkpoints(sys.argv[2:], sys.argv[1])"
    )
    output = tmp_path / "soup.safetensors"
    subprocess.run([sys.executable, "-c", code, output, *paths], check=True, cwd=Path(__file__).parents[1])
    expected = sum(load_file(p)["a"].double() for p in paths) / len(paths)
    assert torch.equal(load_file(output)["a"], expected.float())


def test_all_files_are_closed_afterwards(tmp_path: Path) -> None:
    paths = inputs(tmp_path / "in")
    before = len(os.listdir("/proc/self/fd"))
    average_checkpoints(paths, tmp_path / "soup.safetensors", sync=False)
    with pytest.raises(CheckpointError):
        average_checkpoints([*paths, tmp_path / "missing.safetensors"], tmp_path / "x.safetensors")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(load_file(tmp_path / "soup.safetensors")) == 2
