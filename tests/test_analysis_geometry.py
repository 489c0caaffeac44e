"""The geometry of checkpoints: distances and angles are numpy's within the stated errors; and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pysoup.analysis import weight_geometry
from pysoup.analysis.geometry import gram_error
from pysoup.cli import main
from pysoup.errors import IncompatibleError, SoupError

SHAPES = {"layer.weight": (40, 30), "layer.bias": (40,), "norm.weight": (30,), "head.weight": (7, 40)}


def write(path: Path, state: dict[str, np.ndarray]) -> str:
    save_file(state, path)
    return str(path)


def models(folder: Path, count: int = 4, spread: float = 0.1, dtype: type = np.float32) -> list[str]:
    """A start and ``count`` models around it, the start first."""
    random = np.random.default_rng(0)
    start = {name: random.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    states = [start]
    states += [
        {name: (value + spread * random.standard_normal(value.shape)).astype(dtype) for name, value in start.items()}
        for _ in range(count)
    ]
    return [write(folder / f"m{i}.safetensors", state) for i, state in enumerate(states)]


def flat(path: str, names: list[str] | None = None) -> np.ndarray:
    from safetensors.numpy import load_file

    state = load_file(path)
    return np.concatenate([state[name].ravel() for name in names or sorted(state)]).astype(np.float64)


def degrees(u: np.ndarray, v: np.ndarray) -> float:
    return math.degrees(math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))


def test_norms_distances_and_angles_are_numpys(tmp_path: Path) -> None:
    start, *paths = models(tmp_path)
    found = weight_geometry(paths, start)
    vectors, base = [flat(path) for path in paths], flat(start)
    assert (found.count, found.tensors, found.parameters) == (4, 4, 40 * 30 + 40 + 30 + 7 * 40)
    for i, x in enumerate(vectors):
        assert found.norm(i) == pytest.approx(np.linalg.norm(x), rel=1e-12)
        assert found.norm(i, found.origin) == pytest.approx(np.linalg.norm(x - base), rel=1e-10)
        for j, y in enumerate(vectors):
            assert found.inner(i, j) == pytest.approx(x @ y, rel=1e-12)
            assert found.inner(i, j, found.origin) == pytest.approx((x - base) @ (y - base), abs=1e-9)
            assert found.distance(i, j) == pytest.approx(np.linalg.norm(x - y), rel=1e-10)
            if i != j:
                assert found.angle(i, j) == pytest.approx(degrees(x, y), rel=1e-9)
                assert found.angle(i, j, found.origin) == pytest.approx(degrees(x - base, y - base), rel=1e-8)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_small_distances_and_angles_are_within_their_stated_errors(tmp_path: Path, spread: float) -> None:
    start, *paths = models(tmp_path, 3, spread)
    found = weight_geometry(paths, start)
    base = [Fraction(float(v)) for v in flat(start)]
    exact = [[Fraction(float(v)) - b for v, b in zip(flat(path), base, strict=True)] for path in paths]
    for i, x in enumerate(exact):
        error = found.distance_error(i, 3)
        length = math.sqrt(sum(v * v for v in x))
        assert abs(found.distance(i, 3) - length) <= error
        assert error < 0.1 * length  # the bound says something
        for j, y in enumerate(exact[:i]):
            cosine = float(sum(a * b for a, b in zip(x, y, strict=True))) / length / math.sqrt(sum(v * v for v in y))
            angle, slack = found.angle(i, j, 3), found.angle_error(i, j, 3)
            assert angle is not None
            assert slack is not None
            assert abs(angle - math.degrees(math.acos(cosine))) <= slack


def test_error_bound_grows_with_the_cancellation() -> None:
    assert gram_error([1000]) < 1e-14
    assert gram_error([10**6] * 400) < 1e-13


def test_copies_are_at_distance_zero_and_have_no_angle(tmp_path: Path) -> None:
    start, path = models(tmp_path, 1)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(start).read_bytes())
    found = weight_geometry([path, str(copy)], start)
    assert found.distance(1, 2) == 0.0
    assert found.angle(0, 1, found.origin) is None
    assert found.to_json()["from_base"]["angles"][0][1] is None


def test_nearer_than_the_numbers_tell_has_no_angle(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    start = random.standard_normal(200_000)
    paths = []
    for i in range(3):
        moved = start + (1e-13 * random.standard_normal(200_000) if i else 0.0)
        paths.append(write(tmp_path / f"{i}.safetensors", {"w": moved.reshape(2, -1)}))
    found = weight_geometry(paths[1:], paths[0])
    assert found.angle(0, 1, found.origin) is None
    assert found.distance(0, 2) <= found.distance_error(0, 2)


def test_patterns_and_norms_leave_tensors_out(tmp_path: Path) -> None:
    start, *paths = models(tmp_path)
    weights = ["layer.weight", "head.weight"]
    found = weight_geometry(paths, start, exclude_norms=True)
    assert sorted(found.excluded) == ["layer.bias", "norm.weight"]
    x, y, base = (flat(path, weights) for path in (paths[0], paths[1], start))
    assert found.angle(0, 1, found.origin) == pytest.approx(degrees(x - base, y - base), rel=1e-8)
    found = weight_geometry(paths, start, include="^layer", exclude=["bias"])
    assert found.tensors == 1
    x, y = (flat(path, ["layer.weight"]) for path in paths[:2])
    assert found.inner(0, 1) == pytest.approx(x @ y, rel=1e-12)
    with pytest.raises(SoupError, match="no tensor is left to compare"):
        weight_geometry(paths, include="norm", exclude_norms=True)
    with pytest.raises(SoupError, match="no tensor name matches"):
        weight_geometry(paths, include="absent")


def test_a_head_of_another_shape_can_be_left_out(tmp_path: Path) -> None:
    start, *paths = models(tmp_path)
    from safetensors.numpy import load_file

    other = write(tmp_path / "other.safetensors", {**load_file(start), "head.weight": np.zeros((9, 40), np.float32)})
    with pytest.raises(IncompatibleError, match="head"):
        weight_geometry(paths, other)
    assert weight_geometry(paths, other, exclude="^head").tensors == 3


def test_a_model_with_nan_is_named(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.safetensors", {"w": np.full((2, 2), np.nan, np.float32)})
    good = write(tmp_path / "good.safetensors", {"w": np.ones((2, 2), np.float32)})
    with pytest.raises(SoupError, match=r"bad.*NaN"):
        weight_geometry([good, bad])


def test_base_must_be_one_model(tmp_path: Path) -> None:
    paths = models(tmp_path)
    with pytest.raises(SoupError, match="the base is one model"):
        weight_geometry(paths, tmp_path)


def test_command_prints_a_table_writes_json_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, *paths = models(tmp_path)
    out, figure = tmp_path / "g.json", tmp_path / "g.svg"
    args = ["analyze", "geometry", *paths, "--base", start, "-o", str(out), "--figure", str(figure)]
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "from base" in printed
    assert f"wrote {out}" in printed
    written = json.loads(out.read_text())
    assert written["checkpoints"] == paths
    assert written["from_base"]["angles"][0][0] == 0.0
    assert figure.read_text().startswith("<?xml")
    assert main(args) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*args, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written


def test_command_needs_no_torch(tmp_path: Path) -> None:
    start, *paths = models(tmp_path)
    code = (
        "import sys; from pysoup.cli import main; "
        "assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    out = str(tmp_path / "g.json")
    args = ["analyze", "geometry", *paths, "--base", start, "-o", out]
    subprocess.run([sys.executable, "-c", code, *args], check=True, capture_output=True)
