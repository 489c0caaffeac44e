"""Runs the benchmarks, draws the figure and writes the tables into benchmarks/README.md, between the markers of each.

    python benchmarks/run.py [NAME ...]        error peers cold sweep sweep_memory memory logits files; demo if named
    python benchmarks/run.py --tables-only     figure and tables again, from the saved results

--full asks the contests for what they leave out for the sake of time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import figure
import tables
from measure import RESULTS

HERE = Path(__file__).parent
README = HERE / "README.md"
# In this order: whether the results agree comes before any time that is taken.
DEFAULT = ("error", "peers", "cold", "sweep", "sweep_memory", "memory", "logits", "files")
# Where it is not bench_NAME.py.
SCRIPTS = {"cold": ("bench_peers.py", "--parts", "cold", "--name", "cold")}
WITH_FULL = ("peers", "sweep", "sweep_memory")


def demo_block() -> str:
    """The demo's own table, from its saved results."""
    if tables.load("demo") is None:
        return "Not measured yet: `python benchmarks/run.py demo`."
    command = [sys.executable, str(HERE / "bench_demo.py"), "--table-only"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


BLOCKS: dict[str, Callable[[], str]] = {
    "peers": tables.peers_block,
    "goals": tables.goals_block,
    "cold": tables.cold_block,
    "full": tables.full_block,
    "error": tables.error_block,
    "sweep": tables.sweep_block,
    "sweep_memory": tables.sweep_memory_block,
    "memory": lambda: tables.older_block("memory"),
    "logits": lambda: tables.older_block("logits"),
    "files": lambda: tables.older_block("files"),
    "mixture": lambda: tables.steps_block("mixture"),
    "learned": lambda: tables.steps_block("learned"),
    "cuda": tables.cuda_block,
    "demo": demo_block,
}
# The other pages with blocks of their own.
ELSEWHERE = {"cuda": HERE.parent / "docs" / "cuda.md"}


def insert(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` between the markers ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    if not pattern.search(page):
        raise SystemExit(f"no markers for {name} in:\n{page[:80]}")
    return pattern.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page)


def report() -> None:
    """The figure and all tables, from whatever results there are."""
    RESULTS.mkdir(exist_ok=True)
    figure.draw(RESULTS / "sweep.png")
    page = README.read_text(encoding="utf-8")
    for name, block in BLOCKS.items():
        page = insert(page, name, block())
    README.write_text(page, encoding="utf-8")
    for name, path in ELSEWHERE.items():
        path.write_text(insert(path.read_text(encoding="utf-8"), name, BLOCKS[name]()), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*DEFAULT, "demo")
    parser.add_argument("names", nargs="*", default=DEFAULT, metavar="NAME", help=", ".join(known))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    args = parser.parse_args()
    for name in args.names:
        if name not in known:
            parser.error(f"unknown benchmark {name!r}, expected one of {', '.join(known)}")
    for name in () if args.tables_only else args.names:
        begin = time.monotonic()
        options = ["--full"] if args.full and name in WITH_FULL else []
        script, *fixed = SCRIPTS.get(name, (f"bench_{name}.py",))
        subprocess.run([sys.executable, str(HERE / script), *fixed, *options], check=True)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    report()


if __name__ == "__main__":
    main()
