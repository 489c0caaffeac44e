"""The reader of JSON objects: what it takes is what `json` takes, wherever blocks end, and its memory is bounded."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysoup.checkpoint.strict_json import (
    BLOCK,
    MAX_JSON_BYTES,
    MAX_STRING_KEYS,
    MAX_STRINGS,
    MAX_VALUE,
    JsonReader,
    parse_strings,
)
from pysoup.errors import CheckpointError

FILE = Path("some.json")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(0, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
documents = st.dictionaries(
    st.text(max_size=6),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)),
    max_size=5,
)


def _pieces(rng: random.Random, raw: bytes) -> Iterator[bytes]:
    while raw:
        size = rng.randint(1, 7)
        yield raw[:size]
        raw = raw[size:]


def _read(blocks: Iterator[bytes] | list[bytes], inner: bool = False) -> dict[str, object] | str:
    """The document, or the error; with ``inner``, objects in it are walked member by member too."""
    reader = JsonReader(blocks, FILE, "text")
    result: dict[str, object] = {}
    try:
        for name in reader.members():
            if inner and reader.peek() == "{":
                result[name] = {key: reader.value() for key in reader.members()}
            else:
                result[name] = reader.value()
        reader.end()
    except CheckpointError as error:
        text = str(error)
    else:
        return result
    assert text.startswith("some.json: text ")
    assert "\n" not in text
    return text


def _json_reads(raw: bytes) -> dict[str, object] | None:
    """The same, by the standard library, told to be strict."""

    def refuse(*_: object) -> None:
        raise ValueError

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        return dict(pairs) if len(dict(pairs)) == len(pairs) else refuse()

    def number(text: str) -> float:
        # What no 64 bits hold is a float here: no size in a header, whatever its digits.
        return float(text) if len(text) > 20 or text == "-0" else int(text)

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse, parse_int=number)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@given(documents, st.sampled_from([None, 0, 3, "\t"]), st.booleans(), st.randoms(use_true_random=False))
def test_documents_are_read_as_json_reads_them_wherever_blocks_end(
    document: dict[str, object], indent: int | str | None, ascii_only: bool, rng: random.Random
) -> None:
    raw = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    assert _read(_pieces(rng, b" \r\n" + raw + b"\t ")) == document
    assert _read([raw], inner=True) == document


@given(documents, st.randoms(use_true_random=False))
def test_damaged_documents_are_refused_when_json_refuses_them(document: dict[str, object], rng: random.Random) -> None:
    raw = bytearray(json.dumps(document, ensure_ascii=False).encode())
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(raw) + 1)
        raw[at : at + rng.randint(0, 2)] = rng.choice(
            (b"", b"1", b"-", b'"', b"\\", b"}", b"]", b",", b"\xe9", b"\x00")
        )
    expected = _json_reads(bytes(raw))
    for read in (_read(_pieces(rng, bytes(raw))), _read([bytes(raw)] if raw else [])):
        assert isinstance(read, str) if expected is None else repr(read) == repr(expected)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "is not valid JSON: Expecting value (character 0)"),
        (b"[", "is not valid JSON: Expecting value"),
        (b"12", "is not a JSON object: found 1"),
        (b'{"a":1}x', "Extra data (character 7)"),
        (b'{"a":1,}', "property name"),
        (b'{"a":1 2}', "Expecting ',' delimiter"),
        (b'{"a" 1}', "Expecting ':' delimiter"),
        (b'{"a":tru', "Expecting value (character 5, in 'a')"),
        (b'{"a":1,"a":1}', "duplicate name 'a'"),
        (b'{"a":{"b":1,"b":1}}', "duplicate name 'b' (character 5, in 'a')"),
        (b'{"a":NaN}', "NaN is not a JSON value (character 5, in 'a')"),
        (b'{"a":"\n"}', "control character"),
        (b'{"a":"\\x"}', "Invalid \\escape"),
        (b'{"aa":"\xc3\xa9","\xff":1}', "bad byte at 12 of the text"),
        (b'{"a":"\xf0\x9f', "bad byte at 6 of the text"),
        (b'{"a":"\xed\xa0\x80"}', "bad byte at 6 of the text"),
    ],
)
def test_faults_are_named_with_their_place(raw: bytes, expected: str) -> None:
    for blocks in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        assert expected in str(_read(blocks))


def test_nesting_too_deep_is_named_wherever_it_is() -> None:
    for start in (b"", b'{"a":', b'{"a":{"b":'):
        assert "is not valid JSON: nested too deeply" in str(_read([start + b"[" * 100_000], inner=True))


def test_values_at_the_limit_are_read_and_longer_ones_refused() -> None:
    for size, fits in ((MAX_VALUE - 2, True), (MAX_VALUE + BLOCK, False)):
        for raw in (b'{"a":"%b"}' % (b"x" * size), b'{"%b":1}' % (b"x" * size), b'{"a":[%b0]}' % (b" " * size)):
            read = _read([raw[i : i + BLOCK] for i in range(0, len(raw), BLOCK)])
            assert isinstance(read, dict) if fits else "too long" in str(read)
    reader = JsonReader([b'{"a":"%b"}' % (b"x" * (3 * MAX_VALUE))], FILE, "text")
    assert [len(str(reader.value(longest=4 * MAX_VALUE))) for _ in reader.members()] == [3 * MAX_VALUE]


def test_objects_of_strings_are_taken_and_all_else_refused() -> None:
    assert parse_strings(b' {"a":"","\\u00e9":"\xc3\xa9"} ', FILE, "ties") == {"a": "", "\u00e9": "\u00e9"}
    for raw, expected in (
        (b"", "ties is not valid JSON"),
        (b'["a"]', "ties is not an object: found ['a'], expected an object of strings"),
        (b'{"a":"b"}}', "ties is not valid JSON: Extra data"),
        (b'{"a":["b"]}', "ties: value of 'a' is not a string: found ['b'], expected a string"),
        (b'{"a":"\\ud800"}', "ties: value of 'a' is not a string"),
        (b'{"\\ud800":"a"}', "is not a string"),
        (b'{"a":"%b","b":"%b"}' % ((b"x" * (MAX_STRINGS // 2),) * 2), "ties is too large"),
        (b"{%b}" % b",".join(b'"%d":""' % i for i in range(MAX_STRING_KEYS + 1)), "ties is too large"),
    ):
        with pytest.raises(CheckpointError) as caught:
            parse_strings(raw, FILE, "ties")
        assert expected in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_digest_tells_texts_apart() -> None:
    digests = set()
    for raw in (b'{"a":1}', b'{"a":2}', b'{"a":1} ', b'{"a":1}'):
        reader = JsonReader([raw], FILE, "text")
        for _ in reader.members():
            reader.value()
        reader.end()
        digests.add(reader.digest)
    assert len(digests) == 3


# What would become gigabytes of objects: beginning, and what is repeated up to the limit of a header.
HOSTILE = {
    "lists": (b'{"a":[', b"[],"),
    "objects": (b'{"a":[', b'{"":0},'),
    "depth": (b'{"a":', b"["),
    "depth of objects": (b'{"a":', b'{"":'),
    "blanks": (b"{", b" "),
    "name": (b'{"', b"a"),
    "escapes": (b'{"', b"\\n"),
    "digits": (b'{"a":', b"1"),
    "fraction": (b'{"a":0.', b"0"),
    "wide string": ('{"a":"\U0001f600'.encode(), b"a"),
    "inner members": (b'{"a":{"b":[', b"1.5,"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_of_100_megabytes_is_refused_in_bounded_memory(case: str) -> None:
    start, unit = HOSTILE[case]
    unit *= BLOCK // len(unit)
    blocks = (start if i == 0 else unit for i in range(MAX_JSON_BYTES // len(unit)))
    tracemalloc.start()
    try:
        text = _read(blocks, inner=case == "inner members")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(text, str)
    assert len(text) < 1000
    assert peak < 64 << 20


def test_names_met_before_are_all_that_a_long_text_costs() -> None:
    count = 100_000
    raw = b"{" + b",".join(b'"%d":{"shape":[1,2,3],"dtype":"F32"}' % i for i in range(count)) + b"}"
    reader = JsonReader((raw[i : i + BLOCK] for i in range(0, len(raw), BLOCK)), FILE, "text")
    tracemalloc.start()
    try:
        assert sum(reader.value() is not None for _ in reader.members()) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A str of so few characters takes 54 bytes, its place in a set up to 64 (and half as much again while it grows).
    assert peak < 170 * count
