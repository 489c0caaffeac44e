"""``run=``: a recipe that was stopped anywhere goes on to the same result, and scores nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from score_tables import Table
from soup_models import images, mlp, pool, same_bits
from torch import Tensor, nn

from pysoup.errors import SoupError
from pysoup.evaluate import HeldOut
from pysoup.soups import Soup, greedy_soup
from pysoup.soups.journal import Journal


class Stopped(BaseException):
    """Stands for the end of the process."""


class Watched:
    """Counts forward passes over batches; ends in one of them."""

    def __init__(self, table: Table, last: int | None = None) -> None:
        self.table = table
        self.last = last
        self.calls = 0
        self.scored = 0
        """Calls until the last average that was scored."""

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.calls == self.last:
            raise Stopped
        self.calls += 1
        return self.table.forward(model, batch)

    def progress(self, done: int, of: int, name: str) -> None:
        self.scored = self.calls

    def run(self, directory: Path | None, metric: str = "accuracy", **options: object) -> tuple[Soup, Tensor]:
        table, model = self.table, self.table.model()
        data = HeldOut((torch.arange(table.samples), table.labels), self.forward, batch_size=table.batch_size)
        # The fingerprint has the function's name: the same for every run.
        soup = greedy_soup(table.states(), model, data, metric, run=directory, progress=self.progress, **options)
        return soup, model.weight.detach().clone()


def arrays(run: Path) -> list[str]:
    folder = run / "arrays"
    return sorted(path.name.partition(".")[0] for path in folder.iterdir()) if folder.exists() else []


def told(soup: Soup) -> dict[str, object]:
    """All but the seconds, which no two runs share, and that the run was gone on with."""
    content = soup.to_json()
    del content["timing"]
    content["notes"] = [note for note in content["notes"] if not note.startswith("went on with the run in ")]
    content["trace"] = [{k: v for k, v in step.items() if "seconds" not in k} for step in content["trace"]]
    return content


CASES = [
    ("accuracy", {}),
    ("nll", {"passes": 3, "replacement": True, "max_ingredients": 6}),
    ("accuracy", {"order": "random", "seed": 1}),
    ("top2", {"early_rejection": False}),
]


@pytest.mark.parametrize(("metric", "options"), CASES)
def test_a_run_stopped_in_any_batch_goes_on_to_the_same_soup(
    metric: str, options: dict[str, object], tmp_path: Path
) -> None:
    table = Table(3, count=5, samples=40, classes=4, batch_size=16)
    whole = Watched(table)
    expected, weights = whole.run(None, metric, **options)
    assert any(step.bound is not None for step in expected.trace) == ("early_rejection" not in options)
    for last in range(0, whole.calls, 3):
        stopped, resumed = Watched(table, last), Watched(table)
        with pytest.raises(Stopped):
            stopped.run(tmp_path / str(last), metric, **options)
        soup, model = resumed.run(tmp_path / str(last), metric, **options)
        assert told(soup) == told(expected)
        assert torch.equal(model, weights)
        assert resumed.calls == whole.calls - stopped.scored


def test_a_run_stopped_again_and_again_goes_on_to_the_same_soup(tmp_path: Path) -> None:
    table = Table(8, count=6, samples=40, classes=4, batch_size=16, nan=0.3)
    expected, weights = Watched(table).run(None)
    attempts = 0
    while True:
        attempts += 1
        try:
            # 4 batches score one average at most.
            soup, model = Watched(table, last=4).run(tmp_path / "run")
            break
        except Stopped:
            assert attempts < 40
    assert attempts > 5
    assert told(soup) == told(expected)
    assert torch.equal(model, weights)
    again, _ = Watched(table, last=0).run(tmp_path / "run")  # nothing is left to score
    assert told(again) == told(expected)
    scores = (tmp_path / "run" / "journal.jsonl").read_text().count('"members"')
    assert scores > 6
    assert again.notes[-1] == f"went on with the run in {tmp_path / 'run'}: {scores} scores were on record there"
    assert not any("went on" in note for note in expected.notes)


def files(folder: Path, count: int) -> list[Path]:
    torch.manual_seed(0)
    paths = [folder / f"{number}.safetensors" for number in range(count)]
    for state, path in zip(pool(mlp(), count, spread=0.3), paths, strict=True):
        save_file(state, path)
    return paths


def test_what_decides_the_result_must_be_the_same(tmp_path: Path) -> None:
    paths, data, run = files(tmp_path, 4), images(), tmp_path / "run"
    soup = greedy_soup(paths, mlp(), data, run=run)
    for options, word in (
        ({"accept": ">"}, "option accept was '>=', it is '>' now"),
        ({"metric": "nll"}, "the metric's name was 'accuracy', it is 'nll' now"),
        ({"scores": [0.1, 0.2, 0.3, 0.4]}, "option scores"),
        ({"order": [3, 2, 1, 0]}, "option order"),
    ):
        with pytest.raises(SoupError, match=word):
            greedy_soup(paths, mlp(), data, run=run, **options)
    with pytest.raises(SoupError, match="another held-out set"):
        greedy_soup(paths, mlp(), (data[0] + 1, data[1]), run=run)
    model = mlp()
    assert greedy_soup(paths, model, data, run=run).ingredients == soup.ingredients
    assert same_bits(dict(model.state_dict()), soup.state_dict())
    save_file(pool(mlp(), 1, spread=0.1)[0], paths[2])
    with pytest.raises(SoupError, match=r"checkpoint .*2\.safetensors has other content now"):
        greedy_soup(paths, mlp(), data, run=run)


def test_a_sum_that_was_removed_is_missed(tmp_path: Path) -> None:
    table = Table(3, count=5, samples=40, classes=4, batch_size=16)
    with pytest.raises(Stopped):
        Watched(table, last=8).run(tmp_path / "run")
    for array in (tmp_path / "run" / "arrays").glob("logits-*"):
        array.unlink()
    with pytest.raises(SoupError, match=r"run: the sum of logits that belongs to the recorded scores is missing"):
        Watched(table).run(tmp_path / "run")


def test_the_sum_of_logits_is_not_kept_longer_than_needed(tmp_path: Path) -> None:
    table = Table(3, count=5, samples=40, classes=4, batch_size=16)
    for _ in range(3):  # each scores one more
        with pytest.raises(Stopped):
            Watched(table, last=4).run(tmp_path / "run")
        assert len(list((tmp_path / "run" / "arrays").glob("logits-*"))) == 1
    Watched(table).run(tmp_path / "run")
    assert arrays(tmp_path / "run") == ["order"]


def test_what_a_kill_kept_from_being_removed_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between a record, or the order, and the removal of the sums that it makes useless."""
    table = Table(3, count=5, samples=40, classes=4, batch_size=16)
    expected, weights = Watched(table).run(None)
    keep = Journal.keep_arrays
    left: list[list[str]] = []
    for kill in range(6):
        calls = [kill]
        run = tmp_path / str(kill)

        def killed(self: Journal, *names: str, calls: list[int] = calls) -> None:
            if not calls[0]:
                raise Stopped
            calls[0] -= 1
            keep(self, *names)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "keep_arrays", killed)
            with pytest.raises(Stopped):
                Watched(table).run(run)
        left.append(arrays(run))
        soup, model = Watched(table).run(run)
        assert arrays(run) == ["order"]
        assert told(soup) == told(expected)
        assert torch.equal(model, weights)
    assert left == [
        ["labels", "logits-1"],
        *(["labels", f"logits-{n}", f"logits-{n + 1}"] for n in range(1, 5)),
        ["labels", "logits-5", "order"],
    ]


def test_where_samples_were_not_put_in_order_no_sum_is_left(tmp_path: Path) -> None:
    table = Table(3, count=2, samples=40, classes=4, batch_size=16)
    expected, weights = Watched(table).run(tmp_path / "run")
    assert arrays(tmp_path / "run") == []
    soup, model = Watched(table, last=0).run(tmp_path / "run")  # and none is missed
    assert told(soup) == told(expected)
    assert torch.equal(model, weights)
