"""score_logits and score_ensemble on a device: every output has the bits of the CPU."""

from __future__ import annotations

import pytest
import torch
from devices import Device
from logits_oracle import FLOATS, name_of, random_logits, same_scores

from pysoup import LogitScores, SoupError, score_ensemble, score_logits


def on_cpu(scores: LogitScores) -> LogitScores:
    def moved(value: object) -> object:
        return value.cpu() if isinstance(value, torch.Tensor) else value

    parts = {name: moved(value) for name, value in vars(scores).items() if name not in ("top", "samples")}
    top = {k: counts.cpu() for k, counts in scores.top.items()}
    return LogitScores(top=top, samples=int(scores.samples), **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize("kind", ["plain", "odd", "confident"])
@pytest.mark.parametrize("classes", [2, 33, 1000, 4097])
def test_all_scores_have_the_bits_of_the_cpu(classes: int, kind: str, dtype: torch.dtype, on_device: Device) -> None:
    logits, labels = random_logits((2, 9, classes), dtype, classes, kind)
    expected = score_logits(logits, labels, k=(1, 2), per_sample=True, ignore_index=1)
    with on_device.on():
        found = score_logits(on_device.put(logits), on_device.put(labels), k=(1, 2), per_sample=True, ignore_index=1)
        assert found.nll is not None
        assert found.nll.device == on_device.torch
    assert on_device.calls["launch_scores"] == 1
    assert same_scores(on_cpu(found), expected)


@pytest.mark.parametrize(
    "options", [{"nll": False}, {"per_sample": "margin", "nll": False, "k": ()}, {"k": 2}], ids=str
)
def test_fewer_outputs_are_the_same_ones(options: dict[str, object], on_device: Device) -> None:
    logits, labels = random_logits((2, 40, 70), torch.float32, 3, "odd")
    expected = score_logits(logits, labels, **options)  # type: ignore[arg-type]
    with on_device.on():
        found = score_logits(on_device.put(logits), on_device.put(labels), **options)  # type: ignore[arg-type]
    assert same_scores(on_cpu(found), expected)


@pytest.mark.parametrize("base", [torch.float32, torch.float64, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_ensembles_have_the_bits_of_the_cpu(dtype: torch.dtype, base: torch.dtype, on_device: Device) -> None:
    logits, labels = random_logits((3, 11, 67), dtype, 5)
    together = random_logits((1, 11, 67), base, 6)[0][0]
    expected = score_ensemble(together, logits, labels, 0.3, scale=0.7, k=(1, 5), per_sample=True)
    with on_device.on():
        found = score_ensemble(
            on_device.put(together),
            on_device.put(logits),
            on_device.put(labels),
            0.3,
            scale=0.7,
            k=(1, 5),
            per_sample=True,
        )
    assert same_scores(on_cpu(found), expected)


def test_strided_logits_and_narrow_labels_are_taken(on_device: Device) -> None:
    logits, labels = random_logits((2, 10, 70), torch.bfloat16, 2)
    expected = score_logits(logits, labels)
    padded = torch.full((2, 21, 93), 7.0, dtype=torch.bfloat16)
    padded[:, 1::2, 11:81] = logits
    with on_device.on():
        moved = on_device.put(padded)[:, 1::2, 11:81]
        found = score_logits(moved, on_device.put(labels.to(torch.uint8)))
    assert same_scores(on_cpu(found), expected)


def test_no_rows_score_nothing(on_device: Device) -> None:
    with on_device.on():
        found = score_logits(on_device.put(torch.zeros(2, 0, 5)), on_device.put(torch.zeros(0, dtype=torch.int64)))
    assert found.top[1].tolist() == [0, 0]
    assert found.nll is not None
    assert found.nll.tolist() == [0.0, 0.0]


def test_label_out_of_range_is_found_when_asked_for(on_device: Device) -> None:
    logits = torch.zeros(5, 4)
    with on_device.on():
        labels = on_device.put(torch.tensor([0, 3, 4, 1, -1]))
        with pytest.raises(SoupError, match="label of sample 2 is not a class: found 4, expected 0 to 3"):
            score_logits(on_device.put(logits), labels, k=1).check_labels()
