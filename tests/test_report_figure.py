"""Figure 1: a PNG of the promised size with the paper's marks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from pysoup.errors import BackendError, OutputError
from pysoup.report import Result, figure, figure1

Image = pytest.importorskip("PIL.Image")

COLORS = {"purple": (148, 103, 189), "blue": (31, 119, 180), "grey": (127, 127, 127), "green": (44, 160, 44)}
MODELS = [Result(f"m{i}", 0.97 + 0.002 * i, {"a": 0.8 - 0.01 * (i % 3)}) for i in range(6)]
GREEDY, UNIFORM, INIT = Result("g", 0.985, {"a": 0.84}), Result("u", 0.983, {"a": 0.85}), Result("i", 0.95, {"a": 0.7})


def draw(path: Path, **changes: object) -> None:
    parts = {"models": MODELS, "greedy": GREEDY, "uniform": UNIFORM, "initialization": INIT} | changes
    figure1(path, **parts)  # type: ignore[arg-type]


def marks(path: Path) -> set[str]:
    """The marks seen: those whose colour fills an area, which the smooth edges of black text do not."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {name for name, color in COLORS.items() if (pixels == color).all(1).sum() > 150}


def test_png_is_whole_and_of_the_promised_size(tmp_path: Path) -> None:
    draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        image.verify()
        assert image.size == (960, 720)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_marks_have_the_papers_colors(tmp_path: Path) -> None:
    draw(tmp_path / "all.png")
    assert marks(tmp_path / "all.png") == set(COLORS)
    draw(tmp_path / "soups.png", models=[], initialization=None)
    assert marks(tmp_path / "soups.png") == {"purple", "blue"}


def test_a_name_in_svg_gives_the_same_vector_drawing_each_time(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg", "THREE.SVG"):
        draw(tmp_path / name)
    root = ET.parse(tmp_path / "one.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == ("460.8pt", "345.6pt")
    text = (tmp_path / "one.svg").read_text()
    for color in COLORS.values():
        assert "#{:02x}{:02x}{:02x}".format(*color) in text
    assert text == (tmp_path / "two.svg").read_text() == (tmp_path / "THREE.SVG").read_text()


def test_old_figure_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    draw(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_missing_directory_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        draw(tmp_path / "absent" / "figure.png")


def test_missing_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(figure, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    with pytest.raises(BackendError, match=r"pip install 'model-soups\[demo\]'"):
        draw(tmp_path / "figure.png")
