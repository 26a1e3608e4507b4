import pytest

from data.statistics import rate, wilson_interval

# Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score without continuity correction).
NEWCOMBE = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize(("successes", "total", "low", "high"), NEWCOMBE)
def test_published_intervals(successes, total, low, high):
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_the_bounds_solve_the_score_equation():
    for successes, total, z in [(3, 10, 1.0), (499, 1319, 1.959964), (1, 2, 2.5758)]:
        for bound in wilson_interval(successes, total, z):
            distance = abs(successes / total - bound)
            assert distance == pytest.approx(z * (bound * (1 - bound) / total) ** 0.5, rel=1e-9)


def test_the_default_is_95_percent():
    assert wilson_interval(15, 148) == wilson_interval(15, 148, z=1.959964)


@pytest.mark.parametrize("total", [*range(1, 60), 1319, 10**6])
def test_the_ends_are_exact(total):
    low, high = wilson_interval(0, total)
    assert low == 0.0 and 0 < high < 1
    assert wilson_interval(total, total) == pytest.approx((1 - high, 1.0), abs=1e-12)
    assert wilson_interval(total, total)[1] == 1.0


def test_no_trials_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert rate(0, 0) == {"count": 0, "total": 0, "rate": None, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (1, 0)])
def test_impossible_counts_are_refused(successes, total):
    with pytest.raises(ValueError, match=f"{successes} successes in {total} trials"):
        wilson_interval(successes, total)


def test_rate():
    low, high = wilson_interval(15, 148)
    assert rate(15, 148) == {"count": 15, "total": 148, "rate": 15 / 148, "low": low, "high": high}
