"""Scores that the training recorded beside a checkpoint: taken where they are of these weights and this data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from soup_models import images, mlp, pool, same_bits

from pysoup.checkpoint import Checkpoint
from pysoup.evaluate import HeldOut, Metric, evaluate
from pysoup.fingerprint import fingerprint_file
from pysoup.record import Record, margins_path, write_margins, write_record
from pysoup.soups import Soup, greedy_soup

COUNT = 4


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    torch.manual_seed(0)
    places = [tmp_path / f"{number}.safetensors" for number in range(COUNT)]
    for state, path in zip(pool(mlp(), COUNT, spread=0.3), places, strict=True):
        save_file(state, path)
    return places


def record(path: Path, data: HeldOut, by: str = "accuracy", **changes: object) -> None:
    """As a sweep leaves it."""
    model = mlp()
    model.load_state_dict(load_file(path))
    content = {
        "score": evaluate(model, data, by),
        "metric": by,
        "direction": "min" if by == "nll" else "max",
        "heldout": data.fingerprint,
        "weights": fingerprint_file(path),
        "hyperparameters": {},
        "seed": 0,
        "seconds": 1.0,
    }
    write_record(path, Record(**{**content, **changes}))


def run(paths: list[Path], heldout: HeldOut, metric: object = "accuracy", **options: object) -> tuple[Soup, int]:
    """The soup, and how many averages were scored."""
    names: list[str] = []
    soup = greedy_soup(paths, mlp(), heldout, metric, progress=lambda done, of, name: names.append(name), **options)
    return soup, len(names)


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_recorded_scores_are_not_measured_again(paths: list[Path], metric: str) -> None:
    heldout = HeldOut(images())
    measured, count = run(paths, heldout, metric, early_rejection=False)
    assert count == 2 * COUNT - 1
    for path in paths:
        record(path, heldout, metric)
    soup, count = run(paths, heldout, metric, early_rejection=False)
    assert count == COUNT - 1
    assert (soup.ingredients, soup.score) == (measured.ingredients, measured.score)
    assert [s.single_score for s in soup.trace] == [s.single_score for s in measured.trace]
    assert soup.notes == [
        "the score of every checkpoint alone is the one recorded beside it: same weights, same held-out data"
    ]
    assert measured.notes == []
    early, _ = run(paths, heldout, metric)
    assert early.ingredients == soup.ingredients


@pytest.mark.parametrize(
    "changes",
    [
        {"heldout": "0" * 64},
        {"heldout": None},
        {"weights": "0" * 64},
        {"metric": "top2"},
        {"direction": "min"},
    ],
)
def test_a_record_of_anything_else_is_not_trusted(paths: list[Path], changes: dict[str, object]) -> None:
    heldout = HeldOut(images())
    expected, _ = run(paths, heldout)
    for path in paths:
        record(path, heldout, **{"score": 0.999, **changes})
    soup, _ = run(paths, heldout)
    assert soup.notes == []
    assert soup.to_json()["trace"][0]["single_score"] == expected.trace[0].single_score != 0.999
    assert soup.ingredients == expected.ingredients


def test_records_of_some_are_taken_and_the_others_measured(paths: list[Path]) -> None:
    heldout = HeldOut(images())
    expected, _ = run(paths, heldout, early_rejection=False)
    record(paths[2], heldout)
    soup, count = run(paths, heldout, early_rejection=False)
    assert count == 2 * COUNT - 2
    assert (soup.ingredients, soup.score) == (expected.ingredients, expected.score)
    assert soup.notes[0].startswith(f"the score of 1 of {COUNT} checkpoints alone is the one recorded beside it")


def test_given_scores_and_other_functions_come_before_a_record(paths: list[Path]) -> None:
    heldout = HeldOut(images())
    for path in paths:
        record(path, heldout)
    soup, _ = run(paths, heldout, scores=[0.1, 0.4, 0.2, 0.3], early_rejection=False)
    assert [step.index for step in soup.trace] == [1, 3, 2, 0]
    assert soup.notes == []
    same_name = Metric(lambda logits, labels: float(logits.shape[1]), "max", "accuracy")
    assert run(paths, heldout, same_name)[0].score == 7.0


def test_a_run_directory_has_each_file_read_once_for_its_fingerprint(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout = HeldOut(images())
    for path in paths:
        record(path, heldout)
    read: list[str] = []

    def counted(file: Checkpoint) -> str:
        read.append(file.path.name)
        return fingerprint_file(file)

    monkeypatch.setattr("pysoup.soups.identity.fingerprint_file", counted)
    monkeypatch.setattr("pysoup.soups.recorded.fingerprint_file", counted)
    soup, _ = run(paths, heldout, run=tmp_path / "run")
    assert soup.notes[0].startswith("the score of every checkpoint alone is the one recorded")
    assert sorted(read) == [path.name for path in paths]
    record(paths[1], heldout, weights="0" * 64)
    soup, _ = run(paths, heldout, run=tmp_path / "other")
    assert soup.notes[0].startswith(f"the score of 3 of {COUNT} checkpoints alone is the one recorded")


def test_a_record_that_changes_while_a_run_is_stopped_changes_nothing(paths: list[Path], tmp_path: Path) -> None:
    heldout = HeldOut(images())
    expected, _ = run(paths, heldout)

    def stop(done: int, of: int, name: str) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        greedy_soup(paths, mlp(), heldout, run=tmp_path / "run", progress=stop)
    for path in paths:
        record(path, heldout)
    model = mlp()
    soup = greedy_soup(paths, model, heldout, run=tmp_path / "run")
    assert soup.notes == [f"went on with the run in {tmp_path / 'run'}: 2 scores were on record there"]
    assert (soup.ingredients, soup.score) == (expected.ingredients, expected.score)
    assert same_bits(dict(model.state_dict()), soup.state_dict())


class Stopped(BaseException):
    """As a kill would."""


def margins_too(paths: list[Path], data: HeldOut) -> None:
    """Margins beside the records, as a sweep leaves them: by hand, in double precision."""
    for path in paths:
        model = mlp().eval()
        model.load_state_dict(load_file(path))
        rows = []
        for x, labels in data.batches(None):
            with torch.no_grad():
                logits = model(x).double()
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
                rows.append(row[label] - max(value for c, value in enumerate(row) if c != label))
        write_margins(path, np.array(rows, dtype=np.float32))


def test_recorded_margins_put_the_hardest_samples_first_without_a_pass(paths: list[Path]) -> None:
    heldout = HeldOut(images())
    for path in paths:
        record(path, heldout)
    without, _ = run(paths, heldout)
    margins_too(paths, heldout)
    soup, _ = run(paths, heldout)
    plain, _ = run(paths, heldout, early_rejection=False)
    assert soup.ingredients == without.ingredients == plain.ingredients
    assert [step.accepted for step in soup.trace] == [step.accepted for step in plain.trace]
    tried = sum(step.samples / step.of for step in soup.trace if step.of)
    assert soup.passes["used"] == pytest.approx(tried), "a pass was taken to put samples in order"
    assert any(step.of and step.samples < step.of for step in soup.trace), "nothing was refused early"


@pytest.mark.parametrize(
    "content", [b"", b"no array", b"PK\x03\x04 no archive", np.zeros(3, np.float32), np.zeros(120, np.float64)]
)
def test_margins_that_do_not_fit_are_passed_over(paths: list[Path], content: bytes | np.ndarray) -> None:
    heldout = HeldOut(images())
    for path in paths:
        record(path, heldout)
    expected, _ = run(paths, heldout)
    for path in paths:
        if isinstance(content, bytes):
            margins_path(path).write_bytes(content)
        else:
            np.save(margins_path(path), content)
    soup, _ = run(paths, heldout)
    assert (soup.ingredients, soup.score, soup.passes) == (expected.ingredients, expected.score, expected.passes)


@pytest.mark.parametrize("done", range(1, COUNT + 1))
def test_margins_that_are_gone_while_a_run_is_stopped_change_nothing(
    paths: list[Path], tmp_path: Path, done: int
) -> None:
    heldout = HeldOut(images())
    for path in paths[:-1]:  # the last is measured
        record(path, heldout)
    margins_too(paths[:-1], heldout)
    expected, count = run(paths, heldout)
    assert count == COUNT + 1

    def stop(finished: int, of: int, name: str) -> None:
        if finished == done:
            raise Stopped

    with pytest.raises(Stopped):
        greedy_soup(paths, mlp(), heldout, run=tmp_path / "run", progress=stop)
    for path in paths[:-1]:
        margins_path(path).unlink()
    soup = greedy_soup(paths, mlp(), heldout, run=tmp_path / "run")
    assert (soup.ingredients, soup.score) == (expected.ingredients, expected.score)
    assert [step.samples for step in soup.trace] == [step.samples for step in expected.trace]
