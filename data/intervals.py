"""Shares with their uncertainty: intervals, paired tests, and how many questions a test needs.

numpy is imported where it is used: `report.py --help` and the tasks do without.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from common.errors import UserError

RESAMPLES = 10_000
Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution
EXACT_FLIPS = 400  # up to so many flips the power is summed outcome by outcome
MAX_QUESTIONS = 10**9  # more than any test set has


def wilson_interval(successes: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22:209-212); (0, 1) when there is no trial.

    95 % by default. Unlike the textbook interval p +- z*sqrt(p(1-p)/n) it stays within [0, 1] and
    holds for few trials and for shares near 0 and 1.
    """
    if not 0 <= successes <= total:
        raise UserError(
            f"{successes} successes in {total} trials: expected 0 <= successes <= trials"
        )
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the bounds are exactly 0 and 1; rounding would miss them.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == total else middle + half
    return low, high


def rate(count: int, total: int) -> dict[str, Any]:
    """A share as the summaries hold it, with its 95 % Wilson bounds.

    `count`, `total`, `rate` (None without trials), `low` and `high`.
    """
    low, high = wilson_interval(count, total)
    return {
        "count": count,
        "total": total,
        "rate": count / total if total else None,
        "low": low,
        "high": high,
    }


def mcnemar_test(lost: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947, Psychometrika 12:153-157).

    Of the pairs whose outcome changed, `lost` went from good to bad and `gained` from bad to good.
    H0: a flip is equally likely in both directions, so that `lost` is binomial with one half. Pairs
    that did not change say nothing.
    """
    if lost < 0 or gained < 0:
        raise UserError(f"lost = {lost}, gained = {gained}: expected counts of at least 0")
    flips = lost + gained
    tail = sum(math.comb(flips, i) for i in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**flips)  # whole numbers until here: exact for any count


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several tests (Holm 1979, Scand. J. Statist. 6:65-70).

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at
    most alpha, however the tests depend on each other. In the order given.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def paired_interval(lost: int, gained: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Interval of the difference in shares, (gained - lost) / total, of `total` pairs.

    Adjusted Wald interval (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479-488): one imaginary
    flip in each direction is added. 95 % by default, which it covers also for few pairs and few
    flips. It has a width where nothing flipped, and may not hold the difference where all did.
    """
    if min(lost, gained) < 0 or lost + gained > total or total < 1:
        raise UserError(
            f"lost = {lost}, gained = {gained} of {total} pairs: expected lost + gained <= pairs"
        )
    share_lost, share_gained = (lost + 1) / (total + 2), (gained + 1) / (total + 2)
    difference = share_gained - share_lost
    variance = (share_lost + share_gained - difference**2) / (total + 2)
    half = z * math.sqrt(variance)
    return max(-1.0, difference - half), min(1.0, difference + half)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of the mean of `values`."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise UserError("no values, so no mean")
    generator = np.random.default_rng(seed)
    means = [
        array[generator.integers(len(array), size=len(array))].mean() for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def questions_needed(
    difference: float, flipped: float, power: float = 0.8, significance: float = 0.05
) -> int | None:
    """Paired questions with which the exact McNemar test finds a difference with chance `power`.

    `difference` in shares, of which `flipped` changed in either direction; the test is two-sided at
    `significance`. The power is summed over how many flips there may be and, up to EXACT_FLIPS of
    them, over how they may fall. None for no difference, which no number of questions shows, and
    for one that MAX_QUESTIONS would not show.
    """
    if not abs(difference) <= flipped <= 1:
        raise UserError(
            f"difference = {difference}, flipped = {flipped}: expected |difference| <= flipped <= 1"
        )
    if difference == 0:
        return None
    start = _asymptotic_questions(abs(difference), flipped, power, significance)
    if start > MAX_QUESTIONS:
        return None
    one_sided = (1 + abs(difference) / flipped) / 2  # share of the flips in the frequent direction
    low, high = 0, start
    while mcnemar_power(high, flipped, one_sided, significance) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if mcnemar_power(middle, flipped, one_sided, significance) < power:
            low = middle
        else:
            high = middle
    return high


def _asymptotic_questions(
    difference: float, flipped: float, power: float, significance: float
) -> int:
    """The same for the score test, without its discreteness (Connor 1987, Biometrics
    43:207-211).
    """
    quantile = NormalDist().inv_cdf
    null = quantile(1 - significance / 2) * math.sqrt(flipped)
    alternative = quantile(power) * math.sqrt(flipped - difference**2)
    questions = ((null + alternative) / difference) ** 2
    return math.ceil(min(questions, 2 * MAX_QUESTIONS))


def mcnemar_power(
    questions: int, flipped: float, one_sided: float, significance: float = 0.05
) -> float:
    """Chance that the exact McNemar test is significant.

    Each of `questions` pairs flips with chance `flipped`; `one_sided` (0.5 to 1) is the chance that
    a flip goes in the more frequent direction.
    """
    spread = 7 * math.sqrt(questions * flipped * (1 - flipped)) + 7
    first = max(0, math.floor(questions * flipped - spread))
    last = min(questions, math.ceil(questions * flipped + spread))
    stride = 1 + (last - first) // 2000  # the power hardly changes between neighbouring counts
    total_chance, total_power = 0.0, 0.0
    for flips in range(first, last + 1, stride):
        chance = math.exp(_log_binomial(flips, questions, flipped))
        total_chance += chance
        total_power += chance * _power_of_flips(flips, one_sided, significance)
    return total_power / total_chance


@lru_cache(maxsize=65536)
def _power_of_flips(flips: int, one_sided: float, significance: float) -> float:
    """Chance that `flips` flips fall so one-sidedly that the test is significant."""
    if flips > EXACT_FLIPS:
        return _normal_power_of_flips(flips, one_sided, significance)
    most = _critical_count(flips, significance)
    rare = 1 - one_sided
    few, many = one_sided**flips, rare**flips  # chances that none, and that all, go the rare way
    total = 0.0
    for count in range(most + 1):
        total += few + many
        factor = (flips - count) / (count + 1)
        few *= factor * rare / one_sided
        many *= factor * one_sided / rare if rare else 0.0
    return total


@lru_cache(maxsize=65536)
def _critical_count(flips: int, significance: float) -> int:
    """The most flips in the rarer direction with which the test is significant; -1 if none are."""
    ways, tail = 1, 0
    for count in range(flips // 2 + 1):
        tail += ways
        if 2 * tail > significance * 2**flips:
            return count - 1
        ways = ways * (flips - count) // (count + 1)
    return flips // 2


def _normal_power_of_flips(flips: int, one_sided: float, significance: float) -> float:
    """The same by the normal approximation with continuity correction, for many flips."""
    normal = NormalDist()
    # Both the test and the alternative are binomial: half a count is the correction of each.
    critical = math.floor(flips / 2 - 0.5 + normal.inv_cdf(significance / 2) * math.sqrt(flips) / 2)
    deviation = math.sqrt(flips * one_sided * (1 - one_sided))
    if deviation == 0:
        return 1.0
    few = normal.cdf((critical + 0.5 - flips * (1 - one_sided)) / deviation)
    many = normal.cdf((critical + 0.5 - flips * one_sided) / deviation)
    return few + many


def _log_binomial(count: int, total: int, share: float) -> float:
    """Log-probability of `count` successes in `total` trials."""
    if share in (0.0, 1.0):
        return 0.0 if count == total * share else -math.inf
    ways = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return ways + count * math.log(share) + (total - count) * math.log1p(-share)
