"""The parts of a model that get mixing weights of their own: all of it, its layers, its tensors, or by patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ...errors import SoupError

Granularity = str | Sequence[str] | Mapping[str, str]
"""``"model"``, ``"layer"``, ``"tensor"``, a list of regular expressions, or a dictionary of these by name."""

KINDS = ("model", "layer", "tensor")
REST = "rest"
"""The granule of the tensors that no pattern takes."""


def granules_of(granularity: Granularity, names: Sequence[str]) -> dict[str, list[str]]:
    """The granules by name, in the order of the model: a partition of the tensor ``names``.

    ``"model"``: one granule. ``"layer"``: the tensors of each module that has some of its own, such as weight and bias
    of a ``Linear``. ``"tensor"``: each is one, which the paper calls by layer (appendix I). Patterns are
    searched for in the names (``re.search``), and the first that is found takes the tensor. One with groups in
    parentheses makes a granule for each text that these match, so ``r"(blocks\\.\\d+)\\."`` is one for each block. What
    no pattern takes is one more granule, ``"rest"``.

    Raises :class:`SoupError` for another granularity, a pattern that is none or takes no tensor, and a model without
    tensors to average.
    """
    if not names:
        raise SoupError("the model has no tensors to average")
    if isinstance(granularity, str):
        if granularity not in KINDS:
            expected = f"{', '.join(KINDS)}, a list of patterns or a dictionary of them"
            raise SoupError("unknown granularity", found=repr(granularity), expected=expected)
        if granularity == "model":
            return {"model": list(names)}
        return _gathered((_layer(name) if granularity == "layer" else name, name) for name in names)
    return _by_patterns(_patterns(granularity), names)


def _layer(name: str) -> str:
    """The module that has the tensor; of one that the model itself has, its own name."""
    return name.rpartition(".")[0] or name


def _gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    granules: dict[str, list[str]] = {}
    for granule, name in pairs:
        granules.setdefault(granule, []).append(name)
    return granules


def _patterns(granularity: Sequence[str] | Mapping[str, str]) -> list[tuple[str, re.Pattern[str]]]:
    """Of each, the name of its granule ("": what it matches)."""
    pairs = list(granularity.items()) if isinstance(granularity, Mapping) else [("", text) for text in granularity]
    if not pairs:
        raise SoupError("no patterns for granules", expected="at least one")
    return [(str(name), _compiled(text)) for name, text in pairs]


def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise SoupError(f"not a pattern for granules: {error}", found=repr(text)) from None


def _by_patterns(patterns: Sequence[tuple[str, re.Pattern[str]]], names: Sequence[str]) -> dict[str, list[str]]:
    taken = [False] * len(patterns)

    def granule(name: str) -> str:
        for index, (title, pattern) in enumerate(patterns):
            match = pattern.search(name)
            if match is not None:
                taken[index] = True
                parts = [part for part in match.groups() if part is not None]
                return ".".join([title, *parts] if title else parts) or pattern.pattern
        return REST

    granules = _gathered([(granule(name), name) for name in names])
    for (_, pattern), used in zip(patterns, taken, strict=True):
        if not used:
            raise SoupError(
                "a pattern for granules takes no tensor", found=repr(pattern.pattern), expected=f"one like {names[0]!r}"
            )
    return granules
