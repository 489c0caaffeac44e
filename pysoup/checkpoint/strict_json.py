"""JSON as the safetensors format means it: UTF-8, no duplicate keys, no NaN, no surprises from hostile text."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path

from ..errors import CheckpointError

MAX_JSON_BYTES = 100_000_000
"""The safetensors library's own limit for a header; no index file comes near it either."""

_U64_DIGITS = 20


def parse_strict(raw: bytes | bytearray, file: Path, what: str) -> dict[str, object]:
    """The JSON object in ``raw``. Raises CheckpointError, with ``what`` ("header", "index") in the text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not UTF-8: bad byte at {error.start} of the {what}", file=file) from None
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_integer)
    except RecursionError:
        raise CheckpointError(f"{what} is not valid JSON: nested too deeply", file=file) from None
    except ValueError as error:
        raise CheckpointError(f"{what} is not valid JSON: {error}", file=file) from None
    if type(value) is not dict:
        raise CheckpointError(f"{what} is not a JSON object", file=file, found=describe(value), expected="an object")
    return value


def describe(value: object) -> str:
    """A short text for a value from a hostile file, whatever its size."""
    return reprlib.repr(value)


def clip(name: str, limit: int = 200) -> str:
    """A tensor name fit for one line."""
    return name if len(name) <= limit else f"{name[:limit]}... ({len(name)} characters)"


def is_text(value: object) -> bool:
    """Whether ``value`` is a string that UTF-8 can hold: JSON escapes can spell lone surrogates, which it cannot."""
    if type(value) is not str:
        return False
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return True


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate name {clip(key)!r}")
            seen.add(key)
    return result


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not a JSON value")


def _integer(text: str) -> int | float:
    """Anything that is no u64 becomes a float, which every later check refuses (``-0`` too: it is a float in Rust).

    This keeps ``int()`` away from numbers of more than 4,300 digits, which it refuses to convert.
    """
    return int(text) if len(text) <= _U64_DIGITS and text != "-0" else float(text)
