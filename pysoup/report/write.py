"""``pysoup report``: a page, or the same content in another format, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoint.output.publish import publish_file, remove, remove_stale, temporary_path
from ..errors import OutputError, SoupError
from .collect import EVALUATIONS, RESULTS, TRACE, collect
from .content import Content
from .page import page
from .plain import as_csv, as_json, as_markdown

FORMATS: dict[str, Callable[[Content], str]] = {"html": page, "md": as_markdown, "json": as_json, "csv": as_csv}


def write_report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    format: str | None = None,
    overwrite: bool = True,
) -> Content:
    """Report on ``runs`` (directories, see :func:`.collect.collect`) in one file, and return what it tells.

    ``format`` is ``"html"``, ``"md"``, ``"json"`` or ``"csv"``, by default what the name ends in. No torch is needed.
    Raises :class:`SoupError` for directories without results and formats that there are not, :class:`OutputError` where
    the file cannot be written, or exists and is not to be overwritten.
    """
    target = Path(output)
    kind = format or target.suffix.removeprefix(".").lower().replace("htm", "html").replace("htmll", "html")
    if kind not in FORMATS:
        raise SoupError("unknown format of a report", found=repr(kind), expected=" or ".join(FORMATS))
    if target.exists() and not overwrite:
        raise OutputError("the output exists; overwrite=True replaces it", file=target)
    if target.name in (TRACE, RESULTS, EVALUATIONS):
        raise OutputError("a report of that name would stand where results do; another name", file=target)
    content = collect([runs] if isinstance(runs, (str, os.PathLike)) else runs)
    text = FORMATS[kind](content)
    temporary = temporary_path(target)
    try:
        remove_stale(target)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        publish_file(temporary, target, overwrite)
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}", file=target) from error
    finally:
        remove(temporary)
    return content
