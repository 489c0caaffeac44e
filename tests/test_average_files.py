"""Files to a file: the bits of the average in memory, whatever the budget, the threads and the shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracle import expected_bits, random_bits, same_bits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pysoup import IncompatibleError, SoupError, average_checkpoints, average_state_dicts

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
State = dict[str, Tensor]


def write(path: Path, states: list[State]) -> list[Path]:
    """One safetensors file each, by the library."""
    path.mkdir(exist_ok=True)
    paths = [path / f"model_{k}.safetensors" for k in range(len(states))]
    for file, state in zip(paths, states, strict=True):
        save_file(state, file, metadata={"format": "pt"})
    return paths


def pool(count: int, dtypes: list[torch.dtype], sizes: tuple[int, ...] = (1000, 1, 7, 4099)) -> list[State]:
    return [
        {f"{str(d)[6:]}.{n}": random_bits(n, d, 1000 * k + 10 * i + n) for i, d in enumerate(dtypes) for n in sizes}
        for k in range(count)
    ]


def agrees(output: Path, expected: State) -> bool:
    found = load_file(output)
    return found.keys() == expected.keys() and all(same_bits(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize("weights", [None, [0.3, 1.9, 0.2]], ids=["equal", "unequal"])
@pytest.mark.parametrize("dtypes", [[d] for d in FLOATS] + [FLOATS], ids=lambda d: "-".join(str(x)[6:] for x in d))
def test_file_equals_the_average_in_memory(
    tmp_path: Path, isa: str, dtypes: list[torch.dtype], weights: list[float] | None
) -> None:
    states = pool(3, dtypes)
    report = average_checkpoints(write(tmp_path / "in", states), tmp_path / "out.safetensors", weights, sync=False)
    assert agrees(tmp_path / "out.safetensors", average_state_dicts(states, weights))
    assert report.isa == isa


def test_file_equals_the_exact_law(tmp_path: Path) -> None:
    states = pool(3, [torch.bfloat16, torch.float32], sizes=(50,))
    average_checkpoints(write(tmp_path / "in", states), tmp_path / "out.safetensors", [1, 2, 4], sync=False)
    found = load_file(tmp_path / "out.safetensors")
    for name, tensor in found.items():
        bits = expected_bits([s[name] for s in states], tensor.dtype, [1, 2, 4])
        assert (
            bits == tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy().view(bits.dtype)
        ).all()


@pytest.mark.parametrize("memory", [40_000, "1MiB", "64MiB"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_budget_and_threads_do_not_change_bits(tmp_path: Path, memory: object, threads: int) -> None:
    states = [{"a": random_bits(300_007, torch.float32, k), "b": random_bits(99, torch.bfloat16, k)} for k in range(3)]
    paths = write(tmp_path / "in", states)
    report = average_checkpoints(
        paths,
        tmp_path / "out.safetensors",
        [1, 2, 4],
        memory=memory,
        threads=threads,
        sync=False,  # type: ignore[arg-type]
    )
    assert agrees(tmp_path / "out.safetensors", average_state_dicts(states, [1, 2, 4]))
    budget = {"1MiB": 1 << 20, "64MiB": 64 << 20}.get(memory, memory)
    assert 0 < report.memory_bytes <= budget
    assert 1 <= report.threads <= threads


def test_many_inputs_fit_a_small_budget(tmp_path: Path) -> None:
    states = [{"x": random_bits(3000, torch.bfloat16, k), "n": torch.tensor(4)} for k in range(64)]
    paths = write(tmp_path / "in", states)
    report = average_checkpoints(paths, tmp_path / "out.safetensors", memory="40kB", sync=False)
    assert agrees(tmp_path / "out.safetensors", average_state_dicts(states))
    assert report.memory_bytes <= 40_000
    with pytest.raises(SoupError, match=r"memory is too small.*found 9\.0 kB, expected at least"):
        average_checkpoints(paths, tmp_path / "small.safetensors", memory="9kB")
    assert not (tmp_path / "small.safetensors").exists()


def test_dtype_converts_floats_alone(tmp_path: Path) -> None:
    states = [{"w": random_bits(500, torch.float32, k), "n": torch.tensor([3, 4])} for k in range(2)]
    paths = write(tmp_path / "in", states)
    average_checkpoints(paths, tmp_path / "out.safetensors", dtype="bf16", sync=False)
    assert agrees(tmp_path / "out.safetensors", average_state_dicts(states, dtype="bf16"))
    assert (tmp_path / "out.safetensors").stat().st_size < paths[0].stat().st_size


def test_inputs_of_different_dtypes_need_a_dtype(tmp_path: Path) -> None:
    states = [{"w": random_bits(500, torch.float32, 0)}, {"w": random_bits(500, torch.float16, 1)}]
    paths = write(tmp_path / "in", states)
    with pytest.raises(IncompatibleError, match=r"model_1\.safetensors: tensor 'w'.*found F16, expected F32.*model_0"):
        average_checkpoints(paths, tmp_path / "out.safetensors")
    average_checkpoints(paths, tmp_path / "out.safetensors", dtype="f64", sync=False)
    assert agrees(tmp_path / "out.safetensors", average_state_dicts(states, dtype="f64"))


def test_shapes_scalars_and_empty_tensors_are_kept(tmp_path: Path) -> None:
    states = [{"s": torch.tensor(1.5 + k), "e": torch.empty(0, 3), "m": torch.randn(2, 3, 4)} for k in range(2)]
    average_checkpoints(write(tmp_path / "in", states), tmp_path / "out.safetensors", sync=False)
    assert agrees(tmp_path / "out.safetensors", average_state_dicts(states))


class TestIntegers:
    def test_counters_become_the_largest_and_equal_ones_stay(self, tmp_path: Path) -> None:
        states = [
            {"bn.num_batches_tracked": torch.tensor(n), "ids": torch.arange(5), "w": torch.ones(3)} for n in (3, 9, 5)
        ]
        average_checkpoints(write(tmp_path / "in", states), tmp_path / "out.safetensors", sync=False)
        found = load_file(tmp_path / "out.safetensors")
        assert found["bn.num_batches_tracked"].item() == 9
        assert found["bn.num_batches_tracked"].shape == ()
        assert torch.equal(found["ids"], torch.arange(5))

    def test_other_differences_name_file_and_tensor_and_leave_nothing(self, tmp_path: Path) -> None:
        states = [{"ids": torch.tensor([1, 2]), "w": torch.ones(3)}, {"ids": torch.tensor([1, 3]), "w": torch.ones(3)}]
        paths = write(tmp_path / "in", states)
        (tmp_path / "out").mkdir()
        with pytest.raises(IncompatibleError, match=r"model_1\.safetensors: tensor 'ids'.*model_0"):
            average_checkpoints(paths, tmp_path / "out" / "x.safetensors")
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize(
        "dtype",
        [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.uint16, torch.uint64],
    )
    def test_first_and_max_choose_for_every_type(self, tmp_path: Path, dtype: torch.dtype) -> None:
        top = 1 if dtype == torch.bool else 100
        low = -100 if dtype.is_signed else 0
        values = [[low, top, 0], [0, 0, top], [0, low, 0]]
        states = [{"n": torch.tensor(v).to(dtype)} for v in values]
        paths = write(tmp_path / "in", states)
        for policy, expected in (("first", values[0]), ("max", [0, top, top])):
            out = tmp_path / f"{policy}.safetensors"
            average_checkpoints(paths, out, integers=policy, sync=False)
            assert load_file(out)["n"].to(torch.int64).tolist() == expected
            assert load_file(out)["n"].dtype == dtype


class TestWeights:
    def test_input_of_weight_zero_is_checked_but_not_read(self, tmp_path: Path) -> None:
        nan = {"w": torch.full((100,), float("nan"))}
        good = [{"w": random_bits(100, torch.float32, k)} for k in range(2)]
        paths = write(tmp_path / "in", [nan, *good])
        report = average_checkpoints(paths, tmp_path / "out.safetensors", [0, 1, 1], sync=False)
        assert agrees(tmp_path / "out.safetensors", average_state_dicts(good))
        assert report.bytes_read == 2 * 400
        assert report.weights == [0.0, 0.5, 0.5]

    def test_raw_weights_are_taken_as_they_are(self, tmp_path: Path) -> None:
        states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, 5.0])}]
        paths = write(tmp_path / "in", states)
        average_checkpoints(paths, tmp_path / "out.safetensors", [1, -1], normalize=False, sync=False)
        assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [-4.0, -3.0]

    @pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [float("nan"), 1.0], [0.0, 0.0]])
    def test_bad_weights_are_refused_before_anything_is_written(self, tmp_path: Path, weights: list[float]) -> None:
        paths = write(tmp_path / "in", [{"w": torch.ones(2)}] * 2)
        with pytest.raises(ValueError, match="weight"):
            average_checkpoints(paths, tmp_path / "out.safetensors", weights)
        assert not (tmp_path / "out.safetensors").exists()


class TestReport:
    def test_report_tells_what_was_done(self, tmp_path: Path) -> None:
        states = [{"w": torch.randn(10, 20), "b": torch.randn(5).half(), "n": torch.tensor(1)} for _ in range(3)]
        paths = write(tmp_path / "in", states)
        seen: list[tuple[int, int]] = []
        report = average_checkpoints(
            paths, tmp_path / "o.safetensors", [1, 1, 2], sync=False, progress=lambda a, b: seen.append((a, b))
        )
        assert report.inputs == [str(p) for p in paths]
        assert report.output == str(tmp_path / "o.safetensors")
        assert report.weights == [0.25, 0.25, 0.5]
        assert (report.tensors, report.parameters) == (3, 206)
        assert report.bytes_read == 3 * (800 + 10 + 8)
        assert report.bytes_written == (tmp_path / "o.safetensors").stat().st_size
        assert report.seconds > 0
        assert not report.dry_run
        assert json.loads(json.dumps(report.to_json())) == report.to_json()
        done = [a for a, _ in seen]
        assert done == sorted(done)
        assert done[-1] == seen[-1][1]

    def test_provenance_is_in_the_metadata(self, tmp_path: Path) -> None:
        paths = write(tmp_path / "in", [{"w": torch.randn(4)} for _ in range(3)])
        average_checkpoints(paths, tmp_path / "o.safetensors", [1, 0, 3], sync=False)
        with safe_open(tmp_path / "o.safetensors", "pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "pt", "what the first input said is kept"
        assert json.loads(metadata["pysoup.ingredients"]) == [str(paths[0]), str(paths[2])]
        assert json.loads(metadata["pysoup.weights"]) == [0.25, 0.75]
        assert metadata["pysoup.version"]

    def test_copies_among_the_inputs_are_reported(self, tmp_path: Path) -> None:
        a, b = write(tmp_path / "in", [{"w": torch.randn(4000)} for _ in range(2)])
        copy = tmp_path / "in" / "copy.safetensors"
        copy.write_bytes(a.read_bytes())
        report = average_checkpoints([a, b, copy], tmp_path / "o.safetensors", sync=False)
        assert [n for n in report.notes if "copy of" in n] == [f"{copy} looks like a copy of {a}"]
        assert not any(
            "copy of" in n for n in average_checkpoints([a, b], tmp_path / "p.safetensors", sync=False).notes
        )

    def test_dry_run_checks_headers_and_writes_nothing(self, tmp_path: Path) -> None:
        states = [{"w": torch.randn(1000)} for _ in range(2)]
        paths = write(tmp_path / "in", states)
        (tmp_path / "out").mkdir()
        report = average_checkpoints(paths, tmp_path / "out" / "o.safetensors", dry_run=True)
        assert list((tmp_path / "out").iterdir()) == []
        real = average_checkpoints(paths, tmp_path / "out" / "o.safetensors", sync=False)
        assert report.dry_run
        for name in ("bytes_read", "bytes_written", "memory_bytes", "threads", "tensors", "parameters", "weights"):
            assert getattr(report, name) == getattr(real, name), name
        save_file({"w": torch.randn(999)}, paths[1])
        with pytest.raises(IncompatibleError, match="shape"):
            average_checkpoints(paths, tmp_path / "new.safetensors", dry_run=True)


def test_nothing_to_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="no checkpoints"):
        average_checkpoints([], tmp_path / "o.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_one_checkpoint_is_copied_alone_or_in_a_list(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", [{"w": torch.ones(2)}])
    for given in (paths, paths[0], str(paths[0])):
        average_checkpoints(given, tmp_path / "o.safetensors", sync=False, overwrite=True)
        assert load_file(tmp_path / "o.safetensors")["w"].tolist() == [1, 1]
