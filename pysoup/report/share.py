"""A soup as a directory that can be shared: weights as Hugging Face loaders take them, config and tokenizer, a card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoint import Checkpoint, CheckpointWriter, open_checkpoint
from ..checkpoint.output.carry import files_for_dtype, find_carried
from ..checkpoint.output.model_card import FILE_NAME, CardFacts, model_card
from ..checkpoint.output.shards import SINGLE_FILE, reshard
from ..dtypes import DType
from ..errors import SoupError
from ..file_plan import Member
from ..record import read_json
from ..sizes import parse_size
from .collect import EVALUATIONS, RESULTS, TRACE, collect
from .content import Content
from .methods import columns, values
from .scores import HELDOUT, percent, value_text

WEIGHTS = "soup.safetensors"
_CHUNK = 16 << 20


@dataclass
class Shared:
    """What :func:`share_soup` wrote: the directory, its files, and what should be known about it."""

    output: Path
    files: list[str]
    notes: list[str] = field(default_factory=list)


def share_soup(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    license: str | None = None,
    shard_size: str | int | None = None,
    overwrite: bool = False,
) -> Shared:
    """Write the soup in ``run``, the directory of a recipe, to the directory ``output``, ready for sharing.

    It gets ``model.safetensors`` (in shards of ``shard_size`` bytes, if given), the config and tokenizer files of the
    directory ``config`` (default: the first ingredient's, if that is a model's directory), and a model card,
    ``README.md``, with the scores that are in ``run``, the ingredients and their weights. ``license`` is its licence
    field; nobody else can know it, so without one the card has a place for it and a note says so. Weights pass through
    a buffer of 16 MiB; no torch is needed. Written beside the target and renamed.

    Raises :class:`SoupError` for an ensemble, which has no weights, and for a directory without a soup;
    :class:`OutputError` where ``output`` has files, unless ``overwrite``.
    """
    source = Path(run)
    if not source.is_dir():
        raise SoupError("no such directory", file=source)
    trace = read_json(source / TRACE)
    if trace is None or "recipe" not in trace:
        raise SoupError("not the directory of a recipe", file=source, expected=f"{WEIGHTS} and {TRACE}")
    if not (source / WEIGHTS).is_file():
        ensemble = str(trace["recipe"]).endswith("ensemble")
        what = "an ensemble has no weights of its own to share" if ensemble else "the soup's weights are not there"
        raise SoupError(what, file=source / WEIGHTS)
    soup = open_checkpoint(source / WEIGHTS)
    notes: list[str] = []
    folder = _config(config, trace, notes)
    layout = [(SINGLE_FILE, [(name, soup.entry(name).dtype, soup.entry(name).shape) for name in soup])]
    if shard_size is not None:
        layout = reshard(layout, parse_size(shard_size))
    if license is None:
        notes.append(f"the licence field of {FILE_NAME} is yours to fill in, as the ingredients' licences allow")
    content = collect([source]) if (source / RESULTS).exists() or (source / EVALUATIONS).exists() else None
    files = {FILE_NAME: _card(Path(output), trace, content, license, is_transformers=_is_transformers(folder)).encode()}
    if folder is not None and (dtype := _one_type(soup)) is not None:
        files |= files_for_dtype(folder, dtype)
    metadata = {key: value for key, value in soup.metadata.items() if key != "pysoup.aliases"}
    with CheckpointWriter(
        output,
        layout,
        metadata=metadata,
        aliases=soup.aliases,
        is_directory=True,
        overwrite=overwrite,
        inputs=[soup],
        carry=folder,
        files=files,
    ) as writer:
        _copy(soup, writer)
        writer.commit()
    notes += [f"not copied from {folder}: {name}" for name in writer.left]
    return Shared(Path(output), sorted({*writer.shards, *files, *writer.carried}), notes)


def _copy(soup: Checkpoint, writer: CheckpointWriter) -> None:
    member = Member(soup)
    try:
        member.open()
        for name in soup:
            entry = soup.entry(name)
            for start in range(0, entry.nbytes, _CHUNK):
                writer.write_bytes(name, member.read(entry, start, min(_CHUNK, entry.nbytes - start)), start)
        member.check_unchanged()
    finally:
        member.close()


def _config(given: str | os.PathLike[str] | None, trace: Mapping[str, Any], notes: list[str]) -> Path | None:
    """Where config and tokenizer files come from; None, with a note, where nobody knows."""
    if given is not None:
        folder = Path(given)
        if not folder.is_dir():
            raise SoupError("not a directory with config and tokenizer files", file=folder)
        return folder
    ingredients = trace.get("ingredients")
    first = Path(str(ingredients[0])) if isinstance(ingredients, list) and ingredients else None
    # The folder of a sweep has other files: only one with a config is a model's.
    for folder in () if first is None else (first, first.parent):
        if _is_transformers(folder) and find_carried(folder).names:
            notes.append(f"config and tokenizer files are those of {folder}")
            return folder
    notes.append("no config and tokenizer files: the first ingredient's directory has none; --config DIR names another")
    return None


def _is_transformers(folder: Path | None) -> bool:
    return folder is not None and (folder / "config.json").is_file()


def _one_type(soup: Checkpoint) -> DType | None:
    types = {soup.entry(name).dtype for name in soup if soup.entry(name).dtype.kind == "float"}
    return next(iter(types)) if len(types) == 1 else None


def _card(
    output: Path, trace: Mapping[str, Any], content: Content | None, license: str | None, *, is_transformers: bool
) -> str:
    ingredients = [str(name) for name in trace.get("ingredients") or []]
    weights = [float(weight) for weight in trace.get("weights") or []]
    if not ingredients or len(weights) != len(ingredients):
        raise SoupError("a trace without ingredients and their weights", file=output)
    options = trace.get("options")
    known = options.items() if isinstance(options, Mapping) else ()
    # Their names are words of ours; anything else in a file's place for them is left out.
    settings = {str(k).replace("_", " "): _text(v) for k, v in known if v is not None and str(k).isidentifier()}
    if trace.get("score") is not None:
        settings["held-out score, by which it was selected"] = value_text(trace["score"], str(trace.get("metric")))
    notes = trace.get("notes")
    table = None if content is None else _scores(content)
    return model_card(
        CardFacts(
            title=output.resolve().name,
            ingredients=ingredients,
            weights=weights,
            version=str(trace.get("pysoup", __version__)),
            method=f"{trace['recipe']} soup",
            settings=settings,
            notes=[str(note) for note in notes] if isinstance(notes, list) else (),
            scores=table,
            to_share=True,
            license=license,
            library="transformers" if is_transformers else None,
        )
    )


def _scores(content: Content) -> tuple[list[str], list[list[str]]] | None:
    """Header and lines of the table of scores: the soup, and single models where they were evaluated."""
    if not content.rows or not content.tests:
        return None
    unit = " (%)" if percent(content.metric) else ""
    names = [f"{'held-out' if name == HELDOUT else name}" for name in columns(content)]
    lines = [
        [row.label, *(value_text(value, content.metric) for value in values(content, row))] for row in content.rows
    ]
    return [f"{content.metric}{unit}", *names], lines


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
