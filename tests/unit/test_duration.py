"""Times as people read them."""

from __future__ import annotations

import pytest

from doratune.duration import about


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about 1 s"),
        (7.3, "about 7 s"),
        (43, "about 40 s"),
        (88, "about 1 min 30 s"),
        (600, "about 10 min"),
        (5000, "about 1 h 23 min"),
        (12_634, "about 3 h 30 min"),
        (14_400, "about 4 h"),
    ],
)
def test_an_estimate_is_rounded(seconds: float, text: str) -> None:
    assert about(seconds) == text
