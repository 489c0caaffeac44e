"""The same bits whatever the instruction set, the threads, the strides, the other candidates and scores asked for."""

from __future__ import annotations

import pytest
import torch
from logits_oracle import FLOATS, name_of, random_logits, same_scores
from torch import Tensor

from pysoup import LogitScores, _native, ops, reference, score_ensemble, score_logits

THREADS = (1, 2, 3, 8)


def everything(logits: Tensor, labels: Tensor, **options: object) -> LogitScores:
    return score_logits(logits, labels, k=(1, 3), per_sample=True, ignore_index=2, **options)


def generic(logits: Tensor, labels: Tensor) -> LogitScores:
    """The same call on the plain scalar code, one thread."""
    with _native.force_isa("generic"):
        return everything(logits, labels, threads=1)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("kind", ["plain", "odd", "confident"])
def test_instruction_sets_and_threads_do_not_change_bits(isa: str, kind: str, dtype: torch.dtype) -> None:
    for classes in (3, 17, 100, 4097):
        logits, labels = random_logits((3, 12, classes), dtype, classes, kind)
        right = generic(logits, labels)
        assert all(same_scores(everything(logits, labels, threads=threads), right) for threads in THREADS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_threads_do_not_change_bits_where_there_is_work_for_all(isa: str, dtype: torch.dtype) -> None:
    logits, labels = random_logits((3, 1000, 400), dtype, 1)
    assert logits.numel() * logits.element_size() > 2 << 20
    right = everything(logits, labels, threads=1)
    assert all(same_scores(everything(logits, labels, threads=threads), right) for threads in THREADS)
    together = score_ensemble(logits[0], logits, labels, 0.3, threads=1)
    assert all(same_scores(score_ensemble(logits[0], logits, labels, 0.3, threads=t), together) for t in THREADS)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_strides_do_not_change_bits(isa: str, dtype: torch.dtype) -> None:
    logits, labels = random_logits((2, 10, 70), dtype, 2, "odd")
    right = everything(logits, labels)
    padded = torch.full((3, 21, 93), 7.0, dtype=dtype)
    padded[:2, 1::2, 11:81] = logits
    spread = torch.full((2, 10, 140), 7.0, dtype=dtype)
    spread[..., ::2] = logits
    layouts = {
        "rows apart": padded[:2, 1::2, 11:81],
        "classes first": logits.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "samples first": logits.transpose(0, 1).contiguous().transpose(0, 1),
        "classes apart": spread[..., ::2],
    }
    for layout, strided in layouts.items():
        assert same_scores(everything(strided, labels), right), layout
    one = everything(logits[:1].expand(4, 10, 70), labels)
    assert one.nll is not None
    assert right.nll is not None
    assert one.nll.nan_to_num(-1.0).tolist() == right.nll[:1].expand(4).nan_to_num(-1.0).tolist()


def test_negated_views_are_resolved() -> None:
    pairs = torch.randn(20, 9, dtype=torch.complex64)
    negated = pairs.conj().imag
    assert negated.is_neg()
    labels = torch.randint(9, (20,))
    assert same_scores(score_logits(negated, labels), score_logits(negated.clone(), labels))


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_candidates_do_not_change_one_another(isa: str, dtype: torch.dtype) -> None:
    logits, labels = random_logits((5, 20, 130), dtype, 3)
    together = everything(logits, labels)
    for m in range(5):
        alone = everything(logits[m], labels)
        assert alone.nll is not None
        assert together.nll is not None
        assert alone.nll.shape == (1,)
        assert alone.nll[0] == together.nll[m]
        assert alone.margin is not None
        assert together.margin is not None
        torch.testing.assert_close(alone.margin[0], together.margin[m], rtol=0, atol=0, equal_nan=True)


def in_order(values: list[float]) -> float:
    """256 sums side by side, each in the order of the samples, joined as a tree."""
    sums = [0.0] * 256
    for n, value in enumerate(values):
        sums[n % 256] += value
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [one + other for one, other in zip(sums[:half], sums[half:], strict=True)]
    return sums[0]


@pytest.mark.parametrize("rows", [0, 1, 2, 129, 256, 257, 5000])
def test_likelihoods_sum_in_one_order(isa: str, rows: int) -> None:
    logits, labels = random_logits((2, rows, 12), torch.float32, 4)
    found = score_logits(logits, labels, per_sample=["nll"], threads=2, ignore_index=3)
    assert found.nll_per_sample is not None
    assert found.nll is not None
    for m in range(2):
        assert found.nll[m].item() == in_order(found.nll_per_sample[m].nan_to_num(0.0).tolist())


@pytest.mark.parametrize("rows", [0, 1, 255, 300, 2000])
def test_plain_torch_sums_likelihoods_in_the_same_order(rows: int) -> None:
    logits, labels = random_logits((3, rows, 7), torch.float32, 4)
    options = {"weight": 1.0, "scale": 1.0, "ignore_label": 2, "k": [1], "wanted": ("nll",)}
    found = reference.score_rows(None, logits, labels, **options)
    for m in range(3):
        assert found["total"][m].item() == in_order(found["nll"][m].nan_to_num(0.0).tolist())


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_counts_alone_are_those_of_the_whole(isa: str, dtype: torch.dtype) -> None:
    for kind in ("tied", "odd"):
        for classes in (5, 33, 500, 5000):
            logits, labels = random_logits((2, 20, classes), dtype, classes, kind)
            whole = score_logits(logits, labels, k=(1, 2, 5), per_sample=True)
            counts = score_logits(logits, labels, k=(1, 2, 5), nll=False)
            assert all(torch.equal(counts.top[k], whole.top[k]) for k in (1, 2, 5))
            assert torch.equal(counts.nan_rows, whole.nan_rows)


def test_flushed_subnormals_elsewhere_do_not_change_scores(isa: str) -> None:
    logits = torch.tensor([[1e-40, 2e-40, 0.0, -1e-40]]).repeat(40_000, 2)
    labels = torch.ones(40_000, dtype=torch.int64)
    right = score_logits(logits, labels, per_sample=True, threads=2)
    assert right.top[1].tolist() == [40_000]
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals")
        found = score_logits(logits, labels, per_sample=True, threads=2)
    finally:
        torch.set_flush_denormal(False)
    assert same_scores(found, right)


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("kind", ["plain", "tied", "confident", "odd"])
def test_plain_torch_specification_agrees_with_native(isa: str, kind: str, dtype: torch.dtype) -> None:
    """Whole numbers and margins to the bit, likelihoods within the promised error."""
    for base_dtype in (None, torch.bfloat16, torch.float64):
        logits, labels = random_logits((2, 30, 77), dtype, 5, kind)
        labels[::7] = -1
        base = None if base_dtype is None else random_logits((30, 77), base_dtype, 6, kind)[0]
        wanted = ("prediction", "margin", "confidence", "nll")
        options = {"weight": 0.3, "scale": 0.7, "ignore_label": -1, "k": [1, 4, 77], "wanted": wanted}
        native = ops.score_rows(base, logits, labels, threads=None, **options)
        plain = reference.score_rows(base, logits, labels, **options)
        assert native.keys() == plain.keys()
        for name, values in plain.items():
            error = 1e-6 if name in ("confidence", "nll", "total") else 0.0
            torch.testing.assert_close(native[name], values, rtol=error, atol=0, equal_nan=True, msg=name)
