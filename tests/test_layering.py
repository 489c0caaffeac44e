"""The layering rules hold, the checker sees breaches, and imports stay as light as promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ci_scripts import ROOT, script


def test_layering_of_this_tree_has_no_breach() -> None:
    assert script("check_layering").breaches(ROOT) == []


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("pysoup/checkpoint/x.py", "from ..average import f", "checkpoint may not import average"),
        ("pysoup/checkpoint/x.py", "from .. import ops", "checkpoint may not import ops"),
        ("pysoup/checkpoint/x.py", "import pysoup.soups.greedy", "checkpoint may not import soups"),
        ("pysoup/errors.py", "def f():\n    from pysoup.dtypes import F32", "errors may not import dtypes"),
        ("pysoup/average.py", "from .averager import Averager", "average may not import averager"),
        ("pysoup/soups/x.py", "from ..finetune import train", "soups may not import finetune"),
        ("pysoup/soups/x.py", "from pysoup import average_state_dicts", "not from the package's front"),
        ("pysoup/ops/sums.py", "from .. import _C", "only _native.py imports the native module"),
        ("pysoup/average.py", "from . import _native\nt.data_ptr()", "only pysoup/ops hands tensor memory"),
        ("pysoup/surprise.py", "", "surprise has no layer"),
        ("pysoup/errors.py", "\n" * 401, "more than 400 lines"),
        ("csrc/bindings.cpp", "#include <torch/extension.h>", "no torch"),
        ("csrc/cpu/a.h", "#  include <ATen/ATen.h>", "no torch"),
        ("csrc/cpu/a.cpp", "#include <pybind11/pybind11.h>", "pybind11 in csrc/bindings*.cpp only"),
        ("csrc/io/a.cpp", "#include <cuda_runtime.h>", "CUDA's headers in csrc/cuda only"),
        ("csrc/device.h", "#include <cuda_runtime.h>", "CUDA's headers in csrc/cuda only"),
        ("csrc/io/a.cpp", '#include "../cpu/dispatch.h"', "siblings"),
        ("csrc/cuda/a.cuh", '#include "../io/plan.h"', "siblings"),
        ("csrc/cpu/a.cpp", '#include "io/plan.h"', "siblings"),
    ],
)
def test_layering_breach_is_found(path: str, text: str, rule: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (breach,) = script("check_layering").breaches(tmp_path)
    assert breach.startswith(f"{path}:")
    assert rule in breach


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pysoup/averager.py", "from .average import f\nfrom .checkpoint import open_checkpoint"),
        ("pysoup/ops/sums.py", "from .. import _native\nt.data_ptr()"),
        ("pysoup/checkpoint/x.py", "import os, torch\nfrom .y import z\nfrom ..errors import SoupError\nt.data_ptr()"),
        ("pysoup/cli/x.py", "from ..demo import run\nfrom .. import _native"),
        ("csrc/cuda/a.cu", "#include <cuda_runtime.h>"),
        ("csrc/bindings.cpp", '#include <pybind11/pybind11.h>\n#include "io/plan.h"\n#include "cpu/dispatch.h"'),
        ("csrc/bindings_device.cpp", '#include <pybind11/pybind11.h>\n#include "device.h"'),
        ("csrc/bindings.h", "#include <pybind11/pybind11.h>"),
    ],
)
def test_layering_permits_what_the_rules_permit(path: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert script("check_layering").breaches(tmp_path) == []


def test_weak_symbols_are_told_from_strong_ones() -> None:
    listing = "0 T soup::run()\n0 t soup::part()\n  U memcpy\n0 W std::vector<int>::push_back(int const&)\n0 u unique\n"
    assert script("check_symbols").weak_symbols(listing) == ["std::vector<int>::push_back(int const&)", "unique"]


@pytest.mark.parametrize(
    "code",
    [
        "import pysoup",
        "import pysoup; pysoup.open_checkpoint",
        "import pysoup; pysoup.average_checkpoints",
        "import pysoup.cli",
        "import pysoup; pysoup.SoupError; dir(pysoup)",
    ],
)
def test_import_loads_neither_torch_nor_numpy_nor_click(code: str) -> None:
    check = "; import sys; print([m for m in ('torch', 'numpy', 'click', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_import_of_every_public_name_works() -> None:
    code = "import pysoup; [getattr(pysoup, name) for name in pysoup.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
