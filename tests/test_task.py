"""Tasks by name: what loads, and one line for what does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysoup.errors import SoupError
from pysoup.task import load_task

GOOD = """
import helper_beside_the_task as helper

class Digits:
    metric = "nll"
    def model(self):
        return helper.MODEL
    def heldout(self):
        return [__name__]

class Broken(Digits):
    def __init__(self):
        raise ValueError("no data here")

class OnlyModel:
    def model(self):
        return 0

instance = Digits()
number = 3
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "helper_beside_the_task.py").write_text("MODEL = 'the model'\n")
    (tmp_path / "some_task.py").write_text(GOOD)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_class_in_a_file_is_instantiated_and_imports_its_neighbours(tmp_path: Path) -> None:
    task = load_task(f"{tmp_path}/some_task.py:Digits")
    assert task.model() == "the model"
    assert task.heldout() == ["some_task"]  # importable by that name, as data loader workers need


def test_an_instance_is_taken_as_it_is(tmp_path: Path) -> None:
    task = load_task(f"{tmp_path}/some_task.py:instance")
    assert task is load_task(f"{tmp_path}/some_task.py:instance")


def test_a_module_is_found_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_task("some_task:Digits").model() == "the model"
    assert load_task("some_task.py:Digits").model() == "the model"


def test_a_file_with_the_name_of_a_loaded_module_is_not_mistaken_for_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("class T:\n    def model(self): return 1\n    def heldout(self): return 2\n")
    import json

    assert load_task(f"{tmp_path}/json.py:T").model() == 1
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some_task.py", "not a task: found 'some_task.py', expected FILE.py:NAME or package.module:NAME"),
        ("some_task.py:", "not a task"),
        (":Digits", "not a task"),
        ("absent.py:Digits", "absent.py: no such task file"),
        ("absent_package.module:Digits", "absent_package.module: no such module; a file is given as FILE.py:NAME"),
        (
            "some_task.py:Digit",
            "some_task.py: no task 'Digit' in it: expected one of its tasks: Broken, Digits, instance",
        ),
        (
            "some_task.py:Broken",
            "some_task.py: making task 'Broken' failed: ValueError: no data here (some_task.py:13)",
        ),
        ("some_task.py:OnlyModel", "some_task.py: task 'OnlyModel' lacks heldout()"),
        ("some_task.py:number", "some_task.py: task 'number' lacks model() and heldout()"),
        (
            "bad_import.py:T",
            "bad_import.py: importing it failed: ModuleNotFoundError: No module named 'not_there' (bad_import.py:2)",
        ),
        (
            "bad_import:T",
            "bad_import: importing it failed: ModuleNotFoundError: No module named 'not_there' (bad_import.py:2)",
        ),
        ("bad_syntax.py:T", "bad_syntax.py: importing it failed: SyntaxError: invalid syntax (bad_syntax.py, line 1)"),
        # Where the user's own code went wrong: not in the helper's caller, and not in the library that it called.
        ("uses_helper.py:T", "uses_helper.py: importing it failed: KeyError: 'x' (helper.py:4)"),
        ("uses_library.py:T", "uses_library.py: importing it failed: JSONDecodeError: Expecting value: line 1"),
    ],
)
def test_what_is_no_task_is_one_line(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad_import.py").write_text("\nimport not_there\n")
    (tmp_path / "uses_helper.py").write_text("import helper\n\nhelper.f()\n")
    (tmp_path / "helper.py").write_text("DATA = {}\n\ndef f():\n    return DATA['x']\n")
    (tmp_path / "uses_library.py").write_text("import json\n\n\njson.loads('?')\n")
    (tmp_path / "bad_syntax.py").write_text("def\n")
    with pytest.raises(SoupError) as caught:
        load_task(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    if name.startswith("uses_library"):
        assert str(caught.value).endswith("(uses_library.py:4)")
