"""Runs the benchmarks and writes their tables into benchmarks/README.md, between the markers of each.

python benchmarks/run.py [memory files demo]      (default: memory files; the demo study takes some minutes more)
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from measure import RESULTS, goals_table

HERE = Path(__file__).parent
README = HERE / "README.md"
SCRIPTS = {"memory": "bench_memory.py", "files": "bench_files.py", "demo": "bench_demo.py"}


def block(name: str) -> str:
    """The Markdown of one result file: the machine, the goals, the medians."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    info = result["machine"]
    lines = [
        f"{info['cpu']}, {info['cores']} cores, {info['memory_gib']} GiB, {info['date']}, commit {info['commit']}; "
        f"load before the run {info['load_before']:.1f}.",
        "",
        goals_table(result["goals"]),
        "",
        "| case | contender | median | best |",
        "|---|---|---|---|",
    ]
    for case, group in result["seconds"].items():
        for contender, times in group.items():
            lines.append(f"| {case} | {contender} | {times['median'] * 1e3:.1f} ms | {times['best'] * 1e3:.1f} ms |")
    return "\n".join(lines)


def demo_block() -> str:
    """The demo's own table, from its saved results."""
    command = [sys.executable, str(HERE / SCRIPTS["demo"]), "--table-only"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def insert(name: str, text: str) -> None:
    """Replaces what stands between the markers ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    page = README.read_text()
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    if not pattern.search(page):
        raise SystemExit(f"{README}: no markers for {name}")
    README.write_text(pattern.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["memory", "files"], metavar="NAME", help=", ".join(SCRIPTS))
    parser.add_argument("--tables-only", action="store_true", help="rewrite the tables from the saved results")
    args = parser.parse_args()
    for name in args.names:
        if name not in SCRIPTS:
            parser.error(f"unknown benchmark {name!r}, expected one of {', '.join(SCRIPTS)}")
        if not args.tables_only:
            subprocess.run([sys.executable, str(HERE / SCRIPTS[name])], check=True)
        insert(name, demo_block() if name == "demo" else block(name))


if __name__ == "__main__":
    main()
