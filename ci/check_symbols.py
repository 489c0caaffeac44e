"""The objects compiled for one instruction set export no weak symbol.

A weak symbol (an inline function, a template) may be merged by the linker with one of the same name from another
object: the generic code would then run AVX-512 instructions on a CPU without them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WEAK = "WwVvu"


def weak_symbols(nm_output: str) -> list[str]:
    """The names that ``nm`` marks as weak or unique; each of its lines is ``[address] TYPE name``."""
    fields = (line.split(maxsplit=2) for line in nm_output.splitlines())
    return [parts[-1] for parts in fields if len(parts) >= 2 and parts[-2] in WEAK]


def main() -> int:
    objects = sorted(Path("build").rglob("kernels_*.o"))
    if not objects:
        print("check_symbols: no build/**/kernels_*.o; run `make build` first", file=sys.stderr)
        return 1
    failed = False
    for path in objects:
        listing = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        for symbol in weak_symbols(listing):
            print(f"{path}: weak symbol {symbol}", file=sys.stderr)
            failed = True
    print(f"check_symbols: {len(objects)} objects, {'weak symbols found' if failed else 'no weak symbol'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
