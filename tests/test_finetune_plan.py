"""Sweep files: the points they stand for, and one line with file and key for everything that is wrong in them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pysoup.errors import SoupError
from pysoup.finetune import PAPER, PAPER_TEXT, Hyperparameters, sample_hyperparameters
from pysoup.finetune.plan import Plan, expand_grid, read_plan

LEAST = 'task = "tasks.py:Task"\n[[point]]\nlearning_rate = 0.1\n'
GRID = 'task = "t.py:T"\n[grid]\nlearning_rate = [0.1]\n'
RANDOM = 'task = "t.py:T"\n[random]\nruns = 2\n'


def plan(folder: Path, text: str) -> Plan:
    file = folder / "sweep.toml"
    file.write_text(text)
    return read_plan(file)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(SoupError) as caught:
        plan(folder, text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(folder / "sweep.toml"))
    return str(caught.value)


def test_least_file_has_the_papers_defaults(tmp_path: Path) -> None:
    read = plan(tmp_path, LEAST)
    assert read.points == [Hyperparameters(learning_rate=0.1)]
    assert read.start.head == "probe"
    assert read.start.module is None
    assert (read.metric, read.autocast, read.outputs.ema, read.outputs.checkpoints) == (None, None, (), ())


def test_task_file_is_meant_from_where_the_sweep_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "sweep.toml").write_text(LEAST)
    assert read_plan("inner/sweep.toml").task == f"{tmp_path / 'inner' / 'tasks.py'}:Task"
    assert plan(tmp_path, LEAST.replace("tasks.py:Task", "package.tasks:Task")).task == "package.tasks:Task"
    assert plan(tmp_path, LEAST.replace("tasks.py:Task", "/data/tasks.py:Task")).task == "/data/tasks.py:Task"


def test_grid_is_every_combination_in_order(tmp_path: Path) -> None:
    read = plan(
        tmp_path,
        """task = "t.py:T"
        [training]
        batch_size = 8
        [grid]
        learning_rate = [0.1, 0.2]
        epochs = [1, 2, 3]
        seed = [5, 6]
        """,
    )
    expected = [
        (rate, epochs, seed) for rate in (0.1, 0.2) for epochs in (1, 2, 3) for seed in (5, 6)
    ]  # written out: the last key is the fastest
    assert [(p.learning_rate, p.epochs, p.seed) for p in read.points] == expected
    assert {p.batch_size for p in read.points} == {8}


def test_expanded_grid_is_the_cartesian_product() -> None:
    lists = {"a": [1, 2], "b": ["x"], "c": [True, False, None]}
    assert [tuple(point.values()) for point in expand_grid(lists)] == list(itertools.product(*lists.values()))
    assert expand_grid({"a": [1], "b": []}) == []


def test_random_search_is_the_sampled_one(tmp_path: Path) -> None:
    read = plan(tmp_path, 'task = "t.py:T"\nseed = 4\n[random]\nruns = 6\n')
    assert read.points == sample_hyperparameters(6, 4, PAPER)
    text = plan(tmp_path, 'task = "t.py:T"\nseed = 4\n[random]\nruns = 6\nlaws = "paper-text"\n')
    assert text.points == sample_hyperparameters(6, 4, PAPER_TEXT)


def test_longer_random_search_starts_with_the_shorter(tmp_path: Path) -> None:
    text = f"{LEAST}[random]\nruns = 3\n"
    assert plan(tmp_path, text.replace("= 3", "= 7")).points[:4] == plan(tmp_path, text).points


def test_laws_are_narrowed_and_what_is_fixed_is_not_drawn(tmp_path: Path) -> None:
    read = plan(
        tmp_path,
        """task = "t.py:T"
        [training]
        epochs = 2
        mixup = 0
        schedule = "linear"
        [random]
        runs = 40
        log10_learning_rate = [-4, -3.5]
        batch_size = [16, 32]
        no_smoothing = 0
        """,
    )
    free = sample_hyperparameters(40, 0)
    assert {p.epochs for p in read.points} == {2}
    assert {p.mixup for p in read.points} == {0.0}
    assert {p.schedule for p in read.points} == {"linear"}
    assert {p.batch_size for p in read.points} == {16, 32}
    assert all(1e-4 <= p.learning_rate <= 10**-3.5 and p.label_smoothing > 0 for p in read.points)
    assert [(p.weight_decay, p.seed) for p in read.points] == [(p.weight_decay, p.seed) for p in free]


def test_points_come_first_then_the_grid_then_the_random_ones(tmp_path: Path) -> None:
    read = plan(
        tmp_path,
        """task = "t.py:T"
        [random]
        runs = 2
        [grid]
        learning_rate = [0.5, 0.25]
        [[point]]
        learning_rate = 0.1
        [[point]]
        learning_rate = 0.1
        seed = 3
        """,
    )
    assert [p.learning_rate for p in read.points[:4]] == [0.1, 0.1, 0.5, 0.25]
    assert read.points[1].seed == 3
    assert read.points[4:] == sample_hyperparameters(2)


def test_seeds_repeat_every_point(tmp_path: Path) -> None:
    read = plan(
        tmp_path, 'task = "t.py:T"\n[training]\nseeds = [1, 2]\n[random]\nruns = 2\n[grid]\nlearning_rate = [1, 2]'
    )
    assert [p.seed for p in read.points] == [1, 2] * 4
    assert [p.learning_rate for p in read.points[:4]] == [1.0, 1.0, 2.0, 2.0]
    assert read.points[4].learning_rate == read.points[5].learning_rate == sample_hyperparameters(1)[0].learning_rate


def test_start_has_a_probe_of_its_own(tmp_path: Path) -> None:
    read = plan(tmp_path, f'{LEAST}[start]\nmodule = "classifier"\nepochs = 7\nweight_decay = 0.5\nbatch_size = 9')
    start = read.start
    assert (start.head, start.module, start.hyperparameters.epochs) == ("probe", "classifier", 7)
    assert (start.hyperparameters.weight_decay, start.hyperparameters.batch_size) == (0.5, 9)
    assert start.hyperparameters.learning_rate == 1e-2
    assert plan(tmp_path, f'{LEAST}[start]\nhead = "zero_shot"').start.head == "zero_shot"
    assert plan(tmp_path, f'{LEAST}[start]\nhead = "none"').start.head == "none"


def test_further_outputs_are_read(tmp_path: Path) -> None:
    read = plan(
        tmp_path, f'{LEAST}[training]\nema = [0.9, 0.9999999]\ncheckpoints = [0.25, 0.5]\nautocast = "bfloat16"'
    )
    assert (read.outputs.ema, read.outputs.checkpoints, read.autocast) == ((0.9, 0.9999999), (0.25, 0.5), "bfloat16")
    assert plan(tmp_path, f'{LEAST}[training]\ncheckpoints = "epochs"').outputs.checkpoints == "epochs"


WRONG = [
    ("task = ", "not valid TOML"),
    ("[grid]\nlearning_rate = [1]", "names no task"),
    ('task = "t.py"\n' + "[grid]\nlearning_rate = [1]", "'task' in the file: found 't.py', expected FILE.py:NAME"),
    ('tasks = "t.py:T"\n[grid]\nlearning_rate = [1]', "unknown key 'tasks' in the file: expected 'task', perhaps"),
    ('task = "t.py:T"\n[point]\nlearning_rate = 1', "'point' in the file: found '[point]', expected [[point]], one"),
    (GRID + '[training]\nschedule = "Linear"', "[training]: unknown schedule: found 'Linear'"),
    ("task = 3", "'task' in the file: found 3, expected text in quotes"),
    ('task = "t.py:T"', "has no points: expected [random], [grid] or [[point]]"),
    ('tusk = "t.py:T"\n' + GRID, "unknown key 'tusk' in the file: expected 'task', perhaps"),
    (GRID + "learning_rat = [1]", "unknown key 'learning_rat' in [grid]: expected 'learning_rate', perhaps"),
    (LEAST + "label_smothing = 1", "unknown key 'label_smothing' in [[point]] 1: expected 'label_smoothing', perhaps"),
    (LEAST + "[training]\nepoch = 3", "unknown key 'epoch' in [training]: expected 'epochs', perhaps"),
    (LEAST + "[start]\nheads = 3", "unknown key 'heads' in [start]: expected 'head', perhaps"),
    (LEAST + "[start]\nepoch = 3", "unknown key 'epoch' in [start]: expected 'epochs', perhaps"),
    (LEAST + "[start]\nhead = 'none'\nepochs = 3", "'epochs' in [start] belongs to head = 'probe': found 'none'"),
    (LEAST + "[start]\nhead = 'zero_shot'\nmodule = 'fc'", "'module' in [start] belongs to head = 'probe'"),
    (LEAST + "[start]\nmixup = 0.3", "unknown key 'mixup' in [start]"),
    (
        RANDOM + "learning_rate = [1, 2]",
        "'learning_rate' in [random]: expected 'log10_learning_rate', perhaps",
    ),
    (RANDOM + "xyz = 1", "unknown key 'xyz' in [random]: expected one of runs, laws, "),
    (GRID + "epochs = 3", "'epochs' in [grid]: found 3, expected a list"),
    (GRID + "epochs = []", "'epochs' in [grid]"),
    (GRID + "epochs = [1.5]", "'epochs' in [grid]: found 1.5, expected a whole number"),
    (GRID + "epochs = [true]", "'epochs' in [grid]: found True, expected a whole number"),
    (GRID + "epochs = [0]", "[grid]: epochs starts at 1: found 0"),
    (GRID + 'mixup = ["much"]', "'mixup' in [grid]: found 'much', expected a number"),
    (GRID + 'schedule = ["sine"]', "[grid]: unknown schedule: found 'sine', expected one of cosine, linear, constant"),
    (GRID + "mixup = [0.1, 0.1]", "points 0 and 1 are the same"),
    (GRID + "[training]\nlearning_rate = 1", "'learning_rate' is given in [grid] and fixed in [training]"),
    (LEAST + "[training]\nlearning_rate = 1", "'learning_rate' is given in [[point]] 1 and fixed in [training]"),
    ('task = "t.py:T"\n[[point]]\nepochs = 3', "[[point]] 1 needs a learning_rate"),
    (
        LEAST + "[training]\nseeds = [1]\n[grid]\nlearning_rate = [1]\nseed = [2]",
        "'seed' is given in [grid] and",
    ),
    (RANDOM + "epochs = [3]", "'epochs' in [random]: found [3], expected [low, high]"),
    (RANDOM + "epochs = [5, 3]", "[random]: range epochs is empty"),
    (
        RANDOM + "log10_learning_rate = [1e-5, 1e-3]",
        "[random]: log10_learning_rate is a range of exponents of 10: found (1e-05, 0.001), expected (-5, -3), if",
    ),
    (RANDOM + "no_mixup = 2", "[random]: no_mixup is a probability"),
    (RANDOM + 'laws = "mine"', "'laws' in [random]: found 'mine', expected one of paper, paper-text"),
    (RANDOM + "epochs = [1, 2]\n[training]\nepochs = 2", "'epochs' is given in [random] and fixed in [training]"),
    ('task = "t.py:T"\n[random]\nlaws = "paper"', "'runs' in [random]"),
    ('task = "t.py:T"\n[random]\nruns = 0', "'runs' in [random]: found 0"),
    (LEAST + '[start]\nhead = "lp"', "'head' in [start]: found 'lp', expected one of 'probe', 'zero_shot', 'none'"),
    (LEAST + "[start]\nlearning_rate = -1", "[start]: learning_rate must be finite and not negative: found -1.0"),
    (LEAST + "[training]\nema = [1.0]", "[training]: ema holds decays between 0 and 1: found 1.0"),
    (LEAST + "[training]\nema = [0.9, 0.9]", "[training]: ema names a value twice"),
    (LEAST + "[training]\ncheckpoints = [1.0]", "[training]: checkpoints are shares of the training between 0 and 1"),
    (LEAST + '[training]\ncheckpoints = "steps"', "[training]: unknown checkpoints: found 'steps'"),
    (LEAST + '[training]\nautocast = "float16"', "'autocast' in [training]: found 'float16', expected 'bfloat16'"),
    ('task = "t.py:T"\npoint = 3', "'point' in the file: found 3, expected a list"),
    ('task = "t.py:T"\npoint = [3]', "'point' in the file: found 3, expected a table"),
    ('task = "t.py:T"\ngrid = 3', "'grid' in the file: found 3, expected a table"),
]


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[line[:40] for _, line in WRONG])
def test_mistake_is_one_line_with_file_and_key(tmp_path: Path, text: str, line: str) -> None:
    assert line in refused(tmp_path, text)


def test_file_that_is_absent_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"absent\.toml: cannot read: No such file"):
        read_plan(tmp_path / "absent.toml")
    (tmp_path / "sweep.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SoupError, match=r"sweep\.toml: not valid TOML"):
        read_plan(tmp_path / "sweep.toml")
