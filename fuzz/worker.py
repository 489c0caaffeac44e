"""Runs one target in this process: `python -m fuzz.worker TARGET SEEDS --runs N`, or `... TARGET FILES --replay`.

With atheris the runs are guided by the coverage of pysoup's code. Without it (no wheel for this machine, or
`--plain`) inputs that end in a new way are mutated further. An input that fails is saved, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import pkgutil
import random
import sys
import traceback
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

_KEPT = 2000
"""Inputs that a plain run mutates."""
_HANG = 900
"""Seconds by the clock after which libFuzzer ends a process that is stuck where Python cannot interrupt it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("files", type=Path, help="a directory of inputs, or one input")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--found", type=Path, help="directory for new inputs, with atheris")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz/crashes"))
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--replay", action="store_true", help="run the inputs as they are")
    options = parser.parse_args()
    atheris = None if options.plain or options.replay else _atheris()
    with _instrumented(atheris):
        import_readers()
    from .harness import Harness, peak_memory, working_directory
    from .targets import TARGETS

    target = TARGETS[options.target]
    files = sorted(options.files.iterdir()) if options.files.is_dir() else [options.files]
    options.crashes.mkdir(parents=True, exist_ok=True)
    with working_directory() as directory:
        harness = Harness(target, Path(directory))
        print(f"start: {peak_memory()} bytes", flush=True)
        if options.replay:
            return _replay(harness, files)
        if atheris is not None:
            return _guided(atheris, harness, options)
        runs = _plain(harness, [file.read_bytes() for file in files], options)
        if runs < options.runs:
            return 1
        print(f"done: {runs}\npeak: {peak_memory()} bytes")
        return 0


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        return None
    return atheris


def _instrumented(atheris: Any) -> AbstractContextManager[Any]:
    return nullcontext() if atheris is None else atheris.instrument_imports(include=["pysoup"])


def import_readers() -> None:
    """All that reading a file can import, so that an import while one is read is a finding."""
    package = importlib.import_module("pysoup.checkpoint")
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "pysoup.checkpoint.")]
    for name in (*names, "encodings.cp437", "encodings.latin_1"):
        importlib.import_module(name)
    importlib.import_module("pysoup._native").capabilities()


def _guided(atheris: Any, harness: Any, options: argparse.Namespace) -> int:
    rng = random.Random(options.seed)

    def other(data: bytes, most: int) -> bytes:
        return bytes(atheris.Mutate(data[:most], most))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng.seed(seed)
        return bytes(harness.target.mutate(data, rng, other)[:most])

    def run(data: bytes) -> None:
        harness.run(data)

    flags = {
        "runs": options.runs,
        "seed": options.seed,
        "max_len": harness.target.longest,
        "len_control": 0,
        "timeout": _HANG,
        "report_slow_units": _HANG,
        "rss_limit_mb": 0,
        "print_final_stats": 1,
        "artifact_prefix": f"{options.crashes}/{harness.target.name}-",
    }
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in flags.items())]
    arguments += [str(directory) for directory in (options.found, options.files) if directory]
    atheris.Setup(arguments, run, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def _plain(harness: Any, corpus: list[bytes], options: argparse.Namespace) -> int:
    from .mutations import mutate_bytes

    rng = random.Random(options.seed)
    other = mutate_bytes(rng)
    seeds = len(corpus)
    outcomes: set[str] = set()
    for count in range(options.runs):
        if count < seeds:
            data = corpus[count]
        else:
            data = rng.choice(corpus)
            for _ in range(rng.choice((1, 1, 2))):
                data = harness.target.mutate(data, rng, other)[: harness.target.longest]
        try:
            outcome = harness.run(data)
        except BaseException:
            _report(harness.target.name, data, options.crashes)
            return count
        if outcome not in outcomes:
            outcomes.add(outcome)
            if len(corpus) < _KEPT:
                corpus.append(data)
    return int(options.runs)


def _replay(harness: Any, files: Iterable[Path]) -> int:
    failed = 0
    for file in files:
        try:
            outcome = harness.run(file.read_bytes())
        except Exception:
            failed += 1
            outcome = f"FAILED\n{traceback.format_exc()}"
        print(f"{file}: {outcome}")
    return int(failed > 0)


def _report(name: str, data: bytes, directory: Path) -> None:
    file = directory / f"{name}-{hashlib.sha1(data).hexdigest()[:16]}"
    file.write_bytes(data)
    print(f"{traceback.format_exc()}\ninput: {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
