"""A run goes on only as the run it was: whatever decides about the result is compared, and told by its name."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pysoup import HeldOut, Metric, SoupError, open_checkpoint
from pysoup.checkpoint import save_state_dict
from pysoup.evaluate import as_metric
from pysoup.soups import identity, journal
from pysoup.soups.candidates import Candidate
from pysoup.soups.identity import RunIdentity, identity_of
from pysoup.soups.journal import Journal

ANOTHER_SET = "it had another held-out set, or the same in another order"
WHAT_TO_DO = "; give another directory, or delete this one"
OPTIONS = {"recipe": "greedy", "accept": ">=", "min_delta": 0.0, "integers": "auto", "scores": [0.5, math.nan]}


class Setting:
    """A run of two checkpoints in files, one of them in two shards, and one in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: nn.Module = nn.Linear(3, 4)
        self.data = (torch.arange(24.0).reshape(8, 3), torch.arange(8) % 4)
        self.heldout = HeldOut(self.data, batch_size=4)
        self.metric = as_metric("accuracy")
        self.options: dict[str, Any] = dict(OPTIONS)
        self.names = ["a.safetensors", "b.safetensors"]
        for number, name in enumerate(self.names):
            save(folder / name, number)
        shard(folder / "d", 7)
        self.memory = {"weight": torch.ones(4, 3), "bias": torch.zeros(4)}

    def candidates(self) -> list[Candidate]:
        files = [Candidate(name, open_checkpoint(self.folder / name)) for name in [*self.names, "d"]]
        return [*files, Candidate("checkpoints[3]", self.memory)]

    def identity(self) -> RunIdentity:
        return identity_of(self.candidates(), self.heldout, self.metric, self.options, model=self.model)

    def open(self) -> Journal:
        return Journal.open(self.folder / "run", self.identity())


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def save(path: Path, number: float) -> None:
    state = {"weight": torch.full((4, 3), float(number)), "bias": torch.arange(4.0) + number}
    save_state_dict(state, path, overwrite=True)


def shard(folder: Path, number: float) -> None:
    folder.mkdir(exist_ok=True)
    names = {"weight": "model-00001-of-00002.safetensors", "bias": "model-00002-of-00002.safetensors"}
    save_state_dict({"weight": torch.full((4, 3), float(number))}, folder / names["weight"], overwrite=True)
    save_state_dict({"bias": torch.arange(4.0) + number}, folder / names["bias"], overwrite=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def rename(setting: Setting) -> None:
    (setting.folder / "b.safetensors").rename(setting.folder / "c.safetensors")
    setting.names = ["a.safetensors", "c.safetensors"]


def other_value_at_the_end(setting: Setting) -> None:
    setting.data[0][-1, -1] += 1e-6
    setting.heldout = HeldOut(setting.data, batch_size=4)


def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1]


def score(logits: Tensor, labels: Tensor, beta: float = 1.0) -> float:
    return beta


OTHERS: dict[str, tuple[Callable[[Setting], Any], str]] = {
    "content": (lambda s: save(s.folder / "b.safetensors", 9), "checkpoint b.safetensors has other content now"),
    "content of a shard": (lambda s: shard(s.folder / "d", 8), "checkpoint d has other content now"),
    "content in memory": (lambda s: s.memory["bias"].add_(1), "checkpoint checkpoints[3] has other content now"),
    "order": (lambda s: s.names.reverse(), "it had the checkpoints in another order"),
    "one more": (
        lambda s: (save(s.folder / "c.safetensors", 3), s.names.append("c.safetensors")),
        "checkpoint c.safetensors was none of its checkpoints",
    ),
    "one less": (lambda s: s.names.pop(0), "checkpoint a.safetensors was one of its checkpoints"),
    "renamed": (rename, "checkpoint b.safetensors was one of its checkpoints"),
    "the same one twice": (lambda s: s.names.append("b.safetensors"), "it had 4 checkpoints, there are 5 now"),
    "data": (other_value_at_the_end, ANOTHER_SET),
    "batches": (lambda s: setattr(s, "heldout", HeldOut(s.data, batch_size=8)), ANOTHER_SET),
    "forward": (lambda s: setattr(s, "heldout", HeldOut(s.data, forward, batch_size=4)), ANOTHER_SET),
    "metric": (lambda s: setattr(s, "metric", as_metric("nll")), "the metric's name was 'accuracy', it is 'nll' now"),
    "option": (lambda s: s.options.update(accept=">"), "option accept was '>=', it is '>' now"),
    "recipe": (lambda s: s.options.update(recipe="pruned"), "option recipe was 'greedy', it is 'pruned' now"),
    "integers": (lambda s: s.options.update(integers="max"), "option integers was 'auto', it is 'max' now"),
    "a new option": (lambda s: s.options.update(passes=2), "option passes was absent, it is 2 now"),
    "scores": (
        lambda s: s.options.update(scores=[0.5, 0.25]),
        "option scores was [0.5, nan], it is [0.5, 0.25] now",
    ),
    "shape": (lambda s: setattr(s, "model", nn.Linear(3, 5)), "its model had other names, shapes or dtypes"),
    "dtype": (lambda s: s.model.bfloat16(), "its model had other names, shapes or dtypes"),
    "name": (lambda s: setattr(s, "model", nn.Sequential(s.model)), "its model had other names, shapes or dtypes"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_run_in_the_directory_is_refused_in_one_line(setting: Setting, case: str) -> None:
    change, words = OTHERS[case]
    with setting.open() as run:
        run.record("single:0", 0.5)
    before = (setting.folder / "run" / "journal.jsonl").read_bytes()
    change(setting)
    with pytest.raises(SoupError) as caught:
        setting.open()
    assert str(caught.value) == f"{setting.folder / 'run'}: another run is recorded here: {words}{WHAT_TO_DO}"
    assert (setting.folder / "run" / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (Metric(score, "max"), Metric(score, "min"), "the metric's direction was 'max', it is 'min' now"),
        (
            Metric(functools.partial(score, beta=1.0), "max", "f"),
            Metric(functools.partial(score, beta=2.0), "max", "f"),
            f"the metric's function was '{__name__}.score(beta=1.0)', it is '{__name__}.score(beta=2.0)' now",
        ),
        (
            Metric(score, "max", "f"),
            Metric(forward, "max", "f"),
            f"the metric's function was '{__name__}.score', it is '{__name__}.forward' now",
        ),
    ],
    ids=["direction", "parameters", "function"],
)
def test_another_metric_of_the_same_name_is_refused(setting: Setting, old: Metric, new: Metric, words: str) -> None:
    setting.metric = old
    with setting.open() as run:
        run.record("single:0", 0.5)
    setting.open().close()
    setting.metric = new
    with pytest.raises(SoupError, match="another run is recorded here") as caught:
        setting.open()
    assert words in str(caught.value)


def test_another_version_is_refused(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    with setting.open() as run:
        run.record("single:0", 0.5)
    monkeypatch.setattr(identity, "__version__", "0.0.1")
    with pytest.raises(SoupError, match=r"the version or kind of pysoup was '.*', it is '0.0.1' now"):
        setting.open()


def test_nested_entry_is_part_of_the_run(setting: Setting) -> None:
    path = setting.folder / "nested.pt"
    torch.save({name: {"weight": torch.full((4, 3), i), "bias": torch.ones(4)} for i, name in enumerate("xy")}, path)
    for entry in "xy":
        candidates = [Candidate("n", open_checkpoint(path, entry))]
        made = identity_of(candidates, setting.heldout, setting.metric, {}, model=setting.model)
        if entry == "x":
            with Journal.open(setting.folder / "run", made) as run:
                run.record("single:0", 0.5)
        else:
            with pytest.raises(SoupError, match="checkpoint n was entry 'x', it is 'y' now"):
                Journal.open(setting.folder / "run", made)


def test_checkpoint_in_memory_of_unknown_content_is_refused(setting: Setting) -> None:
    candidates = [Candidate("mine", {"weight": object()})]  # type: ignore[dict-item]
    with pytest.raises(SoupError, match="mine: a checkpoint in memory that is not of tensors alone cannot be"):
        identity_of(candidates, setting.heldout, setting.metric, {}, model=setting.model).parts({})


def test_same_run_goes_on_from_copies_of_its_files_and_data(setting: Setting) -> None:
    """Same names, content and data in new objects and new files; what the model holds does not count."""
    with setting.open() as run:
        run.record("single:0", 0.5)
    for name in setting.names:
        shutil.copy(setting.folder / name, setting.folder / "copy")
        os.replace(setting.folder / "copy", setting.folder / name)
    setting.heldout = HeldOut(tuple(t.clone() for t in setting.data), batch_size=4)
    setting.memory = {name: t.clone() for name, t in setting.memory.items()}
    setting.model = nn.Linear(3, 4)
    with setting.open() as run:
        assert run.recall("single:0") == 0.5


def test_identity_is_the_same_in_another_process(setting: Setting) -> None:
    """No hash seed or address of this process is in it, and no path but those of the files."""
    code = (
        "import sys, json, pathlib, tests_module\n"
        "print(json.dumps(tests_module.Setting(pathlib.Path(sys.argv[1])).identity().parts({}), allow_nan=True))"
    ).replace("tests_module", Path(__file__).stem)
    other = setting.folder / "other"
    other.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, other], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    there, here = json.loads(done.stdout), json.loads(json.dumps(setting.identity().parts({})))
    for number, name in enumerate([*setting.names, "d"]):
        assert there["checkpoints"][number].pop("path") == str(other / name)
        assert here["checkpoints"][number].pop("path") == str(setting.folder / name)
    assert there == here


def recorded(setting: Setting, names: list[str], *, paths: bool = True) -> None:
    """A run in which something was recorded, of checkpoints called ``names``."""
    parts = setting.identity().parts({})
    for number, checkpoint in enumerate(parts["checkpoints"]):
        if not paths:
            checkpoint.pop("path", None)
        if number < len(names):
            checkpoint["name"] = names[number]
    with Journal.open(setting.folder / "run", parts) as run:
        run.record("single:0", 0.5)


@pytest.mark.parametrize("paths", [True, False])
def test_checkpoints_are_the_same_by_whatever_path_they_are_named(
    setting: Setting, paths: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``paths`` False: a journal from before they were written down, seen from where it was begun."""
    (setting.folder / "sub").mkdir()
    (setting.folder / "link").symlink_to(setting.folder)
    monkeypatch.chdir(setting.folder / "sub")
    recorded(setting, ["../a.safetensors", str(setting.folder / "link" / "b.safetensors")], paths=paths)
    if paths:
        monkeypatch.chdir("/")
    with setting.open() as run:
        assert run.recall("single:0") == 0.5
    setting.names.reverse()
    with pytest.raises(SoupError, match="it had the checkpoints in another order"):
        setting.open()
    setting.names.reverse()
    save(setting.folder / "b.safetensors", 9)
    with pytest.raises(SoupError, match=r"link/b.safetensors has other content now"):
        setting.open()


def test_a_folder_of_checkpoints_may_be_moved(setting: Setting, tmp_path: Path) -> None:
    """What is called as before, and holds what it held."""
    recorded(setting, [])
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in [*setting.names, "d"]:
        (setting.folder / name).rename(moved / name)
    (setting.folder / "run").rename(moved / "run")
    setting.folder = moved
    with setting.open() as run:
        assert run.recall("single:0") == 0.5


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, while time seems to be three seconds on."""
    names: list[str] = []
    original, now = identity.fingerprint_file, time.time_ns

    def counted(checkpoint: Any) -> str:
        names.append(checkpoint.path.name)
        return original(checkpoint)

    monkeypatch.setattr(identity, "fingerprint_file", counted)
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)
    return names


def test_unchanged_files_are_not_hashed_again(setting: Setting, hashed: list[str]) -> None:
    setting.open().close()
    assert hashed == ["a.safetensors", "b.safetensors", "d"]
    setting.open().close()
    assert hashed == ["a.safetensors", "b.safetensors", "d"]


def test_touched_file_is_hashed_once_more_and_goes_on(setting: Setting, hashed: list[str]) -> None:
    setting.open().close()
    os.utime(setting.folder / "b.safetensors")
    os.utime(setting.folder / "d" / "model-00002-of-00002.safetensors")
    hashed.clear()
    setting.open().close()
    assert hashed == ["b.safetensors", "d"]
    setting.open().close()
    assert hashed == ["b.safetensors", "d"]


def test_other_content_of_the_same_size_and_time_is_found(setting: Setting, hashed: list[str]) -> None:
    with setting.open() as run:
        run.record("single:0", 0.5)
    path = setting.folder / "b.safetensors"
    info = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(SoupError, match=r"checkpoint b.safetensors has other content now"):
        setting.open()


def test_file_written_just_now_is_hashed_again(setting: Setting, hashed: list[str]) -> None:
    """Within a tick of the clock it could be written to once more and keep size and times."""
    ahead = time.time_ns() + 10_000_000_000
    os.utime(setting.folder / "a.safetensors", ns=(ahead, ahead))
    setting.open().close()
    hashed.clear()
    setting.open().close()
    assert hashed == ["a.safetensors"]


def test_file_that_was_fresh_when_its_hashing_began_is_hashed_again(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, start, names = identity.fingerprint_file, time.time_ns(), []
    clock = [start]

    def slow(checkpoint: Any) -> str:
        names.append(checkpoint.path.name)
        clock[0] += 60_000_000_000
        return original(checkpoint)

    monkeypatch.setattr(identity, "fingerprint_file", slow)
    monkeypatch.setattr(time, "time_ns", lambda: clock[0])
    for name in ("a.safetensors", "b.safetensors"):
        os.utime(setting.folder / name, ns=(start, start))
    hashed: dict[str, Any] = {}
    identity_of(setting.candidates()[:1], setting.heldout, setting.metric, {}, model=setting.model).parts(hashed)
    assert hashed == {}
    identity_of(setting.candidates()[:2], setting.heldout, setting.metric, {}, model=setting.model).parts(hashed)
    assert names == ["a.safetensors", "a.safetensors", "b.safetensors"]
    assert len(hashed) == 2


def test_difference_of_the_first_part_is_the_one_told() -> None:
    old = {"a": 1, "b": {"x": 1, "y": 2}}
    assert journal.first_difference(old, {"a": 1, "b": {"x": 1, "y": 2}}) == ""
    assert journal.first_difference(old, {"a": 1, "b": {"x": 2, "y": 3}}) == "b x was 1, it is 2 now"
    assert journal.first_difference(old, {"a": 1}) == "b was {'x': 1, 'y': 2}, it is absent now"
    assert journal.first_difference({"a": 1}, {"a": 1.0}) == "a was 1, it is 1.0 now"
    assert journal.first_difference({"a": {"x": None}, "b": 1}, {"a": {}, "b": 2}) == "b was 1, it is 2 now"


def test_long_values_are_cut_in_the_message() -> None:
    told = journal.first_difference({"options": {"order": list(range(100))}}, {"options": {"order": "score"}})
    assert told.startswith("option order was [0, 1, 2, 3")
    assert len(told) < 120
