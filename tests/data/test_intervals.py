from itertools import product
from math import comb

import numpy as np
import pytest

from common.errors import UserError
from data.intervals import (
    _normal_power_of_flips,
    _power_of_flips,
    holm,
    mcnemar_test,
    mean_interval,
    paired_interval,
    questions_needed,
    rate,
    wilson_interval,
)

# Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score without continuity
# correction).
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


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
    with pytest.raises(UserError, match=f"{successes} successes in {total} trials"):
        wilson_interval(successes, total)


def test_rate():
    low, high = wilson_interval(15, 148)
    assert rate(15, 148) == {"count": 15, "total": 148, "rate": 15 / 148, "low": low, "high": high}


def test_mcnemar_counts_every_outcome_at_least_as_extreme():
    for lost, gained in product(range(7), range(7)):
        flips = lost + gained
        outcomes = [sum(sides) for sides in product((0, 1), repeat=flips)]
        as_extreme = sum(abs(2 * outcome - flips) >= abs(lost - gained) for outcome in outcomes)
        assert mcnemar_test(lost, gained) == pytest.approx(as_extreme / len(outcomes), rel=1e-12)


def test_mcnemar_by_hand():
    assert mcnemar_test(0, 5) == 2 / 32
    assert mcnemar_test(0, 6) == 2 / 64  # the fewest flips that are significant at 5 %
    assert mcnemar_test(3, 3) == 1.0 and mcnemar_test(0, 0) == 1.0
    assert mcnemar_test(400, 600) == mcnemar_test(600, 400) < 1e-9
    with pytest.raises(UserError, match="lost = -1"):
        mcnemar_test(-1, 2)


def coverage(lost: float, gained: float, total: int) -> float:
    """Chance that the interval of `total` pairs holds the true difference; every outcome counted.

    A pair goes from good to bad with chance `lost`, the other way with chance `gained`.
    """
    covered, most = 0.0, round(total * (lost + gained)) + 40
    for few, many in product(range(most), range(most)):
        stay = total - few - many
        if stay < 0:
            continue
        low, high = paired_interval(few, many, total)
        if low <= gained - lost <= high:
            ways = comb(total, few) * comb(total - few, many)
            covered += ways * lost**few * gained**many * (1 - lost - gained) ** stay
    return covered


@pytest.mark.parametrize(
    ("lost", "gained", "total"),
    [
        (0.005, 0.01, 240),
        (0.01, 0.005, 240),
        (0.0075, 0.0075, 240),
        (0.03, 0.1, 100),
        (0.2, 0.1, 30),
    ],
)
def test_paired_interval_covers_what_it_promises(lost, gained, total):
    assert 0.945 <= coverage(lost, gained, total) <= 0.997


def test_paired_interval_by_hand():
    # Bonett and Price 2012: (f + 1) / (n + 2) of each kind of flip.
    low, high = paired_interval(3, 12, 80)
    difference, sum_of_shares = (13 - 4) / 82, (13 + 4) / 82
    half = 1.959964 * ((sum_of_shares - difference**2) / 82) ** 0.5
    assert (low, high) == pytest.approx((difference - half, difference + half), rel=1e-12)
    assert paired_interval(12, 3, 80) == pytest.approx((-high, -low), rel=1e-12)


def test_paired_interval_at_the_edges():
    low, high = paired_interval(0, 0, 10)
    assert low == -high and 0.1 < high < 0.5  # no flip seen is not: none to come
    assert paired_interval(0, 10, 10)[1] == 1.0
    for counts in [(-1, 0, 5), (3, 3, 5), (0, 0, 0)]:
        with pytest.raises(
            UserError, match=f"lost = {counts[0]}, gained = {counts[1]} of {counts[2]} pairs"
        ):
            paired_interval(*counts)


def test_holm_by_hand():
    # Holm 1979: the smallest times 4, the next times 3, ..., none below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_mean_interval_shrinks_with_the_root_of_the_sample():
    values = np.random.default_rng(0).exponential(size=900)
    low, high = mean_interval(values)
    error = values.std() / 30
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )
    assert mean_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(UserError, match="no values"):
        mean_interval([])


def power_by_enumeration(total: int, flipped: float, gained: float) -> float:
    """Chance that the exact test is significant at 5 %, over everything that can happen."""
    power = 0.0
    for flips in range(total + 1):
        of_flips = comb(total, flips) * flipped**flips * (1 - flipped) ** (total - flips)
        found = [k for k in range(flips + 1) if mcnemar_test(k, flips - k) <= 0.05]
        power += of_flips * sum(
            comb(flips, k) * gained**k * (1 - gained) ** (flips - k) for k in found
        )
    return power


@pytest.mark.parametrize(
    ("difference", "flipped"), [(0.2, 0.35), (-0.2, 0.35), (0.3, 0.4), (0.4, 0.4)]
)
def test_that_many_questions_show_it_four_times_in_five(difference, flipped):
    total = questions_needed(difference, flipped)
    gained = (flipped + difference) / 2 / flipped
    assert power_by_enumeration(total, flipped, gained) >= 0.8
    assert power_by_enumeration(total - 1, flipped, gained) < 0.8


def test_the_exact_test_needs_more_than_the_score_test():
    # Connor 1987 as worked by two public calculators (powerandsamplesize.com): 23 and 155.
    assert 23 <= questions_needed(0.40, 0.50) <= 23 * 1.15
    assert 155 <= questions_needed(0.15, 0.45) <= 155 * 1.15
    assert questions_needed(-0.15, 0.45) == questions_needed(0.15, 0.45)


@pytest.mark.parametrize("one_sided", [0.5, 0.6, 0.7, 1.0])
def test_the_approximation_for_many_flips_joins_the_exact_power(one_sided):
    flips = range(380, 401)  # a power is always a mean over many numbers of flips
    exact = np.mean([_power_of_flips(count, one_sided, 0.05) for count in flips])
    near = np.mean([_normal_power_of_flips(count, one_sided, 0.05) for count in flips])
    assert near == pytest.approx(exact, abs=0.002)


def test_no_difference_needs_no_end_of_questions():
    assert questions_needed(0.0, 0.3) is None
    assert questions_needed(1e-6, 0.5) is None  # more than 10**9
    with pytest.raises(UserError, match=r"difference = 0\.4, flipped = 0\.3"):
        questions_needed(0.4, 0.3)
