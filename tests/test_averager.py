"""The running average: the same bits as one average over all, from memory and from files."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import BY_TORCH, accumulator, bits_of, random_bits, round_exact, same_bits
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import Averager, average_state_dicts, open_checkpoint

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def conv_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 4))
    return model.to(dtype)


def batchnorm_pool(count: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    pool = []
    for k in range(count):
        torch.manual_seed(k)
        state = conv_net(dtype).state_dict()
        state["1.num_batches_tracked"] = torch.tensor((7 * k) % 5)
        pool.append(state)
    return pool


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(same_bits(one[n], other[n]) for n in one)


def saved(state: dict[str, Tensor], path: Path) -> Path:
    save_file({n: t.contiguous().clone() for n, t in state.items()}, path)
    return path


class TestSameBits:
    @pytest.mark.parametrize("dtype", FLOATS[:4])
    @pytest.mark.parametrize("k", [1, 2, 3, 7])
    def test_running_average_equals_one_call(self, isa: str, dtype: torch.dtype, k: int) -> None:
        pool = batchnorm_pool(k, dtype)
        averager = Averager(conv_net(dtype))
        for state in pool:
            averager.add(state)
        assert averager.count == k
        assert equal(averager.result(), average_state_dicts(pool))

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_running_average_of_any_bits_equals_one_call(self, isa: str, dtype: torch.dtype) -> None:
        pool = [{"a": random_bits(1500, dtype, k), "b": random_bits(77, dtype, 50 + k)} for k in range(5)]
        averager = Averager(pool[0], threads=2)
        for k, state in enumerate(pool, 1):
            assert equal(averager.preview(state), average_state_dicts(pool[:k]))
            averager.add(state)
            assert equal(averager.result(), average_state_dicts(pool[:k])), k

    def test_models_of_several_dtypes_equal_one_call(self, isa: str) -> None:
        pool = [{str(d): random_bits(300, d, 10 * k + i) for i, d in enumerate(FLOATS)} for k in range(4)]
        averager = Averager(pool[0])
        for state in pool:
            averager.add(state)
        assert equal(averager.result(), average_state_dicts(pool))

    def test_files_and_memory_mix(self, tmp_path: Path) -> None:
        pool = batchnorm_pool(4, torch.bfloat16)
        first = saved(pool[0], tmp_path / "0.safetensors")
        averager = Averager(first, memory="1MiB")
        averager.add(first)
        averager.add(pool[1])
        averager.add(open_checkpoint(saved(pool[2], tmp_path / "2.safetensors")))
        model = conv_net(torch.bfloat16)
        model.load_state_dict(pool[3])
        averager.add(model)
        result, expected = averager.result(), average_state_dicts(pool)
        assert all(same_bits(result[n], expected[n]) for n in expected)

    @pytest.mark.parametrize("memory", [1, "40kB", "8MiB"])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_budget_and_threads_do_not_change_bits_of_files(self, tmp_path: Path, memory: object, threads: int) -> None:
        pool = [{"w": random_bits(200_003, torch.float16, k)} for k in range(3)]
        averager = Averager(pool[0], memory=memory, threads=threads)  # type: ignore[arg-type]
        for k, state in enumerate(pool):
            averager.add(saved(state, tmp_path / f"{k}.safetensors"))
        assert equal(averager.result(), average_state_dicts(pool))

    def test_complex_tensors_are_summed_by_parts(self) -> None:
        pool = [{"z": torch.randn(40, dtype=torch.complex64), "w": torch.randn(3)} for _ in range(3)]
        averager = Averager(pool[0])
        for state in pool:
            averager.add(state)
        result, expected = averager.result(), average_state_dicts(pool)
        assert torch.equal(result["z"], expected["z"])
        assert torch.equal(result["w"], expected["w"])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
    @pytest.mark.parametrize("k", [2, 3, 8])
    def test_finite_mean_of_the_largest_values_does_not_overflow(self, isa: str, dtype: torch.dtype, k: int) -> None:
        top = torch.full((70,), torch.finfo(dtype).max, dtype=dtype)
        top[::3] *= -1
        averager = Averager({"x": top})
        for _ in range(k):
            averager.add({"x": top})
        result = averager.result()["x"]
        assert same_bits(result, average_state_dicts([{"x": top}] * k)["x"])
        assert torch.isfinite(result).all()
        averager.add({"x": -top})
        assert same_bits(averager.result()["x"], average_state_dicts([{"x": top}] * k + [{"x": -top}])["x"])

    def test_subnormals_survive_flush_to_zero_of_the_caller(self, isa: str) -> None:
        tiny = [torch.arange(1, 101, dtype=torch.int16).roll(k).view(torch.bfloat16) for k in range(3)]
        expected = bits_of(average_state_dicts([{"x": t} for t in tiny])["x"]).copy()
        torch.set_flush_denormal(True)
        try:
            averager = Averager({"x": tiny[0]})
            for t in tiny:
                averager.add({"x": t})
            found = bits_of(averager.result()["x"])
        finally:
            torch.set_flush_denormal(False)
        np.testing.assert_array_equal(found, expected)


class TestWeights:
    @pytest.mark.parametrize("dtype", FLOATS[:4])
    def test_unequal_weights_are_within_an_ulp_of_the_exact_mean(self, isa: str, dtype: torch.dtype) -> None:
        fmt, weights = BY_TORCH[dtype], [0.3, 1.25, 2.0]
        pool = [{"x": torch.rand(60).to(dtype) + 0.5} for _ in weights]
        averager = Averager(pool[0])
        for state, weight in zip(pool, weights, strict=True):
            averager.add(state, weight)
        assert averager.total == pytest.approx(3.55)
        found = averager.result()["x"].double().tolist()
        acc = accumulator([fmt], fmt)
        slack = Fraction(2) ** (-acc.mantissa) * 4
        for i, value in enumerate(found):
            rows = [Fraction(s["x"].double()[i].item()) * Fraction(w) for s, w in zip(pool, weights, strict=True)]
            exact = sum(rows) / sum(map(Fraction, weights))
            near = {round_exact(exact * (1 + side * slack), fmt) for side in (-1, 0, 1)}
            assert min(near) <= value <= max(near)

    def test_negative_weights_subtract(self) -> None:
        averager = Averager({"x": torch.zeros(2)})
        averager.add({"x": torch.tensor([3.0, 5.0])}, 2)
        averager.add({"x": torch.tensor([1.0, 1.0])}, -1)
        assert averager.result()["x"].tolist() == [5.0, 9.0]

    def test_preview_takes_a_weight(self) -> None:
        averager = Averager({"x": torch.zeros(2)})
        averager.add({"x": torch.tensor([1.0, 2.0])})
        assert averager.preview({"x": torch.tensor([5.0, 6.0])}, weight=3)["x"].tolist() == [4.0, 5.0]


class TestPreview:
    def test_preview_leaves_the_sum_as_it_is(self, tmp_path: Path) -> None:
        pool = batchnorm_pool(3, torch.float32)
        averager = Averager(pool[0])
        averager.add(pool[0])
        before = averager.result()
        path = saved(pool[2], tmp_path / "x.safetensors")
        for source in (pool[1], path, {n: t * 0 for n, t in pool[1].items()}):
            averager.preview(source)
        assert averager.count == 1
        assert averager.total == 1.0
        assert equal(averager.result(), before)
        averager.add(pool[1])
        assert equal(averager.result(), average_state_dicts(pool[:2]))

    def test_preview_before_any_add_is_the_source(self) -> None:
        state = batchnorm_pool(1, torch.bfloat16)[0]
        averager = Averager(state)
        assert equal(averager.preview(state), state)
        assert averager.count == 0
        averager.add(state)
        assert equal(averager.result(), state)

    def test_result_and_preview_may_be_taken_again_and_again(self) -> None:
        pool = batchnorm_pool(3, torch.float32)
        averager = Averager(pool[0])
        for k in range(3):
            averager.add(pool[k])
            assert equal(averager.result(), averager.result())
        assert averager.result()["0.weight"].data_ptr() != averager.result()["0.weight"].data_ptr()

    def test_reset_starts_anew(self) -> None:
        pool = batchnorm_pool(3, torch.float32)
        averager = Averager(pool[0])
        averager.add({n: t * 0 + 9 for n, t in pool[0].items()}, 5.0)
        averager.reset()
        assert (averager.count, averager.total) == (0, 0.0)
        for state in pool:
            averager.add(state)
        assert equal(averager.result(), average_state_dicts(pool))


class TiedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight


class TestInPlace:
    def test_live_module_is_written_where_it_stands(self) -> None:
        pool = batchnorm_pool(3, torch.float32)
        model = conv_net()
        places = {n: t.data_ptr() for n, t in model.state_dict().items()}
        versions = {n: p._version for n, p in model.named_parameters()}
        averager = Averager(model)
        for state in pool:
            averager.add(state)
        averager.result(out=model)
        assert {n: t.data_ptr() for n, t in model.state_dict().items()} == places
        assert all(p._version > versions[n] and p.requires_grad for n, p in model.named_parameters())
        assert equal(model.state_dict(), average_state_dicts(pool))
        averager.preview(pool[1], out=model)
        assert equal(model.state_dict(), average_state_dicts([*pool, pool[1]]))

    def test_channels_last_parameters_keep_their_format(self) -> None:
        pool = batchnorm_pool(2, torch.float32)
        model = conv_net().to(memory_format=torch.channels_last)
        averager = Averager(model)
        for state in pool:
            averager.add(state)
        averager.result(out=model)
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(model[0].weight, average_state_dicts(pool)["0.weight"])

    def test_channels_last_sources_give_the_same_bits(self) -> None:
        pool = [conv_net().to(memory_format=torch.channels_last) for _ in range(2)]
        averager = Averager(conv_net())
        for model in pool:
            averager.add(model)
        expected = average_state_dicts([{n: t.contiguous() for n, t in m.state_dict().items()} for m in pool])
        assert equal(averager.result(), expected)

    def test_tied_parameters_stay_tied(self, tmp_path: Path) -> None:
        models = [TiedModel() for _ in range(3)]
        path = tmp_path / "one_name.safetensors"
        save_file({"embed.weight": models[2].embed.weight.detach()}, path)
        target = TiedModel()
        averager = Averager(target)
        averager.add(models[0])
        averager.add(models[1].state_dict())
        averager.add(path)  # the safetensors habit: one of the tied names is stored
        expected = average_state_dicts([{"w": m.embed.weight} for m in models])["w"]
        fresh = averager.result()
        assert fresh["embed.weight"].data_ptr() == fresh["head.weight"].data_ptr()
        averager.result(out=target)
        assert target.head.weight is target.embed.weight
        assert torch.equal(target.head.weight, expected)

    def test_out_of_a_narrower_dtype_is_rounded_once(self) -> None:
        pool = [{"x": torch.randn(500, dtype=torch.float64)} for _ in range(3)]
        averager = Averager(pool[0])
        for state in pool:
            averager.add(state)
        out = {"x": torch.zeros(500, dtype=torch.bfloat16)}
        assert averager.result(out=out) is out
        assert same_bits(out["x"], average_state_dicts(pool, dtype="bf16")["x"])

    def test_tracked_counters_of_batch_norm_are_the_largest(self) -> None:
        pool = batchnorm_pool(4, torch.float32)
        averager = Averager(pool[0])
        for state in pool:
            averager.add(state)
        assert averager.result()["1.num_batches_tracked"].item() == max(s["1.num_batches_tracked"].item() for s in pool)


def test_no_warning_for_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        averager = Averager(conv_net())
        averager.add(conv_net())
        averager.result()


@pytest.mark.parametrize("kinds", [(torch.float32, torch.float64, torch.float64), (torch.float64, torch.float32) * 2])
def test_f64_after_f32_has_the_bits_of_one_call(kinds: tuple[torch.dtype, ...]) -> None:
    huge = torch.tensor([1.7e308, -1.7e308, 1 / 3])
    models = [{"x": torch.tensor([0.1, 3e38, 0.7]) if d == torch.float32 else huge.to(d)} for d in kinds]
    models = [{"x": m["x"].to(d)} for m, d in zip(models, kinds, strict=True)]
    spec = {"x": torch.zeros(3, dtype=torch.float64)}
    averager = Averager(spec)
    for model in models:
        averager.add(model)
    out = {"x": torch.zeros(3, dtype=torch.float64)}
    average_state_dicts(models, out=out)
    assert averager.result()["x"].tolist() == out["x"].tolist()
