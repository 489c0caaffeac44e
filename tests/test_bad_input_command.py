"""Bad input given to the installed command: exit code 1, one line on stderr, nothing on stdout, nothing written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import LONGEST_LINE, MEAN, Place, Row, read_safetensors, unchanged
from bad_inputs_npz import NPZ
from bad_inputs_paths import NOT_FITTING, PATHS
from bad_inputs_pickles import PICKLES
from bad_inputs_safetensors import SAFETENSORS
from bad_inputs_shards import SHARDS
from bad_inputs_torch import TORCH
from checkpoint_files import floats

place = bad_inputs.place
COMMAND = [sys.executable, "-m", "pysoup", "average"]
SAMPLE = (
    "missing file: npz",
    "unreadable path: FIFO",
    "header length negative: -1",
    "pickle with code in it: torch zip, os.system",
    "pickle with code in it: torch legacy, by STACK_GLOBAL",
    "zip bomb sizes: npz, stream that inflates to more",
    "archive members that point outside: torch zip, '../canary'",
    "a shard index that points outside its directory: safetensors, '../x.safetensors'",
    "different shapes: torch zip, larger",
)
ROWS = {str(row): row for row in (*SAFETENSORS, *TORCH, *PICKLES, *NPZ, *SHARDS, *PATHS, *NOT_FITTING)}


def run(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def assert_refused(code: int, out: str, err: str) -> None:
    assert (code, out) == (1, "")
    assert err.startswith("pysoup: error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) <= LONGEST_LINE


@pytest.mark.parametrize("name", SAMPLE)
def test_bad_input_makes_the_command_exit_with_one_line(name: str, place: Place) -> None:
    row: Row = ROWS[name]
    bad = row.make(place.bad, True)
    with unchanged(place.root):
        code, out, err = run(place.good, bad, "-o", place.output)
    assert_refused(code, out, err)
    assert (row.file or bad.name) in err


def test_bad_input_mended_makes_the_command_succeed(place: Place) -> None:
    mended = ROWS[SAMPLE[3]].make(place.bad, False)
    code, out, err = run(place.good, mended, "-o", place.output)
    assert (code, err) == (0, "")
    assert out.startswith("averaged 2 checkpoints into ")
    assert read_safetensors(place.output) == MEAN


@pytest.mark.parametrize("weights", ["1", "1,nan", "1,-1", "0,0"])
def test_bad_input_weights_make_the_command_exit_with_one_line(weights: str, place: Place) -> None:
    with unchanged(place.root):
        assert_refused(*run(place.good, place.good, "-o", place.output, "--weights", weights))


def test_full_disk_makes_the_command_exit_with_one_line(tmp_path: Path) -> None:
    """A tmpfs of 64 kB that only these processes see."""
    disk, source = tmp_path / "disk", tmp_path / "in.safetensors"
    disk.mkdir()
    floats(source, {"w": [0.5] * 50_000})
    outputs = [disk / "soup.safetensors", disk / "soup.pt", disk / "soup"]
    runs = "; ".join(f'"$@" -o {output}; echo $?' for output in outputs)
    script = f"mount -t tmpfs -o size=64k pysoup {disk} || exit 77; {runs}; ls -A {disk}"
    if shutil.which("unshare") is None:
        pytest.skip("no unshare command")
    options = ["-m"] if os.getuid() == 0 else ["-rm"]
    command = ["unshare", *options, "sh", "-c", script, "sh", *COMMAND, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip("no right to mount a tmpfs in a namespace of its own")
    assert done.stdout == "1\n1\n1\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for line, output in zip(lines, outputs, strict=True):
        assert line.startswith(f"pysoup: error: {output}: not enough disk space: found ")
