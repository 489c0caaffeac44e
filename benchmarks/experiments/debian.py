"""Debian's package descriptions: fetched once with apt's own tools into a folder of their own, then read from there.

The machine's package lists are left alone: apt gets other directories, and the English descriptions in full beside the
one-line ones, which many machines do not keep.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pysoup.errors import BackendError, SoupError

_FIELD = re.compile(r"^([A-Za-z0-9-]+): *(.*)$", re.M)
_LISTS, _SNAPSHOT = "apt/lists", "packages.jsonl"
_PARAGRAPH_END = " ."


@dataclass(frozen=True)
class Package:
    """What a package says of itself: ``synopsis`` is its one line, ``longer`` the first paragraph below it."""

    name: str
    source: str
    section: str
    synopsis: str
    longer: str


def packages(folder: Path) -> list[Package]:
    """All packages that apt knows of, by name; of the sections ``component/section`` the last part.

    The first call asks apt and writes ``folder/packages.jsonl``; later ones read that file, so that a mirror that moves
    on does not change the data. Raises :class:`SoupError` where apt is missing or cannot reach its mirror.
    """
    snapshot = folder / _SNAPSHOT
    if not snapshot.exists():
        found = sorted(_ask_apt(folder / _LISTS), key=lambda package: (package.name, package.synopsis))
        part = snapshot.with_suffix(".part")
        part.write_text("".join(f"{json.dumps(asdict(package))}\n" for package in found), encoding="utf-8")
        part.rename(snapshot)
    return [Package(**json.loads(line)) for line in snapshot.read_text(encoding="utf-8").splitlines()]


def parse(available: str, translations: str) -> Iterator[Package]:
    """The packages in the output of ``apt-cache dumpavail``, with what ``translations`` (the text of apt's
    Translation-en files) adds to each; ``longer`` is empty where they have nothing."""
    longer = dict(_first_paragraphs(translations))
    for stanza in available.split("\n\n"):
        fields: dict[str, str] = dict(_FIELD.findall(stanza))
        if not {"Package", "Section", "Description"} <= fields.keys():
            continue
        yield Package(
            name=fields["Package"],
            source=fields.get("Source", fields["Package"]).split()[0],
            section=fields["Section"].rsplit("/", 1)[-1],
            synopsis=fields["Description"].strip(),
            longer=longer.get(fields.get("Description-md5", ""), ""),
        )


def _first_paragraphs(translations: str) -> Iterator[tuple[str, str]]:
    """(MD5 of the description, first paragraph after the synopsis on one line)."""
    for stanza in translations.split("\n\n"):
        lines = stanza.splitlines()
        key = next((line.split()[1] for line in lines if line.startswith("Description-md5: ")), None)
        first = next((i for i, line in enumerate(lines) if line.startswith("Description-en:")), None)
        if key is None or first is None:
            continue
        paragraph: list[str] = []
        for line in lines[first + 1 :]:
            if not line.startswith(" ") or line.rstrip() == _PARAGRAPH_END:
                break
            paragraph.append(line.strip())
        yield key, " ".join(paragraph)


def _ask_apt(lists: Path) -> Iterator[Package]:
    helper = "/usr/lib/apt/apt-helper"
    for tool in ("apt-get", "apt-cache", helper):
        if shutil.which(tool) is None:
            raise BackendError(f"the text experiment needs {tool}: run it on Debian or a system made from it")
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    apart = {"Dir::State::Lists": lists.resolve(), "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": ""}
    # "none" may be in the machine's list of languages, and an element cannot be taken out: English comes first.
    wanted = ["Acquire::Languages=en", "Acquire::Languages::=en", "APT::Sandbox::User=root"]
    options = [f"-o{option}" for option in (*(f"{key}={value}" for key, value in apart.items()), *wanted)]
    _run(["apt-get", "update", "-q", *options])
    translations = [str(path) for path in sorted(lists.glob("*Translation-en*"))]
    if not translations:
        raise SoupError("apt fetched no English descriptions", file=lists)
    text = "\n\n".join(_run([helper, "cat-file", path]) for path in translations)
    return parse(_run(["apt-cache", "dumpavail", *options]), text)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SoupError(f"{command[0]} failed: {reason}", found=f"exit code {done.returncode}")
    return done.stdout
