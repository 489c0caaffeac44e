"""Table 3: what it says in Markdown, on a terminal and in JSON."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from pysoup.errors import SoupError
from pysoup.report import Result, results_table

ROWS = [
    Result("Best individual model", 0.8038, {"v2": 0.5, "sketch": 0.25}),
    Result("Uniform soup", 0.79974, {"v2": 0.5, "sketch": 0.375}),
    Result("Greedy soup", 0.8103, {"v2": 0.625, "sketch": 0.125}),
]


def test_markdown_has_percent_means_and_the_best_in_bold() -> None:
    assert results_table(ROWS, test="ImageNet").markdown().splitlines() == [
        "| Method | ImageNet | mean of shifts | v2 | sketch |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| Best individual model | 80.38 | 37.50 | 50.00 | 25.00 |",
        "| Uniform soup | 79.97 | **43.75** | 50.00 | **37.50** |",
        "| Greedy soup | **81.03** | 37.50 | **62.50** | 12.50 |",
    ]


def test_equal_as_printed_means_equally_bold() -> None:
    rows = [Result("a", 0.90001), Result("b", 0.90002), Result("c", 0.8)]
    lines = results_table(rows).markdown().splitlines()
    assert lines[2:] == ["| a | **90.00** |", "| b | **90.00** |", "| c | 80.00 |"]


def test_json_keeps_all_digits() -> None:
    content = json.loads(json.dumps(results_table(ROWS, test="ImageNet").to_json(), allow_nan=False))
    assert content["test"] == "ImageNet"
    assert content["rows"][1] == {
        "name": "Uniform soup",
        "test": 0.79974,
        "mean_shift": 0.4375,
        "shifts": {"v2": 0.5, "sketch": 0.375},
    }


def test_terminal_table_has_the_same_cells() -> None:
    text = io.StringIO()
    Console(file=text, width=120).print(results_table(ROWS, test="ImageNet").rich())
    for cell in ("Method", "ImageNet", "mean of shifts", "Greedy soup", "81.03", "43.75", "12.50"):
        assert cell in text.getvalue()


def test_names_cannot_break_the_tables() -> None:
    table = results_table([Result("a|b [red]", 0.5)])
    assert "| a\\|b [red] | **50.00** |" in table.markdown()
    text = io.StringIO()
    Console(file=text, width=80).print(table.rich())
    assert "a|b [red]" in text.getvalue()


def test_no_shifts_means_no_mean() -> None:
    result = Result("a", 0.5)
    assert math.isnan(result.mean_shift)
    assert results_table([result]).columns == ["Method", "test"]
    assert "mean_shift" not in result.to_json()


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SoupError, match="row 'b' has other shifts"):
        results_table([Result("a", 0.5, {"x": 0.1}), Result("b", 0.5, {"y": 0.1})])
    with pytest.raises(SoupError, match="needs a row"):
        results_table([])
