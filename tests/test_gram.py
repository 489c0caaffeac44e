"""The Gram matrix of checkpoints: the contract's products, one pass, the same bits for any budget, no torch."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_average_interrupt import interrupted
from test_average_memory import sparse
from test_dots import by_the_contract
from torch import Tensor

from pysoup import CheckpointError, IncompatibleError, SoupError, _native, open_checkpoint
from pysoup.checkpoint import Checkpoint
from pysoup.file_plan import run_streamed_dots
from pysoup.gram import Gram, gram
from pysoup.ops import gram as gram_of_tensors

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
SHAPES = {"embed.weight": (130, 129), "norm.bias": (7,), "scale": (), "nothing": (0, 3), "conv.weight": (5, 3, 3, 3)}


def states(count: int, dtypes: Sequence[torch.dtype] = (torch.float32,), seed: int = 0) -> list[dict[str, Tensor]]:
    made = []
    for k in range(count):
        generator = torch.Generator().manual_seed(seed + k)
        dtype = dtypes[k % len(dtypes)]
        state = {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}
        made.append({**state, "steps": torch.tensor(k)})
    return made


def saved(folder: Path, given: Sequence[dict[str, Tensor]]) -> list[tuple[str, Checkpoint]]:
    """In two formats, alternating; torch's with strides."""
    sources = []
    for k, state in enumerate(given):
        path = folder / f"{k}.{'pt' if k % 2 else 'safetensors'}"
        if k % 2:
            torch.save({n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in state.items()}, path)
        else:
            save_file(state, path)
        sources.append((path.name, open_checkpoint(path)))
    return sources


def same(one: Gram, other: Gram) -> bool:
    return np.array_equal(np.array(one.matrix).view(np.uint64), np.array(other.matrix).view(np.uint64))


def test_products_follow_the_contract_tensor_by_tensor(tmp_path: Path) -> None:
    given = states(2, [torch.bfloat16, torch.float64])
    found = gram(saved(tmp_path, given), per_tensor=True)
    assert sorted(found.names) == sorted(SHAPES)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        total = 0.0
        for name in found.names:
            one = by_the_contract(given[i][name].flatten(), given[j][name].flatten())
            assert found.tensors[name][i][j] == found.tensors[name][j][i] == one, name
            total += one
        assert found.matrix[i][j] == found.matrix[j][i] == total


def test_the_same_bits_for_any_memory_threads_and_isa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = saved(tmp_path, states(9, [torch.bfloat16, torch.float32]))
    first = gram(sources)
    for isa in _native.capabilities()["isas"]:
        for memory in ("1MiB", "3MiB", "64MiB"):
            for threads in (1, 3):
                with _native.force_isa(isa):
                    assert same(gram(sources, memory=memory, threads=threads), first), (isa, memory, threads)
    monkeypatch.setenv("PYSOUP_DIRECT", "on")
    assert same(gram(sources), first)


def test_tensors_in_memory_give_the_same_bits(tmp_path: Path) -> None:
    given = states(4, [torch.float32, torch.bfloat16])
    found = gram(saved(tmp_path, given), per_tensor=True)
    tensors = gram_of_tensors([[state[name] for name in found.names] for state in given])
    assert tensors.shape == (len(found.names), 4, 4)
    for name, matrix in zip(found.names, tensors, strict=True):
        assert matrix.tolist() == found.tensors[name]


def test_distances_are_those_of_plain_torch(tmp_path: Path) -> None:
    given = states(4)
    matrix = torch.tensor(gram(saved(tmp_path, given)).matrix, dtype=torch.float64)
    flat = [torch.cat([state[n].double().flatten() for n in SHAPES]) for state in given]
    for i in range(4):
        for j in range(4):
            distance = matrix[i, i] - 2 * matrix[i, j] + matrix[j, j]
            torch.testing.assert_close(distance, (flat[i] - flat[j]).square().sum(), rtol=1e-12, atol=1e-9)


def test_what_is_excluded_may_differ(tmp_path: Path) -> None:
    given = states(3)
    given[1]["embed.weight"] = torch.ones(3)
    given[2]["other"] = torch.ones(2)
    sources = saved(tmp_path, given)
    with pytest.raises(IncompatibleError):
        gram(sources)
    found = gram(sources, exclude=lambda name: name in ("embed.weight", "other"))
    assert sorted(found.names) == sorted(set(SHAPES) - {"embed.weight"})
    expected = sum((given[1][n] * given[2][n]).double().sum().item() for n in found.names)
    assert found.matrix[1][2] == pytest.approx(expected, rel=1e-6)
    nothing = gram(sources, exclude=lambda name: True)
    assert (nothing.names, nothing.matrix) == ([], [[0.0] * 3] * 3)


def test_tied_and_wrapped_tensors_count_once(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    torch.save({"a": weight, "b": weight}, tmp_path / "0.pt")
    torch.save({"module.a": 2 * weight, "module.b": 2 * weight}, tmp_path / "1.pt")
    second = torch.load(tmp_path / "1.pt")
    second["module.b"] = second["module.a"]
    torch.save(second, tmp_path / "1.pt")
    found = gram([(str(k), open_checkpoint(tmp_path / f"{k}.pt")) for k in range(2)])
    assert found.names == ["a"]
    assert found.matrix == [[55.0, 110.0], [110.0, 220.0]]


def test_complex_tensors_count_as_pairs_of_reals(tmp_path: Path) -> None:
    torch.save({"z": torch.tensor([1 + 2j, 3j])}, tmp_path / "0.pt")
    torch.save({"z": torch.tensor([2 - 1j, 1 + 1j])}, tmp_path / "1.pt")
    found = gram([(str(k), open_checkpoint(tmp_path / f"{k}.pt")) for k in range(2)])
    assert found.matrix == [[14.0, 3.0], [3.0, 7.0]]


def test_values_that_are_not_finite_are_in_the_result(tmp_path: Path) -> None:
    given = states(2)
    given[1]["norm.bias"][3] = torch.nan
    matrix = np.array(gram(saved(tmp_path, given)).matrix)
    assert np.isfinite(matrix[0, 0])
    assert np.isnan(matrix[[0, 1, 1], [1, 0, 1]]).all()


def test_a_file_cut_short_is_named_with_its_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [sparse(tmp_path / f"{k}.safetensors", {"a": 2 * MIB, "b": 2 * MIB}) for k in range(2)]
    sources = [(path.name, open_checkpoint(path)) for path in paths]

    def cut_first(*args: Any, **kwargs: Any) -> Any:
        os.truncate(paths[1], 3 * MIB)
        return run_streamed_dots(*args, **kwargs)

    monkeypatch.setattr("pysoup.gram.run_streamed_dots", cut_first)
    with pytest.raises(CheckpointError, match=r"1\.safetensors: tensor 'b': cannot be read"):
        gram(sources)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    sources = saved(tmp_path, states(2))
    with pytest.raises(CheckpointError, match=r"0\.safetensors.*changed"):
        gram(sources, progress=lambda done, total: os.utime(tmp_path / "0.safetensors", (1, 1)))


@pytest.mark.alone
@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_stops_within_a_second(tmp_path: Path, threads: int) -> None:
    paths = [str(sparse(tmp_path / f"{k}.safetensors", {"a": 150 * MIB})) for k in range(3)]
    code = CODE.replace("threads=2", "threads=THREADS").replace("sys.argv[2:]", "sys.argv[2:] * 40")
    code = code.replace("target=sample)", "target=sample, daemon=True)")
    seconds, out, err = interrupted(code, threads, "64MiB", *paths)
    assert "KeyboardInterrupt" in err
    assert out == ""
    assert seconds < 1.5


def test_progress_ends_with_all_bytes_and_may_raise(tmp_path: Path) -> None:
    sources = saved(tmp_path, states(3))
    seen: list[tuple[int, int]] = []
    found = gram(sources, progress=lambda *now: seen.append(now))
    assert seen[-1] == (found.bytes_read, found.bytes_read)

    def fail(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        gram(sources, progress=fail)


def test_too_little_memory_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    sources = saved(tmp_path, states(5))
    with pytest.raises(SoupError, match=r"memory is too small.*at least 32\d\.\d kB"):
        gram(sources, memory="100KiB")
    gram(sources, memory="330KiB")


CODE = """
import sys, threading, time
from pysoup.gram import gram
from pysoup import open_checkpoint

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

peak, running = 0, True
def sample():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

sources = [(path, open_checkpoint(path)) for path in sys.argv[2:]]
sampler = threading.Thread(target=sample)
sampler.start()
time.sleep(0.05)
base, peak = anonymous(), 0
print("started", flush=True)
found = gram(sources, memory=sys.argv[1], threads=2)
running = False
sampler.join()
assert not {"torch", "numpy"} & set(sys.modules), "needs no torch"
print(peak - base, found.bytes_read)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("count", "tensors"),
    [(2, {"one": 300 * MIB}), (40, {"a": 4 * MIB, "b": 3 * MIB}), (3, {f"layer.{i}": 4096 for i in range(3000)})],
    ids=["one large tensor", "many inputs", "many tensors"],
)
def test_anonymous_memory_stays_within_the_promise(tmp_path: Path, count: int, tensors: dict[str, int]) -> None:
    paths = [str(sparse(tmp_path / f"{k}.safetensors", tensors)) for k in range(count)]
    command = [sys.executable, "-c", CODE, "8MiB", *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    grown, read = map(int, done.stdout.split()[1:])
    assert read == count * sum(tensors.values())
    assert grown <= (8 + 32) * MIB


def test_a_scaled_f8_checkpoint_is_refused(tmp_path: Path) -> None:
    header = {
        "w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        "w_scale": {"dtype": "F32", "shape": [], "data_offsets": [4, 8]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "f8.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match="scale"):
        gram([("f8", open_checkpoint(tmp_path / "f8.safetensors"))])
