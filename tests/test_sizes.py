"""Byte counts as text: exact, and junk refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysoup.errors import SoupError
from pysoup.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("12", 12),
        ("12B", 12),
        ("512k", 512_000),
        ("512kB", 512_000),
        ("512 KiB", 524_288),
        ("64MiB", 67_108_864),
        ("64mib", 67_108_864),
        ("64Mi", 67_108_864),
        (" 1GB ", 1_000_000_000),
        ("1.5GiB", 1_610_612_736),
        (".5k", 500),
        ("2.k", 2_000),
        ("0.0001k", 0),
        ("8000P", 8_000_000_000_000_000_000),
        (4096, 4096),
    ],
)
def test_size_is_read_as_people_write_it(text: str | int, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "junk",
    [
        "",
        " ",
        "B",
        "MiB",
        "lots",
        "1 2",
        "-1",
        "-1MiB",
        "+1",
        "1e6",
        "nan",
        "inf",
        "1,5k",
        "1ib",
        "1KK",
        "\u0661",
        "0x10",
        "9223372036854775808",
        "9000000TiB",
        "1" * 5000,
        -1,
        2**63,
        None,
        True,
        1.5,
    ],
)
def test_size_that_is_junk_is_refused_in_one_line(junk: object) -> None:
    with pytest.raises(SoupError) as caught:
        parse_size(junk)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(
    st.decimals(min_value=0, max_value=8, places=12),
    st.sampled_from([("k", 1), ("M", 2), ("G", 3), ("T", 4), ("P", 5)]),
    st.booleans(),
)
def test_size_is_exact_for_any_fraction(number: object, prefix: tuple[str, int], binary: bool) -> None:
    unit = (1024 if binary else 1000) ** prefix[1]
    assert parse_size(f"{number:f}{prefix[0]}{'i' if binary else ''}B") == int(Fraction(str(number)) * unit)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (605_207_340, "605.2 MB"),
        (2**62, "4611.7 PB"),
    ],
)
def test_size_is_shown_with_one_to_three_digits(count: int, text: str) -> None:
    assert format_size(count) == text
