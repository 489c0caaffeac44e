"""The README of a directory of averaged weights: what it is, what it was made from, and how. The same facts give the
same bytes. Paths are quoted so that nothing in a name is taken for Markdown, HTML or YAML."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FILE_NAME = "README.md"

_TAGS = """\
tags:
- model-soup
- merge
"""
_NO_LICENSE = "# license: to be filled in, as the licences of the ingredients and their data allow\n"
_INTRODUCTION = """\
A model soup: the weights of several fine-tuned models of one architecture, averaged into one model. A soup is often
more accurate and more robust than the best of its ingredients, and runs at the cost of a single model. See Wortsman et
al., [*Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
time*](https://arxiv.org/abs/2203.05482), ICML 2022.
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. ``ingredients`` and ``weights`` (as used, after normalisation) go together.

    ``method`` names the recipe; ``settings`` are label -> value in the order to be shown (output type, normalisation,
    tensors, ...); ``command`` is the equivalent command, one string an argument; ``notes`` are remarks of the run.
    ``scores`` is a table, its header and lines. A card ``to_share`` has a licence field, with ``license`` or a place
    for it, and, with ``library``, who loads the directory.
    """

    title: str
    ingredients: Sequence[str]
    weights: Sequence[float]
    version: str
    method: str = "average"
    settings: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    notes: Sequence[str] = ()
    scores: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    to_share: bool = False
    license: str | None = None
    library: str | None = None


def model_card(facts: CardFacts) -> str:
    """The text of ``README.md``: front matter, what a soup is, its ingredients and how it was made."""
    rows = [
        f"| {i} | {_cell(name)} | {weight:.6g} |"
        for i, (name, weight) in enumerate(zip(facts.ingredients, facts.weights, strict=True), 1)
    ]
    settings = {"method": facts.method, **facts.settings, "made with": f"pysoup {facts.version}"}
    parts = [
        f"{_front_matter(facts)}\n# {quoted(facts.title)}\n",
        _INTRODUCTION,
        *([] if facts.scores is None else ["## Scores\n", _scores(*facts.scores)]),
        "## Ingredients\n",
        "\n".join(("| | checkpoint | weight |", "| --: | --- | --: |", *rows)) + "\n",
        "## How it was made\n",
        "\n".join(f"- {label}: {quoted(value)}" for label, value in settings.items()) + "\n",
    ]
    if facts.command:
        # One line of shell words, so nothing in it can end the block.
        parts.append(f"```shell\n{' '.join(map(_argument, facts.command))}\n```\n")
    if facts.notes:
        parts += ["## Notes\n", "\n".join(f"- {quoted(note)}" for note in facts.notes) + "\n"]
    return "\n".join(parts)


def _front_matter(facts: CardFacts) -> str:
    """YAML; what is given is written as JSON strings, which YAML reads."""
    lines = ""
    if facts.to_share:
        lines = _NO_LICENSE if facts.license is None else f"license: {json.dumps(facts.license)}\n"
    if facts.library is not None:
        lines += f"library_name: {json.dumps(facts.library)}\n"
    return f"---\n{lines}{_TAGS}---\n"


def _scores(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [[_cell(line[0]), *line[1:]] for line in lines]
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [[_cell(name) for name in header], rule, *rows])


def quoted(text: str) -> str:
    """``text`` as a Markdown code span on one line; what cannot be printed is escaped as in Python."""
    shown = "".join(_printable(c) for c in text) or " "
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown[0] == "`" or shown[-1] == "`" or (shown[0] == shown[-1] == " " and shown.strip()) else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _cell(text: str) -> str:
    """A code span in a table. Backslashes are doubled already, so none before a pipe can be taken for its escape."""
    return quoted(text).replace("|", "\\|")


def _printable(char: str) -> str:
    return char if char.isprintable() and char != "\\" else repr(char)[1:-1]


def _argument(text: str) -> str:
    """As the shell reads it, on one line: bytes that cannot be printed as ``$'\\x..'``."""
    if text.isprintable():
        return shlex.quote(text)
    plain = (c if c.isprintable() and c not in "\\'" else "".join(f"\\x{b:02x}" for b in _bytes(c)) for c in text)
    return f"$'{''.join(plain)}'"


def _bytes(char: str) -> bytes:
    """The bytes of a file name that a character stands for: half of a surrogate pair is one that is no UTF-8."""
    return char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
