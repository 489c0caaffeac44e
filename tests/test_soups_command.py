"""What ``pysoup greedy`` and ``pysoup uniform`` do: a run directory with the soup, its trace and its results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from soup_models import mlp, plain_mean, pool, same_bits
from torch import nn

from pysoup.errors import OutputError, SoupError
from pysoup.soups import greedy_soup, uniform_soup
from pysoup.soups.command import run_recipe
from pysoup.task import load_task

run_greedy = partial(run_recipe, greedy_soup)
run_uniform = partial(run_recipe, uniform_soup, records=False)

TASK = """
import torch
from torch import nn

def data(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(80, 6, generator=generator), torch.randint(0, 7, (80,), generator=generator)

class Small:
    metric = "nll"

    def model(self):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 7))

    def heldout(self):
        x, y = data(0)
        return [{"x": x, "y": y}]

    def tests(self):
        x, y = data(1)
        return {"same": self.heldout(), "other": [{"x": x, "y": y}]}

    def forward(self, model, batch):
        return model(batch["x"]), batch["y"]

class Killed(Small):
    # As Small; it ends after some batches, as by a kill.
    calls = []
    last = 0

    def forward(self, model, batch):
        self.calls.append(len(self.calls))
        if len(self.calls) == self.last:
            raise KeyboardInterrupt
        return super().forward(model, batch)

class Own:
    def __init__(self, x, y):
        self.x, self.y = x, y

class NoFingerprint(Small):
    def heldout(self):
        return [Own(*data(0))]

    def forward(self, model, batch):
        return model(batch.x), batch.y

class BadTest(Small):
    def tests(self):
        return {"empty": []}

class NoModel(Small):
    def model(self):
        return None

class NoData(Small):
    def heldout(self):
        raise OSError("no images\\nhere")

class NoTests:
    model = Small.model
    def heldout(self):
        return data(0)
"""


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A working directory with ``recipe_task.py`` and five checkpoints, whose paths it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("recipe_task.py").write_text(TASK)
    torch.manual_seed(0)
    for number, state in enumerate(pool(mlp(), 5, spread=0.3)):
        save_file(state, f"{number}.safetensors")
    yield [f"{number}.safetensors" for number in range(5)]
    sys.modules.pop("recipe_task", None)


def read(name: str) -> dict[str, object]:
    return json.loads(Path(name).read_text())


def mean_loss(state: dict[str, torch.Tensor], seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(80, 6, generator=generator), torch.randint(0, 7, (80,), generator=generator)
    model = mlp().eval()
    model.load_state_dict(state)
    return nn.functional.cross_entropy(model(x), y).item()


def test_a_greedy_run_leaves_soup_trace_and_results(kitchen: list[str]) -> None:
    soup = run_greedy("recipe_task.py:Small", kitchen, "runs/one")
    assert sorted(path.name for path in Path("runs/one").iterdir()) == [
        "results.json",
        "soup.safetensors",
        "trace.json",
    ]
    weights = load_file("runs/one/soup.safetensors")
    expected = plain_mean([load_file(path) for path in soup.ingredients])
    assert same_bits(weights, expected)
    assert read("runs/one/trace.json") == soup.to_json()
    results = read("runs/one/results.json")
    assert (results["metric"], results["direction"], results["recipe"]) == ("nll", "min", "greedy")
    assert results["heldout"] == soup.score
    assert soup.score == pytest.approx(results["tests"]["same"], rel=1e-6)  # the same samples in other batches
    assert results["tests"]["other"] == pytest.approx(mean_loss(expected, 1), rel=1e-6)


def test_a_uniform_run_takes_every_checkpoint(kitchen: list[str]) -> None:
    soup = run_uniform("recipe_task.py:NoTests", kitchen, "run")
    assert soup.ingredients == kitchen
    results = read("run/results.json")
    assert (results["metric"], results["tests"]) == ("accuracy", {})
    expected = plain_mean([load_file(path) for path in kitchen])
    assert same_bits(load_file("run/soup.safetensors"), expected)


def test_metric_and_rule_are_passed_on(kitchen: list[str]) -> None:
    options = {
        "accept": ">",
        "min_delta": 0.01,
        "order": "random",
        "seed": 3,
        "max_ingredients": 2,
        "passes": 2,
        "replacement": True,
        "early_rejection": False,
    }
    soup = run_greedy("recipe_task.py:Small", kitchen, "run", metric="top5", **options)
    assert (soup.metric, soup.options) == ("top5", options)
    assert read("run/trace.json")["options"] == options


def test_tests_do_not_select(kitchen: list[str]) -> None:
    with_tests = run_greedy("recipe_task.py:Small", kitchen, "one", metric="accuracy")
    without = run_greedy("recipe_task.py:NoTests", kitchen, "two", metric="accuracy")
    assert with_tests.ingredients == without.ingredients
    assert with_tests.score == without.score


def test_a_run_that_was_stopped_goes_on_and_leaves_no_journal(kitchen: list[str]) -> None:
    whole = run_greedy("recipe_task.py:Small", kitchen, "whole")
    task = load_task("recipe_task.py:Killed")
    for last in (1, 4, 8):
        task.calls.clear()
        type(task).last = last
        with pytest.raises(KeyboardInterrupt):
            run_greedy("recipe_task.py:Killed", kitchen, "run")
        assert [path.name for path in Path("run").iterdir()] == ["journal"]
    with pytest.raises(SoupError, match="another run is recorded here: option accept was '>=', it is '>' now"):
        run_greedy("recipe_task.py:Killed", kitchen, "run", accept=">")
    task.calls.clear()
    type(task).last = 0
    soup = run_greedy("recipe_task.py:Killed", kitchen, "run")
    assert len(task.calls) < 30
    assert (soup.ingredients, soup.score) == (whole.ingredients, whole.score)
    assert same_bits(load_file("run/soup.safetensors"), load_file("whole/soup.safetensors"))
    assert sorted(path.name for path in Path("run").iterdir()) == ["results.json", "soup.safetensors", "trace.json"]


def test_a_folder_that_happens_to_have_the_journals_name_is_nobodys_but_its_owners(kitchen: list[str]) -> None:
    Path("run/journal").mkdir(parents=True)
    Path("run/journal/thesis.txt").write_text("mine")
    Path("run/soup.safetensors").write_bytes(b"mine too")
    with pytest.raises(OutputError, match="results of an earlier run"):
        run_greedy("recipe_task.py:Small", kitchen, "run")
    assert Path("run/soup.safetensors").read_bytes() == b"mine too"
    Path("run/soup.safetensors").unlink()
    run_greedy("recipe_task.py:Small", kitchen, "run")
    assert [path.name for path in Path("run/journal").iterdir()] == ["thesis.txt"]


def test_data_without_a_fingerprint_is_scored_and_cannot_be_resumed(kitchen: list[str]) -> None:
    Path("recipe_task.py").write_text(
        TASK.replace('return {"same": self.heldout(), "other": [{"x": x, "y": y}]}', "return {}")
    )
    soup = run_greedy("recipe_task.py:NoFingerprint", kitchen, "run")
    assert "could not have gone on: held-out batch 0 has no fingerprint" in soup.notes[-1]
    assert sorted(path.name for path in Path("run").iterdir()) == ["results.json", "soup.safetensors", "trace.json"]


def test_results_are_not_overwritten_unasked(kitchen: list[str]) -> None:
    first = run_greedy("recipe_task.py:Small", kitchen[:2], "run")
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    with pytest.raises(OutputError, match="results of an earlier run are there"):
        run_uniform("absent.py:Small", kitchen, "run")
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    second = run_uniform("recipe_task.py:Small", kitchen, "run", overwrite=True)
    assert first.ingredients != second.ingredients
    assert read("run/results.json")["recipe"] == read("run/trace.json")["recipe"] == "uniform"


def test_the_output_may_not_be_an_ingredient(kitchen: list[str]) -> None:
    run_uniform("recipe_task.py:Small", kitchen[:2], "run")
    with pytest.raises(OutputError, match=r"run/soup.safetensors: the output is one of the checkpoints"):
        run_greedy("recipe_task.py:Small", [*kitchen, "run/soup.safetensors"], "run", overwrite=True)


def test_a_failing_test_set_is_named_and_the_soup_is_kept(kitchen: list[str]) -> None:
    with pytest.raises(SoupError, match=r"scoring test set empty: the held-out set is empty \(the soup is saved\)"):
        run_greedy("recipe_task.py:BadTest", kitchen, "run")
    assert sorted(path.name for path in Path("run").iterdir()) == ["journal", "soup.safetensors", "trace.json"]


def test_a_run_that_ended_at_its_test_sets_goes_on_there_unforced(kitchen: list[str]) -> None:
    task = load_task("recipe_task.py:Killed")
    task.calls.clear()
    type(task).tests = lambda self: {"empty": []}
    with pytest.raises(SoupError, match="scoring test set empty"):
        run_greedy("recipe_task.py:Killed", kitchen, "run")
    saved = Path("run/soup.safetensors").read_bytes()
    # What keeps no journal is not the same command, and another one is refused by the journal.
    with pytest.raises(OutputError, match="results of an earlier run are there"):
        run_uniform("recipe_task.py:Killed", kitchen, "run")
    with pytest.raises(SoupError, match="another run is recorded here"):
        run_greedy("recipe_task.py:Killed", kitchen, "run", accept=">")
    task.calls.clear()
    type(task).tests = lambda self: {}
    run_greedy("recipe_task.py:Killed", kitchen, "run")
    assert task.calls == []
    assert Path("run/soup.safetensors").read_bytes() == saved
    assert sorted(path.name for path in Path("run").iterdir()) == ["results.json", "soup.safetensors", "trace.json"]
    with pytest.raises(OutputError, match="results of an earlier run are there"):
        run_greedy("recipe_task.py:Killed", kitchen, "run")


def test_what_selects_nothing_leaves_the_journal_of_a_killed_run(kitchen: list[str]) -> None:
    task = load_task("recipe_task.py:Killed")
    task.calls.clear()
    type(task).last = 4
    with pytest.raises(KeyboardInterrupt):
        run_greedy("recipe_task.py:Killed", kitchen, "run")
    journal = Path("run/journal/journal.jsonl").read_bytes()
    run_uniform("recipe_task.py:Small", kitchen, "run")
    assert Path("run/journal/journal.jsonl").read_bytes() == journal


def test_a_run_equals_the_call(kitchen: list[str]) -> None:
    soup = run_greedy("recipe_task.py:NoTests", kitchen, "run")
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(80, 6, generator=generator), torch.randint(0, 7, (80,), generator=generator)
    assert greedy_soup(kitchen, mlp(), data).ingredients == soup.ingredients


def test_a_task_that_does_not_load_leaves_no_directory(kitchen: list[str]) -> None:
    with pytest.raises(SoupError, match="no task 'Smal'"):
        run_uniform("recipe_task.py:Smal", kitchen, "run")
    assert not Path("run").exists()


def test_a_file_in_the_place_of_the_directory_is_an_error(kitchen: list[str]) -> None:
    with pytest.raises(OutputError, match="cannot make the directory"):
        run_uniform("recipe_task.py:Small", kitchen, kitchen[0])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("NoModel", r"model\(\) of recipe_task.py:NoModel made no model: found NoneType"),
        ("NoData", r"heldout\(\) of recipe_task.py:NoData failed: OSError: no images.*nothing was written"),
    ],
)
def test_a_task_that_fails_is_one_line_and_leaves_nothing(kitchen: list[str], task: str, message: str) -> None:
    with pytest.raises(SoupError, match=message) as caught:
        run_greedy(f"recipe_task.py:{task}", kitchen, "run")
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


def test_a_run_directory_that_is_a_checkpoint_is_refused(kitchen: list[str]) -> None:
    run_uniform("recipe_task.py:Small", kitchen[:2], "run")
    with pytest.raises(OutputError, match="the output is one of the checkpoints"):
        run_greedy("recipe_task.py:Small", ["run", *kitchen], "run", overwrite=True)


DRAWN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Drawn:
    calls = []
    last = 0

    def model(self):
        torch.rand(int(torch.randint(1, 9, ())))
        return nn.Linear(6, 7)

    def heldout(self):
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(80, 6, generator=generator), torch.randint(0, 7, (80,), generator=generator)
        return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)

    def tests(self):
        return [("a", self.heldout())]

    def forward(self, model, batch):
        self.calls.append(1)
        if len(self.calls) == self.last:
            raise KeyboardInterrupt
        return model(batch[0]), batch[1]
"""


@pytest.fixture
def drawn(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "drawn_task.py").write_text(DRAWN)
    for index in range(4):
        torch.manual_seed(index)
        save_file(nn.Linear(6, 7).state_dict(), tmp_path / f"drawn_{index}.safetensors")
    yield f"{tmp_path / 'drawn_task.py'}:Drawn"
    sys.modules.pop("drawn_task", None)


def test_a_run_with_shuffled_held_out_data_goes_on(drawn: str, tmp_path: Path) -> None:
    files = [str(tmp_path / f"drawn_{index}.safetensors") for index in range(4)]
    task: Any = type(load_task(drawn))
    task.last = 12
    with pytest.raises(KeyboardInterrupt):
        run_greedy(drawn, files, str(tmp_path / "out"))
    done = len(task.calls)
    with pytest.raises(SoupError, match=r"not test sets .*found list, expected a dictionary"):
        run_greedy(drawn, files, str(tmp_path / "out"))
    first = len(task.calls) - done
    with pytest.raises(SoupError, match="not test sets"):
        run_greedy(drawn, files, str(tmp_path / "fresh"))
    assert first < len(task.calls) - done - first
    assert same_bits(load_file(tmp_path / "out/soup.safetensors"), load_file(tmp_path / "fresh/soup.safetensors"))


def test_the_directory_of_the_checkpoints_is_no_output(drawn: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="checkpoints are in this directory"):
        run_uniform(drawn, [str(tmp_path / "drawn_0.safetensors")], str(tmp_path))
    assert not (tmp_path / "soup.safetensors").exists()
