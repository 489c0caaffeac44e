"""A sweep as a TOML file: what to train, from which start, with which hyperparameters. See docs/finetuning.md."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from ..errors import SoupError
from .hyperparameters import PAPER, PAPER_TEXT, Hyperparameters, Ranges, sample_hyperparameters
from .layout import Outputs
from .table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Head = Literal["probe", "zero_shot", "none"]
HEADS: tuple[Head, ...] = ("probe", "zero_shot", "none")
LAWS = {"paper": PAPER, "paper-text": PAPER_TEXT}
_KINDS: dict[str, Any] = get_type_hints(Hyperparameters)
_PROBE = {"learning_rate": 1e-2, "weight_decay": 1e-4, "epochs": 100}
_NOT_OF_THE_PROBE = ("mixup", "augment_ops", "augment_magnitude")


@dataclass(frozen=True)
class Start:
    """How the head comes about: ``module`` names the submodule that the probe trains with ``hyperparameters``."""

    head: Head
    module: str | None
    hyperparameters: Hyperparameters


@dataclass(frozen=True)
class Plan:
    """What a sweep file says. ``task`` is ``/PATH/FILE.py:NAME`` or ``package.module:NAME``."""

    file: Path
    task: str
    metric: str | None
    seed: int
    start: Start
    points: list[Hyperparameters]
    outputs: Outputs
    autocast: str | None


def read_plan(path: str | Path) -> Plan:
    """Read and check the file. Raises :class:`SoupError`, one line with the file and the key, for whatever is wrong."""
    file = Path(path)
    try:
        with open(file, "rb") as opened:
            content = tomllib.load(opened)
    except OSError as error:
        raise SoupError(f"cannot read: {error.strerror}", file=file) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SoupError(f"not valid TOML: {error}", file=file) from error
    top = Table(content, file)
    task = top.take("task", str)
    metric, seed = top.take("metric", str), top.take("seed", int, 0)
    start_table, training = top.table("start"), top.table("training")
    random, grid, points = top.table("random"), top.table("grid"), top.tables("point")
    top.finish()
    if task is None:
        raise SoupError("the sweep names no task", file=file, expected='task = "FILE.py:NAME"')
    start = _start(start_table, seed)
    seeds = training.listed("seeds", int)
    autocast = training.take("autocast", str)
    outputs = _outputs(training)
    fixed = _fields(training)
    training.finish(_KINDS)
    # Here, so that what is wrong with them is said of this table.
    training.checked(lambda: Hyperparameters(**{"learning_rate": 0.0, **fixed}))
    if autocast not in (None, "bfloat16"):
        raise training.error("autocast", autocast, "'bfloat16'")
    found = [*_points(points, fixed), *_grid(grid, fixed), *_random(random, fixed, seed)]
    if not found:
        raise SoupError("the sweep has no points", file=file, expected="[random], [grid] or [[point]]")
    return Plan(
        file=file,
        task=_task(task, file),
        metric=metric,
        seed=seed,
        start=start,
        points=_different(_seeded(found, seeds, training, (grid, random, *points)), file),
        outputs=outputs,
        autocast=autocast,
    )


def expand_grid(lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of one value of each list; the last list varies fastest."""
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _task(name: str, file: Path) -> str:
    """The task's file is meant from where the sweep's file is."""
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        expected = "FILE.py:NAME or package.module:NAME"
        raise SoupError("'task' in the file", file=file, found=repr(name), expected=expected)
    if not where.endswith(".py"):
        return name
    return f"{(file.parent / where).absolute()}:{attribute}"


def _start(table: Table, seed: int) -> Start:
    head = table.take("head", str)
    if head is not None and head not in HEADS:
        raise table.error("head", head, f"one of {', '.join(map(repr, HEADS))}")
    module = table.take("module", str)
    given = _fields(table, without=_NOT_OF_THE_PROBE)
    table.finish(name for name in _KINDS if name not in _NOT_OF_THE_PROBE)
    if head not in (None, "probe") and (of_probe := [*given, *(["module"] if module else [])]):
        raise SoupError(
            f"{of_probe[0]!r} in {table.where} belongs to head = 'probe'", file=table.file, found=repr(head)
        )
    values = _PROBE | {"seed": seed} | given
    hp = table.checked(lambda: Hyperparameters(**values))
    return Start(next((known for known in HEADS if known == head), "probe"), module, hp)


def _outputs(training: Table) -> Outputs:
    ema = training.listed("ema", float)
    raw = training.raw("checkpoints")
    checkpoints: Any = raw if isinstance(raw, str) else tuple(training.listed("checkpoints", float))
    return training.checked(lambda: Outputs(tuple(ema), checkpoints))


def _fields(table: Table, without: Sequence[str] = ()) -> dict[str, Any]:
    """The hyperparameters that a table gives."""
    names = [name for name in _KINDS if name not in without and name in table]
    return {name: table.take(name, _KINDS[name]) for name in names}


def _points(tables: Sequence[Table], fixed: Mapping[str, Any]) -> list[Hyperparameters]:
    found = []
    for table in tables:
        _refuse_both(table, fixed, _KINDS)
        values = {**fixed, **_fields(table)}
        table.finish(_KINDS)
        found.append(_point(table, values))
    return found


def _grid(table: Table, fixed: Mapping[str, Any]) -> list[Hyperparameters]:
    if not table:
        return []
    _refuse_both(table, fixed, _KINDS)
    lists = {name: table.listed(name, _KINDS[name]) for name in list(table) if name in _KINDS}
    table.finish(_KINDS)
    for name, values in lists.items():
        if not values:
            raise table.error(name, "[]", "a list of values")
    return [_point(table, {**fixed, **values}) for values in expand_grid(lists)]


def _random(table: Table, fixed: Mapping[str, Any], seed: int) -> list[Hyperparameters]:
    if not table:
        return []
    runs = table.take("runs", int)
    if runs is None or runs < 1:
        raise table.error("runs", runs, "the number of points to draw")
    name = table.take("laws", str, "paper")
    if name not in LAWS:
        raise table.error("laws", name, f"one of {', '.join(LAWS)}")
    given: dict[str, Any] = {}
    for field in fields(Ranges):
        if field.name not in table:
            continue
        default = getattr(PAPER, field.name)
        if isinstance(default, tuple):
            kind = int if isinstance(default[0], int) else float
            pair = table.listed(field.name, kind)
            if field.name != "batch_size" and len(pair) != 2:
                raise table.error(field.name, pair, "[low, high]")
            given[field.name] = tuple(pair)
        else:
            given[field.name] = table.take(field.name, float)
    table.finish(["runs", "laws", *(field.name for field in fields(Ranges))])
    ranges = table.checked(lambda: replace(LAWS[name], **given))
    drawn = {f"log10_{key}" if key in ("learning_rate", "weight_decay") else key for key in fixed}
    if both := sorted(drawn & given.keys()):
        raise SoupError(f"{both[0]!r} is given in [random] and fixed in [training]", file=table.file)
    points = table.checked(lambda: sample_hyperparameters(runs, seed, ranges))
    return table.checked(lambda: [replace(point, **fixed) for point in points])


def _point(table: Table, values: Mapping[str, Any]) -> Hyperparameters:
    if "learning_rate" not in values:
        raise SoupError(f"{table.where} needs a learning_rate", file=table.file)
    return table.checked(lambda: Hyperparameters(**values))


def _refuse_both(table: Table, fixed: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in table:
        if name in fixed and name in known:
            raise SoupError(f"{name!r} is given in {table.where} and fixed in [training]", file=table.file)


def _seeded(
    points: list[Hyperparameters], seeds: Sequence[int], training: Table, tables: Sequence[Table]
) -> list[Hyperparameters]:
    """Each point once with each of the seeds, if there are any."""
    if not seeds:
        return points
    for table in (training, *tables):
        if table.had("seed"):
            raise SoupError(f"'seed' is given in {table.where} and 'seeds' in [training]", file=table.file)
    return [replace(point, seed=seed) for point in points for seed in seeds]


def _different(points: list[Hyperparameters], file: Path) -> list[Hyperparameters]:
    first: dict[Hyperparameters, int] = {}
    for index, point in enumerate(points):
        if point in first:
            what = f"points {first[point]} and {index} are the same, so their models would be"
            raise SoupError(what, file=file, expected="each point once")
        first[point] = index
    return points
