"""The best checkpoints by recorded scores: which file, which record, which number; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pysoup.checkpoint.scores import MOST_BYTES, select_top
from pysoup.errors import CheckpointError, SoupError

SCORES = {"a.pt": 0.7, "b.pt": 0.9, "c.pt": 0.8}
RUNS = ["runs/a.pt", "runs/b.pt", "runs/c.pt"]
BEST_TWO = ["runs/b.pt", "runs/c.pt"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for path in RUNS:
        Path(path).touch()
    return tmp_path


def write(name: str, content: object) -> str:
    """A file of this text, or of these lines of JSON (``.jsonl``), or of this JSON."""
    if not isinstance(content, str):
        content = "\n".join(map(json.dumps, content)) if name.endswith("l") else json.dumps(content)  # type: ignore[call-overload]
    Path(name).write_text(content)
    return name


def top(
    count: int = 2, by: str = "val", scores: str | None = "runs/s.json", paths: object = RUNS, **options: bool
) -> list[str]:
    return [str(path) for path, _ in select_top(paths, count, by, scores, **options)]  # type: ignore[arg-type]


def refused(*args: object, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        top(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {name: {"val": score, "note": "x"} for name, score in SCORES.items()},
        {Path(name).stem: {"val": score} for name, score in SCORES.items()},
        {f"runs/{name}": {"val": score} for name, score in SCORES.items()},
        {f"./{name}": {"val": score} for name, score in SCORES.items()},
        {f"../runs/{name}": {"val": score} for name, score in SCORES.items()},
        {**{name: {"val": score} for name, score in SCORES.items()}, "other.pt": "x", "model": {"val": 9}},
        [{"path": name, "val": score} for name, score in SCORES.items()],
        [{"file": name, "val": score, "model": "vit"} for name, score in SCORES.items()],
        [{"checkpoint": f"runs/{name}", "val": score} for name, score in SCORES.items()],
        [{"model_name": Path(name).stem, "val": score} for name, score in SCORES.items()],
        [{"name": name, "val": score} for name, score in SCORES.items()],
        {"seed": 0, "models": [{"path": name, "val": score} for name, score in SCORES.items()], "losses": [1, 2]},
    ],
)
def test_every_shape_of_json_gives_the_best_first(here: Path, content: object) -> None:
    write("runs/s.json", content)
    assert top() == BEST_TWO
    assert top(lowest=True) == ["runs/a.pt", "runs/c.pt"]


def test_absolute_names_are_matched(here: Path) -> None:
    write("elsewhere.json", {str(here / "runs" / name): {"val": score} for name, score in SCORES.items()})
    assert top(scores="elsewhere.json") == BEST_TWO
    assert top(scores="elsewhere.json", paths=[here / path for path in RUNS]) == [str(here / path) for path in BEST_TWO]


def test_json_lines_are_read_one_record_a_line(here: Path) -> None:
    lines = [json.dumps({"model_name": name, "val": score, "ImageNet": 0.1}) for name, score in SCORES.items()]
    write("runs/s.jsonl", "\n" + "\r\n".join(lines) + "\r\n\r\n")
    assert top(scores="runs/s.jsonl") == BEST_TWO


def test_plain_numbers_are_the_metric_score(here: Path) -> None:
    write("runs/s.json", SCORES)
    assert top(by="score") == BEST_TWO
    assert "found score" in refused(by="val")


def test_nested_metrics_have_dotted_names(here: Path) -> None:
    records = {
        name: {"metrics": {"val.acc": {"top1": score}, "val": 0}, "a.b": 1 - score} for name, score in SCORES.items()
    }
    write("runs/s.json", records)
    assert top(by="metrics.val.acc.top1") == BEST_TWO
    assert top(by="a.b") == ["runs/a.pt", "runs/c.pt"]
    assert "found metrics.val, a.b" in refused(by="metrics.acc")


def test_scores_come_back_and_are_noted(here: Path) -> None:
    write("runs/s.json", SCORES)
    notes: list[str] = []
    assert select_top(RUNS, 2, "score", notes=notes) == [(Path("runs/b.pt"), 0.9), (Path("runs/c.pt"), 0.8)]
    assert notes == [
        "2 of 3 checkpoints by score in runs/s.json, highest first",
        "score 0.9: runs/b.pt",
        "score 0.8: runs/c.pt",
    ]


def test_more_than_there_are_is_all_of_them_and_noted(here: Path) -> None:
    write("runs/s.json", SCORES)
    notes: list[str] = []
    assert len(select_top(RUNS, 5, "score", notes=notes)) == 3
    assert notes[0].startswith("3 of 3 checkpoints (5 asked for) by score")


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_is_refused(here: Path, count: int) -> None:
    write("runs/s.json", SCORES)
    with pytest.raises(SoupError, match="must be positive"):
        top(count)


def test_ties_keep_the_given_order(here: Path) -> None:
    write("runs/s.json", {"a": 1, "b": 1.0, "c": 2})
    for lowest in (False, True):
        assert [p for p in top(3, "score", lowest=lowest) if p != "runs/c.pt"] == ["runs/a.pt", "runs/b.pt"]
        assert [p for p in top(3, "score", paths=RUNS[::-1], lowest=lowest) if p != "runs/c.pt"] == [
            "runs/b.pt",
            "runs/a.pt",
        ]


def test_a_path_given_twice_has_one_score(here: Path) -> None:
    write("runs/s.json", SCORES)
    assert top(3, "score", paths=[*RUNS, "runs/../runs/b.pt"]) == ["runs/b.pt", "runs/../runs/b.pt", "runs/c.pt"]


def test_model_directories_are_scored_by_their_names(here: Path) -> None:
    for seed in ("seed-0.5", "seed-1"):
        Path("runs", seed).mkdir()
    write("runs/s.json", {"seed-0.5": {"val": 2}, "seed-1": {"val": 1}, "a.pt": {"val": 3}})
    assert top(1, scores=None, paths=["runs/seed-1", "runs/seed-0.5"]) == ["runs/seed-0.5"]


def test_the_nearest_name_wins_over_the_end_of_a_path(here: Path) -> None:
    Path("runs/old").mkdir()
    paths = ["runs/a.pt", "runs/old/a.pt"]
    write("runs/s.json", {"a.pt": {"val": 1}, "old/a.pt": {"val": 2}})
    assert top(1, paths=paths) == ["runs/old/a.pt"]
    write("s.json", {"runs/a": {"val": 3}, "old/a.pt": {"val": 2}})
    assert top(1, scores="s.json", paths=paths) == ["runs/a.pt"]
    write("runs/s.json", {"a": {"val": 3}, "old/a": {"val": 2}})
    assert top(1, paths=paths) == ["runs/a.pt"]
    write("s.json", {"a.pt": {"val": 3}})
    line = refused(1, scores="s.json", paths=paths)
    assert "'a.pt' fits 2 of the checkpoints" in line
    assert "s.json" in line


def test_a_name_that_fits_two_formats_is_ambiguous(here: Path) -> None:
    write("runs/s.json", {"a": {"val": 1}})
    assert "'a' fits 2 of the checkpoints" in refused(paths=["runs/a.pt", "runs/a.safetensors"])
    write("runs/s.json", {"a.pt": {"val": 1}, "a.safetensors": {"val": 2}})
    assert top(1, paths=["runs/a.pt", "runs/a.safetensors"]) == ["runs/a.safetensors"]


def test_a_checkpoint_without_a_score_is_named(here: Path) -> None:
    write("runs/s.json", {"a.pt": {"val": 1}, "b.pt": {"val": 2}, "x/c.pt": {"val": 3}})
    assert refused() == "runs/c.pt: no score in runs/s.json"
    write("runs/s.json", {"a.pt": {"val": 1}, "b.pt": {"val": 2}, "c.pt": {"test": 3, "top": 1, "text": "x"}})
    assert refused() == "runs/s.json: no metric 'val' for runs/c.pt ('c.pt'): found test, top"


def test_a_metric_that_is_not_there_is_refused_with_the_nearest_first(here: Path) -> None:
    values = {"a_1": 1, "b_2": 2, "c_3": 3, "d_4": 4, "e_5": 5, "score": 0.5, "val_acc": 6}
    models = [{"path": f"{name}.pt", **values} for name in "abc"]
    write("runs/s.json", {"metric": "accuracy", "models": models})
    line = "runs/s.json: no metric {!r} for runs/a.pt (record of 'a.pt'): found "
    given, others = line.format("accuracy"), "a_1, b_2, c_3, d_4, and 2 more"
    assert refused(by="accuracy") == f"{given}score, {others}, expected score, which is accuracy here"
    assert refused(by="val_accuracy").startswith(line.format("val_accuracy") + "val_acc, a_1")
    assert refused(by="nll") == line.format("nll") + "a_1, b_2, c_3, d_4, e_5, and 2 more"


@pytest.mark.parametrize("value", [None, "0.9", True, [0.9], {"x": 1}, "1e999"])
def test_a_score_that_is_no_finite_number_is_named_with_its_line(here: Path, value: object) -> None:
    lines = [json.dumps({"path": "a.pt", "val": 1}), json.dumps({"path": "b.pt", "val": 1})]
    bad = '{"path": "c.pt", "val": 1e999}' if value == "1e999" else json.dumps({"path": "c.pt", "val": value})
    write("runs/s.jsonl", "\n".join([*lines, bad]))
    line = refused(scores="runs/s.jsonl")
    assert line.startswith("runs/s.jsonl: line 3: val of runs/c.pt is no finite number: found ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_nan_is_refused_with_its_line(here: Path, value: str) -> None:
    write("runs/s.jsonl", f'{{"path": "a.pt", "val": 1}}\n{{"path": "b.pt", "val": {value}}}\n')
    line = refused(scores="runs/s.jsonl")
    assert line.startswith("runs/s.jsonl: line 2 ")
    assert value in line


def test_two_scores_of_one_checkpoint_must_be_equal(here: Path) -> None:
    records = [{"path": name, "val": score} for name, score in SCORES.items()]
    write("runs/s.jsonl", [*records, {"path": "runs/b", "val": 0.9}, {"path": "a.pt", "test": 0.1}])
    assert top(scores="runs/s.jsonl") == BEST_TWO
    write("runs/s.jsonl", [*records, {"path": "runs/b", "val": 0.91}])
    assert (
        refused(scores="runs/s.jsonl")
        == "runs/s.jsonl: two scores val for runs/b.pt: line 2 and line 4: found 0.9 and 0.91"
    )


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("s.json", "", "not valid JSON"),
        ("s.json", "7", "not a JSON object"),
        ("s.json", '{"a": 1, "a": 2}', "duplicate name 'a'"),
        ("s.json", '[{"path": "a.pt"}]}, "x": [1]', "not valid JSON"),
        ("s.json", '[{"path": "a.pt"}], "x": [1]', "extra data after the list"),
        ("s.json", "[1]", "record 1 names no checkpoint"),
        ("s.json", '[{"val": 1}]', "record 1 names no checkpoint"),
        ("s.json", "[" * 100_000, "nested too deeply"),
        ("s.json", b"\xff", "not UTF-8"),
        ("s.json", " " * (MOST_BYTES + 1), "too large"),
        ("s.jsonl", '{"path": "a.pt"}\n[]', "line 2"),
        ("s.jsonl", '{"path": "a.pt"}\n{"val": 1}', "line 2 names no checkpoint"),
        ("s.jsonl", '{"path": "a.pt"}\n\n{"pa', "line 3 is not valid JSON"),
    ],
)
def test_a_file_that_is_no_file_of_scores_is_refused(here: Path, name: str, text: str | bytes, word: str) -> None:
    Path("runs", name).write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(scores=f"runs/{name}")
    assert line.startswith(f"runs/{name}: ")
    assert word in line


def test_a_missing_file_is_named(here: Path) -> None:
    assert refused(scores="runs/no.json") == "runs/no.json: no such file or directory"


def test_the_one_file_beside_the_checkpoints_is_taken(here: Path) -> None:
    write("runs/config.json", {"hidden_size": 8, "layers": [1, 2]})
    write("runs/broken.json", "{")
    write("runs/.s.json", {name: {"val": -score} for name, score in SCORES.items()})
    write("runs/model.safetensors.index.json", {"metadata": {}, "weight_map": {"val": "a.pt"}})
    write("s.json", {name: {"val": -score} for name, score in SCORES.items()})
    write("runs/scores.jsonl", [{"path": name, "val": score} for name, score in SCORES.items()])
    assert top(scores=None) == BEST_TWO
    assert top(scores=None, paths=[here / path for path in RUNS]) == [str(here / path) for path in BEST_TWO]


def test_checkpoints_in_several_directories_are_scored_in_the_one_that_holds_all(here: Path) -> None:
    write("s.json", {"runs/a.pt": {"val": 1}, "more/a.pt": {"val": 2}})
    assert top(1, scores=None, paths=["runs/a.pt", "more/a.pt"]) == ["more/a.pt"]
    assert top(1, scores=None, paths=["../" + here.name + "/runs/a.pt", "more/a.pt"]) == ["more/a.pt"]


def test_of_several_files_the_one_with_the_metric_is_taken(here: Path) -> None:
    write("runs/val.json", {name: {"val": score} for name, score in SCORES.items()})
    write("runs/test.json", {name: {"test": -score} for name, score in SCORES.items()})
    write("runs/part.json", {"a.pt": {"val": 3}})
    assert top(scores=None) == BEST_TWO
    assert top(scores=None, by="test") == ["runs/a.pt", "runs/c.pt"]
    write("runs/again.json", {name: {"val": score} for name, score in SCORES.items()})
    line = refused(scores=None)
    assert "several files score the checkpoints" in line
    assert "again.json" in line
    assert "val.json" in line
    assert "part.json" not in line


def test_no_file_of_scores_says_where_it_was_looked_for(here: Path) -> None:
    assert refused(scores=None) == (
        "runs: no file here scores the checkpoints: expected a JSON or JSONL file with val of each"
    )
    write("runs/broken.json", "{")
    assert "runs/broken.json: file of scores is not valid JSON" in refused(scores=None)


def test_nothing_to_choose_from_is_an_error(here: Path) -> None:
    assert "no checkpoints" in refused(paths=[])


@pytest.mark.parametrize(
    ("direction", "lowest", "expected"),
    [("min", False, ["runs/a.pt", "runs/c.pt"]), ("max", False, BEST_TWO), ("max", True, ["runs/a.pt", "runs/c.pt"])],
)
def test_of_a_sweep_scored_by_a_loss_the_smallest_are_the_best(
    here: Path, direction: str, lowest: bool, expected: list[str]
) -> None:
    models = [{"path": name, "score": score, "depth": -score} for name, score in SCORES.items()]
    file = write("runs/sweep.json", {"metric": "nll", "direction": direction, "models": models})
    assert top(by="score", scores=file, lowest=lowest) == expected
    notes: list[str] = []
    select_top(RUNS, 2, "score", file, lowest=lowest, notes=notes)
    assert ("lowest first" in notes[0]) == (expected != BEST_TWO)
    # Of any other number nothing is known.
    assert top(by="depth", scores=file) == ["runs/a.pt", "runs/c.pt"]
