"""An output that is an input, under whatever name, and outputs that cannot be: refused, and every input stays whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import HEADER, MEAN, Place, packed, read_safetensors, refusal, unchanged
from bad_inputs_npz import npz
from bad_inputs_shards import shards
from bad_inputs_torch import archive
from checkpoint_files import raw_file

import pysoup
from pysoup.cli import main
from pysoup.errors import OutputError

place = bad_inputs.place
W = "model-00002-of-00002.safetensors"


def linked(place: Place) -> str:
    (place.root / "link.safetensors").symlink_to(place.good)
    return str(place.root / "link.safetensors")


def hard_linked(place: Place) -> str:
    os.link(place.good, place.root / "hard.safetensors")
    return str(place.root / "hard.safetensors")


def through_linked_directory(place: Place) -> str:
    (place.root / "out" / "here").symlink_to(place.root)
    return str(place.root / "out" / "here" / "good.safetensors")


def through_two_links(place: Place) -> str:
    (place.root / "one.safetensors").symlink_to("two.safetensors")
    (place.root / "two.safetensors").symlink_to("good.safetensors")
    return str(place.root / "one.safetensors")


SPELLINGS: dict[str, Callable[[Place], str]] = {
    "the same path": lambda place: str(place.good),
    "relative": lambda place: "../good.safetensors",
    "with dots": lambda place: f"{place.root}/inputs/../good.safetensors",
    "with slashes": lambda place: f"{place.root}//.//good.safetensors",
    "symbolic link": linked,
    "two symbolic links": through_two_links,
    "hard link": hard_linked,
    "through a linked directory": through_linked_directory,
}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_bad_input_that_is_the_output_is_refused_however_it_is_spelled(
    spelling: str, overwrite: bool, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    output = SPELLINGS[spelling](place)
    assert os.path.samefile(output, place.good)
    other = archive()(place.bad, False)
    for paths in ([place.good, other], [other, place.good]):
        error = refusal(lambda given=paths: pysoup.average_checkpoints(given, output, overwrite=overwrite), place.root)
        assert isinstance(error, OutputError)
        assert "good.safetensors" in str(error) or os.path.basename(output) in str(error)
        assert ("output is an input" if overwrite else "already exists") in str(error)
    # Checked even where the input is not read.
    refusal(lambda: pysoup.average_checkpoints([place.good, other], output, [0, 1], overwrite=overwrite), place.root)
    with unchanged(place.root):
        force = ["--force"] if overwrite else []
        assert main(["average", str(place.good), str(other), "-o", output, *force]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("spelling", [s for s in SPELLINGS if s != "the same path"])
def test_bad_input_given_by_another_spelling_than_the_output_is_refused(spelling: str, place: Place) -> None:
    given = SPELLINGS[spelling](place)
    error = refusal(lambda: pysoup.average_checkpoints([given], place.good, overwrite=True), place.root)
    assert isinstance(error, OutputError)


@pytest.mark.parametrize("name", ["bad.pt", "bad.pth", "bad.npz", "bad.bin"])
def test_bad_input_of_another_format_that_is_the_output_is_refused(name: str, place: Place) -> None:
    made = (npz() if name.endswith("npz") else archive())(place.bad, False)
    path = made.rename(made.with_name(name))
    error = refusal(lambda: pysoup.average_checkpoints([place.good, path], path, overwrite=True), place.root)
    assert isinstance(error, OutputError)
    assert ("output is an input" if name[-3:] in (".pt", "pth") else "unsupported suffix") in str(error)


def linked_directory(model: Path) -> str:
    link = model.with_name("link")
    link.symlink_to(model.name)
    return str(link)


DIRECTORIES: dict[str, Callable[[Path], str]] = {
    "itself": str,
    "with a slash": lambda model: f"{model}/",
    "relative": os.path.relpath,
    "symbolic link": linked_directory,
    "its parent": lambda model: str(model.parent),
    "inside": lambda model: str(model / "soup"),
    "its shard": lambda model: str(model / W),
    "its index": lambda model: str(model / "model.safetensors.index.json"),
}


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("where", DIRECTORIES)
@pytest.mark.parametrize("first", [True, False])
def test_bad_input_directory_that_the_output_would_harm_is_refused(
    where: str, first: bool, by_index: bool, place: Place
) -> None:
    given = shards(by_index=by_index)(place.bad, False)
    model = place.bad / "model"
    raw_file(place.bad / "x.safetensors", HEADER, packed(MEAN))
    output = DIRECTORIES[where](model)
    paths = [given, place.good] if first else [place.good, given]
    error = refusal(lambda: pysoup.average_checkpoints(paths, output, overwrite=True), place.root)
    assert isinstance(error, OutputError)


def test_bad_input_beside_the_output_is_no_fault(place: Place) -> None:
    """The rule is about harm: a file with an input's name elsewhere, or a new file beside an input, is an output."""
    given = shards()(place.bad, False)
    for output in (place.root / "out" / "good.safetensors", place.root / "new.safetensors", place.bad / "model2"):
        pysoup.average_checkpoints([place.good, given], output)
    assert read_safetensors(place.root / "new.safetensors") == MEAN
    assert read_safetensors(place.bad / "model2" / "model.safetensors") == MEAN


def below_a_file(place: Place) -> str:
    return str(place.good / "soup.safetensors")


def to_a_directory(place: Place) -> str:
    (place.output).mkdir()
    return str(place.output)


def to_a_fifo(place: Place) -> str:
    os.mkfifo(place.output)
    return str(place.output)


def to_a_loop(place: Place) -> str:
    (place.root / "out" / "loop").symlink_to("loop")
    return str(place.root / "out" / "loop" / "soup.safetensors")


def to_a_folder_of_others(place: Place) -> str:
    (place.root / "out" / "photos").mkdir()
    (place.root / "out" / "photos" / "x.jpg").write_bytes(b"precious")
    return str(place.root / "out" / "photos")


UNWRITABLE: dict[str, tuple[Callable[[Place], str], str]] = {
    "no parent": (lambda place: str(place.root / "none" / "soup.safetensors"), "does not exist"),
    "below a file": (below_a_file, "not a directory"),
    "a directory": (to_a_directory, "output is a directory|is a directory"),
    "a FIFO": (to_a_fifo, "not a regular file"),
    "below a link to itself": (to_a_loop, "does not exist"),
    "a device": (lambda place: "/dev/null", "not a directory|unsupported suffix|no suffix"),
    "name with NUL": (lambda place: str(place.root / "a\0.safetensors"), "not a valid file name"),
    "name too long": (lambda place: str(place.root / ("x" * 250 + ".safetensors")), "file name too long"),
    "a folder of something else": (to_a_folder_of_others, "no safetensors files"),
    "the working directory": (lambda place: ".", "current directory"),
    "empty": (lambda place: "", "current directory"),
    "the root": (lambda place: "/", "current directory|holds"),
    "a suffix that is only read": (lambda place: str(place.root / "soup.npz"), "unsupported suffix"),
}


@pytest.mark.parametrize("what", UNWRITABLE)
def test_output_that_cannot_be_is_one_line_and_nothing_is_written(
    what: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    make, says = UNWRITABLE[what]
    output = make(place)
    error = refusal(lambda: pysoup.average_checkpoints([place.good], output, overwrite=True), place.root)
    assert isinstance(error, OutputError)
    assert re.search(says, str(error)), str(error)
    with unchanged(place.root):
        assert main(["average", str(place.good), "-o", output, "--force"]) == 1
    assert capsys.readouterr().err == f"pysoup: error: {error}\n"
