"""Telling a Debian package's section from its one-line description: who gets which lines, and the shifted test sets.

Everything here is decided by hashes of the content, so neither the order of the packages nor Python's own hashing
matters.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from debian import Package

SECTIONS = (
    *("admin", "devel", "editors", "games", "gnome", "graphics", "mail", "math"),
    *("net", "science", "sound", "text", "utils", "web", "x11"),
)
"""Sections of programs with enough lines; not those of libraries, languages, fonts, documentation or leftovers."""

TRAIN, HELDOUT, TEST = 150, 120, 600
"""Lines per section at most; the test set gets what is left."""
_PER_SOURCE = 5  # packages of one source describe one program, sometimes a hundred times
_SHORTEST = 15  # characters: below that there is nothing to go by
_TYPING_ERRORS = 0.08  # of the letters
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Line:
    """One description without its package's name; ``label`` indexes the sections, ``longer`` may be empty."""

    text: str
    longer: str
    label: int
    source: str


Splits = dict[str, list[Line]]


def split(
    packages: Iterable[Package],
    sections: Sequence[str] = SECTIONS,
    *,
    train: int = TRAIN,
    heldout: int = HELDOUT,
    test: int = TEST,
) -> Splits:
    """``train``, ``heldout`` and ``test`` lines at most of every section, in that order of precedence.

    All packages of one source go to one part. Lines that more than one section has are left out, of equal lines
    within a section one is kept.
    """
    by_section: dict[int, dict[str, list[Line]]] = defaultdict(dict)
    for line in _distinct(_lines(packages, sections)):
        by_section[line.label].setdefault(line.source, []).append(line)
    parts: Splits = {"train": [], "heldout": [], "test": []}
    sizes = {"train": train, "heldout": heldout, "test": test}
    for label in range(len(sections)):
        groups = by_section.get(label, {})
        sources = iter(sorted(groups, key=_rank))
        for part, size in sizes.items():
            chosen: list[Line] = []
            while len(chosen) < size and (source := next(sources, None)) is not None:
                chosen += sorted(groups[source], key=lambda line: _rank(line.text))[:_PER_SOURCE]
            parts[part] += chosen[:size]
    return parts


def shifts(test: Sequence[Line]) -> dict[str, list[tuple[str, int]]]:
    """The test lines changed: typing errors, half of the words, the first paragraph of the long description.

    Always the same for the same lines. Lines without a long description are left out of the last.
    """
    return {
        "typing": [(typing_errors(line.text), line.label) for line in test],
        "half": [(half_of_the_words(line.text), line.label) for line in test],
        "longer": [(line.longer, line.label) for line in test if line.longer],
    }


def typing_errors(text: str, rate: float = _TYPING_ERRORS) -> str:
    """Each letter with probability ``rate`` left out, doubled, replaced by any other or swapped with the next."""
    rng = random.Random(f"typing/{text}")
    out: list[str] = []
    position = 0
    while position < len(text):
        letter = text[position]
        position += 1
        if not letter.isalpha() or rng.random() >= rate:
            out.append(letter)
            continue
        kind = rng.randrange(4)
        if kind == 1:
            out += [letter, letter]
        elif kind == 2:
            out.append(rng.choice(_LETTERS.replace(letter.lower(), "")))
        elif kind == 3 and position < len(text):
            out += [text[position], letter]
            position += 1
    return "".join(out)


def half_of_the_words(text: str) -> str:
    """A random half of the words (the larger one), in their order."""
    words = text.split()
    kept = sorted(random.Random(f"half/{text}").sample(range(len(words)), (len(words) + 1) // 2))
    return " ".join(words[index] for index in kept)


def without_name(text: str, name: str) -> str:
    """``text`` without the package's name, whole or without its ending, with ``-`` or a space between its parts."""
    for part in (name, re.sub(r"-(bin|common|data|dev|doc|utils|tools|gui|plugins?)$", "", name)):
        pattern = re.escape(part).replace(r"\-", "[- ]?")
        text = re.sub(rf"(?<!\w){pattern}(?!\w)", " ", text, flags=re.I)
    return " ".join(text.split()).strip(" -:,")


def summary(parts: Splits, sections: Sequence[str] = SECTIONS) -> dict[str, object]:
    """What was used: counts by part, the smallest and largest section of the test part, a SHA-256 over all of it."""
    sha = hashlib.sha256()
    for name, lines in parts.items():
        for line in lines:
            sha.update(f"{name}\t{sections[line.label]}\t{line.text}\t{line.longer}\n".encode())
    counts = Counter(sections[line.label] for line in parts["test"])
    return {
        "sections": list(sections),
        "lines": {name: len(lines) for name, lines in parts.items()},
        "test_lines_by_section": dict(sorted(counts.items())),
        "sha256": sha.hexdigest(),
    }


def _lines(packages: Iterable[Package], sections: Sequence[str]) -> list[Line]:
    """One line per package of the sections; a source that is in several keeps the one with most of its packages."""
    known = {section: label for label, section in enumerate(sections)}
    chosen = [package for package in packages if package.section in known]
    home = _homes(chosen)
    lines = []
    for package in chosen:
        if package.section != home[package.source]:
            continue
        text = without_name(package.synopsis, package.name)
        if len(text) >= _SHORTEST:
            longer = without_name(package.longer, package.name)
            lines.append(Line(text, longer, known[package.section], package.source))
    return lines


def _homes(packages: Iterable[Package]) -> Mapping[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for package in packages:
        counts[package.source][package.section] += 1
    return {source: min(count, key=lambda section: (-count[section], section)) for source, count in counts.items()}


def _distinct(lines: Iterable[Line]) -> list[Line]:
    """Without lines that several sections have; of equal ones, upper and lower case alike, the first by hash."""
    groups: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        groups[line.text.lower()].append(line)
    return [
        min(group, key=lambda line: (_rank(line.source), line.text, line.longer))
        for group in groups.values()
        if len({line.label for line in group}) == 1
    ]


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
