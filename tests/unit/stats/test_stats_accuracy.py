import pytest
from scipy.stats import binomtest

from doratune.errors import InputError
from doratune.stats.accuracy import accuracy_with_interval, majority_share


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3: the Wilson score interval.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_wilson_intervals(correct, total, low, high):
    result = accuracy_with_interval(correct, total)
    assert result.value == correct / total
    assert (round(result.low, 4), round(result.high, 4)) == (low, high)


@pytest.mark.parametrize(("correct", "total"), [(322, 400), (0, 1), (1, 1), (5, 10), (7, 7), (1999, 3270)])
def test_same_as_scipy(correct, total):
    wanted = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    result = accuracy_with_interval(correct, total)
    assert result.low == pytest.approx(wanted.low, abs=1e-12)
    assert result.high == pytest.approx(wanted.high, abs=1e-12)
    assert 0 <= result.low <= result.value <= result.high <= 1


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(InputError):
        accuracy_with_interval(correct, total)


def test_majority_share():
    assert majority_share(["true", "false", "true", "true"]) == 0.75
    assert majority_share([0, 1, 2, 2, 1, 0, 2]) == 3 / 7
    assert majority_share([3]) == 1.0
    with pytest.raises(InputError):
        majority_share([])
