"""Shares with their uncertainty."""

import math
from typing import Any


def wilson_interval(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22:209-212), 95 % by default; (0, 1) when there is no trial.

    Unlike the textbook interval p +- z*sqrt(p(1-p)/n) it stays within [0, 1] and holds for few trials and for shares
    near 0 and 1.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes in {total} trials: expected 0 <= successes <= trials")
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
    """A share as the summaries hold it: count, total, rate (None without trials) and the 95 % Wilson bounds."""
    low, high = wilson_interval(count, total)
    return {"count": count, "total": total, "rate": count / total if total else None, "low": low, "high": high}
