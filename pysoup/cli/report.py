"""``pysoup report`` and ``pysoup share``: what runs found, for people. No torch."""

from __future__ import annotations

from typing import Any

from .text import as_notes, plural, printable


def report(runs: list[str], output: str, *, format: str | None) -> None:
    """Write the report on ``runs``, and say how much is in it; what is missing, it says itself."""
    from ..report.write import write_report

    content = write_report(runs, output, format=format)
    print(f"{plural(len(content.models), 'model')}, {plural(len(content.made), 'recipe')}")
    print(f"wrote {printable(output)}")


def share(run: str, output: str, **options: Any) -> None:
    """Write the directory, and list its files."""
    from ..report.share import share_soup

    shared = share_soup(run, output, **options)
    for name in shared.files:
        print(f"wrote {printable(str(shared.output / name))}")
    print("".join(f"{line}\n" for line in as_notes(shared.notes)), end="")
