"""What pysoup writes, the safetensors library reads; what it writes, pysoup reads: bit for bit."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter, open_checkpoint, save_state_dict
from pysoup.errors import CheckpointError, OutputError

TYPES = [getattr(torch, d.torch_name) for d in dtypes.ALL if d is not dtypes.C128]
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
names = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda n: n != "__metadata__")
Spec = dict[str, tuple[torch.dtype, tuple[int, ...], int]]
specs = st.dictionaries(names, st.tuples(st.sampled_from(TYPES), shapes, st.integers(0, 2**31)), max_size=6)


def _random(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bits of the type, NaNs and subnormals included."""
    generator = torch.Generator().manual_seed(seed)
    width = 1 if dtype is torch.bool else torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (math.prod(shape) * width,), generator=generator)
    return raw.to(torch.uint8).view(dtype).reshape(shape)


def _bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), bytes(raw.tolist())


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert {n: _bits(t) for n, t in found.items()} == {n: _bits(t) for n, t in expected.items()}


@QUICK
@given(specs)
def test_saved_state_dict_loads_in_safetensors(tmp_path: Path, spec: Spec) -> None:
    tensors = {name: _random(*parts) for name, parts in spec.items()}
    path = tmp_path / "ours.safetensors"
    save_state_dict(tensors, path, metadata={"k": "v"}, overwrite=True)
    _same(load_file(path), tensors)
    _same(open_checkpoint(path).state_dict(), tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"}


@QUICK
@given(specs)
def test_file_of_safetensors_is_read_bit_for_bit(tmp_path: Path, spec: Spec) -> None:
    tensors = {name: _random(*parts) for name, parts in spec.items()}
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path, metadata={"k": "v"})
    checkpoint = open_checkpoint(path)
    _same(checkpoint.state_dict(), tensors)
    _same({name: checkpoint.tensor(name) for name in checkpoint}, tensors)
    assert checkpoint.metadata == {"k": "v"}
    assert (len(checkpoint), checkpoint.numel) == (len(tensors), sum(t.numel() for t in tensors.values()))
    assert checkpoint.total_bytes == sum(t.numel() * t.element_size() for t in tensors.values())


def test_byte_ranges_of_entries_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(3.0), "b": torch.tensor(7, dtype=torch.int64)}, path)
    entry = open_checkpoint(path).entry("b")
    assert struct.unpack("<q", path.read_bytes()[entry.offset : entry.offset + entry.nbytes]) == (7,)


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    state = {
        "emb": weight,
        "head": weight,
        "view": weight[0],
        "transposed": weight.t(),
        "e1": torch.empty(0),
        "e2": torch.empty(0),
    }
    path = tmp_path / "tied.safetensors"
    save_state_dict(state, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.aliases == {"head": "emb"}
    assert list(checkpoint) == ["emb", "view", "transposed", "e1", "e2"]
    loaded = checkpoint.state_dict()
    assert loaded["head"] is loaded["emb"]
    assert torch.equal(checkpoint.tensor("head"), weight)
    assert torch.equal(loaded["transposed"], weight.t())
    assert set(load_file(path)) == set(checkpoint)


def test_every_tensor_is_aligned_whatever_the_order(tmp_path: Path) -> None:
    wide, half = torch.arange(3, dtype=torch.float64), torch.ones(3, dtype=torch.bfloat16)
    state = {"flag": torch.tensor([True]), "wide": wide, "half": half}
    path = tmp_path / "m.safetensors"
    save_state_dict(state, path)
    checkpoint = open_checkpoint(path)
    for name in checkpoint:
        assert checkpoint.entry(name).offset % checkpoint.entry(name).dtype.itemsize == 0
    assert min(checkpoint.entry(n).offset for n in checkpoint) % 64 == 0
    # An order that is aligned by itself is kept.
    save_state_dict({"b": wide, "c": half, "a": half + 1}, path, overwrite=True)
    assert list(open_checkpoint(path)) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"w": torch.zeros(2, dtype=torch.complex128)}, "tensor 'w': safetensors has no type for complex128"),
        ({"w": torch.zeros(2, device="meta")}, "found meta"),
        ({"w": torch.eye(2).to_sparse()}, "found torch.sparse_coo"),
        ({"w": 3}, "not a tensor: found int"),
        ({3: torch.zeros(1)}, "key is not a string: found 3"),
        ({"__metadata__": torch.zeros(1)}, "reserved"),
        ({"\ud800": torch.zeros(1)}, "not valid Unicode"),
        ({"w": torch.zeros(2, dtype=torch.float8_e4m3fnuz)}, "dtype cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(
    tmp_path: Path, state: dict[str, torch.Tensor], expected: str
) -> None:
    with pytest.raises(OutputError) as caught:
        save_state_dict(state, tmp_path / "m.safetensors")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_conjugate_and_negative_views_are_written_by_value(tmp_path: Path) -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    state = {"z": z, "conj": z.conj(), "neg": z.conj().imag}
    save_state_dict(state, tmp_path / "m.safetensors")
    loaded = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(loaded[n], t.resolve_conj().resolve_neg()) for n, t in state.items())


def test_sharded_output_loads_and_its_index_maps_every_tensor(tmp_path: Path) -> None:
    layout = [
        ("model-00001-of-00002.safetensors", [("a", dtypes.F32, (2,)), ("b", dtypes.BY_NAME["I64"], ())]),
        ("model-00002-of-00002.safetensors", [("c", dtypes.BF16, (3, 1))]),
    ]
    values = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(9), "c": torch.ones(3, 1, dtype=torch.bfloat16)}
    out = tmp_path / "out"
    with CheckpointWriter(out, layout, metadata={"made": "now"}, aliases={"t": "a"}, is_directory=True) as writer:
        for name, tensor in values.items():
            shard, offset = writer.offset(name)
            assert os.pwrite(writer.fd(shard), _bits(tensor)[2], offset)
        writer.commit()
    found: dict[str, torch.Tensor] = {}
    for shard, tensors in layout:
        loaded = load_file(out / shard)
        assert set(loaded) == {n for n, _, _ in tensors}
        found |= loaded
        with safe_open(out / shard, "pt") as file:
            assert file.metadata()["made"] == "now"
    _same(found, values)
    checkpoint = open_checkpoint(out)
    assert checkpoint.index_file is not None
    assert (list(checkpoint), checkpoint.aliases, checkpoint.total_bytes) == (["a", "b", "c"], {"t": "a"}, 22)


def test_file_that_shrinks_or_changes_after_the_check_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(100.0)}, path)
    checkpoint = open_checkpoint(path)
    os.close(checkpoint.open_file(0))
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="file changed"):
        checkpoint.open_file(0)
    checkpoint = open_checkpoint(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(CheckpointError, match=r"file changed .* found 468 bytes, expected 472|file changed"):
        checkpoint.tensor("a")
    with pytest.raises(CheckpointError, match="file changed"):
        checkpoint.state_dict()


def test_short_read_is_an_error_with_byte_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(100.0)}, path)
    checkpoint = open_checkpoint(path)
    read = os.preadv
    calls: list[int] = []

    def short(fd: int, views: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return read(fd, [views[0][:100]], offset) if len(calls) < 3 else 0

    monkeypatch.setattr(os, "preadv", short)
    with pytest.raises(CheckpointError, match=r"tensor 'a': file ends early.* found 200 bytes, expected 400 bytes"):
        checkpoint.tensor("a")


def test_reading_layer_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    code = (
        "import sys; from pysoup.checkpoint import open_checkpoint, require_same;"
        f"print(require_same([open_checkpoint({str(path)!r})]), [m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a'] []"
