"""The model card says what it was told, and no name in it is taken for Markdown, HTML, YAML or shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pysoup import dtypes
from pysoup.checkpoint import CheckpointWriter
from pysoup.checkpoint.output.model_card import FILE_NAME, CardFacts, model_card, quoted

HOSTILE = [
    "a|b.safetensors",
    "a\\|b",
    "\\",
    "|",
    "`",
    "``x` y`",
    " ` ",
    "",
    " ",
    "  two  ",
    "line\nbreak\r\n# heading",
    "```\n~~~",
    "<script>alert(1)</script><!--",
    "[link](javascript:alert(1)) ![i](x) http://evil.example www.evil.example",
    "*bold* _under_ ~~gone~~ &amp; &#124;",
    "--- \n---\ntags: x",
    "\u202egnp.exe\u200b\0\x1b[31m",
    "\udcff\udc80 not UTF-8",
    "é 漢字 🍲",
    "x" * 5000,
]


def _facts(names: list[str], **more: object) -> CardFacts:
    weights = [1 / len(names)] * len(names)
    return CardFacts("soup", names, weights, "0.1.0", **more)  # type: ignore[arg-type]


def _shown(text: str) -> str:
    """What a reader is to see: the text with all that cannot be printed escaped, and nothing else."""
    return "".join(c if c.isprintable() and c != "\\" else repr(c)[1:-1] for c in text) or " "


def _tokens(card: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.split("\n---\n", 1)[1])


def _code(token: Token) -> str:
    """The one code span that an inline token consists of."""
    (child,) = [c for c in token.children or [] if c.type != "text" or c.content.strip()]
    assert child.type == "code_inline"
    return child.content


def _cells(tokens: list[Token]) -> list[Token]:
    return [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]


def test_card_tells_the_ingredients_their_weights_and_the_command() -> None:
    facts = CardFacts(
        title="soup",
        ingredients=["a.safetensors", "dir/b"],
        weights=[0.75, 0.25],
        version="1.2.3",
        settings={"output type": "bf16", "weights": "normalised"},
        command=["pysoup", "average", "a.safetensors", "dir/b", "--weights", "3,1", "-o", "soup"],
        notes=["copied from the first input: config.json"],
    )
    card = model_card(facts)
    for line in (
        "# `soup`",
        "| 1 | `a.safetensors` | 0.75 |",
        "| 2 | `dir/b` | 0.25 |",
        "- method: `average`",
        "- output type: `bf16`",
        "- weights: `normalised`",
        "- made with: `pysoup 1.2.3`",
        "pysoup average a.safetensors dir/b --weights 3,1 -o soup",
        "- `copied from the first input: config.json`",
    ):
        assert line in card.splitlines()
    assert "arxiv.org/abs/2203.05482" in card
    assert card.startswith("---\ntags:\n- model-soup\n- merge\n---\n")
    assert "base_model" not in card
    assert card == model_card(facts)


def test_optional_parts_are_left_out() -> None:
    card = model_card(_facts(["a"]))
    assert "```" not in card
    assert "## Notes" not in card


def test_hostile_names_stay_names() -> None:
    card = model_card(_facts(HOSTILE, notes=HOSTILE, command=HOSTILE, settings=dict.fromkeys(["x", "y"], HOSTILE[0])))
    card.encode("utf-8")
    tokens = _tokens(card)
    cells = _cells(tokens)
    assert [cell.content for cell in cells[::3]] == [str(i) for i in range(1, len(HOSTILE) + 1)]
    assert [_code(cell) for cell in cells[1::3]] == [_shown(name) for name in HOSTILE]
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "hr", "code_block", "ordered_list_open", "blockquote_open"}
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["`soup`", "Ingredients", "How it was made", "Notes"]
    assert sum(token.type == "fence" for token in tokens) == 1
    notes = tokens[len(tokens) - 1 - [t.type for t in reversed(tokens)].index("bullet_list_open") :]
    assert [_code(t) for t in notes if t.type == "inline"] == [_shown(name) for name in HOSTILE]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_name_is_one_cell(names: list[str]) -> None:
    tokens = _tokens(model_card(_facts(names)))
    assert [_code(cell) for cell in _cells(tokens)[1::3]] == [_shown(name) for name in names]


@given(st.text(alphabet="`| \\a", max_size=12))
def test_code_spans_hold_any_mixture_of_what_ends_them(text: str) -> None:
    (inline,) = [t for t in MarkdownIt("commonmark").parse(quoted(text)) if t.type == "inline"]
    assert _code(inline) == _shown(text)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_command_gives_the_shell_the_same_arguments() -> None:
    arguments = [name.replace("\0", "") for name in HOSTILE] + ["it's", "$(touch /nowhere)", "~", "-o"]
    (block,) = [
        t.content
        for t in _tokens(model_card(_facts(["a"], command=["printf", "%s\\0", *arguments])))
        if t.type == "fence"
    ]
    assert block.count("\n") == 1
    done = subprocess.run(["bash", "-c", block], capture_output=True, check=True)
    assert done.stdout == b"".join(os.fsencode(a) + b"\0" for a in arguments)


def test_card_is_published_with_the_weights(tmp_path: Path) -> None:
    card = model_card(_facts(HOSTILE)).encode("utf-8")
    layout = [("model.safetensors", [("w", dtypes.BOOL, (1,))])]
    with CheckpointWriter(tmp_path / "soup", layout, is_directory=True, files={FILE_NAME: card}) as writer:
        writer.commit()
    assert (tmp_path / "soup" / "README.md").read_bytes() == card
