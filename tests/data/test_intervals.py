from itertools import product
from math import comb

import numpy as np
import pytest

from data.intervals import (
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
    with pytest.raises(ValueError, match=f"{successes} successes in {total} trials"):
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
    with pytest.raises(ValueError, match="lost = -1"):
        mcnemar_test(-1, 2)


def test_paired_interval_is_that_of_resampled_pairs():
    lost, gained, total = 3, 12, 80
    pairs = np.array([-1] * lost + [1] * gained + [0] * (total - lost - gained))
    draws = np.random.default_rng(1).choice(pairs, size=(20_000, total)).mean(1)
    low, high = paired_interval(lost, gained, total)
    assert (low, high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=1 / total)
    assert paired_interval(lost, gained, total) == (low, high)  # seeded
    assert paired_interval(gained, lost, total) == pytest.approx((-high, -low), abs=1 / total)
    assert low < (gained - lost) / total < high


def test_paired_interval_at_the_edges():
    assert paired_interval(0, 0, 10) == (0.0, 0.0)
    assert paired_interval(0, 10, 10) == (1.0, 1.0)
    for counts in [(-1, 0, 5), (3, 3, 5), (0, 0, 0)]:
        with pytest.raises(
            ValueError, match=f"lost = {counts[0]}, gained = {counts[1]} of {counts[2]} pairs"
        ):
            paired_interval(*counts)


def test_mean_interval_shrinks_with_the_root_of_the_sample():
    values = np.random.default_rng(0).exponential(size=900)
    low, high = mean_interval(values)
    error = values.std() / 30
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )
    assert mean_interval([0.25]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_published_sample_sizes():
    # Connor 1987 as worked by two public calculators (powerandsamplesize.com; shares 0.45 and 0.30
    # with ratio 2)
    assert questions_needed(0.40, 0.50) == 23
    assert questions_needed(0.15, 0.45) == 155
    assert questions_needed(-0.15, 0.45) == 155


@pytest.mark.parametrize(("difference", "flipped"), [(0.1, 0.3), (0.06, 0.2), (0.06, 0.3)])
def test_that_many_questions_do_find_it_four_times_in_five(difference, flipped):
    total = questions_needed(difference, flipped)
    gained, power = (flipped + difference) / 2 / flipped, 0.0
    for flips in range(
        total + 1
    ):  # the score test that the formula is about, over all its outcomes
        of_flips = comb(total, flips) * flipped**flips * (1 - flipped) ** (total - flips)
        found = [k for k in range(flips + 1) if (2 * k - flips) ** 2 > 1.959964**2 * flips]
        power += of_flips * sum(
            comb(flips, k) * gained**k * (1 - gained) ** (flips - k) for k in found
        )
    assert power == pytest.approx(0.8, abs=0.01)


def test_no_difference_needs_no_end_of_questions():
    assert questions_needed(0.0, 0.3) is None
    with pytest.raises(ValueError, match=r"difference = 0\.4, flipped = 0\.3"):
        questions_needed(0.4, 0.3)
