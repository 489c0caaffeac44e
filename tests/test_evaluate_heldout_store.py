"""Where held-out batches are kept: within the memory budget, in a file beyond it, with the same content everywhere."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from pysoup.errors import OutputError, SoupError
from pysoup.evaluate import HeldOut
from pysoup.evaluate import store as store_module

MiB = 1 << 20
X = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))  # 256 bytes a row
Y = torch.arange(40)


def stream(rows: int = 10) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches with memory of their own; 10 rows are 2,640 bytes."""
    for start in range(0, 40, rows):
        yield X[start : start + rows].clone(), Y[start : start + rows].clone()


def open_files() -> list[str]:
    """What this process has open that has no name any more."""
    paths = (Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd"))
    links = [os.readlink(path) for path in paths if os.path.lexists(path)]
    return [link for link in links if link.endswith("(deleted)")]


def assert_same(found: Any, expected: Any) -> None:
    """The same content in containers of the same kind, bit for bit."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.contiguous().view(-1).view(torch.uint8).tolist() == (
            expected.contiguous().view(-1).view(torch.uint8).tolist()
        )
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    else:
        assert found is expected


@pytest.mark.parametrize("memory", ["1 MB", 10560, None])
def test_a_set_that_fits_its_budget_stays_in_memory(memory: Any) -> None:
    held = HeldOut(stream(), memory=memory)
    assert (held.place, held.nbytes, len(held)) == ("memory", 10560, 4)


@pytest.mark.parametrize("memory", [10559, "10 kB", 2640, 1, 0])
def test_a_set_that_passes_its_budget_goes_whole_to_a_file(memory: Any) -> None:
    held = HeldOut(stream(), memory=memory)
    assert (held.place, held.nbytes, len(held)) == ("file", 10560, 4)
    for batch, expected in zip(held.batches(), stream(), strict=True):
        assert_same(batch, expected)


def test_a_view_is_charged_with_all_the_memory_it_keeps_and_that_only_once() -> None:
    def views(rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        large = torch.zeros(1000, 64)
        for start in range(0, rows, 10):
            yield large[start : start + 10], Y[:10]

    assert HeldOut(views(10), memory=200_000).place == "file"
    assert HeldOut(views(1000), memory=300_000).place == "memory"


@pytest.mark.parametrize("data", [(X, Y), {"x": X, "labels": Y}])
def test_whole_tensors_are_neither_copied_nor_charged(data: Any) -> None:
    held = HeldOut(data, batch_size=7, memory=0)
    assert held.place == "memory"
    memory = {X.untyped_storage().data_ptr(), Y.untyped_storage().data_ptr()}
    for batch in held.batches():
        tensors = batch.values() if isinstance(batch, dict) else batch
        assert {tensor.untyped_storage().data_ptr() for tensor in tensors} == memory
    assert HeldOut(data, device="cpu", memory=0).place == "memory"


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


@st.composite
def values(draw: st.DrawFn) -> Any:
    """A tensor of any dtype and shape, strided or not, or something else, or a container of such."""
    leaf = st.builds(tensor, st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.booleans())
    other = st.sampled_from([None, 3, "text", (), Path("x"), np.float32(1)])
    return draw(
        st.recursive(
            leaf | other,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            max_leaves=6,
        )
    )


def tensor(dtype: torch.dtype, shape: list[int], transposed: bool) -> Tensor:
    made = (torch.rand(shape, dtype=torch.float64) * 5).to(dtype)
    return made.transpose(0, -1) if transposed and made.dim() > 1 else made


@given(st.lists(values(), min_size=1, max_size=4))
def test_every_batch_comes_back_from_a_file_as_it_went_in(batches: list[Any]) -> None:
    in_memory = HeldOut([(batch, torch.zeros(1)) for batch in batches])
    filed = HeldOut([(batch, torch.zeros(1)) for batch in batches], memory=0)
    assert filed.place == "file"
    assert filed.nbytes == in_memory.nbytes
    for _ in range(2):
        for (found, _), expected in zip(filed.batches(), batches, strict=True):
            assert_same(found, expected)


def test_what_is_no_plain_tensor_stays_in_memory_as_it_is() -> None:
    class Marked(Tensor):
        pass

    class Custom:
        def __init__(self, x: Tensor) -> None:
            self.x = x

        def to(self, device: torch.device) -> Custom:
            return Custom(self.x.to(device))

    packed, custom = pack_sequence([X[0], X[1]]), Custom(X)
    kept = [Marked([1.0]), X[:2].to_sparse(), X[:1].clone().requires_grad_(), custom, "text", np.ones(3)]
    held = HeldOut([(packed, *kept, Y)], memory=0)
    assert held.place == "file"
    (found,) = held.batches()
    assert isinstance(found[0], PackedSequence)
    assert all(one is other for one, other in zip(found[1:-1], kept, strict=True))


def test_a_loader_is_read_once_and_looks_the_same_from_a_file() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    held = HeldOut(loader, memory=0)
    first = list(held.batches())
    for one, other in zip(first, held.batches(), strict=True):
        assert_same(other, one)
    assert sorted(torch.cat([y for _, y in first]).tolist()) == list(range(40))
    assert type(first[0]) is list


def test_what_a_model_writes_into_a_batch_is_an_error_and_never_reaches_the_file() -> None:
    held = HeldOut(stream(), memory=0)
    batches = held.batches()
    next(batches)[0].zero_()
    with pytest.raises(SoupError, match="changed held-out batch 0 in place"):
        next(batches)
    for batch, expected in zip(held.batches(), stream(), strict=True):
        assert_same(batch, expected)


def test_many_batches_at_once_need_one_mapping() -> None:
    held = HeldOut(((X[:1].clone(), Y[:1].clone()) for _ in range(100)), memory=0)
    before = len(os.listdir("/proc/self/fd"))
    batches = list(held.batches())
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    del held
    gc.collect()
    assert_same(batches[99][0], X[:1])  # a batch outlives the set


def test_a_file_has_no_name_and_goes_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = open_files()
    held = HeldOut(stream(), memory=0)
    assert held.place == "file"
    assert not list(tmp_path.iterdir())
    (link,) = set(open_files()) - set(before)
    assert link.startswith(str(tmp_path))
    other = held.reordered(list(range(40))[::-1], 8)
    assert other.place == "file"
    reference = weakref.ref(held)
    del held
    gc.collect()
    assert reference() is None
    assert torch.cat([y for _, y in other.batches()]).tolist() == list(range(40))[::-1]
    del other
    gc.collect()
    assert open_files() == before


def test_a_set_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import torch, time; from pysoup.evaluate import HeldOut\n"
        "held = HeldOut(((torch.ones(1000), torch.ones(1000)) for _ in range(50)), memory=1000)\n"
        "print(held.place, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "file\n"
        finally:
            process.send_signal(signal.SIGKILL)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def memory_of() -> Callable[[str], dict[str, Any]]:
    def run(memory: str) -> dict[str, Any]:
        script = Path(__file__).with_name("heldout_memory_run.py")
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MiB)}
        run = [sys.executable, script, memory]
        printed = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout
        return dict(json.loads(printed))

    return run


def test_anonymous_memory_stays_within_the_budget_and_a_batch(memory_of: Callable[[str], dict[str, Any]]) -> None:
    found = memory_of("16MiB")
    assert found["places"] == ["file", "file"]
    assert found["nbytes"] > 128 * MiB
    # A batch has 4 MiB: the stream holds one, the set takes one in, and in a pass the user makes one of it.
    for step in ("reading", "passes", "reordered"):
        assert 0 < found[step] <= (16 + 4 + 4 + 1) * MiB, step
    assert memory_of("none")["reading"] >= 128 * MiB  # so it would have been seen


@pytest.mark.parametrize(
    ("memory", "places"),
    [(None, ["memory", "memory"]), (2 * 10560, ["memory", "memory"]), (2 * 10560 - 1, ["memory", "file"])],
)
def test_a_reordered_set_has_what_is_left_of_the_budget(memory: int | None, places: list[str]) -> None:
    held = HeldOut(stream(), memory=memory)
    assert [held.place, held.reordered(range(40)).place] == places
    assert HeldOut((X, Y), memory=10560).reordered(range(40)).place == "memory"
    assert HeldOut((X, Y), memory=10559).reordered(range(40)).place == "file"


def test_the_last_of_a_stream_may_be_what_passes_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept batches are let go one by one: never all of them in memory and in the file."""
    alive: list[weakref.ref[Any]] = []
    seen = []
    write = store_module.BatchFile.write

    def counting(self: Any, tensor: Tensor) -> Any:
        seen.append(sum(reference() is not None for reference in alive))
        return write(self, tensor)

    def tracked() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in stream():
            alive.append(weakref.ref(x))
            yield x, y
            del x, y

    monkeypatch.setattr(store_module.BatchFile, "write", counting)
    assert HeldOut(tracked(), memory=10559).place == "file"
    assert seen[0] == 4
    assert seen[-1] <= 2


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full: found "), (errno.EIO, "input/output error")]
)
def test_a_disk_without_room_is_one_line(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def full(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", full)
    before = open_files()
    with pytest.raises(
        OutputError, match=rf"cannot be kept in a temporary file \(TMPDIR says where\): {words}"
    ) as caught:
        len(HeldOut(stream(), memory=0))
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()
    assert open_files() == before


def test_a_temporary_directory_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match=r"missing: .*temporary file .*: no such file or directory"):
        len(HeldOut(stream(), memory=0))


def test_short_writes_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100], offset))
    for batch, expected in zip(HeldOut(stream(), memory=0).batches(), stream(), strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize("memory", ["much", -1, 1.5])
def test_a_budget_that_is_no_size_is_refused_at_once(memory: Any) -> None:
    with pytest.raises(SoupError, match="size"):
        HeldOut((X, Y), memory=memory)


@pytest.mark.parametrize(
    ("free", "memory", "place"),
    [
        (2 * 10560, None, "memory"),
        (2 * 10559, None, "pinned"),
        (2 * 10559, 10560, "pinned"),
        (2 * 10559, 10559, "file"),
        (10**9, 10560, "memory"),
        (10**9, 10559, "file"),
    ],
)
def test_a_gpu_gives_at_most_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, memory: int | None, place: str
) -> None:
    """The choice alone, for machines without a GPU: what would be moved or pinned stays where it is."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 10**9))
    monkeypatch.setattr(store_module, "moved", lambda batch, device: batch)
    monkeypatch.setattr(store_module, "pinned", lambda batch: batch)
    held = HeldOut(stream(), device="cuda", memory=memory)
    assert held.place == place
    for batch, expected in zip(held.batches(), stream(), strict=True):
        assert_same(batch, expected)


def gpu_passes(held: HeldOut) -> None:
    """Each batch is on the GPU, right, and nothing waits for the device."""
    device = torch.device("cuda", torch.cuda.current_device())
    expected = [(x.cuda(), y.cuda()) for x, y in stream()]
    len(held)
    right = torch.ones((), dtype=torch.bool, device=device)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        for (x, y), (a, b) in zip(held.batches(device), expected, strict=True):
            assert x.device == y.device == device
            right &= (x == a).all() & (y == b).all()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(right)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"device": "cuda"}, "cuda:0"),
        ({"device": "cuda", "memory": 10560}, "cuda:0"),
        ({"device": "cuda", "memory": 10559}, "file"),
        ({"memory": 0}, "file"),
        ({}, "memory"),
    ],
)
def test_batches_reach_the_gpu_without_waiting_from_every_place(options: Any, place: str) -> None:
    held = HeldOut(stream(), **options)
    assert held.place == place
    gpu_passes(held)
    gpu_passes(held)
    assert held.fingerprint == HeldOut(stream()).fingerprint


@pytest.mark.cuda
def test_what_the_gpu_has_no_room_for_is_kept_in_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2 * 5000, 10**9))
    held = HeldOut(stream(), device="cuda")
    assert held.place == "pinned"
    assert all(x.is_pinned() for x, _ in held.batches())
    gpu_passes(held)
    whole = HeldOut((X, Y), batch_size=10, device="cuda", memory=100)
    assert whole.place == "memory"
    gpu_passes(whole)


@pytest.mark.cuda
def test_samples_are_reordered_on_the_gpu() -> None:
    order = torch.randperm(40)
    other = HeldOut((X, Y), batch_size=7, device="cuda").reordered(order, 9)
    assert other.place == "cuda:0"
    assert torch.equal(torch.cat([x for x, _ in other.batches()]).cpu(), X[order])
