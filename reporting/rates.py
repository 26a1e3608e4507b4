"""Shares as the summaries hold them, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from common.errors import UserError
from data.checked import checked_field
from data.intervals import rate

RatePath = tuple[str, ...]  # where a summary holds a rate: ("accuracy", "number")
SEARCHED_DEPTH = 2  # rates lie in the summary, or in an object there


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of `total`, which is at least 1, with its 95 % Wilson interval."""

    count: int
    total: int
    rate: float
    low: float
    high: float


def make_rate(count: int, total: int) -> Rate | None:
    """The share of `count` in `total`; None without any trial."""
    return Rate(**rate(count, total)) if total else None


class RateFields(TypedDict):
    """A rate in a summary; without any trial there is no share. See `data.intervals.rate`."""

    count: int
    total: int
    rate: float | None
    low: float | None
    high: float | None


def read_rate(values: Mapping[str, Any], path: RatePath, where: str) -> Rate | None:
    """The rate at `path`; None if there is none, or none of any trial. UserError for what is no
    rate.
    """
    outer: Any = values
    for key in path[:-1]:
        if outer.get(key) is None:
            return None
        outer = checked_field(outer, key, dict[str, Any], where)
        where = f"{where}: in {key!r}"
    if outer.get(path[-1]) is None:
        return None
    fields: RateFields = checked_field(outer, path[-1], RateFields, where)
    return _checked_rate(fields, f"{where}: in {path[-1]!r}")


def _checked_rate(fields: RateFields, where: str) -> Rate | None:
    count, total = fields["count"], fields["total"]
    if not 0 <= count <= total:
        raise UserError(f"{where}: a count of {count} out of {total}")
    if total == 0:
        return None
    share, low, high = (
        checked_field(fields, name, float, where) for name in ("rate", "low", "high")
    )
    # Wilson's ends meet 0 and 1 up to rounding.
    if not (0 <= low <= high <= 1 and low - 1e-9 <= share <= high + 1e-9):
        raise UserError(
            f"{where}: rate {share} outside its interval [{low}, {high}], or that outside [0, 1]"
        )
    if abs(share - count / total) > 1e-6:
        raise UserError(f"{where}: rate {share}, but a count of {count} out of {total}")
    return Rate(count, total, share, low, high)


def find_rates(values: Mapping[str, Any], where: str) -> dict[RatePath, Rate]:
    """Every rate in a summary but those of its groups, by path and in the summary's order.

    An object with a count, a total and a rate is one. UserError for one that is malformed.
    """
    found: dict[RatePath, Rate] = {}
    for path in _rate_paths(values, SEARCHED_DEPTH):
        rate = read_rate(values, path, where)
        if rate is not None:
            found[path] = rate
    return found


def _rate_paths(values: Mapping[str, Any], depth: int) -> list[RatePath]:
    paths: list[RatePath] = []
    for key, value in values.items():
        if not isinstance(value, dict) or key.startswith("by_"):
            continue
        if {"count", "total", "rate"} <= value.keys():
            paths.append((key,))
        elif depth > 1:
            paths += [(key, *path) for path in _rate_paths(value, depth - 1)]
    return paths
