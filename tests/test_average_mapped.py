"""Inputs in the page cache are used where they lie, others read, or read past it: the same bits and the same errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pysoup
from pysoup import average_checkpoints, average_state_dicts

BIG = 700_000  # elements: past the size below which files are not mapped


def _inputs(folder: Path, count: int = 3, elements: int = BIG) -> tuple[list[Path], list[dict[str, torch.Tensor]]]:
    folder.mkdir()
    paths, states = [], []
    for k in range(count):
        generator = torch.Generator().manual_seed(k)
        state = {
            "a": torch.randn(elements, generator=generator),
            "b": torch.randn(elements // 3 * 2 + 1, generator=generator).bfloat16(),
            "c": torch.arange(17),
        }
        save_file(state, folder / f"{k}.safetensors")
        paths.append(folder / f"{k}.safetensors")
        states.append(state)
    return paths, states


def _evict(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize(("memory", "direct"), [("64KiB", "auto"), ("64MiB", "off"), ("64MiB", "on")])
@pytest.mark.parametrize("cached", ["all", "some", "none"])
def test_bits_do_not_depend_on_what_the_page_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: str, memory: str, direct: str
) -> None:
    monkeypatch.setenv("PYSOUP_DIRECT", direct)
    paths, states = _inputs(tmp_path / "in")
    for k, path in enumerate(paths):
        if cached == "none" or (cached == "some" and k == 1):
            _evict(path)
    average_checkpoints(paths, tmp_path / "soup.safetensors", memory=memory, sync=False)
    expected = average_state_dicts(states)
    result = load_file(tmp_path / "soup.safetensors")
    assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())


def test_process_does_not_hold_on_to_the_files_it_has_read(tmp_path: Path) -> None:
    paths, _ = _inputs(tmp_path / "in", count=2, elements=60_000_000)
    script = """
import sys, threading, time, pysoup, pysoup._native
pysoup._native.load()
def mapped():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssFile")) * 1024
base, peak, stop = mapped(), 0, False
def watch():
    global peak
    while not stop:
        peak = max(peak, mapped())
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
pysoup.average_checkpoints(sys.argv[1:3], sys.argv[3], sync=False)
stop = True; thread.join()
print(peak - base)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, *paths, tmp_path / "soup.safetensors"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 200 << 20  # of 640 MB


@pytest.mark.parametrize(("memory", "direct"), [("20kB", "auto"), ("2MiB", "on")])
def test_file_cut_short_while_it_is_mapped_is_an_error_and_no_crash(tmp_path: Path, memory: str, direct: str) -> None:
    paths, _ = _inputs(tmp_path / "in", count=4, elements=3_000_000)
    script = """
import os, sys, pysoup
*paths, output, memory = sys.argv[1:]
cut = False
def progress(done, total):
    global cut
    if not cut:
        cut = True
        os.truncate(paths[1], 4096)
try:
    pysoup.average_checkpoints(paths, output, memory=memory, threads=2, progress=progress, sync=False)
except pysoup.CheckpointError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, *paths, tmp_path / "soup.safetensors", memory],
        capture_output=True,
        text=True,
        env=os.environ | {"PYSOUP_DIRECT": direct},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{paths[1]}: ")
    assert run.stdout.count("\n") == 1
    assert not (tmp_path / "soup.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("direct", ["off", "on"])
def test_live_model_takes_files_from_the_page_cache_or_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: str
) -> None:
    monkeypatch.setenv("PYSOUP_DIRECT", direct)
    layers = [torch.nn.Linear(900, 900) for _ in range(3)]
    for k, layer in enumerate(layers):
        torch.save(layer.state_dict(), tmp_path / f"{k}.pt")
        if direct == "on":
            _evict(tmp_path / f"{k}.pt")
    target = torch.nn.Linear(900, 900)
    pysoup.load_soup_(target, [tmp_path / f"{k}.pt" for k in range(3)])
    expected = average_state_dicts([layer.state_dict() for layer in layers])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())
