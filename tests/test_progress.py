"""Several bars at a time: shown on a terminal alone, each with its count, gone when the work is done."""

from __future__ import annotations

import io
import re

import pytest

from pysoup.progress import several_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_have_names_and_counts_and_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with several_bars() as bars:
        assert bars is not None
        bars.show("fine-tuning", 0, 2)
        bars.show("model_[bold]00", 3, 8)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
        assert re.search(r"fine-tuning .*0/2", text)
        assert re.search(r"model_\[bold\]00 .*3/8", text)
        before = len(terminal.getvalue())
        bars.remove("model_[bold]00")
        bars.remove("never shown")
        bars.show("fine-tuning", 1, 2)
        assert "model_" not in terminal.getvalue()[before:]
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")


def test_no_bars_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with several_bars() as bars:
        assert bars is None
    assert stream.getvalue() == ""
