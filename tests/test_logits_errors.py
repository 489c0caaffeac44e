"""What score_logits and score_ensemble refuse, in one line each; and devices without kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from logits_oracle import random_logits, same_scores
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pysoup import BackendError, IncompatibleError, SoupError, score_ensemble, score_logits

ZEROS = torch.zeros(4, 6)
LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("wrong", [-1, 6, 1000, -(2**62), 2**62])
def test_label_out_of_range_is_named_with_its_sample(wrong: int) -> None:
    labels = torch.tensor([0, 5, wrong, 9])
    with pytest.raises(SoupError, match=rf"^the label of sample 2 is not a class: found {wrong}, expected 0 to 5$"):
        score_logits(ZEROS, labels)
    with pytest.raises(SoupError, match=rf"sample 1002 .*found {wrong}, expected 0 to 5, or -100 to be ignored"):
        score_logits(ZEROS, labels, ignore_index=-100, first_sample=1000)
    with pytest.raises(SoupError, match=r"sample 3 .*found 9"):
        score_ensemble(ZEROS, ZEROS, labels, ignore_index=wrong)


@pytest.mark.parametrize("k", [7, (1, 7), [100]])
def test_more_places_than_classes_are_refused(k: Any) -> None:
    with pytest.raises(SoupError, match=r"top-(7|100) needs at least (7|100) classes: found 6 classes"):
        score_logits(ZEROS, LABELS, k=k)


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "1", (1, None)])
def test_places_that_are_no_positive_integers_are_refused(k: Any) -> None:
    with pytest.raises(SoupError, match="k must be"):
        score_logits(ZEROS, LABELS, k=k)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (ZEROS[0], LABELS),
        (ZEROS[None, None], LABELS),
        (ZEROS, LABELS[:3]),
        (ZEROS, LABELS[None]),
        (torch.zeros(2, 3, 6), LABELS),
        (torch.zeros(4, 0), LABELS),
        (torch.zeros(0, 4, 6), LABELS),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits: Tensor, labels: Tensor) -> None:
    with pytest.raises(IncompatibleError, match=r"found logits \[.*\] and labels \[.*\], expected") as caught:
        score_logits(logits, labels, k=1)
    assert "\n" not in str(caught.value)


def test_base_of_another_shape_is_refused() -> None:
    for base in (ZEROS[:3], ZEROS[:, :5], ZEROS[0], ZEROS[None]):
        with pytest.raises(IncompatibleError, match=r"found base \[.*\], expected \[4, 6\]"):
            score_ensemble(base, torch.zeros(2, 4, 6), LABELS)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_logits_that_are_no_numbers_to_compare_are_refused(dtype: torch.dtype) -> None:
    for name in ("logits", "base"):
        given = ZEROS.to(dtype)
        with pytest.raises(IncompatibleError, match=rf"dtype of {name}: found torch.*expected f32, f16, bf16 or f64"):
            score_logits(given, LABELS) if name == "logits" else score_ensemble(given, ZEROS, LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_labels_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(IncompatibleError, match="labels must be class numbers: found torch"):
        score_logits(ZEROS, LABELS.to(dtype))


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("sparse", ZEROS.to_sparse()),
        ("meta", ZEROS.to("meta")),
        ("list", [[0.0]]),
        ("nested", torch.nested.nested_tensor([ZEROS[0], ZEROS[0, :2]], layout=torch.jagged)),
    ],
)
def test_tensors_whose_memory_is_not_their_values_are_refused(kind: str, tensor: Any) -> None:
    with pytest.raises(IncompatibleError, match=f"'logits': cannot score this kind of tensor: found .*{kind}"):
        score_logits(tensor, LABELS)


def test_unknown_scores_and_threads_are_refused() -> None:
    with pytest.raises(SoupError, match="unknown per-sample score: found 'loss', expected prediction, correct"):
        score_logits(ZEROS, LABELS, per_sample=["margin", "loss"])
    with pytest.raises(SoupError, match="'nll', and nll is False"):
        score_logits(ZEROS, LABELS, per_sample="nll", nll=False)
    with pytest.raises(BackendError, match="threads"):
        score_logits(ZEROS, LABELS, threads=0)


class Elsewhere(Tensor):
    """A CPU tensor that says it is not one: it goes where tensors on devices without kernels go."""

    is_cpu = False


class NoWaiting(TorchDispatchMode):
    """Fails where a value of a tensor is asked for on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def elsewhere(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Elsewhere)


@pytest.mark.parametrize("ignore_index", [None, 3])
def test_devices_without_kernels_score_alike_and_are_not_waited_for(ignore_index: int | None) -> None:
    for kind in ("tied", "odd"):
        logits, labels = random_logits((2, 50, 12), torch.bfloat16, 1, kind)
        base, _ = random_logits((50, 12), torch.float32, 2)
        options: dict[str, Any] = {"k": (1, 5, 12), "per_sample": True, "ignore_index": ignore_index}
        for ensemble in (False, True):
            with NoWaiting():
                far = (
                    score_ensemble(elsewhere(base), elsewhere(logits), elsewhere(labels), 0.5, **options)
                    if ensemble
                    else score_logits(elsewhere(logits), elsewhere(labels), **options)
                )
            near = (
                score_ensemble(base, logits, labels, 0.5, **options)
                if ensemble
                else score_logits(logits, labels, **options)
            )
            assert isinstance(far.samples, Tensor) == (ignore_index is not None)
            assert int(far.samples) == near.samples
            far.samples = near.samples
            for name in ("nll", "confidence", "nll_per_sample"):
                torch.testing.assert_close(
                    getattr(far, name), getattr(near, name), rtol=1e-6, atol=0, equal_nan=True, check_dtype=True
                )
                setattr(far, name, getattr(near, name))
            assert same_scores(far, near)
            far.check_labels()


def test_wrong_labels_on_devices_are_found_when_asked_for() -> None:
    labels = torch.tensor([0, 5, -3, 99])
    with NoWaiting():
        found = score_logits(elsewhere(ZEROS), elsewhere(labels))
    with pytest.raises(SoupError, match=r"sample 2 .*found -3, expected 0 to 5"):
        found.check_labels()


def test_base_on_another_device_is_refused() -> None:
    class Far(Tensor):
        device = torch.device("cuda:1")

    with pytest.raises(IncompatibleError, match="different devices: found cuda:1, cpu"):
        score_ensemble(ZEROS.as_subclass(Far), ZEROS, LABELS)
