"""Shares with their uncertainty."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from common.errors import UserError

RESAMPLES = 10_000


def wilson_interval(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22:209-212), 95 % by default; (0, 1) when there
    is no trial.

    Unlike the textbook interval p +- z*sqrt(p(1-p)/n) it stays within [0, 1] and holds for few
    trials and for shares near 0 and 1.
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
    """A share as the summaries hold it: count, total, rate (None without trials) and the 95 %
    Wilson bounds.
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
    """Exact two-sided p-value of McNemar's test (1947, Psychometrika 12:153-157): may as many be
    lost as gained?

    Of the pairs whose outcome changed, `lost` went from good to bad and `gained` from bad to good;
    if both were equally likely, `lost` would be binomial with one half. Pairs that did not change
    say nothing.
    """
    if lost < 0 or gained < 0:
        raise UserError(f"lost = {lost}, gained = {gained}: expected counts of at least 0")
    flips = lost + gained
    tail = sum(math.comb(flips, i) for i in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**flips)  # whole numbers until here: exact for any count


def paired_interval(lost: int, gained: int, total: int, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of the difference in shares, (gained - lost)
    / total.

    Pairs are drawn with replacement; a draw's difference depends only on how many lost and gained
    pairs are in it, so the counts are drawn. It has no width where nothing flipped: the sample then
    holds nothing about chance.
    """
    if min(lost, gained) < 0 or lost + gained > total or total < 1:
        raise UserError(
            f"lost = {lost}, gained = {gained} of {total} pairs: expected lost + gained <= pairs"
        )
    chances = [lost / total, gained / total, (total - lost - gained) / total]
    draws = np.random.default_rng(seed).multinomial(total, chances, size=RESAMPLES)
    low, high = np.percentile((draws[:, 1] - draws[:, 0]) / total, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`."""
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
    """How many paired questions it takes to find a difference of this size with a chance of
    `power`.

    `difference` in shares, of which `flipped` changed in either direction. Connor 1987 (Biometrics
    43:207-211); None for no difference, which no number of questions shows.
    """
    if not abs(difference) <= flipped <= 1:
        raise UserError(
            f"difference = {difference}, flipped = {flipped}: expected |difference| <= flipped <= 1"
        )
    if difference == 0:
        return None
    quantile = NormalDist().inv_cdf
    null = quantile(1 - significance / 2) * math.sqrt(flipped)
    alternative = quantile(power) * math.sqrt(flipped - difference**2)
    return math.ceil(((null + alternative) / difference) ** 2)
