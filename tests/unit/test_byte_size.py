"""Sizes of files in readable form."""

from __future__ import annotations

import pytest

from doratune.byte_size import byte_size


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (507_288, "507 kB"),
        (999_700, "1.00 MB"),
        (34_100_000, "34.1 MB"),
        (2_210_000_000, "2.21 GB"),
        (1_234_500_000_000, "1,234 GB"),
    ],
)
def test_three_digits(count: int, said: str) -> None:
    assert byte_size(count) == said
