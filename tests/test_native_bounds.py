"""The kernels stay inside their tensors: beside each lies a page that no one may touch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pysoup import _native

ROOT = Path(__file__).parents[1]

# In a process of its own, since a stray access is a segmentation fault; without torch, so that it starts quickly.
CODE = """
import ctypes, mmap, sys
from pysoup import _native
from pysoup.columns import Columns, SourceColumn, accumulator
from pysoup.dtypes import F64, F32, F16, BF16, F8_E4M3, F8_E5M2

libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
ROOM = 8 * PAGE

class Guarded:
    '''Room between two pages without access.'''
    def __init__(self):
        self.map = mmap.mmap(-1, ROOM + 2 * PAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + PAGE
        for page in (self.start - PAGE, self.start + ROOM):
            assert libc.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
    def at_end(self, nbytes):
        return self.start + ROOM - nbytes

ALL = (F64, F32, F16, BF16, F8_E4M3, F8_E5M2)
sources, out = [Guarded() for _ in range(18)], Guarded()
for isa in sys.argv[1:]:
    with _native.force_isa(isa):
        for n in (1, 2, 3, 7, 15, 17, 31, 33, 63, 65, 127, 1023, 1025, 2049):
            for a in ALL:
                for b in ALL:
                    for count in (1, 2, 18):
                        for begin in (True, False):
                            at = out.start if begin else out.at_end(n * b.itemsize)
                            acc = bytes([accumulator([a], b)])
                            target = Columns.in_memory([n], [at], bytes([b.native]), acc, float(count))
                            given = [
                                SourceColumn.in_memory([s.at_end(n * a.itemsize)], bytes([a.native]), 1.0)
                                for s in sources[:count]
                            ]
                            _native.run(target.plan(given), threads=1)
print("inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_nothing_outside_a_tensor_is_touched() -> None:
    isas = _native.capabilities()["isas"]
    done = subprocess.run([sys.executable, "-c", CODE, *isas], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr[-2000:]
