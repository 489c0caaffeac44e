"""The layering rules: who may import, include or touch what. Prints each breach as FILE:LINE: RULE; exits 1 if any.

Arrows go one way, from the command down to the native code. A rule that has to change is changed here, on purpose.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# From the bottom up. A module or package imports only from lower layers; itself and BESIDE excepted.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "origin", "_version"}),
    frozenset({"dtypes", "sizes", "progress", "task", "trajectory", "weights", "integers", "names", "prefixes"}),
    frozenset({"_native", "reference", "reference_dots"}),
    frozenset({"buffers", "checkpoint", "columns"}),
    frozenset({"ops", "file_plan", "record", "fingerprint", "adapter_config"}),
    frozenset({"arrays", "aliasing", "logits", "running_sum"}),
    frozenset({"tables"}),
    frozenset({"state_dicts", "ingredient", "remarks", "output", "selection"}),
    frozenset({"bound", "targets"}),
    frozenset({"average", "averager", "evaluate"}),
    frozenset({"load", "gram"}),
    frozenset({"mixture_plan"}),
    frozenset({"mixture", "stock", "adapters"}),
    frozenset({"soups", "finetune"}),
    frozenset({"analysis"}),
    frozenset({"report"}),
    frozenset({"demo"}),
    frozenset({"cli"}),
    frozenset({"__main__", "__init__"}),
)
# Neighbours in one layer that may use one another, in this direction only.
BESIDE = {("averager", "average"), ("reference_dots", "reference")}
LAYER_OF = {unit: level for level, units in enumerate(LAYERS) for unit in units}

# (what, in which #include, only where): paths under csrc/.
INCLUDES = (
    ("no torch in csrc", re.compile(r"^(torch|ATen|c10)/"), re.compile(r"(?!)")),
    ("pybind11 in csrc/bindings*.cpp only", re.compile(r"^pybind11/"), re.compile(r"^bindings(_\w+)?\.(h|cpp)$")),
    ("CUDA's headers in csrc/cuda only", re.compile(r"^(cuda|cuda_\w+|device_\w+)\.h$"), re.compile(r"^cuda/")),
)
SIBLINGS = ("cpu", "io", "cuda")
SOURCES = (".h", ".cpp", ".cu", ".cuh")
MOST_LINES = 400


def breaches(root: Path) -> list[str]:
    """All breaches in the tree at ``root``, as ``FILE:LINE: RULE``."""
    found: list[str] = []
    for path in sorted((root / "pysoup").rglob("*.py")):
        found += _python_breaches(path, root)
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix in SOURCES:
            found += _cpp_breaches(path, root)
    return found


def _python_breaches(path: Path, root: Path) -> Iterator[str]:
    where = path.relative_to(root)
    text = path.read_text(encoding="utf-8")
    yield from _length(where, text)
    unit = where.with_suffix("").parts[1]
    if unit not in LAYER_OF:
        yield f"{where}:1: {unit} has no layer: give it one in ci/check_layering.py"
        return
    nodes = list(ast.walk(ast.parse(text)))
    imports = [(n, t) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for t in _imported_units(n, where)]
    # An address alone is harmless (who shares memory with whom?); an address beside the native module is not.
    if unit != "ops" and any(target == "_native" for _, target in imports):
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr == "data_ptr":
                yield f"{where}:{node.lineno}: only pysoup/ops hands tensor memory to native code"
    for node, target in imports:
        if target == "_C" and unit != "_native":
            yield f"{where}:{node.lineno}: only _native.py imports the native module"
        elif target not in LAYER_OF and target != "_C" and not (root / "pysoup" / f"{target}.py").exists():
            yield f"{where}:{node.lineno}: import from the module that defines it, not from the package's front"
        elif target in LAYER_OF and not _may_import(unit, target):
            yield f"{where}:{node.lineno}: {unit} may not import {target}"


def _may_import(unit: str, target: str) -> bool:
    return LAYER_OF[target] < LAYER_OF[unit] or unit == target or (unit, target) in BESIDE or unit == "__init__"


def _imported_units(node: ast.Import | ast.ImportFrom, where: Path) -> Iterator[str]:
    """What ``node`` imports directly from under pysoup: modules, or names of the package itself ("*" for all of it)."""
    if isinstance(node, ast.Import):
        names = [alias.name.split(".") for alias in node.names]
    else:
        # pysoup/soups/greedy.py is in package pysoup.soups: one dot means that, two mean pysoup.
        package = list(where.parts[:-1])
        base = package[: len(package) - node.level + 1] if node.level else []
        base += node.module.split(".") if node.module else []
        names = [[*base, alias.name] for alias in node.names]
    for name in names:
        if name[0] == "pysoup":
            yield name[1] if len(name) > 1 else "*"


def _cpp_breaches(path: Path, root: Path) -> Iterator[str]:
    where = path.relative_to(root)
    inside = path.relative_to(root / "csrc")
    text = path.read_text(encoding="utf-8")
    yield from _length(where, text)
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"\s*#\s*include\s*[<\"]([^>\"]+)[>\"]", line)
        if match is None:
            continue
        header = match[1]
        for rule, pattern, allowed in INCLUDES:
            if pattern.search(header) and not allowed.search(inside.as_posix()):
                yield f"{where}:{number}: {rule}"
        others = [s for s in SIBLINGS if inside.parts[0] in SIBLINGS and s != inside.parts[0]]
        if any(part in others for part in Path(header).parts[:-1]):
            yield f"{where}:{number}: siblings under csrc do not include each other"


def _length(where: Path, text: str) -> Iterator[str]:
    lines = text.count("\n")
    if lines > MOST_LINES:
        yield f"{where}:{lines}: more than {MOST_LINES} lines: is it two things?"


def main() -> int:
    found = breaches(Path(__file__).resolve().parent.parent)
    for breach in found:
        print(breach, file=sys.stderr)
    print(f"check_layering: {len(found)} breaches")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
