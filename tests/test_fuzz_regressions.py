"""What the fuzzer once found stays mended, a few thousand mutations find nothing, and planted faults are found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("headers", "indexes", "torch", "pickles", "legacy", "npz", "distributed")
RUNS = 2000


def _start(*arguments: str) -> subprocess.Popen[str]:
    # A process of its own: the harness watches all that its process does, and limits its memory.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, text=True, **pipes)


def _finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All targets at once, as they spend their time with imports."""
    directory = tmp_path_factory.mktemp("fuzz")
    seeds, crashes = directory / "seeds", directory / "crashes"
    assert _finished(_start("-m", "fuzz.seeds", str(seeds)))[0] == 0
    for kept in (ROOT / "fuzz" / "regressions").glob("*/*"):
        assert (seeds / kept.parent.name / kept.name).read_bytes() == kept.read_bytes()
    options = ("--plain", "--runs", str(RUNS), "--seed", "20240117", "--crashes", str(crashes))
    running = {t: _start("-m", "fuzz.worker", t, str(seeds / t), *options) for t in TARGETS}
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("target", TARGETS)
def test_regressions_and_seeded_mutations_find_nothing(workers: dict[str, subprocess.Popen[str]], target: str) -> None:
    status, out, error = _finished(workers[target])
    assert status == 0, error
    assert f"done: {RUNS}\n" in out


PLANTED = {
    "exception": ("1 / 0", "ZeroDivisionError"),
    "system": ("__import__('os').system('true')", "does what no reader may: [\"os.system (b'true',)"),
    "import": ("__import__('colorsys')", "does what no reader may: [\"import ('colorsys'"),
    "code": ("exec('1')", "does what no reader may"),
    "write": ("open(header.path, 'ab').close()", 'does what no reader may: ["open ('),
    "memory": ("b'x' * (150 << 20)", " MiB more than at the start"),
    "address space": ("b'x' * (3 << 30)", "MemoryError"),
    "hang": ("[i for i in iter(int, 1)]", "takes more than 0.2 s"),
    "nameless error": ("(_ for _ in ()).throw(CheckpointError('bad'))", "does not name the file: bad"),
    "long error": (
        "(_ for _ in ()).throw(type('Long', (CheckpointError,), {'__str__': lambda e: 5000 * 'x'})(''))",
        "not one short line",
    ),
    "no check": ("None", "the safetensors library refuses it"),
    "other name": ("header.names[:1] = ['v'][: len(header.names)]", "the library reads"),
    "other place": ("header.begins.reverse()", "fewer bytes in the file"),
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
harness.SECONDS = {0.1 if fault == "hang" else 5.0}
with harness.working_directory() as directory:
    judge = harness.Harness(TARGETS["headers"], Path(directory))
    for data in TARGETS["headers"].seeds():
        judge.run(data)
"""
    status, _, error = _finished(_start("-c", script))
    assert status == 1
    assert expected in error


def test_fuzz_command_sums_up() -> None:
    status, out, error = _finished(_start("-m", "fuzz", "--plain", "--runs", "400", "headers", "indexes"))
    assert status == 0, error
    *lines, last = out.splitlines()
    assert len(lines) == 4
    assert last.startswith("400 runs in ")
    assert last.endswith("; 0 findings")
    assert "no target 'x'" in _finished(_start("-m", "fuzz", "x"))[2]
