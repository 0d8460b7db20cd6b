from __future__ import annotations

import pytest

from doratune.report import numbers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.25, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (112.3, "1 min 52 s"),
        (3599.7, "1 h 00 min"),
        (3 * 3600 + 5 * 60 + 29, "3 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.031, "p = 0.031"), (1.0, "p = 1.000"), (0.001, "p = 0.001"), (0.00099, "p < 0.001")]
)
def test_p_value(p: float, text: str) -> None:
    assert numbers.p_value(p) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [(1.5, "+1.5 points"), (-0.25, "−0.2 points"), (0.0, "0.0 points"), (-0.01, "0.0 points")],
)
def test_points(difference: float, text: str) -> None:
    assert numbers.points(difference) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (2_441_216, "2.44 M"), (6_738_415_616, "6.74 B"), (1_200, "1.20 k")]
)
def test_large(count: int, text: str) -> None:
    assert numbers.large(count) == text


def test_the_other_formats() -> None:
    assert numbers.percent(0.805) == "80.5 %"
    assert numbers.percent(0.01812, 2) == "1.81 %"
    assert numbers.interval((0.7634, 0.8412)) == "76.3–84.1"
    assert numbers.gigabytes(2_210_000_000) == "2.21 GB"
    assert numbers.rate(1234.5) == "1,234"
    assert numbers.rate(3.21) == "3.2"
    assert numbers.signed(0.831, 2) == "+0.83"
    assert numbers.signed(-0.31, 2) == "−0.31"
    assert numbers.signed(-0.004, 2) == "0.00"
    assert numbers.signed_interval((-0.44, 2.83)) == "−0.4 to +2.8"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0002, "2e-4"), (0.00015, "1.5e-4"), (1e-5, "1e-5"), (1.0, "1e0"), (0.000299999, "3e-4")],
)
def test_learning_rate(rate: float, text: str) -> None:
    assert numbers.learning_rate(rate) == text
