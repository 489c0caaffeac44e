"""What the fuzzer once found stays mended, a few thousand mutations find nothing, and planted faults are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("headers", "indexes", "torch", "pickles", "legacy", "npz")
RUNS = 2000


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: the harness watches all that its process does, and limits its memory.
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzz") / "seeds"
    assert _python("-m", "fuzz.seeds", str(directory)).returncode == 0
    return directory


@pytest.mark.parametrize("target", TARGETS)
def test_regressions_and_seeded_mutations_find_nothing(seeds: Path, tmp_path: Path, target: str) -> None:
    kept = ROOT / "fuzz" / "regressions" / target
    assert {file.name for file in kept.glob("*")} <= {file.name for file in (seeds / target).iterdir()}
    options = ("--plain", "--runs", str(RUNS), "--seed", "20240117", "--crashes", str(tmp_path))
    result = _python("-m", "fuzz.worker", target, str(seeds / target), *options)
    assert result.returncode == 0, result.stderr
    assert f"done: {RUNS}\n" in result.stdout


PLANTED = {
    "exception": ("1 / 0", "ZeroDivisionError"),
    "system": ("__import__('os').system('true')", "does what no reader may: [\"os.system (b'true',)"),
    "import": ("__import__('colorsys')", "does what no reader may: [\"import ('colorsys'"),
    "code": ("exec('1')", "does what no reader may"),
    "write": ("open(header.path, 'ab').close()", 'does what no reader may: ["open ('),
    "memory": ("b'x' * (150 << 20)", "150 MiB more than at the start"),
    "address space": ("b'x' * (3 << 30)", "MemoryError"),
    "hang": ("[i for i in iter(int, 1)]", "takes more than 0.2 s"),
    "nameless error": ("(_ for _ in ()).throw(CheckpointError('bad'))", "does not name the file: bad"),
    "long error": ("(_ for _ in ()).throw(CheckpointError('x' * 5000, file=header.path))", "not one short line"),
    "no check": ("None", "the safetensors library refuses it"),
    "other shape": ("header.shapes.reverse()", "the library reads"),
    "other place": ("header.begins.reverse()", "not one after the other"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault: str) -> None:
    """The negative control, for the seeds alone: a reader with this fault does not pass."""
    expression, expected = PLANTED[fault]
    script = f"""
from pathlib import Path
from fuzz.worker import import_readers
import_readers()
from fuzz import harness
from fuzz.targets import TARGETS
from pysoup.checkpoint import safetensors_file
from pysoup.errors import CheckpointError
check = safetensors_file._check_tiling
def planted(header, *arguments, **named):
    {expression}
safetensors_file._check_tiling = planted
harness.SECONDS = 0.1
with harness.working_directory() as directory:
    judge = harness.Harness(TARGETS["headers"], Path(directory))
    for data in TARGETS["headers"].seeds():
        judge.run(data)
"""
    result = _python("-c", script)
    assert result.returncode == 1
    assert expected in result.stderr


def test_fuzz_command_sums_up_and_saves_what_it_finds(tmp_path: Path) -> None:
    result = _python("-m", "fuzz", "--plain", "--runs", "400", "headers", "indexes")
    assert result.returncode == 0, result.stderr
    assert "headers: 158 of 158 runs" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("400 runs in ")
    assert "0 findings" in last
    assert "no target 'x'" in _python("-m", "fuzz", "x").stderr
